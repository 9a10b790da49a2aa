"""The definition of the edge operations: reads like the equations, allocates edges x features."""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.edge.index import EdgeIndex


def edge_attention(q, k, v, index: EdgeIndex, *, bias, scale, clip, dropout_rate, dropout_key):
  """Returns (out [N, H, E'], lse [N, H], weights [E, H]); see `api.edge_attention`."""
  num = q.shape[0]
  real = is_edge(index)
  qe = jnp.where(real[:, None, None], q[index.receivers], 0).astype(jnp.float32)
  ke = jnp.where(real[:, None, None], k[index.senders], 0).astype(jnp.float32)
  ve = jnp.where(real[:, None, None], v[index.senders], 0).astype(jnp.float32)
  logits = scale * jnp.sum(qe * ke, axis=-1)
  if clip is not None:
    logits = jnp.clip(logits, -clip, clip)
  if bias is not None:
    logits = logits + jnp.where(real[:, None], bias, 0).astype(jnp.float32)
  logits = jnp.where(real[:, None], logits, -jnp.inf)
  segments = dict(segment_ids=index.receivers, num_segments=num, indices_are_sorted=False)
  top = jax.lax.stop_gradient(jax.ops.segment_max(logits, **segments))
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  exps = jnp.exp(logits - top[index.receivers])
  total = jax.ops.segment_sum(exps, **segments)
  weights = exps / jnp.where(total > 0, total, 1.0)[index.receivers]
  kept = drop_weights(weights, dropout_rate, dropout_key)
  out = jax.ops.segment_sum(kept[..., None] * ve, **segments)
  lse = jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)) + top, -jnp.inf)
  return out.astype(v.dtype), lse, weights


def edge_sum(x, index: EdgeIndex, *, weights, mean):
  """Returns [N, ...]; see `api.edge_sum`."""
  real = is_edge(index)
  wide = (slice(None), *[None] * (x.ndim - 1))
  xe = jnp.where(real[wide], x[index.senders], 0)
  if weights is not None:
    w = jnp.where(real.reshape(-1, *[1] * (weights.ndim - 1)), weights, 0)
    xe = xe * w.reshape(*w.shape, *[1] * (x.ndim - w.ndim))
  num = index.indptr.shape[0] - 1
  out = jax.ops.segment_sum(xe, index.receivers, num)
  if mean:
    out = out / jnp.maximum(jnp.diff(index.indptr), 1).astype(x.dtype)[wide]
  return out


def is_edge(index: EdgeIndex) -> Array:
  """[E] bool, False for padding."""
  return jnp.arange(index.senders.shape[0]) < index.indptr[-1]


def drop_weights(weights: Array, rate: float, key: Array | None) -> Array:
  """Inverted dropout of the weights [E, H]."""
  if key is None or rate == 0.0:
    return weights
  keep = jax.random.bernoulli(key, 1.0 - rate, weights.shape)
  return jnp.where(keep, weights / (1.0 - rate), 0.0)
