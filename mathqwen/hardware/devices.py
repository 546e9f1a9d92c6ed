"""The devices a command computes on: chosen by the user or by what the machine has, started, checked, and described.

`choose` before JAX starts its devices, `start` when all hosts have joined, then `describe` and `check_slice`. A machine
with a TPU or a GPU does not compute on its CPU unless that is asked for: where JAX would go on without a word, the user
gets one line with the cause.
"""

import collections
import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Iterator

from mathqwen import compat
from mathqwen.errors import UserError, look_up
from mathqwen.hardware import chips, jax_internals, machine
from mathqwen.hardware.machine import Accelerators

PLATFORMS = ('auto', 'tpu', 'gpu', 'cpu')
_NAMES = {'tpu': 'TPU', 'gpu': 'GPU', 'cpu': 'CPU'}
# What `jax.Device.platform` is called.
_OF_JAX = {'tpu': 'tpu', 'gpu': 'gpu', 'cuda': 'gpu', 'rocm': 'gpu', 'cpu': 'cpu'}
_LOOKED_AT = {
  'tpu': 'no TPU (none in /dev/accel*, in /dev/vfio or on the PCI bus)',
  'gpu': 'no GPU with a driver (no /dev/nvidia*, or CUDA_VISIBLE_DEVICES hides it)',
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """What the devices of this process must be, and why."""

  platform: str | None  # 'tpu', 'gpu', 'cpu'; None: whatever JAX finds
  said_by: str  # --platform tpu; JAX_PLATFORMS=cpu; /dev/accel0
  for_jax: str | None = None  # what jax_platforms is set to; None leaves it
  escape: str = ''  # what else the user may do when there is no such device, for the end of the message


# One process computes on one kind of device, so this is the state of the process.
_choice = Choice(None, '')


def choose(platform: str | None = None, accelerators: Accelerators | None = None) -> None:
  """Decides what JAX is to run on. Call it before JAX starts its devices; `start` then checks the choice.

  platform: one of PLATFORMS; None is 'auto': JAX_PLATFORMS decides, and without it what the machine has.
  accelerators: of another machine than this one.
  UserError: when the machine has no such accelerator, or JAX runs on other devices in this process already.
  """
  global _choice
  accelerators = accelerators or Accelerators()
  look_up('platform', platform or 'auto', dict.fromkeys(PLATFORMS))
  import jax

  configured = jax.config.jax_platforms
  if configured in (_choice.for_jax, 'tpu,cpu'):  # set by an earlier choice, or by JAX itself on a TPU VM
    configured = None
  _choice = decide(platform or 'auto', accelerators, configured)
  if jax_internals.devices_started():
    _check_platform(jax.default_backend(), accelerators)
  elif _choice.for_jax is not None:
    jax.config.update('jax_platforms', _choice.for_jax)


def decide(platform: str, accelerators: Accelerators, configured: str | None = None) -> Choice:
  """The choice for one of PLATFORMS. configured: what the user's program has set `jax_platforms` to.

  UserError: when the machine has no such accelerator.
  """
  if platform == 'cpu':
    return Choice('cpu', '--platform cpu', 'cpu')
  if platform == 'auto':
    chosen = {name: accelerators.environment.get(name) for name in ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME')}
    for name, value in (chosen | {'jax_platforms': configured}).items():
      if value:
        first = value.split(',')[0].strip().lower()
        # JAX takes 'gpu' for all kinds of GPUs, and fails because it has not the plugins of all.
        return Choice(_OF_JAX.get(first), f'{name}={value}', _for_jax('gpu') if value == 'gpu' else None)
  found = {'tpu': accelerators.tpu(), 'gpu': accelerators.gpu()}
  if platform != 'auto':
    if found[platform] is None:
      other = next((name for name, shown in found.items() if shown), 'cpu')
      raise UserError(
        f'--platform {platform}: this machine has {_LOOKED_AT[platform]}: use a machine or a notebook runtime with a '
        f'{_NAMES[platform]}, or --platform {other}'
      )
    return Choice(platform, f'--platform {platform}', _for_jax(platform))
  for name, shown in found.items():
    if shown:
      return Choice(name, shown, _for_jax(name), '; or choose --platform cpu')
  # Nothing is here. With libtpu installed for its compiler, JAX would look for a TPU all the same, with a screenful of
  # warnings. A plugin for other devices may know better.
  known = sys.platform == 'linux' and not machine.has_other_plugin()
  return Choice('cpu', 'no accelerator', 'cpu') if known else Choice(None, '')


def start(accelerators: Accelerators | None = None) -> None:
  """Starts JAX's devices, and checks that they are those that were chosen.

  UserError: the cause, in one line, when they do not start or some are missing.
  """
  accelerators = accelerators or Accelerators()
  import jax

  with _kept_warnings() as said:
    try:
      started = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # it asserts that at least one platform started
      raise UserError(_explain([*said, str(error)], accelerators)) from None
    _check_platform(started, accelerators, said)
  if started == 'tpu':
    _check_chips(jax.local_devices(), accelerators)


def describe() -> str:
  """'8 x TPU v5 lite (v5litepod-8)', '1 x NVIDIA H100 80GB HBM3', 'CPU (2 cores)': the devices of the whole run."""
  import jax

  devices = jax.devices()
  hosts = f' on {jax.process_count()} hosts' if jax.process_count() > 1 else ''
  if devices[0].platform == 'cpu':
    simulated = f', {len(devices)} devices' if len(devices) > 1 else ''
    return f'CPU ({_cores()} cores){hosts}{simulated}'
  if devices[0].platform == 'tpu':
    return _describe_chips(devices) + hosts
  kinds = collections.Counter(device.device_kind for device in devices)
  return ', '.join(f'{count} x {kind}' for kind, count in kinds.items()) + hosts


def check_slice(name: str) -> None:
  """Checks that the run has exactly the chips of the slice `name`, v5p-32 or 2xv5p-32. Call it on every host.

  UserError: what was found and where, when kind, number of chips or number of slices differ.
  """
  import jax

  wanted = chips.slice_of(name, '--slice')
  devices = jax.devices()
  found = chips.of_kind(devices[0].device_kind)
  slices = collections.Counter(slice_index for slice_index, _ in {_chip(device) for device in devices})
  if found == wanted.chip and sorted(slices.values()) == [wanted.chips_per_slice] * wanted.count:
    return
  several = f' in {wanted.count} slices' if wanted.count > 1 else ''
  raise UserError(
    f'--slice {name} is {wanted.chips} chips of {wanted.chip.name}{several}; found {describe()}'
    f'{_where(devices)}: run on that slice, on all of its hosts with --distributed, or name the slice that is here'
  )


def _for_jax(platform: str) -> str:
  """The value of jax_platforms. With the CPU: JAX starts all that are named, and fails where one does not start."""
  return f'{_gpu_plugin() if platform == "gpu" else platform},cpu'


def _gpu_plugin() -> str:
  return 'rocm' if machine.has_plugin('rocm') and not machine.has_plugin('cuda') else 'cuda'


def _check_platform(started: str, accelerators: Accelerators, said: list[str] | None = None) -> None:
  """UserError: when JAX has started another platform than the one that was chosen."""
  running = _OF_JAX.get(started, started)
  if _choice.platform in (None, running):
    return
  why = [*(said or []), *jax_internals.start_errors().values()]
  if said is None:  # they were started before this command
    reason = f' ({_first_line(why)})' if why else ''
    raise UserError(
      f'JAX already runs on the {_NAMES.get(running, running)} in this process{reason}, and {_choice.said_by} asks for '
      f'the {_NAMES[_choice.platform]}: restart the process or the kernel{_choice.escape}'
    )
  raise UserError(_explain(why, accelerators))


def _explain(said: list[str], accelerators: Accelerators) -> str:
  """One line: which device could not be used, why, and what to do. said: messages of JAX, the last one is the error."""
  if _choice.platform is None or _choice.platform == 'cpu':
    return f'JAX could not start its devices: {_first_line(said)}; look at {_choice.said_by or "JAX_PLATFORMS"}'
  causes = {'tpu': _tpu_cause, 'gpu': _gpu_cause}
  cause = causes[_choice.platform](said, accelerators)
  return f'the {_NAMES[_choice.platform]} ({_choice.said_by}) cannot be used: {cause}{_choice.escape}'


def _tpu_cause(said: list[str], accelerators: Accelerators) -> str:
  """The cause and the remedy. The order is that of how sure each is."""
  text = said[-1] if said else ''
  nodes = accelerators.tpu_nodes()
  if not _has_libtpu(accelerators):
    return f'libtpu, its driver library, is not installed: pip install {compat.tpu_requirement()}'
  if named := re.search(r'in use by process with pid (\d+)', text):
    return _held_by(accelerators.holder(int(named[1])))
  if holder := accelerators.lock_holder():
    return _held_by(holder)
  if holders := accelerators.holders(nodes):
    return _held_by(holders[0])
  if closed := accelerators.closed_nodes(nodes):
    return f'you may not open {", ".join(closed)}: run as a user who may (sudo chmod a+rw {" ".join(closed)})'
  if accelerators.foreign_lock() or 'lockfile' in text:
    return (
      f'{machine.LOCK_FILE} is left over from another process or user: if nobody uses the TPU, sudo rm '
      f'{machine.LOCK_FILE}'
    )
  if not nodes:
    return (
      f'no chip is in /dev ({_first_line(said)}): in a container, pass the devices on (docker run --privileged; GKE: '
      'the resource google.com/tpu); on Colab and Kaggle, start a new session'
    )
  if other := compat.other_libtpu():
    return f'{_first_line(said)}; {other}'
  return f'{_first_line(said)}; restart the machine or the notebook runtime if that does not help'


def _gpu_cause(said: list[str], accelerators: Accelerators) -> str:
  text = '\n'.join(said)
  if accelerators.gpu() is None:
    return f'this machine has {_LOOKED_AT["gpu"]}: use a machine with a GPU, or --platform cpu'
  if not machine.has_plugin(_gpu_plugin()):
    jax = importlib.metadata.version('jax')
    return (
      f"this JAX is for the CPU only: pip install 'jax[cuda13]=={jax}' (drivers older than 580: 'jax[cuda12]=={jax}')"
    )
  if 'OUT_OF_MEMORY' in text or 'RESOURCE_EXHAUSTED' in text:
    holders = accelerators.holders([f'/dev/nvidia{i}' for i in range(16)])
    if holders:
      return _held_by(holders[0])
  # A plugin that JAX has left out is missing from the list; why it did so, it has logged before.
  why = said[:1] if 'not in the list of known backends' in text else said
  return f'{_first_line(why)}; does the driver (nvidia-smi) fit the installed jax[cuda12] or jax[cuda13]?'


def _held_by(holder: machine.Holder) -> str:
  return f'held by {holder}: wait for it, or end it (kill {holder.pid}; another notebook: shut down its kernel)'


def _has_libtpu(accelerators: Accelerators) -> bool:
  """Whether JAX finds libtpu: where TPU_LIBRARY_PATH says, as a package, or among the system's libraries."""
  import ctypes.util
  import importlib.util

  named = accelerators.environment.get('TPU_LIBRARY_PATH')
  return bool(
    (named and os.path.isfile(named)) or importlib.util.find_spec('libtpu') or ctypes.util.find_library('tpu')
  )


def _first_line(said: list[str]) -> str:
  """The first line of JAX's last message, without the advice that it gives to its own users."""
  line = next((line for line in '\n'.join(said[-1:]).splitlines() if line.strip()), 'JAX does not say why')
  line = re.sub(r' \((set JAX_PLATFORMS=|you may need to uninstall).*', '', line)
  return re.sub(r"^Unable to initialize backend '\w+': ", '', line)


def _check_chips(devices: list, accelerators: Accelerators) -> None:
  """UserError: when JAX uses fewer chips of this host than there are, and nobody asked for fewer."""
  there = max(len(accelerators.tpu_nodes()), accelerators.pci_tpus())
  used = len({_chip(device) for device in devices})
  if used >= there or accelerators.tpu_limit():
    return
  raise UserError(
    f'this host has {there} TPU chips ({_choice.said_by}) and JAX finds {used}: restart the machine, or set '
    f'TPU_VISIBLE_CHIPS={",".join(map(str, range(used)))} if the others are not yours to use'
  )


def _describe_chips(devices: list) -> str:
  kind = devices[0].device_kind
  slices = collections.Counter(slice_index for slice_index, _ in {_chip(device) for device in devices})
  count = sum(slices.values())
  text = f'{count} x {kind}'
  chip = chips.of_kind(kind)
  if chip is not None and len(set(slices.values())) == 1 and chips.shape_of(chip, slices[min(slices)]):
    name = f'{chip.accelerator}-{slices[min(slices)] * chip.cores}'
    text += f' ({len(slices)}x{name})' if len(slices) > 1 else f' ({name})'
  return text if len(devices) == count else f'{text}, {len(devices)} devices'


def _chip(device) -> tuple:
  """(slice, which of its chips): a chip of TPU7x is two devices of JAX at the same coordinates."""
  coordinates = getattr(device, 'coords', None)
  return getattr(device, 'slice_index', None) or 0, tuple(coordinates) if coordinates else device.id


def _where(devices: list) -> str:
  """Which hosts have another number of chips than most; '' when all have the same."""
  by_host = collections.Counter(process for process, _ in {(device.process_index, _chip(device)) for device in devices})
  usual = collections.Counter(by_host.values()).most_common(1)[0][0]
  odd = [f'host {host} has {count} chips, not {usual}' for host, count in sorted(by_host.items()) if count != usual]
  return f' ({"; ".join(odd)})' if odd else ''


def _cores() -> int:
  """How many cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextlib.contextmanager
def _kept_warnings() -> Iterator[list[str]]:
  """Yields a list that receives what JAX logs inside; printed at the end, unless an error of ours takes its place.

  JAX only logs why it leaves out a plugin that is installed, for example one for another JAX.
  """
  said: list[str] = []
  records: list[logging.LogRecord] = []

  class Keep(logging.Handler):
    def emit(self, record: logging.LogRecord):
      cause = record.exc_info[1] if record.exc_info else None
      said.append(f'{cause}' if cause is not None else record.getMessage())
      records.append(record)

  keep = Keep(logging.WARNING)
  loggers = [logging.getLogger('jax'), logging.getLogger('jax_plugins')]
  before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
  for logger in loggers:
    logger.handlers, logger.propagate = [keep], False
  try:
    yield said
  except UserError:
    records.clear()
    raise
  finally:
    for logger, handlers, propagate in before:
      logger.handlers, logger.propagate = handlers, propagate
    for record in records:
      logging.getLogger(record.name).handle(record)
