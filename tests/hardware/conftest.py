"""Machines that are not here, as files below another root."""

import pathlib

import pytest

from mathqwen.hardware.machine import GOOGLE, Accelerators

V5E = '0x0063'


class FakeMachine:
  """Files below `root`, and an environment."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.environment = {}

  def nodes(self, *paths):
    for path in paths:
      file = self.root / path.lstrip('/')
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(b'')
    return self

  def pci(self, count, vendor=GOOGLE, device=V5E, group=None, function=0):
    for i in range(count):
      folder = self.root / f'sys/bus/pci/devices/0000:00:{i + 4:02x}.{function}'
      folder.mkdir(parents=True)
      (folder / 'vendor').write_text(f'{vendor}\n')
      (folder / 'device').write_text(f'{device}\n')
      if group is not None:
        place = self.root / f'sys/kernel/iommu_groups/{group + i}'
        place.mkdir(parents=True)
        (folder / 'iommu_group').symlink_to(place)
    return self

  def process(self, pid, command, *open_files):
    folder = self.root / f'proc/{pid}'
    (folder / 'fd').mkdir(parents=True)
    (folder / 'cmdline').write_bytes(command.replace(' ', '\0').encode())
    for number, target in enumerate(open_files, start=3):
      (folder / 'fd' / str(number)).symlink_to(target)
    return self

  def accelerators(self, **environment):
    return Accelerators(self.root, self.environment | environment)


@pytest.fixture
def fake(tmp_path):
  """An empty machine."""
  return FakeMachine(tmp_path / 'root')
