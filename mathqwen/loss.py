"""Masked cross-entropy as (sum, weight): the one division happens after micro-batches, devices and hosts are summed."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV, targets_BT, weights_BT):
  """(sum of weighted negative log-likelihood in nats, sum of weights), both float32 scalars."""
  # where, not a product, and before the logarithm: a position without loss must not carry its inf or NaN into the sum,
  # nor, as 0 * NaN, into the gradient.
  logits_BTV = jnp.where(weights_BT[..., None] > 0, logits_BTV.astype(jnp.float32), 0.0)
  # A comparison, not a look-up: it stays where the logits are when V is split over chips.
  is_target_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
  target_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), axis=-1)
  nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT
  return jnp.sum(nll_BT * weights_BT), jnp.sum(weights_BT)


def chunked_cross_entropy(unembed, x_BTD, targets_BT, weights_BT, chunk: int):
  """`cross_entropy(unembed(x), ...)`, holding the logits of at most `chunk` positions of each row at a time.

  The backward pass computes each chunk's logits again, so a [B, T, 152K] array never exists. `chunk` is lowered to
  the nearest divisor of T.
  """
  B, T, D = x_BTD.shape
  chunk = next(c for c in range(min(chunk, T), 0, -1) if T % c == 0)
  split = lambda a: jnp.moveaxis(a.reshape(B, T // chunk, chunk, *a.shape[2:]), 1, 0)

  @jax.checkpoint
  def one(total, xs):
    x, targets, weights = xs
    loss, weight = cross_entropy(unembed(x), targets, weights)
    return (total[0] + loss, total[1] + weight), None

  zero = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
  return jax.lax.scan(one, zero, (split(x_BTD), split(targets_BT), split(weights_BT)))[0]
