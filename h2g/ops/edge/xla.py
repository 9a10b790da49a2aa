"""Edge operations that read rows instead of scattering, for any platform through XLA.

Plan. A receiver's edges are cut into virtual rows of W edges (W static, R = N + E / W rows), so that
every array has a static shape and nothing is scattered per edge: a virtual row gathers its W messages
one after the other and adds them up on chip; R partial results, E / W of the edges, are then added per
receiver. The backward pass does the same twice: by receiver for dq (and the logits' gradients, E x H
scalars), by sender for dk and dv. No array of edges x features is allocated.

Seeds that train together (`jax.vmap` over q, k, v with one index) become heads: rows of S * H heads
are gathered in one piece.
"""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.edge.index import EdgeIndex

NEGATIVE = -1e30  # a logit no edge has: exp of its distance to any real one is 0, and never NaN


class Rows(NamedTuple):
  """Edges of each owner (receiver or sender) cut into virtual rows.

  owner: [R] row's owner, ascending; R - 1 surplus rows own nothing and are full of padding.
  position: [R, W] positions in the sorted edge list; clamped where there is no edge.
  real: [R, W] bool.
  first: [owners] first virtual row of each owner.
  """

  owner: Array
  position: Array
  real: Array
  first: Array


def row_width(num_edges: int, num_owners: int) -> int:
  """W: about a quarter of the mean degree, a power of two in [2, 8]."""
  mean = num_edges / max(num_owners, 1)
  return 2 if mean < 6 else 4 if mean < 40 else 8


