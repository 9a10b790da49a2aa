"""Learned queries that become classified masks: the transformer decoder of universal segmenters.

How a query reads the image is a module that is passed in; everything around it is shared.

Axes: B images, Q queries, D width, K classes, M width of mask features, N = height * width.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.nn import split
from h2g.nn.image import Reading
from h2g.nn.image import resize
from h2g.nn.image import sine_grid
from h2g.nn.transformer import MultiHeadAttention
from h2g.ops.attention import attention


class Masks(NamedTuple):
  """Predictions of L + 1 stages: classes [L + 1, B, Q, K + 1], masks [L + 1, B, h, w, Q] logits."""

  classes: Array
  masks: Array


class MaskedCrossAttention(nnx.Module):
  """x + MHA(LN(x) + query positions, memory + positions, memory) inside the mask.

  A query with an empty mask reads everything. Source: arXiv 2112.01527 eq. 2-3, pre-norm.
  """

  def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
    self.norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
    self.attention = MultiHeadAttention(dim, num_heads, rngs=rngs)
    self.implementation = None  # of the operation

  def arguments(self, x: Array, reading: Reading) -> tuple[Array, Array, Array, Array]:
    """(asking [B, Q, D], keys [B, N, D], values [B, N, D], mask [B, 1, Q, N]) of the attention."""
    flat = lambda y: y.reshape(len(y), -1, y.shape[-1])
    keys = flat(reading.memory + reading.positions[None])
    mask = reading.mask | ~reading.mask.any(-1, keepdims=True)
    asking = self.norm(x) + reading.query_positions[None]
    return asking, keys, flat(reading.memory), mask[:, None]

  def weights(self, x: Array, reading: Reading) -> tuple[Array, Array]:
    """(weights [B, H, Q, N], values [B, H, N, D / H]) of the attention, all at once."""
    asking, keys, values, mask = self.arguments(x, reading)
    of = self.attention
    q, k, v = of.heads(of.query(asking)), of.heads(of.key(keys)), of.heads(of.value(values))
    logits = jnp.einsum("bqhd,bnhd->bhqn", q, k) * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1), v.swapaxes(1, 2)

  def __call__(self, x: Array, reading: Reading, *, key: Array | None = None) -> Array:
    asking, keys, values, mask = self.arguments(x, reading)
    attend = functools.partial(attention, mask=mask, implementation=self.implementation)
    return x + self.attention(asking, keys, values=values, attend=attend)


class QueryBlock(nnx.Module):
  """Cross-attention, then self-attention of the queries, then a feed-forward layer; pre-norm."""

  def __init__(
    self, dim: int, num_heads: int, inside: int, cross: Callable[..., nnx.Module], *, rngs
  ):
    init = nnx.initializers.xavier_uniform()
    self.cross = cross(dim, num_heads, rngs=rngs)
    self.norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
    self.attention = MultiHeadAttention(dim, num_heads, rngs=rngs)
    self.ffn_norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
    self.up = nnx.Linear(dim, inside, kernel_init=init, rngs=rngs)
    self.down = nnx.Linear(inside, dim, kernel_init=init, rngs=rngs)

  def __call__(self, x: Array, reading: Reading, *, key: Array | None = None) -> Array:
    x = self.cross(x, reading, key=key)
    y = self.norm(x)
    x = x + self.attention(y + reading.query_positions[None], values=y)
    return x + self.down(jax.nn.relu(self.up(self.ffn_norm(x))))


class MaskDecoder(nnx.Module):
  """Q learned queries through L blocks, each over one level inside the masks of the stage before.

    o = LN(x),  classes = W o,  masks = <MLP(o), mask features>,  mask of the next block: masks > 0

  Predictions are made of the learned queries first, hence L + 1 stages. The masks of attention
  carry no gradient.

  Source: arXiv 2112.01527 sec. 3.2.
  """

  def __init__(
    self,
    in_dim: int,
    mask_dim: int,
    num_classes: int,
    *,
    cross: Callable[..., nnx.Module] = MaskedCrossAttention,
    dim: int = 256,
    num_heads: int = 8,
    num_queries: int = 100,
    num_layers: int = 6,
    num_levels: int = 3,
    inside: int = 2048,
    rngs: nnx.Rngs,
  ):
    """Args:
    in_dim: width of the levels.
    mask_dim: M.
    num_classes: K.
    cross: `(dim, num_heads, rngs=) -> module`, called `module(x [B, Q, D], Reading, key=)`.
    inside: width of the feed-forward layers.
    """
    normal = nnx.initializers.normal(1.0)
    table = lambda rows: nnx.Param(normal(rngs.params(), (rows, dim)))
    self.queries, self.query_positions = table(num_queries), table(num_queries)
    self.level_embedding = table(num_levels)
    linear = lambda into, out: nnx.Linear(into, out, rngs=rngs)
    self.projections = nnx.List([linear(in_dim, dim) for _ in range(num_levels)])
    self.blocks = nnx.List(
      [QueryBlock(dim, num_heads, inside, cross, rngs=rngs) for _ in range(num_layers)]
    )
    self.norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
    self.classes = linear(dim, num_classes + 1)
    self.mask_mlp = nnx.List([linear(dim, dim), linear(dim, dim), linear(dim, mask_dim)])

  def level(self, i: int, x: Array) -> tuple[Array, Array]:
    """(memory [B, height, width, D], positions [height, width, D]) of level i."""
    memory = self.projections[i](x) + self.level_embedding[...][i].reshape(1, 1, 1, -1)
    return memory, sine_grid(*x.shape[1:3], memory.shape[-1]).astype(memory.dtype)

  def predict(self, x: Array, mask_features: Array) -> tuple[Array, Array]:
    """(classes [B, Q, K + 1], masks [B, h, w, Q]) of queries [B, Q, D]."""
    o = self.norm(x)
    m = o
    for at, layer in enumerate(self.mask_mlp):
      m = layer(m if at == 0 else jax.nn.relu(m))
    return self.classes(o), jnp.einsum("bhwm,bqm->bhwq", mask_features, m)

  def stages(self, levels: Sequence[Array], mask_features: Array, *, key: Array | None = None):
    """Yields (queries before the block, Reading, its block, predictions after) block by block.

    The first has no block: (None, None, None, predictions of the learned queries).
    """
    memory = [self.level(i, x) for i, x in enumerate(levels)]
    shape = (len(mask_features), *self.queries[...].shape)
    x = jnp.broadcast_to(self.queries[...][None], shape).astype(mask_features.dtype)
    predictions = self.predict(x, mask_features)
    yield None, None, None, predictions
    for i, (block, block_key) in enumerate(zip(self.blocks, split(key, len(self.blocks)))):
      features, positions = memory[i % len(memory)]
      logits = resize(jax.lax.stop_gradient(predictions[1]), *positions.shape[:2])
      mask = (logits >= 0).reshape(len(x), -1, shape[1]).swapaxes(1, 2)
      reading = Reading(features, positions, self.query_positions[...], mask)
      before, x = x, block(x, reading, key=block_key)
      predictions = self.predict(x, mask_features)
      yield before, reading, block, predictions

  def __call__(
    self, levels: Sequence[Array], mask_features: Array, *, key: Array | None = None
  ) -> Masks:
    """Predictions of all stages.

    Args:
      levels: [B, height_i, width_i, in_dim], coarse to fine; block l reads level l mod 3.
      mask_features: [B, h, w, M].
      key: PRNG key for cross-attention that draws.
    """
    found = [stage[-1] for stage in self.stages(levels, mask_features, key=key)]
    return Masks(*(jnp.stack(parts) for parts in zip(*found)))
