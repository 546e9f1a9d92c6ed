"""Masked cross-entropy as (sum of loss, sum of weights), and log-probabilities of tokens, without holding all logits.

The caller divides once, after adding up micro-batches, devices and hosts.
"""

import functools

import jax
import jax.numpy as jnp

from mathqwen.model.placement import NO_PLACEMENT, Placement

# Positions that do not fill a whole chunk go through the head in parts of 1/2, 1/4 and 1/8 of a chunk, so that little
# is computed for positions without loss. More sizes would waste less, but each is one more loop to compile.
HALVINGS = 3


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(sum of weighted negative log-likelihood in nats, sum of weights), both float32 scalars.

  weights_BT: 0 where a position has no loss. Its logits then change neither the sum nor the gradient, even if they are
  infinite or NaN.
  """
  # `where` before the logarithm, not only a product with the weights after it: 0 * NaN is NaN.
  logits_BTV = jnp.where(weights_BT[..., None] > 0, logits_BTV.astype(jnp.float32), 0.0)
  # Compare and sum instead of indexing by the target: with V split over chips, indexing would gather the logits.
  is_target_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
  target_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), axis=-1)
  nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT
  return jnp.sum(nll_BT * weights_BT), jnp.sum(weights_BT)


def head_cross_entropy(
  x_BTD: jax.Array,
  head_VD: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  chunk: int,
  shards: tuple[int, int] = (1, 1),
  place: Placement = NO_PLACEMENT,
  frozen: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Equals `cross_entropy(x_BTD @ head_VD.T, targets_BT, weights_BT)`, without ever holding all logits.

  Only positions with loss are multiplied by the head, `chunk` of them at a time. For 6 positions, 3 of them with loss
  (x), and chunks of 2:

  weights   . x . x x .      ->   x x | x | . . .      sorted: one chunk of 2, one part of 1, the rest is skipped

  On a mesh, the positions form one group for each of the `shards` (parts of the batch, parts of the length), so that
  each group is on one device. All groups take as many chunks as the one with the most positions with loss. `place`
  lays arrays out on the mesh: the head stays split by rows of the vocabulary, and each chunk's positions travel to it.
  The gradient is computed together with the loss, from the same logits, and that of the head is summed in float32.
  `weights_BT` is data and gets no gradient; nor does a `frozen` head, for which none is computed.
  """
  groups = _Groups(weights_BT, chunk, shards)
  weights_GP = groups.loss_first(weights_BT)
  x_GPD = groups.of_x(x_BTD, weights_GP, place)
  loss = _head_loss(groups.sizes, place, frozen, x_GPD, head_VD, groups.loss_first(targets_BT), weights_GP)
  return loss, jnp.sum(weights_BT)


def token_log_probs(
  x_BTD: jax.Array,
  head_VD: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  chunk: int,
  shards: tuple[int, int] = (1, 1),
  place: Placement = NO_PLACEMENT,
  frozen: bool = False,
) -> jax.Array:
  """log P(target) at each position with loss, in nats, float32 [B, T]; 0 where `weights_BT` is 0.

  targets_BT[b, t] is the token that the logits of position t predict: the one at t + 1 (`data/packing.py`).
  As `head_cross_entropy`, and with its arguments, it holds the logits of `chunk` positions at a time. The backward pass
  computes them a second time, because only then it is known what each log-probability counts for.
  """
  groups = _Groups(weights_BT, chunk, shards)
  weights_GP = groups.loss_first(weights_BT)
  x_GPD = groups.of_x(x_BTD, weights_GP, place)
  with_loss_GP = (weights_GP > 0).astype(jnp.float32)
  targets_GP = groups.loss_first(targets_BT)
  return groups.restored(_log_probs(groups.sizes, place, frozen, x_GPD, head_VD, targets_GP, with_loss_GP))


