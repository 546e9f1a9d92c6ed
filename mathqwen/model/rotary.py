"""How fast each pair of a head's dimensions turns: rotary frequencies, and how they are scaled for longer sequences.

`frequencies(cfg, lengths)` is all that the model calls. Scaling is computed as in transformers
(`modeling_rope_utils.py`), in float32 and in the same order of operations. B batch, T tokens, H head dim.
"""

import math

import jax
import jax.numpy as jnp

from mathqwen.model.config import ModelConfig, RopeScaling


def frequencies(
  cfg: ModelConfig, lengths_BT: jax.Array | None = None, ntk_lengths_BT: jax.Array | None = None
) -> tuple[jax.Array, float]:
  """(inverse frequencies, attention factor): radians that each pair of dimensions turns by at each position.

  float32 [H/2], or [B, T, H/2] where they follow lengths, int32 [B, T]. Rotated queries and keys are multiplied by the
  attention factor.
  lengths_BT: of the sequences, for `dynamic` and `longrope`. ntk_lengths_BT: those of Qwen-1's dynamic NTK.
  """
  scaling = cfg.rope_scaling
  if ntk_lengths_BT is not None:
    return inverse(cfg.head_dim, ntk_theta(cfg.rope_theta, ntk_lengths_BT, cfg.seq_length, cfg.head_dim)), 1.0
  if scaling.rope_type == 'dynamic':
    theta = dynamic_theta(cfg.rope_theta, lengths_BT, cfg.max_position_embeddings, scaling.factor, cfg.head_dim)
    return inverse(cfg.head_dim, theta), 1.0

  inv_freq = inverse(cfg.head_dim, cfg.rope_theta)
  if scaling.rope_type == 'linear':
    return inv_freq / scaling.factor, 1.0
  if scaling.rope_type == 'llama3':
    return llama3(inv_freq, scaling), 1.0
  if scaling.rope_type == 'yarn':
    return yarn(inv_freq, cfg.rope_theta, scaling), yarn_attention_factor(scaling)
  if scaling.rope_type == 'longrope':
    is_long_BT1 = (lengths_BT > scaling.original_max_position_embeddings)[..., None]
    short, long = (
      inv_freq / jnp.array(factors, jnp.float32) for factors in (scaling.short_factor, scaling.long_factor)
    )
    return jnp.where(is_long_BT1, long, short), longrope_attention_factor(scaling)
  return inv_freq, 1.0


def inverse(head_dim: int, theta: float | jax.Array) -> jax.Array:
  """1 / theta ** (0/H, 2/H, 4/H, ...): float32 [H/2] for a number, [B, T, H/2] for a base of each token."""
  # Both in the same way, so that Qwen-1's rotation up to seq_length is the unscaled one to the bit.
  theta = jnp.asarray(theta, jnp.float32)[..., None]
  return theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def ntk_theta(theta: float, lengths_BT: jax.Array, seq_length: int, head_dim: int) -> jax.Array:
  """Qwen-1's dynamic NTK: the rotary base [B, T], which grows with each doubling of the lengths past `seq_length`."""
  # ceil(log2(length / seq_length)) in integers: a float32 logarithm may miss an exact power of two. The `min` keeps the
  # thresholds within int32.
  doublings = sum((lengths_BT > min(seq_length << n, 2**31 - 1)).astype(jnp.int32) for n in range(10))
  alpha = (jnp.left_shift(2, doublings) - 1).astype(jnp.float32)
  return theta * alpha ** (head_dim / (head_dim - 2))


def dynamic_theta(
  theta: float, lengths_BT: jax.Array, max_position_embeddings: int, factor: float, head_dim: int
) -> jax.Array:
  """The rotary base [B, T] of dynamic NTK, which grows with the length past `max_position_embeddings`."""
  lengths_BT = jnp.maximum(lengths_BT, max_position_embeddings).astype(jnp.float32)
  stretch_BT = factor * lengths_BT / max_position_embeddings - (factor - 1)
  return theta * stretch_BT ** (head_dim / (head_dim - 2))


def llama3(inv_freq: jax.Array, scaling: RopeScaling) -> jax.Array:
  """Llama 3.1: slow waves are slowed down by the factor, fast ones stay, and those between get something between."""
  turns = scaling.original_max_position_embeddings * inv_freq / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = jnp.clip((turns - low) / (high - low), 0, 1)  # 1 for fast waves
  return (1 - kept) * (inv_freq / scaling.factor) + kept * inv_freq


def yarn(inv_freq: jax.Array, theta: float, scaling: RopeScaling) -> jax.Array:
  """YaRN (arXiv 2309.00071, section 3.2): as `llama3`, between two numbers of turns in the original length."""
  pairs = len(inv_freq)

  def pair_with(turns: float) -> float:
    """The pair that turns so often in the original length, as a fraction between two pairs."""
    return pairs * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)

  first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
  if scaling.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, 2 * pairs - 1)
  if first == last:
    last += 0.001
  slowed = jnp.clip((jnp.arange(pairs, dtype=jnp.float32) - first) / (last - first), 0, 1)
  return (inv_freq / scaling.factor) * slowed + inv_freq * (1 - slowed)


def yarn_attention_factor(scaling: RopeScaling) -> float:
  """What queries and keys are multiplied by: given, or from the factor (arXiv 2309.00071, section 3.3)."""

  def of(mscale: float) -> float:
    return 0.1 * mscale * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0

  if scaling.attention_factor is not None:
    return scaling.attention_factor
  if scaling.mscale and scaling.mscale_all_dim:
    return of(scaling.mscale) / of(scaling.mscale_all_dim)
  return of(1)


def longrope_attention_factor(scaling: RopeScaling) -> float:
  """What queries and keys are multiplied by: given, or from the factor."""
  if scaling.attention_factor is not None:
    return scaling.attention_factor
  if scaling.factor <= 1:
    return 1.0
  return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position_embeddings))
