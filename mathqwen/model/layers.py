"""Pure functions on arrays: what the layers of the decoder are made of.

B batch, T query/sequence, S key/cache, D embed, N query heads, K kv heads, G = N / K, H head dim, F MLP; in `linear`
I inputs and O outputs of a weight. A name lists the axes of its array: x_BTD is [B, T, D].
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from mathqwen.model import rotary
from mathqwen.model.config import ModelConfig


@runtime_checkable
class Product(Protocol):
  """A weight that is not an array, with its own layout and its own product.

  `quantized.Quantized`, `adapted.Adapted` and `inference.cpu.CpuWeight` implement it.
  """

  def product(self, x: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`x @ weight.T` in `dtype`, by default that of x: [..., I] -> [..., O]; O may stand for several axes, (N, H)."""


def linear(equation: str, x_BT: jax.Array, w: jax.Array | Product) -> jax.Array:
  """`jnp.einsum(equation, x, w)` of activations [B, T, ...] and a weight in torch's layout: outputs first.

  equation: 'BTD,NHD->BTNH', for example. All axes of x after B and T are inputs, all of the result are outputs.
  Computed as a product of two matrices, because XLA:CPU transposes a weight of three axes in memory at every use.
  """
  B, T = x_BT.shape[:2]
  x_BTI = x_BT.reshape(B, T, -1)
  if isinstance(w, Product):
    return w.product(x_BTI)
  output_axes = equation.split('->')[1][len('BT') :]
  outputs = w.shape[: len(output_axes)]
  return _linear(x_BTI, w.reshape(math.prod(outputs), -1)).reshape(B, T, *outputs)


