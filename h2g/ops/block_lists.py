"""Lists of the tiles that a flash kernel visits, and a mask as arrays that it loads.

Shared by the kernels of GPU and TPU; computed outside of them, in NumPy where the table is known
while tracing and on the device where array contents decide.

Axes: B batch, H heads, T queries, S keys, N tiles of queries, M tiles of keys, W entries per list.
L is 1, K (key heads) or H: head h reads list h * L // H.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.ops import masks


class Pairs(NamedTuple):
  """The tiles that a kernel visits, row after row of a table, in one list.

  A row that meets nothing keeps one entry, EMPTY, since what belongs to it must still be written.

  Attributes:
    codes: [B|1, L, P] int32, see `decoded`; those behind the end of a list are EMPTY and stay in
      its last row.
    steps: no list is longer: P where that is known while tracing, else int32 [].
  """

  codes: Any
  steps: Any


class Lists(NamedTuple):
  """For each tile on one side the tiles of the other side that it meets.

  FULL tiles come first, which need no mask, then PARTIAL ones; each kind ascending.

  Attributes:
    ids: [B|1, L, N, W] int32; entries behind `counts` repeat the last one that counts.
    full: [B|1, L, N] int32, how many entries are FULL.
    counts: [B|1, L, N] int32, how many entries count.
  """

  ids: Any
  full: Any
  counts: Any


def from_table(table) -> Lists:
  """Lists of what a table does not call EMPTY.

  Args:
    table: int8 [B|1, L, N, M] of `masks.EMPTY`, `PARTIAL`, `FULL`. NumPy gives lists as long as the
      longest, a device array lists of M.
  """
  xp = np if isinstance(table, np.ndarray) else jnp
  full = (table == masks.FULL).sum(-1, dtype=np.int32)
  counts = (table != masks.EMPTY).sum(-1, dtype=np.int32)
  # FULL is the largest of the three kinds, so that a stable sort downwards keeps numbers ascending.
  order = masks.FULL - table
  if xp is np:
    width = max(int(counts.max(initial=0)), 1)
    ids = np.argsort(order, axis=-1, kind="stable")[..., :width]
  else:
    ids = jnp.argsort(order, axis=-1, stable=True)
  last = xp.maximum(counts - 1, 0)[..., None]
  places = xp.minimum(np.arange(ids.shape[-1], dtype=np.int32)[None, None, None, :], last)
  return Lists(xp.take_along_axis(ids, places, axis=-1).astype(np.int32), full, counts)


def transposed(table) -> Lists:
  """Lists [B|1, L, M, ..] of query tiles for each tile of keys."""
  return from_table(table.swapaxes(-1, -2))


# Bits of a code, from the top: row, column, kind.
_COLUMN_BITS, _KIND_BITS = 15, 2
MOST_ROWS, MOST_COLUMNS = 1 << 14, 1 << _COLUMN_BITS


def pairs(table) -> Pairs:
  """All that a table does not call EMPTY, by row and then by column.

  Args:
    table: int8 [B|1, L, N, M], with N <= MOST_ROWS and M <= MOST_COLUMNS. NumPy gives lists as long
      as the longest, a device array lists of N * M.
  """
  xp = np if isinstance(table, np.ndarray) else jnp
  columns = table.shape[3]
  visited = table != masks.EMPTY
  lonely = ~visited.any(-1)
  first = np.arange(columns) == 0
  visited = (visited | (lonely[..., None] & first[None, None, None, :])).reshape(
    *table.shape[:2], -1
  )
  counts = visited.sum(-1, dtype=np.int32)
  if xp is np:
    steps = int(counts.max())
    places = np.argsort(~visited, axis=-1, kind="stable")[..., :steps].astype(np.int32)
  else:
    steps = counts.max()
    places = jnp.argsort(~visited, axis=-1, stable=True).astype(np.int32)
  order = np.arange(places.shape[-1], dtype=np.int32)[None, None, :]
  ended = order >= counts[..., None]
  last = xp.minimum(order, counts[..., None] - 1)
  places = xp.take_along_axis(places, last, axis=-1)
  kinds = xp.take_along_axis(table.reshape(visited.shape).astype(np.int32), places, axis=-1)
  kinds = xp.where(ended, np.int32(masks.EMPTY), kinds)
  row, column = places // np.int32(columns), places % np.int32(columns)
  codes = ((row << _COLUMN_BITS | column) << _KIND_BITS) | kinds
  return Pairs(codes.astype(np.int32), steps)


def decoded(code):
  """(row, column, kind) of an entry of `Pairs.codes`."""
  column = (code >> _KIND_BITS) & (MOST_COLUMNS - 1)
  return code >> (_COLUMN_BITS + _KIND_BITS), column, code & ((1 << _KIND_BITS) - 1)


def table_of_mask(
  mask: masks.Mask | None, num_queries: int, num_keys: int, tile_q: int, tile_k: int
):
  """int8 [B|1, H|1, N, M], in which tiles that reach past the last key are never FULL."""
  mask = masks.full() if mask is None else mask
  table = mask.block_table(num_queries, num_keys, tile_q, tile_k)
  if num_keys % tile_k:
    xp = np if isinstance(table, np.ndarray) else jnp
    inside = np.full(table.shape[-1], masks.FULL, np.int8)
    inside[-1] = masks.PARTIAL
    table = xp.minimum(table, inside[None, None, None, :])
  return table


def table_of_lists(ids, counts, num_key_blocks: int):
  """int8 [B|1, L, N, M], FULL where a block is among the first `counts` of its list.

  Args:
    ids: [B|1, L, N, W] int, without entries outside 0 .. M - 1 among the first `counts`.
    counts: [B|1, L, N] int.
    num_key_blocks: M.
  """
  static = isinstance(ids, np.ndarray) and isinstance(counts, np.ndarray)
  xp = np if static else jnp
  place = np.arange(ids.shape[-1], dtype=np.int32)[None, None, None, :]
  valid = place < xp.asarray(counts)[..., None]
  places = xp.where(valid, xp.asarray(ids), num_key_blocks)
  shape = (*ids.shape[:-1], num_key_blocks + 1)
  if static:
    table = np.zeros(shape, np.int8)
    np.put_along_axis(table, places, np.int8(masks.FULL), axis=-1)
  else:
    flat = places.reshape(-1, ids.shape[-1])
    rows = jnp.arange(flat.shape[0], dtype=jnp.int32)[:, None]
    table = jnp.zeros((flat.shape[0], num_key_blocks + 1), jnp.int8)
    table = table.at[rows, flat].set(jnp.int8(masks.FULL)).reshape(shape)
  return table[..., :num_key_blocks]


def refined(table, times_q: int, times_k: int, shape: tuple[int, int]):
  """The same table over smaller tiles, cut to `shape` tiles."""
  xp = np if isinstance(table, np.ndarray) else jnp
  table = xp.repeat(xp.repeat(table, times_q, axis=-2), times_k, axis=-1)
  return table[..., : shape[0], : shape[1]]


def both(one, other, heads: int):
  """The table of what stands in both, where heads of one may share a list of the other."""
  xp = np if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) else jnp
  lists = max(one.shape[1], other.shape[1])
  spread = lambda x: x if x.shape[1] in (1, lists) else xp.repeat(x, lists // x.shape[1], axis=1)
  if heads % lists:
    raise ValueError(f"{lists} lists do not divide {heads} heads")
  return xp.minimum(spread(xp.asarray(one)), spread(xp.asarray(other)))


# Masks as arrays to load, and a function of what was loaded.


class MaskProgram(NamedTuple):
  """What a kernel does to know which pairs of a tile attend.

  Attributes:
    arrays: each [B|1, H|1, T|1, S|1], or a table of blocks [B|1, H|1, T / b, S / c] in `blocks`. A
      kernel loads the part that meets its tile, in a form that broadcasts against [queries, keys].
      Booleans are stored as int8.
    blocks: for each array None, or the (queries, keys) of its blocks, which are whole tiles: the
      kernel loads the one entry at (query // b, key // c).
    attends: `attends(query, key, head, batch, loaded) -> bool` of index arrays [queries, keys],
      int32 scalars, and the loaded parts; None where all pairs attend.
  """

  arrays: tuple[Array, ...]
  blocks: tuple[tuple[int, int] | None, ...]
  attends: Callable[..., Array] | None


def mask_program(mask: masks.Mask | None, tile_q: int, tile_k: int, name: str) -> MaskProgram:
  """The program of a mask for tiles of this size.

  Args:
    mask: the mask, or None.
    tile_q: queries per tile, by which blocks of block tables must be divisible.
    tile_k: keys per tile, likewise.
    name: of the implementation, for messages.
  Raises:
    NotImplementedError: the mask holds a kind that has no such form; the message says which.
  """
  arrays: list[Array] = []
  blocks: list[tuple[int, int] | None] = []

  def refuse(reason: str):
    raise NotImplementedError(f"{name} cannot serve mask: {reason}")

  def loads(array, block=None):
    """Registers an array; returns a function of the loaded parts that picks its own."""
    place = len(arrays)
    arrays.append(array)
    blocks.append(block)
    return lambda loaded: loaded[place]

  def number(value):
    """A static number, or an array [] or [B], as a function of the loaded parts."""
    if isinstance(value, int):
      return lambda loaded: value
    return loads(jnp.reshape(jnp.asarray(value, jnp.int32), (-1, 1, 1, 1)))

  def build(mask) -> Callable[..., Array] | None:
    if isinstance(mask, masks.Full):
      return None
    if isinstance(mask, masks.Band):
      left, right, offset = mask.left, mask.right, number(mask.offset)

      def band(query, key, head, batch, loaded):
        distance = key - query
        shift = offset(loaded)
        low = None if left is None else distance >= shift - left
        high = None if right is None else distance <= shift + right
        return high if low is None else low if high is None else low & high

      return None if left is None and right is None else band
    if isinstance(mask, masks.Range):
      start, stop, queries = number(mask.start), number(mask.stop), mask.queries

      def within(query, key, head, batch, loaded):
        index = query if queries else key
        return (index >= start(loaded)) & (index < stop(loaded))

      return within
    if isinstance(mask, masks.Segments):
      q_ids = loads(jnp.asarray(mask.q_ids, jnp.int32)[:, None, :, None])
      k_ids = loads(jnp.asarray(mask.k_ids, jnp.int32)[:, None, None, :])

      def same(query, key, head, batch, loaded):
        q, k = q_ids(loaded), k_ids(loaded)
        return (q == k) & (k >= 0)

      return same
    if isinstance(mask, masks.Dense):
      bits = loads(jnp.asarray(mask.array).astype(jnp.int8))
      return lambda query, key, head, batch, loaded: bits(loaded) != 0
    if isinstance(mask, masks.BlockTable):
      if mask.block_q % tile_q or mask.block_k % tile_k:
        refuse(
          f"a block table in blocks of {mask.block_q} by {mask.block_k}, which are not whole tiles "
          f"of {tile_q} by {tile_k}"
        )
      entry = loads(jnp.asarray(mask.table).astype(jnp.int8), (mask.block_q, mask.block_k))
      return lambda query, key, head, batch, loaded: entry(loaded) != 0
    if isinstance(mask, masks.Tabulated):
      return build(mask.mask)
    if isinstance(mask, masks.Function):
      if jax.tree.leaves(mask.args):
        refuse("a function of indices that reads arrays")
      fn, args, origin = mask.fn, mask.args, mask.origin
      shifts = None if origin is None else tuple(number(jnp.asarray(o)) for o in origin)

      def function(query, key, head, batch, loaded):
        if shifts is not None:
          batch, head = batch + shifts[0](loaded), head + shifts[1](loaded)
        return fn(query, key, head, batch, *args)

      return function
    if isinstance(mask, masks.Not):
      inner = build(mask.mask)
      if inner is None:
        return lambda query, key, head, batch, loaded: query < 0
      return lambda *args: ~inner(*args)
    if type(mask) in (masks.And, masks.Or):
      parts = build(mask.left), build(mask.right)
      if None in parts:
        one = parts[1] if parts[0] is None else parts[0]
        return None if type(mask) is masks.Or else one
      if type(mask) is masks.And:
        return lambda *args: parts[0](*args) & parts[1](*args)
      return lambda *args: parts[0](*args) | parts[1](*args)
    return refuse(f"{type(mask).__name__} has no form for tiles")

  attends = None if mask is None else build(mask)
  return MaskProgram(tuple(arrays), tuple(blocks), attends)


def tile_for(mask: masks.Mask | None, largest: int, least: int) -> tuple[int, int]:
  """Largest (queries, keys) of a tile, powers of two between the bounds, that divide all blocks."""
  sides = [largest, largest]

  def walk(mask):
    if isinstance(mask, masks.BlockTable):
      for at, size in enumerate((mask.block_q, mask.block_k)):
        sides[at] = max(min(sides[at], math.gcd(size, largest)), least)
    for field in getattr(mask, "FIELDS", ()):
      inner = getattr(mask, field)
      if isinstance(inner, masks.Mask):
        walk(inner)

  walk(mask)
  return sides[0], sides[1]
