"""Attention rollout, whole and one row of it: signatures, checks, choice of implementation."""

from jax import Array

from h2g.ops import dispatch
from h2g.ops.rollout import reference
from h2g.ops.rollout import xla

IMPLEMENTATIONS = dict(xla=xla.rollout_row, reference=reference.rollout_row)
ORDER = dict.fromkeys(("cpu", "gpu", "tpu"), ("xla", "reference"))


def attention_rollout(weights: Array, *, residual: float = 0.5) -> Array:
  """R = S~_L S~_{L-1} ... S~_1,  S~_l = residual I + (1 - residual) mean_h weights[l,:,h].

  R[b,t,s] is how much of token s at the bottom stands in token t at the top, where every layer adds
  its attention to what was there.

  Axes: L layers, B batch, H heads, N tokens.

  Args:
    weights: [L, B, H, N, N] float, rows sum to one.
    residual: share of a token that stays, in [0, 1].
  Returns:
    [B, N, N] float32 (float64 for float64); rows sum to one. O(L N^3).
  Raises:
    ValueError: the shape is another, or residual outside [0, 1].
  Source: arXiv 2005.00928 sec. 3; the mean over heads is ours where a paper leaves it open.
  """
  if weights.ndim != 5 or weights.shape[3] != weights.shape[4]:
    raise ValueError(
      f"weights {weights.shape} must be [layers, batch, heads, tokens, tokens]: self-attention"
    )
  _check(residual)
  return reference.attention_rollout(weights, residual)


def rollout_row(
  q: Array,
  k: Array,
  *,
  row: int = 0,
  residual: float = 0.5,
  implementation: str | None = None,
) -> Array:
  """One row of the rollout, from the top: r_L = e_row S~_L, then r <- r S~_l downwards.

  As `attention_rollout` of softmax(q k^T / sqrt(D)), row `row`; vector times matrix, O(L N^2), and
  no N x N array: r S is the gradient of attention with respect to its values under the cotangent r.

  Axes: L layers, B batch, N tokens, H heads, D head width.

  Args:
    q, k: [L, B, N, H, D] float, queries and keys of each layer, bottom first.
    row: the token that looks, 0 where the class token stands first.
    residual: share of a token that stays, in [0, 1].
    implementation: "xla", "reference", or None for the best.
  Returns:
    [B, N] float32 (float64 for float64), not negative, sums to one. It carries no gradient.
  Raises:
    ValueError: shapes disagree, no such row, residual outside [0, 1].
    NotImplementedError: unknown implementation.
  Source: arXiv 2205.02151 sec. 3.2 (accumulated weights of the class token).
  """
  if q.ndim != 5 or q.shape != k.shape:
    raise ValueError(
      f"q {q.shape} and k {k.shape} must be one [layers, batch, tokens, heads, width]"
    )
  if not 0 <= row < q.shape[2]:
    raise ValueError(f"row={row} of {q.shape[2]} tokens")
  _check(residual)
  return dispatch.choose("rollout_row", IMPLEMENTATIONS, ORDER, implementation, q, k, row, residual)


def _check(residual: float) -> None:
  if not 0 <= residual <= 1:
    raise ValueError(f"residual={residual} is a share: give a number in [0, 1]")
