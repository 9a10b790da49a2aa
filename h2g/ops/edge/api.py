"""Attention and sums along the edges of a graph."""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp

from h2g.ops.edge import reference
from h2g.ops.edge import xla
from h2g.ops.edge.index import EdgeIndex


class EdgeAttentionOut(NamedTuple):
  """out [N, H, E'], lse [N, H] or None, weights [E, H] in receiver order (before dropout) or None."""

  out: Array
  lse: Array | None = None
  weights: Array | None = None


def edge_attention(
    q: Array,
    k: Array,
    v: Array,
    index: EdgeIndex,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    clip: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    return_weights: bool = False,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Array | EdgeAttentionOut:
  """Softmax attention of each receiver over its incoming edges (to be replaced by its owner)."""
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  if implementation != "reference" and not return_weights:
    keep = None
    if dropout_key is not None and dropout_rate:
      shape = (index.senders.shape[0], q.shape[1])
      keep = reference.drop_weights(jnp.ones(shape), dropout_rate, dropout_key)
    out, lse = xla.edge_attention(q, k, v, index, bias=bias, scale=scale, clip=clip, keep=keep)
    return EdgeAttentionOut(out, lse) if return_lse else out
  out, lse, weights = reference.edge_attention(
      q, k, v, index, bias=bias, scale=scale, clip=clip, dropout_rate=dropout_rate,
      dropout_key=dropout_key,
  )
  if return_weights or return_lse:
    return EdgeAttentionOut(out, lse if return_lse else None, weights if return_weights else None)
  return out


def edge_sum(
    x: Array, index: EdgeIndex, *, weights: Array | None = None, mean: bool = False,
    implementation: str | None = None,
) -> Array:
  """out[n] = sum over edges e into n of w_e x[sender(e)] (to be replaced by its owner)."""
  del implementation
  return reference.edge_sum(x, index, weights=weights, mean=mean)
