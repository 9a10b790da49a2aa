"""Decode attention on a TPU, forward and backward: one pass over the rows that a head has kept.

Plan. The grid is (batch, key head, block of rows), blocks in order; the query heads of one key head
are the rows of one matmul, padded to a native tile, and their online softmax lives in VMEM from the
first block to the last. Lengths are prefetched: past the last block of a head the block number
stands still, so that nothing more is loaded, and the step does nothing. k and v are read once, up
to the length: sum(lengths) (D + E) numbers, against 2 H / K multiplications each, which leaves the
MXU idle and the memory the floor, sum(lengths) (D + E) size / W seconds at W bytes/s. Capacity that
is not filled costs one empty grid step per block. Rates: not measured.

The backward pass is one such pass as well: from the saved log-sum-exp it adds up dq in VMEM and
writes dk and dv (zeros past the length, where there is nothing to read). It reads k and v once and
writes as much again. A sink is joined in outside, from the log-sum-exp.

Rows by id (`ids`) are refused: single rows are too small for a copy each.
"""

import dataclasses
import functools

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops.cache.call import capped
from h2g.ops.cache.call import Operands
from h2g.ops.cache.call import Spec

NAME = "mosaic_tpu"
LANES = 128
VMEM = 14 * 2**20


def decode_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.cache.decode_attention`. Serves float32 and bfloat16 without `ids`."""
  dispatch.require(NAME, "tpu")
  q, k, v = operands[:3]
  if q.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"{NAME} serves float32 and bfloat16: q is {q.dtype}")
  if operands.ids is not None:
    raise NotImplementedError(f"{NAME} serves the first rows of a head: ids would name single ones")
  if not k.shape[2]:
    raise NotImplementedError(f"{NAME} serves caches with room for rows: k is {k.shape}")
  block = _block(k.shape[2], q.shape[1] // k.shape[1], k.shape[3], v.shape[3], q.dtype)
  return _attend(_Plan(block, spec.scale, spec.softcap, dispatch.interpreted()), operands)


def _block(rows: int, groups: int, width: int, value_width: int, dtype) -> int:
  """Rows of k and v per grid step, from shapes and VMEM: few steps, a power of two up to 2048."""
  pad = lambda n: -(-n // LANES) * LANES
  size, lanes = jnp.dtype(dtype).itemsize, pad(width) + pad(value_width)
  heads = _padded(groups, dtype)
  # Backward, per row of the cache: k, v, dk, dv in two buffers each, float32 copies of two of them,
  # and four tiles of logits and weights; per query head, q, g, dq and the state.
  per_row = lanes * (4 * size + 8) + 16 * heads
  fixed = heads * 8 * lanes * 4
  block = 2048
  while block > LANES and block * per_row + fixed > VMEM:
    block //= 2
  needed = min(block, pad(rows)) * per_row + fixed
  if needed > VMEM:
    raise NotImplementedError(
      f"{NAME} holds a block of rows in VMEM: {groups} heads per key head, D {width}, E "
      f"{value_width} need {needed >> 20} MiB of {VMEM >> 20}"
    )
  return min(block, rows)


def _padded(groups: int, dtype) -> int:
  """Query heads per key head, in whole native tiles."""
  rows = 32 // jnp.dtype(dtype).itemsize
  return -(-groups // rows) * rows


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Static: rows per block, factor and cap of the logits, whether kernels are interpreted."""

  block: int
  scale: float
  softcap: float | None
  interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, operands: Operands) -> tuple[Array, Array]:
  q, k, v, lengths, _, sinks = operands
  out, lse = _forward_pass(plan, q, k, v, lengths)
  if sinks is not None:
    joint = jnp.logaddexp(lse, sinks.astype(jnp.float32)[None, :])
    out = out * jnp.exp(lse - tiles.finite_or_zero(joint))[..., None]
    lse = joint
  return out.astype(q.dtype), lse


def _attend_forward(plan: _Plan, operands: Operands):
  out, lse = _attend(plan, operands)
  return (out, lse), (operands, out, lse)


def _attend_backward(plan: _Plan, saved, cotangents):
  """With p the weights, g the cotangent of out and a that of lse, a sink being a key with v = 0:

    dx = p * (g.v + r),   r = a - g.out,   dq = scale * sum_c dx k,   dk = scale * dx q,   dv = p g

  Source: arXiv 2205.14135 appendix B.4.
  """
  operands, out, lse = saved
  q, k, v, lengths, _, sinks = operands
  g_out, g_lse = cotangents
  wide = lambda x: x.astype(jnp.float32)
  term = jnp.where(lse > -jnp.inf, wide(g_lse), 0.0) - (wide(g_out) * wide(out)).sum(-1)
  lse = tiles.finite_or_zero(lse)
  dq, dk, dv = _backward_pass(plan, q, k, v, lengths, g_out.astype(q.dtype), lse, term)
  d_sinks = None
  if sinks is not None:
    d_sinks = (jnp.exp(wide(sinks)[None, :] - lse) * term).sum(0).astype(sinks.dtype)
  return (Operands(dq, dk, dv, None, None, d_sinks),)


_attend.defvjp(_attend_forward, _attend_backward)


# One kernel body per pass. Refs: lengths [B, K] in SMEM, rows of the cache [c, D] and [c, E], query
# heads [G, D] and [G, E], numbers per query head [G, 128] (all lanes the same).


def _dot(a: Array, b: Array, axis_a: int, axis_b: int, *, dtype) -> Array:
  """a, b in the operands' dtype; float32 out."""
  return jax.lax.dot_general(
    a.astype(dtype),
    b.astype(dtype),
    (((axis_a,), (axis_b,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def _load(ref, left: Array) -> Array:
  """The first `left` rows; zeros behind them, whatever stands there."""
  x = ref[...]
  row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
  return jnp.where(row < left, x, jnp.zeros_like(x))


def _logits(plan: _Plan, q: Array, k: Array, left: Array, dot) -> Array:
  """[G, c]; -inf behind the first `left` rows."""
  x = capped(dot(q, k, 1, 1) * plan.scale, plan.softcap)
  return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < left, x, -jnp.inf)


def _lanes(x: Array) -> Array:
  return jnp.broadcast_to(x[:, None], (x.shape[0], LANES))


def _forward_kernel(lengths, q, k, v, out, lse, acc, largest, total, *, plan: _Plan):
  n = pl.program_id(2)
  left = lengths[pl.program_id(0), pl.program_id(1)] - n * plan.block

  @pl.when(n == 0)
  def _():
    state = tiles.softmax_init(acc.shape[:1], acc.shape[1])
    acc[...], largest[...], total[...] = state.acc, _lanes(state.largest), _lanes(state.total)

  @pl.when(left > 0)
  def _():
    dot = functools.partial(_dot, dtype=k.dtype)
    values = _load(v, left)
    state = tiles.SoftmaxState(acc[...], largest[:, 0], total[:, 0])
    x = _logits(plan, q[...], k[...], left, dot)
    state = tiles.softmax_step(state, x, lambda exps: dot(exps, values, 1, 0))
    acc[...], largest[...], total[...] = state.acc, _lanes(state.largest), _lanes(state.total)

  @pl.when(n == pl.num_programs(2) - 1)
  def _():
    found = tiles.softmax_finish(tiles.SoftmaxState(acc[...], largest[:, 0], total[:, 0]))
    out[...], lse[...] = found[0], _lanes(found[1])


def _backward_kernel(lengths, q, k, v, g, lse, term, dq, dk, dv, acc, *, plan: _Plan):
  n = pl.program_id(2)
  left = lengths[pl.program_id(0), pl.program_id(1)] - n * plan.block

  @pl.when(n == 0)
  def _():
    acc[...] = jnp.zeros_like(acc)

  @pl.when(left > 0)
  def _():
    dot = functools.partial(_dot, dtype=k.dtype)
    keys, queries, grad = _load(k, left), q[...], g[...]
    x = _logits(plan, queries, keys, left, dot)
    p = jnp.exp(x - lse[:, :1])
    dx = p * (dot(grad, _load(v, left), 1, 1) + term[:, :1])
    if plan.softcap is not None:
      dx = dx * (1 - (jnp.where(x > -jnp.inf, x, 0.0) / plan.softcap) ** 2)
    acc[...] += dot(dx, keys, 1, 0)
    dk[...] = (dot(dx, queries, 0, 0) * plan.scale).astype(dk.dtype)
    dv[...] = dot(p, grad, 0, 0).astype(dv.dtype)

  @pl.when(left <= 0)
  def _():
    dk[...] = jnp.zeros_like(dk)
    dv[...] = jnp.zeros_like(dv)

  @pl.when(n == pl.num_programs(2) - 1)
  def _():
    dq[...] = (acc[...] * plan.scale).astype(dq.dtype)


# What stands around the kernels: grids, blocks, shapes.


def _rows_spec(plan: _Plan, width: int) -> pl.BlockSpec:
  """A block of rows to read; past the length the last one again, which loads nothing."""

  def index(b, h, n, lengths):
    # Lengths are not negative, and `//` would ask for their sign, which needs a TPU to lower.
    last = jax.lax.div(jnp.maximum(lengths[b, h] - 1, 0), jnp.int32(plan.block))
    return b, h, jnp.minimum(n, last), 0

  return pl.BlockSpec((None, None, plan.block, width), index)


