"""The devices that a command gets are those that were asked for, or it ends with the cause in one line."""

import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from mathqwen import compat
from mathqwen.errors import UserError
from mathqwen.hardware import chips, devices, hosts, jax_internals, machine

ROOT = pathlib.Path(__file__).parents[2]


def tpu_v5e(m):
  return m.pci(8).nodes(*(f'/dev/accel{i}' for i in range(8)))


def gpu(m):
  return m.nodes('/dev/nvidia0')


def nothing(m):
  return m


@pytest.mark.parametrize(
  'make, platform, environment, configured, chosen, for_jax',
  [
    (tpu_v5e, 'auto', {}, None, 'tpu', 'tpu,cpu'),
    (tpu_v5e, 'auto', {'JAX_PLATFORMS': ''}, None, 'tpu', 'tpu,cpu'),
    (tpu_v5e, 'auto', {'JAX_PLATFORMS': 'cpu'}, None, 'cpu', None),
    (tpu_v5e, 'auto', {'JAX_PLATFORMS': 'tpu,cpu'}, None, 'tpu', None),
    (tpu_v5e, 'auto', {'JAX_PLATFORM_NAME': 'cpu'}, None, 'cpu', None),
    (tpu_v5e, 'auto', {}, 'cpu', 'cpu', None),  # jax.config.update in the user's program
    (tpu_v5e, 'cpu', {}, None, 'cpu', 'cpu'),
    (tpu_v5e, 'tpu', {'JAX_PLATFORMS': 'cpu'}, None, 'tpu', 'tpu,cpu'),  # the flag is nearer
    (gpu, 'auto', {}, None, 'gpu', 'cuda,cpu'),
    (gpu, 'gpu', {}, None, 'gpu', 'cuda,cpu'),
    (gpu, 'auto', {'JAX_PLATFORMS': 'gpu'}, None, 'gpu', 'cuda,cpu'),
    (gpu, 'auto', {'JAX_PLATFORMS': 'cuda'}, None, 'gpu', None),
    (gpu, 'auto', {'CUDA_VISIBLE_DEVICES': ''}, None, 'cpu', 'cpu'),
    (nothing, 'auto', {}, None, 'cpu', 'cpu'),  # libtpu may be installed for `plan`: it is not to look for a TPU
    (nothing, 'auto', {'JAX_PLATFORMS': 'proxy'}, None, None, None),  # Pathways
    (nothing, 'auto', {'TPU_ACCELERATOR_TYPE': 'v5e-1'}, None, 'tpu', 'tpu,cpu'),
  ],
)
def test_choices(fake, make, platform, environment, configured, chosen, for_jax):
  choice = devices.decide(platform, make(fake).accelerators(**environment), configured)
  assert (choice.platform, choice.for_jax) == (chosen, for_jax)


def test_a_plugin_for_other_devices_may_find_some(fake, monkeypatch):
  monkeypatch.setattr(machine, '_plugins', lambda: ['jax_plugins.metal'])
  assert devices.decide('auto', fake.accelerators()).platform is None


@pytest.mark.parametrize(
  'make, platform, message',
  [
    (nothing, 'tpu', '--platform tpu: this machine has no TPU (none in /dev/accel*, in /dev/vfio or on the PCI bus): '),
    (gpu, 'tpu', 'use a machine or a notebook runtime with a TPU, or --platform gpu'),
    (tpu_v5e, 'gpu', '--platform gpu: this machine has no GPU with a driver'),
    (nothing, 'gpu', 'or --platform cpu'),
  ],
)
def test_what_the_machine_lacks(fake, make, platform, message):
  with pytest.raises(UserError) as error:
    devices.decide(platform, make(fake).accelerators())
  assert message in str(error.value)


BUSY = 'ABORTED: The TPU is already in use by process with pid 41. Not attempting to load libtpu.so in this process.'
LOCKED = 'ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm /tmp/libtpu_lockfile".'
JAX_SAYS = "Unable to initialize backend 'tpu': {} (set JAX_PLATFORMS='' to automatically choose an available backend)"
NOT_FOUND = 'NOT_FOUND: TPU initialization failed: No jellyfish device found.'


@pytest.fixture
def explained(monkeypatch):
  """explained(accelerators, message of JAX) -> the line; `libtpu`, `plugin`: what is installed."""

  def explain(accelerators, *said, libtpu=True, plugin=True, platform='auto'):
    monkeypatch.setattr(devices, '_has_libtpu', lambda _: libtpu)
    monkeypatch.setattr(machine, '_plugins', lambda: ['jax_plugins.xla_cuda13'] if plugin else [])
    monkeypatch.setattr(devices, '_choice', devices.decide(platform, accelerators))
    return devices._explain(list(said), accelerators)

  return explain


