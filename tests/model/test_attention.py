import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen import config
from mathqwen.errors import UserError
from mathqwen.model import attention

SEGMENTS = np.repeat(np.array([1, 2, 3, 4, 0], np.int32), [90, 1, 130, 39, 40])  # 300; 0 is padding


def inputs(T, N, K, H=8, seed=0):
  rng = np.random.default_rng(seed)
  segments = np.stack([SEGMENTS[:T], np.ones(T, np.int32)])
  return [rng.standard_normal((2, T, heads, H)).astype(np.float32) for heads in (N, K, K, N)], segments


def value_and_gradients(attend, qkvg, segments):
  *qkv, g = qkvg

  @jax.jit
  def both(qkv, g):
    out, back = jax.vjp(lambda *qkv: attend(*qkv, segments), *qkv)
    return (out, *back(g))

  return both(qkv, g)


@pytest.mark.parametrize('T, N, K', [(300, 4, 2), (257, 2, 2), (100, 4, 1), (1, 2, 1)])
def test_blocks_are_the_reference(T, N, K):
  qkvg, segments = inputs(T, N, K)
  got = value_and_gradients(attention.blocks, qkvg, segments)
  want = value_and_gradients(attention.reference, qkvg, segments)
  for a, b in zip(got, want, strict=True):
    assert np.isfinite(a).all()
    # Some hundred terms in another order.
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, np.abs(b).max()))


def test_blocks_in_bfloat16():
  qkvg, segments = inputs(200, 4, 2)
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in qkvg]
  got = value_and_gradients(attention.blocks, rounded, segments)
  want = value_and_gradients(attention.reference, [x.astype(jnp.float32) for x in rounded], segments)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=0.02 * float(jnp.abs(b).max()))


def test_scores_of_bfloat16_are_summed_in_float32(equations):
  qkvg, segments = inputs(6, 4, 2)
  qkvg = [jnp.asarray(x, jnp.bfloat16) for x in qkvg]
  dtypes = lambda f: [
    str(product.outvars[0].aval.dtype) for product in equations(jax.make_jaxpr(f)(*qkvg[:3]), 'dot_general')
  ]
  for attend in (attention.reference, attention.blocks):
    assert dtypes(lambda *qkv: attend(*qkv, segments)) == ['float32', 'bfloat16']  # noqa: B023
  # Scores and output; then again scores, the gradients of probabilities, queries, keys and values.
  both = lambda *qkv: value_and_gradients(attention.blocks, [*qkv, qkvg[3]], segments)
  assert dtypes(both) == ['float32', 'bfloat16', 'float32', 'float32', 'bfloat16', 'float32', 'float32']
  # No sum is rounded to bfloat16 and used further: only outputs and their gradients, [B, K, G, T, H], become float32.
  casts = equations(jax.make_jaxpr(both)(*qkvg[:3]), 'convert_element_type')
  widened = [x for cast in casts for x in cast.invars if x.aval.dtype == jnp.bfloat16]
  assert {x.aval.shape for x in widened} == {(2, 2, 2, 6, 8)}


def test_blocks_compute_hardly_more_than_half_and_save_no_scores():
  T = 1024
  qkv = [jax.ShapeDtypeStruct((1, T, heads, 8), jnp.float32) for heads in (2, 1, 1)]
  run = lambda attend: jax.jit(lambda *qkv: attend(*qkv, jnp.ones((1, T), jnp.int32))).lower(*qkv).cost_analysis()
  assert run(attention.blocks)['flops'] < 0.6 * run(attention.reference)['flops']
  saved = jax.eval_shape(lambda *qkv: jax.vjp(lambda *x: attention.blocks(*x, jnp.ones((1, T), jnp.int32)), *qkv), *qkv)
  assert max(x.size for x in jax.tree.leaves(saved)) <= T * 16


@pytest.mark.parametrize('T', [8192, 3000])
def test_a_long_row_is_cut_into_few_blocks(T):
  qkv = [jax.ShapeDtypeStruct((1, T, 1, 8), jnp.float32)] * 3
  text = str(jax.make_jaxpr(lambda *qkv: attention.blocks(*qkv, jnp.ones((1, T), jnp.int32)))(*qkv))
  assert len(re.findall('dot_general', text)) == 2 * 16


class FakeMesh:
  def __init__(self, platform):
    device = type('Device', (), {'platform': platform})()
    self.devices = np.array([[device]])


