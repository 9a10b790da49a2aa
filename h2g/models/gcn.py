"""Graph convolutional network on the homogenised graph (types forgotten)."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn import dropout
from h2g.nn import HeteroEncoder
from h2g.nn import SharedEncoder
from h2g.nn import split
from h2g.ops.edge import edge_sum


class GCN(nnx.Module):
  """h' = act(norm(S h W + b)), S = D^-1/2 (A + I) D^-1/2, D the in-degree with the self loop.

  All node types share one input map (`Raw` in H2GB) unless `typed_input`; all relations are one.
  Source: arXiv 1609.02907 eq. 2; directed degrees as in PyG's `GCNConv`.
  """

  reads_labels = False

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 2,
    dropout_rate: float = 0.5,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    encoder = HeteroEncoder if typed_input else SharedEncoder
    self.encoder = encoder(schema, dim, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(dim, dim, rngs=rngs) for _ in range(num_layers)])
    self.norms = nnx.List([nnx.LayerNorm(dim, rngs=rngs) for _ in range(num_layers)])
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.dropout_rate = dropout_rate

  def __call__(
    self, graph: HeteroGraph, *, visible: Array | None = None, key: Array | None = None
  ) -> Array:
    """Returns logits [N_target, num_classes]; `visible` is ignored."""
    del visible
    h = jax.nn.relu(self.encoder(graph))
    for layer, norm, layer_key in zip(self.layers, self.norms, split(key, len(self.layers))):
      h = dropout(h, self.dropout_rate, layer_key)
      h = jax.nn.relu(norm(propagate(layer(h), graph)))
    begin, end = graph.target_rows
    return self.head(h[begin:end])


def propagate(h: Array, graph: HeteroGraph) -> Array:
  """S h for h [N, G]: symmetric normalisation with self loops over all relations as one."""
  degree = jnp.diff(graph.incoming.indptr).astype(h.dtype) + 1.0
  scale = jax.lax.rsqrt(degree)[:, None]
  h = h * scale
  return scale * (edge_sum(graph.message_rows(h), graph.incoming) + h)