def test_causes_of_a_tpu(fake, explained, monkeypatch):
  monkeypatch.setattr(compat, 'other_libtpu', lambda: None)
  fake.nodes('/dev/accel0').process(41, 'python a.py')
  here = fake.accelerators()
  jax_version = importlib.metadata.version('jax')
  start, end = 'the TPU (/dev/accel0) cannot be used: ', '; or choose --platform cpu'

  said = explained(here, JAX_SAYS.format(BUSY))
  assert said.startswith(start + 'held by pid 41 (python a.py): wait for it, or end it (kill 41;') and said.endswith(
    end
  )
  said = explained(here, JAX_SAYS.format(NOT_FOUND), libtpu=False)
  assert f"libtpu, its driver library, is not installed: pip install 'jax[tpu]=={jax_version}'" in said
  said = explained(here, JAX_SAYS.format(LOCKED))
  assert '/tmp/libtpu_lockfile is left over' in said and 'sudo rm /tmp/libtpu_lockfile' in said
  said = explained(here, JAX_SAYS.format('UNKNOWN: something new'), platform='tpu')
  assert said == (
    'the TPU (--platform tpu) cannot be used: UNKNOWN: something new; restart the machine or the notebook runtime if '
    'that does not help'
  )
  monkeypatch.setattr(compat, 'other_libtpu', lambda: 'libtpu 0.0.17 is not the one of JAX 0.7.2')
  said = explained(here, JAX_SAYS.format('INVALID_ARGUMENT: PJRT version'))
  assert said == f'{start}INVALID_ARGUMENT: PJRT version; libtpu 0.0.17 is not the one of JAX 0.7.2{end}'
  # A busy chip of vfio gives no pid: the process that has it open does.
  fake.process(42, 'python b.py', '/dev/accel0')
  assert 'held by pid 42 (python b.py)' in explained(here, JAX_SAYS.format('UNKNOWN: Device or resource busy'))


def test_a_tpu_that_is_locked_or_not_ours(fake, explained, monkeypatch):
  fake.nodes('/dev/accel0', machine.LOCK_FILE, '/proc/locks').process(77, 'python other.py')
  number = (fake.root / machine.LOCK_FILE[1:]).stat().st_ino
  (fake.root / 'proc/locks').write_text(
    f'1: POSIX  ADVISORY  WRITE 9 fe:00:1{number} 0 EOF\n2: POSIX  ADVISORY  WRITE 77 fe:00:{number} 0 EOF\n'
  )
  assert 'held by pid 77 (python other.py)' in explained(fake.accelerators(), JAX_SAYS.format(LOCKED))
  (fake.root / 'proc/locks').write_text('')
  monkeypatch.setattr(os, 'access', lambda *_: False)
  assert 'you may not open /dev/accel0: ' in explained(fake.accelerators(), JAX_SAYS.format('UNKNOWN: open'))


def test_a_tpu_that_the_container_does_not_have(fake, explained):
  said = explained(fake.accelerators(TPU_ACCELERATOR_TYPE='v5e-1'), JAX_SAYS.format(NOT_FOUND))
  assert said.startswith(f'the TPU (TPU_ACCELERATOR_TYPE=v5e-1) cannot be used: no chip is in /dev ({NOT_FOUND}): in a')


def test_causes_of_a_gpu(fake, explained):
  here = gpu(fake).process(5, 'python big.py', '/dev/nvidia0').accelerators()
  unknown = "Unable to initialize backend 'cuda': Backend 'cuda' is not in the list of known backends: dict_keys([..."
  jax_version = importlib.metadata.version('jax')
  said = explained(here, unknown, plugin=False)
  assert said.startswith('the GPU (/dev/nvidia0) cannot be used: this JAX is for the CPU only: pip install ')
  assert f"'jax[cuda13]=={jax_version}'" in said and said.endswith('; or choose --platform cpu')
  why = 'CUDA version check failed during initialization. Error: Outdated cuDNN installation found.'
  assert why in explained(here, why, unknown)
  assert 'NO_DEVICE' in explained(here, 'a note', "Unable to initialize backend 'cuda': INTERNAL: CUDA_ERROR_NO_DEVICE")
  assert 'held by pid 5 (python big.py)' in explained(here, 'RESOURCE_EXHAUSTED: CUDA_ERROR_OUT_OF_MEMORY')


