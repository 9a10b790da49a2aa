"""The definition of block-sparse attention: dense softmax under the table, float32 (or float64).

Every other implementation is tested against this one, outputs and gradients. O(T * S) memory.
"""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.masks import Tile
from h2g.ops.sparse import tables
from h2g.ops.sparse.call import capped
from h2g.ops.sparse.call import Operands
from h2g.ops.sparse.call import Spec
from h2g.ops.tiles import accumulator_dtype


def block_sparse_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.sparse.block_sparse_attention`."""
  q, k, v, ids, counts, mask = operands
  batch, num_queries, heads, _ = q.shape
  num_keys, groups = k.shape[1], heads // k.shape[2]
  dtype = accumulator_dtype(q, k, v)
  q_ids = jnp.arange(num_queries, dtype=jnp.int32)
  k_ids = jnp.arange(num_keys, dtype=jnp.int32)
  qx, kx, vx = (x.astype(dtype) for x in (q, k, v))
  kx, vx = (jnp.repeat(x, groups, axis=2) for x in (kx, vx))

  table = tables.BlockLists(jnp.asarray(ids), jnp.asarray(counts))
  table = tables.to_dense(table, -(-num_keys // spec.block_k))
  table = jnp.repeat(table, groups, axis=1) if table.shape[1] > 1 else table
  allowed = table[:, :, q_ids // spec.block_q][:, :, :, k_ids // spec.block_k]
  if mask is not None:
    tile = Tile(
      q_ids[None, None, :, None],
      k_ids[None, None, None, :],
      jnp.arange(heads, dtype=jnp.int32)[None, :, None, None],
      jnp.arange(batch, dtype=jnp.int32)[:, None, None, None],
    )
    allowed = allowed & mask.evaluate(tile)

  logits = spec.scale * jnp.einsum("bthd,bshd->bhts", qx, kx, precision="highest")
  logits = capped(logits, spec.softcap)
  allowed = jnp.broadcast_to(allowed, logits.shape)
  largest = jnp.where(allowed, logits, -jnp.inf).max(-1, initial=-jnp.inf)
  largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
  exps = jnp.where(allowed, jnp.exp(jnp.where(allowed, logits - largest[..., None], 0.0)), 0.0)
  total = exps.sum(-1)
  attends = total > 0
  total = jnp.where(attends, total, 1.0)
  out = jnp.einsum("bhts,bshe->bthe", exps / total[..., None], vx, precision="highest")
  return out.astype(q.dtype), jnp.where(attends, jnp.log(total) + largest, -jnp.inf)
