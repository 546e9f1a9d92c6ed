"""Masked cross-entropy as (sum, weight): the one division happens after micro-batches, devices and hosts are summed."""

import functools

import jax
import jax.numpy as jnp

from mathqwen.model.placement import NO_PLACEMENT

HALVINGS = 3  # what is left after the last whole chunk goes in parts of 1/2, 1/4 and 1/8 of one


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


def head_cross_entropy(x_BTD, head_VD, targets_BT, weights_BT, chunk: int, shards=(1, 1), place=NO_PLACEMENT):
  """`cross_entropy(x @ head.T, ...)` that takes only the positions with loss through the head, `chunk` at a time.

  The positions form a group for each of the `shards` (parts of the batch, parts of the length), so that a group lies on
  one device. Those with loss come first and go through the head; all groups go through as many as the one with the
  most. Logits of the other positions, or of more than `chunk` of a group at a time, never exist. The gradient is taken
  together with the loss, from the same logits; that of the head is float32. `place`, a `Placement`, says where
  things lie on a mesh: the head stays by rows of the vocabulary, and a chunk's positions visit it. `weights_BT` is data
  and has no gradient.
  """
  B, T, D = x_BTD.shape
  rows, lengths = shards
  G, P = rows * lengths, B // rows * (T // lengths)
  parts = _parts(P, chunk)

  def group(a):
    """[B, T, ...] -> [G, P, ...]"""
    return a.reshape(rows, B // rows, lengths, T // lengths, *a.shape[2:]).swapaxes(1, 2).reshape(G, P, *a.shape[2:])

  order_GP = jnp.argsort(group(weights_BT) <= 0, axis=1, stable=True)

  def first(a):
    """[B, T, ...] -> [G, P + the smallest part, ...]: positions with loss first, zeros last."""
    a = jnp.take_along_axis(group(a), order_GP.reshape(G, P, *[1] * (a.ndim - 2)), axis=1)
    return jnp.pad(a, ((0, 0), (0, parts[-1]), *[(0, 0)] * (a.ndim - 2)))

  weights_GP = first(weights_BT)
  # Positions without loss fill the last part; a NaN in their x must not become 0 * NaN in the gradient of the head.
  x_GPD = place(jnp.where(weights_GP[..., None] > 0, first(x_BTD), 0), 'part', 'whole', 'width')
  loss = _head_loss(parts, place, x_GPD, head_VD, first(targets_BT), weights_GP)
  return loss, jnp.sum(weights_BT)


def _parts(positions: int, chunk: int) -> tuple[int, ...]:
  size = min(chunk, positions)
  return tuple(sorted({max(size >> i, 1) for i in range(HALVINGS + 1)}, reverse=True))


def turns(positions: int, chunk: int) -> tuple[int, ...]:
  """Turns of each of the head's loops when all of a group's positions carry loss."""
  first, *rest = _parts(positions, chunk)
  return (-(-positions // first), *(0 for _ in rest))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head_loss(parts, place, x_GPD, head_VD, targets_GP, weights_GP):
  return _loop(parts, place, x_GPD, head_VD, targets_GP, weights_GP, None)[0]


def _head_loss_forward(parts, place, x_GPD, head_VD, targets_GP, weights_GP):
  zeros = (
    place(jnp.zeros_like(x_GPD), 'part', 'whole', 'width'),
    place(jnp.zeros(head_VD.shape[::-1], jnp.float32), 'vocab_width', 'vocab'),
  )
  loss, (dx_GPD, dhead_DV) = _loop(parts, place, x_GPD, head_VD, targets_GP, weights_GP, zeros)
  return loss, (dx_GPD, jax.lax.optimization_barrier(dhead_DV).T.astype(head_VD.dtype))


def _head_loss_backward(parts, place, gradients, dloss):
  dx_GPD, dhead_VD = gradients
  return (dloss * dx_GPD).astype(dx_GPD.dtype), (dloss * dhead_VD).astype(dhead_VD.dtype), None, None


_head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def _loop(parts, place, x_GPD, head_VD, targets_GP, weights_GP, gradients):
  """(sum of loss, gradients): the given zeros, filled in; or None, and then only the loss is computed."""
  head_VD = place(head_VD.astype(x_GPD.dtype), 'vocab')
  most = jnp.max(jnp.sum(weights_GP > 0, axis=1))

  def take(size, carry):
    start, loss, gradients = carry
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)
    x_GCD = place(place(cut(x_GPD), 'part', 'whole', 'width'), 'vocab_parts', 'whole', 'width')  # cut first, then sent
    targets_GC, weights_GC = (
      place(place(cut(a), 'part', 'whole'), 'vocab_parts', 'whole') for a in (targets_GP, weights_GP)
    )
    logits_GCV = jnp.einsum('GCD,VD->GCV', x_GCD, head_VD, preferred_element_type=jnp.float32)
    logits_GCV = place(logits_GCV, 'vocab_parts', 'whole', 'vocab')
    lse_GC = jax.nn.logsumexp(logits_GCV, axis=-1)
    # A comparison, not a look-up: it stays where the logits are when V is split over chips.
    hit_GCV = jnp.arange(head_VD.shape[0]) == targets_GC[..., None]
    target_GC = jnp.sum(jnp.where(hit_GCV, logits_GCV, 0), axis=-1)
    loss += jnp.sum((lse_GC - target_GC) * weights_GC)
    if gradients is not None:
      dx_GPD, dhead_DV = gradients
      dlogits_GCV = weights_GC[..., None] * (jnp.exp(logits_GCV - lse_GC[..., None]) - hit_GCV)
      dlogits_GCV = dlogits_GCV.astype(x_GCD.dtype)
      dx_GCD = place(jnp.einsum('GCV,VD->GCD', dlogits_GCV, head_VD), 'part', 'whole', 'width')
      dhead_DV += jnp.einsum('GCD,GCV->DV', x_GCD, dlogits_GCV, preferred_element_type=jnp.float32)
      dx_GPD = jax.lax.dynamic_update_slice_in_dim(dx_GPD, dx_GCD, start, axis=1)
      gradients = place(dx_GPD, 'part', 'whole', 'width'), place(dhead_DV, 'vocab_width', 'vocab')
    return start + size, loss, gradients

  carry = (jnp.int32(0), jnp.float32(0), gradients)
  for size in parts:
    # The last parts hold less than they could, but by less than the smallest part.
    more = lambda carry, size=size: most - carry[0] > size - parts[-1]
    carry = jax.lax.while_loop(more, functools.partial(take, size), carry)
  return carry[1:]
