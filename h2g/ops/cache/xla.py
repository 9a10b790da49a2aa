"""Decode attention from plain XLA operations.

Plan. Memory-bound: every kept row of k and v is read once, B K C (D + E) numbers, against 2 H / K
multiplications each. The query heads of one key head are the rows of one small matmul.

  accelerators  a loop over blocks of rows, all heads at once, up to the longest head; a block is
                masked on chip and added to an online softmax, so neither unused capacity is read
                nor a masked copy of v written.
  CPU           two matmuls over the whole cache, on all cores and without a copy, where that is
                less work than a loop over heads, each up to its own length, on one core (matmuls
                there copy the slice they are given). What stands behind a length has no weight,
                and where it is NaN, so that it survives in 0 * NaN, the loop does it over.

With ids the rows of a block are gathered on the way.

The backward pass (rare: nobody trains through a cache) differentiates the definition, whose weights
are no larger than [B, H, C].
"""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops.cache import reference
from h2g.ops.cache.call import capped
from h2g.ops.cache.call import Operands
from h2g.ops.cache.call import Spec
from h2g.ops.cache.state import gather
from h2g.ops.tiles import accumulator_dtype

_BLOCK = dict(cpu=512, gpu=16384, tpu=4096)  # rows
# One core with a copy beside all cores without: the loop wins where it reads less than this share.
_ALONE = 0.4


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def decode_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.cache.decode_attention`. Serves every call."""
  q, k, v, lengths, ids, sinks = operands
  batch, heads, width = q.shape
  key_heads = k.shape[1]
  groups = heads // key_heads
  dtype = accumulator_dtype(q)
  rows = k.shape[2] if ids is None else ids.shape[2]
  operands = operands._replace(
    q=jnp.reshape(q, (batch, key_heads, groups, width)), lengths=jnp.clip(lengths, 0, rows)
  )
  if not rows:
    state = tiles.softmax_init((batch, key_heads, groups), v.shape[3], dtype)
  elif dispatch.platform() == "cpu":
    state = _on_cpu(operands, spec, rows)
  else:
    state = _by_blocks(operands, spec, rows)
  if sinks is not None:
    sinks = jnp.reshape(sinks.astype(dtype), (1, key_heads, groups))
  out, lse = tiles.softmax_finish(state, sinks)
  flat = lambda x: jnp.reshape(x, (batch, heads, *x.shape[3:]))
  return flat(out).astype(q.dtype), flat(lse)


def _by_blocks(operands: Operands, spec: Spec, rows: int) -> tiles.SoftmaxState:
  """A loop over blocks of rows, up to the longest head; q is [B, K, G, D]."""
  q, k, v, lengths, ids, _ = operands
  dtype = accumulator_dtype(q)
  operand_dtype = dtype if dispatch.platform() == "cpu" else q.dtype
  exact = None if operand_dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
  block = min(_BLOCK[dispatch.platform()], rows)

  def dot(a, b, axis_b):
    dims = (((3,), (axis_b,)), ((0, 1), (0, 1)))
    a, b = a.astype(operand_dtype), b.astype(operand_dtype)
    return jax.lax.dot_general(a, b, dims, precision=exact, preferred_element_type=dtype)

  def read(x, first):
    if ids is None:
      return jax.lax.dynamic_slice_in_dim(x, first, block, 2)
    return gather(x, jax.lax.dynamic_slice_in_dim(ids, first, block, 2))

  def step(i, state):
    # The last block starts early where rows are no multiple of blocks, and leaves what was done.
    first = jnp.minimum(i * block, rows - block)
    row = first + jnp.arange(block, dtype=jnp.int32)[None, None, :]
    counts = (row >= i * block) & (row < lengths[..., None])
    if ids is not None:
      names = jax.lax.dynamic_slice_in_dim(ids, first, block, 2)
      counts = counts & (names >= 0) & (names < k.shape[2])
    x = capped(dot(q, read(k, first), 3) * spec.scale, spec.softcap)
    x = jnp.where(counts[:, :, None, :], x, -jnp.inf)
    values = read(v, first)
    values = jnp.where(counts[..., None], values, jnp.zeros_like(values))
    return tiles.softmax_step(state, x, lambda exps: dot(exps, values, 2))

  state = tiles.softmax_init(q.shape[:3], v.shape[3], dtype)
  return jax.lax.fori_loop(0, -(-jnp.max(lengths, initial=0) // block), step, state)


def _on_cpu(operands: Operands, spec: Spec, rows: int) -> tiles.SoftmaxState:
  """At once or head by head, q as in `_by_blocks`."""
  q, _, v, lengths, ids, _ = operands
  dtype = accumulator_dtype(q)
  if ids is not None or q.dtype != dtype:
    return _by_heads(operands, spec, rows)
  nothing = tiles.softmax_init(q.shape[:3], v.shape[3], dtype)
  once = jnp.sum(lengths) > int(_ALONE * q.shape[0] * q.shape[1] * rows)
  # Loops of no or one turn, in place of a conditional: that under vmap would do both, always.
  whole = jax.lax.fori_loop(
    0, once.astype(jnp.int32), lambda _, state: _at_once(operands, spec), nothing
  )
  done = once & ~jnp.isnan(whole.acc).any()
  rest = operands._replace(lengths=jnp.where(done, 0, lengths))
  return jax.tree.map(
    lambda a, b: jnp.where(jnp.reshape(done, (1,) * a.ndim), a, b),
    whole,
    _by_heads(rest, spec, rows),
  )


def _at_once(operands: Operands, spec: Spec) -> tiles.SoftmaxState:
  """Over all rows, of which those behind the lengths have no weight (but 0 * NaN is NaN)."""
  q, k, v, lengths = operands[:4]
  batch, key_heads, rows, value_width = v.shape
  row = jnp.arange(rows, dtype=jnp.int32)[None, None, None, :]
  dot = lambda a, b, axes, lanes: jax.lax.dot_general(
    a, b, ((axes[:1], axes[1:]), (lanes, lanes)), precision="highest"
  )
  x = capped(dot(q, k, (3, 3), (0, 1)) * spec.scale, spec.softcap)
  x = jnp.where(row < lengths[:, :, None, None], x, -jnp.inf)
  # One row of weights against many of v runs on one core; parts of both on all of them.
  part = max((n for n in range(128, 1025) if rows % n == 0), default=rows)
  values = jnp.reshape(v, (batch, key_heads, -1, part, value_width))

  def weigh(exps):
    exps = jnp.reshape(exps, (*exps.shape[:3], -1, part))
    return dot(jnp.swapaxes(exps, 2, 3), values, (4, 3), (0, 1, 2)).sum(2)

  return tiles.softmax_step(None, x, weigh)


def _by_heads(operands: Operands, spec: Spec, rows: int) -> tiles.SoftmaxState:
  """A loop over key heads, and blocks of rows up to the length of each."""
  q, k, v, lengths, ids, _ = operands
  dtype = accumulator_dtype(q)
  block = min(_BLOCK["cpu"], rows)
  flat = lambda x: jnp.reshape(x, (-1, *x.shape[2:]))

  def head(part):
    at, q, length = part

    def read(x, first):
      if ids is None:
        return jax.lax.dynamic_slice(x, (at, first, 0), (1, block, x.shape[2]))[0].astype(dtype)
      names = jnp.clip(jax.lax.dynamic_slice(flat(ids), (at, first), (1, block))[0], 0)
      found = jnp.take(jnp.reshape(x, (-1, x.shape[2])), at * k.shape[2] + names, 0, mode="clip")
      return found.astype(dtype)

    def step(i, state):
      # The last block starts early where rows are no multiple of blocks, and leaves what was done.
      first = jnp.minimum(i * block, rows - block)
      row = first + jnp.arange(block, dtype=jnp.int32)
      counts = (row >= i * block) & (row < length)
      if ids is not None:
        names = jax.lax.dynamic_slice(flat(ids), (at, first), (1, block))[0]
        counts = counts & (names >= 0) & (names < k.shape[2])
      x = jnp.dot(q, read(flat(k), first).T, precision="highest") * spec.scale
      x = jnp.where(counts[None, :], capped(x, spec.softcap), -jnp.inf)
      values = read(flat(v), first)
      values = jnp.where(counts[:, None], values, jnp.zeros_like(values))
      return tiles.softmax_step(state, x, lambda exps: jnp.dot(exps, values, precision="highest"))

    state = tiles.softmax_init(q.shape[:1], v.shape[3], dtype)
    return jax.lax.fori_loop(0, -(-length // block), step, state)

  numbers = jnp.arange(q.shape[0] * q.shape[1], dtype=jnp.int32)
  state = jax.lax.map(head, (numbers, flat(q).astype(dtype), flat(lengths)))
  return jax.tree.map(lambda x: jnp.reshape(x, (*q.shape[:2], *x.shape[1:])), state)


def _forward(operands: Operands, spec: Spec):
  return decode_attention(operands, spec), operands


def _backward(spec: Spec, operands: Operands, cotangents):
  return (reference.gradients(operands, spec, cotangents),)


decode_attention.defvjp(_forward, _backward)
