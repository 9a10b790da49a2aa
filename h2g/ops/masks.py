"""Mask algebra: which query may attend to which key, as a small expression tree.

A mask is a predicate over four index arrays, `mask(query, key, head, batch)`, and `True` attends.
Masks combine with `&`, `|` and `~`, and are immutable pytrees: arrays inside are leaves,
everything else is static and hashable. Nothing of size [T, S] exists until somebody evaluates a
tile. Beside the predicate each mask can *bound the work*: for a block of queries against a block
of keys it says EMPTY, PARTIAL or FULL, so that an implementation skips the first kind, and
evaluates the predicate only for the second.

  mask = masks.causal() & masks.segments(document_ids) | masks.prefix(16)
  mask.dense(num_queries, num_keys)                    # bool [B|1, H|1, T, S], for looking at
  mask.block_table(num_queries, num_keys, 128, 128)    # int8 [B|1, H|1, T/128, S/128]

A new mask is a function of indices:

  def dilated(step):
    return masks.function(lambda query, key, head, batch: (query - key) % step == 0)

Axes: B batch, H heads, T queries, S keys. Broadcast axes have length 1 (written B|1, H|1).
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

EMPTY = 0
PARTIAL = 1
FULL = 2


class Blocks(NamedTuple):
  """Ranges of indices, both ends included, that `Mask.classify` tells apart.

  Attributes:
    q_lo: [num_q_blocks] int64 NumPy, first query of each block.
    q_hi: [num_q_blocks] last query of each block.
    k_lo: [num_k_blocks] first key of each block.
    k_hi: [num_k_blocks] last key of each block.
    static: True asks for a NumPy answer that holds whatever the arrays in the mask contain.
  """

  q_lo: np.ndarray
  q_hi: np.ndarray
  k_lo: np.ndarray
  k_hi: np.ndarray
  static: bool = False

  @property
  def shape(self) -> tuple[int, int]:
    return len(self.q_lo), len(self.k_lo)


class Corner(NamedTuple):
  """A box of batch entries, heads, queries and keys: first index and length along each.

  Attributes:
    starts: (batch, head, query, key), Python ints or int32 scalars.
    sizes: (batch, head, query, key), Python ints.
    aligned: starts along queries and keys are multiples of the sizes.
  """

  starts: tuple[Any, Any, Any, Any]
  sizes: tuple[int, int, int, int]
  aligned: bool


class Tile(NamedTuple):
  """Index arrays that broadcast against one another, and what is known about them.

  Attributes:
    query: int32 query positions.
    key: int32 key positions.
    head: int32 query-head numbers.
    batch: int32 batch numbers.
    corner: where the tile is a box laid out as [batch * heads, 1, queries, keys], that box; lets
      array-valued masks slice instead of gather. None where it is not.
  """

  query: Array
  key: Array
  head: Array
  batch: Array
  corner: Corner | None = None


def _is_static(x) -> bool:
  """NumPy values are known while tracing; they may decide which blocks exist."""
  return isinstance(x, (int, np.integer, np.ndarray))


def _low(a, b):
  """Elementwise minimum that stays in NumPy while both sides are NumPy."""
  return np.minimum(a, b) if _is_static(a) and _is_static(b) else jnp.minimum(a, b)


def _high(a, b):
  return np.maximum(a, b) if _is_static(a) and _is_static(b) else jnp.maximum(a, b)


def _three_valued(full, empty):
  """int8 table from two boolean tables of one shape."""
  xp = np if _is_static(full) and _is_static(empty) else jnp
  return xp.where(full, np.int8(FULL), xp.where(empty, np.int8(EMPTY), np.int8(PARTIAL))).astype(
    np.int8
  )


def _unknown(blocks: Blocks) -> np.ndarray:
  return np.full((1, 1, *blocks.shape), PARTIAL, np.int8)


class Mask:
  """Base of all masks: a subclass lists `FIELDS` and defines `evaluate`, often `classify`."""

  FIELDS: tuple[str, ...] = ()

  def __init__(self, *values):
    for name, value in zip(self.FIELDS, values, strict=True):
      object.__setattr__(self, name, value)

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    jax.tree_util.register_pytree_node(
      cls, _flatten, lambda aux, children: _unflatten(cls, aux, children)
    )

  def __setattr__(self, name, value):
    raise AttributeError(
      f"{type(self).__name__} is immutable: build a new mask instead of setting {name!r}"
    )

  def __repr__(self):
    parts = (
      f"{name}={value.dtype}{list(value.shape)}" if hasattr(value, "shape") else f"{name}={value!r}"
      for name, value in ((name, getattr(self, name)) for name in self.FIELDS)
    )
    return f"{type(self).__name__}({', '.join(parts)})"

  def __eq__(self, other):
    if not isinstance(other, Mask):
      return NotImplemented
    mine, my_tree = jax.tree.flatten(self)
    theirs, their_tree = jax.tree.flatten(other)
    return my_tree == their_tree and all(a is b for a, b in zip(mine, theirs))

  def __hash__(self):
    return hash(jax.tree.structure(self))

  def __and__(self, other) -> "Mask":
    return And(self, as_mask(other))

  def __rand__(self, other) -> "Mask":
    return And(as_mask(other), self)

  def __or__(self, other) -> "Mask":
    return Or(self, as_mask(other))

  def __ror__(self, other) -> "Mask":
    return Or(as_mask(other), self)

  def __invert__(self) -> "Mask":
    return Not(self)

  def __call__(self, query, key, head=0, batch=0) -> Array:
    """Evaluates the predicate.

    Args:
      query: int positions of queries, any shape that broadcasts with the others (equal ranks).
      key: int positions of keys.
      head: query heads.
      batch: batch entries.
    Returns:
      bool, of a shape that broadcasts to the broadcast of the arguments.
    """
    ids = [jnp.asarray(x, jnp.int32) for x in (query, key, head, batch)]
    rank = max(x.ndim for x in ids)
    return self.evaluate(
      Tile(
        *(x if x.ndim == rank else jnp.reshape(x, (1,) * (rank - x.ndim) + x.shape) for x in ids)
      )
    )

  def evaluate(self, tile: Tile) -> Array:
    raise NotImplementedError

  def classify(self, blocks: Blocks):
    """EMPTY, PARTIAL, FULL per pair of blocks: int8 [B|1, H|1, num_q_blocks, num_k_blocks].

    Must be right where it says EMPTY or FULL; PARTIAL is always allowed. NumPy where nothing but
    static values decide, a jax array where array contents do and `blocks.static` is False.
    """
    return _unknown(blocks)

  def axes(self) -> list[tuple[str | None, ...]]:
    """Which axis is batch "b" and which heads "h", per leaf in order (for sharding)."""
    return [(None,) * jnp.ndim(x) for x in jax.tree.leaves(self)]

  def shifted(self, batch, head) -> "Mask":
    """The same mask seen by a shard whose first entry is `batch` and whose first head is `head`.

    Only functions of indices change: arrays inside a mask are sharded like the operands and
    indexed locally.
    """
    return self

  def valid_keys(self, num_keys: int):
    """bool [B|1, S], False for keys nobody attends to; None where that is not cheap to know."""
    return None

  def valid_queries(self, num_queries: int):
    """bool [B|1, T], False for queries that attend to nothing; None where not cheap to know."""
    return None

  def check(self, batch: int, heads: int, num_queries: int, num_keys: int) -> None:
    """Raises ValueError where an array inside the mask does not fit operands of these sizes."""

  # What follows is derived and never overridden.

  def dense(self, num_queries: int, num_keys: int, *, heads: int = 1, batch: int = 1) -> Array:
    """The whole mask: bool [batch, heads, T, S]. For tests, pictures and the reference."""
    tile = Tile(
      jnp.arange(num_queries, dtype=jnp.int32)[None, None, :, None],
      jnp.arange(num_keys, dtype=jnp.int32)[None, None, None, :],
      jnp.arange(heads, dtype=jnp.int32)[None, :, None, None],
      jnp.arange(batch, dtype=jnp.int32)[:, None, None, None],
    )
    return jnp.broadcast_to(self.evaluate(tile), (batch, heads, num_queries, num_keys))

  def gathers(self) -> bool:
    """Whether evaluating without a `corner` costs a gather per pair of query and key."""
    return any(m.gathers() for m in (getattr(self, n) for n in self.FIELDS) if isinstance(m, Mask))

  def block_table(
    self, num_queries: int, num_keys: int, block_q: int, block_k: int, *, static: bool = False
  ):
    """What to do with each block of `block_q` queries against `block_k` keys.

    Args:
      num_queries: T.
      num_keys: S.
      block_q: queries per block; the last block may be shorter.
      block_k: keys per block.
      static: True returns NumPy whatever the mask holds: parts that depend on array contents count
        as PARTIAL.
    Returns:
      int8 [B|1, H|1, ceil(T/block_q), ceil(S/block_k)] of EMPTY, PARTIAL, FULL. NumPy where it is
      known while tracing, else a jax array computed on the device.
    """
    return self.classify(blocks_of(num_queries, num_keys, block_q, block_k, static=static))

  def block_bounds(
    self, num_queries: int, num_keys: int, block_q: int, block_k: int, *, static: bool = False
  ):
    """First and one-past-last key block that is not EMPTY, per block of queries.

    Returns:
      (start, stop), int32 [B|1, H|1, ceil(T/block_q)] each; (0, 0) where a block of queries
      attends to nothing.
    """
    table = self.block_table(num_queries, num_keys, block_q, block_k, static=static)
    xp = np if _is_static(table) else jnp
    some = table != EMPTY
    any_key = some.any(-1)
    start = xp.where(any_key, xp.argmax(some, axis=-1), 0)
    stop = xp.where(any_key, table.shape[-1] - xp.argmax(xp.flip(some, -1), axis=-1), 0)
    return start.astype(np.int32), stop.astype(np.int32)

  def tabulated(
    self,
    num_queries: int,
    num_keys: int,
    block_q: int,
    block_k: int,
    *,
    heads: int = 1,
    batch: int = 1,
  ) -> "Mask":
    """The same mask with an exact block table attached, found by evaluating every block once.

    For functions of indices, whose blocks nothing else can bound. Costs T * S predicate
    evaluations and the memory of one row of blocks; do it once and reuse the mask.

    Args:
      num_queries: T.
      num_keys: S.
      block_q: queries per block.
      block_k: keys per block.
      heads: H where the mask differs between heads, else 1.
      batch: B where it differs between batch entries, else 1.
    """
    q_blocks, k_blocks = -(-num_queries // block_q), -(-num_keys // block_k)
    key = jnp.arange(k_blocks * block_k, dtype=jnp.int32)
    inside_k = key < num_keys
    head = jnp.arange(heads, dtype=jnp.int32)[None, :, None, None]
    entry = jnp.arange(batch, dtype=jnp.int32)[:, None, None, None]

    def row(i):
      query = i * block_q + jnp.arange(block_q, dtype=jnp.int32)
      clipped = jnp.minimum(query, num_queries - 1)[None, None, :, None]
      allowed = self.evaluate(
        Tile(clipped, jnp.minimum(key, num_keys - 1)[None, None, None, :], head, entry)
      )
      allowed = jnp.broadcast_to(allowed, (batch, heads, block_q, k_blocks * block_k))
      outside = ~((query < num_queries)[None, None, :, None] & inside_k[None, None, None, :])
      split = lambda x: x.reshape(batch, heads, block_q, k_blocks, block_k)
      return _three_valued(
        split(allowed | outside).all((2, 4)), ~split(allowed & ~outside).any((2, 4))
      )

    table = jax.lax.map(row, jnp.arange(q_blocks, dtype=jnp.int32))
    return Tabulated(self, jnp.moveaxis(table, 0, 2), block_q, block_k)


def blocks_of(
  num_queries: int, num_keys: int, block_q: int, block_k: int, *, static: bool = False
) -> Blocks:
  """Cuts T queries and S keys into blocks; the last block of each ends where they end."""
  q_lo = np.arange(0, num_queries, block_q)
  k_lo = np.arange(0, num_keys, block_k)
  return Blocks(
    q_lo,
    np.minimum(q_lo + block_q, num_queries) - 1,
    k_lo,
    np.minimum(k_lo + block_k, num_keys) - 1,
    static,
  )


def _flatten(mask):
  """Plain Python values are static; whatever else stands in a field (masks, arrays) is a child."""
  children, static = [], []
  for name in mask.FIELDS:
    value = getattr(mask, name)
    fixed = value is None or isinstance(value, (bool, int, str)) or name in ("fn", "bound")
    static.append((True, value) if fixed else (False, None))
    if not fixed:
      children.append(value)
  return children, tuple(static)


def _unflatten(cls, static, children):
  children = iter(children)
  mask = object.__new__(cls)
  for name, (fixed, value) in zip(cls.FIELDS, static):
    object.__setattr__(mask, name, value if fixed else next(children))
  return mask


def as_mask(x) -> Mask:
  """A Mask as it is; a bool array [B|1, H|1, T|1, S|1] as a `dense` mask."""
  return x if isinstance(x, Mask) else dense(x)


def _number(name: str, value):
  """A Python int stays static; an array must be an integer scalar or [B]."""
  if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
    return int(value)
  if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.integer) or value.ndim > 1:
    raise ValueError(
      f"{name} must be an int, or an integer array of shape [] or [B]: got {value!r}"
    )
  return value


def _per_entry(value, tile: Tile):
  """A static number, a scalar array, or [B] read at the tile's batch entries."""
  if isinstance(value, int) or value.ndim == 0:
    return jnp.asarray(value, jnp.int32)
  return jnp.asarray(value, jnp.int32)[tile.batch]


