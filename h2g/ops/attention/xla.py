"""Attention from XLA operations: O(T + S) memory both ways, fast on a CPU, correct anywhere.

Plan. Queries are cut into blocks; the mask says, while tracing where it can, which ranges of keys
each block may touch, and only those are computed. Key heads are taken a few at a time, so that one
tile of logits stays in cache (on accelerators: all at once), heads before positions, so that every
product is a plain batched matmul. The query heads of one key head stand below one another as rows
of the same matmul, so grouped heads repeat nothing. Two forms of one sweep over tiles:

  unrolled   a few dozen blocks of queries with static ranges of keys; blocks of a band (sliding
             window) that look alike go through one batched matmul.
  looped     one loop over pairs of blocks, FULL ones without a mask, then PARTIAL ones with it;
             the list of pairs is static, or compacted on the device where array contents decide.

The backward pass recomputes logits tile by tile from the saved log-sum-exp (arXiv 2205.14135 alg.
4). It computes dk and dv transposed ([D, S]): then no product contracts the leading axis of its
left operand, which the CPU does two to three times slower.
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
from h2g.ops import masks
from h2g.ops import tiles
from h2g.ops import tuning
from h2g.ops.attention import call as call_lib
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Operands
from h2g.ops.attention.call import Spec
from h2g.ops.attention.call import TopKeys
from h2g.ops.masks import Corner
from h2g.ops.masks import Tile

# Tiles unrolled into one program; beyond this compilation takes longer than it saves.
_MAX_TASKS = 40
# Tiles of one sweep, and sweeps over groups of heads, that may be computed at the same time: one
# fills the cores while another waits for its last.
_IN_FLIGHT_BYTES = 8 << 20
_GROUPS_IN_FLIGHT = 2
_TILE_BYTES = 1 << 20  # one tile of logits over all heads taken together: stays in cache
_LARGEST_TILE_BYTES = 16 << 20
_WIDE = 512  # queries per block where the mask leaves no block out: nothing is computed in vain
# Keys per tile of the unrolled form. Tiles of different queries then read the same pieces of k and
# v, which are copied out once for all of them, and logits are masked along the diagonal only.
_KEYS = 512  # and at most two blocks
_SMALL = 1 << 20  # logits per head below which reading a table on the device does not pay


@dataclasses.dataclass(frozen=True)
class Task:
  """Blocks of queries computed together, and the ranges of keys they touch.

  Attributes:
    start: first query.
    size: queries per block.
    count: how many blocks; when more than one, block n touches keys shifted by n * size.
    runs: (first key, number of keys, masked) each.
  """

  start: int
  size: int
  count: int
  runs: tuple[tuple[int, int, bool], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a call is cut up. Static and hashable.

  Attributes:
    tasks: the unrolled form; None for the looped form.
    block: queries and keys per tile of the looped form.
    table: the static block table of the looped form (bytes of int8) and its shape.
    dynamic: whether PARTIAL pairs are looked up again in a table computed on the device.
    together: key heads taken together; 0 takes all heads of the whole batch.
    in_flight: tiles of the unrolled form that may be computed at the same time.
    on_accelerator: matmuls take operands in their own dtype; a CPU takes them in the accumulator's.
  """

  tasks: tuple[Task, ...] | None
  block: int
  table: tuple[bytes, tuple[int, int]] | None
  dynamic: bool
  together: int
  in_flight: int
  on_accelerator: bool


def attention(operands: Operands, spec: Spec) -> AttentionOut:
  """See `h2g.ops.attention`. Serves every call."""
  plan, table = _plan(operands)
  out, lse, column_mass, entropy = _attend(operands, table, spec, plan)
  top_keys = None
  if spec.top_keys:
    stop = functools.partial(jax.tree.map, jax.lax.stop_gradient)
    top_keys = _top_keys(stop(operands), table, jax.lax.stop_gradient(lse), spec, plan)
  return AttentionOut(out, lse if spec.lse else None, column_mass, entropy, top_keys)


