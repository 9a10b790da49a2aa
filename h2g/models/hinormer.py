"""HINormer: a local encoder of structure and one of types, then a transformer over each node's
surroundings."""

from collections.abc import Sequence

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.nn import dropout
from h2g.nn import HeteroEncoder
from h2g.nn import split
from h2g.nn.conv import GCNConv
from h2g.nn.conv import propagate
from h2g.nn.tokens import ego_sequences
from h2g.nn.typed import type_ids
from h2g.nn.widths import head_width
from h2g.ops.attention import attention


class TypeEncoder(nnx.Module):
  """r'_v = relu(sum_u S_vu w_t(u) r_u W + b), r one-hot node types at first; S as in `propagate`.

  What stands around a node, in types. Source: arXiv 2302.11329 eq. 7-8.
  """

  def __init__(self, num_types: int, num_layers: int, *, rngs: nnx.Rngs):
    linear = lambda: nnx.Linear(num_types, num_types, use_bias=False, rngs=rngs)
    self.layers = nnx.List([linear() for _ in range(num_layers)])
    self.weights = nnx.Param(jnp.ones((num_layers, num_types)))
    self.biases = nnx.Param(jnp.zeros((num_layers, num_types)))

  def __call__(self, graph: HeteroGraph) -> Array:
    """Returns [N, num_types]."""
    types = type_ids(graph.node_offsets)
    r = jax.nn.one_hot(types, self.weights.shape[1])
    for at, layer in enumerate(self.layers):
      scale = self.weights[...][at][types][:, None]
      r = jax.nn.relu(propagate(scale * layer(r), graph) + self.biases[...][at][None, :])
    return r


class HeteroTokenLayer(nnx.Module):
  """Attention whose score has a part of each end's features and a part of both ends' types:

    s_ij = (<a, leaky(x_i A)> + <b, leaky(x_j B)> + beta <r_i P, r_j Q>) / temperature
    x'_i = LN(x_i + (sum_j softmax_j(s_ij) x_j B) O),  per head, heads side by side.

  Source: arXiv 2302.11329 eq. 3-6 and 9.
  """

  def __init__(
    self,
    dim: int,
    num_types: int,
    num_heads: int,
    *,
    beta: float,
    temperature: float,
    dropout_rate: float,
    rngs: nnx.Rngs,
  ):
    linear = lambda rows, columns: nnx.Linear(rows, columns, use_bias=False, rngs=rngs)
    self.receiver, self.sender = linear(dim, dim), linear(dim, dim)
    width = head_width(dim, num_heads)
    self.receiver_score, self.sender_score = linear(width, 1), linear(width, 1)
    self.type_query = linear(num_types, num_types * num_heads)
    self.type_key = linear(num_types, num_types * num_heads)
    self.out, self.norm = linear(dim, dim), nnx.LayerNorm(dim, rngs=rngs)
    self.num_heads, self.dropout_rate = num_heads, dropout_rate
    self.beta, self.temperature = beta, temperature

  def __call__(
    self,
    x: Array,
    r: Array,
    real: Array,
    *,
    tokens: Array | None = None,
    first: int | None = None,
    key: Array | None = None,
  ) -> Array:
    """Returns [N, T or `first`, dim].

    Args:
      x: [N, T, dim] tokens; with `tokens` [rows, dim], and x[tokens] are the tokens.
      r: [N, T, types] or [rows, types], their types.
      real: [N, T] bool, tokens that count.
      tokens: [N, T] integers. Maps then go over the rows, once each, not over all tokens.
      first: how many tokens ask and come out; None: all.
      key: PRNG key of dropout; None evaluates.
    """
    weights_key, out_key = split(key, 2)
    heads = lambda y: y.reshape(*y.shape[:-1], self.num_heads, -1)
    if tokens is None:
      of_all, of_first = lambda y: y, lambda y: y[:, :first]
    else:
      of_all, of_first = lambda y: y[tokens], lambda y: y[tokens[:, :first]]
    v = heads(self.sender(x))
    answering = of_all(self.sender_score(jax.nn.leaky_relu(v))[..., 0])
    asking = self.receiver_score(jax.nn.leaky_relu(heads(self.receiver(of_first(x)))))
    bias = jnp.moveaxis(asking, 1, 2) + jnp.moveaxis(answering, 1, 2)[:, :, None, :]
    # All logits of a few tokens are less than one tile: nothing to gain from going tile by tile.
    out = attention(
      heads(self.type_query(of_first(r))),
      of_all(heads(self.type_key(r))),
      of_all(v),
      bias=jnp.where(real[:, None, None, :], bias / self.temperature, -jnp.inf),
      scale=self.beta / self.temperature,
      dropout_rate=0.0 if key is None else self.dropout_rate,
      dropout_key=weights_key,
      implementation="reference",
    )
    x = of_first(x)
    return self.norm(x + dropout(self.out(out.reshape(x.shape)), self.dropout_rate, out_key))


class HINormer(Baseline):
  """Rows h of all nodes by graph convolutions, types r around them by `TypeEncoder`; each target
  node and nodes drawn around it (`ego_sequences`) are tokens of `HeteroTokenLayer`s; logits from
  the node's own token.

  As in the paper, the tokens are drawn once for all of training. H2GB's HINormer leaves the
  transformer out (it stands there as a comment): what it measures is `num_layers=0`.
  Source: arXiv 2302.11329.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 64,
    num_gnn_layers: int = 2,
    num_layers: int = 1,
    num_heads: int = 2,
    fanouts: Sequence[int] = (8, 2),
    beta: float = 1.0,
    temperature: float = 1.0,
    dropout_rate: float = 0.2,
    rngs: nnx.Rngs,
  ):
    types = len(schema.node_types)
    self.encoder = HeteroEncoder(schema, dim, rngs=rngs)
    self.convs = nnx.List([GCNConv(dim, out_dim=dim, rngs=rngs) for _ in range(num_gnn_layers)])
    self.types = TypeEncoder(types, num_gnn_layers, rngs=rngs) if num_layers else None
    layer = lambda: HeteroTokenLayer(
      dim,
      types,
      num_heads,
      beta=beta,
      temperature=temperature,
      dropout_rate=dropout_rate,
      rngs=rngs,
    )
    self.layers = nnx.List([layer() for _ in range(num_layers)])
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.fanouts, self.dropout_rate = tuple(fanouts), dropout_rate

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    keys = split(key, len(self.convs) + len(self.layers))
    h = self.encoder(graph)
    for conv, conv_key in zip(self.convs, keys):
      h = dropout(jax.nn.relu(conv(h, graph)), self.dropout_rate, conv_key)
    if not len(self.layers):
      begin, end = graph.target_rows
      return self.head(h[begin:end])
    tokens, real, _ = ego_sequences(graph, self.fanouts, jax.random.key(0))
    x, r = h, self.types(graph)
    for at, (layer, layer_key) in enumerate(zip(self.layers, keys[len(self.convs) :])):
      first = 1 if at + 1 == len(self.layers) else None  # nobody reads the others after it
      x = layer(x, r, real, tokens=tokens if at == 0 else None, first=first, key=layer_key)
      r = r[tokens] if at == 0 else r
    return self.head(x[:, 0])