def _entry_axes(value):
  return [] if isinstance(value, int) else [("b",) * value.ndim]


def _entry_blocks(value):
  """A per-entry number as something that broadcasts with [B|1, 1, num_q_blocks, num_k_blocks]."""
  if isinstance(value, int):
    return value
  xp = np if _is_static(value) else jnp
  return xp.reshape(xp.asarray(value), (-1, 1, 1, 1)).astype(np.int32)


def _check_entries(name: str, value, batch: int):
  if not isinstance(value, int) and value.ndim == 1 and value.shape[0] not in (1, batch):
    raise ValueError(f"mask {name} has shape {tuple(value.shape)} for a batch of {batch}")


def _ends(blocks: Blocks):
  """Block ends as int32 columns and rows that broadcast to [1, 1, num_q_blocks, num_k_blocks]."""
  column = lambda x: x.astype(np.int32)[None, None, :, None]
  row = lambda x: x.astype(np.int32)[None, None, None, :]
  return column(blocks.q_lo), column(blocks.q_hi), row(blocks.k_lo), row(blocks.k_hi)


class Full(Mask):
  """Everything attends."""

  def evaluate(self, tile):
    return jnp.ones((1,) * tile.query.ndim, bool)

  def classify(self, blocks):
    return np.full((1, 1, *blocks.shape), FULL, np.int8)


