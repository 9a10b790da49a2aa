"""Relational graph convolution: one map and one mean per relation."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn.relations import by_relation
from h2g.nn.relations import transform
from h2g.nn.typed import TypedLinear
from h2g.ops.edge import edge_sum

INIT = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=0)


class RGCNConv(nnx.Module):
  """h'_v = sum_r mean_{u -> v by r} h_u W_r + h_v W_0 + b; a mean over no edges is zero.

  No basis or block decomposition of the W_r, as in the H2GB baseline.

  Args of the constructor:
    in_dim, out_dim: widths G and G'.
    schema: gives the relations.
    typed: W_0 and b per node type. Then this is the sum over relations of one GraphSAGE each
      (PyG's `HeteroConv` of `SAGEConv`), whose maps of the node itself add up to one per type.
  Source: arXiv 1703.06103 eq. 2.
  """

  reads_relations = True

  def __init__(
    self, in_dim: int, *, schema: Schema, out_dim: int, typed: bool = False, rngs: nnx.Rngs
  ):
    shape = (len(schema.edge_types), in_dim, out_dim)
    self.kernel = nnx.Param(INIT(rngs.params(), shape, jnp.float32))
    self.own = TypedLinear(len(schema.node_types) if typed else 1, in_dim, out_dim, rngs=rngs)
    self.out_dim = out_dim

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]; draws nothing at random."""
    del key
    typed = self.own.kernel.shape[0] > 1
    own = self.own(h, graph.node_offsets if typed else (0, h.shape[0]))
    if not self.kernel.shape[0]:
      return own
    index = by_relation(graph)
    share = 1.0 / jnp.maximum(jnp.diff(index.indptr), 1).astype(h.dtype)
    messages = transform(graph, h[:, None], self.kernel[...][:, None])[:, 0]
    return own + edge_sum(messages, graph.incoming, weights=share[index.receivers])
