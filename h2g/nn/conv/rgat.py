"""Relational graph attention: one graph attention per relation, added up."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn.relations import by_relation
from h2g.nn.relations import edge_softmax
from h2g.nn.relations import per_type
from h2g.nn.relations import relate
from h2g.nn.relations import relate_receivers
from h2g.nn.relations import relations_to
from h2g.nn.relations import transform
from h2g.nn.relations import within_a_type
from h2g.nn.typed import type_ids
from h2g.ops.edge import edge_sum

INIT = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=0)


class RGATConv(nnx.Module):
  """h'_v = sum_r sum_u softmax_u(s_uv^r) h_u W_r + b_t,
    s_uv^r = leaky_relu(<a_r, h_u W_r> + <a'_r, h_v W_r>).

  Each relation has its own softmax, per head: over its edges that reach v, and over v itself where
  the relation joins a type to itself. Heads stand side by side or are averaged; b_t is per node
  type. As in PyG's `HeteroConv` of `GATConv` (whose b_r add up to b_t), which the H2GB baseline
  uses; arXiv 1904.05811 has other logits.

  Args of the constructor: schema gives the relations; the others as of `GATConv`.
  """

  reads_relations = True

  def __init__(
    self,
    in_dim: int,
    *,
    schema: Schema,
    head_dim: int,
    num_heads: int,
    concat: bool = True,
    slope: float = 0.2,
    rngs: nnx.Rngs,
  ):
    draw = lambda *shape: INIT(rngs.params(), (len(schema.edge_types), *shape), jnp.float32)
    kernel = draw(in_dim, num_heads * head_dim)
    self.kernel = nnx.Param(kernel.reshape(*kernel.shape[:2], num_heads, head_dim))
    self.sender = nnx.Param(draw(num_heads, head_dim))
    self.receiver = nnx.Param(draw(num_heads, head_dim))
    self.out_dim = num_heads * head_dim if concat else head_dim
    self.bias = nnx.Param(jnp.zeros((len(schema.node_types), self.out_dim)))
    self.concat, self.slope = concat, slope

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]; draws nothing at random."""
    del key
    kernel = self.kernel[...]
    z = transform(graph, h[:, None], kernel.reshape(*kernel.shape[:2], -1)[:, None])
    z = z.reshape(-1, *kernel.shape[2:])
    # <a, h W> = <W a, h>: scores without the rows h W of all receivers.
    to_sender = jnp.einsum("rghd,rhd->rgh", kernel, self.sender[...])
    to_receiver = jnp.einsum("rghd,rhd->rgh", kernel, self.receiver[...])
    score = relate_receivers(graph, h, to_receiver, "ng,rgh->nrh")
    own = score + relate_receivers(graph, h, to_sender, "ng,rgh->nrh")
    index = by_relation(graph)
    logits = relate(graph, h, to_sender, "ng,rgh->rnh")[index.senders] + score[index.receivers]
    leaky = lambda x: jax.nn.leaky_relu(x, self.slope)
    weights, own = edge_softmax(leaky(logits), index, own=leaky(own), with_own=within_a_type(graph))
    out = edge_sum(z, graph.incoming, weights=weights) + self.of_itself(own, z, graph)
    out = out.reshape(h.shape[0], self.out_dim) if self.concat else out.mean(1)
    return out + self.bias[...][type_ids(graph.node_offsets)]

  def of_itself(self, own: Array, z: Array, graph: HeteroGraph) -> Array:
    """[N, H, D] what each node gives itself, from its weights [P, H] and z [M, H, D]."""
    relations, parts = relations_to(graph.schema), []
    # One split, not a slice per relation: the gradient of each slice would be as large as z.
    messages = jnp.split(z, graph.message_offsets[1:-1])
    for name, share in per_type(graph, own).items():
      total = jnp.zeros((share.shape[0], *z.shape[1:]), z.dtype)
      for rank, r in enumerate(relations[name]):
        if graph.schema.edge_types[r][0] == name:
          total = total + share[:, rank, :, None] * messages[r]
      parts.append(total)
    return jnp.concatenate(parts)
