"""Multi-query pooling: signature, checks, choice of implementation."""

from jax import Array
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops.pool import mosaic_tpu
from h2g.ops.pool import reference
from h2g.ops.pool import xla
from h2g.ops.pool.call import PoolOut

IMPLEMENTATIONS = dict(
  mosaic_tpu=mosaic_tpu.multi_query_pool,
  xla=xla.multi_query_pool,
  reference=reference.multi_query_pool,
)
ORDER = dict(cpu=("xla",), gpu=("xla",), tpu=("mosaic_tpu", "xla"))


def multi_query_pool(
  x: Array,
  queries: Array,
  values: Array,
  *,
  mask: Array | None = None,
  scale: float | None = None,
  implementation: str | None = None,
) -> PoolOut:
  """Each query looks at raw tokens and owns a slice of the values.

    a[b,j,n] = softmax_n(scale * <queries[j], x[b,n]>)
    out[b,j] = sum_n a[b,j,n] (x[b,n] W)[slice j],   out = concat_j out[b,j]

  This is pooling by multi-head cross-attention with one learned input vector, without what is
  redundant in it: `queries_of_multi_head` gives the queries of such a pooling.

  Axes: B batch, N tokens, D width, Q queries, E width out (Q divides E).

  Args:
    x: [B, N, D] float.
    queries: [Q, D] like x.
    values: W, [D, E] like x.
    mask: [B, N] bool, True attends; rows without any give zeros. None attends to all.
    scale: defaults to D ** -0.5.
    implementation: "mosaic_tpu", "xla", "reference", or None for the best.
  Returns:
    PoolOut(out [B, E] in x's dtype, weights [B, Q, N] float32). Accumulates in float32.
  Raises:
    ValueError: shapes disagree, or Q does not divide E.
    NotImplementedError: the named implementation is unknown or cannot serve the call.
  Source: arXiv 2506.10178 sec. 3 (efficient probing).
  """
  if x.ndim != 3 or queries.ndim != 2 or values.ndim != 2:
    raise ValueError(
      f"x {x.shape}, queries {queries.shape}, values {values.shape} must be [B, N, D], [Q, D], "
      "[D, E]"
    )
  if not x.shape[2] == queries.shape[1] == values.shape[0]:
    raise ValueError(
      f"x {x.shape}, queries {queries.shape} and values {values.shape} must share the width D"
    )
  if values.shape[1] % queries.shape[0]:
    raise ValueError(
      f"{queries.shape[0]} queries do not divide the width {values.shape[1]} of the values: each "
      "owns an equal slice"
    )
  if mask is not None:
    if mask.shape != x.shape[:2]:
      raise ValueError(f"mask {mask.shape} must be [B, N] = {x.shape[:2]}")
    # What stands in a masked token has no effect, on gradients either, NaN included.
    x = jnp.where(mask[:, :, None], x, jnp.zeros((), x.dtype))
  scale = float(x.shape[2] ** -0.5 if scale is None else scale)
  out = dispatch.choose(
    "multi_query_pool", IMPLEMENTATIONS, ORDER, implementation, x, queries, values, mask, scale
  )
  return PoolOut(out.out.astype(x.dtype), out.weights)


def queries_of_multi_head(u: Array, w_q: Array, w_k: Array, num_heads: int) -> Array:
  """The queries whose maps equal those of multi-head pooling with one input vector.

    score_j = <(u W_q)_j, (x W_k)_j> / sqrt(d) = <x, q_j> / sqrt(D),
    q_j = W_k[:, j] (u W_q)_j sqrt(D / d),   d = D / num_heads

  Args:
    u: [D] the learned input vector.
    w_q, w_k: [D, D] projections (x @ w).
    num_heads: M, divides D.
  Returns:
    [M, D] queries for `multi_query_pool`.
  Source: arXiv 2506.10178 sec. 3, the redundancy of query and key projections.
  """
  dim = u.shape[0]
  q = (u @ w_q).reshape(num_heads, -1)
  keys = w_k.reshape(dim, num_heads, -1)
  return jnp.einsum("dje,je->jd", keys, q) * num_heads**0.5