class Band(Mask):
  """query + offset - left <= key <= query + offset + right; None leaves that side open."""

  FIELDS = ("left", "right", "offset")

  def evaluate(self, tile):
    centre = tile.query + _per_entry_like(self.offset, tile)
    allowed = jnp.ones((1,) * tile.query.ndim, bool)
    if self.left is not None:
      allowed = allowed & (tile.key >= centre - self.left)
    if self.right is not None:
      allowed = allowed & (tile.key <= centre + self.right)
    return allowed

  def classify(self, blocks):
    if blocks.static and not _is_static(self.offset):
      return _unknown(blocks)
    q_lo, q_hi, k_lo, k_hi = _ends(blocks)
    offset = _entry_blocks(self.offset)
    full = np.ones((1, 1, *blocks.shape), bool)
    empty = ~full
    if self.left is not None:
      full = full & (k_lo >= q_hi + offset - self.left)
      empty = empty | (k_hi < q_lo + offset - self.left)
    if self.right is not None:
      full = full & (k_hi <= q_lo + offset + self.right)
      empty = empty | (k_lo > q_hi + offset + self.right)
    return _three_valued(full, empty)

  def axes(self):
    return _entry_axes(self.offset)

  def check(self, batch, heads, num_queries, num_keys):
    _check_entries("offset", self.offset, batch)


