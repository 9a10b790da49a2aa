"""Visits the tiles of attention from XLA: groups of heads, in each the tiles of a plan."""

from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.ops import masks
from h2g.ops.attention.call import Operands
from h2g.ops.attention.plan import Plan
from h2g.ops.masks import Corner
from h2g.ops.masks import Tile

_GROUPS_IN_FLIGHT = 2  # sweeps over groups of heads that may be computed at the same time

# Groups: which heads are computed together.


class Group(NamedTuple):
  """Operands of the key heads computed together, heads first; index arrays of its rows.

  Attributes:
    batch: [lanes] batch entry of each lane; a lane is one query head of one batch entry.
    head: [lanes] query head of each lane.
    starts: (first batch entry, first query head).
    sizes: (batch entries, query heads).
    queries_per_key_head: G.
  """

  batch: Array
  head: Array
  starts: tuple[Any, Any]
  sizes: tuple[int, int]
  queries_per_key_head: int


def over_groups(plan: Plan, operands: Operands, f, inputs, like, shared):
  """Runs `f(group, inputs of the group, shared) -> (results, shared)` for all groups of heads.

  Arrays of rank 4 are [B, length, heads, width], those of rank 3 [B, heads, length]; inside a group
  they are [lanes, length, width] and [lanes, length], where a lane is one head of one batch entry.

  Args:
    plan: says how many key heads go together.
    operands: of the call, for sizes.
    f: computes one group.
    inputs: pytree of arrays; how many heads each has tells those of queries from those of keys.
    like: pytree of ShapeDtypeStruct, the results over all groups.
    shared: pytree carried from group to group.
  Returns:
    (results, shared).
  """
  batch, _, heads, _ = operands.q.shape
  key_heads = operands.k.shape[2]
  per = heads // key_heads

  heads_at = lambda x: 2 if len(x.shape) == 4 else 1

  def run(b, key_head, entries, count, inputs, shared):
    sizes = entries, count * per
    ids = lambda start, n: start + jnp.arange(n, dtype=jnp.int32)
    lanes = lambda x: jnp.reshape(jnp.broadcast_to(x, sizes), (-1,))
    group = Group(
      lanes(ids(b, entries)[:, None]),
      lanes(ids(key_head * per, sizes[1])[None, :]),
      (b, key_head * per),
      sizes,
      per,
    )

    def cut(x):
      axis = heads_at(x)
      each = x.shape[axis] // key_heads
      starts, lengths = [0] * x.ndim, list(x.shape)
      starts[0], lengths[0] = b, entries
      starts[axis], lengths[axis] = key_head * each, count * each
      x = jnp.moveaxis(masks.slice_at(x, starts, lengths), axis, 1)
      return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))

    def paste(x, like):
      x = jnp.reshape(x, (entries, -1, *x.shape[1:])).astype(like.dtype)
      return jnp.moveaxis(x, 1, heads_at(like))

    cut_all = lambda: jax.tree.map(cut, inputs)
    if plan.together:
      # The condition always holds. What comes out of a branch is an array in memory: left to
      # itself the compiler repeats the change of layout for every tile that reads one of these.
      shapes = jax.eval_shape(cut_all)
      nothing = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
      parts = jax.lax.cond(b >= 0, cut_all, nothing)
    else:
      parts = cut_all()
    results, shared = f(group, parts, shared)
    return jax.tree.map(paste, results, like), shared

  if not plan.together:
    return run(0, 0, batch, key_heads, inputs, shared)
  steps = key_heads // plan.together

  def body(i, carry):
    results, shared = carry
    b, key_head = i // steps, (i % steps) * plan.together
    new, shared = run(b, key_head, 1, plan.together, inputs, shared)

    def put(x, part):
      starts = [0] * x.ndim
      starts[0], starts[heads_at(x)] = b, key_head * (x.shape[heads_at(x)] // key_heads)
      return jax.lax.dynamic_update_slice(x, part, starts)

    return jax.tree.map(put, results, new), shared

  empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  count = batch * steps
  unroll = _GROUPS_IN_FLIGHT if plan.tasks is not None else 1
  return jax.lax.fori_loop(0, count, body, (empty, shared), unroll=min(count, unroll))


# Tiles: how the arrays of a group are cut, statically or inside a loop.


class Cut(NamedTuple):
  """One tile of a group: where it is, and how to read and write arrays there.

  With count > 1 it stands for that many tiles along a band, laid out as further lanes (key head,
  block, query head).
  """

  group: Group
  q_start: Any
  k_start: Any
  q_size: int
  k_size: int
  count: int
  masked: bool
  skip: tuple[Any, Any] | None  # queries and keys below these belong to an earlier tile
  aligned: bool
  first: bool = False  # nothing has been added to the rows of this tile yet
  after: Array | None = None  # False, but not before the tile a few before this one is done

  def rows(self, x: Array) -> Array:
    """[lanes, T, ...] -> [lanes * count, q_size, ...]."""
    lanes, _, *rest = x.shape
    size = self.q_size * self.count
    x = masks.slice_at(x, [0, self.q_start] + [0] * len(rest), [lanes, size, *rest])
    if self.after is not None and rest:
      # Tiles are independent: without an order all their logits are in memory at once.
      x = jnp.where(self.after, jnp.zeros_like(x), x)
    if self.count == 1:
      return x
    per = self.group.queries_per_key_head
    x = jnp.reshape(x, (lanes // per, per, self.count, self.q_size, *rest))
    return jnp.reshape(jnp.swapaxes(x, 1, 2), (lanes * self.count, self.q_size, *rest))

  def unrows(self, x: Array) -> Array:
    """[lanes * count, q_size, ...] -> [lanes, count * q_size, ...]."""
    if self.count == 1:
      return x
    per = self.group.queries_per_key_head
    lanes = x.shape[0] // self.count
    x = jnp.swapaxes(jnp.reshape(x, (lanes // per, self.count, per, *x.shape[1:])), 1, 2)
    return jnp.reshape(x, (lanes, self.count * self.q_size, *x.shape[4:]))

  def stacked(self, x: Array) -> Array:
    """[lanes * count, q_size, F] -> [key heads * count, G * q_size, F]: rows of one matmul."""
    return jnp.reshape(x, (-1, self.group.queries_per_key_head * self.q_size, x.shape[-1]))

  def keys(self, x: Array) -> Array:
    """[key heads, S, F] -> [key heads * count, k_size, F]."""
    heads, _, width = x.shape
    if self.count == 1:
      return masks.slice_at(x, [0, self.k_start, 0], [heads, self.k_size, width])
    times = self.k_size // self.q_size
    x = masks.slice_at(
      x, [0, self.k_start, 0], [heads, (self.count + times - 1) * self.q_size, width]
    )
    x = jnp.reshape(x, (heads, -1, self.q_size, width))
    x = jnp.concatenate([x[:, j : j + self.count] for j in range(times)], axis=2)
    return jnp.reshape(x, (heads * self.count, self.k_size, width))

  def add_columns(self, x: Array, update: Array) -> Array:
    """Adds [key heads * count, F, k_size] to the columns of [key heads, F, S]."""
    heads, width, _ = x.shape
    if self.count == 1:
      if isinstance(self.k_start, int):
        return x.at[:, :, self.k_start : self.k_start + self.k_size].add(update)
      old = masks.slice_at(x, [0, 0, self.k_start], [heads, width, self.k_size])
      return jax.lax.dynamic_update_slice_in_dim(x, old + update, self.k_start, 2)
    times = self.k_size // self.q_size
    update = jnp.reshape(update, (heads, self.count, width, times, self.q_size))
    for j in range(times):
      part = jnp.reshape(jnp.swapaxes(update[:, :, :, j], 1, 2), (heads, width, -1))
      first = self.k_start + j * self.q_size
      x = x.at[:, :, first : first + part.shape[2]].add(part)
    return x

  def lanes_by_key(self, x: Array) -> Array:
    """[lanes, S] -> [lanes * count, 1, k_size]."""
    per = self.group.queries_per_key_head
    x = self.keys(jnp.swapaxes(jnp.reshape(x, (-1, per, x.shape[1])), 1, 2))
    return jnp.reshape(jnp.swapaxes(x, 1, 2), (-1, 1, self.k_size))

  def by_key_head(self, x: Array) -> Array:
    """[lanes * count, k_size] -> [key heads * count, G, k_size], an update of columns."""
    return jnp.reshape(x, (-1, self.group.queries_per_key_head, self.k_size))

  def tile(self) -> Tile:
    """Index arrays [lanes * count | 1, 1, q_size | 1, k_size | 1]."""
    ids = lambda start, n: start + jnp.arange(n, dtype=jnp.int32)
    group = self.group
    batch, head = (jnp.reshape(x, (-1, 1, 1, 1)) for x in (group.batch, group.head))
    query = jnp.reshape(ids(self.q_start, self.q_size), (1, 1, -1, 1))
    key = jnp.reshape(ids(self.k_start, self.k_size), (1, 1, 1, -1))
    if self.count == 1:
      corner = Corner(
        (*group.starts, self.q_start, self.k_start),
        (*group.sizes, self.q_size, self.k_size),
        self.aligned,
      )
      return Tile(query, key, head, batch, corner)
    per = group.queries_per_key_head
    spread = lambda x: jnp.reshape(
      jnp.broadcast_to(jnp.reshape(x, (-1, 1, per)), (x.size // per, self.count, per)),
      (-1, 1, 1, 1),
    )
    block = jnp.broadcast_to(ids(0, self.count)[None, :, None], (head.size // per, self.count, per))
    shift = jnp.reshape(block, (-1, 1, 1, 1)) * self.q_size
    return Tile(query + shift, key + shift, spread(head), spread(batch))

  def allowed(self, mask, tile: Tile):
    """bool, broadcasts to [lanes * count, 1, q_size, k_size]; None where everything attends."""
    allowed = mask.evaluate(tile) if self.masked and mask is not None else None
    if self.skip is not None:
      own = (tile.query >= self.skip[0]) & (tile.key >= self.skip[1])
      allowed = own if allowed is None else allowed & own
    return allowed


def sweep(
  plan: Plan, group: Group, table, num_queries: int, num_keys: int, step, rows, columns, shared
):
  """Visits every tile that is not EMPTY.

  Args:
    plan: of the call.
    group: heads computed together.
    table: block table on the device where the plan is dynamic.
    num_queries: T.
    num_keys: S.
    step: `step(cut, rows, columns, shared) -> (rows, columns, shared)`; rows are those of the tile.
    rows: pytree of [lanes, T, ...], the state of each query.
    columns: pytree of [key heads, F, S], added to through `cut.add_columns`.
    shared: pytree.
  Returns:
    (rows, columns, shared) after all tiles.
  """
  if plan.tasks is not None:
    blocks, done = [], []
    for task in plan.tasks:
      whole = Cut(group, task.start, 0, task.size, num_keys, task.count, False, None, True)
      state = jax.tree.map(whole.rows, rows)
      for n, (first, length, masked) in enumerate(task.runs):
        after = done[-plan.in_flight] if len(done) >= plan.in_flight else None
        cut = whole._replace(k_start=first, k_size=length, masked=masked, first=n == 0, after=after)
        state, columns, shared = step(cut, state, columns, shared)
        done.append(jnp.ravel(jax.tree.leaves(state)[0])[0] > jnp.inf)
      blocks.append(jax.tree.map(whole.unrows, state))
    if len(blocks) > 1:
      rows = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *blocks)
    else:
      rows = blocks[0]
    return rows, columns, shared

  block = plan.block
  known = np.frombuffer(plan.table[0], np.int8).reshape(plan.table[1])
  ragged = bool(num_queries % block or num_keys % block)

  def visit(i, j, masked, carry):
    rows, columns, shared = carry
    q_start = jnp.minimum(i * block, num_queries - block)
    k_start = jnp.minimum(j * block, num_keys - block)
    # The last tile of a ragged length starts early, and leaves what an earlier tile has done.
    skip = (i * block, j * block) if ragged else None
    cut = Cut(group, q_start, k_start, block, block, 1, masked, skip, not ragged)
    state = jax.tree.map(cut.rows, rows)
    state, columns, shared = step(cut, state, columns, shared)
    write = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, q_start, 1)
    return jax.tree.map(write, rows, state), columns, shared

  def loop(pairs, count, masked, carry):
    pairs = jnp.asarray(pairs, jnp.int32)
    return jax.lax.fori_loop(
      0, count, lambda n, carry: visit(pairs[n, 0], pairs[n, 1], masked, carry), carry
    )

  carry = rows, columns, shared
  full, partial = np.argwhere(known == masks.FULL), np.argwhere(known == masks.PARTIAL)
  if len(full):
    carry = loop(full, len(full), False, carry)
  if len(partial) and not plan.dynamic:
    carry = loop(partial, len(partial), True, carry)
  if len(partial) and plan.dynamic:
    here = _lanes_agree(table, group)[partial[:, 0], partial[:, 1]]
    for kind in (masks.FULL, masks.PARTIAL):
      order = jnp.argsort(here != kind, stable=True)
      carry = loop(jnp.asarray(partial)[order], jnp.sum(here == kind), kind == masks.PARTIAL, carry)
  return carry


def _lanes_agree(table: Array, group: Group) -> Array:
  """The device's block table for the lanes of a group: EMPTY or FULL only where all agree."""
  starts = [s if n > 1 else 0 for s, n in zip(group.starts, table.shape)] + [0, 0]
  sizes = [min(size, n) for size, n in zip(group.sizes, table.shape)] + list(table.shape[2:])
  table = masks.slice_at(table, starts, sizes)
  full, empty = (table == masks.FULL).all((0, 1)), (table == masks.EMPTY).all((0, 1))
  return jnp.where(full, masks.FULL, jnp.where(empty, masks.EMPTY, masks.PARTIAL))
