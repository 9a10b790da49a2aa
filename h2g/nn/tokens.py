"""A node as a short sequence of tokens: what transformers over single nodes read."""

from collections.abc import Sequence

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.nn.conv import propagate
from h2g.nn.dropout import dropout
from h2g.nn.dropout import split
from h2g.nn.widths import head_width
from h2g.ops.attention import attention


def monomials(h: Array, graph: HeteroGraph, order: int) -> list[Array]:
  """[h, S h, ..., S^order h], each like h [N, G]; S as in `propagate`.

  Source: arXiv 2206.04910 eq. 5 (Hop2Token).
  """
  tokens = [h]
  for _ in range(order):
    tokens.append(propagate(tokens[-1], graph))
  return tokens


def chebyshev(h: Array, graph: HeteroGraph, order: int) -> list[Array]:
  """[T_0(S) h, ..., T_order(S) h]: T_k = 2 S T_{k-1} - T_{k-2}, T_0 = I, T_1 = S.

  In terms of the Laplacian L = I - S that is T_k of I - L.
  Source: arXiv 2407.14459 table 1.
  """
  tokens = [h]
  for k in range(order):
    walked = propagate(tokens[-1], graph)
    tokens.append(walked if k == 0 else 2.0 * walked - tokens[-2])
  return tokens


def ego_sequences(
  graph: HeteroGraph, fanouts: Sequence[int], key: Array
) -> tuple[Array, Array, Array]:
  """Each target node with neighbours drawn around it: tokens [N_target, T], real, edges.

  Token 0 is the node. Each token of hop d draws fanouts[d] senders of its incoming edges, with
  replacement, parallel edges as often as they stand; T = 1 + f_0 + f_0 f_1 + ...

  Args:
    graph: with `incoming`.
    fanouts: draws per token and hop.
    key: PRNG key.
  Returns:
    tokens: [N_target, T] int32 node rows.
    real: [N_target, T] bool; False where the token that draws has no incoming edge, or is not real.
    edges: [E] int32, the sender's node row of each incoming edge.
  Source: arXiv 2110.13094 section 3.1 (Node2Seq).
  """
  index = jax.tree.map(jnp.asarray, graph.incoming)
  every = jnp.arange(graph.node_offsets[-1], dtype=jnp.int32)
  edges = graph.message_rows(every)[index.senders]
  frontier = every[slice(*graph.target_rows)][:, None]
  reached = jnp.ones(frontier.shape, bool)
  tokens, real = [frontier], [reached]
  for hop, fanout in enumerate(fanouts):
    frontier = jnp.repeat(frontier, fanout, axis=1)
    begin, degree = index.indptr[frontier], jnp.diff(index.indptr)[frontier]
    chance = jax.random.uniform(jax.random.fold_in(key, hop), frontier.shape)
    at = chance * degree.astype(jnp.float32)
    at = begin + jnp.minimum(at.astype(jnp.int32), degree - 1)
    reached = jnp.repeat(reached, fanout, axis=1) & (degree > 0)
    frontier = jnp.where(reached, edges[at], frontier)
    tokens.append(frontier)
    real.append(reached)
  return jnp.concatenate(tokens, axis=1), jnp.concatenate(real, axis=1), edges


def count_edges(receivers: Array, senders: Array, edges: Array, graph: HeteroGraph) -> Array:
  """How many edges lead from node senders[i] to node receivers[i]; `edges` as of `ego_sequences`.

  By bisection among each receiver's edges, sorted by sender: no array of N x N.
  """
  index, position = jax.tree.map(jnp.asarray, graph.incoming), jnp.arange(edges.shape[0])
  owner = jnp.where(position < index.indptr[-1], index.receivers, graph.node_offsets[-1])
  edges = jax.lax.sort((owner, edges), num_keys=2)[1]
  begin, end = index.indptr[receivers], index.indptr[receivers + 1]

  def first(before):  # position of the first edge that is not `before(sender)`
    def halve(_, bounds):
      low, high = bounds
      middle = (low + high) // 2
      left = before(edges[middle]) & (low < high)
      return jnp.where(left, middle + 1, low), jnp.where(left, high, jnp.maximum(low, middle))

    return jax.lax.fori_loop(0, edges.shape[0].bit_length(), halve, (begin, end))[0]

  return first(lambda u: u <= senders) - first(lambda u: u < senders)


class TokenLayer(nnx.Module):
  """Pre-norm transformer layer: x + MHA(LN(x)), then x + FFN(LN(x)), FFN = linear, gelu, linear."""

  def __init__(
    self,
    dim: int,
    num_heads: int,
    *,
    dropout_rate: float,
    attention_dropout: float,
    rngs: nnx.Rngs,
  ):
    head_width(dim, num_heads)  # raises where they do not fit
    self.norm, self.ffn_norm = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
    self.query = nnx.Linear(dim, dim, rngs=rngs)
    self.key_value = nnx.Linear(dim, 2 * dim, rngs=rngs)
    self.out = nnx.Linear(dim, dim, rngs=rngs)
    self.up, self.down = nnx.Linear(dim, 2 * dim, rngs=rngs), nnx.Linear(2 * dim, dim, rngs=rngs)
    self.num_heads = num_heads
    self.dropout_rate, self.attention_dropout = dropout_rate, attention_dropout

  def __call__(
    self, x: Array, *, first: int | None = None, bias: Array | None = None, key: Array | None = None
  ) -> Array:
    """Returns [N, T, dim] from x like it, or its `first` tokens alone.

    Args:
      x: [N, T, dim].
      first: how many tokens ask and come out; None: all.
      bias: [N, H, T or `first`, T] or smaller, added to the logits.
      key: PRNG key of dropout; None evaluates.
    """
    weights_key, out_key, ffn_key = split(key, 3)
    heads = lambda y: y.reshape(*y.shape[:2], -1, x.shape[2] // self.num_heads)
    y = self.norm(x)
    q = heads(self.query(y[:, :first]))
    k, v = jnp.split(heads(self.key_value(y)), 2, axis=2)
    rate = 0.0 if key is None else self.attention_dropout
    # All logits of a few tokens are less than one tile: nothing to gain from going tile by tile.
    out = attention(
      q,
      k,
      v,
      bias=bias,
      dropout_rate=rate,
      dropout_key=weights_key,
      implementation="reference",
    )
    x = x[:, :first]
    x = x + dropout(self.out(out.reshape(x.shape)), self.dropout_rate, out_key)
    y = self.down(jax.nn.gelu(self.up(self.ffn_norm(x))))
    return x + dropout(y, self.dropout_rate, ffn_key)