def _per_entry_like(value, tile: Tile):
  """`_per_entry` with the rank of the tile, so that ranks never have to be promoted."""
  x = _per_entry(value, tile)
  return jnp.reshape(x, (1,) * tile.query.ndim) if x.ndim == 0 else x


class Range(Mask):
  """start <= index < stop along keys (or queries), whatever the index of the other side."""

  FIELDS = ("start", "stop", "queries")

  def evaluate(self, tile):
    index = tile.query if self.queries else tile.key
    return (index >= _per_entry_like(self.start, tile)) & (index < _per_entry_like(self.stop, tile))

  def classify(self, blocks):
    if blocks.static and not (_is_static(self.start) and _is_static(self.stop)):
      return _unknown(blocks)
    q_lo, q_hi, k_lo, k_hi = _ends(blocks)
    lo, hi = (q_lo, q_hi) if self.queries else (k_lo, k_hi)
    start, stop = _entry_blocks(self.start), _entry_blocks(self.stop)
    whole = np.zeros((1, 1, *blocks.shape), bool)
    return _three_valued(
      whole | ((lo >= start) & (hi < stop)), whole | ((hi < start) | (lo >= stop))
    )

  def _valid(self, size):
    ids = jnp.arange(size, dtype=jnp.int32)[None, :]
    start, stop = (jnp.reshape(jnp.asarray(x, jnp.int32), (-1, 1)) for x in (self.start, self.stop))
    return (ids >= start) & (ids < stop)

  def valid_keys(self, num_keys):
    return None if self.queries else self._valid(num_keys)

  def valid_queries(self, num_queries):
    return self._valid(num_queries) if self.queries else None

  def axes(self):
    return _entry_axes(self.start) + _entry_axes(self.stop)

  def check(self, batch, heads, num_queries, num_keys):
    _check_entries("start", self.start, batch)
    _check_entries("stop", self.stop, batch)