def virtual_rows(indptr: Array, num_edges: int) -> Rows:
  num = indptr.shape[0] - 1
  width = row_width(num_edges, num)
  total = num + num_edges // width
  counts = -(-jnp.diff(indptr) // width)
  first = jnp.cumulative_sum(counts, include_initial=True)
  row = jnp.arange(total, dtype=indptr.dtype)
  owner = jnp.searchsorted(first[1:], row, side="right").astype(indptr.dtype)
  owner = jnp.minimum(owner, num - 1)
  begin = indptr[owner] + (row - first[owner]) * width
  position = begin[:, None] + jnp.arange(width, dtype=indptr.dtype)[None, :]
  real = (position < indptr[owner + 1][:, None]) & (row < first[-1])[:, None]
  return Rows(owner, jnp.clip(position, 0, max(num_edges - 1, 0)), real, first[:-1])


def _slot(rows: Rows, indptr: Array, owners: Array) -> Array:
  """[E] place of each edge in a flattened [R * W] array of `rows`, given each edge's owner."""
  width = rows.position.shape[1]
  offset = jnp.arange(owners.shape[0], dtype=indptr.dtype) - indptr[owners]
  slot = rows.first[owners] * width + offset
  return jnp.clip(slot, 0, rows.position.size - 1)


def _add_rows(parts: Array, rows: Rows, num: int) -> Array:
  return jax.ops.segment_sum(parts, rows.owner, num, indices_are_sorted=True)


def _logits(q, k, bias, index: EdgeIndex, rows: Rows, scale, clip):
  """(logits [R, W, H] with NEGATIVE where no edge is, inside [R, W, H] bool: not clipped)."""
  queries = q[rows.owner]
  senders = index.senders[rows.position]
  raw = jnp.stack(
      [jnp.sum(queries * k[senders[:, j]], -1) for j in range(senders.shape[1])], axis=1
  ) * scale
  inside = rows.real[..., None]
  logits = raw
  if clip is not None:
    inside = inside & (jnp.abs(raw) <= clip)
    logits = jnp.clip(raw, -clip, clip)
  if bias is not None:
    logits = logits + bias[rows.position]
  return jnp.where(rows.real[..., None], logits, NEGATIVE), inside


def _forward(scale, clip, q, k, v, bias, keep, index: EdgeIndex):
  """(out [N, H, E'], lse [N, H]) in float32."""
  num, num_edges = q.shape[0], index.senders.shape[0]
  rows = virtual_rows(index.indptr, num_edges)
  logits, _ = _logits(q, k, bias, index, rows, scale, clip)
  top = jax.ops.segment_max(logits.max(1), rows.owner, num, indices_are_sorted=True)
  top = jnp.where(top > 0.5 * NEGATIVE, top, 0.0)
  weights = jnp.exp(logits - top[rows.owner][:, None, :])
  total = _add_rows(weights.sum(1), rows, num)
  if keep is not None:
    weights = weights * jnp.where(rows.real[..., None], keep[rows.position], 0.0)
  out = _add_rows(_weighted(weights, v, index.senders[rows.position], rows), rows, num)
  seen = total > 0
  safe = jnp.where(seen, total, 1.0)
  return out / safe[..., None], jnp.where(seen, top + jnp.log(safe), -jnp.inf)


def _weighted(weights: Array, x: Array, ids: Array, rows: Rows) -> Array:
  """[R, H, D] = sum_j weights[:, j] x[ids[:, j]]; where no edge is, x is not read (it may be NaN)."""
  parts = 0.0
  for j in range(ids.shape[1]):
    term = jnp.where(rows.real[:, j][:, None, None], x[ids[:, j]], 0.0)
    parts = parts + weights[:, j, :, None] * term
  return parts


def _backward(scale, clip, q, k, v, bias, keep, index: EdgeIndex, lse, d_out, delta):
  """(dq, dk, dv, d_bias [E, H] with zeros on padding); delta [N, H] = <d_out, out> - d_lse."""
  num, num_edges = q.shape[0], index.senders.shape[0]
  rows = virtual_rows(index.indptr, num_edges)
  logits, inside = _logits(q, k, bias, index, rows, scale, clip)
  safe = jnp.where(jnp.isfinite(lse), lse, 0.0)
  weights = jnp.where(rows.real[..., None], jnp.exp(logits - safe[rows.owner][:, None, :]), 0.0)
  senders = index.senders[rows.position]
  grads = d_out[rows.owner]
  d_weights = jnp.stack(
      [jnp.sum(grads * v[senders[:, j]], -1) for j in range(senders.shape[1])], axis=1
  )
  d_weights = jnp.where(rows.real[..., None], d_weights, 0.0)
  kept = weights
  if keep is not None:
    factor = jnp.where(rows.real[..., None], keep[rows.position], 0.0)
    d_weights, kept = d_weights * factor, weights * factor
  d_logits = weights * (d_weights - delta[rows.owner][:, None, :])
  d_raw = jnp.where(inside, d_logits, 0.0) * scale
  dq = _add_rows(_weighted(d_raw, k, senders, rows), rows, num)

  # By sender: the logits' gradients and the weights, scalars per edge and head, are read back.
  heads = q.shape[1]
  slot = _slot(rows, index.indptr, index.receivers)
  by_sender = virtual_rows(index.sender_indptr, num_edges)
  edge = index.sender_order[by_sender.position]
  receivers = index.receivers[edge]
  read = lambda x: x.reshape(-1, heads)[slot[edge]]
  count = k.shape[0]
  dk = _add_rows(_weighted(read(d_raw), q, receivers, by_sender), by_sender, count)
  dv = _add_rows(_weighted(read(kept), d_out, receivers, by_sender), by_sender, count)
  d_bias = None
  if bias is not None:
    real = jnp.arange(num_edges) < index.indptr[-1]
    d_bias = jnp.where(real[:, None], d_logits.reshape(-1, heads)[slot], 0.0)
  return dq, dk, dv, d_bias


def _seeds_as_heads(function):
  """vmap over arrays [.., rows, H, ..] with an unbatched index as one call with S * H heads."""

  @functools.wraps(function)
  def call(scale, clip, *args):
    batched = jax.custom_batching.custom_vmap(functools.partial(function, scale, clip))

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
        outs = jax.lax.map(lambda one: call(scale, clip, *one), tuple(moved))
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
      outs = jax.tree.map(unfold, call(scale, clip, *folded))
      return outs, jax.tree.map(lambda _: True, outs)

    return batched(*args)

  return call


_forward = _seeds_as_heads(_forward)
_backward = _seeds_as_heads(_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(scale, clip, q, k, v, bias, keep, index: EdgeIndex):
  """(out [N, H, E'], lse [N, H]), float32; keep [E, H] multiplies the weights (dropout) or None."""
  return _forward(scale, clip, q, k, v, bias, keep, index)


def _attend_fwd(scale, clip, q, k, v, bias, keep, index):
  out, lse = _forward(scale, clip, q, k, v, bias, keep, index)
  return (out, lse), (q, k, v, bias, keep, index, out, lse)


def _attend_bwd(scale, clip, saved, cotangents):
  q, k, v, bias, keep, index, out, lse = saved
  d_out, d_lse = cotangents
  delta = jnp.sum(d_out * out, -1) - d_lse
  dq, dk, dv, d_bias = _backward(scale, clip, q, k, v, bias, keep, index, lse, d_out, delta)
  return dq, dk, dv, d_bias, None, None


attend.defvjp(_attend_fwd, _attend_bwd)


def edge_attention(q, k, v, index: EdgeIndex, *, bias, scale, clip, keep):
  """(out in v's dtype, lse); see `api.edge_attention`. keep: [E, H] or None."""
  q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
  bias = None if bias is None else bias.astype(jnp.float32)
  out, lse = attend(scale, clip, q32, k32, v32, bias, keep, index)
  return out.astype(v.dtype), lse
