"""Multilayer perceptron on the target nodes' own features: what the graph has to beat."""

from flax import nnx
import jax
from jax import Array

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.nn import dropout
from h2g.nn import HeteroEncoder
from h2g.nn import split


class MLP(Baseline):
  """h = act(norm(h W + b)) `num_layers` times on the encoded target rows, then a linear head.

  Edges and labels are never read.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 2,
    dropout_rate: float = 0.5,
    rngs: nnx.Rngs,
  ):
    self.encoder = HeteroEncoder(schema, dim, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(dim, dim, rngs=rngs) for _ in range(num_layers - 1)])
    self.norms = nnx.List([nnx.LayerNorm(dim, rngs=rngs) for _ in range(num_layers)])
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.dropout_rate = dropout_rate

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    begin, end = graph.target_rows
    h = self.encoder(graph)[begin:end]
    keys = split(key, len(self.norms))
    for layer, norm, layer_key in zip([None, *self.layers], self.norms, keys):
      h = h if layer is None else layer(h)
      h = dropout(jax.nn.relu(norm(h)), self.dropout_rate, layer_key)
    return self.head(h)
