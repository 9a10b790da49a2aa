"""NAGphormer: a transformer over each node's own sequence of ever wider neighbourhoods."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.homogeneous import input_map
from h2g.nn import dropout
from h2g.nn import split
from h2g.nn.tokens import monomials
from h2g.ops.attention import attention


class HopLayer(nnx.Module):
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
    self.norm, self.ffn_norm = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
    self.qkv = nnx.Linear(dim, 3 * dim, rngs=rngs)
    self.out = nnx.Linear(dim, dim, rngs=rngs)
    self.up, self.down = nnx.Linear(dim, 2 * dim, rngs=rngs), nnx.Linear(2 * dim, dim, rngs=rngs)
    self.num_heads = num_heads
    self.dropout_rate, self.attention_dropout = dropout_rate, attention_dropout

  def __call__(self, x: Array, *, key: Array | None) -> Array:
    """Returns [N, T, dim] from x like it."""
    weights_key, out_key, ffn_key = split(key, 3)
    heads = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3 * self.num_heads, -1)
    q, k, v = jnp.split(heads, 3, axis=2)
    rate = 0.0 if key is None else self.attention_dropout
    out = attention(q, k, v, dropout_rate=rate, dropout_key=weights_key).reshape(x.shape)
    x = x + dropout(self.out(out), self.dropout_rate, out_key)
    y = self.down(jax.nn.gelu(self.up(self.ffn_norm(x))))
    return x + dropout(y, self.dropout_rate, ffn_key)


class NAGphormer(nnx.Module):
  """Tokens of node v: (S^k h)_v for k = 0..K, h the encoded features; transformer over them;
  out = z_0 + sum_{k > 0} softmax_k(<a, [z_0 | z_k]>) z_k; logits = MLP(out), dim / 2 wide inside.

  Only target nodes get a sequence. S as in `GCNConv`; the H2GB code takes the bare A, whose powers
  grow with the degree. The input map stands before S^k (equal but for its bias), and there is no
  Laplacian encoding beyond what the data carry.
  Source: arXiv 2206.04910 eq. 5-12.
  """

  reads_labels = False

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
    if dim % num_heads:
      raise InputError(f"num_heads={num_heads} does not divide dim={dim}; choose a divisor")
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.layers = nnx.List(
      [
        HopLayer(
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

  def __call__(
    self, graph: HeteroGraph, *, visible: Array | None = None, key: Array | None = None
  ) -> Array:
    """Returns logits [N_target, num_classes]; `visible` is ignored."""
    del visible
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
