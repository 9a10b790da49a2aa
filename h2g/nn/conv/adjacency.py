"""The adjacency as features: each node's row of A times a matrix."""

from collections.abc import Mapping

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.ops.edge import edge_sum


class AdjacencyMap(nnx.Module):
  """(A W + b)_v = sum_{u -> v} W_u + b, W a row per node of the *whole* graph.

  A sample reads the rows of its nodes (`NodeSet.ids`), so that it means the same as the whole.

  Args of the constructor:
    schema: gives the node types.
    dim: width of the output.
    num_nodes: {type: nodes in the whole graph}.
  """

  def __init__(self, schema: Schema, dim: int, *, num_nodes: Mapping[str, int], rngs: nnx.Rngs):
    bound = sum(num_nodes[name] for name in schema.node_types) ** -0.5
    draw = lambda rows: jax.random.uniform(rngs.params(), (rows, dim), jnp.float32, -bound, bound)
    self.tables = nnx.Dict({name: nnx.Param(draw(num_nodes[name])) for name in schema.node_types})
    self.bias = nnx.Param(jnp.zeros(dim))

  def __call__(self, graph: HeteroGraph) -> Array:
    """Returns [N, dim]."""
    rows = [self.tables[name][...][graph.nodes[name].ids] for name in graph.schema.node_types]
    total = edge_sum(graph.message_rows(jnp.concatenate(rows)), graph.incoming)
    return total + self.bias[...][None, :]
