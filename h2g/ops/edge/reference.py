"""The definition of the edge operations: reads like the equations, allocates edges x features."""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import tiles
from h2g.ops.edge.index import EdgeIndex


def edge_attention(q, k, v, index: EdgeIndex, *, bias, scale, clip, keep, return_weights=True):
  """Returns (out [N, H, F], lse [N, H], weights [E, H]); see `api.edge_attention`."""
  del return_weights  # there anyway
  num = q.shape[0]
  real = is_edge(index)
  wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32  # float64 serves the tests
  qe = jnp.where(real[:, None, None], q[index.receivers], 0).astype(wide)
  ke = jnp.where(real[:, None, None], k[index.senders], 0).astype(wide)
  ve = jnp.where(real[:, None, None], v[index.senders], 0).astype(wide)
  logits = scale * jnp.sum(qe * ke, axis=-1)
  if clip is not None:
    logits = jnp.clip(logits, -clip, clip)
  if bias is not None:
    logits = logits + jnp.where(real[:, None], bias, 0).astype(wide)
  logits = jnp.where(real[:, None], logits, -jnp.inf)
  segments = dict(segment_ids=index.receivers, num_segments=num, indices_are_sorted=False)
  top = jax.lax.stop_gradient(jax.ops.segment_max(logits, **segments))
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  exps = jnp.exp(logits - top[index.receivers])
  total = jax.ops.segment_sum(exps, **segments)
  weights = exps / jnp.where(total > 0, total, 1.0)[index.receivers]
  used = weights if keep is None else weights * keep.astype(wide)
  out = jax.ops.segment_sum(used[..., None] * ve, **segments)
  lse = jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)) + top, -jnp.inf)
  return out.astype(v.dtype), lse, weights


def edge_sum(x, index: EdgeIndex, *, weights):
  """Returns [N, H, F] from x [M, H, F] and weights [E, H] or None; see `api.edge_sum`."""
  real = is_edge(index)
  xe = jnp.where(real[:, None, None], x[index.senders], 0)
  if weights is not None:
    xe = xe * jnp.where(real[:, None], weights, 0)[..., None]
  return jax.ops.segment_sum(xe, index.receivers, index.indptr.shape[0] - 1)


def is_edge(index: EdgeIndex) -> Array:
  """[E] bool, False for padding."""
  position = jnp.arange(index.senders.shape[0], dtype=index.indptr.dtype)
  return position < index.indptr[-1]


def kept(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
  """Inverted dropout as a factor: 0 with probability `rate`, else 1 / (1 - rate); float32."""
  return tiles.kept(key, rate, shape).astype(jnp.float32) / (1.0 - rate)
