"""TensorBoard's event files, written byte by byte: the libraries that do it import torch or TensorFlow where they can.

file    record record ...                                                                 TFRecord framing
record  length [8] masked crc32c(length) [4] data [length] masked crc32c(data) [4]      little-endian
data    Event{wall_time = 1, step = 2, summary = 5 {value = 1 {tag = 1, simple_value = 2}}}   protocol buffers

Sources, in tensorflow/core: util/event.proto, framework/summary.proto, lib/io/record_writer.h.
"""

import struct
import time

_CRC_TABLE = []
for _byte in range(256):
  for _ in range(8):
    _byte = (_byte >> 1) ^ (0x82F63B78 if _byte & 1 else 0)  # Castagnoli's polynomial, bits reversed
  _CRC_TABLE.append(_byte)


def header() -> bytes:
  """The first record of a file: the version of the format."""
  return _tfrecord(_bytes_field(3, b'brain.Event:2'))


def restart(step: int) -> bytes:
  """A record that voids events of `step` and later in older files: Event{session_log = 7 {status = 1: START}}."""
  return _tfrecord(_int_field(2, step) + _bytes_field(7, _int_field(1, 1)))


def scalars(step: int, values: dict[str, float | None]) -> bytes:
  """A record with one scalar, in float32, for each name that has a value."""
  summary = b''
  for tag, value in values.items():
    if value is None:
      continue
    simple_value = b'\x15' + struct.pack('<f', value)  # 0x15: field 2, four bytes
    summary += _bytes_field(1, _bytes_field(1, tag.encode()) + simple_value)
  return _tfrecord(_int_field(2, step) + _bytes_field(5, summary))


def _tfrecord(event: bytes) -> bytes:
  data = b'\x09' + struct.pack('<d', time.time()) + event  # 0x09: field 1, eight bytes
  length = struct.pack('<Q', len(data))
  return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
  crc = 0xFFFFFFFF
  for byte in data:
    crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  # TFRecord's mask: rotate right by 15 bits, add a constant.
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
  """Seven bits a byte, lowest first; the high bit says that another byte follows."""
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*out, value])


def _int_field(field: int, value: int) -> bytes:
  return _varint(field << 3) + _varint(value)  # wire type 0


def _bytes_field(field: int, value: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(value)) + value  # wire type 2: the length, then the bytes
