"""TPU chips and slices, and the peaks of devices, as data. Figures are per chip, not per TensorCore.

Sources. Peaks, HBM and ports: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; bandwidth of v4: Jouppi et al.
2023 (arXiv 2304.01433). Those pages give ICI bandwidth per chip, as the sum of all ports and both directions; here it
is that of one port in one direction. Network between slices: the interfaces of a host divided by its chips, from
docs.cloud.google.com (v5e 2 x 100 Gbps and v6e 4 x 200 Gbps for 8 chips) and jax-ml.github.io/scaling-book/tpus (v5p).
"""

import dataclasses
import math
import re

from mathqwen.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation of TPU."""

  name: str  # as in topology names
  flops: float  # bfloat16 peak, FLOP/s
  hbm_bytes: int  # that XLA lets a program use, where that was seen; else all of it
  hbm_bandwidth: float  # bytes/s
  ici_bandwidth: float  # bytes/s out of one port
  dimensions: int  # of the torus; a chip has two ports for each
  cores: int  # of a chip; slice names count them: v5p-32 has 16 chips of 2 cores
  accelerator: str  # prefix of the accelerator type
  devices: int = 1  # JAX devices on a chip
  dcn_bandwidth: float = 0  # bytes/s between slices; 0 where no figure is published


GIB = 2**30
CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 275e12, 32 * GIB, 1.2e12, 50e9, 3, 2, 'v4'),
    Chip('v5e', 197e12, 16 * GIB, 819e9, 50e9, 2, 1, 'v5litepod', dcn_bandwidth=3.125e9),
    Chip('v5p', 459e12, 95 * GIB, 2.765e12, 100e9, 3, 2, 'v5p', dcn_bandwidth=6.25e9),
    Chip('v6e', 918e12, 32 * GIB, 1.638e12, 100e9, 2, 1, 'v6e', dcn_bandwidth=12.5e9),
    Chip('tpu7x', 2307e12, 192 * GIB, 7.38e12, 100e9, 3, 1, 'tpu7x', devices=2),
  )
}
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
# {dimensions of the torus: {chips of a slice: its shape}}, from the tables on the pages above.
SHAPES = {
  2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
  3: {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
    512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16),
  },
}  # fmt: skip


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
    return self.count * math.prod(self.shape)

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
    return math.prod(self.shape) >= 64 and size % 4 == 0


def slice_of(name: str) -> Slice:
  """'v5p-32' -> the slice of 16 chips, 2x2x4; '2xv5p-32' -> two of them (multislice).

  UserError: when there is no such slice, or several are asked for and the bandwidth between them is not published.
  """
  written = re.fullmatch(r'(?:([1-9]\d*)x)?(?:tpu-)?(\w+)-(\d+)', name)
  count, kind, size = written.groups() if written else (None, None, None)
  chip = CHIPS.get({'v5litepod': 'v5e'}.get(kind, kind))
  if chip is None:
    raise UserError(
      f'--topology {name}: write KIND-SIZE with a kind of {", ".join(CHIPS)}, for example v5p-32, or 2xv5p-32 for two'
    )
  count, size = int(count or 1), int(size)
  if count > 1 and not chip.dcn_bandwidth:
    known = ', '.join(chip.name for chip in CHIPS.values() if chip.dcn_bandwidth)
    raise UserError(f'--topology {name}: the bandwidth between slices is only known for {known}: plan for one slice')
  shapes = SHAPES[chip.dimensions]
  shape = shapes.get(size // chip.cores) if size % chip.cores == 0 else None
  if shape is None:
    sizes = ', '.join(str(chips * chip.cores) for chips in shapes)
    raise UserError(f'--topology {name}: {chip.name} slices have sizes {sizes}')
  return Slice(name, chip, shape, count)
