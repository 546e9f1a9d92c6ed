"""Adam with its two moments in 16 or 8 bits, by stochastic rounding, for models whose float32 moments do not fit.

  bfloat16   2 bytes a moment
  float8     1 byte a moment (e4m3), and a float32 scale for each row along the last axis of a weight. The second moment
             is stored as its square root, because its own range is too wide for 8 bits.

Rounding to the nearest would lose every change that is smaller than half a step of the format: with beta2 0.999 the
second moment in bfloat16 would stop at once. Rounded up or down at random, the nearer side more often, it is right on
average (Gupta et al. 2015, arXiv 1502.02551; Dettmers et al. 2021, arXiv 2110.02861, for moments in 8 bits).
Vectors (norms, biases) keep float32 moments: they are small.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

FLOAT8 = jnp.float8_e4m3fn
_LARGEST = float(jnp.finfo(FLOAT8).max)  # 448
_SMALLEST = float(jnp.finfo(FLOAT8).smallest_subnormal)  # 2^-9


@dataclasses.dataclass(frozen=True)
class _Format:
  """Numbers with `mantissa` bits after the point, and below 2^exponent evenly spaced."""

  mantissa: int
  exponent: int


# bfloat16 has numbers down to 2^-133; below 2^-119 the step between two would be a float32 that devices take for 0.
_FORMATS = {jnp.dtype(jnp.bfloat16): _Format(7, -119), jnp.dtype(FLOAT8): _Format(3, -6)}


class SmallAdamState(NamedTuple):
  """The state of `scale_by_adam`. Each tree is like that of the weights."""

  count: jax.Array  # int32 [], updates made so far
  mu: dict  # mean of the gradients
  nu: dict  # mean of their squares; of a matrix in float8 the root of it
  mu_scale: dict  # of a matrix in float8: float32, its shape without the last axis; of others: a scalar without use
  nu_scale: dict


def scale_by_adam(
  b1: float, b2: float, eps: float, dtype: jnp.dtype, matrices: Callable[[dict], dict]
) -> optax.GradientTransformation:
  """As `optax.scale_by_adam`, with the moments of matrices stored in `dtype`, bfloat16 or FLOAT8.

  matrices: from a tree of weights to the same tree with True where a leaf is a matrix, or a stack of them.
  The update is computed in float32 from the new moments, before these are rounded. The random bits depend on the count,
  the weight and the place in it alone: a resumed run, or another mesh, rounds in the same way.
  """
  dtype = jnp.dtype(dtype)

  def init(params):
    def zeros(param, is_matrix):
      return jnp.zeros(param.shape, dtype if is_matrix else jnp.float32)

    def scales(param, is_matrix):
      return jnp.zeros(param.shape[:-1] if is_matrix and dtype == FLOAT8 else (), jnp.float32)

    trees = [jax.tree.map(make, params, matrices(params)) for make in (zeros, zeros, scales, scales)]
    return SmallAdamState(jnp.zeros((), jnp.int32), *trees)

  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    correction1, correction2 = (1 - decay ** count.astype(jnp.float32) for decay in (b1, b2))

    def update_one(number, grad, is_matrix, mu, nu, mu_scale, nu_scale):
      mu = b1 * _load(mu, mu_scale) + (1 - b1) * grad
      nu = b2 * _load_square(nu, nu_scale) + (1 - b2) * grad * grad
      direction = (mu / correction1) / (jnp.sqrt(nu / correction2) + eps)
      if not is_matrix:
        return direction, mu, nu, mu_scale, nu_scale
      bits = _random_bits(grad.shape, count, number)
      high, low = bits >> 16, bits & 0xFFFF
      if dtype == FLOAT8:
        mu, mu_scale = _store(mu, high)
        nu, nu_scale = _store(jnp.sqrt(nu), low)
      else:
        mu, nu = round_stochastically(mu, high, dtype), round_stochastically(nu, low, dtype)
      return direction, mu, nu, mu_scale, nu_scale

    leaves, tree = jax.tree.flatten(grads)
    others = [tree.flatten_up_to(part) for part in (matrices(grads), *state[1:])]
    results = map(update_one, itertools.count(), leaves, *others)
    directions, *moments = (tree.unflatten(part) for part in zip(*results, strict=True))
    return directions, SmallAdamState(count, *moments)

  return optax.GradientTransformation(init, update)


def _random_bits(shape: tuple[int, ...], count: jax.Array, number: int) -> jax.Array:
  """uint32 of this shape, from a hash (the finalizer of MurmurHash3) of the update, the weight's number and the place.

  `jax.random` takes many more operations, and compiling as much longer, for randomness that rounding does not need.
  """
  place = jnp.uint32(0)
  for axis, size in enumerate(shape):
    place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  mixed = _mix(count.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(number))
  return _mix(place ^ mixed)


def _mix(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def round_stochastically(x: jax.Array, bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """float32 `x` as one of its two neighbours in `dtype`, the nearer one more often: on average it is x.

  bits: uint32, 16 random bits for each number. x must be within the range of `dtype`.
  """
  form = _FORMATS[jnp.dtype(dtype)]
  # A float32 is a bit of sign, 8 bits of exponent plus 127, and 23 of mantissa.
  exponent = jax.lax.bitcast_convert_type(x, jnp.uint32) >> 23 & 0xFF
  exponent = jnp.maximum(exponent, 127 + form.exponent) - form.mantissa
  step = jax.lax.bitcast_convert_type(exponent << 23, jnp.float32)  # between two neighbours
  steps = x / step
  whole = jnp.floor(steps)
  # The threshold is above 0: a number that `dtype` has stays as it is.
  is_up = steps - whole > (bits.astype(jnp.float32) + 0.5) / 2**16
  return ((whole + is_up) * step).astype(dtype)


def _store(x: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(x in FLOAT8, the scale of each row): the largest number of a row becomes the largest of FLOAT8."""
  scale = jnp.max(jnp.abs(x), axis=-1) / _LARGEST
  divisor = jnp.where(scale > 0, scale, 1)
  # The quotient may exceed the largest by a rounding error, and FLOAT8 has no number above it.
  scaled = jnp.clip(x / divisor[..., None], -_LARGEST, _LARGEST)
  return round_stochastically(scaled, bits, FLOAT8), scale


def _load(x: jax.Array, scale: jax.Array) -> jax.Array:
  return x.astype(jnp.float32) * scale[..., None] if x.dtype == FLOAT8 else x.astype(jnp.float32)


def _load_square(x: jax.Array, scale: jax.Array) -> jax.Array:
  """The second moment. Where its root was rounded to 0 it is taken for half of the smallest number.

  The first moment may not be 0 there, and is divided by it.
  """
  if x.dtype != FLOAT8:
    return x.astype(jnp.float32)
  root = jnp.maximum(x.astype(jnp.float32), _SMALLEST / 2) * scale[..., None]
  return root * root