def unembed(x_BTD: jax.Array, head_VD: jax.Array | Product) -> jax.Array:
  """float32 logits [..., V] of x [..., D]; the head is cast to x's dtype."""
  head_VD = head_VD.astype(x_BTD.dtype)
  if isinstance(head_VD, Product):
    return head_VD.product(x_BTD, jnp.float32)
  return jnp.einsum('...D,VD->...V', x_BTD, head_VD, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _linear(x_BTI, w_OI):
  """`x @ w.T` with a hand-written derivative, which makes training on a CPU faster and changes no other platform.

  For the weight's gradient, XLA:CPU transposes one of its two operands in memory. With JAX's own derivative that is
  always the activations' gradient. Here it is the operand with fewer features; where that is the input, the product is
  the transposed gradient of the weight, which is small enough to transpose afterwards. The barriers keep XLA from
  rewriting this into the form that JAX's derivative has. With JAX's derivative, loss and gradient of a small model take
  1.1 times the CPU time. To measure: `python tests/model/test_layers.py`.
  """
  return jnp.einsum('BTI,OI->BTO', x_BTI, w_OI)


def _linear_forward(x_BTI, w_OI):
  # Not `_linear(...)`: a remat policy does not see the product inside a custom_vjp function.
  return jnp.einsum('BTI,OI->BTO', x_BTI, w_OI), (x_BTI, w_OI)


def _linear_backward(saved, gradient_BTO):
  x_BTI, w_OI = saved
  outputs, inputs = w_OI.shape
  if outputs < inputs:
    w_gradient_OI = jax.lax.optimization_barrier(jnp.einsum('BTO,BTI->OI', gradient_BTO, x_BTI))
  else:
    w_gradient_OI = jax.lax.optimization_barrier(jnp.einsum('BTI,BTO->IO', x_BTI, gradient_BTO)).T
  return jnp.einsum('BTO,OI->BTI', gradient_BTO, w_OI), w_gradient_OI


_linear.defvjp(_linear_forward, _linear_backward)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """Normalises the last axis in float32, casts back, then scales by `scale` [D]: the order of Hugging Face's Qwen."""
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return x32.astype(x.dtype) * scale


def rope_angles(positions_BT: jax.Array, inv_freq: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(cos, sin), float32 [B, T, 1, H/2], for inverse frequencies [H/2], or [B, T or 1, H/2].

  In float32, because bfloat16 cannot tell positions apart: it rounds 257 to 256.
  """
  angles = (positions_BT[..., None].astype(jnp.float32) * inv_freq)[..., None, :]
  return jnp.cos(angles), jnp.sin(angles)


def segment_lengths(segment_ids_BT: jax.Array) -> jax.Array:
  """int32 [B, T]: the number of tokens in the segment of each token."""
  return jnp.sum(_same_segment(segment_ids_BT), axis=-1, dtype=jnp.int32)


def segment_ends(segment_ids_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
  """int32 [B, T]: one more than the last position in the segment of each token, which transformers calls its length."""
  return jnp.max(jnp.where(_same_segment(segment_ids_BT), positions_BT[:, None, :], 0), axis=-1) + 1


def _same_segment(segment_ids_BT: jax.Array) -> jax.Array:
  """bool [B, T, T]."""
  return segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]


def logn_scale(positions_BT: jax.Array, seq_length: int) -> jax.Array:
  """Qwen-1's logn attention: a factor [B, T] for the query at each position; past `seq_length` it exceeds 1."""
  length = positions_BT.astype(jnp.float32) + 1
  return jnp.where(length > seq_length, jnp.log(length) / math.log(seq_length), 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
  """What positions do to queries and keys: both are rotated, and Qwen-1 scales its queries."""

  cos: jax.Array  # float32 [B, T, 1, H/2]
  sin: jax.Array  # float32 [B, T, 1, H/2]
  query_scale: jax.Array | None  # float32 [B, T, 1, 1]: Qwen-1's logn attention; None: queries are not scaled


def rotation(
  cfg: ModelConfig,
  positions_BT: jax.Array,
  lengths_BT: jax.Array | None = None,
  prompt_lengths_BT: jax.Array | None = None,
) -> Rotation:
  """The rotation for tokens at these positions.

  Lengths are int32 [B, T], or [B, 1] for whole rows. lengths_BT: of the sequences so far, for rotary scaling that
  follows it. prompt_lengths_BT: lengths that stay as an answer grows, for Qwen-1; without them its dynamic NTK and logn
  attention are off, as they are when Qwen-1 is trained.
  """
  query_scale = None
  ntk_lengths_BT = prompt_lengths_BT if cfg.use_dynamic_ntk else None
  if cfg.use_logn_attn and prompt_lengths_BT is not None:
    query_scale = logn_scale(positions_BT, cfg.seq_length)[..., None, None]
  inv_freq, attention_factor = rotary.frequencies(cfg, lengths_BT, ntk_lengths_BT)
  cos, sin = rope_angles(positions_BT, inv_freq)
  if attention_factor != 1:  # both queries and keys get it, so that scores get its square
    cos, sin = cos * attention_factor, sin * attention_factor
  return Rotation(cos, sin, query_scale)


def rope(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + H/2): the half-split form of Qwen and Hugging Face's LLaMA, not the interleaved one."""
  x1, x2 = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)


def causal_mask(query_segments_BT: jax.Array, key_segments_BS: jax.Array, first_slot: int = 0) -> jax.Array:
  """bool [B, T, S]: a query sees the keys of its own segment up to its own slot. Query t sits in slot `first_slot + t`.

  Padding is segment 0 and sees only padding. It is found by segment and never by token value, because token 0 is `!` in
  Qwen's vocabulary.
  """
  T, S = query_segments_BT.shape[1], key_segments_BS.shape[1]
  causal_TS = jnp.arange(S) <= first_slot + jnp.arange(T)[:, None]
  return causal_TS & (query_segments_BT[:, :, None] == key_segments_BS[:, None, :])


def answer_mask(query_answers_BT: jax.Array, key_answers_BS: jax.Array) -> jax.Array:
  """bool [B, T, S]: within a segment, a query sees the keys of the question, answer 0, and of its own answer."""
  key_answers_B1S = key_answers_BS[:, None, :]
  return (key_answers_B1S == 0) | (key_answers_B1S == query_answers_BT[:, :, None])


def attention_probs(scores_BKGTS: jax.Array, mask_BTS: jax.Array) -> jax.Array:
  """Softmax over the keys that the mask lets through, in the dtype of the scores."""
  # The fill is finite, so that a padding query that sees no key averages over all of them instead of giving NaN.
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
  return jax.nn.softmax(scores_BKGTS, axis=-1)


def attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
  """Grouped-query attention [B, T, N, H]; scores and softmax in float32."""
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
  if T * N == K:
    # One query for each key head. XLA for TPU would not see a product of matrices in that and would compute it number
    # by number, which takes longer: so there is a second query, of zeros.
    q_BTKGH = jnp.pad(q_BTKGH, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 0)))
  scores_BKGTS = jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
  probs_BKGTS = attention_probs(scores_BKGTS, mask_BTS).astype(v_BSKH.dtype)
  out_BKGTH = jnp.einsum('BKGTS,BSKH->BKGTH', probs_BKGTS, v_BSKH)[:, :, : N // K]
  return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def swiglu(
  x_BTD: jax.Array, gate_FD: jax.Array | Product, up_FD: jax.Array | Product, down_DF: jax.Array | Product
) -> jax.Array:
  """The MLP: `down(silu(gate(x)) * up(x))`, [B, T, D]."""
  gate_BTF = checkpoint_name(linear('BTD,FD->BTF', x_BTD, gate_FD), 'gate')
  up_BTF = checkpoint_name(linear('BTD,FD->BTF', x_BTD, up_FD), 'up')
  return linear('BTF,DF->BTD', jax.nn.silu(gate_BTF) * up_BTF, down_DF)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Inverted dropout: what is kept is divided by 1 - rate. Without a key, x unchanged."""
  if key is None or rate == 0:
    return x
  return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)
