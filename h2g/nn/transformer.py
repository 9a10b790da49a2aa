"""The pre-norm transformer block of images, signals and sequences: self- or cross-attention.

One block serves plain encoders and the papers that change where queries or keys come from: a
selected query, a condition as the query, the tokens of a second image beside one's own.
"""

from collections.abc import Callable

from flax import nnx
import jax
from jax import Array

from h2g.nn.dropout import dropout
from h2g.nn.dropout import split
from h2g.nn.widths import head_width
from h2g.ops.attention import attention


class MultiHeadAttention(nnx.Module):
  """out = concat_h softmax(q_h k_h^T / sqrt(D / H)) v_h W_o, q from `x`, k and v from `context`.

  Axes: B batch, T queries, S keys, D width, H heads (H divides D).
  Source: arXiv 1706.03762 sec. 3.2.2.
  """

  def __init__(
    self, dim: int, num_heads: int, *, use_bias: bool = True, rate: float = 0.0, rngs: nnx.Rngs
  ):
    head_width(dim, num_heads)  # raises where they do not fit
    linear = lambda: nnx.Linear(
      dim, dim, use_bias=use_bias, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
    )
    self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()
    self.num_heads, self.rate = num_heads, rate

  def heads(self, x: Array) -> Array:
    """[B, T, D] -> [B, T, H, D / H]."""
    return x.reshape(*x.shape[:-1], self.num_heads, -1)

  def __call__(
    self,
    x: Array,
    context: Array | None = None,
    *,
    attend: Callable[..., Array] = attention,
    values: Array | None = None,
    key: Array | None = None,
  ) -> Array:
    """Returns [B, T, D] from x [B, T, D] and context [B, S, D] (x itself by default).

    `attend(q, k, v, dropout_rate=, dropout_key=)`: what stands in place of `attention`.
    values: [B, S, D] that the values are of, context by default (for positions on keys alone).
    """
    context = x if context is None else context
    q, k, v = (
      self.heads(self.query(x)),
      self.heads(self.key(context)),
      self.heads(self.value(context if values is None else values)),
    )
    rate = 0.0 if key is None else self.rate
    return self.out(attend(q, k, v, dropout_rate=rate, dropout_key=key).reshape(x.shape))


class MLP(nnx.Module):
  """W_2 gelu(W_1 x + b_1) + b_2, `ratio` times wider inside."""

  def __init__(self, dim: int, ratio: float = 4.0, *, rngs: nnx.Rngs):
    inside, init = int(dim * ratio), nnx.initializers.xavier_uniform()
    self.up = nnx.Linear(dim, inside, kernel_init=init, rngs=rngs)
    self.down = nnx.Linear(inside, dim, kernel_init=init, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Block(nnx.Module):
  """x + MHA(LN(query), LN(context)), then x + MLP(LN(x)): pre-norm.

  With the defaults this is self-attention over x. `context` replaces the keys and values (and is
  normalised like x), `query` what asks, while x stays what the updates are added to:

    block(x)                                     self-attention
    block(x[:, :k], context=x)                   k chosen tokens ask all
    block(x, context=concat([x, other], 1))      another sequence's keys beside one's own
    block(x[:, :1], context=x, query=condition)  a condition asks on behalf of the first token

  Source: arXiv 2010.11929 eq. 2-3.
  """

  def __init__(
    self,
    dim: int,
    num_heads: int,
    *,
    mlp_ratio: float = 4.0,
    dropout_rate: float = 0.0,
    attention_dropout: float = 0.0,
    skip_rate: float = 0.0,
    rngs: nnx.Rngs,
  ):
    """skip_rate: stochastic depth, how often an example goes past the attention, or the MLP."""
    self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
    self.attention = MultiHeadAttention(dim, num_heads, rate=attention_dropout, rngs=rngs)
    self.mlp_norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
    self.mlp = MLP(dim, mlp_ratio, rngs=rngs)
    self.dropout_rate, self.skip_rate = dropout_rate, skip_rate

  def __call__(
    self,
    x: Array,
    context: Array | None = None,
    query: Array | None = None,
    *,
    attend: Callable[..., Array] = attention,
    key: Array | None = None,
  ) -> Array:
    """Returns [B, T, D] from x [B, T, D], context [B, S, D], query [B, T, D].

    `attend` is `MultiHeadAttention`'s.
    """
    weights_key, out_key, mlp_key = split(key, 3)
    asking = self.norm(x if query is None else query)
    context = asking if context is None else self.norm(context)
    update = self.attention(asking, context, attend=attend, key=weights_key)
    x = x + self._dropped(update, out_key)
    return x + self._dropped(self.mlp(self.mlp_norm(x)), mlp_key)

  def _dropped(self, update: Array, key: Array | None) -> Array:
    """An update after dropout and stochastic depth."""
    update = dropout(update, self.dropout_rate, key)
    if key is None or self.skip_rate == 0.0:
      return update
    return dropout(update, self.skip_rate, jax.random.fold_in(key, 0), shared_axes=(1, 2))