class Segments(Mask):
  """q_ids[batch, query] == k_ids[batch, key], and neither is negative."""

  FIELDS = ("q_ids", "k_ids")

  def evaluate(self, tile):
    q_ids = _at(self.q_ids, tile.batch, tile.query)
    k_ids = _at(self.k_ids, tile.batch, tile.key)
    return (q_ids == k_ids) & (k_ids >= 0)

  def classify(self, blocks):
    known = _is_static(self.q_ids) and _is_static(self.k_ids)
    if blocks.static and not known:
      return _unknown(blocks)
    q_min, q_max = _extremes(self.q_ids, blocks.q_lo, blocks.q_hi)
    k_min, k_max = _extremes(self.k_ids, blocks.k_lo, blocks.k_hi)
    q_min, q_max = q_min[:, None, :, None], q_max[:, None, :, None]
    k_min, k_max = k_min[:, None, None, :], k_max[:, None, None, :]
    # Ids need not be sorted: ranges that do not meet are enough for EMPTY, one id on both sides
    # for FULL.
    full = (q_min == q_max) & (k_min == k_max) & (q_min == k_min) & (k_min >= 0)
    empty = (q_max < k_min) | (k_max < q_min) | (k_max < 0) | (q_max < 0)
    return _three_valued(full, empty)

  def valid_keys(self, num_keys):
    return jnp.asarray(self.k_ids) >= 0

  def valid_queries(self, num_queries):
    return jnp.asarray(self.q_ids) >= 0

  def axes(self):
    return [("b", None), ("b", None)]

  def check(self, batch, heads, num_queries, num_keys):
    for name, ids, size in (("q_ids", self.q_ids, num_queries), ("k_ids", self.k_ids, num_keys)):
      if ids.shape[0] not in (1, batch) or ids.shape[1] != size:
        raise ValueError(
          f"mask {name} has shape {tuple(ids.shape)}, expected [{batch} or 1, {size}]"
        )


def _at(ids, batch, index):
  """ids[batch, index] with a batch axis of length 1 standing for all."""
  ids = jnp.asarray(ids)
  return ids[jnp.zeros_like(batch) if ids.shape[0] == 1 else batch, index]


def _extremes(ids, lo, hi):
  """Least and greatest id in each block [lo, hi]; blocks are equally long but for the last."""
  xp = np if _is_static(ids) else jnp
  size = int(hi[0] - lo[0]) + 1
  padding = len(lo) * size - ids.shape[1]
  blocked = xp.pad(xp.asarray(ids), ((0, 0), (0, padding)), mode="edge").reshape(
    ids.shape[0], len(lo), size
  )
  return blocked.min(-1), blocked.max(-1)


class Dense(Mask):
  """A boolean array [B|1, H|1, T|1, S|1]."""

  FIELDS = ("array",)

  def evaluate(self, tile):
    array = jnp.asarray(self.array)
    if tile.corner is not None:
      return tile_of(array, tile.corner)
    ids = (tile.batch, tile.head, tile.query, tile.key)
    return array[tuple(jnp.zeros_like(i) if size == 1 else i for size, i in zip(array.shape, ids))]

  def classify(self, blocks):
    if blocks.static and not _is_static(self.array):
      return _unknown(blocks)
    xp = np if _is_static(self.array) else jnp
    array = xp.asarray(self.array)
    for axis, _, hi in ((2, blocks.q_lo, blocks.q_hi), (3, blocks.k_lo, blocks.k_hi)):
      if array.shape[axis] == 1:
        array = xp.repeat(array, int(hi[-1]) + 1, axis)
    some = _counts(array, blocks)
    area = (blocks.q_hi - blocks.q_lo + 1)[:, None] * (blocks.k_hi - blocks.k_lo + 1)[None, :]
    return _three_valued(some == area.astype(np.int32)[None, None], some == 0)

  def valid_keys(self, num_keys):
    valid = jnp.asarray(self.array).any((1, 2))
    return jnp.broadcast_to(valid, (valid.shape[0], num_keys))

  def valid_queries(self, num_queries):
    valid = jnp.asarray(self.array).any((1, 3))
    return jnp.broadcast_to(valid, (valid.shape[0], num_queries))

  def gathers(self):
    return True

  def axes(self):
    return [("b", "h", None, None)]

  def check(self, batch, heads, num_queries, num_keys):
    wanted = (batch, heads, num_queries, num_keys)
    if any(have not in (1, want) for have, want in zip(self.array.shape, wanted)):
      raise ValueError(
        f"mask has shape {tuple(self.array.shape)}, which does not broadcast to {wanted}"
      )


