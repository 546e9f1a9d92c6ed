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


@pytest.mark.parametrize(
  'name, chips_, shape',
  [
    ('v5p-32', 16, (2, 2, 4)),
    ('v4-32', 16, (2, 2, 4)),
    ('v5p-8', 4, (2, 2, 1)),
    ('v6e-16', 16, (4, 4)),
    ('v5litepod-32', 32, (4, 8)),
    ('v5e-1', 1, (1, 1)),
    ('2xv5p-32', 32, (2, 2, 4)),
    ('tpu-v5p-32', 16, (2, 2, 4)),
  ],
)
def test_slices(name, chips_, shape):
  found = chips.slice_of(name)
  assert (found.chips, found.shape) == (chips_, shape)


@pytest.mark.parametrize(
  'name', ['v5p', 'v3-8', '0xv5e-4', '2xv4-8', 'v5p-31', 'v5p-33', 'v5e-5', 'v6e-x', 'h100-8', '']
)
def test_slices_that_do_not_exist(name):
  with pytest.raises(UserError, match='--topology'):
    chips.slice_of(name)


def test_links():
  """A ring has two links in each dimension, an open row one; a link of v5e has 50 GB/s, of v5p 100 GB/s."""
  assert chips.slice_of('v5e-64').ici_bytes_per_second == 2 * 50e9
  assert chips.slice_of('v5p-64').ici_bytes_per_second == 3 * 100e9
  assert chips.slice_of('v5p-128').ici_bytes_per_second == 6 * 100e9
  assert chips.slice_of('v5e-16').ici_bytes_per_second == 2 * 50e9
  assert chips.slice_of('v5e-256').ici_bytes_per_second == 4 * 50e9
  assert chips.slice_of('v5e-1').ici_bytes_per_second == 0