def test_a_gpu_that_only_the_environment_names(fake, explained):
  said = explained(fake.accelerators(JAX_PLATFORMS='cuda'), '')
  assert said.startswith('the GPU (JAX_PLATFORMS=cuda) cannot be used: this machine has no GPU with a driver')


def test_jax_that_went_on_without_the_tpu_is_found_out(fake, monkeypatch):
  """Already started, on the CPU: by the user's program, before any command of ours."""
  assert jax.default_backend() == 'cpu'
  monkeypatch.setattr(jax_internals, 'start_errors', lambda: {'tpu': BUSY})
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(devices, '_choice', devices.Choice('cpu', 'set by this test', jax.config.jax_platforms))
  with pytest.raises(UserError) as error:
    devices.choose('auto', tpu_v5e(fake).accelerators())
  assert str(error.value).startswith(f'JAX already runs on the CPU in this process ({BUSY}), and /dev/accel0, ')
  assert str(error.value).endswith('asks for the TPU: restart the process or the kernel; or choose --platform cpu')
  monkeypatch.setattr(devices, '_choice', devices.Choice('cpu', '', jax.config.jax_platforms))
  devices.choose('cpu', fake.accelerators())


HELD = """
import pathlib, sys
from mathqwen.hardware import machine
machine.ROOT = pathlib.Path(sys.argv[1])
from mathqwen import cli
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize('command', [['train', 'demo', '--workdir', 'w'], ['generate', 'w', '1'], ['bench', 'decode']])
def test_a_command_on_a_machine_whose_tpu_is_held(fake, tmp_path, command):
  """With the real JAX, which would go on on the CPU."""
  fake.nodes('/dev/accel0').process(77, 'python other.py', '/dev/accel0')
  env = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'} | {'PYTHONPATH': str(ROOT)}
  words = [sys.executable, '-c', HELD, str(fake.root), *command]
  done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
  cause = 'held by pid 77 (python other.py)' if importlib.util.find_spec('libtpu') else 'libtpu, its driver library'
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.splitlines()[-1].startswith(f'mathqwen: the TPU (/dev/accel0) cannot be used: {cause}')
  assert 'Traceback' not in done.stderr and not (tmp_path / 'w').exists()


def test_without_an_accelerator_the_first_line_is_ours(tmp_path):
  """Also where libtpu is installed for its compiler: it does not look for a TPU."""
  env = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'} | {'PYTHONPATH': str(ROOT)}
  if machine.Accelerators().tpu() or machine.Accelerators().gpu():
    pytest.skip('this machine has an accelerator')
  words = [sys.executable, '-m', 'mathqwen', 'generate', 'no-model', '1']
  done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
  first, *_, last = done.stderr.splitlines()
  assert first == devices.describe().split(',')[0] and 'no model at no-model' in last


def device(kind='TPU v5', coords=(0, 0, 0), host=0, slice_index=0, platform='tpu', number=0):
  return types.SimpleNamespace(
    device_kind=kind, coords=coords, process_index=host, slice_index=slice_index, platform=platform, id=number
  )


def slice_devices(name, kind, per_host=4):
  """The devices of JAX on a slice."""
  where = chips.slice_of(name)
  found = []
  for index in range(where.count):
    for chip in range(where.chips_per_slice):
      host = (index * where.chips_per_slice + chip) // per_host
      found += [device(kind, (chip, 0, 0), host, index)] * where.chip.devices
  return found


@pytest.fixture
def run_on(monkeypatch):
  def on(found):
    monkeypatch.setattr(jax, 'devices', lambda: found)
    monkeypatch.setattr(jax, 'process_count', lambda: len({one.process_index for one in found}))

  return on


@pytest.mark.parametrize(
  'found, text',
  [
    (slice_devices('v5e-8', 'TPU v5 lite', 8), '8 x TPU v5 lite (v5litepod-8)'),
    (slice_devices('v5e-1', 'TPU v5 lite', 1), '1 x TPU v5 lite (v5litepod-1)'),
    (slice_devices('v5p-32', 'TPU v5'), '16 x TPU v5 (v5p-32) on 4 hosts'),
    (slice_devices('2xv5p-32', 'TPU v5'), '32 x TPU v5 (2xv5p-32) on 8 hosts'),
    (slice_devices('tpu7x-16', 'TPU7x'), '8 x TPU7x (tpu7x-16), 16 devices on 2 hosts'),
    (slice_devices('v5e-8', 'TPU v5 lite')[:3], '3 x TPU v5 lite'),
    (slice_devices('v5e-4', 'TPU v9'), '4 x TPU v9'),
    ([device('NVIDIA H100 80GB HBM3', platform='gpu')], '1 x NVIDIA H100 80GB HBM3'),
    ([device('NVIDIA L4', None, platform='gpu', number=i) for i in range(4)], '4 x NVIDIA L4'),
  ],
)
def test_descriptions(run_on, found, text):
  run_on(found)
  assert devices.describe() == text


def test_the_description_of_this_machine():
  cores = len(os.sched_getaffinity(0))
  assert devices.describe().split(',')[0] == f'CPU ({cores} cores)'


@pytest.mark.parametrize('name, kind', [('v5p-32', 'TPU v5'), ('2xv5p-32', 'TPU v5p'), ('tpu7x-16', 'TPU7x')])
def test_the_slice_that_was_asked_for(run_on, name, kind):
  run_on(slice_devices(name, kind))
  devices.check_slice(name)


@pytest.mark.parametrize(
  'name, found, message',
  [
    ('v5p-32', slice_devices('v5p-32', 'TPU v5')[:-1], '15 x TPU v5 on 4 hosts (host 3 has 3 chips, not 4): run on'),
    ('v5p-32', slice_devices('v5p-16', 'TPU v5'), 'is 16 chips of v5p; found 8 x TPU v5 (v5p-16) on 2 hosts: run'),
    ('v5p-16', slice_devices('v5p-32', 'TPU v5'), 'is 8 chips of v5p; found 16 x TPU v5 (v5p-32) on 4 hosts'),
    ('v5p-8', slice_devices('v6e-4', 'TPU v6 lite'), 'found 4 x TPU v6 lite (v6e-4)'),
    ('2xv5p-16', slice_devices('v5p-32', 'TPU v5'), 'is 16 chips of v5p in 2 slices; found 16 x TPU v5 (v5p-32)'),
    ('v5p-32', slice_devices('2xv5p-16', 'TPU v5'), 'is 16 chips of v5p; found 16 x TPU v5 (2xv5p-16)'),
    ('tpu7x-16', slice_devices('tpu7x-16', 'TPU7x')[: 2 * 7], '7 x TPU7x, 14 devices on 2 hosts'),
  ],
)
def test_another_slice_than_asked_for(run_on, name, found, message):
  run_on(found)
  with pytest.raises(UserError) as error:
    devices.check_slice(name)
  assert str(error.value).startswith(f'--slice {name} is ') and message in str(error.value)


def test_fewer_chips_than_the_host_has(fake, monkeypatch):
  fake = tpu_v5e(fake)
  monkeypatch.setattr(devices, '_choice', devices.Choice('tpu', '/dev/accel0'))
  found = slice_devices('v5e-8', 'TPU v5 lite', 8)
  devices._check_chips(found, fake.accelerators())
  with pytest.raises(
    UserError, match=r'has 8 TPU chips \(/dev/accel0\) and JAX finds 3: .* TPU_VISIBLE_CHIPS=0,1,2 if'
  ):
    devices._check_chips(found[:3], fake.accelerators())
  devices._check_chips(found[:3], fake.accelerators(TPU_VISIBLE_CHIPS='0,1,2'))


def test_what_jax_logs_is_kept_for_the_line_and_printed_otherwise(capsys):
  logger = logging.getLogger('jax._src.xla_bridge')
  with pytest.raises(UserError), devices._kept_warnings() as said:
    logger.warning('the plugin is for another JAX')
    raise UserError('x')
  assert said == ['the plugin is for another JAX']
  seen = []
  handler = logging.Handler()
  handler.emit = lambda record: seen.append(record.getMessage())
  logging.getLogger('jax').addHandler(handler)
  try:
    with devices._kept_warnings():
      logger.warning('a note')
      assert seen == []
    assert seen == ['a note']
  finally:
    logging.getLogger('jax').removeHandler(handler)


def test_kaggle_is_one_host(monkeypatch):
  """JAX would take `local` for the name of a host and look for its address for minutes."""
  monkeypatch.setenv('TPU_PROCESS_ADDRESSES', 'local')
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *_, **__: pytest.fail('hosts were looked for'))
  hosts.join('auto', '')
  assert hosts.share() == (0, 1)
