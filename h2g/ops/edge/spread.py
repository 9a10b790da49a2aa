"""Values of nodes at their edges, whose gradients add up sorted edges instead of scattering.

Plain indexing has a scatter for a gradient, in whose order of additions a GPU is free. On a CPU the
two take the same time.
"""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.edge.api import edge_sum
from h2g.ops.edge.index import EdgeIndex


def at_receivers(x: Array, index: EdgeIndex) -> Array:
  """[E, H] x[r(e)] of every edge from [N, H] float; padding gets any row and gives no gradient."""
  return _at_receivers(x, jax.tree.map(jnp.asarray, index))


def at_senders(x: Array, index: EdgeIndex) -> Array:
  """[E, H] x[u(e)] of every edge from [M, H] float; padding gets any row and gives no gradient."""
  return _at_senders(x, jax.tree.map(jnp.asarray, index))


def turned(index: EdgeIndex) -> EdgeIndex:
  """The same edges from receivers to senders, in sender order; `edge_ids` is where each stood."""
  order = index.sender_order
  position = jnp.arange(order.shape[0], dtype=order.dtype)
  real = position < index.indptr[-1]
  to = jnp.where(real, order, order.shape[0])
  place = jnp.zeros_like(order).at[to].set(position, mode="drop")  # for second derivatives alone
  ends = [jnp.where(real, rows[order], 0) for rows in (index.receivers, index.senders)]
  return EdgeIndex(index.sender_indptr, *ends, index.indptr, place, order)


@jax.custom_vjp
def _at_receivers(x: Array, index: EdgeIndex) -> Array:
  return x[index.receivers]


@jax.custom_vjp
def _at_senders(x: Array, index: EdgeIndex) -> Array:
  return x[index.senders]


def _total(index: EdgeIndex, of_edges: Array) -> Array:
  """[N, H] sum of [E, H] over the edges of each receiver."""
  ones = jnp.ones((index.sender_indptr.shape[0] - 1, of_edges.shape[1], 1), of_edges.dtype)
  return edge_sum(ones, index, weights=of_edges)[..., 0]


def _to_senders(index: EdgeIndex, of_edges: Array) -> tuple[Array, None]:
  return _total(turned(index), of_edges[index.sender_order]), None


_at_receivers.defvjp(
  lambda x, index: (_at_receivers(x, index), index),
  lambda index, of_edges: (_total(index, of_edges), None),
)
_at_senders.defvjp(lambda x, index: (_at_senders(x, index), index), _to_senders)
