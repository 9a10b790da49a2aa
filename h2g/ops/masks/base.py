"""What every mask shares: the tables it answers with, the tiles it is asked about, the algebra."""

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


def is_static(x) -> bool:
  """NumPy values are known while tracing; they may decide which blocks exist."""
  return isinstance(x, (int, np.integer, np.ndarray))


def low(a, b):
  """Elementwise minimum that stays in NumPy while both sides are NumPy."""
  return np.minimum(a, b) if is_static(a) and is_static(b) else jnp.minimum(a, b)


def high(a, b):
  return np.maximum(a, b) if is_static(a) and is_static(b) else jnp.maximum(a, b)


def three_valued(full, empty):
  """int8 table from two boolean tables of one shape."""
  xp = np if is_static(full) and is_static(empty) else jnp
  return xp.where(full, np.int8(FULL), xp.where(empty, np.int8(EMPTY), np.int8(PARTIAL))).astype(
    np.int8
  )


def unknown(blocks: Blocks) -> np.ndarray:
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
    return unknown(blocks)

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
    xp = np if is_static(table) else jnp
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
      return three_valued(
        split(allowed | outside).all((2, 4)), ~split(allowed & ~outside).any((2, 4))
      )

    table = jax.lax.map(row, jnp.arange(q_blocks, dtype=jnp.int32))
    from h2g.ops.masks import tables  # which stands on this file

    return tables.Tabulated(self, jnp.moveaxis(table, 0, 2), block_q, block_k)


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
  from h2g.ops.masks import kinds  # which stands on this file

  return x if isinstance(x, Mask) else kinds.dense(x)


class And(Mask):
  """Both attend."""

  FIELDS = ("left", "right")

  def evaluate(self, tile):
    return self.left.evaluate(tile) & self.right.evaluate(tile)

  def classify(self, blocks):
    return low(self.left.classify(blocks), self.right.classify(blocks))

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
    return high(self.left.classify(blocks), self.right.classify(blocks))

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
