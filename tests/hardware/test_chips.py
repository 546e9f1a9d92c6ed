import pytest

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
