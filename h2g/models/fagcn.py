"""FAGCN: frequency-adaptive propagation without weight matrices between its layers."""

from flax import nnx
import jax
from jax import Array

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import dropout
from h2g.nn import split
from h2g.nn.conv import FAConv


class FAGCN(Baseline):
  """h_0 = relu(encoder(graph)); h_l = FAConv(h_{l-1}, h_0); linear head. See `FAConv`.

  Dropout on h_0 and on the edge weights, as in the official code; the ReLU is the paper's, which
  H2GB leaves out.
  Source: arXiv 2101.00797 eq. 5-6.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 2,
    eps: float = 0.3,
    dropout_rate: float = 0.5,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.convs = nnx.List(
      [FAConv(dim, eps=eps, dropout_rate=dropout_rate, rngs=rngs) for _ in range(num_layers)]
    )
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.dropout_rate = dropout_rate

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    input_key, *keys = split(key, 1 + len(self.convs))
    start = h = dropout(jax.nn.relu(self.encoder(graph)), self.dropout_rate, input_key)
    for conv, layer_key in zip(self.convs, keys):
      h = conv(h, graph, start=start, key=layer_key)
    begin, end = graph.target_rows
    return self.head(h[begin:end])