def tile_of(array: Array, corner: Corner) -> Array:
  """The box [batch * heads, 1, queries, keys] of an array [B|1, H|1, T|1, S|1], by one slice.

  Axes of length 1 stay so, except that batch entries and heads are repeated where only one varies.
  """
  starts = [0 if n == 1 else start for n, start in zip(array.shape, corner.starts)]
  box = slice_at(array, starts, [min(n, size) for n, size in zip(array.shape, corner.sizes)])
  entries, heads, *rest = box.shape
  if entries * heads > 1:
    entries, heads = corner.sizes[:2]
    box = jnp.broadcast_to(box, (entries, heads, *rest))
  return jnp.reshape(box, (entries * heads, 1, *rest))


def slice_at(array: Array, starts, sizes) -> Array:
  """A static slice where all starts are Python ints, else a dynamic one."""
  if all(isinstance(s, int) for s in starts):
    return jax.lax.slice(array, starts, [s + n for s, n in zip(starts, sizes)])
  return jax.lax.dynamic_slice(array, [jnp.asarray(s, jnp.int32) for s in starts], sizes)


def _counts(array, blocks: Blocks):
  """Number of true entries of [.., T, S] in each pair of blocks, from corners of a running sum."""
  xp = np if _is_static(array) else jnp
  total = xp.pad(
    xp.cumsum(xp.cumsum(array.astype(np.int32), 2), 3), ((0, 0), (0, 0), (1, 0), (1, 0))
  )
  rows = total[:, :, blocks.q_hi + 1] - total[:, :, blocks.q_lo]
  return rows[..., blocks.k_hi + 1] - rows[..., blocks.k_lo]


