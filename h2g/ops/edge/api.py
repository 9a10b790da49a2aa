"""Attention and sums along the edges of a graph: signatures, checks, choice of implementation.

Axes: E edges, M message rows (what edges carry), N receivers, H heads, D head width, F value width.
"""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from h2g.ops import dispatch
from h2g.ops import sharding as sharding_lib
from h2g.ops.edge import mosaic_gpu
from h2g.ops.edge import mosaic_tpu
from h2g.ops.edge import reference
from h2g.ops.edge import xla
from h2g.ops.edge.index import EdgeIndex

ATTENTION = dict(
  xla=xla.edge_attention,
  mosaic_gpu=mosaic_gpu.edge_attention,
  mosaic_tpu=mosaic_tpu.edge_attention,
  reference=reference.edge_attention,
)
SUM = dict(xla=xla.edge_sum, reference=reference.edge_sum)
SUM_ORDER = dict.fromkeys(("cpu", "gpu", "tpu"), ("xla", "reference"))
ORDER = SUM_ORDER | dict(gpu=("mosaic_gpu", "xla", "reference"))
WHOLE = ("_",) * len(EdgeIndex._fields)  # every shard of heads reads the same edges


class EdgeAttentionOut(NamedTuple):
  """The output, and what was asked for (None otherwise).

  Attributes:
    out: [N, H, F] in v's dtype.
    lse: [N, H] float32, log of the sum of exp(logits); -inf for a receiver without edges.
    weights: [E, H] float32 softmax weights in receiver order, before dropout; 0 on padding.
  """

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
  sharding: NamedSharding | PartitionSpec | None = None,
  implementation: str | None = None,
) -> Array | EdgeAttentionOut:
  """Softmax attention of every receiver over its incoming edges.

    s[e,h] = clip(scale * q[r(e),h] . k[u(e),h], -clip, clip) + bias[e,h]
    o[n,h] = sum_{e: r(e) = n} softmax_e(s[e,h]) v[u(e),h]

  r(e) the receiver and u(e) the message row of edge e. All edges of a receiver share one softmax;
  relations are told apart by their message rows (`HeteroGraph.message_rows`). Differentiable in q,
  k, v and bias; where the clip bites the gradient of q and k is zero.

  Args:
    q: [N, H, D] float.
    k: [M, H, D] float.
    v: [M, H, F] float.
    index: the edges; positions >= indptr[-1] are padding and ignored, whatever stands there.
    bias: [E, H] float in receiver order, added after the clip.
    scale: defaults to D ** -0.5.
    clip: bound of the scaled logits; None leaves them.
    dropout_rate: probability of dropping a weight; the others grow by 1 / (1 - rate).
    dropout_key: PRNG key; None keeps all weights.
    return_weights, return_lse: return `EdgeAttentionOut`. The weights come from the reference form.
    sharding: layout of q over a mesh, where q itself does not show it; heads may be sharded, and
      each shard serves its own. Seeds are sharded by `jax.vmap`, as any leading axis.
    implementation: "xla" (reads rows both ways, no array of edges x features), "mosaic_gpu",
      "mosaic_tpu" (the same in one kernel per direction; the modules say what they refuse) or
      "reference"; None chooses, and never "mosaic_tpu".
  Returns:
    [N, H, F] in v's dtype, zeros for receivers without edges; computed in float32.
  Raises:
    ValueError: shapes disagree, a setting is out of range, or shards do not divide the heads.
    NotImplementedError: unknown implementation, or one that cannot return what is asked for; or
      `sharding` splits another axis than heads.
  Source: arXiv 1710.10903 eq. 3-6 (graph attention); arXiv 2407.10916 (clip, all relations
    together).
  """
  _check(q, k, v, index, bias)
  if not 0 <= dropout_rate < 1:
    raise ValueError(f"dropout_rate={dropout_rate} must be in [0, 1)")
  if clip is not None and clip <= 0:
    raise ValueError(f"clip={clip} must be positive, or None")
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  if index.senders.shape[0] == 0:
    zeros = jnp.zeros((*q.shape[:2], v.shape[2]), v.dtype)
    no_lse, no_weights = jnp.full(q.shape[:2], -jnp.inf), jnp.zeros((0, q.shape[1]))
    asked = (no_lse if return_lse else None, no_weights if return_weights else None)
    return EdgeAttentionOut(zeros, *asked) if return_lse or return_weights else zeros
  keep = None
  if dropout_key is not None and dropout_rate:
    keep = reference.kept(dropout_key, dropout_rate, (index.senders.shape[0], q.shape[1]))

  def attend(q, k, v, bias, keep, *edges):
    out, lse, weights = dispatch.choose(
      "edge_attention",
      ATTENTION,
      ORDER,
      implementation,
      q,
      k,
      v,
      EdgeIndex(*edges),
      bias=bias,
      scale=scale,
      clip=clip,
      keep=keep,
      return_weights=return_weights,
    )
    return out, lse, weights if return_weights else None

  out, lse, weights = sharding_lib.over_shards(
    attend,
    (q, k, v, bias, keep, *index),
    ("_h_", "_h_", "_h_", "_h", "_h", *WHOLE),
    ("_h_", "_h", "_h" if return_weights else None),
    sharding,
  )
  if return_weights or return_lse:
    return EdgeAttentionOut(out, lse if return_lse else None, weights if return_weights else None)
  return out