def test_auto_goes_by_the_devices_of_the_mesh(monkeypatch):
  assert attention.select('auto') is attention.select('auto', FakeMesh('cpu')) is attention.blocks
  assert attention.select('auto', FakeMesh('gpu'), 'bfloat16') is attention.cudnn
  assert attention.select('auto', FakeMesh('gpu'), 'float32') is attention.reference
  assert attention.select('reference', FakeMesh('cpu')) is attention.reference
  assert attention.select('blocks', FakeMesh('tpu')) is attention.blocks
  monkeypatch.setitem(attention.IMPLEMENTATIONS, 'kernel', (lambda mesh: mesh, ('tpu',)))
  monkeypatch.setitem(attention.AUTO, 'tpu', 'kernel')
  mesh = FakeMesh('tpu')
  assert attention.select('auto', mesh) is attention.select('kernel', mesh) is mesh
  assert attention.select('splash', mesh, answered=4096) is attention.select('splash', mesh)
  with pytest.raises(UserError, match="'splash' takes rows of at most 4096, and data.seq_len is 4097: set"):
    attention.select('splash', FakeMesh('tpu'), answered=4097)
  with pytest.raises(UserError, match="train.attention 'kernel' runs on tpu only, and the devices here are cpu"):
    attention.select('kernel', FakeMesh('cpu'))


def test_cudnn_asks_for_what_the_reference_computes(monkeypatch):
  qkvg, segments = inputs(200, 4, 2)
  qkvg = [jnp.asarray(x, jnp.bfloat16) for x in qkvg]
  asked, fused = [], attention.fused
  run = lambda *qkv, implementation, **rest: asked.append(implementation) or fused(*qkv, implementation='xla', **rest)
  monkeypatch.setattr(attention, 'fused', run)
  got = value_and_gradients(attention.cudnn, qkvg, segments)
  want = value_and_gradients(attention.reference, qkvg, segments)
  assert set(asked) == {'cudnn'}
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(
      a.astype(jnp.float32), b.astype(jnp.float32), rtol=0, atol=0.02 * float(jnp.abs(b).max())
    )
  with pytest.raises(UserError, match="'cudnn' takes bfloat16"):
    attention.cudnn(*(x.astype(jnp.float32) for x in qkvg[:3]), segments)


def answers_in_segments():
  """(segment ids, answer ids) [2, 300]: two questions with several answers, one with its only answer, and padding."""
  parts = [[(1, 0, 60), (1, 1, 70), (1, 2, 1), (1, 3, 40), (2, 0, 30), (3, 0, 5), (3, 1, 20), (3, 2, 60), (0, 0, 14)]]
  parts.append([(1, 1, 90), (1, 2, 100), (2, 0, 100), (2, 1, 10)])  # a question of one token, then one of a split one
  rows = [np.concatenate([np.tile([[segment], [answer]], size) for segment, answer, size in row], 1) for row in parts]
  return np.stack(rows, 1).astype(np.int32)


def literal(q_BTNH, k_BTKH, v_BTKH, segments, answers):
  """Each token alone: softmax over the tokens up to it, in its segment, of the question or of its own answer."""
  B, T, N, H = q_BTNH.shape
  rows = []
  for b in range(B):
    for t in range(T):
      sees = (segments[b, : t + 1] == segments[b, t]) & np.isin(answers[b, : t + 1], [0, answers[b, t]])
      k, v = (np.repeat(x[b, : t + 1][sees], N // x.shape[2], axis=1) for x in (k_BTKH, v_BTKH))
      scores = np.einsum('NH,SNH->NS', q_BTNH[b, t], k) * H**-0.5
      probs = np.exp(scores - scores.max(1, keepdims=True))
      rows.append(np.einsum('NS,SNH->NH', probs / probs.sum(1, keepdims=True), v))
  return np.reshape(rows, q_BTNH.shape)


def test_answers_see_their_question_and_not_each_other(monkeypatch):
  qkvg, _ = inputs(300, 4, 2)
  segments, answers = answers_in_segments()
  with_answers = lambda attend: lambda *qkv_segments: attend(*qkv_segments, answers)
  want = value_and_gradients(with_answers(attention.reference), qkvg, segments)
  np.testing.assert_allclose(want[0], literal(*qkvg[:3], segments, answers), rtol=0, atol=2e-6)
  for a, b in zip(value_and_gradients(with_answers(attention.blocks), qkvg, segments), want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, np.abs(b).max()))

  fused = attention.fused
  monkeypatch.setattr(
    attention, 'fused', lambda *qkv, implementation, **rest: fused(*qkv, implementation='xla', **rest)
  )
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in qkvg]
  got = value_and_gradients(with_answers(attention.cudnn), rounded, segments)
  want = value_and_gradients(with_answers(attention.reference), rounded, segments)
  for a, b in zip(got, want, strict=True):
    a, b = (x.astype(jnp.float32) for x in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=0.02 * float(jnp.abs(b).max()))


def test_names_are_those_of_the_setting():
  assert set(config.SETTINGS['train.attention'].choices) == {'auto', *attention.IMPLEMENTATIONS}
