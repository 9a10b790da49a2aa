"""Decode attention on Hopper: the rows of a head are split among blocks of threads, then combined.

Plan. One block of threads (a warp-group) per batch entry, key head and `split` rows of the cache;
those past the length of their head leave at once, so a ragged cache costs what it holds, and the
scheduler balances long heads against short ones. The query heads of one key head are rows of a
tile of 64, zeros behind them: 64 rows of matmul for each row of the cache are 64 flops per byte
at D = E, a third of what the tensor cores could do in the time of the read (184 on an H200).

  k, v     tiles of 64 rows stream by TMA through a ring of `stages` slots, read once
  q        64 x D, stays in shared memory;  o, largest logit, sum: registers, float32
  out      the split's own average [heads, E] and log-sum-exp [heads], float32

What the splits found is combined by XLA: a softmax over their log-sum-exps, and the sink with it.

Bytes: sum(lengths) (D + E) size, to which each split adds the q tile from the L2 cache and 4 E
bytes per head (heads in multiples of 8), 1.6 % at 512 rows, D = E = 128, bfloat16, up to 8 heads
per key head. On chip, at D = E = 128: 16 KiB q, 32 KiB out and 32 KiB for each of two slots, so
that two blocks of threads share a processor, one computing while the other waits; 128 KiB are then
on their way per processor, four times what 4.3 TB/s need at a latency of a microsecond. Rates: not
measured.

The last tile of a head masks what stands behind its length, and zeroes it in v, where a NaN would
outlive a weight of zero. Where the capacity is no multiple of 64 that tile begins early.

The backward pass (rare: nobody trains through a cache) differentiates the definition in XLA.
Refused: `ids` (single rows), float32, widths that are not multiples of 64 up to 256, capacities
over 64 that are not multiples of 8, more than 64 query heads per key head.
"""

import dataclasses
import functools
import math

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops import wgmma
from h2g.ops.cache import reference
from h2g.ops.cache.call import Operands
from h2g.ops.cache.call import Spec

NAME = "mosaic_gpu"
TILE = 64  # rows of a wgmma, of the cache and of query heads
SHARED = 112 * 1024  # bytes of shared memory, of 227 KiB: room for two blocks of threads
PROCESSORS = 132
LOG2E = math.log2(math.e)


