"""What implementations of edge attention share: the call, mathematics per edge, vmap over seeds.

An implementation is a function `edge_attention(q, k, v, index, *, bias, scale, clip, keep,
return_weights=False) -> (out, lse, weights or None)`; arguments were checked by `api.py`. `keep`
[E, H] float32 multiplies the weights after the softmax (dropout), or is None. It serves the call
exactly or raises NotImplementedError. What stands at padding positions, and rows that no edge
names, may be anything, NaN included, and must have no effect.
"""

import dataclasses
import functools

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.edge.index import EdgeIndex


def clipped(raw: Array, clip: float | None) -> Array:
  """The logits before the bias, from scaled products."""
  return raw if clip is None else jnp.minimum(jnp.maximum(raw, -clip), clip)


def edge_gradients(raw, weights, d_weights, delta, keep, scale: float, clip: float | None):
  """One edge's part of the backward pass; arrays of one shape, such as [edges, heads].

    ds = p * (keep * (do . v) - delta),   d_raw = scale * ds where the clip does not bite

  Args:
    raw: scaled products, before the clip.
    weights: p, softmax weights.
    d_weights: <do, v>.
    delta: <do, o> - d_lse of the receiver.
    keep: dropout factors or None.
    scale, clip: of the call.
  Returns:
    (d_raw, of the unscaled product; ds, of logit and bias; p * keep, what v was weighed with).
  Source: arXiv 2205.14135 appendix B.4, with dropout and clip.
  """
  kept = weights if keep is None else weights * keep
  d_logits = weights * ((d_weights if keep is None else d_weights * keep) - delta)
  d_raw = d_logits * scale
  if clip is not None:
    d_raw = jnp.where(jnp.abs(raw) <= clip, d_raw, jnp.zeros_like(d_raw))
  return d_raw, d_logits, kept


def delta_of(d_out: Array, out: Array, d_lse: Array) -> Array:
  """[N, H] float32 <do, o> - d_lse, what every edge of a receiver subtracts."""
  return jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1) - d_lse


@dataclasses.dataclass(frozen=True)
class Plan:
  """Static, of a kernel's call: factor and bound of the logits, whether it is interpreted."""

  scale: float
  clip: float | None
  interpret: bool


def from_passes(forward, by_receiver, by_sender):
  """attend(plan, q, k, v, bias, keep, index) -> (out, lse) with a gradient, from three passes.

  Args:
    forward: of the same arguments; (out [N, H, F], lse [N, H] float32, -inf without edges).
    by_receiver: of (plan, q, k, v, bias, keep, d_out, lse, delta, index); (dq, d_bias or None).
    by_sender: of the same; (dk, dv).
  """
  forward, by_receiver, by_sender = map(seeds_as_heads, (forward, by_receiver, by_sender))

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def attend(plan: Plan, q, k, v, bias, keep, index: EdgeIndex):
    return forward(plan, q, k, v, bias, keep, index)

  def attend_fwd(plan, q, k, v, bias, keep, index):
    out, lse = forward(plan, q, k, v, bias, keep, index)
    return (out, lse), (q, k, v, bias, keep, index, out, lse)

  def attend_bwd(plan, saved, cotangents):
    q, k, v, bias, keep, index, out, lse = saved
    d_out, d_lse = cotangents
    delta = delta_of(d_out, out, jnp.where(lse > -jnp.inf, d_lse, 0.0))
    arrays = (q, k, v, bias, keep, d_out, lse, delta)
    dq, d_bias = by_receiver(plan, *arrays, index)
    dk, dv = by_sender(plan, *arrays, index)
    return dq, dk, dv, d_bias, None, None

  attend.defvjp(attend_fwd, attend_bwd)
  return attend


def seeds_as_heads(function, num_static: int = 1):
  """vmap over arrays [.., rows, H, ..] with an unbatched index as one call with S * H heads.

  Args:
    function: of `num_static` hashable arguments, then arrays (or None) and one or more EdgeIndex.
    num_static: see `function`.
  """

  @functools.wraps(function)
  def call(*args):
    static, args = args[:num_static], args[num_static:]
    batched = jax.custom_batching.custom_vmap(functools.partial(function, *static))

    @batched.def_vmap
    def rule(size, in_batched, *args):
      is_index = [isinstance(arg, EdgeIndex) for arg in args]
      shared = all(
        not any(jax.tree.leaves(flag)) for flag, index in zip(in_batched, is_index) if index
      )
      if not shared:
        # Every seed has its own graph: one after the other.
        moved = [
          jax.tree.map(lambda x, b: x if b else jnp.broadcast_to(x, (size, *x.shape)), arg, flag)
          for arg, flag in zip(args, in_batched)
        ]
        outs = jax.lax.map(lambda one: call(*static, *one), tuple(moved))
        return outs, jax.tree.map(lambda _: True, outs)

      def fold(x, flag):  # [S, rows, H, ...] -> [rows, S * H, ...]
        x = x if flag else jnp.broadcast_to(x, (size, *x.shape))
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], size * x.shape[2], *x.shape[3:])

      def unfold(x):
        x = x.reshape(x.shape[0], size, x.shape[1] // size, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

      folded = [
        arg if index else jax.tree.map(fold, arg, flag)
        for arg, flag, index in zip(args, in_batched, is_index)
      ]
      outs = jax.tree.map(unfold, call(*static, *folded))
      return outs, jax.tree.map(lambda _: True, outs)

    return batched(*args)

  return call
