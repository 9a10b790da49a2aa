"""The definition of attention: dense, float32 (float64 for float64), reads like the equations.

Every other implementation is tested against this one, outputs and gradients. O(T * S) memory.
"""

import jax
import jax.numpy as jnp

from h2g.ops import tiles
from h2g.ops.attention import call as call_lib
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Operands
from h2g.ops.attention.call import Spec
from h2g.ops.masks import Tile


def attention(operands: Operands, spec: Spec) -> AttentionOut:
  """See `h2g.ops.attention`."""
  q, k, v, bias, mask, sinks, logits_args, seed, origin = operands
  batch, num_queries, heads, _ = q.shape
  num_keys, groups = k.shape[1], heads // k.shape[2]
  dtype = tiles.accumulator_dtype(q, k, v)
  qx, kx, vx = (x.astype(dtype) for x in (q, k, v))
  kx, vx = (jnp.repeat(x, groups, axis=2) for x in (kx, vx))
  tile = Tile(
    jnp.arange(num_queries, dtype=jnp.int32)[None, None, :, None],
    jnp.arange(num_keys, dtype=jnp.int32)[None, None, None, :],
    jnp.arange(heads, dtype=jnp.int32)[None, :, None, None],
    jnp.arange(batch, dtype=jnp.int32)[:, None, None, None],
  )

  logits = spec.scale * jnp.einsum("bthd,bshd->bhts", qx, kx, precision="highest")
  allowed = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask.evaluate(tile)
  allowed = jnp.broadcast_to(allowed, logits.shape)
  logits = call_lib.adjust(logits, bias, logits_args, spec, tile, origin, allowed)
  allowed = allowed & (logits > -jnp.inf)
  logits = jnp.where(allowed, logits, jnp.zeros_like(logits))

  # The largest logit is subtracted for range only: its gradient cancels.
  largest = jnp.where(allowed, logits, -jnp.inf).max(-1, initial=-jnp.inf)
  if sinks is not None:
    sink = jnp.broadcast_to(sinks.astype(dtype)[None, :, None], largest.shape)
    largest = jnp.maximum(largest, sink)
  largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
  exps = jnp.where(allowed, jnp.exp(logits - largest[..., None]), 0.0)
  total = exps.sum(-1)
  if sinks is not None:
    total = total + jnp.exp(sink - largest)
  attends = total > 0
  total = jnp.where(attends, total, 1.0)
  weights = exps / total[..., None]

  kept = weights
  if spec.dropout_rate > 0:
    keep = tiles.dropout_keep(seed, *call_lib.globally(tile, origin), rate=spec.dropout_rate)
    kept = jnp.where(keep, weights / (1.0 - spec.dropout_rate), 0.0)
  out = jnp.einsum("bhts,bshe->bthe", kept, vx, precision="highest").astype(q.dtype)

  lse = jnp.where(attends, jnp.log(total) + largest, -jnp.inf)
  log_weights = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), 0.0)
  top_keys = None
  if spec.top_keys:
    values, ids = jax.lax.top_k(
      jnp.where(allowed, jax.lax.stop_gradient(weights), -1.0), spec.top_keys
    )
    top_keys = call_lib.TopKeys(
      jnp.maximum(values, 0.0), jnp.where(values < 0, -1, ids).astype(jnp.int32)
    )
  return AttentionOut(
    out,
    lse if spec.lse else None,
    weights.sum(2) if spec.column_mass else None,
    -(weights * log_weights).sum(-1) if spec.entropy else None,
    top_keys,
  )
