"""Scalars for TensorBoard, as bytes: the libraries that do this import torch or TensorFlow where they are installed.

file    record record ...                                            TFRecord framing
record  length [8] masked crc32c(length) [4] data [length] masked crc32c(data) [4]      little-endian
data    Event{wall_time = 1, step = 2, summary = 5 {value = 1 {tag = 1, simple_value = 2}}}   protocol buffers
"""

import struct
import time

_CRC_TABLE = []
for _byte in range(256):
  for _ in range(8):
    _byte = (_byte >> 1) ^ (0x82F63B78 if _byte & 1 else 0)  # Castagnoli's polynomial, reflected
  _CRC_TABLE.append(_byte)


def header() -> bytes:
  """What a file begins with: the version of its format."""
  return _record(_bytes(3, b'brain.Event:2'))


def restart(step: int) -> bytes:
  """Says that events from `step` on, in older files, are void: SessionLog{status = START}."""
  return _record(_int(2, step) + _bytes(7, _int(1, 1)))


def scalars(step: int, values: dict[str, float]) -> bytes:
  summary = b''.join(_bytes(1, _bytes(1, tag.encode()) + b'\x15' + struct.pack('<f', v)) for tag, v in values.items())
  return _record(_int(2, step) + _bytes(5, summary))


def _record(event: bytes) -> bytes:
  data = b'\x09' + struct.pack('<d', time.time()) + event
  length = struct.pack('<Q', len(data))
  return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
  crc = 0xFFFFFFFF
  for byte in data:
    crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*out, value])


def _int(field: int, value: int) -> bytes:
  return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(value)) + value
