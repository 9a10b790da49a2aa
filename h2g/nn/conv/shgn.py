"""Graph attention that knows the relation of an edge, and remembers the layer before."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn.dropout import dropout
from h2g.nn.dropout import split
from h2g.nn.relations import edge_softmax
from h2g.ops.edge import edge_sum

INIT = jax.nn.initializers.variance_scaling(2.0, "fan_avg", "normal")


class SHGNConv(nnx.Module):
  """z = h W;  s_uv = leaky_relu(<a, z_u> + <a', z_v> + <a_e, W_e e_r>), r the edge's relation;
    p_uv = (1 - beta) softmax_u(s_uv) + beta p_uv of the layer before;
    h'_v = sum_u p_uv z_u (+ h_v W_res), heads side by side.

  All incoming edges of a node share one softmax with the node itself, whose edge is a relation of
  its own. The p of the layer before has no gradient.

  Args of the constructor:
    in_dim: width read.
    schema: gives the relations.
    head_dim, num_heads: of W.
    edge_dim: width of the embeddings e_r.
    beta: share of the layer before.
    slope: of the leaky ReLU below zero.
    residual: adds h W_res.
    dropout_rate, attention_dropout: of h, and of the softmax.
  Source: arXiv 2112.14936 section 5; self loops as in its code, not in H2GB's.
  """

  def __init__(
    self,
    in_dim: int,
    *,
    schema: Schema,
    head_dim: int,
    num_heads: int,
    edge_dim: int = 64,
    beta: float = 0.05,
    slope: float = 0.05,
    residual: bool = False,
    dropout_rate: float = 0.0,
    attention_dropout: float = 0.0,
    rngs: nnx.Rngs,
  ):
    draw = lambda *shape: nnx.Param(INIT(rngs.params(), shape, jnp.float32))
    self.out_dim = num_heads * head_dim
    self.kernel = draw(in_dim, self.out_dim)
    self.residual = draw(in_dim, self.out_dim) if residual else None
    self.sender, self.receiver = draw(num_heads, head_dim), draw(num_heads, head_dim)
    # Standard normal, as torch's embeddings.
    shape = (len(schema.edge_types) + 1, edge_dim)
    self.edge = nnx.Param(jax.random.normal(rngs.params(), shape))
    self.edge_kernel = draw(edge_dim, num_heads * edge_dim)
    self.edge_score = draw(num_heads, edge_dim)
    self.num_heads, self.beta, self.slope = num_heads, beta, slope
    self.dropout_rate, self.attention_dropout = dropout_rate, attention_dropout

  def __call__(
    self,
    h: Array,
    graph: HeteroGraph,
    *,
    before: tuple[Array, Array] | None = None,
    key: Array | None = None,
  ) -> tuple[Array, tuple[Array, Array]]:
    """Returns [N, out_dim] and p: [E, H] of the edges, [N, H] of the nodes themselves.

    Args:
      h: [N, G].
      graph: with `incoming`.
      before: p of the layer before.
      key: PRNG key of dropout.
    """
    h_key, p_key, own_key = split(key, 3)
    h = dropout(h, self.dropout_rate, h_key)
    z = (h @ self.kernel[...]).reshape(h.shape[0], self.num_heads, -1)
    sender = jnp.sum(z * self.sender[...][None], -1)
    receiver = jnp.sum(z * self.receiver[...][None], -1)
    edge = (self.edge[...] @ self.edge_kernel[...]).reshape(-1, *self.edge_score.shape)
    edge = jnp.sum(edge * self.edge_score[...][None], -1)
    sizes = np.diff(graph.message_offsets)
    of_row = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    index = jax.tree.map(jnp.asarray, graph.incoming)
    logits = (graph.message_rows(sender) + edge[of_row])[index.senders] + receiver[index.receivers]
    leaky = lambda x: jax.nn.leaky_relu(x, self.slope)
    weights, own = edge_softmax(leaky(logits), index, own=leaky(sender + receiver + edge[-1:]))
    weights = dropout(weights, self.attention_dropout, p_key)
    p = weights, dropout(own, self.attention_dropout, own_key)
    if before is not None:
      mix = lambda new, old: (1.0 - self.beta) * new + self.beta * jax.lax.stop_gradient(old)
      p = jax.tree.map(mix, p, before)
    out = edge_sum(graph.message_rows(z), index, weights=p[0]) + p[1][..., None] * z
    out = out.reshape(h.shape[0], -1)
    return (out if self.residual is None else out + h @ self.residual[...]), p
