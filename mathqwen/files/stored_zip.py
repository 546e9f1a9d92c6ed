"""`StoredZip`: a zip file whose members are not compressed, read by ranges of bytes like any large file.

The standard library's zipfile reads a member from its beginning, checks nothing against its neighbours, and would
unpack what is compressed. `torch.save` compresses nothing, so a tensor's bytes lie in the file as they are, and any
range of them is one read. The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import dataclasses
import struct

from mathqwen.files.large import RangedFile

_END = struct.Struct('<IHHHHIIH')  # end of central directory, without a comment
_LOCATOR = struct.Struct('<IIQI')  # where the zip64 form of it is
_END64 = struct.Struct('<IQHHIIQQQQ')
_ENTRY = struct.Struct('<IHHHHHHIIIHHHHHII')  # one member in the central directory
_LOCAL = struct.Struct('<IHHHHHIIIHH')  # the header before a member's bytes
_SIGNATURES = {_END: 0x06054B50, _LOCATOR: 0x07064B50, _END64: 0x06064B50, _ENTRY: 0x02014B50, _LOCAL: 0x04034B50}
_LARGEST_DIRECTORY = 2**24  # bytes; that of the largest published shard has less than 2**18
_ZIP64 = 0xFFFFFFFF  # in a 32-bit field: the value is in the entry's extra field, as 64 bits
_ENCRYPTED = 1  # bit of the flags


@dataclasses.dataclass(frozen=True)
class Member:
  """One member: where its local header is, how many bytes it has, and where the next thing in the file begins."""

  header: int
  size: int
  end: int


class StoredZip:
  """The members of an open file, checked: none is compressed or encrypted, and no two overlap.

  ValueError: when the file is cut off or not such a zip file.
  """

  def __init__(self, file: RangedFile):
    self._file = file
    self._first_byte: dict[str, int] = {}
    start, count, size = self._directory()
    self.members = self._read_directory(start, count, size)

  def _directory(self) -> tuple[int, int, int]:
    """(first byte, members, bytes) of the central directory."""
    at = self._file.size - _END.size
    _, _, _, _, count, size, start, comment = self._unpack(_END, at, 'end as a zip file does')
    if comment:
      raise ValueError('it has a comment, as torch writes none')
    if _ZIP64 in (size, start) or count == 0xFFFF:
      *_, at, _ = self._unpack(_LOCATOR, at - _LOCATOR.size, 'have the end of a large zip file')
      *_, count, size, start = self._unpack(_END64, at, 'have the directory that its end names')
    if size > _LARGEST_DIRECTORY or start + size > at:
      raise ValueError(f'its list of members has {size:,} bytes from byte {start:,} on')
    return start, count, size

  def _unpack(self, layout: struct.Struct, at: int, what: str) -> tuple:
    data = self._file.read(at, layout.size) if at >= 0 else b''
    if len(data) < layout.size or layout.unpack(data)[0] != _SIGNATURES[layout]:
      raise ValueError(f'its {self._file.size:,} bytes do not {what}')
    return layout.unpack(data)

  def _read_directory(self, start: int, count: int, size: int) -> dict[str, Member]:
    data = self._file.read(start, size)
    found: list[tuple[int, int, str]] = []  # (first byte of the header, bytes of the member, name)
    at = 0
    while at < len(data):
      if at + _ENTRY.size > len(data):
        raise ValueError('its list of members is cut off')
      entry = _ENTRY.unpack_from(data, at)
      signature, _, _, flags, method, _, _, _, packed, unpacked, name_size, extra_size, comment_size, *_, header = entry
      at += _ENTRY.size
      name = data[at : at + name_size].decode('utf-8', 'replace')
      extra = data[at + name_size : at + name_size + extra_size]
      at += name_size + extra_size + comment_size
      if signature != _SIGNATURES[_ENTRY] or at > len(data):
        raise ValueError('its list of members is damaged')
      unpacked, packed, header = _long_fields([unpacked, packed, header], extra)
      if method or packed != unpacked or flags & _ENCRYPTED:
        raise ValueError(f'its member {name[:80]} is compressed or encrypted, as torch writes none')
      found.append((header, unpacked, name))
    if len(found) != count or len({name for _, _, name in found}) != count:
      raise ValueError(f'its list of members has {len(found)} entries, not {count} of different names')

    found.sort()
    ends = [header for header, _, _ in found[1:]] + [start]
    members = {}
    for (header, length, name), end in zip(found, ends, strict=True):
      if header + _LOCAL.size + length > end:
        raise ValueError(f'its member {name[:80]} overlaps with what follows')
      members[name] = Member(header, length, end)
    return members

  def first_byte(self, name: str) -> int:
    """Where the bytes of a member begin. ValueError: when its local header does not fit the list of members."""
    if name not in self._first_byte:
      member = self.members[name]
      *_, name_size, extra_size = self._unpack(
        _LOCAL, member.header, f'have {name[:80]} where its list of members says'
      )
      first = member.header + _LOCAL.size + name_size + extra_size
      if first + member.size > member.end:
        raise ValueError(f'its member {name[:80]} overlaps with what follows')
      self._first_byte[name] = first
    return self._first_byte[name]

  def read(self, name: str, most: int) -> bytes:
    """All bytes of a member. ValueError: when there is none, or it has more than `most` bytes."""
    if name not in self.members:
      raise ValueError(f'it has no member {name}')
    size = self.members[name].size
    if size > most:
      raise ValueError(f'its member {name} has {size:,} bytes, as none has')
    data = self._file.read(self.first_byte(name), size)
    if len(data) < size:
      raise ValueError(f'it ended within {name}')
    return data


def _long_fields(values: list[int], extra: bytes) -> list[int]:
  """The values, those that do not fit 32 bits from the zip64 part of an entry's extra field, in their order."""
  if _ZIP64 not in values:
    return values
  at = 0
  while at + 4 <= len(extra):
    kind, size = struct.unpack_from('<HH', extra, at)
    if kind == 1:
      missing = values.count(_ZIP64)
      if size < 8 * missing or at + 4 + size > len(extra):
        break
      longs = iter(struct.unpack_from(f'<{missing}Q', extra, at + 4))
      return [next(longs) if value == _ZIP64 else value for value in values]
    at += 4 + size
  raise ValueError('its list of members lacks the sizes of large members')
