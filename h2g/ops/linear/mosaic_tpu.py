"""Decay attention on a TPU, forward and backward: one pass over time with the state in VMEM.

Plan. The grid is (batch, head, chunk), chunks in order; the state [D, E] float32 lives in VMEM from
the first chunk to the last, so q, k, v are read once and the output is written once: nothing of
size T x D x D and no state per chunk goes through HBM. A chunk of C steps costs four matmuls on the
MXU, 2 C^2 (D + E) / 2 + 4 C D E flops (the causal half counted), in the operands' dtype with
float32 accumulation.

The backward pass is two such passes. The first walks forward, carries the state again and writes
dq; the second walks backward, carries the gradient of the state and writes dk, dv. Together they
read seven arrays of size T and write three, where one impossible pass would read four: with the
forward pass 14 array moves, at least 11. Only where the decay itself is differentiated, the first
pass also writes the state before each chunk (C D E / (C D) = E / C arrays of q's size in float32),
for the second to read.

Floor on a chip of W bytes/s: forward 2 B T H (2 D + 2 E) / W for bfloat16. Rates: not measured.

One decay per head. Decays that differ by step are refused.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops.linear.call import from_passes
from h2g.ops.linear.call import Spec

NAME = "mosaic_tpu"
LANES = 128
# A decay of exp(-1e4) is zero in float32, and its multiples are finite.
LEAST = -1e4


def decay_attention(q, k, v, decay, state, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.linear.decay_attention`. Serves one decay per head, float32 and bfloat16."""
  dispatch.require(NAME, "tpu")
  if q.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"{NAME} serves float32 and bfloat16: q is {q.dtype}")
  if decay is not None and decay.ndim == 3:
    raise NotImplementedError(
      f"{NAME} serves one decay per head: decay differs by step, {decay.shape} (as it does where "
      "lengths and return_state are both given)"
    )
  chunk = _chunk(q.shape[1], q.shape[3], v.shape[3], q.dtype, spec.chunk_size)
  if decay is None:
    decay = jnp.zeros((q.shape[2],), jnp.float32)
  decay = jnp.maximum(decay, LEAST)
  plan = _Plan(chunk, spec.scale, jnp.dtype(spec.out_dtype), dispatch.interpreted())
  return _attend(plan, q, k, v, decay, state)


