"""The definition of decode attention: one softmax per head, float32 (or float64).

Every other implementation is tested against this one, outputs and gradients.
"""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.cache.call import capped
from h2g.ops.cache.call import Operands
from h2g.ops.cache.call import Spec
from h2g.ops.cache.state import gather
from h2g.ops.tiles import accumulator_dtype


def decode_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.cache.decode_attention`."""
  q, k, v, lengths, ids, sinks = operands
  batch, heads, width = q.shape
  key_heads = k.shape[1]
  dtype = accumulator_dtype(q, k, v)
  rows = k.shape[2]
  if ids is not None:
    k, v = gather(k, ids), gather(v, ids)
  counts = jnp.arange(k.shape[2], dtype=jnp.int32)[None, None, :] < lengths[..., None]
  if ids is not None:
    counts = counts & (ids >= 0) & (ids < rows)
  clean = lambda x: jnp.where(counts[..., None], x, jnp.zeros_like(x)).astype(dtype)
  k, v = clean(k), clean(v)
  q = jnp.reshape(q, (batch, key_heads, heads // key_heads, width)).astype(dtype)

  logits = spec.scale * jnp.einsum("bkgd,bkcd->bkgc", q, k, precision="highest")
  logits = capped(logits, spec.softcap)
  allowed = jnp.broadcast_to(counts[:, :, None, :], logits.shape)
  largest = jnp.where(allowed, logits, -jnp.inf).max(-1, initial=-jnp.inf)
  if sinks is not None:
    sink = jnp.reshape(sinks.astype(dtype), (1, key_heads, heads // key_heads))
    sink = jnp.broadcast_to(sink, largest.shape)
    largest = jnp.maximum(largest, sink)
  largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
  exps = jnp.where(allowed, jnp.exp(jnp.where(allowed, logits - largest[..., None], 0.0)), 0.0)
  total = exps.sum(-1)
  if sinks is not None:
    total = total + jnp.exp(sink - largest)
  attends = total > 0
  total = jnp.where(attends, total, 1.0)
  out = jnp.einsum("bkgc,bkce->bkge", exps / total[..., None], v, precision="highest")
  lse = jnp.where(attends, jnp.log(total) + largest, -jnp.inf)
  flat = lambda x: jnp.reshape(x, (batch, heads, *x.shape[3:]))
  return flat(out).astype(operands.q.dtype), flat(lse)


def gradients(operands: Operands, spec: Spec, cotangents) -> Operands:
  """Cotangents of the operands, by the definition; for implementations without a backward pass.

  Args:
    operands: of the call.
    spec: of the call.
    cotangents: of out and lse.
  """

  def definition(q, k, v, sinks):
    again = operands._replace(q=q, k=k, v=v, sinks=sinks)
    return decode_attention(again, spec)

  floats = operands.q, operands.k, operands.v, operands.sinks
  dq, dk, dv, d_sinks = jax.vjp(definition, *floats)[1](tuple(cotangents))
  return Operands(dq, dk, dv, None, None, d_sinks)
