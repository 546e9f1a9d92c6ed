"""What shows that a machine has a TPU or a GPU, and what only looks like it."""

import os
import subprocess
import sys

import pytest
from jax._src import hardware_utils

from mathqwen.hardware import machine
from mathqwen.hardware.machine import Accelerators


@pytest.mark.parametrize(
  'make, shown, nodes',
  [
    (lambda m: m.nodes('/dev/accel0', '/dev/accel1', '/dev/accel10'), '/dev/accel0, /dev/accel1, /dev/accel10', 3),
    (lambda m: m.pci(4, group=0).nodes(*(f'/dev/vfio/{i}' for i in (0, 1, 2, 3, 9))), 'vfio/2, /dev/vfio/3', 4),
    (lambda m: m.pci(2).nodes('/dev/vfio/0', '/dev/vfio/1', '/dev/vfio/vfio'), '/dev/vfio/0, /dev/vfio/1', 2),
    (lambda m: m.pci(8), '8 on the PCI bus', 0),
    (lambda m: m.pci(4, device='0x0076').pci(4, device='0x0076', function=1), '4 on the PCI bus', 0),  # TPU7x
  ],
)
def test_tpus(fake, make, shown, nodes):
  found = make(fake).accelerators()
  assert found.tpu().endswith(shown) and len(found.tpu_nodes()) == nodes
  assert found.gpu() is None


@pytest.mark.parametrize('variable', ['TPU_ACCELERATOR_TYPE', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'])
def test_a_tpu_that_only_the_environment_names(fake, variable):
  assert fake.accelerators(**{variable: 'x'}).tpu() == f'{variable}=x'
  assert fake.accelerators(COLAB_TPU_1VM='1').tpu() == 'COLAB_TPU_1VM=1'


@pytest.mark.parametrize(
  'make, environment',
  [
    (lambda m: m, {}),
    (lambda m: m.nodes('/dev/accel/accel0'), {}),  # the NPU of a laptop
    (lambda m: m.nodes('/dev/vfio/vfio', '/dev/vfio/12'), {}),  # a device that a virtual machine may use
    (lambda m: m.pci(2, device='0x0042').nodes('/dev/vfio/4'), {}),  # Google's network cards
    (lambda m: m.pci(1, vendor='0x10de'), {}),  # an NVIDIA card without a driver
    (lambda m: m.nodes('/dev/nvidiactl', '/dev/nvidia-uvm'), {}),  # a driver without a card
    (lambda m: m.nodes('/dev/dxg'), {}),  # WSL on any machine
    (lambda m: m.nodes('/dev/kfd'), {}),  # any laptop of AMD
    (lambda m: m.nodes('/dev/nvidia0'), {'CUDA_VISIBLE_DEVICES': '-1'}),
    (lambda m: m.nodes('/dev/nvidia0'), {'CUDA_VISIBLE_DEVICES': ''}),
    (lambda m: m, {'TPU_NAME': 'mine', 'TPU_SKIP_MDS_QUERY': '1', 'COLAB_TPU_1VM': ''}),
  ],
)
def test_false_alarms(fake, make, environment):
  found = make(fake).accelerators(**environment)
  assert (found.tpu(), found.gpu()) == (None, None)


def test_gpus(fake):
  assert fake.nodes('/dev/nvidiactl', '/dev/nvidia3').accelerators().gpu() == '/dev/nvidia3'
  assert fake.accelerators(CUDA_VISIBLE_DEVICES='0,1').gpu() == '/dev/nvidia3'
  assert fake.accelerators().tpu() is None


def test_wsl(fake):
  assert fake.nodes('/dev/dxg', '/usr/lib/wsl/lib/libcuda.so.1').accelerators().gpu() == '/dev/dxg'


def test_the_chips_that_jax_knows():
  assert {*hardware_utils._TPU_PCI_DEVICE_IDS} <= {*machine.TPU_IDS}
  assert hardware_utils._GOOGLE_PCI_VENDOR_ID == machine.GOOGLE


def test_holders(fake):
  fake.nodes('/dev/accel0').process(7, 'python train.py', '/dev/null', '/dev/accel0').process(8, 'sh', '/dev/null')
  fake.process(os.getpid(), 'this one', '/dev/accel0')
  (holder,) = fake.accelerators().holders(['/dev/accel0'])
  assert str(holder) == 'pid 7 (python train.py)'
  assert len(fake.process(9, 'python ' + 'x' * 300).accelerators().holder(9).command) == 120
  assert str(fake.accelerators().holder(10)) == 'pid 10'


def test_a_real_process_that_holds_a_file_and_its_lock(tmp_path, monkeypatch):
  path = tmp_path / 'lockfile'
  code = (
    'import fcntl, sys; f = open(sys.argv[1], "w"); fcntl.lockf(f, fcntl.LOCK_EX); print("locked", flush=True); input()'
  )
  with subprocess.Popen(
    [sys.executable, '-c', code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  ) as other:
    assert other.stdout.readline() == 'locked\n'
    monkeypatch.setattr(machine, 'LOCK_FILE', str(path))
    found = [Accelerators().lock_holder(), *Accelerators().holders([str(path)])]
    other.communicate('\n')
  assert [holder.pid for holder in found] == [other.pid] * 2
  assert all(holder.command.startswith(sys.executable) for holder in found)
  assert Accelerators().lock_holder() is None and Accelerators().holders([str(path)]) == []


def test_what_this_user_may_not_open(fake, monkeypatch):
  found = fake.nodes('/dev/accel0', '/dev/accel1', machine.LOCK_FILE).accelerators()
  assert found.closed_nodes(found.tpu_nodes()) == [] and found.foreign_lock() is None
  # A test that runs as root is refused nothing.
  monkeypatch.setattr(os, 'access', lambda path, mode: not str(path).endswith(('accel1', 'lockfile')))
  assert found.closed_nodes(found.tpu_nodes()) == ['/dev/accel1'] and found.foreign_lock() == machine.LOCK_FILE