def _written_spec(plan: _Plan, width: int) -> pl.BlockSpec:
  return pl.BlockSpec((None, None, plan.block, width), lambda b, h, n, lengths: (b, h, n, 0))


def _heads_spec(heads: int, width: int) -> pl.BlockSpec:
  """The same query heads at every block of rows."""
  return pl.BlockSpec((None, None, heads, width), lambda b, h, n, lengths: (b, h, 0, 0))


def _call(plan: _Plan, kernel, shape, in_specs, out_specs, out_shape, scratch, lengths, *arrays):
  batch, key_heads, rows = shape
  return pl.pallas_call(
    functools.partial(kernel, plan=plan),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(batch, key_heads, -(-rows // plan.block)),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(x, jnp.float32) for x in scratch],
    ),
    out_shape=out_shape,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=2 * VMEM
    ),
    interpret=plan.interpret,
  )(jnp.clip(lengths, 0, rows), *arrays)


def _by_key_head(x: Array, key_heads: int, heads: int) -> Array:
  """[B, H, F] -> [B, K, heads, F], zeros behind the H / K."""
  x = jnp.reshape(x, (x.shape[0], key_heads, -1, x.shape[2]))
  return jnp.pad(x, ((0, 0), (0, 0), (0, heads - x.shape[2]), (0, 0)))