# What to compute: the plan.


def _plan(operands: Operands) -> tuple[Plan, Array | None]:
  """The plan, and the block table on the device where the plan is dynamic."""
  batch, num_queries, heads, _ = operands.q.shape
  num_keys, key_heads = operands.k.shape[1:3]
  mask = masks.full() if operands.mask is None else operands.mask
  on_cpu = dispatch.platform() == "cpu"
  cuts = []
  for block in _block_sizes(num_queries):
    block = min(block, num_queries, num_keys)
    known = _any_lane(mask.block_table(num_queries, num_keys, block, block, static=True))
    if on_cpu and block < _WIDE and not np.any(known == masks.EMPTY):
      block = min(_WIDE, num_queries, num_keys)
      known = _any_lane(mask.block_table(num_queries, num_keys, block, block, static=True))
    tasks = _tasks(known, num_queries, num_keys, block, _may_band(operands, mask))
    cuts.append((block, known, tasks))
  # Small blocks make poor matmuls: they must save a good part of the logits (narrow windows).
  few = sum(len(t.runs) for t in cuts[1][2]) <= _MAX_TASKS
  narrow = few and _cost(cuts[1][2]) < 0.7 * _cost(cuts[0][2])
  block, known, tasks = cuts[narrow]
  table = None
  if num_queries * num_keys > _SMALL and np.any(known == masks.PARTIAL):
    found = mask.block_table(num_queries, num_keys, block, block)
    table = None if isinstance(found, np.ndarray) else found
  per_key_head = 4 * (heads // key_heads)
  if table is None and on_cpu:
    tasks = _split(tasks, known, num_keys, block)
  widest = max((t.size * t.count * length for t in tasks for _, length, _ in t.runs), default=1)
  unrolled = table is None and sum(len(t.runs) for t in tasks) <= _MAX_TASKS
  lanes = 1 if on_cpu else batch * key_heads
  if unrolled and widest * per_key_head * lanes > _LARGEST_TILE_BYTES * (1 if on_cpu else 16):
    unrolled = False
  per_key_head *= widest if unrolled else block * block
  together = 0
  if on_cpu and per_key_head * key_heads * batch > _TILE_BYTES // 4:
    divisors = [c for c in range(1, key_heads + 1) if key_heads % c == 0]
    together = max((c for c in divisors if c * per_key_head <= _TILE_BYTES), default=1)
  plan = Plan(
    tasks if unrolled else None,
    block,
    None if unrolled else (known.tobytes(), known.shape),
    table is not None,
    together,
    min(4, max(2, _IN_FLIGHT_BYTES // max(1, per_key_head * (together or key_heads * batch)))),
    not on_cpu,
  )
  return plan, table


def _block_sizes(num_queries: int) -> tuple[int, int]:
  """(usual size of a block of queries and of keys, size for narrow bands)."""
  usual = 128 if num_queries <= 1024 else 256 if num_queries <= 4096 else 512
  return tuning.sizes("attention.xla", dict(block=usual), length=num_queries)["block"], 128


def _cost(tasks: tuple[Task, ...]) -> int:
  """Logits computed per lane."""
  return sum(t.size * t.count * length for t in tasks for _, length, _ in t.runs)


def _any_lane(table: np.ndarray) -> np.ndarray:
  """One table for all batch entries and heads: EMPTY or FULL only where all agree."""
  table = table.reshape(-1, *table.shape[2:])
  return np.where(
    (table == masks.FULL).all(0),
    masks.FULL,
    np.where((table == masks.EMPTY).all(0), masks.EMPTY, masks.PARTIAL),
  ).astype(np.int8)


def _may_band(operands: Operands, mask) -> bool:
  return operands.bias is None and not mask.gathers()


def _tasks(
  table: np.ndarray, num_queries: int, num_keys: int, block: int, band: bool
) -> tuple[Task, ...]:
  """Ranges of keys per block of queries, from a static table; a band merges into one task."""
  tasks: list[Task] = []
  for i, row in enumerate(table):
    start = i * block
    size = min(block, num_queries - start)
    runs, j = [], 0
    while j < len(row):
      if row[j] == masks.EMPTY:
        j += 1
        continue
      # FULL and PARTIAL neighbours go together: a compare inside a fused loop costs less than
      # another pass.
      stop = j
      while stop < len(row) and row[stop] != masks.EMPTY:
        stop += 1
      first, last = j * block, min(stop * block, num_keys)
      runs.append((first, last - first, bool(np.any(row[j:stop] != masks.FULL))))
      j = stop
    tasks.append(Task(start, size, 1, tuple(runs)))
  if not band:
    return tuple(tasks)
  merged: list[Task] = []
  for task in tasks:
    previous = merged[-1] if merged else None
    if (
      previous is not None
      and len(previous.runs) == len(task.runs) == 1
      and task.size == previous.size == block
    ):
      (first, length, masked), (next_first, next_length, next_masked) = (
        previous.runs[0],
        task.runs[0],
      )
      follows = (
        next_first == first + previous.count * block
        and next_length == length
        and length % block == 0
      )
      if follows:
        merged[-1] = Task(
          previous.start, block, previous.count + 1, ((first, length, masked or next_masked),)
        )
        continue
    merged.append(task)
  return tuple(merged)


def _split(
  tasks: tuple[Task, ...], table: np.ndarray, num_keys: int, block: int
) -> tuple[Task, ...]:
  """Cuts runs at multiples of a number of keys, and between FULL and PARTIAL blocks.

  Bands stay as they are. The number of keys is the least that leaves few enough tiles; where none
  does, nothing is cut.
  """

  def cut(task: Task, keys: int) -> Task:
    row, runs = table[task.start // block], []
    for first, length, _ in task.runs:
      for j in range(first // block, -(-(first + length) // block)):
        start, stop = j * block, min((j + 1) * block, num_keys)
        masked = bool(row[j] != masks.FULL)
        if runs and runs[-1][2] == masked and runs[-1][1] == start and start % keys:
          runs[-1][1] = stop
        else:
          runs.append([start, stop, masked])
    return dataclasses.replace(task, runs=tuple((a, b - a, masked) for a, b, masked in runs))

  keys = max(min(2, _KEYS // block), 1) * block
  while keys < num_keys:
    finer = tuple(t if t.count > 1 else cut(t, keys) for t in tasks)
    if sum(len(t.runs) for t in finer) <= _MAX_TASKS:
      return finer
    keys *= 2
  return tasks


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


def _over_groups(plan: Plan, operands: Operands, f, inputs, like, shared):
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


def _sweep(
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


# The mathematics of a tile.


class Scene(NamedTuple):
  """What every tile of a group reads.

  Attributes:
    operands: of the call; its q, k and v are not read here.
    spec: of the call.
    group: heads computed together.
    q: [lanes, T, D].
    k: [key heads, S, D].
    v: [key heads, S, E].
    dtype: of accumulators and logits.
    operand_dtype: of what goes into matmuls.
    on_accelerator: as in Plan.
  """

  operands: Operands
  spec: Spec
  group: Group
  q: Array
  k: Array
  v: Array
  dtype: Any
  operand_dtype: Any
  on_accelerator: bool

  def dot(self, a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Batched matmul over axis 0."""
    a, b = a.astype(self.operand_dtype), b.astype(self.operand_dtype)
    exact = self.on_accelerator and a.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None
    dims = (((axis_a,), (axis_b,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=self.dtype)

  def products(self, cut: Cut) -> Array:
    """scale * q.k, [lanes * count, 1, q_size, k_size]."""
    q, scale = cut.rows(self.q), self.spec.scale
    # Scaling q is cheaper, but must not round it.
    early = self.operand_dtype == self.dtype
    q = q.astype(self.dtype) * scale if early else q
    raw = self.dot(cut.stacked(q), cut.keys(self.k), 2, 2)
    return jnp.reshape(raw if early else raw * scale, (-1, 1, cut.q_size, cut.k_size))

  def bias(self, tile: Tile) -> Array | None:
    return None if self.operands.bias is None else masks.tile_of(self.operands.bias, tile.corner)

  def adjusted(self, raw: Array, bias, logits_args, tile: Tile, allowed) -> Array:
    """Logits of the softmax, -inf where masked."""
    x = call_lib.adjust(raw, bias, logits_args, self.spec, tile, self.operands.origin, allowed)
    return x if allowed is None else jnp.where(allowed, x, -jnp.inf)

  def logits(self, cut: Cut) -> tuple[Array, Tile]:
    """[lanes * count, q_size, k_size]."""
    tile = cut.tile()
    allowed = cut.allowed(self.operands.mask, tile)
    x = self.adjusted(self.products(cut), self.bias(tile), self.operands.logits_args, tile, allowed)
    return x[:, 0], tile

  def drop(self, tile: Tile) -> Callable[[Array], Array]:
    """Dropout of the weights of one tile; its own transpose."""
    rate = self.spec.dropout_rate
    if not rate:
      return lambda x: x
    ids = call_lib.globally(tile, self.operands.origin)
    keep = tiles.dropout_keep(self.operands.seed, *ids, rate=rate)[:, 0]
    return lambda x: jnp.where(keep, x * (1 / (1 - rate)), 0.0)


def _scene(operands: Operands, spec: Spec, plan: Plan, group: Group, qkv) -> Scene:
  dtype = tiles.accumulator_dtype(operands.q)
  operand_dtype = operands.q.dtype if plan.on_accelerator else dtype
  q, k, v = qkv
  return Scene(operands, spec, group, q, k, v, dtype, operand_dtype, plan.on_accelerator)


def _sizes(operands: Operands):
  """(batch, T, S, H, K, E)."""
  batch, num_queries, heads, _ = operands.q.shape
  return batch, num_queries, operands.k.shape[1], heads, operands.k.shape[2], operands.v.shape[3]


# The three passes.


@functools.partial(jax.jit, static_argnums=(2, 3))
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(operands: Operands, table, spec: Spec, plan: Plan):
  """(out [B, T, H, E], lse [B, H, T], column mass [B, H, S] or None, entropy [B, H, T] or None)."""
  return _forward(operands, table, spec, plan)


def _forward(operands: Operands, table, spec: Spec, plan: Plan):
  batch, num_queries, num_keys, heads, _, width = _sizes(operands)
  dtype = tiles.accumulator_dtype(operands.q)

  def one(group, qkv, shared):
    scene = _scene(operands, spec, plan, group, qkv)

    def step(cut, state, columns, shared):
      x, tile = scene.logits(cut)
      drop = scene.drop(tile)

      def weigh(exps):
        out = scene.dot(cut.stacked(drop(exps)), cut.keys(scene.v), 2, 1)
        return jnp.reshape(out, (-1, cut.q_size, width))

      return tiles.softmax_step(None if cut.first else state, x, weigh), columns, shared

    state = tiles.softmax_init((group.batch.size, num_queries), width, dtype)
    state, _, _ = _sweep(plan, group, table, num_queries, num_keys, step, state, (), ())
    sink = None if operands.sinks is None else operands.sinks.astype(dtype)[group.head][:, None]
    return tiles.softmax_finish(state, sink), shared

  like = (
    jax.ShapeDtypeStruct((batch, num_queries, heads, width), operands.q.dtype),
    jax.ShapeDtypeStruct((batch, heads, num_queries), dtype),
  )
  (out, lse), _ = _over_groups(plan, operands, one, operands[:3], like, ())
  column_mass, entropy = _statistics(operands, table, lse, spec, plan)
  return out, lse, column_mass, entropy


def _weights(x: Array, lse: Array) -> Array:
  """exp(x - lse), zero in rows that attend to nothing."""
  return jnp.exp(x - tiles.finite_or_zero(lse)[..., None])


def _statistics(operands: Operands, table, lse: Array, spec: Spec, plan: Plan):
  """Column mass and entropy, None unless wanted: a second sweep, with the final lse."""
  batch, num_queries, num_keys, heads, key_heads, _ = _sizes(operands)
  if not (spec.column_mass or spec.entropy):
    return None, None
  per = heads // key_heads

  def one(group, inputs, shared):
    qkv, saved = inputs
    scene = _scene(operands, spec, plan, group, qkv)

    def step(cut, entropy, mass, shared):
      x, _ = scene.logits(cut)
      rows = cut.rows(saved)
      weights = _weights(x, rows)
      if spec.entropy:
        surprise = jnp.where(weights > 0, tiles.finite_or_zero(rows)[..., None] - x, 0.0)
        entropy = entropy + (weights * surprise).sum(-1)
      if spec.column_mass:
        mass = cut.add_columns(mass, cut.by_key_head(weights.sum(1)))
      return entropy, mass, shared

    lanes = group.batch.size
    entropy = jnp.zeros((lanes, num_queries), lse.dtype)
    mass = jnp.zeros((lanes // per, per, num_keys), lse.dtype)
    entropy, mass, _ = _sweep(plan, group, table, num_queries, num_keys, step, entropy, mass, ())
    return (jnp.reshape(mass, (lanes, num_keys)), entropy), shared

  like = (
    jax.ShapeDtypeStruct((batch, heads, num_keys), lse.dtype),
    jax.ShapeDtypeStruct((batch, heads, num_queries), lse.dtype),
  )
  inputs = operands[:3], lse
  (mass, entropy), _ = _over_groups(plan, operands, one, inputs, like, ())
  return mass if spec.column_mass else None, entropy if spec.entropy else None


@functools.partial(jax.jit, static_argnums=(3, 4))
def _top_keys(operands: Operands, table, lse: Array, spec: Spec, plan: Plan) -> TopKeys:
  """The largest weights of each row: a running selection over tiles."""
  batch, num_queries, num_keys, heads, _, _ = _sizes(operands)
  n = spec.top_keys

  def one(group, inputs, shared):
    qkv, saved = inputs
    scene = _scene(operands, spec, plan, group, qkv)

    def step(cut, state, columns, shared):
      x, tile = scene.logits(cut)
      weights = jnp.where(x > -jnp.inf, _weights(x, cut.rows(saved)), -1.0)
      values, places = jax.lax.top_k(weights, min(n, cut.k_size))
      key = jnp.broadcast_to(tile.key[:, 0], (weights.shape[0], 1, cut.k_size))[:, 0]
      ids = jax.vmap(lambda key, places: key[places])(key, places)
      values = jnp.concatenate([state[0], values], axis=-1)
      ids = jnp.concatenate([state[1], ids], axis=-1)
      values, places = jax.lax.top_k(values, n)
      return (values, jnp.take_along_axis(ids, places, axis=-1)), columns, shared

    shape = (group.batch.size, num_queries, n)
    state = jnp.full(shape, -1.0, lse.dtype), jnp.full(shape, -1, jnp.int32)
    (values, ids), _, _ = _sweep(plan, group, table, num_queries, num_keys, step, state, (), ())
    return (jnp.maximum(values, 0.0), jnp.where(values < 0, -1, ids)), shared

  like = tuple(
    jax.ShapeDtypeStruct((batch, num_queries, heads, n), d) for d in (lse.dtype, jnp.int32)
  )
  inputs = operands[:3], lse
  (values, ids), _ = _over_groups(plan, operands, one, inputs, like, ())
  return TopKeys(jnp.moveaxis(values, 2, 1), jnp.moveaxis(ids, 2, 1))


def _attend_forward(operands, table, spec, plan):
  results = _forward(operands, table, spec, plan)
  out, lse, _, entropy = results
  return results, (operands, table, out, lse, entropy)


def _attend_backward(spec: Spec, plan: Plan, saved, cotangents):
  """With p the weights, m dropout, cotangents g of out, a of lse, c of column mass, h of entropy H:

    dx = p * (m * (g.v) + c + r) - h * p * (x - lse),   r = a - delta + h * (P - H) - h
    delta = sum_s p * (m * (g.v) + c) = g.out + sum_s p c,   P = 1 - p_sink,   dsink = p_sink * (r
    + h)

  then dx passes back through hook, cap and bias to dq = scale * dx k and dk = dx^T (scale * q).
  """
  operands, table, out, lse, entropy = saved
  g_out, g_lse, g_mass, g_entropy = cotangents
  _, num_queries, num_keys, heads, key_heads, width = _sizes(operands)
  depth = operands.q.shape[3]
  dtype = lse.dtype
  floats, rejoin = _float_leaves(operands.logits_args)
  plain = operands.bias is None and spec.softcap is None and spec.logits_fn is None

  # What each row adds to dp before the product with p, but for terms that need another sweep.
  attends = lse > -jnp.inf
  delta = (g_out.astype(dtype) * out.astype(dtype)).sum(-1)
  term = jnp.where(attends, g_lse, 0.0) - jnp.swapaxes(delta, 1, 2)
  p_sink = None
  if operands.sinks is not None:
    sinks = operands.sinks.astype(dtype)[None, :, None]
    p_sink = jnp.where(attends, jnp.exp(sinks - tiles.finite_or_zero(lse)), 0.0)
  if g_entropy is not None:
    term = term + g_entropy * ((1.0 if p_sink is None else 1.0 - p_sink) - entropy)

  def one(group, inputs, shared):
    qkv, g, saved_lse, term, p_sink, mass_lanes, h = inputs
    scene = _scene(operands, spec, plan, group, qkv)
    lanes = group.batch.size
    if mass_lanes is not None:
      term = term - _weighted_rows(scene, plan, table, saved_lse, mass_lanes, num_queries, num_keys)

    def step(cut, dq, columns, shared):
      dk, dv = columns
      d_bias, d_args = shared
      tile = cut.tile()
      allowed = cut.allowed(operands.mask, tile)
      to_logits = lambda raw, bias, floats: scene.adjusted(raw, bias, rejoin(floats), tile, allowed)
      raw = scene.products(cut)
      if plain:
        x = to_logits(raw, None, floats)
      else:
        x, pull = jax.vjp(to_logits, raw, scene.bias(tile), floats)
      x = x[:, 0]
      row_lse = cut.rows(saved_lse)
      p = _weights(x, row_lse)
      drop = scene.drop(tile)
      g_rows = cut.stacked(cut.rows(g).astype(dtype))
      dp = jnp.reshape(scene.dot(g_rows, cut.keys(scene.v), 2, 2), p.shape)
      dp = drop(dp)
      if mass_lanes is not None:
        dp = dp + cut.lanes_by_key(mass_lanes)
      row = cut.rows(term)
      if h is not None:
        h_rows = cut.rows(h)
        surprise = jnp.where(p > 0, tiles.finite_or_zero(row_lse)[..., None] - x, 0.0)
        dp = dp + h_rows[..., None] * surprise
        row = row - h_rows
      dx = p * (dp + row[..., None])
      if not plain:
        dx, d_bias_tile, d_args_tile = pull(dx[:, None])
        d_args = jax.tree.map(lambda total, d: total + d.astype(total.dtype), d_args, d_args_tile)
        if d_bias is not None:
          d_bias = _add_bias(d_bias, d_bias_tile, tile.corner)
      dx = cut.stacked(jnp.reshape(dx, p.shape))
      dq = dq + jnp.reshape(scene.dot(dx, cut.keys(scene.k), 2, 1), dq.shape)
      q_rows = cut.stacked(cut.rows(scene.q).astype(dtype))
      dk = cut.add_columns(dk, scene.dot(jnp.swapaxes(q_rows, 1, 2), dx, 2, 1))
      dv = cut.add_columns(dv, scene.dot(jnp.swapaxes(g_rows, 1, 2), cut.stacked(drop(p)), 2, 1))
      return dq, (dk, dv), (d_bias, d_args)

    d_bias, d_args, d_sinks = shared
    dq = jnp.zeros((lanes, num_queries, depth), dtype)
    here = lanes * key_heads // heads
    columns = jnp.zeros((here, depth, num_keys), dtype), jnp.zeros((here, width, num_keys), dtype)
    dq, (dk, dv), (d_bias, d_args) = _sweep(
      plan, group, table, num_queries, num_keys, step, dq, columns, (d_bias, d_args)
    )
    if d_sinks is not None:
      new = jnp.reshape((p_sink * term).sum(1), group.sizes).sum(0)
      first = group.starts[1]
      old = masks.slice_at(d_sinks, [first], [group.sizes[1]])
      d_sinks = jax.lax.dynamic_update_slice(d_sinks, old + new, [jnp.asarray(first, jnp.int32)])
    return (dq * spec.scale, jnp.swapaxes(dk, 1, 2) * spec.scale, jnp.swapaxes(dv, 1, 2)), (
      d_bias,
      d_args,
      d_sinks,
    )

  zeros = lambda x: None if x is None else jnp.zeros(x.shape, dtype)
  like = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (operands.q, operands.k, operands.v))
  shared = zeros(operands.bias), jax.tree.map(zeros, floats), zeros(operands.sinks)
  inputs = operands[:3], g_out, lse, term, p_sink, g_mass, g_entropy
  (dq, dk, dv), (d_bias, d_args, d_sinks) = _over_groups(plan, operands, one, inputs, like, shared)
  back = lambda d, x: None if x is None else d.astype(x.dtype)
  d_args = rejoin(jax.tree.map(back, d_args, floats), absent=True)
  grads = Operands(
    dq, dk, dv, back(d_bias, operands.bias), None, back(d_sinks, operands.sinks), d_args, None, None
  )
  return grads, None


_attend.__wrapped__.defvjp(_attend_forward, _attend_backward)


def _weighted_rows(
  scene: Scene, plan: Plan, table, lse, by_key, num_queries: int, num_keys: int
) -> Array:
  """sum_s p[t,s] c[s] for every row, [lanes, T]."""

  def step(cut, total, columns, shared):
    x, _ = scene.logits(cut)
    return total + (_weights(x, cut.rows(lse)) * cut.lanes_by_key(by_key)).sum(-1), columns, shared

  total, _, _ = _sweep(
    plan, scene.group, table, num_queries, num_keys, step, jnp.zeros_like(lse), (), ()
  )
  return total


def _add_bias(total: Array, update: Array, corner: Corner) -> Array:
  """Adds the gradient of one tile's bias, summing over batch entries or heads that share it."""
  entries, heads = corner.sizes[:2] if update.shape[0] > 1 else (1, 1)
  update = jnp.reshape(update, (entries, heads, *update.shape[2:])).astype(total.dtype)
  shared = tuple(axis for axis in (0, 1) if total.shape[axis] == 1 and update.shape[axis] > 1)
  update = update.sum(shared, keepdims=True) if shared else update
  starts = [0 if n == 1 else start for n, start in zip(total.shape, corner.starts)]
  old = masks.slice_at(total, starts, update.shape)
  return jax.lax.dynamic_update_slice(
    total, old + update, [jnp.asarray(s, jnp.int32) for s in starts]
  )


def _float_leaves(tree):
  """(float leaves, rejoin): `rejoin(floats)` is the tree; absent=True puts None for the others."""
  leaves, structure = jax.tree.flatten(tree)
  floating = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]

  def rejoin(floats, absent=False):
    floats = iter(floats)
    rest = (None if absent else x for x in leaves)
    return jax.tree.unflatten(structure, [next(floats) if f else x for f, x in zip(floating, rest)])

  return [x for f, x in zip(floating, leaves) if f], rejoin
