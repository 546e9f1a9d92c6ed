"""The accelerators that this machine has, and who holds them: from /dev, /proc, /sys and the environment, without JAX.

JAX has no public way to tell "there is no TPU here" from "there is one, and it cannot be used". In the second case it
carries on on the CPU when it may choose the platform (`backends` in jax/_src/xla_bridge.py).
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import re
from collections.abc import Mapping

# Of Google's PCI devices, which also are network cards and disks: `_TPU_PCI_DEVICE_IDS` in jax/_src/hardware_utils.py.
GOOGLE = '0x1ae0'
TPU_IDS = ('0x0027', '0x0056', '0x005e', '0x0062', '0x0063', '0x006f', '0x0076', '0x007c', '0x0083')
# Set by Colab, Kaggle, GKE and the TPU VM images where there is a TPU. TPU_NAME says nothing: people set it on laptops.
TPU_VARIABLES = ('TPU_ACCELERATOR_TYPE', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES', 'COLAB_TPU_1VM')
# With one of these, the process is meant to use only some of the chips.
TPU_LIMITS = ('TPU_VISIBLE_CHIPS', 'TPU_VISIBLE_DEVICES', 'TPU_CHIPS_PER_PROCESS_BOUNDS', 'TPU_PROCESS_BOUNDS')
ROOT = pathlib.Path('/')
LOCK_FILE = '/tmp/libtpu_lockfile'  # libtpu's: one process at a time


@dataclasses.dataclass(frozen=True)
class Holder:
  """A process that has a device open."""

  pid: int
  command: str

  def __str__(self) -> str:
    return f'pid {self.pid} ({self.command})' if self.command else f'pid {self.pid}'


@dataclasses.dataclass(frozen=True)
class Accelerators:
  """Those of this machine, or of one whose files are below another `root`."""

  root: pathlib.Path = dataclasses.field(default_factory=lambda: ROOT)
  environment: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)

  def tpu(self) -> str | None:
    """What shows that this machine has a TPU, for people; None when nothing does."""
    if nodes := self.tpu_nodes():
      return ', '.join(nodes)
    if chips := self.pci_tpus():
      return f'{chips} on the PCI bus'
    names = [name for name in TPU_VARIABLES if self.environment.get(name)]
    return f'{names[0]}={self.environment[names[0]]}' if names else None

  def gpu(self) -> str | None:
    """What shows that this machine has a GPU and a driver for it, for people; None when nothing does.

    A card without a driver does not count. Neither do AMD's without JAX's plugin for them: every laptop of theirs has
    the device node.
    """
    if self.environment.get('CUDA_VISIBLE_DEVICES', '0').strip() in ('', '-1', 'none', 'NoDevFiles'):
      return None
    if nodes := self._nodes('dev', r'nvidia\d+'):
      return ', '.join(nodes)
    # WSL shows GPUs of all makers as one device.
    if self._path('/dev/dxg').exists() and self._path('/usr/lib/wsl/lib/libcuda.so.1').exists():
      return '/dev/dxg'
    if self._path('/dev/kfd').exists() and has_plugin('rocm'):
      return '/dev/kfd'
    return None

  def pci_tpus(self) -> int:
    """How many TPU chips are on the PCI bus."""
    return len(self._pci_tpu_folders())

  def tpu_nodes(self) -> list[str]:
    """The device nodes of TPU chips: /dev/accel0, ... or /dev/vfio/0, ...

    /dev/accel/accel0, in a folder, belongs to Linux's own accelerators, such as the NPU of a laptop. Anything can be
    below /dev/vfio: its groups of devices are TPUs only if /sys has a TPU in them.
    """
    nodes = self._nodes('dev', r'accel\d+')
    chips = self._pci_tpu_folders()
    groups = {group.resolve().name for folder in chips if (group := folder / 'iommu_group').exists()}
    for node in self._nodes('dev/vfio', r'\d+') if chips else ():
      if not groups or node.rpartition('/')[2] in groups:
        nodes.append(node)
    return nodes

  def holders(self, nodes: list[str]) -> list[Holder]:
    """The other processes that have one of these device nodes open, as far as this user may see them."""
    found = []
    for process in self._processes():
      if any(target in nodes for target in _open_files(process)):
        found.append(self.holder(int(process.name)))
    return found

  def holder(self, pid: int) -> Holder:
    """The process `pid`, with its command line where that can be read."""
    command = ''
    with contextlib.suppress(OSError):
      command = self._path(f'/proc/{pid}/cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace').strip()
    return Holder(pid, command if len(command) <= 120 else f'{command[:117]}...')

  def lock_holder(self) -> Holder | None:
    """The other process that has locked libtpu's lock file."""
    with contextlib.suppress(OSError):
      number = self._path(LOCK_FILE).stat().st_ino
      for line in self._path('/proc/locks').read_text().splitlines():
        # 1: POSIX  ADVISORY  WRITE 16219 fe:00:2614770 0 EOF
        if (match := re.search(rf' (\d+) \w+:\w+:{number} ', line)) and int(match[1]) != os.getpid():
          return self.holder(int(match[1]))
    return None

  def foreign_lock(self) -> str | None:
    """The lock file of libtpu when it belongs to another user, so that this one cannot lock it."""
    path = self._path(LOCK_FILE)
    return LOCK_FILE if path.exists() and not os.access(path, os.R_OK | os.W_OK) else None

  def closed_nodes(self, nodes: list[str]) -> list[str]:
    """Those of `nodes` that this user may not open."""
    return [node for node in nodes if not os.access(self._path(node), os.R_OK | os.W_OK)]

  def tpu_limit(self) -> str | None:
    """The environment variable that leaves this process only some of the machine's chips."""
    return next((name for name in TPU_LIMITS if self.environment.get(name)), None)

  def is_only_host(self) -> bool:
    """Whether the environment says that this host is the whole slice, as Kaggle's does.

    JAX takes this value for the name of a host, and looks for its address for five minutes.
    """
    return self.environment.get('TPU_PROCESS_ADDRESSES') == 'local'

  def _path(self, path: str) -> pathlib.Path:
    return self.root / path.lstrip('/')

  def _nodes(self, folder: str, name: str) -> list[str]:
    """Paths, without the root, of the files in `folder` whose name matches; in the order of their numbers."""
    names = [path.name for path in _listed(self.root / folder) if re.fullmatch(name, path.name)]
    return [f'/{folder}/{name}' for name in sorted(names, key=lambda name: (len(name), name))]

  def _pci_tpu_folders(self) -> list[pathlib.Path]:
    # Function 0 of each device: a chip of TPU7x has two functions.
    folders = [folder for folder in _listed(self.root / 'sys/bus/pci/devices') if folder.name.endswith('.0')]
    return [folder for folder in folders if _text(folder / 'vendor') == GOOGLE and _text(folder / 'device') in TPU_IDS]

  def _processes(self) -> list[pathlib.Path]:
    """The folders in /proc of the other processes."""
    return [path for path in _listed(self.root / 'proc') if path.name.isdecimal() and int(path.name) != os.getpid()]


def has_plugin(name: str) -> bool:
  """Whether JAX's plugin for 'cuda' or 'rocm' is installed."""
  return any(module.startswith(f'jax_plugins.xla_{name}') for module in _plugins())


def has_other_plugin() -> bool:
  """Whether a plugin is installed for another platform than CUDA, such as Apple's or Intel's."""
  return any(not module.startswith('jax_plugins.xla_cuda') for module in _plugins())


def _plugins() -> list[str]:
  """The modules of the plugins that JAX would load, such as jax_plugins.xla_cuda13."""
  return [point.value for point in importlib.metadata.entry_points(group='jax_plugins')]


def _listed(folder: pathlib.Path) -> list[pathlib.Path]:
  try:
    return sorted(folder.iterdir())
  except OSError:
    return []


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text().strip()
  except OSError:
    return ''


def _open_files(process: pathlib.Path) -> list[str]:
  """What the process has open, as links in its folder of /proc; nothing when it belongs to another user."""
  found = []
  for link in _listed(process / 'fd'):
    with contextlib.suppress(OSError):
      found.append(os.readlink(link))
  return found
