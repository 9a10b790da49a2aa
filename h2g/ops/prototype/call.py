"""What every implementation of prototype attention takes and returns."""

import itertools
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp
import numpy as np


class PrototypeOut(NamedTuple):
  """Result of `prototype_attention`.

  prototypes: [B, Q, H, D] the chosen features.
  index: [B, H, Q] int32, which they are.
  """

  prototypes: Array
  index: Array


def take(x: Array, index: Array) -> Array:
  """[B, Q, H, D]: feature index[b,h,q] of head h, from x [B, N, H, D]."""
  return jnp.take_along_axis(x, index.swapaxes(1, 2)[..., None], axis=1)


def lifted(mask: Array, when_empty: str) -> Array:
  """The mask [B, Q, N] with the rows opened that see nothing, as `when_empty` says."""
  empty = ~mask.any(2, keepdims=True)
  if when_empty == "batch":
    empty = empty.all(1, keepdims=True)
  return mask | empty


def slabs(q: Array, x: Array, slab: int, *, rows: int) -> tuple[Array, Array, int]:
  """Heads narrower than `slab` numbers side by side in one, for kernels that read whole slabs.

  What does not fill its slabs is padded, which copies x.

  Returns:
    q: [B, H, Q', W], W = max(D', slab): each head's queries where its features lie in the slab,
      zeros elsewhere; Q' is Q in multiples of `rows`. D' is D, or what it is padded to so that it
      divides `slab` or is a multiple of it.
    x: [B, N, slabs W].
    heads per slab.
  """
  num_queries, heads, width = q.shape[1:]
  wide = width if width % slab == 0 else next(n for n in _widths(slab) if n >= width)
  if wide != width:
    q, x = (jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, wide - width))) for a in (q, x))
  side_by_side = max(slab // wide, 1)
  if more := -heads % side_by_side:
    x = jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))
  # [B, H, Q', side by side, D']: its own place of those in the slab.
  mine = np.arange(heads)[:, None] % side_by_side == np.arange(side_by_side)
  q = jnp.pad(q.swapaxes(1, 2), ((0, 0), (0, 0), (0, -num_queries % rows), (0, 0)))
  q = jnp.where(mine[None, :, None, :, None], q[:, :, :, None], 0)
  return q.reshape(*q.shape[:3], -1), x.reshape(*x.shape[:2], -1), side_by_side


def _widths(slab: int):
  """Divisors of `slab` in order, then its multiples."""
  yield from (n for n in range(1, slab + 1) if slab % n == 0)
  yield from itertools.count(2 * slab, slab)
