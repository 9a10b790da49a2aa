"""A KV cache as a value: fill, keep, compact, append. Every function returns a new one.

Axes: B batch, S or C rows, K key heads, D head width, E value width. Inside a cache heads stand
before rows, so that what a decoding step reads of a head is one piece of memory.
"""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.ops.cache.budgets import within_lengths


class KVCache(NamedTuple):
  """Rows kept of one layer; each head has its own.

  Attributes:
    k: [B, K, C, D].
    v: [B, K, C, E].
    positions: [B, K, C] int32, where in the text each row stood; -1 for rows that are not filled.
    lengths: [B, K] int32, filled rows; they stand in front. What stands behind has no meaning.
  """

  k: Array
  v: Array
  positions: Array
  lengths: Array


class Kept(NamedTuple):
  """Rows chosen for each head.

  Attributes:
    ids: [B, K, C] int32 row numbers, ascending; -1 behind the last.
    counts: [B, K] int32, how many.
  """

  ids: Array
  counts: Array


def empty(
  batch: int,
  key_heads: int,
  rows: int,
  width: int,
  value_width: int | None = None,
  dtype=jnp.float32,
) -> KVCache:
  """A cache without rows, with room for `rows` per head."""
  lead = batch, key_heads, rows
  value_width = width if value_width is None else value_width
  return KVCache(
    jnp.zeros((*lead, width), dtype),
    jnp.zeros((*lead, value_width), dtype),
    jnp.full(lead, -1, jnp.int32),
    jnp.zeros((batch, key_heads), jnp.int32),
  )


def fill(
  k: Array, v: Array, *, lengths: Array | None = None, capacity: int | None = None
) -> KVCache:
  """The cache after a prefill.

  Args:
    k: [B, S, K, D] float, as attention takes them.
    v: [B, S, K, E] like k.
    lengths: [B] int, rows of each batch entry; None: S.
    capacity: rows to make room for, at least S; None: S.
  """
  batch, rows, heads, _ = k.shape
  if v.shape[:3] != k.shape[:3]:
    raise ValueError(f"v must be [B, S, K, E] with [B, S, K] = {k.shape[:3]} of k: got {v.shape}")
  capacity = rows if capacity is None else capacity
  if capacity < rows:
    raise ValueError(f"capacity {capacity} is less than the {rows} rows of k")
  if lengths is None:
    lengths = jnp.full((batch,), rows, jnp.int32)
  room = lambda x: jnp.pad(jnp.moveaxis(x, 2, 1), ((0, 0), (0, 0), (0, capacity - rows), (0, 0)))
  lengths = jnp.broadcast_to(lengths.astype(jnp.int32)[:, None], (batch, heads))
  return KVCache(room(k), room(v), _positions(lengths, capacity), lengths)


def keep(
  scores: Array,
  budget: int | np.ndarray | Array,
  *,
  capacity: int | None = None,
  lengths: Array | None = None,
) -> Kept:
  """The rows with the largest scores, of equal ones the first.

  Args:
    scores: [B|1, K|1, S] float; -inf is never kept.
    budget: rows per head: an int, [K] or [B, K] ints. More than there are keeps all.
    capacity: C, the length of the lists; None: the largest budget where that is known while tracing
      (int or NumPy), else S.
    lengths: [B] or [B, K] int: rows at or past it are never kept. None: all rows are there.
  Returns:
    Kept, lists as long as the capacity, in order of position. Its batch entries and heads are those
    of the arguments together, 1 where none has more; `compact` repeats it.
  Raises:
    ValueError: shapes disagree, or the budget is not integer or negative.
  """
  if scores.ndim != 3:
    raise ValueError(f"scores must be [B, K, S]: got shape {scores.shape}")
  rows = scores.shape[2]
  known = not isinstance(budget, jax.Array)
  budgets = np.asarray(budget) if known else budget
  if budgets.ndim > 2 or not jnp.issubdtype(budgets.dtype, jnp.integer):
    raise ValueError(
      f"budget must be an int, or int [K] or [B, K]: got {budgets.dtype}{list(budgets.shape)}"
    )
  if known and budgets.size and budgets.min() < 0:
    raise ValueError(f"budget must not be negative: got {budgets.min()}")
  shapes = [scores.shape[:2], budgets.shape]
  if lengths is not None:
    shapes.append(lengths.shape if lengths.ndim == 2 else (*lengths.shape, 1))
  try:
    lead = np.broadcast_shapes(*shapes)
  except ValueError:
    raise ValueError(
      f"[B, K] of scores, budget and lengths disagree: got {', '.join(map(str, shapes))}"
    ) from None
  if capacity is None:
    capacity = int(budgets.max(initial=0)) if known else rows
  capacity = max(min(capacity, rows), 0)
  budgets = jnp.asarray(budgets, jnp.int32)
  budgets = jnp.reshape(budgets, (1,) * (2 - budgets.ndim) + budgets.shape)
  scores = jnp.broadcast_to(within_lengths(scores, lengths), (*lead, rows))
  values, ids = jax.lax.top_k(scores, capacity)
  place = jnp.arange(capacity, dtype=jnp.int32)[None, None, :]
  taken = (place < budgets[..., None]) & (values > -jnp.inf)
  # Row numbers past the end sort behind all others.
  ids = jnp.sort(jnp.where(taken, ids.astype(jnp.int32), rows), axis=-1)
  return Kept(jnp.where(ids == rows, -1, ids), taken.sum(-1, dtype=jnp.int32))