def _by_head(x: Array, groups: int) -> Array:
  """The inverse of `_by_key_head`."""
  return jnp.reshape(x[:, :, :groups], (x.shape[0], -1, x.shape[3]))


def _forward_pass(plan: _Plan, q, k, v, lengths):
  """(out [B, H, E], lse [B, H]), float32."""
  batch, key_heads, rows, width = k.shape
  groups, value_width = q.shape[1] // key_heads, v.shape[3]
  heads = _padded(groups, q.dtype)
  array = lambda n: jax.ShapeDtypeStruct((batch, key_heads, heads, n), jnp.float32)
  out, lse = _call(
    plan,
    _forward_kernel,
    (batch, key_heads, rows),
    [_heads_spec(heads, width), _rows_spec(plan, width), _rows_spec(plan, value_width)],
    [_heads_spec(heads, value_width), _heads_spec(heads, LANES)],
    [array(value_width), array(LANES)],
    [(heads, value_width), (heads, LANES), (heads, LANES)],
    lengths,
    _by_key_head(q, key_heads, heads),
    k,
    v,
  )
  return _by_head(out, groups), _by_head(lse, groups)[..., 0]


def _backward_pass(plan: _Plan, q, k, v, lengths, g_out, lse, term):
  """(dq, dk, dv), shaped as q, k, v."""
  batch, key_heads, rows, width = k.shape
  groups, value_width = q.shape[1] // key_heads, v.shape[3]
  heads = _padded(groups, q.dtype)
  of_heads = lambda x: _by_key_head(x, key_heads, heads)
  numbers = lambda x: of_heads(jnp.broadcast_to(x[..., None], (*x.shape, LANES)))
  dq, dk, dv = _call(
    plan,
    _backward_kernel,
    (batch, key_heads, rows),
    [
      _heads_spec(heads, width),
      _rows_spec(plan, width),
      _rows_spec(plan, value_width),
      _heads_spec(heads, value_width),
      _heads_spec(heads, LANES),
      _heads_spec(heads, LANES),
    ],
    [_heads_spec(heads, width), _written_spec(plan, width), _written_spec(plan, value_width)],
    [
      jax.ShapeDtypeStruct((batch, key_heads, heads, width), q.dtype),
      jax.ShapeDtypeStruct(k.shape, k.dtype),
      jax.ShapeDtypeStruct(v.shape, v.dtype),
    ],
    [(heads, width)],
    lengths,
    of_heads(q),
    k,
    v,
    of_heads(g_out),
    numbers(lse),
    numbers(term),
  )
  return _by_head(dq, groups), dk, dv
