"""Attention of every node to all others, whether edges join them or not.

Axes: N node rows (type-sorted), S keys, H heads, D = dim / H head width.
"""

from collections.abc import Callable
from collections.abc import Sequence

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn.typed import TypedLinear
from h2g.nn.widths import head_width
from h2g.ops.attention import attention


class FullAttention(nnx.Module):
  """out_v = [softmax_u(<q_v, k_u> / sqrt(D) + sum_i bias_i(v, u)) v_u] W^o + b^o over all nodes u.

  Memory is that of the rows: logits exist tile by tile, unless a bias asks for them. Padded rows
  are no keys.

  Args of the constructor:
    schema, dim, num_heads: types, hidden width, number of heads (H divides dim).
    typed: q, k, v and the output have one map per node type (H2GB's NodeTransformer); otherwise one
      for all (TorchTransformer).
    biases: factories `(schema, num_heads, rngs=...)` of modules `graph -> [1, H or 1, N, N]`, see
      `h2g.nn.pair_bias`: masks and learned biases. They hold N^2 numbers: for samples and small
      graphs.
    max_keys: attend to so many nodes at most, drawn anew from all nodes at every call with a key,
      and once and for all in evaluation; 0 attends to all. N x S instead of N x N products: what
      makes graphs of tens of thousands of nodes feasible.
    dropout_rate: of the attention weights.
  Source: arXiv 1706.03762 eq. 1; arXiv 2407.10916 section 4 (attention over all pairs).
  """

  def __init__(
    self,
    schema: Schema,
    dim: int,
    num_heads: int,
    *,
    typed: bool = False,
    biases: Sequence[Callable[..., nnx.Module]] = (),
    max_keys: int = 0,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs,
  ):
    head_width(dim, num_heads)  # raises where they do not fit
    if biases and max_keys:
      raise InputError("biases are of all pairs of nodes: leave max_keys at 0 with them")
    maps = len(schema.node_types) if typed else 1
    self.qkv = TypedLinear(maps, dim, 3 * dim, rngs=rngs)
    self.out = TypedLinear(maps, dim, dim, rngs=rngs)
    self.biases = nnx.List([bias(schema, num_heads, rngs=rngs) for bias in biases])
    self.typed, self.num_heads = typed, num_heads
    self.max_keys, self.dropout_rate = max_keys, dropout_rate

  def __call__(self, x: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, dim]."""
    offsets = graph.node_offsets if self.typed else (0, x.shape[0])
    real = graph.row_mask
    x = jnp.where(real[:, None], x, 0.0)
    heads = self.qkv(x, offsets).reshape(1, x.shape[0], 3, self.num_heads, -1)
    q, k, v = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
    if 0 < self.max_keys < x.shape[0]:
      drawn = draw(real, self.max_keys, key)
      k, v, real = k[:, drawn], v[:, drawn], real[drawn]
    # Padding is masked by a bias, not a mask: where nothing is padded no tile asks what it holds.
    bias = jnp.where(real, 0.0, -jnp.inf)[None, None, None, :]
    for part in self.biases:
      bias = bias + part(graph)
    rate = 0.0 if key is None else self.dropout_rate
    out = attention(q, k, v, bias=bias, dropout_rate=rate, dropout_key=key)
    return self.out(out.reshape(x.shape), offsets)


def draw(real: Array, count: int, key: Array | None) -> Array:
  """[count] distinct rows, real ones first; without a key the same ones every time."""
  key = jax.random.key(0) if key is None else jax.random.fold_in(key, 1)
  chance = jnp.where(real, jax.random.uniform(key, real.shape), -1.0)
  return jax.lax.top_k(chance, count)[1]