def gather(x: Array, ids: Array) -> Array:
  """Rows of each head: [B, K, S, ...], [B, K, C] -> [B, K, C, ...]; zeros where the id is -1."""
  take = lambda rows, ids: jnp.take(rows, jnp.maximum(ids, 0), axis=0, mode="clip")
  found = jax.vmap(jax.vmap(take))(x, ids)
  missing = jnp.reshape(ids < 0, ids.shape + (1,) * (x.ndim - 3))
  return jnp.where(missing, jnp.zeros_like(found), found)


def compact(cache: KVCache, kept: Kept, *, capacity: int | None = None) -> KVCache:
  """The cache with the kept rows only, in order.

  Args:
    cache: any.
    kept: rows of it, as `keep` returns them; rows that are not filled are left out.
    capacity: room for so many rows, at least those of `kept.ids`; None: as many.
  """
  lead = cache.lengths.shape
  if any(have not in (1, want) for have, want in zip(kept.ids.shape, lead)):
    raise ValueError(f"kept rows are for [B, K] = {kept.ids.shape[:2]}, the cache has {lead}")
  ids = jnp.broadcast_to(kept.ids, (*lead, kept.ids.shape[2]))
  # Ascending, so rows that are not filled are the last of each list.
  ids = jnp.where((ids >= 0) & (ids < cache.lengths[..., None]), ids, -1)
  lengths = (ids >= 0).sum(-1, dtype=jnp.int32)
  room = 0 if capacity is None else capacity - ids.shape[2]
  if room < 0:
    raise ValueError(f"capacity {capacity} is less than the {ids.shape[2]} rows of kept.ids")
  ids = jnp.pad(ids, ((0, 0), (0, 0), (0, room)), constant_values=-1)
  positions = jnp.where(ids < 0, -1, gather(cache.positions, ids))
  return KVCache(gather(cache.k, ids), gather(cache.v, ids), positions, lengths)


def append(
  cache: KVCache,
  k: Array,
  v: Array,
  position: Array | int | None = None,
  *,
  overwrite_after: int | None = None,
) -> KVCache:
  """The cache with one more row per head.

  Args:
    cache: any.
    k: [B, K, D], the new row.
    v: [B, K, E].
    position: int, [] or [B] int: where in the text it stands; None: one after the last of the head.
    overwrite_after: what happens in a head without room. None: the new row is dropped (make room
      first). An int n: it takes the place of the oldest row but for the first n rows, so a full
      cache is n sinks and a ring of recent rows. Order among rows does not matter to attention.
  """
  batch, heads, rows, _ = cache.k.shape
  for name, x, old in (("k", k, cache.k), ("v", v, cache.v)):
    if x.shape != (batch, heads, old.shape[3]):
      raise ValueError(
        f"{name} must be {(batch, heads, old.shape[3])} for this cache: got {x.shape}"
      )
  if overwrite_after is not None and not 0 <= overwrite_after < rows:
    raise ValueError(f"overwrite_after must be from 0 to {rows - 1}: got {overwrite_after}")
  if position is None:
    position = cache.positions.max(-1, initial=-1) + 1
  else:
    position = jnp.asarray(position, jnp.int32)
    position = jnp.broadcast_to(jnp.reshape(position, (-1, 1)), (batch, heads))
  place, full = cache.lengths, cache.lengths >= rows
  if overwrite_after is not None:
    oldest = overwrite_after + jnp.argmin(cache.positions[..., overwrite_after:], axis=-1)
    place = jnp.where(full, oldest.astype(jnp.int32), place)

  def write(old, new):
    # A row past the end is dropped.
    one = lambda old, new, place: old.at[place].set(new.astype(old.dtype), mode="drop")
    return jax.vmap(jax.vmap(one))(old, new, place)

  return KVCache(
    write(cache.k, k),
    write(cache.v, v),
    write(cache.positions, position),
    jnp.minimum(cache.lengths + 1, rows),
  )


def _positions(lengths: Array, rows: int) -> Array:
  position = jnp.broadcast_to(
    jnp.arange(rows, dtype=jnp.int32)[None, None, :], (*lengths.shape, rows)
  )
  return jnp.where(position < lengths[..., None], position, -1)
