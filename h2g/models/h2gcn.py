"""H2GCN: own features, neighbours and neighbours at distance two, kept apart."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.graph.views import STRICT
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import dropout
from h2g.ops.edge import edge_sum


class H2GCN(Baseline):
  """r_0 = relu(encoder(graph)); r_k = [S_1 r_{k-1} | S_2 r_{k-1}]; logits = [r_0 |...| r_K] W + b.

  S_i = D_i^-1/2 A_i D_i^-1/2 with the in-degree D_i: A_1 the edges, A_2 the pairs at distance two,
  both without self loops. A_2 stands in the graph as relations of its own, made once on the host
  (`config.data.view="strict_2hop"`, see `h2g.graph.views.with_strict_hops`). Dropout before
  the last map. The H2GB code adds batch norm between rounds; this follows the paper.
  Source: arXiv 2006.11468 section 3.2 (H2GCN).
  """

  reads_relations = True

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_rounds: int = 2,
    dropout_rate: float = 0.5,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    if not any(relation == STRICT for _, relation, _ in schema.edge_types):
      raise InputError("h2gcn reads neighbours at distance two: set config.data.view='strict_2hop'")
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    width = (2 ** (num_rounds + 1) - 1) * dim
    self.head = nnx.Linear(width, schema.num_classes, rngs=rngs)
    self.num_rounds, self.dropout_rate = num_rounds, dropout_rate

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    kinds = [edges_of(graph, strict) for strict in (False, True)]
    states = [jax.nn.relu(self.encoder(graph))]
    for _ in range(self.num_rounds):
      h = states[-1]
      states.append(jnp.concatenate([normalised_sum(h, graph, kind) for kind in kinds], axis=1))
    begin, end = graph.target_rows
    h = jnp.concatenate([state[begin:end] for state in states], axis=1)
    return self.head(dropout(h, self.dropout_rate, key))


def edges_of(graph: HeteroGraph, strict: bool) -> Array:
  """[E] float: 1 for the edges of the two-hop relations, or of all others; told by message row."""
  kinds = [float((relation == STRICT) == strict) for _, relation, _ in graph.schema.edge_types]
  rows = np.repeat(np.array(kinds, np.float32), np.diff(graph.message_offsets))
  return jnp.asarray(rows)[graph.incoming.senders]


def normalised_sum(h: Array, graph: HeteroGraph, weights: Array) -> Array:
  """D^-1/2 A D^-1/2 h over the edges of weight 1."""
  ones = jnp.ones((graph.message_offsets[-1], 1), h.dtype)
  degree = edge_sum(ones, graph.incoming, weights=weights)
  scale = jnp.where(degree > 0, jax.lax.rsqrt(jnp.maximum(degree, 1.0)), 0.0)
  return scale * edge_sum(graph.message_rows(h * scale), graph.incoming, weights=weights)
