"""APPNP: predict first, then propagate as personalised PageRank does."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import dropout
from h2g.nn import split
from h2g.nn.conv import propagate


class Predictor(nnx.Module):
  """z [N, C] = MLP(encoder(graph)), dropout before each of its linear maps; the bias comes later.

  The last bias is added after propagation (`bias`): H2GB propagates hidden rows and puts the head
  behind, which by linearity is this, only wider.
  """

  def __init__(
    self,
    schema: Schema,
    dim: int,
    num_layers: int,
    *,
    dropout_rate: float,
    typed_input: bool,
    rngs: nnx.Rngs,
  ):
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(dim, dim, rngs=rngs) for _ in range(num_layers - 1)])
    self.norms = nnx.List([nnx.LayerNorm(dim, rngs=rngs) for _ in range(num_layers - 1)])
    self.last = nnx.Linear(dim, schema.num_classes, use_bias=False, rngs=rngs)
    self.bias = nnx.Param(jnp.zeros(schema.num_classes))
    self.dropout_rate = dropout_rate

  def __call__(self, graph: HeteroGraph, *, key: Array | None) -> Array:
    h = self.encoder(graph)
    *keys, last_key = split(key, len(self.layers) + 1)
    for layer, norm, layer_key in zip(self.layers, self.norms, keys):
      h = jax.nn.relu(norm(layer(dropout(h, self.dropout_rate, layer_key))))
    return self.last(dropout(h, self.dropout_rate, last_key))


class APPNP(Baseline):
  """Z_0 = MLP(x); Z_{k+1} = (1 - alpha) S Z_k + alpha Z_0; logits = Z_K + b, S as in `GCNConv`.

  Args of the constructor:
    num_layers: linear maps of the MLP behind the input map.
    num_steps, alpha: K, and the share of Z_0 in each step.
    dropout_rate: of features; edges are not dropped.
  Source: arXiv 1810.05997 eq. 4.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 2,
    num_steps: int = 10,
    alpha: float = 0.1,
    dropout_rate: float = 0.5,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.predictor = Predictor(
      schema, dim, num_layers, dropout_rate=dropout_rate, typed_input=typed_input, rngs=rngs
    )
    self.num_steps, self.alpha = num_steps, alpha

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    z = self.mix(self.predictor(graph, key=key), graph)
    begin, end = graph.target_rows
    return z[begin:end] + self.predictor.bias[...][None, :]

  def mix(self, start: Array, graph: HeteroGraph) -> Array:
    """Z_K from Z_0, [N, num_classes]."""
    z = start
    for _ in range(self.num_steps):
      z = (1.0 - self.alpha) * propagate(z, graph) + self.alpha * start
    return z
