"""Dropout and key splitting as plain functions: no key means deterministic."""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.tiles import kept


def split(key: Array | None, num: int) -> list[Array | None]:
  """`num` independent keys, or `num` times None when there is no key (evaluation)."""
  return [None] * num if key is None else list(jax.random.split(key, num))


def dropout(
  x: Array, rate: float, key: Array | None, *, shared_axes: tuple[int, ...] = ()
) -> Array:
  """Inverted dropout: zero each entry with probability `rate`, scale the others by 1 / (1 - rate).

  Args:
    x: [...] float.
    rate: probability in [0, 1) of dropping an entry.
    key: PRNG key; None returns `x` unchanged (evaluation).
    shared_axes: axes along which entries drop together; all but the first is stochastic depth.
  Returns:
    Array like `x`.
  Source: Srivastava et al. 2014; stochastic depth arXiv 1603.09382.
  """
  if key is None or rate == 0.0:
    return x
  shape = tuple(1 if axis in shared_axes else size for axis, size in enumerate(x.shape))
  return jnp.where(kept(key, rate, shape), x / (1.0 - rate), 0).astype(x.dtype)
