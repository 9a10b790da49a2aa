"""Adaptive channel mixing: low-pass, high-pass and identity, weighed per node."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.ops.edge import edge_sum


class ACMConv(nnx.Module):
  """h' = 3 (a_L H_L + a_H H_H + a_I H_I) with
    H_L = relu(R h W_L), H_H = relu((I - R) h W_H), H_I = relu(h W_I), R = D^-1 (A + I)
    (a_L, a_H, a_I) = softmax(sigmoid([H_L w_L, H_H w_H, H_I w_I]) W / 3), per node.

  D is the in-degree with the self loop. The factor 3 is the official code's. The H2GB code leaves
  the self loops of R out; this follows the paper.
  Source: arXiv 2210.07606 section 5 (ACM-GCN).
  """

  def __init__(self, in_dim: int, *, out_dim: int, rngs: nnx.Rngs):
    # Channels low, high, identity stand side by side.
    self.linear = nnx.Linear(in_dim, 3 * out_dim, use_bias=False, rngs=rngs)
    uniform = lambda shape, width: nnx.Param(
      jax.random.uniform(rngs.params(), shape, jnp.float32, -(width**-0.5), width**-0.5)
    )
    self.score = uniform((3, out_dim), 1)
    self.mix = uniform((3, 3), 3)
    self.out_dim = out_dim

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]; draws nothing at random."""
    del key
    low, high, own = jnp.split(self.linear(h), 3, axis=1)
    both = row_mean(jnp.concatenate([low, high], axis=1), graph)
    channels = jnp.stack([both[:, : self.out_dim], high - both[:, self.out_dim :], own], axis=1)
    channels = jax.nn.relu(channels)
    scores = jax.nn.sigmoid(jnp.sum(channels * self.score[...][None], -1))
    weights = jax.nn.softmax(scores @ self.mix[...] / 3.0, axis=-1)
    return 3.0 * jnp.sum(weights[..., None] * channels, axis=1)


def row_mean(h: Array, graph: HeteroGraph) -> Array:
  """R h, R = D^-1 (A + I): the mean over the incoming edges and the node itself."""
  count = jnp.diff(graph.incoming.indptr).astype(h.dtype)[:, None] + 1.0
  return (edge_sum(graph.message_rows(h), graph.incoming) + h) / count
