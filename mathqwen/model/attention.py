"""Attention without a cache, for training and prefill: `select(name, mesh)` returns the implementation for a mesh.

Every implementation is a function (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, answer_ids_BT=None) -> o_BTNH: a query sees
the keys of its own segment up to itself. With answer ids (`data/shared_prompts.py` draws them) it sees only those of
the question, whose id is 0, and of its own answer. To add one, write a function here, add a line to `IMPLEMENTATIONS`,
and if it is the best on its platform a line to `AUTO`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn import dot_product_attention as fused

from mathqwen.errors import UserError
from mathqwen.model import splash
from mathqwen.model.layers import answer_mask, attention, causal_mask

SAVED = 'attention'  # `checkpoint_name` of what the backward pass of attention needs; several remat policies keep it
BLOCK = 128  # least number of queries in a block of `blocks`
MOST_BLOCKS = 16  # of a row: each block is compiled separately, so a long row gets larger blocks, not more of them


def reference(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  segment_ids_BT: jax.Array,
  answer_ids_BT: jax.Array | None = None,
) -> jax.Array:
  """Scores of all pairs of tokens, then the mask. Runs anywhere; the others are tested against it."""
  return attention(q_BTNH, k_BTKH, v_BTKH, _mask(segment_ids_BT, answer_ids_BT, 0, segment_ids_BT.shape[1]))


def _mask(segment_ids_BT, answer_ids_BT, start, end):
  """bool [B, T, S]: which of the keys up to `end` the queries from `start` to `end` see."""
  mask_BTS = causal_mask(segment_ids_BT[:, start:end], segment_ids_BT[:, :end], start)
  if answer_ids_BT is not None:
    mask_BTS &= answer_mask(answer_ids_BT[:, start:end], answer_ids_BT[:, :end])
  return mask_BTS


def blocks(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  segment_ids_BT: jax.Array,
  answer_ids_BT: jax.Array | None = None,
) -> jax.Array:
  """Exact attention, one block of queries at a time, each against the keys up to the end of the block.

  That skips most of the masked half. The backward pass recomputes the scores, so what is saved for it grows
  with T, not with T * T.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BTKH.shape[2]
  q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4) * H**-0.5
  o_BKGTH = _blocks(q_BKGTH, k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2), segment_ids_BT, answer_ids_BT)
  return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def cudnn(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  segment_ids_BT: jax.Array,
  answer_ids_BT: jax.Array | None = None,
) -> jax.Array:
  """cuDNN's fused kernel: bfloat16 or float16, head_dim at most 128 (256 on Hopper). JAX reports what else it refuses.

  UserError: for float32.
  """
  if q_BTNH.dtype == jnp.float32:
    raise UserError(
      "train.attention 'cudnn' takes bfloat16, and train.compute_dtype is float32: set one of them to what the other "
      "takes, train.compute_dtype=bfloat16 or train.attention='reference'"
    )
  mask_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
  if answer_ids_BT is not None:
    mask_BTS &= answer_mask(answer_ids_BT, answer_ids_BT)
  return fused(q_BTNH, k_BTKH, v_BTKH, mask=mask_BTS[:, None], is_causal=True, implementation='cudnn')


