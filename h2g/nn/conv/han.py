"""Attention on two levels: over the neighbours by each relation, then over relations."""

from collections.abc import Callable

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn.dropout import dropout
from h2g.nn.dropout import split
from h2g.nn.relations import by_relation
from h2g.nn.relations import edge_softmax
from h2g.nn.relations import per_type
from h2g.nn.relations import relate
from h2g.nn.relations import relate_receivers
from h2g.nn.relations import within_a_type
from h2g.nn.typed import TypedLinear
from h2g.nn.widths import head_width
from h2g.ops.edge import edge_sum

INIT = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=0)


class HANConv(nnx.Module):
  """z = h W_t + b_t;  s_uv^r = leaky_relu(<a_r, z_u> + <a'_r, z_v>);
    z_v^r = act(sum_u softmax_u(s_uv^r) z_u), heads side by side;
    w_r = mean_v <q, tanh(z_v^r W + b)>;  h'_v = sum_r softmax_r(w_r) z_v^r.

  The first softmax runs, per head, over the edges of relation r that reach v, and with `self_loops`
  over v itself where r joins a type to itself; the second over the relations that lead to v's type
  (0 where there is none). The mean is over the nodes of the type that are real.

  Args of the constructor:
    in_dim, out_dim: widths G and G'.
    schema: gives node types and relations.
    num_heads: divides G'.
    self_loops: as in the paper, where a node is its own neighbour; PyG's `HANConv` has none.
    activation: elu as in the paper's code; PyG's is ReLU.
    slope: of the leaky ReLU below zero.
    dropout_rate: of the first softmax.
  Source: arXiv 1903.07293 eq. 1-9.
  """

  reads_relations = True

  def __init__(
    self,
    in_dim: int,
    *,
    schema: Schema,
    out_dim: int,
    num_heads: int,
    self_loops: bool = True,
    activation: Callable[[Array], Array] = jax.nn.elu,
    slope: float = 0.2,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs,
  ):
    shape = (len(schema.edge_types), num_heads, head_width(out_dim, num_heads))
    draw = lambda: nnx.Param(INIT(rngs.params(), shape, jnp.float32))
    self.linear = TypedLinear(len(schema.node_types), in_dim, out_dim, rngs=rngs)
    self.sender, self.receiver = draw(), draw()
    self.semantic = nnx.Linear(out_dim, out_dim, rngs=rngs)
    self.query = nnx.Param(INIT(rngs.params(), (1, 1, out_dim), jnp.float32)[0, 0])
    self.out_dim, self.num_heads, self.self_loops = out_dim, num_heads, self_loops
    self.activation, self.slope, self.dropout_rate = activation, slope, dropout_rate

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]."""
    rows, edge_key, own_key = h.shape[0], *split(key, 2)
    z = self.linear(h, graph.node_offsets).reshape(rows, self.num_heads, -1)
    index = by_relation(graph)
    score = relate_receivers(graph, z, self.receiver[...], "nhd,rhd->nrh")
    logits = relate(graph, z, self.sender[...], "nhd,rhd->rnh")[index.senders]
    leaky = lambda x: jax.nn.leaky_relu(x, self.slope)
    own = None
    if self.self_loops:
      own = leaky(score + relate_receivers(graph, z, self.sender[...], "nhd,rhd->nrh"))
    weights, own = edge_softmax(
      leaky(logits + score[index.receivers]), index, own=own, with_own=within_a_type(graph)
    )
    weights = dropout(weights, self.dropout_rate, edge_key)
    out = edge_sum(graph.message_rows(z), index, weights=weights)
    own, parts = per_type(graph, dropout(own, self.dropout_rate, own_key)), []
    z = graph.by_type(z)
    for name, found in per_type(graph, out).items():
      if not found.shape[1]:
        parts.append(jnp.zeros((found.shape[0], self.out_dim), found.dtype))
        continue
      if self.self_loops:
        found = found + own[name][..., None] * z[name][:, None]
      found = self.activation(found.reshape(*found.shape[:2], self.out_dim))
      score = jnp.tanh(self.semantic(found)) @ self.query[...]
      real = graph.nodes[name].mask[:, None]
      score = jnp.where(real, score, 0.0).sum(0) / jnp.maximum(real.sum(dtype=score.dtype), 1.0)
      parts.append(jnp.einsum("nrg,r->ng", found, jax.nn.softmax(score)))
    return jnp.concatenate(parts)
