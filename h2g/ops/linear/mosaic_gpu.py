"""Decay attention on Hopper, forward and backward: one pass over time with the state on chip.

Plan. A block of threads owns one batch entry, one head and one or two slices of 64 value columns.
One warp-group fetches q, k, v tiles of C = 64 steps ahead of use by TMA; each of the others owns a
slice: its state [D, 64] stays in float32 registers from the first step to the last, with a bfloat16
copy in shared memory as operand. Per tile and slice:

  out = since * (q state) + ((q k^T) * within) v,   state = whole * state + k^T (until * v)

four products on the tensor cores (wgmma), everything accumulated in float32. HBM sees q, k, v once
and the output once: 8 D bytes per step and head for bfloat16 with E = D, against 2 D (4 C + 4 D)
flops: for D = 128 1.0 kB and 49 kflop, 48 flops per byte, memory-bound on an H200 (184).

The backward pass is the same kernel three times, for all three gradients are decay attention:

  dq = attention(g, v, k), state transposed;   backwards in time, with R = dL / d state:
  dk = attention(v, g, q), R transposed;       dv = attention(k, q, g), R, whose last value is
  the gradient of the state.

With the forward pass 16 array moves, at least 11. The gradient of the decay, which few ask for, is
not a kernel but a loop over chunks that carries d state / d decay beside the state. Rates: not
measured.

One decay per head; widths in multiples of 64; bfloat16. Other calls are refused.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops import wgmma
from h2g.ops.linear.call import from_passes
from h2g.ops.linear.call import Spec

NAME = "mosaic_gpu"
CHUNK = 64  # rows of one wgmma; more would only add to the part that is quadratic in the chunk
SLICE = 64  # value columns of a warp-group: its state takes D / 2 registers of each thread
FETCHER = 40  # registers per thread of the warp-group that fetches
SHARED = 227 * 1024  # bytes of shared memory of a Hopper block
# A decay of exp(-1e4) is zero in float32, and its multiples are finite.
LEAST = -1e4


def decay_attention(q, k, v, decay, state, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.linear.decay_attention`. Serves one decay per head in bfloat16."""
  dispatch.require_hopper(NAME)
  if dispatch.interpreted() and not hasattr(plgpu, "InterpretGPUParams"):
    raise NotImplementedError(f"{NAME}: this version of JAX has no interpreter of its kernels")
  if q.dtype != jnp.bfloat16:
    raise NotImplementedError(f"{NAME} serves bfloat16: q is {q.dtype}")
  if decay is not None and decay.ndim == 3:
    raise NotImplementedError(
      f"{NAME} serves one decay per head: decay differs by step, {decay.shape} (as it does where "
      "lengths and return_state are both given)"
    )
  if spec.chunk_size not in (None, CHUNK):
    raise NotImplementedError(f"{NAME} serves chunk_size {CHUNK}: got {spec.chunk_size}")
  if spec.scale == 0.0:
    raise NotImplementedError(f"{NAME} divides by scale: got 0")
  _sizes(q.shape[3], v.shape[3])
  _sizes(v.shape[3], q.shape[3])
  if decay is None:
    decay = jnp.zeros((q.shape[2],), jnp.float32)
  plan = _Plan(spec.scale, jnp.dtype(spec.out_dtype), dispatch.interpreted())
  return _attend(plan, q, k, v, jnp.maximum(decay, LEAST), state)