def _chunk(length: int, width: int, value_width: int, dtype, wanted: int | None) -> int:
  """Steps per chunk, from shapes and VMEM.

  The MXU wants 128 rows; more make the part that is quadratic in the chunk the larger one.
  """
  rows = 32 // jnp.dtype(dtype).itemsize  # of a native tile
  chunk = wanted or LANES
  if chunk < length and chunk % rows:
    raise NotImplementedError(
      f"{NAME} serves chunk_size in multiples of {rows} for {jnp.dtype(dtype)}: got {chunk}"
    )
  chunk = min(chunk, length)
  pad = lambda n: -(-n // LANES) * LANES
  width, value_width = pad(width), pad(value_width)
  # Backward, second pass: six tiles in two buffers each, products and their factors in float32,
  # the state in scratch, in, out and once more as a matmul's result.
  tile = pad(chunk) * max(width, value_width) * 4
  needed = 12 * tile + 6 * pad(chunk) ** 2 * 4 + 6 * width * value_width * 4
  if needed > 14 * 2**20:
    raise NotImplementedError(
      f"{NAME} holds the state and a chunk in VMEM: D {width}, E {value_width} with chunks of "
      f"{chunk} need {needed >> 20} MiB of 14"
    )
  return chunk


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Static: steps per chunk, factor of the output, its dtype, whether kernels are interpreted."""

  chunk: int
  scale: float
  out_dtype: Any
  interpret: bool


def _backward(plan: _Plan, q, k, v, decay, state, g_out, g_state, learned: bool):
  g_out = g_out.astype(q.dtype)
  dq, states = _query_pass(plan, g_out, k, v, decay, state, learned)
  dk, dv, d_state, d_decay = _key_pass(plan, q, k, v, g_out, decay, g_state, states)
  d_decay = jnp.zeros_like(decay) if d_decay is None else d_decay[:, :, 0, 0].sum(0)
  return dq, dk, dv, d_decay.astype(decay.dtype), d_state


# One kernel body per pass. Refs: tiles [C, D], the decay [1, 128] (all lanes the same), the state
# [D, E] in, out and in scratch.


def _dot(a: Array, b: Array, axis_a: int, axis_b: int, *, dtype) -> Array:
  """a, b in the operands' dtype; float32 out."""
  return jax.lax.dot_general(
    a.astype(dtype),
    b.astype(dtype),
    (((a.ndim + axis_a,), (b.ndim + axis_b,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def _at(n, plan: _Plan, length: int, decay, dtype):
  """Of chunk n: (read a tile with zeros past the end of time, number of steps that exist, the
  decay's weights, dot in this dtype)."""
  dot = functools.partial(_dot, dtype=dtype)
  weights = lambda valid: tiles.constant_decay_weights(decay[:, :1], plan.chunk, valid)
  if length % plan.chunk == 0:
    return (lambda ref: ref[...]), plan.chunk, weights(plan.chunk), dot
  valid = jnp.minimum(plan.chunk, length - n * plan.chunk)

  def load(ref):
    x = ref[...]
    rows = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(rows < valid, x, jnp.zeros_like(x))

  return load, valid, weights(valid), dot


def _forward_kernel(q, k, v, decay, before, out, after, carried, *, plan: _Plan, length: int):
  n = pl.program_id(2)

  @pl.when(n == 0)
  def _():
    carried[...] = before[...]

  load, _, weights, dot = _at(n, plan, length, decay, k.dtype)
  keys, values, state = load(k), load(v), carried[...]
  read = tiles.decay_output(load(q), keys, values, state, weights, dot)
  out[...] = (read * plan.scale).astype(out.dtype)
  state = state * weights.whole + tiles.decay_keys(keys, values, weights, dot)
  carried[...] = state

  @pl.when(n == pl.num_programs(2) - 1)
  def _():
    after[...] = state


def _query_kernel(g_out, k, v, decay, before, dq, *rest, plan: _Plan, length: int):
  """dq = ((g v^T) * within) k + since * (g S^T): values in place of keys, the state transposed."""
  *states, carried = rest
  n = pl.program_id(2)

  @pl.when(n == 0)
  def _():
    carried[...] = before[...]

  load, _, weights, dot = _at(n, plan, length, decay, k.dtype)
  keys, values, grad, state = load(k), load(v), load(g_out), carried[...]
  for ref in states:
    ref[...] = state
  inside = dot(grad, values, -1, -1) * weights.within
  read = dot(inside, keys, -1, -2) + dot(grad, state, -1, -1) * weights.since
  dq[...] = (read * plan.scale).astype(dq.dtype)
  carried[...] = state * weights.whole + tiles.decay_keys(keys, values, weights, dot)


def _key_kernel(q, k, v, g_out, decay, after, *rest, plan: _Plan, length: int, learned: bool):
  """dk = scale (P^T q) + until * (v R^T), dv = scale (A^T g) + until * (k R); R = dL / d state.

  A = (q k^T) * within, P = (g v^T) * within. The gradient of the decay is the sum over everything
  of its product with the number of times that the decay has multiplied it.
  """
  if learned:
    states, dk, dv, d_before, d_decay, carried = rest
  else:
    dk, dv, d_before, carried = rest
  step = pl.program_id(2)
  n = pl.num_programs(2) - 1 - step

  @pl.when(step == 0)
  def _():
    carried[...] = after[...]

  load, valid, weights, dot = _at(n, plan, length, decay, k.dtype)
  queries, keys, values, grad = load(q), load(k), load(v), load(g_out)
  after_this = carried[...]
  scores = dot(queries, keys, -1, -1) * weights.within
  grads = dot(grad, values, -1, -1) * weights.within
  dk_later = dot(values, after_this, -1, -1) * weights.until
  dv_later = dot(keys, after_this, -1, -2) * weights.until
  dk[...] = (dot(grads, queries, -2, -2) * plan.scale + dk_later).astype(dk.dtype)
  dv[...] = (dot(scores, grad, -2, -2) * plan.scale + dv_later).astype(dv.dtype)
  added = tiles.decay_keys(queries, grad, weights._replace(until=weights.since), dot)
  before_this = after_this * weights.whole + added * plan.scale
  carried[...] = before_this

  @pl.when(n == 0)
  def _():
    d_before[...] = before_this

  if not learned:
    return
  state = states[...]
  chunk, width = keys.shape
  rows = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
  columns = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
  steps = jax.lax.broadcasted_iota(jnp.int32, (chunk, width), 0)
  wide = lambda x: x.astype(jnp.float32)
  raw = dot(queries, keys, -1, -1) * grads * plan.scale
  dq_before = dot(grad, state, -1, -1) * weights.since * plan.scale
  total = _sum(raw * wide(rows - columns))
  total += _sum(dq_before * wide(queries) * wide(steps + 1))
  total += _sum(dk_later * wide(keys) * wide(jnp.maximum(valid - 1 - steps, 0)))
  total += _sum(after_this * state) * weights.whole * wide(jnp.asarray(valid, jnp.int32))

  @pl.when(step == 0)
  def _():
    d_decay[...] = jnp.zeros_like(d_decay)

  d_decay[...] += jnp.broadcast_to(total, d_decay.shape)


def _sum(x: Array) -> Array:
  """[1, 1]."""
  return jnp.sum(jnp.sum(x, axis=1, keepdims=True), axis=0, keepdims=True)


# What stands around the kernels: layouts, grids, shapes.


class _Layout:
  """Where tiles lie: [B, T, H * D], as it is, where D fills lanes, else [B, H, T, D]."""

  def __init__(self, plan: _Plan, shape: tuple[int, int, int], backward: bool = False):
    self.plan = plan
    self.batch, self.length, self.heads = shape
    self.num = -(-self.length // plan.chunk)
    self.chunk_id = (lambda n: self.num - 1 - n) if backward else (lambda n: n)

  def place(self, x: Array) -> Array:
    if x.shape[3] % LANES == 0:
      return jnp.reshape(x, (*x.shape[:2], -1))
    return jnp.swapaxes(x, 1, 2)

  def unplace(self, x: Array) -> Array:
    if x.ndim == 3:
      return jnp.reshape(x, (*x.shape[:2], self.heads, -1))
    return jnp.swapaxes(x, 1, 2)

  def tile(self, width: int) -> pl.BlockSpec:
    at, chunk = self.chunk_id, self.plan.chunk
    if width % LANES == 0:
      return pl.BlockSpec((None, chunk, width), lambda b, h, n: (b, at(n), h))
    return pl.BlockSpec((None, None, chunk, width), lambda b, h, n: (b, h, at(n), 0))

  def array(self, width: int, dtype) -> jax.ShapeDtypeStruct:
    if width % LANES == 0:
      return jax.ShapeDtypeStruct((self.batch, self.length, self.heads * width), dtype)
    return jax.ShapeDtypeStruct((self.batch, self.heads, self.length, width), dtype)

  def per_head(self, rows: int, width: int) -> pl.BlockSpec:
    """The same block at every chunk: states, sums."""
    return pl.BlockSpec((None, None, rows, width), lambda b, h, n: (b, h, 0, 0))

  def per_chunk(self, rows: int, width: int) -> pl.BlockSpec:
    at = self.chunk_id
    return pl.BlockSpec((None, None, None, rows, width), lambda b, h, n: (b, h, at(n), 0, 0))

  def decay(self) -> pl.BlockSpec:
    return pl.BlockSpec((None, 1, LANES), lambda b, h, n: (h, 0, 0))

  def call(self, kernel, in_specs, out_specs, out_shape, scratch, *arrays):
    semantics = ("parallel", "parallel", "arbitrary")
    return pl.pallas_call(
      kernel,
      grid=(self.batch, self.heads, self.num),
      in_specs=in_specs,
      out_specs=out_specs,
      out_shape=out_shape,
      scratch_shapes=[pltpu.VMEM(scratch, jnp.float32)],
      compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
      interpret=self.plan.interpret,
    )(*arrays)


def _lanes(decay: Array) -> Array:
  return jnp.broadcast_to(decay[:, None, None], (decay.shape[0], 1, LANES))


def _forward_pass(plan: _Plan, q, k, v, decay, state):
  layout, width, value_width = _Layout(plan, q.shape[:3]), q.shape[3], v.shape[3]
  whole = layout.per_head(width, value_width)
  out, state = layout.call(
    functools.partial(_forward_kernel, plan=plan, length=layout.length),
    [*map(layout.tile, (width, width, value_width)), layout.decay(), whole],
    [layout.tile(value_width), whole],
    [layout.array(value_width, plan.out_dtype), jax.ShapeDtypeStruct(state.shape, jnp.float32)],
    state.shape[2:],
    *map(layout.place, (q, k, v)),
    _lanes(decay),
    state,
  )
  return layout.unplace(out), state


def _query_pass(plan: _Plan, g_out, k, v, decay, state, learned: bool):
  """(dq, states before each chunk [B, H, N, D, E] if the decay is learned)."""
  layout, width, value_width = _Layout(plan, k.shape[:3]), k.shape[3], v.shape[3]
  batch, heads = state.shape[:2]
  out_specs, out_shape = [layout.tile(width)], [layout.array(width, k.dtype)]
  if learned:
    out_specs.append(layout.per_chunk(width, value_width))
    shape = (batch, heads, layout.num, width, value_width)
    out_shape.append(jax.ShapeDtypeStruct(shape, jnp.float32))
  dq, *states = layout.call(
    functools.partial(_query_kernel, plan=plan, length=layout.length),
    [
      *map(layout.tile, (value_width, width, value_width)),
      layout.decay(),
      layout.per_head(width, value_width),
    ],
    out_specs,
    out_shape,
    state.shape[2:],
    *map(layout.place, (g_out, k, v)),
    _lanes(decay),
    state,
  )
  return layout.unplace(dq), states


def _key_pass(plan: _Plan, q, k, v, g_out, decay, g_state, states):
  """(dk, dv, gradient of the state before, of the decay [B, H, 1, 128] or None)."""
  layout, width, value_width = _Layout(plan, q.shape[:3], True), q.shape[3], v.shape[3]
  whole = layout.per_head(width, value_width)
  in_specs = [*map(layout.tile, (width, width, value_width, value_width)), layout.decay(), whole]
  out_specs = [layout.tile(width), layout.tile(value_width), whole]
  out_shape = [
    layout.array(width, k.dtype),
    layout.array(value_width, v.dtype),
    jax.ShapeDtypeStruct(g_state.shape, jnp.float32),
  ]
  if states:
    in_specs.append(layout.per_chunk(width, value_width))
    out_specs.append(layout.per_head(1, LANES))
    out_shape.append(jax.ShapeDtypeStruct((*g_state.shape[:2], 1, LANES), jnp.float32))
  dk, dv, d_state, *d_decay = layout.call(
    functools.partial(_key_kernel, plan=plan, length=layout.length, learned=bool(states)),
    in_specs,
    out_specs,
    out_shape,
    g_state.shape[2:],
    *map(layout.place, (q, k, v, g_out)),
    _lanes(decay),
    g_state,
    *states,
  )
  return layout.unplace(dk), layout.unplace(dv), d_state, d_decay[0] if d_decay else None


_attend = from_passes(_forward_pass, _backward)