def _block_bounds(T: int) -> list[tuple[int, int]]:
  """(start, end) of each block of queries in a row of T; the last block may be shorter."""
  size = max(BLOCK, -(-T // MOST_BLOCKS))
  return [(start, min(start + size, T)) for start in range(0, T, size)]


def _join(x_BKGTH):
  """[B, K, G, T, H] -> [B, K, R, H] with R = G * T: one matrix for all query heads that share a key head.

  So each product with a key head is a single matrix product. The last axis may also be S, for probabilities.
  """
  B, K, G, T, H = x_BKGTH.shape
  return x_BKGTH.reshape(B, K, G * T, H)


def _block_scores(q_BKGTH, k_BKSH, segment_ids_BT, answer_ids_BT, start, end):
  """Masked float32 scores [B, K, G, end - start, end] of one block.

  Every query sees at least its own key, padding too, so no row is fully masked and no softmax divides by 0.
  """
  q_BKRH = _join(q_BKGTH[..., start:end, :])
  scores_BKRS = jnp.einsum('BKRH,BKSH->BKRS', q_BKRH, k_BKSH[:, :, :end], preferred_element_type=jnp.float32)
  scores_BKGTS = scores_BKRS.reshape(*q_BKGTH.shape[:3], end - start, end)
  mask_BTS = _mask(segment_ids_BT, answer_ids_BT, start, end)
  return jnp.where(mask_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)


# The derivative is written by hand, as in FlashAttention (Dao et al. 2022, arXiv 2205.14135, appendix B). JAX's own
# would save the probabilities of every block for the backward pass: T * T numbers for each head.
#
# With s = q k^T (masked), p = softmax(s), o = p v, and do the gradient of o, row by row:
#
#   dv = p^T do        dp = do v^T        ds = p * (dp - sum(p * dp))        dq = ds k        dk = ds^T q
#
# sum(p * dp) over the keys equals sum(do * o) over the head's H numbers, because o = p v. So the backward pass needs
# q, k, v, o and one number per query: lse = log(sum(exp(s))), from which it recomputes p = exp(s - lse).
@jax.custom_vjp
def _blocks(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, answer_ids_BT):
  return _blocks_forward(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, answer_ids_BT)[0]


def _blocks_forward(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, answer_ids_BT):
  """(out [B, K, G, T, H], what the backward pass needs). q is scaled by H**-0.5 already."""
  outs = []
  lses = []
  for start, end in _block_bounds(q_BKGTH.shape[3]):
    scores_BKGTS = _block_scores(q_BKGTH, k_BKTH, segment_ids_BT, answer_ids_BT, start, end)
    most_BKGT1 = jnp.max(scores_BKGTS, axis=-1, keepdims=True)  # subtracted so that no exponential overflows
    exps_BKGTS = jnp.exp(scores_BKGTS - most_BKGT1)
    sums_BKGT1 = jnp.sum(exps_BKGTS, axis=-1, keepdims=True)
    out_BKRH = jnp.einsum('BKRS,BKSH->BKRH', _join(exps_BKGTS).astype(v_BKTH.dtype), v_BKTH[:, :, :end])
    # Divide after the product with the values: H numbers per query instead of S.
    outs.append(out_BKRH.reshape(q_BKGTH[..., start:end, :].shape) / sums_BKGT1)
    lses.append(most_BKGT1 + jnp.log(sums_BKGT1))
  # Named, so that a remat policy can keep these two and not run the forward pass of attention again.
  out_BKGTH = checkpoint_name(jnp.concatenate(outs, axis=3).astype(q_BKGTH.dtype), SAVED)
  lse_BKGT1 = checkpoint_name(jnp.concatenate(lses, axis=3), SAVED)
  return out_BKGTH, (q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, answer_ids_BT, out_BKGTH, lse_BKGT1)


def _blocks_backward(saved, dout_BKGTH):
  """Gradients of q, k and v by the formulas above, one block of queries at a time; ids have none."""
  q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, answer_ids_BT, out_BKGTH, lse_BKGT1 = saved
  # sum(do * o), which equals sum(p * dp).
  dot_BKGT1 = jnp.sum(dout_BKGTH.astype(jnp.float32) * out_BKGTH.astype(jnp.float32), axis=-1, keepdims=True)
  dqs = []
  # Gradients of keys and values are summed transposed, [H, T]: then XLA transposes the small queries, not the scores.
  dk_BKHT = jnp.zeros_like(k_BKTH.swapaxes(2, 3), jnp.float32)
  dv_BKHT = jnp.zeros_like(v_BKTH.swapaxes(2, 3), jnp.float32)
  for start, end in _block_bounds(q_BKGTH.shape[3]):
    rows = lambda x_BKGTH, start=start, end=end: x_BKGTH[..., start:end, :]  # the queries of this block
    probs_BKGTS = jnp.exp(_block_scores(q_BKGTH, k_BKTH, segment_ids_BT, answer_ids_BT, start, end) - rows(lse_BKGT1))
    dout_BKRH = _join(rows(dout_BKGTH))
    q_BKRH = _join(rows(q_BKGTH))
    dprobs_BKRS = jnp.einsum('BKRH,BKSH->BKRS', dout_BKRH, v_BKTH[:, :, :end], preferred_element_type=jnp.float32)
    dscores_BKGTS = probs_BKGTS * (dprobs_BKRS.reshape(probs_BKGTS.shape) - rows(dot_BKGT1))
    # The softmax is in float32; the products below take operands in the dtype of q, k and v.
    probs_BKRS = _join(probs_BKGTS).astype(q_BKGTH.dtype)
    dscores_BKRS = _join(dscores_BKGTS).astype(q_BKGTH.dtype)
    dqs.append(jnp.einsum('BKRS,BKSH->BKRH', dscores_BKRS, k_BKTH[:, :, :end]).reshape(rows(q_BKGTH).shape))
    transposed_product = functools.partial(jnp.einsum, 'BKRH,BKRS->BKHS', preferred_element_type=jnp.float32)
    dk_BKHT = dk_BKHT.at[..., :end].add(transposed_product(q_BKRH, dscores_BKRS))
    dv_BKHT = dv_BKHT.at[..., :end].add(transposed_product(dout_BKRH, probs_BKRS))
  dk_BKTH = dk_BKHT.swapaxes(2, 3).astype(k_BKTH.dtype)
  dv_BKTH = dv_BKHT.swapaxes(2, 3).astype(k_BKTH.dtype)
  return jnp.concatenate(dqs, axis=3), dk_BKTH, dv_BKTH, None, None


_blocks.defvjp(_blocks_forward, _blocks_backward)


Attention = Callable[..., jax.Array]  # see the top of this module

# name -> (make(mesh) -> the function, platforms that run it; () means all). `mesh` may be None: one default device.
IMPLEMENTATIONS: dict[str, tuple[Callable[[jax.sharding.Mesh | None], Attention], tuple[str, ...]]] = {
  'reference': (lambda mesh: reference, ()),
  'blocks': (lambda mesh: blocks, ()),
  'splash': (splash.make, ('tpu',)),
  'cudnn': (lambda mesh: cudnn, ('gpu',)),
}
AUTO = {'cpu': 'blocks', 'tpu': 'splash', 'gpu': 'cudnn'}  # platform -> name; elsewhere `reference`


def select(
  name: str, mesh: jax.sharding.Mesh | None = None, dtype: str = 'float32', answered: int | None = None
) -> Attention:
  """The implementation `name`. 'auto' chooses by the platform of the mesh's devices and by the dtype of activations.

  answered: the length of rows that will have answer ids; None checks no length.
  UserError: when the implementation does not run on these devices, or does not take such rows.
  """
  platform = (jax.devices() if mesh is None else mesh.devices.flat)[0].platform
  if name == 'auto':
    name = AUTO.get(platform, 'reference')
    if name == 'cudnn' and dtype == 'float32':  # cuDNN has no float32 kernel
      name = 'reference'
  make, platforms = IMPLEMENTATIONS[name]
  if platforms and platform not in platforms:
    raise UserError(
      f'train.attention {name!r} runs on {" and ".join(platforms)} only, and the devices here are {platform}: '
      f"set train.attention='auto'"
    )
  if name == 'splash' and answered is not None:
    splash.check_answered(answered)
  return make(mesh)
