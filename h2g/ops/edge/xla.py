"""Edge operations that read rows instead of scattering, for any platform through XLA.

Plan. A receiver's edges are cut into virtual rows of W edges (W static, R = N + E / W rows), so
that every array has a static shape and nothing is scattered per edge: a virtual row gathers its W
messages one after the other and adds them up on chip; what R rows give is then added per receiver,
a block of rows at a time. The backward pass does the same twice: by receiver for dq (and the
logits' gradients, E x H scalars), by sender for dk and dv. No array of edges x features is
allocated.

Seeds that train together (`jax.vmap` over q, k, v with one index) become heads: rows of S * H heads
are gathered in one piece.
"""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.edge.call import clipped
from h2g.ops.edge.call import delta_of
from h2g.ops.edge.call import edge_gradients
from h2g.ops.edge.call import seeds_as_heads
from h2g.ops.edge.index import EdgeIndex

BLOCK = 1024  # virtual rows at a time, at most: bounds memory
BLOCK_BYTES = 1 << 18  # of what a block gathers: it stays in a core's cache
LANES = 1  # heads are added up together as long as they have no more entries
NEGATIVE = -1e30  # a logit no edge has: exp of its distance to any real one is 0, and never NaN


class Rows(NamedTuple):
  """Edges of each owner (receiver or sender) cut into virtual rows.

  owner: [R] row's owner, ascending; surplus rows at the end hold no edge.
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
  total = total if total <= BLOCK else -(-total // BLOCK) * BLOCK  # whole blocks of any size
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


def _block(rows: Array, x: Array) -> int:
  """Virtual rows at a time for gathers of x's rows: a power of two in [32, BLOCK]."""
  fits = BLOCK_BYTES // (4 * rows.shape[1] * max(x[0].size, 1))
  return min(BLOCK, 1 << max(fits.bit_length() - 1, 5))


def _cut(x: Array, block: int) -> Array:
  return x.reshape(-1, block, *x.shape[1:])


def _products(x: Array, y: Array, rows: Rows, ids: Array) -> Array:
  """[R, W, H] = <x[owner], y[ids[:, j]]>: one inner product per edge and head."""

  def some(owner, ids):
    # A small matrix product per row and head: a sum over the last axis is scalar on a CPU.
    return jnp.einsum("rhd,rwhd->rwh", x[owner], y[ids], precision=jax.lax.Precision.HIGHEST)

  if len(ids) <= BLOCK:
    return some(rows.owner, ids)
  size = _block(ids, x)
  out = jax.lax.map(lambda block: some(*block), (_cut(rows.owner, size), _cut(ids, size)))
  return out.reshape(*ids.shape, x.shape[1])


def _add_rows(parts: Array, rows: Rows, num: int) -> Array:
  return jax.ops.segment_sum(parts, rows.owner, num, indices_are_sorted=True)


def _logits(raw, bias, rows: Rows, clip):
  """From scaled products [R, W, H] to logits; NEGATIVE where no edge is."""
  logits = clipped(raw, clip)
  if bias is not None:
    logits = logits + bias[rows.position]
  return jnp.where(rows.real[..., None], logits, NEGATIVE)


def _forward(scale, clip, q, k, v, bias, keep, index: EdgeIndex):
  """(out [N, H, E'], lse [N, H], scaled products [R * W, H]) in float32.

  The products, scalars per edge and head, spare the backward pass a read of all keys.
  """
  num, num_edges = q.shape[0], index.senders.shape[0]
  rows = virtual_rows(index.indptr, num_edges)
  raw = scale * _products(q, k, rows, index.senders[rows.position])
  logits = _logits(raw, bias, rows, clip)
  top = jax.ops.segment_max(logits.max(1), rows.owner, num, indices_are_sorted=True)
  top = jnp.where(top > 0.5 * NEGATIVE, top, 0.0)
  weights = jnp.exp(logits - top[rows.owner][:, None, :])
  total = _add_rows(weights.sum(1), rows, num)
  if keep is not None:
    weights = weights * jnp.where(rows.real[..., None], keep[rows.position], 0.0)
  out = _weighted_sum(weights, v, index.senders[rows.position], rows, num)
  seen = total > 0
  safe = jnp.where(seen, total, 1.0)
  lse = jnp.where(seen, top + jnp.log(safe), -jnp.inf)
  return out / safe[..., None], lse, raw.reshape(-1, raw.shape[-1])


def _weighted_sum(weights: Array, x: Array, ids: Array, rows: Rows, num: int) -> Array:
  """[num, H, D] = sum over an owner's edges of weights[r, j] x[ids[r, j]].

  Where no edge is, x is not read (it may be NaN). Blocks are added into the result one by one.
  """

  def add(total, block):
    owner, weights, ids, real = block
    parts = 0.0
    for j in range(ids.shape[1]):
      term = jnp.where(real[:, j][:, None, None], x[ids[:, j]], 0.0)
      parts = parts + weights[:, j, :, None] * term
    return total.at[owner].add(parts, indices_are_sorted=True), None

  total = jnp.zeros((num, *x.shape[1:]), x.dtype)
  arrays = (rows.owner, weights, ids, rows.real)
  if ids.shape[0] <= BLOCK:
    return add(total, arrays)[0]
  size = _block(ids, x)
  return jax.lax.scan(add, total, tuple(_cut(array, size) for array in arrays))[0]