def _pooled(table, block_q: int, block_k: int, blocks: Blocks):
  """A table read at another block size: what all touched blocks share."""
  touched = Blocks(
    blocks.q_lo // block_q,
    np.minimum(blocks.q_hi // block_q, table.shape[2] - 1),
    blocks.k_lo // block_k,
    np.minimum(blocks.k_hi // block_k, table.shape[3] - 1),
  )
  xp = np if _is_static(table) else jnp
  table = xp.asarray(table)
  area = (
    (touched.q_hi - touched.q_lo + 1)[:, None] * (touched.k_hi - touched.k_lo + 1)[None, :]
  ).astype(np.int32)
  full, empty = _counts(table == FULL, touched), _counts(table == EMPTY, touched)
  return _three_valued(full == area[None, None], empty == area[None, None])


class BlockTable(Mask):
  """table[batch, head, query // block_q, key // block_k]."""

  FIELDS = ("table", "block_q", "block_k")

  def evaluate(self, tile):
    table = jnp.asarray(self.table)
    blocks = (1, 1, self.block_q, self.block_k)
    if tile.corner is not None and tile.corner.aligned:
      starts, sizes, _ = tile.corner
      if not any(n % b for n, b in zip(sizes, blocks)):
        coarse = Corner(
          tuple(start // b for start, b in zip(starts, blocks)),
          tuple(n // b for n, b in zip(sizes, blocks)),
          True,
        )
        return jnp.repeat(jnp.repeat(tile_of(table, coarse), self.block_q, 2), self.block_k, 3)
    ids = (tile.batch, tile.head, tile.query // self.block_q, tile.key // self.block_k)
    return table[
      tuple(
        jnp.zeros_like(i) if size == 1 and axis < 2 else i
        for axis, (size, i) in enumerate(zip(table.shape, ids))
      )
    ]

  def classify(self, blocks):
    if blocks.static and not _is_static(self.table):
      return _unknown(blocks)
    xp = np if _is_static(self.table) else jnp
    table = xp.where(xp.asarray(self.table), np.int8(FULL), np.int8(EMPTY))
    return _pooled(table, self.block_q, self.block_k, blocks)

  def gathers(self):
    return True

  def axes(self):
    return [("b", "h", None, None)]

  def check(self, batch, heads, num_queries, num_keys):
    wanted = (batch, heads, -(-num_queries // self.block_q), -(-num_keys // self.block_k))
    shape = tuple(self.table.shape)
    if shape[0] not in (1, batch) or shape[1] not in (1, heads) or shape[2:] != wanted[2:]:
      raise ValueError(
        f"block table is {shape}, expected [{batch}|1, {heads}|1, {wanted[2]}, {wanted[3]}] for "
        f"{num_queries} queries by {num_keys} keys in blocks of {self.block_q} by {self.block_k}"
      )


class Tabulated(Mask):
  """Another mask, with a three-valued table [B|1, H|1, .., ..] that says what its blocks hold."""

  FIELDS = ("mask", "table", "block_q", "block_k")

  def evaluate(self, tile):
    return self.mask.evaluate(tile)

  def classify(self, blocks):
    if blocks.static and not _is_static(self.table):
      return self.mask.classify(blocks)
    return _pooled(self.table, self.block_q, self.block_k, blocks)

  def axes(self):
    return [*self.mask.axes(), ("b", "h", None, None)]

  def shifted(self, batch, head):
    return Tabulated(self.mask.shifted(batch, head), self.table, self.block_q, self.block_k)

  def valid_keys(self, num_keys):
    return self.mask.valid_keys(num_keys)

  def valid_queries(self, num_queries):
    return self.mask.valid_queries(num_queries)

  def check(self, batch, heads, num_queries, num_keys):
    self.mask.check(batch, heads, num_queries, num_keys)
    BlockTable(self.table, self.block_q, self.block_k).check(batch, heads, num_queries, num_keys)


class Function(Mask):
  """fn(query, key, head, batch, *args): args are leaves, `bound` classifies blocks."""

  FIELDS = ("fn", "args", "bound", "origin")

  def evaluate(self, tile):
    head, batch = tile.head, tile.batch
    if self.origin is not None:
      batch, head = (x + jnp.reshape(o, (1,) * x.ndim) for x, o in zip((batch, head), self.origin))
    allowed = jnp.asarray(self.fn(tile.query, tile.key, head, batch, *self.args))
    if allowed.dtype != jnp.bool_:
      raise ValueError(f"a mask function must return bool, got {allowed.dtype} from {self.fn}")
    return allowed if allowed.ndim else jnp.reshape(allowed, (1,) * tile.query.ndim)

  def classify(self, blocks):
    return _unknown(blocks) if self.bound is None else self.bound(blocks)

  def shifted(self, batch, head):
    if self.origin is not None:
      batch, head = batch + self.origin[0], head + self.origin[1]
    return Function(self.fn, self.args, self.bound, (batch, head))


class And(Mask):
  """Both attend."""

  FIELDS = ("left", "right")

  def evaluate(self, tile):
    return self.left.evaluate(tile) & self.right.evaluate(tile)

  def classify(self, blocks):
    return _low(self.left.classify(blocks), self.right.classify(blocks))

  def axes(self):
    return self.left.axes() + self.right.axes()

  def shifted(self, batch, head):
    return type(self)(self.left.shifted(batch, head), self.right.shifted(batch, head))

  def _valid(self, name, size):
    left, right = getattr(self.left, name)(size), getattr(self.right, name)(size)
    return right if left is None else left if right is None else left & right

  def valid_keys(self, num_keys):
    return self._valid("valid_keys", num_keys)

  def valid_queries(self, num_queries):
    return self._valid("valid_queries", num_queries)

  def check(self, batch, heads, num_queries, num_keys):
    self.left.check(batch, heads, num_queries, num_keys)
    self.right.check(batch, heads, num_queries, num_keys)


class Or(And):
  """Either attends."""

  def evaluate(self, tile):
    return self.left.evaluate(tile) | self.right.evaluate(tile)

  def classify(self, blocks):
    return _high(self.left.classify(blocks), self.right.classify(blocks))

  def _valid(self, name, size):
    left, right = getattr(self.left, name)(size), getattr(self.right, name)(size)
    return None if left is None or right is None else left | right


class Not(Mask):
  """The mask does not attend."""

  FIELDS = ("mask",)

  def evaluate(self, tile):
    return ~self.mask.evaluate(tile)

  def classify(self, blocks):
    return np.int8(FULL) - self.mask.classify(blocks)

  def axes(self):
    return self.mask.axes()

  def shifted(self, batch, head):
    return Not(self.mask.shifted(batch, head))

  def check(self, batch, heads, num_queries, num_keys):
    self.mask.check(batch, heads, num_queries, num_keys)


def full() -> Mask:
  """Every query attends to every key."""
  return Full()


def causal(offset=0) -> Mask:
  """key <= query + offset.

  Args:
    offset: position of query 0 among the keys, in tokens: 0 for self-attention, S - T when the T
      queries are the last ones. int, or an int array [] or [B] where it is only known on the
      device (decoding).
  """
  return Band(None, 0, _number("offset", offset))


def window(left: int | None, right: int | None = 0, *, offset=0) -> Mask:
  """query + offset - left <= key <= query + offset + right.

  Args:
    left: keys before the query that it may attend to, in tokens; None for all of them.
    right: keys after the query; 0 makes the window causal, None leaves it open.
    offset: as in `causal`.
  """
  for name, side in (("left", left), ("right", right)):
    if side is not None and (not isinstance(side, int) or isinstance(side, bool)):
      raise ValueError(f"window {name} must be an int or None: got {side!r}")
  return Band(left, right, _number("offset", offset))


def segments(q_ids, k_ids=None) -> Mask:
  """Attention within segments (documents packed into one row).

  Args:
    q_ids: [B|1, T] int, segment of each query. Negative: padding, attends to nothing.
    k_ids: [B|1, S] int, segment of each key; q_ids where None.
  """
  k_ids = q_ids if k_ids is None else k_ids
  for name, ids in (("q_ids", q_ids), ("k_ids", k_ids)):
    if not hasattr(ids, "dtype") or ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
      raise ValueError(
        f"segment {name} must be an integer array of shape [B or 1, length]: got {ids!r}"
      )
  return Segments(q_ids, k_ids)


def prefix(length) -> Mask:
  """key < length: the first keys are for everybody; `causal() | prefix(n)` is the prefix LM.

  Args:
    length: int, or an int array [] or [B], in tokens.
  """
  return Range(0, _number("length", length), False)


def key_padding(lengths, starts=0) -> Mask:
  """starts <= key < lengths: other keys are padding; what stands there (NaN too) has no effect.

  Args:
    lengths: one past the last real key; int, or an int array [] or [B].
    starts: first real key (left padding), like lengths.
  """
  return Range(_number("starts", starts), _number("lengths", lengths), False)


def query_padding(lengths, starts=0) -> Mask:
  """starts <= query < lengths: other queries are padding, return zeros and pass no gradient."""
  return Range(_number("starts", starts), _number("lengths", lengths), True)


def block_table(table, block_q: int, block_k: int) -> Mask:
  """table[query // block_q, key // block_k].

  Args:
    table: bool [B|1, H|1, ceil(T/block_q), ceil(S/block_k)]; NumPy is known while tracing, so its
      empty blocks cost nothing at all; a jax array is read on the device.
    block_q: queries per block.
    block_k: keys per block.
  """
  if not hasattr(table, "dtype") or table.ndim != 4 or table.dtype != np.bool_:
    raise ValueError(
      f"block table must be a bool array [B|1, H|1, query blocks, key blocks]: got {table!r}"
    )
  return BlockTable(table, int(block_q), int(block_k))


def dense(array) -> Mask:
  """A boolean array [B|1, H|1, T|1, S|1], True attends."""
  if not hasattr(array, "dtype") or array.ndim != 4 or array.dtype != np.bool_:
    kind = f"{array.dtype}{list(array.shape)}" if hasattr(array, "dtype") else repr(array)
    raise ValueError(
      f"a dense mask must be bool of shape [B or 1, H or 1, T, S], True attends: got {kind}"
    )
  return Dense(array)


def function(fn: Callable[..., Array], *args, bound: Callable[[Blocks], Any] | None = None) -> Mask:
  """Any function of indices.

  Args:
    fn: `fn(query, key, head, batch, *args) -> bool`, elementwise over int32 arrays that broadcast.
      Must be hashable (a plain function or lambda is); make it once outside the training loop, or
      every new lambda compiles again.
    *args: pytrees of arrays that fn reads, such as a table of positions; they are leaves of the
      mask. Replicated where the operands are sharded; `head` and `batch` are always the global
      numbers.
    bound: `bound(blocks) -> int8 [B|1, H|1, q blocks, k blocks]`, NumPy, which blocks are EMPTY,
      PARTIAL, FULL. Without it every block is evaluated; `mask.tabulated(...)` finds out by itself.
  """
  return Function(fn, args, bound, None)
