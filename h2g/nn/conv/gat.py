"""Graph attention."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.ops.edge import edge_attention

INIT = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class GATConv(nnx.Module):
  """z = h W;  s_uv = leaky_relu(<a, z_u> + <a', z_v>);  h'_v = sum_u softmax_u(s_uv) z_u + b.

  The sum runs over the incoming edges and over v itself, per head; heads stand side by side or are
  averaged.

  Args of the constructor:
    in_dim: width read.
    head_dim, num_heads: D and H; a and a' have D entries per head.
    concat: heads side by side (H D wide), or their mean (D wide).
    slope: of the leaky ReLU below zero.
  Source: arXiv 1710.10903 eq. 1-6.
  """

  def __init__(
    self,
    in_dim: int,
    *,
    head_dim: int,
    num_heads: int,
    concat: bool = True,
    slope: float = 0.2,
    rngs: nnx.Rngs,
  ):
    self.linear = nnx.Linear(
      in_dim, num_heads * head_dim, use_bias=False, kernel_init=INIT, rngs=rngs
    )
    self.sender = nnx.Param(INIT(rngs.params(), (num_heads, head_dim), jnp.float32))
    self.receiver = nnx.Param(INIT(rngs.params(), (num_heads, head_dim), jnp.float32))
    self.out_dim = num_heads * head_dim if concat else head_dim
    self.bias = nnx.Param(jnp.zeros(self.out_dim))
    self.num_heads, self.concat, self.slope = num_heads, concat, slope

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]; draws nothing at random."""
    del key
    z = self.linear(h).reshape(h.shape[0], self.num_heads, -1)
    sender = jnp.sum(z * self.sender[...][None], -1)
    receiver = jnp.sum(z * self.receiver[...][None], -1)
    logits = jax.nn.leaky_relu(edge_scores(graph, sender, receiver), self.slope)
    nothing = jnp.zeros((*z.shape[:2], 1))  # all of a logit is in the bias
    out = edge_attention(
      nothing,
      graph.message_rows(nothing),
      graph.message_rows(z),
      graph.incoming,
      bias=logits,
      return_lse=True,
    )
    # One more entry of the softmax, without an edge: exp(s) / (exp(s) + exp(lse)).
    own = jax.nn.sigmoid(jax.nn.leaky_relu(sender + receiver, self.slope) - out.lse)[..., None]
    z = own * z + (1.0 - own) * out.out
    z = z.reshape(h.shape[0], -1) if self.concat else z.mean(1)
    return z + self.bias[...][None, :]


def edge_scores(graph: HeteroGraph, sender: Array, receiver: Array) -> Array:
  """[E, H] sender[u] + receiver[v] of every incoming edge u -> v, from two [N, H]."""
  index = graph.incoming
  return graph.message_rows(sender)[index.senders] + receiver[index.receivers]
