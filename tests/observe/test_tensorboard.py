"""The bytes of event files, read by tensorboardX's protocol buffers and checked by known sums."""

import struct
import time

import pytest

from mathqwen.observe import tensorboard
from mathqwen.observe.metrics import MetricsWriter


def read(data):
  """Events of a file, each framing sum checked by tensorboardX's own code."""
  event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
  from tensorboardX.record_writer import masked_crc32c

  events, at = [], 0
  while at < len(data):
    (length,) = struct.unpack('<Q', data[at : at + 8])
    body = data[at + 12 : at + 12 + length]
    assert struct.unpack('<I', data[at + 8 : at + 12])[0] == masked_crc32c(data[at : at + 8])
    assert struct.unpack('<I', data[at + 12 + length : at + 16 + length])[0] == masked_crc32c(body)
    events.append(event_pb2.Event.FromString(body))
    at += 16 + length
  return events


def test_the_check_value_of_crc32c():
  """0xE3069283 for '123456789', in every catalogue of such sums; masked as TFRecord does."""
  crc = 0xE3069283
  assert tensorboard._masked_crc(b'123456789') == struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def test_events():
  header, restart, values = read(
    tensorboard.header() + tensorboard.restart(301) + tensorboard.scalars(50_000, {'loss': 0.5, 'tokens/s': -2e10})
  )
  assert header.file_version == 'brain.Event:2'
  assert abs(header.wall_time - time.time()) < 60
  assert (restart.step, restart.session_log.status) == (301, 1)  # START: older events from this step on are void
  assert values.step == 50_000
  assert {v.tag: v.simple_value for v in values.summary.value} == {'loss': 0.5, 'tokens/s': pytest.approx(-2e10)}


def test_the_file_of_a_run(tmp_path):
  writer = MetricsWriter(str(tmp_path), resume_step=4)
  writer.write(5, {'loss': 0.25, 'eval_loss': 0.75})
  (file,) = (tmp_path / 'tensorboard').iterdir()
  assert file.name.startswith('events.out.tfevents.')
  _, restart, values = read(file.read_bytes())
  assert (restart.step, values.step) == (5, 5)
  assert {v.tag: v.simple_value for v in values.summary.value} == {'loss': 0.25, 'eval_loss': 0.75}
  writer.close()