def edge_sum(
  x: Array,
  index: EdgeIndex,
  *,
  weights: Array | None = None,
  mean: bool = False,
  sharding: NamedSharding | PartitionSpec | None = None,
  implementation: str | None = None,
) -> Array:
  """Weighted sum over incoming edges: out[n] = sum_{e: r(e) = n} w[e] x[u(e)].

  Args:
    x: [M, G] or [M, H, F] float.
    index: the edges, as in `edge_attention`.
    weights: [E], or [E, H] where x is [M, H, F]; None: ones. Receiver order.
    mean: divide by the number of incoming edges (by one where there is none).
    sharding: layout of x over a mesh, where x itself does not show it; its second axis (columns, or
      heads) may be sharded.
    implementation: "xla" or "reference"; None chooses.
  Returns:
    [N, G] or [N, H, F] in x's dtype, accumulated in float32; zeros for receivers without edges.
    Differentiable in x and weights.
  Raises:
    ValueError: shapes disagree, or shards do not divide the second axis.
    NotImplementedError: unknown implementation, or `sharding` splits another axis.
  """
  num_edges, rows = index.senders.shape[0], index.sender_indptr.shape[0] - 1
  if x.ndim not in (2, 3) or x.shape[0] != rows:
    raise ValueError(f"x {x.shape} must be [M, G] or [M, H, F] with the index's M = {rows} rows")
  fits = ((num_edges,), (num_edges, x.shape[1]))[: x.ndim - 1]
  if weights is not None and weights.shape not in fits:
    raise ValueError(f"weights {weights.shape} must be one of {fits} for x {x.shape}")
  if num_edges == 0:
    return jnp.zeros((index.indptr.shape[0] - 1, *x.shape[1:]), x.dtype)
  of_weights = "_" if weights is None or weights.ndim == 1 else "_h"
  axes = "_h_"[: x.ndim]

  def total(x, weights, *edges):
    return _sum(x, weights, EdgeIndex(*edges), mean, implementation)

  return sharding_lib.over_shards(
    total, (x, weights, *index), (axes, of_weights, *WHOLE), axes, sharding
  )


def _sum(x: Array, weights: Array | None, index: EdgeIndex, mean: bool, implementation):
  """`edge_sum` of one shard."""
  num_edges = index.senders.shape[0]
  accumulate = jnp.float64 if x.dtype == jnp.float64 else jnp.float32  # float64 serves the tests
  heads = x if x.ndim == 3 else x[:, None, :]
  wide = (
    None
    if weights is None
    else jnp.broadcast_to(weights.reshape(num_edges, -1), (num_edges, heads.shape[1]))
  )
  out = dispatch.choose(
    "edge_sum", SUM, SUM_ORDER, implementation, heads.astype(accumulate), index, weights=wide
  )
  if mean:
    count = jnp.maximum(jnp.diff(index.indptr), 1).astype(out.dtype)
    out = out / count[:, None, None]
  return out.reshape(out.shape[0], *x.shape[1:]).astype(x.dtype)


def _check(q: Array, k: Array, v: Array, index: EdgeIndex, bias: Array | None) -> None:
  receivers, rows = index.indptr.shape[0] - 1, index.sender_indptr.shape[0] - 1
  if q.ndim != 3 or q.shape[0] != receivers:
    raise ValueError(f"q {q.shape} must be [N, H, D] with the index's N = {receivers} receivers")
  if k.shape != (rows, *q.shape[1:]):
    raise ValueError(f"k {k.shape} must be [M, H, D] = {(rows, *q.shape[1:])} to meet q {q.shape}")
  if v.ndim != 3 or v.shape[:2] != k.shape[:2]:
    raise ValueError(f"v {v.shape} must be [M, H, F] with [M, H] = {k.shape[:2]} of k")
  expected = (index.senders.shape[0], q.shape[1])
  if bias is not None and bias.shape != expected:
    raise ValueError(f"bias {bias.shape} must be [E, H] = {expected}")
