import pytest

from mathqwen.errors import UserError
from mathqwen.hardware import chips


@pytest.mark.parametrize(
  'kind, peak',
  [
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5e', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('TPU7x', 1153.5e12),  # two devices a chip
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA B200', 2.25e15),
    ('NVIDIA L4', 121e12),
    ('Tesla T4', 65e12),
    ('cpu', None),
    ('NVIDIA H100', None),  # several kinds of card are called so
  ],
)
def test_peaks(kind, peak):
  assert chips.peak_flops(kind, 'bfloat16') == peak
  assert chips.peak_flops(kind, 'float32') is None


# As Google's pages list them: name, accelerator type, topology, chips, JAX devices, hosts, machine type.
SLICES = [
  ('v4-8', 'v4-8', '2x2x1', 4, 4, 1, 'ct4p-hightpu-4t'),
  ('v4-32', 'v4-32', '2x2x4', 16, 16, 4, 'ct4p-hightpu-4t'),
  ('v4-96', 'v4-96', '4x4x3', 48, 48, 12, 'ct4p-hightpu-4t'),
  ('v4-384', 'v4-384', '4x4x12', 192, 192, 48, 'ct4p-hightpu-4t'),
  ('2xv4-8', 'v4-8', '2x2x1', 8, 8, 1, 'ct4p-hightpu-4t'),
  ('v5e-1', 'v5litepod-1', '1x1', 1, 1, 1, 'ct5lp-hightpu-1t'),
  ('v5e-4', 'v5litepod-4', '2x2', 4, 4, 1, 'ct5lp-hightpu-4t'),
  ('v5e-8', 'v5litepod-8', '2x4', 8, 8, 1, 'ct5lp-hightpu-8t'),
  ('v5litepod-32', 'v5litepod-32', '4x8', 32, 32, 8, 'ct5lp-hightpu-4t'),
  ('v5p-8', 'v5p-8', '2x2x1', 4, 4, 1, 'ct5p-hightpu-4t'),
  ('v5p-32', 'v5p-32', '2x2x4', 16, 16, 4, 'ct5p-hightpu-4t'),
  ('tpu-v5p-32', 'v5p-32', '2x2x4', 16, 16, 4, 'ct5p-hightpu-4t'),
  ('2xv5p-32', 'v5p-32', '2x2x4', 32, 32, 4, 'ct5p-hightpu-4t'),
  ('v5p-384', 'v5p-384', '4x4x12', 192, 192, 48, 'ct5p-hightpu-4t'),
  ('v5p-12288', 'v5p-12288', '16x16x24', 6144, 6144, 1536, 'ct5p-hightpu-4t'),
  ('v6e-1', 'v6e-1', '1x1', 1, 1, 1, 'ct6e-standard-1t'),
  ('v6e-8', 'v6e-8', '2x4', 8, 8, 1, 'ct6e-standard-8t'),
  ('v6e-16', 'v6e-16', '4x4', 16, 16, 4, 'ct6e-standard-4t'),
  ('v6e-256', 'v6e-256', '16x16', 256, 256, 64, 'ct6e-standard-4t'),
  ('tpu7x-8', 'tpu7x-8', '2x2x1', 4, 8, 1, 'tpu7x-standard-4t'),
  ('tpu7x-16', 'tpu7x-16', '2x2x2', 8, 16, 2, 'tpu7x-standard-4t'),
  ('2xtpu7x-16', 'tpu7x-16', '2x2x2', 16, 32, 2, 'tpu7x-standard-4t'),
  ('tpu7x-128', 'tpu7x-128', '4x4x4', 64, 128, 16, 'tpu7x-standard-4t'),
]
# Shapes in Google's and XPK's lists of v5p and TPU7x, {cubes of 4x4x4: shape}.
CUBES = {
  1: '4x4x4', 2: '4x4x8', 3: '4x4x12', 4: '4x8x8', 5: '4x4x20', 6: '4x8x12', 8: '8x8x8', 9: '4x12x12', 12: '8x8x12',
  16: '8x8x16', 18: '8x12x12', 24: '8x12x16', 27: '12x12x12', 32: '8x16x16', 36: '12x12x16', 40: '8x16x20',
  48: '12x16x16', 54: '12x12x24', 61: '4x4x244', 64: '16x16x16', 72: '12x16x24', 84: '12x16x28', 90: '12x20x24',
  96: '16x16x24',
}  # fmt: skip


@pytest.mark.parametrize('name, accelerator, topology, chips_, devices, hosts, machine', SLICES)
def test_slices(name, accelerator, topology, chips_, devices, hosts, machine):
  found = chips.slice_of(name)
  assert (found.accelerator_type, found.topology, found.chips) == (accelerator, topology, chips_)
  assert (found.devices, found.hosts_per_slice, found.machine.name) == (devices, hosts, machine)


@pytest.mark.parametrize('kind', ['v5p', 'tpu7x'])
def test_shapes_of_cubes(kind):
  assert {cubes: chips.slice_of(f'{kind}-{128 * cubes}').topology for cubes in CUBES} == CUBES


@pytest.mark.parametrize(
  'name',
  ['v5p', 'v3-8', '0xv5e-4', 'v5p-31', 'v5p-33', 'v5e-5', 'v5e-2', 'v5e-512', 'v6e-x', 'h100-8', '', 'v5p-0']
  + ['tpu7x-15', 'v5p-160', 'v5p-8576', 'v5p-12416', 'v4-16384', 'v5e-0', 'tpu7x-1'],
)
def test_slices_that_do_not_exist(name):
  with pytest.raises(UserError, match='--topology'):
    chips.slice_of(name)


@pytest.mark.parametrize('name, gbps', [('v4-8', 12.5), ('v5e-8', 25), ('v5p-8', 50), ('v6e-8', 100), ('tpu7x-8', 100)])
def test_network_between_slices(name, gbps):
  assert chips.slice_of(f'2x{name}').chip.dcn_bandwidth == gbps * 1e9 / 8


def test_links():
  """A ring has two links in each dimension, an open row one; a link of v5e has 50 GB/s, of v5p 100 GB/s."""
  assert chips.slice_of('v5e-64').ici_bytes_per_second == 2 * 50e9
  assert chips.slice_of('v5p-64').ici_bytes_per_second == 3 * 100e9
  assert chips.slice_of('v5p-128').ici_bytes_per_second == 6 * 100e9
  assert chips.slice_of('v5e-16').ici_bytes_per_second == 2 * 50e9
  assert chips.slice_of('v5e-256').ici_bytes_per_second == 4 * 50e9
  assert chips.slice_of('v5e-1').ici_bytes_per_second == 0
