"""Gophormer: a transformer over each node's sampled surroundings, biased by proximity."""

from collections.abc import Sequence

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import split
from h2g.nn.tokens import count_edges
from h2g.nn.tokens import ego_sequences
from h2g.nn.tokens import TokenLayer


class Gophormer(Baseline):
  """Tokens of node v: v, nodes drawn around it (`ego_sequences`), and learned global tokens. Layers
  of attention with logits
    <q_i, k_j> / sqrt(D) + sum_m b_m phi_m(i, j),  phi_m = (S^m)_ij for m = 0, 1, S as in `GCNConv`
  (b per layer and head, phi = 0 for global tokens); logits = LN(token of v) W + b.

  Tokens are drawn anew at every call with a key; evaluation is the mean of the logits over
  `num_samples` draws that are always the same. The paper's powers go on (m < M), and its loss asks
  the draws of a node to agree: neither is here. H2GB's Gophormer is another model, attention among
  all nodes of a sample within two hops with virtual nodes: UnifiedGT with `FullAttention`,
  `HopBias(hops=2)` and `config.data.virtual_nodes=2`.
  Source: arXiv 2110.13094 section 3.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 3,
    num_heads: int = 8,
    fanouts: Sequence[int] = (8, 4),
    num_global: int = 2,
    num_samples: int = 4,
    dropout_rate: float = 0.2,
    attention_dropout: float = 0.2,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.everywhere = nnx.Param(0.02 * jax.random.normal(rngs.params(), (num_global, dim)))
    self.proximity = nnx.Param(jnp.zeros((num_layers, 2, num_heads)))
    self.layers = nnx.List(
      [
        TokenLayer(
          dim, num_heads, dropout_rate=dropout_rate, attention_dropout=attention_dropout, rngs=rngs
        )
        for _ in range(num_layers)
      ]
    )
    self.norm = nnx.LayerNorm(dim, rngs=rngs)
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.fanouts, self.num_samples = tuple(fanouts), num_samples

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    h = self.encoder(graph)
    if key is not None:
      draw_key, layers_key = split(key, 2)
      return self.of_draw(h, graph, draw_key, layers_key)
    draws = jax.random.split(jax.random.key(0), self.num_samples)
    return jax.lax.map(lambda draw: self.of_draw(h, graph, draw, None), draws).mean(0)

  def of_draw(self, h: Array, graph: HeteroGraph, draw: Array, key: Array | None) -> Array:
    """The logits with one draw of tokens."""
    tokens, real, edges = ego_sequences(graph, self.fanouts, draw)
    extra = self.everywhere.shape[0]
    first = 1 if len(self.layers) == 1 else None  # in the last layer nobody reads the others
    more = 0 if first else extra
    pad = lambda x: jnp.pad(x.astype(h.dtype), ((0, 0), (0, more), (0, extra)))
    i, j = jnp.broadcast_arrays(tokens[:, :first, None], tokens[:, None, :])
    scale = jax.lax.rsqrt(jnp.diff(graph.incoming.indptr).astype(h.dtype) + 1.0)
    near = count_edges(i, j, edges, graph) + (i == j).astype(jnp.int32)
    phi = pad(i == j), pad(near.astype(h.dtype) * scale[i] * scale[j])
    seen = jnp.pad(real, ((0, 0), (0, extra)), constant_values=True)
    hidden = jnp.where(seen, 0.0, -jnp.inf)[:, None, None, :]
    x = jnp.broadcast_to(self.everywhere[...], (len(tokens), *self.everywhere.shape))
    x = jnp.concatenate([h[tokens], x], axis=1)
    for at, (layer, layer_key) in enumerate(zip(self.layers, split(key, len(self.layers)))):
      first = 1 if at + 1 == len(self.layers) else None
      weights = self.proximity[...][at, :, :, None, None]
      bias = sum(weights[m][None] * phi[m][:, None, :first] for m in range(2)) + hidden
      x = layer(x, first=first, bias=bias, key=layer_key)
    return self.head(self.norm(x[:, 0]))
