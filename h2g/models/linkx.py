"""LINKX: the adjacency and the features, embedded apart and then mixed."""

from collections.abc import Mapping

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import dropout
from h2g.nn.conv import AdjacencyMap


class LINKX(Baseline):
  """h_A = A W_A + b, h_X = h W_X + b; logits = MLP(relu([h_A | h_X] W + b + h_A + h_X)).

  h is the encoded features; `num_layers` linear maps in the last MLP, layer norm where the official
  code has batch norm. `num_nodes` counts the nodes of the whole graph per type: W_A has a row each.
  Source: arXiv 2110.14446 eq. 2-4.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    num_nodes: Mapping[str, int],
    dim: int = 256,
    num_layers: int = 1,
    dropout_rate: float = 0.5,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.adjacency = AdjacencyMap(schema, dim, num_nodes=num_nodes, rngs=rngs)
    self.features = nnx.Linear(dim, dim, rngs=rngs)
    self.mix = nnx.Linear(2 * dim, dim, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(dim, dim, rngs=rngs) for _ in range(num_layers - 1)])
    self.norms = nnx.List([nnx.LayerNorm(dim, rngs=rngs) for _ in range(num_layers - 1)])
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.dropout_rate = dropout_rate

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    begin, end = graph.target_rows
    a = self.adjacency(graph)[begin:end]
    x = self.features(self.encoder(graph)[begin:end])
    h = jax.nn.relu(self.mix(jnp.concatenate([a, x], axis=1)) + a + x)
    for at, (layer, norm) in enumerate(zip(self.layers, self.norms)):
      layer_key = None if key is None else jax.random.fold_in(key, at)
      h = dropout(norm(jax.nn.relu(layer(h))), self.dropout_rate, layer_key)
    return self.head(h)