def decode_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.cache.decode_attention`. Serves 16-bit floats without `ids`."""
  dispatch.require_hopper(NAME)
  if dispatch.interpreted() and not hasattr(plgpu, "InterpretGPUParams"):
    raise NotImplementedError(f"{NAME}: this version of JAX has no interpreter of its kernels")
  q, k, v = operands[:3]
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"{NAME} serves bfloat16 and float16: q is {q.dtype}")
  if operands.ids is not None:
    raise NotImplementedError(f"{NAME} serves the first rows of a head: ids would name single ones")
  if not k.shape[2]:
    raise NotImplementedError(f"{NAME} serves caches with room for rows: k is {k.shape}")
  if q.shape[1] > TILE * k.shape[1]:
    raise NotImplementedError(
      f"{NAME} serves up to {TILE} heads per key head: got {q.shape[1]} and {k.shape[1]}"
    )
  if k.shape[2] > TILE and k.shape[2] % 8:
    raise NotImplementedError(
      f"{NAME} serves capacities in multiples of 8 rows, as TMA tiles are: k is {k.shape}"
    )
  _stages(k.shape[3], v.shape[3], q.dtype)
  return _attend(_Plan(spec, dispatch.interpreted()), operands)


def _stages(width: int, value_width: int, dtype) -> int:
  """Slots of the ring, from the widths and shared memory."""
  if any(n % 64 or not 0 < n <= 256 for n in (width, value_width)):
    raise NotImplementedError(
      f"{NAME} serves widths in multiples of 64 up to 256: got D {width}, E {value_width}"
    )
  size = jnp.dtype(dtype).itemsize
  fixed = TILE * (size * width + 4 * value_width)
  # Widths over 128 leave room for one block of threads per processor only.
  room = SHARED if width + value_width <= 256 else 2 * SHARED
  return max(2, min(4, (room - fixed - 256) // (TILE * size * (width + value_width))))


def _split(rows: int, lists: int) -> int:
  """Rows per block of threads: a multiple of the tile.

  About four rounds of two per processor for a full cache, so that heads of different lengths even
  out; at least 256 rows, that starting and combining stay small, at most 4096.
  """
  wanted = rows * lists // (4 * 2 * PROCESSORS)
  return max(256, min(4096, wanted // TILE * TILE))


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Static: factor and cap of the logits, whether the kernel is interpreted."""

  spec: Spec
  interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, operands: Operands) -> tuple[Array, Array]:
  q, k, v, lengths, _, sinks = operands
  batch, heads, width = q.shape
  key_heads, rows = k.shape[1:3]
  groups = heads // key_heads
  lengths = jnp.clip(lengths, 0, rows)
  if rows < TILE:
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, TILE - rows), (0, 0)))
    k, v = pad(k), pad(v)
  split = _split(k.shape[2], batch * key_heads)
  q = jnp.reshape(q, (batch, key_heads, groups, width))
  q = jnp.pad(q, ((0, 0), (0, 0), (0, TILE - groups), (0, 0)))
  outs, lses = _splits(plan, q, k, v, lengths, groups, split)
  # [B, K, N, G, E] and [B, K, N, G]; what a split without rows left there has no meaning.
  starts = jnp.arange(outs.shape[2], dtype=jnp.int32) * split
  some = (starts[None, None, :] < lengths[..., None])[..., None]
  outs, lses = outs[:, :, :, :groups], lses[..., :groups]
  lses = jnp.where(some, lses, -jnp.inf)
  outs = jnp.where(some[..., None], outs, 0.0)
  largest = jnp.maximum(lses.max(2), tiles.LOWEST)
  exps = jnp.exp(lses - largest[:, :, None])
  state = tiles.SoftmaxState((exps[..., None] * outs).sum(2), largest, exps.sum(2))
  if sinks is not None:
    sinks = jnp.reshape(sinks.astype(jnp.float32), (1, key_heads, groups))
  out, lse = tiles.softmax_finish(state, sinks)
  flat = lambda x: jnp.reshape(x, (batch, heads, *x.shape[3:]))
  return flat(out).astype(operands.q.dtype), flat(lse)


def _attend_forward(plan: _Plan, operands: Operands):
  return _attend(plan, operands), operands


def _attend_backward(plan: _Plan, operands: Operands, cotangents):
  return (reference.gradients(operands, plan.spec, cotangents),)


_attend.defvjp(_attend_forward, _attend_backward)


def _splits(plan: _Plan, q, k, v, lengths, groups: int, split: int) -> tuple[Array, Array]:
  """(average [B, K, N, heads, E], log-sum-exp [B, K, N, 64]) of every split, float32.

  Args:
    plan: static.
    q: [B, K, 64, D], zeros behind the first `groups`.
    k, v: [B, K, C, ..], C at least a tile.
    lengths: [B, K] int32, at most C.
    groups: H / K.
    split: rows per split.
  """
  batch, key_heads, rows, width = k.shape
  value_width = v.shape[3]
  num = -(-rows // split)
  stages = _stages(width, value_width, k.dtype)
  heads = -(-groups // 8) * 8  # a tile of shared memory is left in parts of 8 rows

  def body(q, k, v, lengths, out, lse, q_tile, k_tile, v_tile, out_tile, *barriers):
    at = tuple(jax.lax.axis_index(name) for name in ("batch", "head"))
    n = jax.lax.axis_index("split")
    left = jnp.minimum(lengths[at] - n * split, split)

    @pl.when(left > 0)
    def _():
      found = _one_split(
        plan.spec,
        (q.at[*at], k.at[*at], v.at[*at]),
        (q_tile, k_tile, v_tile),
        barriers,
        first=n * split,
        left=left,
        rows=rows,
        stages=stages,
      )
      out_tile[...], lse.at[*at, n][...] = found
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(out_tile.at[pl.ds(0, heads)], out.at[*at, n])
      plgpu.wait_smem_to_gmem(0)

  options = dict(interpret=plgpu.InterpretGPUParams()) if plan.interpret else {}
  return plgpu.kernel(
    body,
    out_type=(
      jax.ShapeDtypeStruct((batch, key_heads, num, heads, value_width), jnp.float32),
      jax.ShapeDtypeStruct((batch, key_heads, num, TILE), jnp.float32),
    ),
    scratch_types=(
      wgmma.shared_tiles(TILE, width, dtype=q.dtype),
      wgmma.shared_tiles(stages, TILE, width, dtype=k.dtype),
      wgmma.shared_tiles(stages, TILE, value_width, dtype=v.dtype),
      wgmma.shared_tiles(TILE, value_width, dtype=jnp.float32),
      plgpu.Barrier(),
      plgpu.Barrier(num_barriers=stages),
      plgpu.Barrier(num_barriers=stages),
    ),
    # Splits of all heads side by side: the first ones, which every head has, come first.
    grid=(num, key_heads, batch),
    grid_names=("split", "head", "batch"),
    compiler_params=plgpu.CompilerParams(approx_math=True),
    **options,
  )(q, k, v, lengths)


def _one_split(spec: Spec, sources, shared, barriers, *, first, left, rows: int, stages: int):
  """(average [64, E], log-sum-exp [64]) of `left` rows from `first` on.

  Args:
    spec: of the call.
    sources: q [64, D], k and v [C, ..] in HBM.
    shared: q [64, D], k and v [stages, 64, ..] in shared memory.
    barriers: of q, of k's slots, of v's slots.
    first: row where the split begins.
    left: rows of it that count, at least 1.
    rows: C.
    stages: slots of the ring.
  """
  q, k, v = sources
  q_tile, k_tile, v_tile = shared
  q_ready, k_ready, v_ready = barriers
  num = jax.lax.div(left + (TILE - 1), jnp.int32(TILE))
  whole = jax.lax.div(left, jnp.int32(TILE))
  # No tile reaches past the capacity: the last one begins early, and masks what was seen.
  start = lambda i: jnp.minimum(first + i * TILE, rows - TILE)

  def fetch(i, slot, source, tile, ready):
    plgpu.copy_gmem_to_smem(source.at[pl.ds(start(i), TILE)], tile.at[slot], ready.at[slot])

  plgpu.copy_gmem_to_smem(q, q_tile, q_ready)
  for slot in range(stages):

    @pl.when(slot < num)
    def _(slot=slot):
      fetch(slot, slot, k, k_tile, k_ready)
      fetch(slot, slot, v, v_tile, v_ready)

  def step(i, carry, masked):
    acc, largest, total = carry
    slot = jax.lax.rem(i, jnp.asarray(stages, i.dtype))
    ahead = i + stages < num
    plgpu.barrier_wait(k_ready.at[slot])
    x = wgmma.product(q_tile, wgmma.turned(k_tile.at[slot]))
    pl.when(ahead)(lambda: fetch(i + stages, slot, k, k_tile, k_ready))
    x = x * (spec.scale * LOG2E)
    if spec.softcap is not None:
      # tanh from exp2: the approximate instruction is too coarse for logits.
      cap = spec.softcap * LOG2E
      x = cap * (1.0 - 2.0 / (1.0 + jnp.exp2(x * (2 / spec.softcap))))
    if masked:
      row = start(i) + wgmma.iota(x.shape, 1)
      seen = (row >= first + i * TILE) & (row < first + left)
      x = jnp.where(seen, x, -jnp.inf)
    # A tile has a row that counts, so the maximum is finite from the first one on.
    new = jnp.maximum(largest, x.max(axis=1))
    decay = jnp.exp2(largest - new)
    weights = jnp.exp2(x - jax.lax.broadcast_in_dim(new, x.shape, [0]))
    total = total * decay + weights.sum(axis=1)
    acc = acc * jax.lax.broadcast_in_dim(decay, acc.shape, [0])
    plgpu.barrier_wait(v_ready.at[slot])
    if masked:
      values = wgmma.load(v_tile.at[slot])
      behind = start(i) + wgmma.iota(values.shape, 0) >= first + left
      v_tile.at[slot][...] = jnp.where(behind, jnp.zeros_like(values), values)
      plgpu.commit_smem()
    acc = wgmma.add_product(acc, weights.astype(v_tile.dtype), v_tile.at[slot])
    pl.when(ahead)(lambda: fetch(i + stages, slot, v, v_tile, v_ready))
    return acc, new, total

  plgpu.barrier_wait(q_ready)
  carry = (
    wgmma.filled((TILE, v.shape[1]), 0.0),
    wgmma.filled((TILE,), tiles.LOWEST),
    wgmma.filled((TILE,), 0.0),
  )
  carry = jax.lax.fori_loop(0, whole, functools.partial(step, masked=False), carry)
  acc, largest, total = jax.lax.fori_loop(whole, num, functools.partial(step, masked=True), carry)
  average = acc * jax.lax.broadcast_in_dim(1.0 / total, acc.shape, [0])
  return average, (largest + jnp.log2(total)) * (1 / LOG2E)
