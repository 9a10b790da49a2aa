"""Block-sparse attention from plain XLA operations: gathers of blocks, matmuls, no scatter.

Plan. A few blocks of queries are taken at a time. For them the listed blocks of keys are gathered,
a slab of list entries at a time, and added to an online softmax; a loop runs as far as the longest
list among those rows, which are therefore taken in order of length: a table with a few long rows
costs what it holds. Query heads of one key head, and the queries of a block, are the rows of one
matmul.

The backward pass recomputes logits from the saved log-sum-exp, twice: by query block for dq, and by
key block for dk and dv, along the transposed lists (a sort of the table's entries). So every sum is
over gathered rows in a fixed order: no scatter-add, and the same bits every time. Memory beyond the
operands: one slab, and the lists.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops.masks import Tile
from h2g.ops.sparse.call import capped
from h2g.ops.sparse.call import Operands
from h2g.ops.sparse.call import Spec
from h2g.ops.tiles import accumulator_dtype

# A CPU wants a slab of logits in its caches, accelerators few large launches.
_TILE_BYTES = dict(cpu=1 << 20, gpu=256 << 20, tpu=256 << 20)
_PARTS = dict(cpu=2, gpu=1, tpu=1)  # of a turn that are computed side by side
_SLAB = dict(cpu=128, gpu=2048, tpu=2048)  # keys, or queries, per slab


class Lists(NamedTuple):
  """A list of blocks for each of N rows, all in one array.

  Attributes:
    start: [b, h, N] first entry of each list.
    count: [b, h, N] its length.
    entries: [b, h, entries] numbers of blocks on the other side.
    longest: no list is longer.
  """

  start: Array
  count: Array
  entries: Array
  longest: int


def block_sparse_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.sparse.block_sparse_attention`. Serves every call."""
  ids, counts = (jnp.asarray(x, jnp.int32) for x in (operands.ids, operands.counts))
  longest = _longest_by_key(operands.ids, operands.counts)
  return _attend(operands._replace(ids=ids, counts=counts), (spec, longest))


def _longest_by_key(ids, counts) -> int:
  """How many blocks of queries attend to one of keys, at most; exact for a static table."""
  if not (isinstance(ids, np.ndarray) and isinstance(counts, np.ndarray)):
    return ids.shape[2]
  listed = ids[np.arange(ids.shape[3])[None, None, None, :] < counts[..., None]]
  lists = np.flatnonzero(np.ones(counts.shape)).repeat(counts.ravel()) // ids.shape[2]
  if not listed.size:
    return 1
  return int(np.bincount(lists * (listed.max() + 1) + listed).max())


