"""Against qwix's codes, which `python tests/model/test_quantized.py` prints where qwix is installed, and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.model import layers, parameters, qwen
from mathqwen.model.adapted import OUTPUTS
from mathqwen.model.quantized import KINDS, is_quantized, quantize

# qwix 0.1.8: the codes of `numbers()` as hexadecimal digits, negative ones in two's complement, and the scales.
QWIX = {
  'int8': (
    '000100ff01ff0100ff0100ffff0001010101010101010000ffff000100ff0100ff01000001ff01ff01ff01ff0000ff0100000100ff000100'
    'ff00010100ffff000a486d7d7f7d7c7d7f7f755b29e39f80aa137368e982ca6855a3ae6c2c81265e8625488269dadb5d867f896aa356ab5a'
    '9b73837e953f05b27c921a5181394b84',
    [0.023524023592472076],
  ),
  'int4': (
    '0629796ec729b2677667773d9b47ca6197ee5979797b22a7dc7e946c9075f99c1467777777752ea9b176f9d65bb6392692496ee59796b5b5'
    'a797a40b7a259349',
    [0.00266585242934525, 0.3999084234237671],
  ),
  'nf4': (
    '7eb0f0e42fa01aeffeefffc301df21e90f44e0f0f0f1ba1f32f50de208fe50028deffffffffeb51019fe503ee11eb0be0ad0e44e0f0e1e1e'
    '1f0f1c71f0ad0cd0',
    [0.019993891939520836, 2.9993131160736084],
  ),
}
# bitsandbytes' table of NF4, functional.py: `create_normal_map`, as it prints with four digits.
NF4_PRINTED = '-1 -0.6962 -0.5251 -0.3949 -0.2844 -0.1848 -0.0911 0 0.0796 0.1609 0.2461 0.3379 0.4407 0.5626 0.7230 1'


def numbers() -> np.ndarray:
  """float32 [1, 128]: two blocks of 64 whose sizes differ by 150."""
  waves = np.sin(np.arange(128) ** 1.5).reshape(2, 64)
  return (waves * [[0.02], [3]]).reshape(1, 128).astype(np.float32)


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('kind', KINDS)
def test_codes_and_scales_are_those_of_qwix(kind):
  got = quantize(jnp.asarray(numbers()), kind)
  digits, scales = QWIX[kind]
  bits = 8 if kind == 'int8' else 4
  codes = np.array([int(digits[i : i + bits // 4], 16) for i in range(0, len(digits), bits // 4)])
  if kind != 'nf4':
    codes = np.maximum(codes - (codes >= 2 ** (bits - 1)) * 2**bits, 1 - 2 ** (bits - 1))  # qwix has -8 as well
  stored = np.int32(got.codes)
  if kind != 'int8':  # a byte has an input of the first half of its block, and above it one of the second
    stored = np.concatenate([stored & 15, stored >> 4], axis=1) - (8 if kind == 'int4' else 0)
  assert stored.ravel().tolist() == codes.tolist()
  np.testing.assert_allclose(got.scales.ravel(), scales, rtol=1e-6)


@pytest.mark.parametrize('shape, outputs', [((3, 4, 96), 2), ((5, 6, 32), 1)])
@pytest.mark.parametrize('kind', KINDS)
def test_a_weight_is_the_nearest_level_of_each_block(kind, shape, outputs):
  w = normal(shape)
  w[0] = 0
  flat = w.reshape(-1, np.prod(shape[outputs:], dtype=int))
  block = flat.shape[1] if kind == 'int8' else 32
  levels = {'int8': np.arange(-127, 128), 'int4': np.arange(-7, 8), 'nf4': np.array(NF4_PRINTED.split(), float)}[kind]
  want = np.zeros_like(flat)
  for row in range(len(flat)):
    for start in range(0, flat.shape[1], block):
      part = flat[row, start : start + block]
      step = np.abs(part).max() / {'int8': 127.5, 'int4': 7.5, 'nf4': 1}[kind]
      for i, number in enumerate(part):
        want[row, start + i] = step * levels[np.argmin(np.abs(levels * step - number))]
  with jax.debug_nans(True):
    got = quantize(jnp.asarray(w), kind, outputs).dequantized('float32')
  assert not np.any(got[0])
  # The table of levels above has four digits.
  np.testing.assert_allclose(got, want.reshape(shape), rtol=0, atol=3e-4 if kind == 'nf4' else 1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('equation', ['BTD,NHD->BTNH', 'BTNH,DNH->BTD', 'BTF,DF->BTD'])
def test_the_product_and_its_derivative_are_those_of_the_dequantised_weight(kind, equation):
  sizes = {'B': 2, 'T': 3, 'D': 128, 'N': 2, 'H': 64, 'F': 192}
  shape = lambda names: [sizes[name] for name in names]
  of_x, of_w, of_y = equation.replace('->', ',').split(',')
  w = quantize(jnp.asarray(normal(shape(of_w))), kind, len(of_y) - 2)
  assert isinstance(w, layers.Product)
  dense, x, gradient = w.dequantized('float32'), normal(shape(of_x), 1), normal(shape(of_y), 2)
  want, want_back = jax.vjp(lambda x: jnp.einsum(equation, x, dense), x)
  got, back = jax.vjp(lambda x: layers.linear(equation, x, w), x)
  # Sums of 128 terms of size 1 in another order, and scaled after the sum.
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
  np.testing.assert_allclose(back(gradient)[0], want_back(gradient)[0], rtol=0, atol=1e-4)

  in_bfloat16 = layers.linear(equation, jnp.asarray(x, jnp.bfloat16), w)
  assert in_bfloat16.dtype == jnp.bfloat16
  np.testing.assert_allclose(in_bfloat16.astype(jnp.float32), want, rtol=0, atol=0.02 * np.abs(want).max())


def test_a_backward_pass_keeps_codes_not_floats():
  w, x = quantize(jnp.asarray(normal((96, 64))), 'nf4'), jnp.ones((1, 64))
  kept = jax.tree.leaves(jax.vjp(w.product, x)[1])
  assert w.codes.nbytes == 96 * 64 / 2 and max(array.nbytes for array in kept) == w.codes.nbytes


@pytest.mark.parametrize('family, kind', [('qwen2', 'int8'), ('qwen3', 'int4'), ('llama', 'nf4')])
def test_a_model_with_quantised_layers_is_that_with_the_dequantised(tiny_config, random_params, family, kind):
  cfg = tiny_config(family)
  params = random_params(cfg)
  layer_axes = parameters.logical_axes(cfg)['layers']
  stacked = dict(params['layers'])
  for name, outputs in OUTPUTS.items():
    stacked[name] = jax.vmap(functools.partial(quantize, kind=kind, outputs=outputs))(params['layers'][name])
    names = stacked[name].axes(layer_axes[name])
    assert jax.tree.structure(names, is_leaf=lambda x: type(x) is tuple) == jax.tree.structure(stacked[name])
    assert (len(names.codes), len(names.scales)) == (stacked[name].codes.ndim, stacked[name].scales.ndim)
  dense = {
    name: jax.vmap(lambda w: w.dequantized('float32'))(w) if is_quantized(w) else w for name, w in stacked.items()
  }
  tokens = np.arange(10).reshape(2, 5)
  logits = jax.jit(lambda p: qwen.unembed(p, qwen.forward(p, cfg, tokens)))
  got, want, exact = (logits(params | {'layers': layers}) for layers in (stacked, dense, params['layers']))
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)
  errors = {'int8': 0.04, 'int4': 0.45, 'nf4': 0.35}
  assert 0 < np.abs(want - exact).mean() / np.abs(exact).mean() < errors[kind]


def main():
  """Prints `QWIX`."""
  import qwix

  for kind, block in (('int8', 128), ('int4', 64), ('nf4', 64)):
    name = kind if kind == 'nf4' else getattr(jnp, kind)
    found = qwix.quantize(jnp.asarray(numbers()), name, channelwise_axes=[0], tiled_axes={1: block})
    codes = np.asarray(found.qvalue.astype(jnp.int32))[0]
    digits = ''.join('%02x' % (code % 256) if kind == 'int8' else '%x' % (code % 16) for code in codes)
    print(kind, digits, [float(scale) for scale in found.scale[0]])


if __name__ == '__main__':
  main()