def _backward(scale, clip, q, k, v, bias, keep, index: EdgeIndex, lse, raw, d_out, delta):
  """(dq, dk, dv, d_bias [E, H] with zeros on padding); delta [N, H] = <d_out, out> - d_lse."""
  num, num_edges = q.shape[0], index.senders.shape[0]
  rows = virtual_rows(index.indptr, num_edges)
  raw = raw.reshape(*rows.real.shape, -1)
  logits = _logits(raw, bias, rows, clip)
  safe = jnp.where(jnp.isfinite(lse), lse, 0.0)
  weights = jnp.where(rows.real[..., None], jnp.exp(logits - safe[rows.owner][:, None, :]), 0.0)
  senders = index.senders[rows.position]
  d_weights = _products(d_out, v, rows, senders)
  d_weights = jnp.where(rows.real[..., None], d_weights, 0.0)
  if keep is not None:
    keep = jnp.where(rows.real[..., None], keep[rows.position], 0.0)
  delta = jnp.broadcast_to(delta[rows.owner][:, None, :], raw.shape)
  d_raw, d_logits, kept = edge_gradients(raw, weights, d_weights, delta, keep, scale, clip)
  dq = _weighted_sum(d_raw, k, senders, rows, num)

  # By sender: the logits' gradients and the weights, scalars per edge and head, are read back.
  heads = q.shape[1]
  slot = _slot(rows, index.indptr, index.receivers)
  by_sender = virtual_rows(index.sender_indptr, num_edges)
  edge = index.sender_order[by_sender.position]
  receivers = index.receivers[edge]
  read = lambda x: x.reshape(-1, heads)[slot[edge]]
  count = k.shape[0]
  dk = _weighted_sum(read(d_raw), q, receivers, by_sender, count)
  dv = _weighted_sum(read(kept), d_out, receivers, by_sender, count)
  d_bias = None
  if bias is not None:
    real = jnp.arange(num_edges) < index.indptr[-1]
    d_bias = jnp.where(real[:, None], d_logits.reshape(-1, heads)[slot], 0.0)
  return dq, dk, dv, d_bias


_forward = seeds_as_heads(_forward, num_static=2)
_backward = seeds_as_heads(_backward, num_static=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(scale, clip, q, k, v, bias, keep, index: EdgeIndex):
  """(out [N, H, E'], lse [N, H]), float32; keep [E, H] multiplies the weights (dropout) or None."""
  return _forward(scale, clip, q, k, v, bias, keep, index)[:2]


def _attend_fwd(scale, clip, q, k, v, bias, keep, index):
  out, lse, raw = _forward(scale, clip, q, k, v, bias, keep, index)
  return (out, lse), (q, k, v, bias, keep, index, out, lse, raw)


def _attend_bwd(scale, clip, saved, cotangents):
  q, k, v, bias, keep, index, out, lse, raw = saved
  d_out, d_lse = cotangents
  delta = delta_of(d_out, out, d_lse)
  dq, dk, dv, d_bias = _backward(scale, clip, q, k, v, bias, keep, index, lse, raw, d_out, delta)
  return dq, dk, dv, d_bias, None, None


attend.defvjp(_attend_fwd, _attend_bwd)


def edge_attention(q, k, v, index: EdgeIndex, *, bias, scale, clip, keep, return_weights=False):
  """(out in v's dtype, lse, None); see `api.edge_attention`. keep: [E, H] or None."""
  if return_weights:
    raise NotImplementedError(
      "'xla' keeps no weights and cannot serve return_weights: use 'reference'"
    )
  q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
  bias = None if bias is None else bias.astype(jnp.float32)
  out, lse = attend(scale, clip, q32, k32, v32, bias, keep, index)
  return out.astype(v.dtype), lse, None


def _sum_forward(scale, clip, x, weights, index: EdgeIndex):
  del scale, clip
  rows = virtual_rows(index.indptr, index.senders.shape[0])
  factor = jnp.broadcast_to(rows.real[..., None], (*rows.real.shape, x.shape[1])).astype(x.dtype)
  if weights is not None:
    factor = jnp.where(rows.real[..., None], weights[rows.position], 0.0)
  senders = index.senders[rows.position]
  return _weighted_sum(factor, x, senders, rows, index.indptr.shape[0] - 1)


def _sum_backward(scale, clip, x, weights, index: EdgeIndex, d_out):
  """(dx, d_weights)."""
  del scale, clip
  num_edges, heads = index.senders.shape[0], x.shape[1]
  by_sender = virtual_rows(index.sender_indptr, num_edges)
  edge = index.sender_order[by_sender.position]
  shape = (*edge.shape, heads)
  factor = jnp.ones(shape, x.dtype) if weights is None else weights[edge]
  factor = jnp.where(by_sender.real[..., None], factor, 0.0)
  dx = _weighted_sum(factor, d_out, index.receivers[edge], by_sender, x.shape[0])
  d_weights = None
  if weights is not None:
    rows = virtual_rows(index.indptr, num_edges)
    parts = _products(d_out, x, rows, index.senders[rows.position])
    slot = _slot(rows, index.indptr, index.receivers)
    real = jnp.arange(num_edges) < index.indptr[-1]
    d_weights = jnp.where(real[:, None], parts.reshape(-1, heads)[slot], 0.0)
  return dx, d_weights


_sum_forward = seeds_as_heads(_sum_forward, num_static=2)
_sum_backward = seeds_as_heads(_sum_backward, num_static=2)


@jax.custom_vjp
def _sum(x, weights, index: EdgeIndex):
  return _sum_forward(None, None, x, weights, index)


def _sum_fwd(x, weights, index):
  return _sum(x, weights, index), (x, weights, index)


def _sum_bwd(saved, d_out):
  x, weights, index = saved
  return *_sum_backward(None, None, x, weights, index, d_out), None


_sum.defvjp(_sum_fwd, _sum_bwd)


def edge_sum(x, index: EdgeIndex, *, weights):
  """[N, H, F] from x [M, H, F] float32 and weights [E, H] or None; see `api.edge_sum`."""
  return _sum(x, None if weights is None else weights.astype(x.dtype), index)
