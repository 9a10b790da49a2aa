"""Prototype attention: signature, checks, choice of implementation."""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops.prototype import mosaic_gpu
from h2g.ops.prototype import mosaic_tpu
from h2g.ops.prototype import reference
from h2g.ops.prototype import xla
from h2g.ops.prototype.call import lifted
from h2g.ops.prototype.call import PrototypeOut
from h2g.ops.prototype.call import take

IMPLEMENTATIONS = dict(
  mosaic_gpu=mosaic_gpu.nearest,
  mosaic_tpu=mosaic_tpu.nearest,
  xla=xla.nearest,
  reference=reference.nearest,
)
ORDER = dict(cpu=("xla",), gpu=("mosaic_gpu", "xla"), tpu=("mosaic_tpu", "xla"))
WHEN_EMPTY = ("query", "batch")


def prototype_attention(
  q: Array,
  x: Array,
  *,
  mask: Array | None = None,
  when_empty: str = "query",
  implementation: str | None = None,
) -> PrototypeOut:
  """The feature most similar to each query, per head.

    index[b,h,q] = argmax_n <q[b,q,h], x[b,n,h]> over n with mask[b,q,n]
    prototypes[b,q,h] = x[b, index[b,h,q], h]

  The gradient flows to x through what was taken; none through the choice, so none to q. Of equal
  similarities the first is taken.

  Axes: B batch, Q queries, N features, H heads, D head width.

  Args:
    q: [B, Q, H, D] float.
    x: [B, N, H, D] like q; N >= 1.
    mask: [B, Q, N] bool, True may be taken, the same for all heads (in the paper: mask logit >= 0).
      What stands in a feature that no query may take has no effect, NaN included.
    when_empty: what a query does that may take nothing. "query": it may take all (the rule of
      Mask2Former). "batch": it may take all where no query of its batch entry may take anything,
      else it takes feature 0 (the official code).
    implementation: "mosaic_gpu", "mosaic_tpu", "xla", "reference", or None for the best.
  Returns:
    PrototypeOut(prototypes [B, Q, H, D] in x's dtype, index [B, H, Q] int32). Similarities are
    accumulated in float32.
  Raises:
    ValueError: shapes disagree, N is 0, or `when_empty` is unknown.
    NotImplementedError: the named implementation cannot serve the call.
  Source: arXiv 2402.19422 eq. 2-4 and its code.
  """
  if q.ndim != 4 or x.ndim != 4 or q.shape[::2] + q.shape[3:] != x.shape[::2] + x.shape[3:]:
    raise ValueError(f"q {q.shape} and x {x.shape} must be [B, Q, H, D] and [B, N, H, D]")
  if not x.shape[1]:
    raise ValueError(f"x {x.shape} has no features to choose from")
  mask = _checked(mask, (q.shape[0], q.shape[1], x.shape[1]), when_empty)
  index = dispatch.choose(
    "prototype_attention",
    IMPLEMENTATIONS,
    ORDER,
    implementation,
    *(None if a is None else jax.lax.stop_gradient(a) for a in (q, x, mask)),
  )
  return PrototypeOut(take(x, index), index)


def random_prototypes(
  key: Array, x: Array, num_queries: int, *, mask: Array | None = None, when_empty: str = "query"
) -> PrototypeOut:
  """An allowed feature at random per query and head: what similarity is measured against.

  Args:
    key: PRNG key.
    x: [B, N, H, D] float.
    num_queries: Q.
    mask, when_empty: as of `prototype_attention`.
  """
  b, n, h, _ = x.shape
  mask = _checked(mask, (b, num_queries, n), when_empty)
  chance = jax.random.uniform(key, (b, h, num_queries, n))
  if mask is not None:
    chance = jnp.where(mask[:, None], chance, -1.0)
  index = jnp.argmax(chance, axis=-1).astype(jnp.int32)
  return PrototypeOut(take(x, index), index)


def _checked(mask: Array | None, shape: tuple[int, ...], when_empty: str) -> Array | None:
  if when_empty not in WHEN_EMPTY:
    raise ValueError(f"when_empty={when_empty!r} is unknown: choose from {', '.join(WHEN_EMPTY)}")
  if mask is None:
    return None
  if mask.shape != shape or mask.dtype != bool:
    raise ValueError(f"mask {mask.dtype} {mask.shape} must be bool [B, Q, N] = {shape}")
  return lifted(mask, when_empty)
