"""Symmetrically normalised propagation, and the graph convolution on it."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.ops.edge import edge_sum


class GCNConv(nnx.Module):
  """h' = S h W + b, S = D^-1/2 (A + I) D^-1/2, D the in-degree with the self loop.

  Args of the constructor:
    in_dim, out_dim: widths G and G'.
    bias_first: h' = S (h W + b) instead: the bias is propagated too.
  Source: arXiv 1609.02907 eq. 2; directed degrees as in PyG's `GCNConv`.
  """

  def __init__(self, in_dim: int, *, out_dim: int, bias_first: bool = False, rngs: nnx.Rngs):
    self.linear = nnx.Linear(in_dim, out_dim, use_bias=bias_first, rngs=rngs)
    self.bias = None if bias_first else nnx.Param(jnp.zeros(out_dim))
    self.out_dim = out_dim

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]; draws nothing at random."""
    del key
    h = propagate(self.linear(h), graph)
    return h if self.bias is None else h + self.bias[...][None, :]


def propagate(h: Array, graph: HeteroGraph, *, self_loops: bool = True) -> Array:
  """S h for h [N, G]: symmetric normalisation over all relations as one.

  S = D^-1/2 (A + I) D^-1/2, D the in-degree with the self loop; without `self_loops`
  S = D^-1/2 A D^-1/2, where a node without incoming edges sends and receives nothing.
  """
  degree = jnp.diff(graph.incoming.indptr).astype(h.dtype)
  if self_loops:
    scale = jax.lax.rsqrt(degree + 1.0)[:, None]
    h = h * scale
    return scale * (edge_sum(graph.message_rows(h), graph.incoming) + h)
  scale = jnp.where(degree > 0, jax.lax.rsqrt(jnp.maximum(degree, 1.0)), 0.0)[:, None]
  return scale * edge_sum(graph.message_rows(h * scale), graph.incoming)