def _sizes(width: int, value_width: int) -> tuple[int, int]:
  """(value slices per block, tiles in flight), from the widths and shared memory."""
  if width % SLICE or value_width % SLICE or width > 256:
    raise NotImplementedError(
      f"{NAME} serves widths in multiples of {SLICE} up to 256: got D {width}, E {value_width}"
    )
  for slices in (2, 1):
    columns = slices * SLICE
    # The state in bfloat16, the scaled values, the output tile (float32 at worst).
    fixed = columns * (2 * width + 2 * CHUNK + 4 * CHUNK) + 1024
    stage = CHUNK * 2 * (2 * width + columns)
    stages = min((SHARED - fixed) // stage, 4)
    if value_width % columns == 0 and stages >= 2:
      return slices, stages
  raise NotImplementedError(
    f"{NAME} keeps state and two tiles in shared memory: D {width} and E {value_width} do not fit"
  )


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Static: factor of the output, its dtype, whether kernels are interpreted."""

  scale: float
  out_dtype: Any
  interpret: bool


def _backward(plan: _Plan, q, k, v, decay, state, g_out, g_state, learned: bool):
  g_out = g_out.astype(q.dtype)
  turn = lambda x: jnp.swapaxes(x, 2, 3)
  plan = dataclasses.replace(plan, out_dtype=q.dtype)
  dq, _ = _scan(plan, g_out, v, k, decay, turn(state))
  # R / scale is carried, so that one factor at the output serves both terms.
  later = g_state / plan.scale
  dk, _ = _scan(plan, v, g_out, q, decay, turn(later), reverse=True)
  dv, d_state = _scan(plan, k, q, g_out, decay, later, reverse=True)
  d_decay = jnp.zeros_like(decay)
  if learned:
    d_decay = _decay_gradient(q, k, v, g_out, decay, state, g_state, plan.scale)
  return dq, dk, dv, d_decay, d_state * plan.scale


def _decay_gradient(q, k, v, g_out, decay, state, g_state, scale: float) -> Array:
  """[H] d <g_out, out> + <g_state, last state> by the decay of each head, in forward mode."""
  length = q.shape[1]
  num = -(-length // CHUNK)

  def cut(x):
    x = jnp.pad(x, ((0, 0), (0, num * CHUNK - length), (0, 0), (0, 0)))
    x = jnp.reshape(x, (x.shape[0], num, CHUNK, *x.shape[2:]))
    return jnp.transpose(x, (1, 0, 3, 2, 4))  # [N, B, H, C, ..]

  lengths = jnp.clip(length - CHUNK * jnp.arange(num), 0, CHUNK).astype(jnp.int32)
  parts = (*map(cut, (q, k, v, g_out)), lengths)

  def dot(a, b, axis_a, axis_b):
    lanes, at = tuple(range(a.ndim - 2)), (a.ndim + axis_a, b.ndim + axis_b)
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jax.lax.dot_general(a, b, ((at[:1], at[1:]), (lanes, lanes)), precision="highest")

  def value(decay):
    # No step past the end: it would fade the state.
    steps = jnp.arange(1, CHUNK + 1, dtype=jnp.int32)

    def body(carry, part):
      state, total = carry
      q, k, v, g_out, valid = part
      sums = jnp.minimum(steps, valid).astype(jnp.float32)[None, None] * decay[None, :, None]
      weights = tiles.decay_weights(sums, jnp.zeros_like(sums, jnp.int32))
      out = tiles.decay_output(q, k, v, state, weights, dot) * scale
      state = weights.whole * state + tiles.decay_keys(k, v, weights, dot)
      return (state, total + jnp.sum(out * g_out.astype(jnp.float32), (0, 2, 3))), None

    start = state, jnp.zeros_like(decay)
    if num == 1:
      # Of a loop with one turn, jaxlib 0.12.0 compiles this derivative wrongly on a CPU.
      (last, total), _ = body(start, jax.tree.map(lambda x: x[0], parts))
    else:
      (last, total), _ = jax.lax.scan(body, start, parts)
    return total + jnp.sum(last * g_state, (0, 2, 3))

  # Heads do not meet: one direction that changes all decays gives each its own derivative.
  return jax.jvp(value, (decay,), (jnp.ones_like(decay),))[1]


def _scan(plan: _Plan, q, k, v, decay, state, *, reverse: bool = False):
  """(scale * attention [B, T, H, E] in plan.out_dtype, last state [B, H, D, E] float32).

  Args:
    plan: static.
    q, k: [B, T, H, D].
    v: [B, T, H, E].
    decay: [H] finite logs.
    state: [B, H, D, E] float32 before the first step (after the last with `reverse`).
    reverse: time runs backwards, and a state that is read at step t has faded by the steps after t:
      out_s = sum_{t >= s} lambda^(t - s) (q_s.k_t) v_t + lambda^(T - s) q_s state, steps from 1.
  """
  batch, length, heads, width = q.shape
  value_width = v.shape[3]
  slices, stages = _sizes(width, value_width)
  num = -(-length // CHUNK)
  stages = min(stages, num)
  if length % CHUNK:
    pad = lambda x: jnp.pad(x, ((0, 0), (0, num * CHUNK - length), (0, 0), (0, 0)))
    q, k, v = pad(q), pad(k), pad(v)
  whole_length = num * CHUNK

  def entry(*refs):
    pl.run_scoped(
      functools.partial(
        _kernel,
        *refs,
        num=num,
        last=length - (num - 1) * CHUNK,
        slices=slices,
        stages=stages,
        scale=plan.scale,
        reverse=reverse,
      ),
      wgmma.shared_tiles(stages, CHUNK, width, dtype=q.dtype),
      wgmma.shared_tiles(stages, CHUNK, width, dtype=q.dtype),
      wgmma.shared_tiles(stages, slices, CHUNK, SLICE, dtype=q.dtype),
      wgmma.shared_tiles(slices, width, SLICE, dtype=q.dtype),
      wgmma.shared_tiles(slices, CHUNK, SLICE, dtype=q.dtype),
      wgmma.shared_tiles(slices, CHUNK, SLICE, dtype=plan.out_dtype),
      plgpu.Barrier(num_arrivals=2 + slices, num_barriers=stages),
      plgpu.Barrier(num_arrivals=slices, num_barriers=stages),
      collective_axes="wg",
    )

  out, after = plgpu.kernel(
    entry,
    out_type=[
      jax.ShapeDtypeStruct((batch, whole_length, heads, value_width), plan.out_dtype),
      jax.ShapeDtypeStruct(state.shape, jnp.float32),
    ],
    grid=(value_width // (slices * SLICE), heads, batch),
    grid_names=("column", "head", "batch"),
    num_threads=slices + 1,
    thread_name="wg",
    compiler_params=plgpu.CompilerParams(approx_math=True),
    **(dict(interpret=plgpu.InterpretGPUParams()) if plan.interpret else {}),
  )(q, k, v, decay, state)
  return out[:, :length], after


def _kernel(
  q,
  k,
  v,
  decay,
  before,
  out,
  after,
  q_tile,
  k_tile,
  v_tile,
  state_tile,
  scaled_tile,
  out_tile,
  filled,
  consumed,
  *,
  num: int,
  last: int,
  slices: int,
  stages: int,
  scale: float,
  reverse: bool,
):
  batch, head = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
  wg = jax.lax.axis_index("wg")
  first_column = jax.lax.axis_index("column") * (slices * SLICE)
  tile_id = lambda n: num - 1 - n if reverse else n
  steps_of = lambda n: pl.ds(tile_id(n) * CHUNK, CHUNK)

  @pl.when(wg == slices)
  def _fetch():
    plgpu.set_max_registers(FETCHER, action="decrease")

    def fetch(n, slot):
      full = filled.at[slot]
      plgpu.copy_gmem_to_smem(q.at[batch, steps_of(n), head], q_tile.at[slot], full)
      plgpu.copy_gmem_to_smem(k.at[batch, steps_of(n), head], k_tile.at[slot], full)
      for at in range(slices):
        columns = pl.ds(first_column + at * SLICE, SLICE)
        source = v.at[batch, steps_of(n), head, columns]
        plgpu.copy_gmem_to_smem(source, v_tile.at[slot, at], full)

    for n in range(stages):
      fetch(jnp.int32(n), n)

    @pl.loop(0, num - stages)
    def _(n):
      slot = jax.lax.rem(n, jnp.asarray(stages, n.dtype))
      plgpu.barrier_wait(consumed.at[slot])
      fetch(n + stages, slot)

    # A barrier is left with all its phases seen.
    for n in range(num - stages, num):
      plgpu.barrier_wait(consumed.at[n % stages])

  @pl.when(wg < slices)
  def _compute():
    # What the fetching warp-group leaves of 512 per thread of one; never fewer than at launch.
    plgpu.set_max_registers(min(256, (512 - FETCHER) // slices // 8 * 8), action="increase")
    columns = pl.ds(first_column + wg * SLICE, SLICE)
    mine = before.at[batch, head, :, columns]
    log_decay = decay[head]
    rows = wgmma.iota((CHUNK, CHUNK), 0)
    apart = (
      (wgmma.iota((CHUNK, CHUNK), 1) - rows) if reverse else (rows - wgmma.iota((CHUNK, CHUNK), 1))
    )
    within = tiles.decay_power(log_decay, apart)
    step = wgmma.iota((CHUNK, SLICE), 0)

    def body(n, state):
      slot = jax.lax.rem(n, jnp.asarray(stages, n.dtype))
      valid = jnp.where(tile_id(n) == num - 1, jnp.int32(last), jnp.int32(CHUNK))
      since = tiles.decay_power(log_decay, step + 1)
      until = tiles.decay_power(log_decay, valid - 1 - step)
      if reverse:
        since, until = until, since
      whole = jnp.exp(log_decay * valid.astype(jnp.float32))
      state_tile.at[wg][...] = state.astype(q.dtype)
      plgpu.barrier_wait(filled.at[slot])
      values = wgmma.load(v_tile.at[slot, wg]).astype(jnp.float32)
      scaled_tile.at[wg][...] = (values * until).astype(q.dtype)
      plgpu.commit_smem()
      queries, keys = q_tile.at[slot], k_tile.at[slot]
      scores = wgmma.product(queries, wgmma.turned(keys))
      scores = (scores * within).astype(q.dtype)
      read = wgmma.product(queries, state_tile.at[wg]) * since
      read = wgmma.add_product(read, scores, v_tile.at[slot, wg])
      state = wgmma.add_product(state * whole, wgmma.turned(keys), scaled_tile.at[wg])
      plgpu.barrier_arrive(consumed.at[slot])
      # The tile of the previous step has left shared memory before this one is written.
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)
      out_tile.at[wg][...] = (read * scale).astype(out.dtype)
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(out_tile.at[wg], out.at[batch, steps_of(n), head, columns])
      return state

    state = jax.lax.fori_loop(0, num, body, wgmma.load(mine))
    after.at[batch, head, :, columns][...] = state
    plgpu.wait_smem_to_gmem(0)


_attend = from_passes(_scan, _backward)
