"""NAGphormer: a transformer over each node's own sequence of ever wider neighbourhoods."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import split
from h2g.nn.tokens import monomials
from h2g.nn.tokens import TokenLayer


class NAGphormer(Baseline):
  """Tokens of node v: (S^k h)_v for k = 0..K, h the encoded features; transformer over them;
  out = z_0 + sum_{k > 0} softmax_k(<a, [z_0 | z_k]>) z_k; logits = MLP(out), dim / 2 wide inside.

  Only target nodes get a sequence. S as in `GCNConv`; the H2GB code takes the bare A, whose powers
  grow with the degree. The input map stands before S^k (equal but for its bias), and there is no
  Laplacian encoding beyond what the data carry.
  Source: arXiv 2206.04910 eq. 5-12.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 3,
    num_heads: int = 8,
    hops: int = 6,
    dropout_rate: float = 0.2,
    attention_dropout: float = 0.1,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.layers = nnx.List(
      [
        TokenLayer(
          dim, num_heads, dropout_rate=dropout_rate, attention_dropout=attention_dropout, rngs=rngs
        )
        for _ in range(num_layers)
      ]
    )
    self.norm = nnx.LayerNorm(dim, rngs=rngs)
    self.score = nnx.Linear(2 * dim, 1, rngs=rngs)
    self.hidden = nnx.Linear(dim, dim // 2, rngs=rngs)
    self.head = nnx.Linear(dim // 2, schema.num_classes, rngs=rngs)
    self.hops = hops

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    begin, end = graph.target_rows
    tokens = monomials(self.encoder(graph), graph, self.hops)
    x = jnp.stack([token[begin:end] for token in tokens], axis=1)
    for layer, layer_key in zip(self.layers, split(key, len(self.layers))):
      x = layer(x, key=layer_key)
    x = self.norm(x)
    own, hops = x[:, :1], x[:, 1:]
    pairs = jnp.concatenate([jnp.broadcast_to(own, hops.shape), hops], axis=2)
    out = own[:, 0] + jnp.sum(jax.nn.softmax(self.score(pairs), axis=1) * hops, axis=1)
    return self.head(jax.nn.relu(self.hidden(out)))