class _Groups:
  """The positions of a batch in one group for each device, and in each group those with loss first.

  For B * T positions in G groups of P. `head_cross_entropy` says what `chunk` and `shards` are.
  """

  def __init__(self, weights_BT: jax.Array, chunk: int, shards: tuple[int, int]):
    self._shape = B, T = weights_BT.shape
    self._shards = rows, lengths = shards
    self._positions = P = B * T // (rows * lengths)
    self.sizes = _chunk_sizes(P, chunk)
    # False sorts before True: positions with loss come first. Stable, so that they keep their order.
    self._order_GP = jnp.argsort(self._grouped(weights_BT) <= 0, axis=1, stable=True)

  def _grouped(self, a: jax.Array) -> jax.Array:
    """[B, T, ...] -> [G, P, ...]"""
    B, T = self._shape
    rows, lengths = self._shards
    rest = a.shape[2:]
    parts = a.reshape(rows, B // rows, lengths, T // lengths, *rest).swapaxes(1, 2)
    return parts.reshape(rows * lengths, self._positions, *rest)

  def loss_first(self, a: jax.Array) -> jax.Array:
    """[B, T, ...] -> [G, P + the smallest size, ...]: positions with loss first, zeros last.

    The zeros are there because the last chunk may reach beyond the last position with loss.
    """
    rest = a.ndim - 2
    a = jnp.take_along_axis(self._grouped(a), self._order_GP.reshape(*self._order_GP.shape, *[1] * rest), axis=1)
    return jnp.pad(a, ((0, 0), (0, self.sizes[-1]), *[(0, 0)] * rest))

  def of_x(self, x_BTD: jax.Array, weights_GP: jax.Array, place: Placement) -> jax.Array:
    """`loss_first`, with zeros for the positions without loss that fill up the last chunk.

    A NaN in their x, times the weight 0, would be a NaN in the head's gradient.
    """
    return place(jnp.where(weights_GP[..., None] > 0, self.loss_first(x_BTD), 0), 'part', 'whole', 'width')

  def restored(self, a_GP: jax.Array) -> jax.Array:
    """[G, P + the smallest size] -> [B, T]: back from `loss_first`."""
    B, T = self._shape
    rows, lengths = self._shards
    a_GP = jnp.take_along_axis(a_GP[:, : self._positions], jnp.argsort(self._order_GP, axis=1), axis=1)
    return a_GP.reshape(rows, lengths, B // rows, T // lengths).swapaxes(1, 2).reshape(B, T)


def _chunk_sizes(positions: int, chunk: int) -> tuple[int, ...]:
  """(64, 32, 16, 8) for a chunk of 64: sizes of chunks, largest first, each at least 1."""
  largest = min(chunk, positions)
  return tuple(sorted({max(largest >> i, 1) for i in range(HALVINGS + 1)}, reverse=True))


def turns(positions: int, chunk: int) -> tuple[int, ...]:
  """How often the loop over chunks of each size runs for a group of `positions` that all have loss: see `_loop`."""
  sizes = _chunk_sizes(positions, chunk)
  counts = []
  left = positions
  for size in sizes:
    count = max(0, -(-(left - size + sizes[-1]) // size))  # rounded up
    counts.append(count)
    left -= count * size
  return tuple(counts)


# The derivative is written by hand: the forward pass computes the gradients too, chunk by chunk from the same logits.
# What it saves are these gradients, and the backward pass only scales them by that of the loss. JAX's own derivative
# would keep the logits of every chunk, or compute them a second time.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _head_loss(sizes, place, frozen, x_GPD, head_VD, targets_GP, weights_GP):
  return _loop(sizes, place, x_GPD, head_VD, targets_GP, weights_GP, weights_GP, jnp.float32(0), None)[0]


def _head_loss_forward(sizes, place, frozen, x_GPD, head_VD, targets_GP, weights_GP):
  zeros = _zeros(place, frozen, x_GPD, head_VD)
  loss, gradients = _loop(sizes, place, x_GPD, head_VD, targets_GP, weights_GP, weights_GP, jnp.float32(0), zeros)
  return loss, _in_their_layout(gradients, head_VD)


def _head_loss_backward(sizes, place, frozen, gradients, dloss):
  dx_GPD, dhead_VD = (None if x is None else (dloss * x).astype(x.dtype) for x in gradients)
  return dx_GPD, dhead_VD, None, None


_head_loss.defvjp(_head_loss_forward, _head_loss_backward)


# The same for log-probabilities. How much each of them counts is known only in the backward pass, which computes the
# logits a second time.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _log_probs(sizes, place, frozen, x_GPD, head_VD, targets_GP, with_loss_GP):
  zeros_GP = place(jnp.zeros_like(with_loss_GP), 'part', 'whole')
  return -_loop(sizes, place, x_GPD, head_VD, targets_GP, with_loss_GP, with_loss_GP, zeros_GP, None)[0]


def _log_probs_forward(sizes, place, frozen, x_GPD, head_VD, targets_GP, with_loss_GP):
  inputs = (x_GPD, head_VD, targets_GP, with_loss_GP)
  return _log_probs(sizes, place, frozen, *inputs), inputs


def _log_probs_backward(sizes, place, frozen, inputs, dlog_probs_GP):
  x_GPD, head_VD, targets_GP, with_loss_GP = inputs
  weights_GP = -dlog_probs_GP * with_loss_GP
  zeros = _zeros(place, frozen, x_GPD, head_VD)
  _, gradients = _loop(sizes, place, x_GPD, head_VD, targets_GP, weights_GP, with_loss_GP, jnp.float32(0), zeros)
  return *_in_their_layout(gradients, head_VD), None, None


_log_probs.defvjp(_log_probs_forward, _log_probs_backward)


def _zeros(place, frozen, x_GPD, head_VD):
  """The gradients before the first chunk: dx [G, P, D], and dhead [D, V] in float32, or None of a frozen head."""
  zero_dx = place(jnp.zeros_like(x_GPD), 'part', 'whole', 'width')
  return zero_dx, None if frozen else place(jnp.zeros(head_VD.shape[::-1], jnp.float32), 'vocab_width', 'vocab')


def _in_their_layout(gradients, head_VD):
  """dx [G, P, D] and dhead [V, D], or None, after the last chunk."""
  dx_GPD, dhead_DV = gradients
  if dhead_DV is None:
    return dx_GPD, None
  # Summed as [D, V], in which no chunk's product is transposed. As in `layers._linear`, the barrier keeps XLA from
  # moving the one transpose at the end back into the products.
  return dx_GPD, jax.lax.optimization_barrier(dhead_DV).T.astype(head_VD.dtype)


def _loop(sizes, place, x_GPD, head_VD, targets_GP, weights_GP, with_loss_GP, loss, gradients):
  """(loss, gradients) over all chunks of the positions where `with_loss_GP` is above 0.

  loss: zeros that come back filled in, each position's own [G, P] times its weight, or the sum of them, a scalar.
  gradients: of that sum, those of `_zeros`, which come back filled in; None computes the loss alone.
  """
  head_VD = place(head_VD.astype(x_GPD.dtype), 'vocab')
  most = jnp.max(jnp.sum(with_loss_GP > 0, axis=1))  # positions with loss in the fullest group

  def take(size, carry):
    """The next `size` positions of every group: C of the shapes below."""
    start, loss, gradients = carry
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)
    # First cut each group on its own device, then send the chunk to the devices that hold the head's rows.
    x_GCD = place(place(cut(x_GPD), 'part', 'whole', 'width'), 'vocab_parts', 'whole', 'width')
    targets_GC = place(place(cut(targets_GP), 'part', 'whole'), 'vocab_parts', 'whole')
    weights_GC = place(place(cut(weights_GP), 'part', 'whole'), 'vocab_parts', 'whole')

    logits_GCV = jnp.einsum('GCD,VD->GCV', x_GCD, head_VD, preferred_element_type=jnp.float32)
    logits_GCV = place(logits_GCV, 'vocab_parts', 'whole', 'vocab')
    lse_GC = jax.nn.logsumexp(logits_GCV, axis=-1)
    # Compare and sum instead of indexing, as in `cross_entropy`.
    is_target_GCV = jnp.arange(head_VD.shape[0]) == targets_GC[..., None]
    target_GC = jnp.sum(jnp.where(is_target_GCV, logits_GCV, 0), axis=-1)
    loss_GC = (lse_GC - target_GC) * weights_GC
    if loss.ndim:
      loss = jax.lax.dynamic_update_slice_in_dim(loss, place(loss_GC, 'part', 'whole'), start, axis=1)
    else:
      loss += jnp.sum(loss_GC)
    if gradients is None:
      return start + size, loss, None

    # d loss / d logits = weight * (softmax - one-hot target)
    dx_GPD, dhead_DV = gradients
    dlogits_GCV = weights_GC[..., None] * (jnp.exp(logits_GCV - lse_GC[..., None]) - is_target_GCV)
    dlogits_GCV = dlogits_GCV.astype(x_GCD.dtype)
    dx_GCD = place(jnp.einsum('GCV,VD->GCD', dlogits_GCV, head_VD), 'part', 'whole', 'width')
    dx_GPD = place(jax.lax.dynamic_update_slice_in_dim(dx_GPD, dx_GCD, start, axis=1), 'part', 'whole', 'width')
    if dhead_DV is not None:
      dhead_DV += jnp.einsum('GCD,GCV->DV', x_GCD, dlogits_GCV, preferred_element_type=jnp.float32)
      dhead_DV = place(dhead_DV, 'vocab_width', 'vocab')
    return start + size, loss, (dx_GPD, dhead_DV)

  carry = (jnp.int32(0), loss, gradients)
  for size in sizes:
    # Take a chunk of this size while it is full, or short of positions with loss by less than the smallest size.
    fills = lambda carry, size=size: most - carry[0] > size - sizes[-1]
    carry = jax.lax.while_loop(fills, functools.partial(take, size), carry)
  return carry[1:]


def divisor(sums: dict[str, jax.Array]) -> jax.Array:
  """What the sum of a loss is divided by: the number of its pairs, if it is one of pairs, or else of its tokens."""
  return jnp.maximum(sums.get('pairs', sums['loss_tokens']), 1)
