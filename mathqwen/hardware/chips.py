"""TPU chips, slices and hosts, and the peaks of devices, as data. Figures are per chip, not per TensorCore.

Sources. Peaks, HBM, ports and shapes of slices: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; bandwidth of v4:
Jouppi et al. 2023 (arXiv 2304.01433). Those pages give ICI bandwidth per chip, as the sum of all ports and both
directions; here it is that of one port in one direction. Hosts and their RAM, all of docs.cloud.google.com:
docs/compute-area/tpus and kubernetes-engine/docs/concepts/plan-tpus. Network between slices: v5p, v6e and TPU7x by the
first of these two; v5e 2 x 100 Gbps for 8 chips; v4 50 Gbps for a host, tpu/docs/multislice-introduction.
"""

import dataclasses
import math
import re

from mathqwen.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Machine:
  """One kind of host."""

  name: str  # of the machine type in Compute Engine and GKE
  chips: int
  memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation of TPU."""

  name: str  # as in topology names
  flops: float  # bfloat16 peak, FLOP/s
  hbm_bytes: int  # that XLA lets a program use, where that was seen; else all of it
  hbm_bandwidth: float  # bytes/s
  ici_bandwidth: float  # bytes/s out of one port
  dcn_bandwidth: float  # bytes/s between slices
  dimensions: int  # of the torus; a chip has two ports for each
  cores: int  # of a chip; slice names count them: v5p-32 has 16 chips of 2 cores
  devices: int  # of JAX on a chip
  largest: int  # slice, in chips
  accelerator: str  # prefix of the accelerator type
  gke_label: str  # of GKE's nodes, cloud.google.com/gke-tpu-accelerator
  machines: tuple[Machine, ...]  # from the smallest to the largest


_CHIPS = (
  Chip(
    'v4', flops=275e12, hbm_bytes=32 * GIB, hbm_bandwidth=1.2e12, ici_bandwidth=50e9, dcn_bandwidth=50e9 / 8 / 4,
    dimensions=3, cores=2, devices=1, largest=4096, accelerator='v4', gke_label='tpu-v4-podslice',
    machines=(Machine('ct4p-hightpu-4t', 4, 407 * GIB),),
  ),
  Chip(
    'v5e', flops=197e12, hbm_bytes=16 * GIB, hbm_bandwidth=819e9, ici_bandwidth=50e9, dcn_bandwidth=200e9 / 8 / 8,
    dimensions=2, cores=1, devices=1, largest=256, accelerator='v5litepod', gke_label='tpu-v5-lite-podslice',
    machines=(
      Machine('ct5lp-hightpu-1t', 1, 48 * GIB),
      Machine('ct5lp-hightpu-4t', 4, 192 * GIB),
      Machine('ct5lp-hightpu-8t', 8, 384 * GIB),
    ),
  ),
  Chip(
    'v5p', flops=459e12, hbm_bytes=95 * GIB, hbm_bandwidth=2.765e12, ici_bandwidth=100e9, dcn_bandwidth=50e9 / 8,
    dimensions=3, cores=2, devices=1, largest=6144, accelerator='v5p', gke_label='tpu-v5p-slice',
    machines=(Machine('ct5p-hightpu-4t', 4, 448 * GIB),),
  ),
  Chip(
    'v6e', flops=918e12, hbm_bytes=32 * GIB, hbm_bandwidth=1.638e12, ici_bandwidth=100e9, dcn_bandwidth=100e9 / 8,
    dimensions=2, cores=1, devices=1, largest=256, accelerator='v6e', gke_label='tpu-v6e-slice',
    machines=(
      Machine('ct6e-standard-1t', 1, 176 * GIB),
      Machine('ct6e-standard-4t', 4, 720 * GIB),
      Machine('ct6e-standard-8t', 8, 1440 * GIB),
    ),
  ),
  Chip(
    'tpu7x', flops=2307e12, hbm_bytes=192 * GIB, hbm_bandwidth=7.38e12, ici_bandwidth=100e9, dcn_bandwidth=100e9 / 8,
    dimensions=3, cores=2, devices=2, largest=9216, accelerator='tpu7x', gke_label='tpu7x',
    machines=(Machine('tpu7x-standard-4t', 4, 960 * GIB),),
  ),
)  # fmt: skip
CHIPS = {chip.name: chip for chip in _CHIPS}
# The `jax.Device.device_kind` of each.
_KINDS = {
  'v4': ('TPU v4',),  # Cloud TPUs run both cores of a chip as one device (megacore)
  'v5e': ('TPU v5 lite', 'TPU v5e'),
  'v5p': ('TPU v5', 'TPU v5p'),
  'v6e': ('TPU v6 lite', 'TPU v6e'),
  'tpu7x': ('TPU7x',),
}
_TPU_FLOPS = {kind: CHIPS[name].flops / CHIPS[name].devices for name, kinds in _KINDS.items() for kind in kinds}
# device_kind -> peak of one device in dense bfloat16 matrix multiplications, FLOP/s.
DEVICE_FLOPS = _TPU_FLOPS | {
  # NVIDIA's data sheets: nvidia.com/en-us/data-center/{a100,h100,h200,l4,tesla-t4}, HGX B200. They give most figures
  # with sparsity, which are twice the dense ones here.
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H200': 989e12,
  'NVIDIA B200': 2250e12,
  'NVIDIA L4': 121e12,
  'Tesla T4': 65e12,  # float16: it has no bfloat16 units
}


def of_kind(kind: str) -> Chip | None:
  """The chip with devices of this `device_kind`; None for one that is not in `CHIPS`."""
  return next((CHIPS[name] for name, kinds in _KINDS.items() if kind in kinds), None)


def peak_flops(kind: str, dtype: str) -> float | None:
  """Peak FLOP/s of a device of this `device_kind`; None where none is published, as for a CPU.

  None for other dtypes than bfloat16, too: the speed of float32 depends on the precision that XLA multiplies with.
  """
  return DEVICE_FLOPS.get(kind) if dtype == 'bfloat16' else None


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips that ICI connects; or several such slices, connected by the hosts' network."""

  name: str  # v5p-32; 2xv5p-32 are two of them
  chip: Chip
  shape: tuple[int, ...]  # chips along each dimension of one slice
  count: int = 1  # slices

  @property
  def chips(self) -> int:
    """Of all slices together."""
    return self.count * self.chips_per_slice

  @property
  def devices(self) -> int:
    """`jax.device_count()` on all slices together."""
    return self.chips * self.chip.devices

  @property
  def chips_per_slice(self) -> int:
    """Of one slice."""
    return math.prod(self.shape)

  @property
  def hosts_per_slice(self) -> int:
    """Machines of one slice."""
    return max(1, self.chips_per_slice // self.machine.chips)

  @property
  def machine(self) -> Machine:
    """What each host is: with 4 chips, except that up to 8 chips of v5e or v6e are one host."""
    exact = [machine for machine in self.chip.machines if machine.chips == self.chips_per_slice]
    return exact[0] if exact else next(machine for machine in self.chip.machines if machine.chips == 4)

  @property
  def topology(self) -> str:
    """The shape of one slice as Google writes it: 2x2x4."""
    return 'x'.join(map(str, self.shape))

  @property
  def accelerator_type(self) -> str:
    """The name of one slice in Cloud TPU, which counts cores: v5p-32 for 16 chips, v5litepod-16 for 16 of one core."""
    return f'{self.chip.accelerator}-{self.chips_per_slice * self.chip.cores}'

  @property
  def ici_bytes_per_second(self) -> float:
    """What one chip can receive while all chips gather from all.

    In each dimension that is the links to both neighbours in a ring, but only one link in an open row.
    """
    links = sum(2 if self._is_ring(size) else 1 for size in self.shape if size > 1)
    return links * self.chip.ici_bandwidth

  def _is_ring(self, size: int) -> bool:
    """Whether a dimension of this many chips wraps around."""
    if self.chip.dimensions == 2:
      return size >= 16
    return self.chips_per_slice >= 64 and size % 4 == 0


def slice_of(name: str, flag: str = '--topology') -> Slice:
  """'v5p-32' -> the slice of 16 chips, 2x2x4; '2xv5p-32' -> two of them (multislice).

  flag: what the user wrote it after, for the error.
  UserError: when there is no such slice.
  """
  written = re.fullmatch(r'(?:([1-9]\d*)x)?(?:tpu-)?(\w+)-(\d+)', name)
  count, kind, size = written.groups() if written else (None, None, None)
  chip = CHIPS.get({'v5litepod': 'v5e'}.get(kind, kind))
  if chip is None:
    raise UserError(
      f'{flag} {name}: write KIND-SIZE with a kind of {", ".join(CHIPS)}, for example v5p-32, or 2xv5p-32 for two'
    )
  size = int(size)
  shape = shape_of(chip, size // chip.cores) if size % chip.cores == 0 else None
  if shape is None:
    raise UserError(f'{flag} {name}: {chip.name} slices have sizes {_sizes(chip)}')
  return Slice(name, chip, shape, int(count or 1))


def shape_of(chip: Chip, chips: int) -> tuple[int, ...] | None:
  """The default shape of a slice with this many chips: the one most like a cube. None when there is no such slice.

  Google's rules. Two dimensions: 1x1, 2x2, and then one of both doubles, up to 16x16. Three dimensions A x B x C: cubes
  of 4x4x4 in any arrangement up to the largest slice, no dimension over 256; below one cube, hosts of 2x2x1, all
  dimensions at most 4.
  """
  if chip.dimensions == 2:
    shapes = [(1, 1), *((a, b) for a in (2, 4, 8, 16) for b in (a, 2 * a))]
  elif chips % 64:
    shapes = [(a, b, c) for a in (2, 4) for b in (a, 4) for c in (1, 2, 3, 4)]
  else:
    sides = range(4, 257, 4)
    shapes = [(a, b, c) for a in sides for b in sides if b >= a for c in [chips // (a * b)] if b <= c in sides]
  fitting = [shape for shape in shapes if math.prod(shape) == chips <= chip.largest]
  return min(fitting, key=lambda shape: (_surface(shape), shape), default=None)


def _surface(shape: tuple[int, ...]) -> int:
  """Grows with how little a shape is like a cube, for shapes of the same size."""
  return sum(math.prod(shape) // side for side in shape)


def _sizes(chip: Chip) -> str:
  """The sizes of a generation's slices, for people."""
  if chip.dimensions == 2:
    return ', '.join(str(chips * chip.cores) for chips in range(1, chip.largest + 1) if shape_of(chip, chips))
  small = ', '.join(str(chips * chip.cores) for chips in (4, 8, 16, 32))
  odd = ', '.join(str(chips * chip.cores) for chips in (12, 24, 48))
  cube, largest = 64 * chip.cores, chip.largest * chip.cores
  return f'{small} (and {odd}), {cube} and most multiples of it up to {largest}'
