"""How attention from XLA operations is cut up: ranges of keys per block of queries, heads together.

See `xla.py` for the two forms, unrolled and looped. Everything here happens while tracing.
"""

import dataclasses

from jax import Array
import numpy as np

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops import tuning
from h2g.ops.attention.call import Operands

# Tiles unrolled into one program; beyond this compilation takes longer than it saves.
_MAX_TASKS = 40
# Tiles of one sweep that may be computed at the same time: one fills the cores while another waits
# for its last.
_IN_FLIGHT_BYTES = 8 << 20
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


def make_plan(operands: Operands) -> tuple[Plan, Array | None]:
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