@dataclasses.dataclass(frozen=True)
class Scene:
  """Sizes and steps that all passes share.

  Attributes:
    spec: of the call.
    mask: of the call.
    sizes: (B, T, S, H, K).
    dtype: of accumulators and logits.
    operand_dtype: of what goes into matmuls: as it comes on accelerators.
  """

  spec: Spec
  mask: Any
  sizes: tuple[int, int, int, int, int]
  dtype: Any
  operand_dtype: Any

  @property
  def groups(self) -> int:
    return self.sizes[3] // self.sizes[4]

  def cut(self, x: Array, size: int) -> Array:
    """[B, T, heads, F] -> [B, K, blocks, heads / K * size, F]: heads first, zeros past T."""
    batch, length, heads, width = x.shape
    blocks, key_heads = -(-length // size), self.sizes[4]
    x = jnp.pad(x, ((0, 0), (0, blocks * size - length), (0, 0), (0, 0)))
    x = jnp.reshape(x, (batch, blocks, size, key_heads, heads // key_heads, width))
    return jnp.reshape(jnp.transpose(x, (0, 3, 1, 4, 2, 5)), (batch, key_heads, blocks, -1, width))

  def paste(self, x: Array, length: int, size: int) -> Array:
    """The inverse of `cut`."""
    batch, key_heads, blocks, rows, width = x.shape
    x = jnp.reshape(x, (batch, key_heads, blocks, rows // size, size, width))
    x = jnp.transpose(x, (0, 2, 4, 1, 3, 5))
    return jnp.reshape(x, (batch, blocks * size, -1, width))[:, :length]

  def cut_rows(self, x: Array) -> Array:
    """[B, H, T] -> [B, K, N, G * block_q, 1]."""
    return self.cut(jnp.moveaxis(x, 1, 2)[..., None], self.spec.block_q)

  def dot(self, a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Product of the last two axes' matrices."""
    a, b = a.astype(self.operand_dtype), b.astype(self.operand_dtype)
    lanes = tuple(range(a.ndim - 2))
    exact = None if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    dims = (((a.ndim + axis_a,), (b.ndim + axis_b,)), (lanes, lanes))
    return jax.lax.dot_general(a, b, dims, precision=exact, preferred_element_type=self.dtype)

  def masked(
    self, logits: Array, axes: tuple[int, int, int], query_blocks, key_blocks, valid
  ) -> Array:
    """-inf where a pair does not attend.

    Args:
      logits: rank 8, [B, K, R, ...].
      axes: which axes are query heads of a key head, queries of a block, keys of a block.
      query_blocks: int32 numbers of blocks that broadcast against the logits.
      key_blocks: likewise.
      valid: bool likewise, which pairs of blocks are listed.
    """
    batch, num_queries, num_keys, heads, key_heads = self.sizes
    spec, (of_group, of_query, of_key) = self.spec, axes
    ids = lambda n, axis: jnp.reshape(
      jnp.arange(n, dtype=jnp.int32), [n if i == axis else 1 for i in range(8)]
    )
    query = query_blocks * spec.block_q + ids(spec.block_q, of_query)
    key = key_blocks * spec.block_k + ids(spec.block_k, of_key)
    allowed = valid & (key < num_keys)
    if self.mask is not None:
      # Padding of the last blocks must not index past what the mask holds.
      inside = lambda x, n: jnp.minimum(x, jnp.int32(n - 1))
      head = ids(key_heads, 1) * self.groups + ids(heads // key_heads, of_group)
      allowed = allowed & self.mask.evaluate(
        Tile(inside(query, num_queries), inside(key, num_keys), head, ids(batch, 0))
      )
    return jnp.where(allowed, logits, -jnp.inf)

  def over_rows(self, lists: Lists, size: int, other: int, inputs, steps: "Steps") -> Any:
    """Goes through all lists, those of some rows at a time; results are joined.

    Args:
      lists: of N rows.
      size: rows of the matmul per row and key head: queries of all its heads, or keys.
      other: its columns per block of the other side, likewise.
      inputs: pytree of [B, K, N, ...].
      steps: what happens.
    """
    platform = dispatch.platform()
    num = lists.count.shape[2]
    slab = max(1, min(lists.longest, _SLAB[platform] // other))
    per_row = self.sizes[0] * self.sizes[4] * size * slab * other * 4
    turns = -(-num // max(1, _TILE_BYTES[platform] // per_row))
    # Parts of a turn are independent, so that one fills the cores while another waits.
    parts = min(_PARTS[platform], num)
    rows = -(-num // (turns * parts))
    turns = -(-num // (rows * parts))

    def fill(x):
      padding = [(0, 0)] * x.ndim
      padding[2] = (0, turns * parts * rows - num)
      return jnp.pad(x, padding)

    filled = jax.tree.map(fill, (lists.start, lists.count, inputs))
    # A turn runs as far as its longest list: those of about one length go together.
    sort = turns > 1 and lists.longest > slab
    order = jnp.argsort(-filled[1].max((0, 1))).astype(jnp.int32) if sort else None

    def listed(i, start, count):
      """(ids, valid) of the i-th slab."""
      place = i * slab + jnp.arange(slab, dtype=jnp.int32)[None, None, None, :]
      at = start[..., None] + place
      ids = jnp.take_along_axis(
        lists.entries, jnp.reshape(at, (*at.shape[:2], -1)), axis=2, mode="clip"
      )
      return jnp.reshape(ids, at.shape), place < count[..., None]

    def turn(n):
      groups = []
      for at in range(parts):
        first = (n * parts + at) * rows
        numbers = first + jnp.arange(rows, dtype=jnp.int32)
        take = functools.partial(
          jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=rows, axis=2
        )
        if sort:
          numbers = jax.lax.dynamic_slice_in_dim(order, first, rows)
          take = functools.partial(jnp.take, indices=numbers, axis=2, mode="clip")
        groups.append((numbers, *jax.tree.map(take, filled)))

      def body(i, states):
        return [
          steps.add(state, part, numbers, *listed(i, start, count))
          for state, (numbers, start, count, part) in zip(states, groups)
        ]

      longest = functools.reduce(jnp.maximum, [jnp.max(count) for _, _, count, _ in groups])
      states = [steps.start(part) for *_, part in groups]
      states = jax.lax.fori_loop(0, -(-longest // slab), body, states)
      found = [steps.finish(state, part) for state, (*_, part) in zip(states, groups)]
      return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=2), *found)

    if turns == 1:
      return jax.tree.map(lambda x: x[:, :, :num], turn(0))
    found = jax.lax.map(turn, jnp.arange(turns, dtype=jnp.int32))
    back = jnp.argsort(order).astype(jnp.int32)[:num] if sort else None

    def join(x):
      x = jnp.moveaxis(x, 0, 2)
      x = jnp.reshape(x, (*x.shape[:2], turns * parts * rows, *x.shape[4:]))
      return jnp.take(x, back, axis=2) if sort else x[:, :, :num]

    return jax.tree.map(join, found)


class Steps(NamedTuple):
  """What is done along the lists of R rows.

  Attributes:
    start: part of the inputs [B, K, R, ...] -> state.
    add: (state, part, numbers of the rows [R], ids, valid) -> state; the last two are [b, h, R, X],
      entries of the rows' lists and whether they count.
    finish: (state, part) -> results, a pytree of [B, K, R, ...].
  """

  start: Callable[..., Any]
  add: Callable[..., Any]
  finish: Callable[..., Any]


def _scene(operands: Operands, spec: Spec) -> Scene:
  q, k = operands.q, operands.k
  dtype = accumulator_dtype(q)
  sizes = q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2]
  operand_dtype = dtype if dispatch.platform() == "cpu" else q.dtype
  return Scene(spec, operands.mask, sizes, dtype, operand_dtype)


def _gathered(blocks: Array, ids: Array) -> Array:
  """[B, K, M, c, F], [b, h, R, X] -> [B, K, R, X * c, F]: the named blocks below one another."""
  if ids.shape[:2] == (1, 1):
    found = jnp.take(blocks, ids[0, 0], axis=2, mode="clip")
  else:
    ids = jnp.broadcast_to(ids, (*blocks.shape[:2], *ids.shape[2:]))
    take = lambda x, i: jnp.take(x, i, axis=0, mode="clip")
    found = jax.vmap(jax.vmap(take))(blocks, ids)
  return jnp.reshape(found, (*found.shape[:3], -1, found.shape[-1]))


def _by_query(operands: Operands) -> Lists:
  ids, counts = operands.ids, operands.counts
  start = jnp.arange(ids.shape[2], dtype=jnp.int32) * ids.shape[3]
  start = jnp.broadcast_to(start[None, None, :], counts.shape)
  return Lists(start, counts, jnp.reshape(ids, (*ids.shape[:2], -1)), ids.shape[3])


def _by_key(operands: Operands, num_key_blocks: int, longest: int) -> Lists:
  """The transposed lists: which blocks of queries attend to each block of keys, ascending."""
  ids, counts = operands.ids, operands.counts
  width = ids.shape[3]
  place = jnp.arange(width, dtype=jnp.int32)[None, None, None, :]
  keys = jnp.where(place < counts[..., None], ids, num_key_blocks)
  keys = jnp.reshape(keys, (*ids.shape[:2], -1))
  order = jnp.argsort(keys, axis=-1, stable=True).astype(jnp.int32)
  ascending = jnp.take_along_axis(keys, order, axis=-1)
  ends = jnp.arange(num_key_blocks + 1, dtype=jnp.int32)
  search = lambda x: jnp.searchsorted(x, ends).astype(jnp.int32)
  indptr = jax.vmap(jax.vmap(search))(ascending)
  return Lists(indptr[..., :-1], jnp.diff(indptr), order // width, longest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(operands: Operands, static: tuple[Spec, int]) -> tuple[Array, Array]:
  """`static` is the spec, and the bound of `_longest_by_key`."""
  spec, _ = static
  scene = _scene(operands, spec)
  num_queries = scene.sizes[1]
  q, k, v = (
    scene.cut(x, size) for x, size in zip(operands[:3], (spec.block_q, spec.block_k, spec.block_k))
  )

  def start(q):
    return tiles.softmax_init(q.shape[:4], v.shape[4], scene.dtype)

  def add(state, q, rows, ids, valid):
    x = _logits(scene, q, _gathered(k, ids), rows, ids, valid)
    weigh = lambda exps: scene.dot(exps, _gathered(v, ids), -1, -2)
    return tiles.softmax_step(state, x, weigh)

  def finish(state, q):
    out, lse = tiles.softmax_finish(state)
    return out.astype(operands.q.dtype), lse[..., None]

  out, lse = scene.over_rows(
    _by_query(operands), q.shape[3], spec.block_k, q, Steps(start, add, finish)
  )
  out = scene.paste(out, num_queries, spec.block_q)
  lse = scene.paste(lse, num_queries, spec.block_q)[..., 0]
  return out, jnp.moveaxis(lse, 2, 1)


def _logits(scene: Scene, q: Array, k: Array, rows: Array, ids: Array, valid: Array) -> Array:
  """[B, K, R, G * block_q, X * block_k] of R query blocks against X key blocks each."""
  spec = scene.spec
  x = capped(scene.dot(q, k, -1, -1) * spec.scale, spec.softcap)
  shape = (*x.shape[:3], scene.groups, spec.block_q, ids.shape[3], spec.block_k, 1)
  own = jnp.reshape(rows, (1, 1, -1, 1, 1, 1, 1, 1))
  other = lambda y: jnp.reshape(y, (*y.shape[:3], 1, 1, -1, 1, 1))
  x = scene.masked(jnp.reshape(x, shape), (3, 4, 6), own, other(ids), other(valid))
  return jnp.reshape(x, (*x.shape[:3], x.shape[3] * x.shape[4], -1))


def _logits_by_key(
  scene: Scene, k: Array, q: Array, rows: Array, ids: Array, valid: Array
) -> Array:
  """[B, K, R, block_k, U * G * block_q] of R key blocks against U query blocks each."""
  spec = scene.spec
  x = capped(scene.dot(k, q, -1, -1) * spec.scale, spec.softcap)
  shape = (*x.shape[:3], spec.block_k, ids.shape[3], scene.groups, spec.block_q, 1)
  own = jnp.reshape(rows, (1, 1, -1, 1, 1, 1, 1, 1))
  other = lambda y: jnp.reshape(y, (*y.shape[:3], 1, -1, 1, 1, 1))
  x = scene.masked(jnp.reshape(x, shape), (5, 6, 3), other(ids), own, other(valid))
  return jnp.reshape(x, (*x.shape[:4], -1))


def _forward(operands: Operands, static: tuple[Spec, int]):
  out, lse = _attend(operands, static)
  return (out, lse), (operands, out, lse)


def _backward(static: tuple[Spec, int], saved, cotangents):
  """With p the weights, g the cotangent of out and a that of lse:

    dx = p * (g.v + r),   r = a - g.out,   dq = scale * sum_s dx k,   dk = scale * sum_t dx q

  with dx passed back through the cap. Source: arXiv 2205.14135 appendix B.4.
  """
  spec, longest = static
  operands, out, lse = saved
  g_out, g_lse = cotangents
  scene = _scene(operands, spec)
  dtype = scene.dtype
  _, num_queries, num_keys, _, _ = scene.sizes
  size_q, size_k = spec.block_q, spec.block_k
  attends = lse > -jnp.inf
  delta = jnp.moveaxis((g_out.astype(dtype) * out.astype(dtype)).sum(-1), 2, 1)
  term = jnp.where(attends, g_lse.astype(dtype), 0.0) - delta
  q, g = scene.cut(operands.q, size_q), scene.cut(g_out, size_q)
  k, v = scene.cut(operands.k, size_k), scene.cut(operands.v, size_k)
  lse, term = scene.cut_rows(tiles.finite_or_zero(lse)), scene.cut_rows(term)

  def pull(x, p, dp, term):
    dx = p * (dp + term)
    if spec.softcap is not None:
      dx = dx * (1 - (jnp.where(x > -jnp.inf, x, 0.0) / spec.softcap) ** 2)
    return dx

  def add_queries(dq, part, rows, ids, valid):
    q, g, lse, term = part
    keys = _gathered(k, ids)
    x = _logits(scene, q, keys, rows, ids, valid)
    dp = scene.dot(g, _gathered(v, ids), -1, -1)
    return dq + scene.dot(pull(x, jnp.exp(x - lse), dp, term), keys, -1, -2)

  for_queries = Steps(
    lambda part: jnp.zeros(part[0].shape, dtype),
    add_queries,
    lambda dq, part: (dq * spec.scale).astype(operands.q.dtype),
  )

  def add_keys(state, part, rows, ids, valid):
    (dk, dv), (k, v) = state, part
    row = lambda x: jnp.swapaxes(_gathered(x, ids), -1, -2)
    queries, gs = _gathered(q, ids), _gathered(g, ids)
    x = _logits_by_key(scene, k, queries, rows, ids, valid)
    p = jnp.exp(x - row(lse))
    dx = pull(x, p, scene.dot(v, gs, -1, -1), row(term))
    return dk + scene.dot(dx, queries, -1, -2), dv + scene.dot(p, gs, -1, -2)

  for_keys = Steps(
    lambda part: tuple(jnp.zeros(x.shape, dtype) for x in part),
    add_keys,
    lambda state, part: (
      (state[0] * spec.scale).astype(operands.k.dtype),
      state[1].astype(operands.v.dtype),
    ),
  )
  dq = scene.over_rows(_by_query(operands), q.shape[3], size_k, (q, g, lse, term), for_queries)
  by_key = _by_key(operands, k.shape[2], longest)
  dk, dv = scene.over_rows(by_key, size_k, size_q * scene.groups, (k, v), for_keys)
  dq = scene.paste(dq, num_queries, size_q)
  dk, dv = (scene.paste(x, num_keys, size_k) for x in (dk, dv))
  return (Operands(dq, dk, dv, None, None, None),)


_attend.defvjp(_forward, _backward)
