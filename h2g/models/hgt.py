"""Heterogeneous Graph Transformer (HGT)."""

from flax import nnx
import jax
from jax import Array

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.nn import CrossTypeAttention
from h2g.nn import dropout
from h2g.nn import HeteroEncoder
from h2g.nn import LearnedResidual
from h2g.nn import split
from h2g.nn import TypedLinear


class HGTLayer(nnx.Module):
  """h' = gate_t-mix of h and W^o_t gelu(sum_e softmax_e(mu_r <q, k W_r> / sqrt(D)) v W'_r)."""

  def __init__(
    self, schema: Schema, dim: int, num_heads: int, *, dropout_rate: float, rngs: nnx.Rngs
  ):
    num_types = len(schema.node_types)
    self.attention = CrossTypeAttention(
      schema, dim, num_heads, value_weights=True, prior=True, clip=None, rngs=rngs
    )
    self.skip = LearnedResidual(num_types, dim, rngs=rngs)
    self.dropout_rate = dropout_rate

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None) -> Array:
    offsets = graph.node_offsets
    update = jax.nn.gelu(self.attention.attend(h, graph).reshape(h.shape))
    update = dropout(self.attention.out(update, offsets), self.dropout_rate, key)
    return self.skip(h, update, offsets)


class HGT(Baseline):
  """Typed input map with ReLU, `num_layers` HGT layers, linear head on the target type.

  Follows PyG's `HGTConv`, which the H2GB baseline uses: no relative temporal encoding, no norm.
  Source: arXiv 2003.01332 eq. 3-6.
  """

  reads_relations = True

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 2,
    num_heads: int = 8,
    dropout_rate: float = 0.2,
    rngs: nnx.Rngs,
  ):
    self.encoder = HeteroEncoder(schema, dim, rngs=rngs)
    self.pre = TypedLinear(len(schema.node_types), dim, dim, rngs=rngs)
    self.layers = nnx.List(
      [
        HGTLayer(schema, dim, num_heads, dropout_rate=dropout_rate, rngs=rngs)
        for _ in range(num_layers)
      ]
    )
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    h = jax.nn.relu(self.pre(self.encoder(graph), graph.node_offsets))
    for layer, layer_key in zip(self.layers, split(key, len(self.layers))):
      h = layer(h, graph, key=layer_key)
    begin, end = graph.target_rows
    return self.head(h[begin:end])
