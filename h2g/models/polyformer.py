"""PolyFormer: each node filters its own polynomial tokens by attention over them."""

from collections.abc import Callable

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import dropout
from h2g.nn import split
from h2g.nn.tokens import monomials
from h2g.nn.widths import head_width

INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform", batch_axis=0)


class PolyLayer(nnx.Module):
  """x' = x + PolyAttn(x); x' + W_2 gelu(W_1 LN(x')).

  With y = LN(x), tokens i, j = 0..K and heads h of width D:
    t_j = V_j relu(U_j y_j + a_j) + b_j      an MLP per order
    s_ij = tanh(<t_i Q, t_j P> / sqrt(D)) beta_hj (j + 1)^-decay
    PolyAttn(x)_i = sum_j s_ij y_j
  No softmax: the weights are the signed coefficients of a filter. Values have no map of their own.
  Source: arXiv 2407.14459 eq. 6-8; the decay and the FFN as wide as x from the official code.
  """

  def __init__(
    self,
    dim: int,
    num_heads: int,
    *,
    num_tokens: int,
    decay: float,
    dropout_rate: float,
    rngs: nnx.Rngs,
  ):
    head_width(dim, num_heads)  # raises where they do not fit
    matrices = lambda: nnx.Param(INIT(rngs.params(), (num_tokens, dim, dim), jnp.float32))
    self.norm, self.ffn_norm = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
    self.up, self.down = matrices(), matrices()
    self.up_bias = nnx.Param(jnp.zeros((num_tokens, dim)))
    self.down_bias = nnx.Param(jnp.zeros((num_tokens, dim)))
    self.query = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
    self.key = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
    self.scale = nnx.Param(jnp.ones((num_heads, num_tokens)))
    self.ffn_up, self.ffn_down = nnx.Linear(dim, dim, rngs=rngs), nnx.Linear(dim, dim, rngs=rngs)
    self.num_heads, self.decay, self.dropout_rate = num_heads, decay, dropout_rate

  def __call__(self, x: Array, *, key: Array | None) -> Array:
    """Returns [K + 1, N, dim] from x like it."""
    y = self.norm(x)
    tokens = jax.nn.relu(y @ self.up[...] + self.up_bias[...][:, None])
    tokens = tokens @ self.down[...] + self.down_bias[...][:, None]
    heads = lambda z: z.reshape(*z.shape[:2], self.num_heads, -1)
    q, k = heads(self.query(tokens)), heads(self.key(tokens))
    scores = jnp.tanh(jnp.einsum("inhd,jnhd->ijnh", q, k) * q.shape[-1] ** -0.5)
    order = jnp.arange(1, len(x) + 1, dtype=x.dtype) ** -self.decay
    scores = scores * (self.scale[...].T * order[:, None])[None, :, None, :]
    x = x + jnp.einsum("ijnh,jnhd->inhd", scores, heads(y)).reshape(x.shape)
    z = self.ffn_down(jax.nn.gelu(self.ffn_up(self.ffn_norm(x))))
    return x + dropout(z, self.dropout_rate, key)


class PolyFormer(Baseline):
  """Tokens z_k = g_k(S) h, k = 0..K, of each target node; layers; logits = MLP(sum_k z_k).

  `basis` gives the tokens: `monomials` (S^k, what H2GB runs) or `chebyshev`. S as in `GCNConv`,
  where the H2GB code takes the bare A; the input map stands before the tokens (equal but for its
  bias). K = 0 in three of H2GB's nine settings: no graph at all.
  Source: arXiv 2407.14459.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 3,
    num_heads: int = 8,
    hops: int = 3,
    basis: Callable[[Array, HeteroGraph, int], list[Array]] = monomials,
    decay: float = 2.0,
    dropout_rate: float = 0.2,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.layers = nnx.List(
      [
        PolyLayer(
          dim, num_heads, num_tokens=hops + 1, decay=decay, dropout_rate=dropout_rate, rngs=rngs
        )
        for _ in range(num_layers)
      ]
    )
    self.hidden = nnx.Linear(dim, dim, rngs=rngs)
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.hops, self.basis, self.dropout_rate = hops, basis, dropout_rate

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    begin, end = graph.target_rows
    sum_key, hidden_key, *layer_keys = split(key, 2 + len(self.layers))
    x = jnp.stack([token[begin:end] for token in self.basis(self.encoder(graph), graph, self.hops)])
    for layer, layer_key in zip(self.layers, layer_keys):
      x = layer(x, key=layer_key)
    h = jax.nn.relu(self.hidden(dropout(x.sum(0), self.dropout_rate, sum_key)))
    return self.head(dropout(h, self.dropout_rate, hidden_key))
