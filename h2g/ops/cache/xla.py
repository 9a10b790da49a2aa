"""Decode attention from plain XLA operations: a loop over blocks of rows, up to the longest head.

Plan. Memory-bound: every kept row of k and v is read once, B K C (D + E) numbers, against 2 H / K
multiplications each. The query heads of one key head are the rows of one small matmul; a block of
rows is read, masked in cache, and added to an online softmax, so neither unused capacity is read
nor a masked copy of v written. With ids the rows of a block are gathered on the way.

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
from h2g.ops.cache.call import accumulator_dtype
from h2g.ops.cache.call import capped
from h2g.ops.cache.call import Operands
from h2g.ops.cache.call import Spec
from h2g.ops.cache.state import gather

_BLOCK = dict(cpu=512, gpu=16384, tpu=4096)  # rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def decode_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.cache.decode_attention`. Serves every call."""
  q, k, v, lengths, ids, sinks = operands
  batch, heads, width = q.shape
  key_heads = k.shape[1]
  groups = heads // key_heads
  rows = k.shape[2] if ids is None else ids.shape[2]
  dtype = accumulator_dtype(q)
  operand_dtype = dtype if dispatch.platform() == "cpu" else q.dtype
  exact = None if operand_dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
  q = jnp.reshape(q, (batch, key_heads, groups, width))
  block = min(_BLOCK[dispatch.platform()], max(rows, 1))

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

  state = tiles.softmax_init((batch, key_heads, groups), v.shape[3], dtype)
  if rows:
    state = jax.lax.fori_loop(0, -(-jnp.max(lengths, initial=0) // block), step, state)
  if sinks is not None:
    sinks = jnp.reshape(sinks.astype(dtype), (1, key_heads, groups))
  out, lse = tiles.softmax_finish(state, sinks)
  flat = lambda x: jnp.reshape(x, (batch, heads, *x.shape[3:]))
  return flat(out).astype(operands.q.dtype), flat(lse)


def _forward(operands: Operands, spec: Spec):
  return decode_attention(operands, spec), operands


def _backward(spec: Spec, operands: Operands, cotangents):
  return (reference.gradients(operands, spec, cotangents),)


decode_attention.defvjp(_forward, _backward)
