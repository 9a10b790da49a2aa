"""The masks that people write: bands, ranges, segments, arrays, functions of indices."""

from collections.abc import Callable
from typing import Any

from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.ops.masks.base import Blocks
from h2g.ops.masks.base import FULL
from h2g.ops.masks.base import is_static
from h2g.ops.masks.base import Mask
from h2g.ops.masks.base import three_valued
from h2g.ops.masks.base import Tile
from h2g.ops.masks.base import tile_of
from h2g.ops.masks.base import unknown
from h2g.ops.masks.tables import counts


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
  xp = np if is_static(value) else jnp
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
    if blocks.static and not is_static(self.offset):
      return unknown(blocks)
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
    return three_valued(full, empty)

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
    if blocks.static and not (is_static(self.start) and is_static(self.stop)):
      return unknown(blocks)
    q_lo, q_hi, k_lo, k_hi = _ends(blocks)
    lo, hi = (q_lo, q_hi) if self.queries else (k_lo, k_hi)
    start, stop = _entry_blocks(self.start), _entry_blocks(self.stop)
    whole = np.zeros((1, 1, *blocks.shape), bool)
    return three_valued(
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
    known = is_static(self.q_ids) and is_static(self.k_ids)
    if blocks.static and not known:
      return unknown(blocks)
    q_min, q_max = _extremes(self.q_ids, blocks.q_lo, blocks.q_hi)
    k_min, k_max = _extremes(self.k_ids, blocks.k_lo, blocks.k_hi)
    q_min, q_max = q_min[:, None, :, None], q_max[:, None, :, None]
    k_min, k_max = k_min[:, None, None, :], k_max[:, None, None, :]
    # Ids need not be sorted: ranges that do not meet are enough for EMPTY, one id on both sides
    # for FULL.
    full = (q_min == q_max) & (k_min == k_max) & (q_min == k_min) & (k_min >= 0)
    empty = (q_max < k_min) | (k_max < q_min) | (k_max < 0) | (q_max < 0)
    return three_valued(full, empty)

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
  xp = np if is_static(ids) else jnp
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
    if blocks.static and not is_static(self.array):
      return unknown(blocks)
    xp = np if is_static(self.array) else jnp
    array = xp.asarray(self.array)
    for axis, _, hi in ((2, blocks.q_lo, blocks.q_hi), (3, blocks.k_lo, blocks.k_hi)):
      if array.shape[axis] == 1:
        array = xp.repeat(array, int(hi[-1]) + 1, axis)
    some = counts(array, blocks)
    area = (blocks.q_hi - blocks.q_lo + 1)[:, None] * (blocks.k_hi - blocks.k_lo + 1)[None, :]
    return three_valued(some == area.astype(np.int32)[None, None], some == 0)

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
    return unknown(blocks) if self.bound is None else self.bound(blocks)

  def shifted(self, batch, head):
    if self.origin is not None:
      batch, head = batch + self.origin[0], head + self.origin[1]
    return Function(self.fn, self.args, self.bound, (batch, head))


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
