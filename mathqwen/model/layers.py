"""Pure functions on arrays. B batch, T query, S key, D embed, N heads, K kv heads, G = N / K, H head dim, F MLP."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mathqwen.model.panels import Panels


def linear(equation, x_BT, w):
  """`jnp.einsum(equation, x, w)` of activations and a weight, which lies as torch stores it: outputs first.

  As a product of matrices: XLA for CPU would transpose a weight of three axes in memory each time it is used.
  """
  if isinstance(w, Panels):
    return matmul(x_BT.reshape(*x_BT.shape[:2], -1), w)
  y_axes = equation.split('->')[1]
  out = w.shape[: len(y_axes) - 2]  # B and T are activations' own
  B, T = x_BT.shape[:2]
  return _linear(x_BT.reshape(B, T, -1), w.reshape(math.prod(out), -1)).reshape(B, T, *out)


FEW = 64  # tokens, up to which a CPU is faster with the product turned round


def matmul(x, w_OI, preferred_element_type=None):
  """`x @ w.T`, [..., O], `w` an array or `Panels`; of few tokens on a CPU as `(w @ x.T).T`, which a barrier keeps XLA
  from turning back.

  XLA's kernel packs the right operand in each call: here the tokens, not the weight. To measure: `mathqwen bench
  decode`, with FEW = 0 and without.
  """
  *batch, width = x.shape
  if isinstance(w_OI, Panels):
    y_RO = w_OI.product(x.reshape(-1, width))
    return y_RO.astype(preferred_element_type or x.dtype).reshape(*batch, -1)
  product = functools.partial(jnp.einsum, preferred_element_type=preferred_element_type)
  if math.prod(batch) > FEW or jax.default_backend() != 'cpu':
    return product('...I,OI->...O', x, w_OI)
  y_OR = product('OI,RI->OR', w_OI, x.reshape(-1, width))
  return jax.lax.optimization_barrier(y_OR).T.reshape(*batch, -1)


@jax.custom_vjp
def _linear(x_BTI, w_OI):
  """Its own derivative only for the CPU: JAX's einsum for the weight's gradient has XLA transpose the activations'
  gradient in memory, and takes the product of that. Here the side with fewer features is transposed, and where that is
  the input, the weight's small gradient, too (the barrier keeps XLA from folding that back). Loss and gradient of a
  small model take 1.1 times the CPU time without it; to measure: `python tests/model/test_layers.py`.
  """
  return matmul(x_BTI, w_OI)


def _linear_forward(x_BTI, w_OI):
  # Not `_linear`, whose product a remat policy would not see.
  return matmul(x_BTI, w_OI), (x_BTI, w_OI)


def _linear_backward(saved, gradient_BTO):
  x_BTI, w_OI = saved
  outputs, inputs = w_OI.shape
  if outputs < inputs:
    w_gradient_OI = jax.lax.optimization_barrier(jnp.einsum('BTO,BTI->OI', gradient_BTO, x_BTI))
  else:
    w_gradient_OI = jax.lax.optimization_barrier(jnp.einsum('BTI,BTO->IO', x_BTI, gradient_BTO)).T
  return jnp.einsum('BTO,OI->BTI', gradient_BTO, w_OI), w_gradient_OI


_linear.defvjp(_linear_forward, _linear_backward)


def rms_norm(x, scale, eps):
  """Normalises the last axis in float32, casts back, then scales, in the order that Hugging Face's Qwen does."""
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return x32.astype(x.dtype) * scale


def rope_angles(positions_BT, head_dim, theta):
  """(cos, sin), float32 [B, T, 1, H/2], of a base theta (a number, or [B, T]).

  bfloat16 would lose whole positions: 257 rounds to 256.
  """
  theta = jnp.asarray(theta, jnp.float32)[..., None, None]
  inv_freq = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = positions_BT[..., None, None].astype(jnp.float32) * inv_freq
  return jnp.cos(angles), jnp.sin(angles)


def ntk_theta(theta, lengths_BT, seq_length, head_dim):
  """Qwen-1's dynamic NTK: the rotary base [B, T], larger with each doubling of the lengths past `seq_length`."""
  # ceil(log2(length / seq_length)) in whole numbers: a float32 logarithm may miss an exact power of two.
  doublings = sum((lengths_BT > min(seq_length << n, 2**31 - 1)).astype(jnp.int32) for n in range(10))
  alpha = (jnp.left_shift(2, doublings) - 1).astype(jnp.float32)
  return theta * alpha ** (head_dim / (head_dim - 2))


def logn_scale(positions_BT, seq_length):
  """Qwen-1's logn attention: what the query at each position is multiplied by, above 1 past `seq_length`; [B, T]."""
  counted = positions_BT.astype(jnp.float32) + 1
  return jnp.where(counted > seq_length, jnp.log(counted) / math.log(seq_length), 1.0)


def rope(x_BTNH, cos, sin):
  """Rotates the pairs (i, i + H/2): the half-split form of Qwen and Hugging Face's LLaMA, not the interleaved one."""
  x1, x2 = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)


def causal_mask(query_segments_BT, key_segments_BS, first_slot=0):
  """bool [B, T, S]: a query sees the keys of its own segment up to its own slot. Query t sits in slot `first_slot + t`.

  Padding is segment 0 and sees only padding, by segment and never by token value: token 0 is `!` in Qwen's vocabulary.
  """
  T, S = query_segments_BT.shape[1], key_segments_BS.shape[1]
  causal_TS = jnp.arange(S) <= first_slot + jnp.arange(T)[:, None]
  return causal_TS & (query_segments_BT[:, :, None] == key_segments_BS[:, None, :])


def attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
  """Grouped-query attention; scores and softmax in float32. Returns [B, T, N, H].

  The keys may be `Panels` of [B, K, S, H].
  """
  B, T, N, H = q_BTNH.shape
  K = v_BSKH.shape[2]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
  if isinstance(k_BSKH, Panels):
    q_BKRH = q_BTKGH.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores_BKGTS = k_BSKH.product(q_BKRH).reshape(B, K, N // K, T, -1)
  else:
    scores_BKGTS = jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
  # Finite, so that a padding query in an empty cache is a mean of zeros and not a NaN.
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
  probs_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
  if isinstance(k_BSKH, Panels):  # then the values of a head lie together, [S, H], as in one panel of [H, S]
    out_BKRH = Panels(v_BSKH.swapaxes(1, 2)[:, :, None]).product(probs_BKGTS.reshape(B, K, -1, v_BSKH.shape[1]))
    out_BKGTH = out_BKRH.astype(v_BSKH.dtype).reshape(B, K, N // K, T, H)
  else:
    out_BKGTH = jnp.einsum('BKGTS,BSKH->BKGTH', probs_BKGTS, v_BSKH)
  return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def swiglu(x_BTD, gate_FD, up_FD, down_DF):
  gate_BTF = checkpoint_name(linear('BTD,FD->BTF', x_BTD, gate_FD), 'gate')
  up_BTF = checkpoint_name(linear('BTD,FD->BTF', x_BTD, up_FD), 'up')
  return linear('BTF,DF->BTD', jax.nn.silu(gate_BTF) * up_BTF, down_DF)


def dropout(x, rate, key):
  """Inverted dropout; `key=None` is evaluation."""
  if key is None or rate == 0:
    return x
  return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)
