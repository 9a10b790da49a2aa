"""The vision transformer that the papers on images start from."""

from collections.abc import Callable
from collections.abc import Sequence

from flax import nnx
from jax import Array
import jax.numpy as jnp
import optax

from h2g.nn import split
from h2g.nn.patches import patchify
from h2g.nn.patches import sincos_2d
from h2g.nn.transformer import Block
from h2g.ops.attention import attention


class ViT(nnx.Module):
  """z_0 = [cls; E patches] + positions, L pre-norm blocks, a last LayerNorm.

  The parts are there to be called one by one: `embed`, `blocks`, `norm`.

  Axes: B images, N patches, D width.
  Source: arXiv 2010.11929 eq. 1-4; fixed sine positions by default (arXiv 2111.06377).
  """

  def __init__(
    self,
    *,
    image_size: int | tuple[int, int],
    patch: int,
    channels: int = 3,
    dim: int = 384,
    num_layers: int = 12,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    dropout_rate: float = 0.0,
    skip_rate: float = 0.0,
    class_token: bool = True,
    learned_positions: bool = False,
    rngs: nnx.Rngs,
  ):
    """The network; InputError where dim is no multiple of 4 or of num_heads.

    Args:
      image_size: side, or (height, width), in pixels.
      patch: side of a patch; `patchify` refuses images that it does not divide.
      channels: of the images.
      dim: D.
      num_layers: L.
      num_heads: of each block.
      mlp_ratio: width inside the MLPs over D.
      dropout_rate: after attention and MLP, where a key is given.
      skip_rate: stochastic depth of the last block, falling linearly to none before the first.
      class_token: whether a learned token stands before the patches.
      learned_positions: positions are parameters that start at the sines, instead of fixed.
    """
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    self.patch, self.grid = patch, (height // patch, width // patch)
    init = nnx.initializers.xavier_uniform()
    self.to_tokens = nnx.Linear(patch * patch * channels, dim, kernel_init=init, rngs=rngs)
    first = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, 1, dim)))
    self.class_token = first if class_token else None
    sines = sincos_2d(*self.grid, dim)
    self.positions = nnx.Param(sines) if learned_positions else nnx.Variable(sines)
    self.blocks = nnx.List(
      [
        Block(
          dim,
          num_heads,
          mlp_ratio=mlp_ratio,
          dropout_rate=dropout_rate,
          skip_rate=skip_rate * (layer + 1) / num_layers,
          rngs=rngs,
        )
        for layer in range(num_layers)
      ]
    )
    self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)

  def embed(self, images: Array) -> Array:
    """[B, height, width, channels] -> tokens with positions [B, N, D], without the class token."""
    return self.to_tokens(patchify(images, self.patch)) + self.positions[...][None]

  def with_class_token(self, x: Array) -> Array:
    """[B, N, D] -> [B, 1 + N, D], or x where there is no class token."""
    if self.class_token is None:
      return x
    first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([first, x], axis=1)

  def encode(
    self,
    x: Array,
    *,
    blocks: Sequence[Block] | None = None,
    attend: Callable[..., Array] = attention,
    key: Array | None = None,
  ) -> Array:
    """The given blocks (all by default) over tokens, without the last norm.

    `attend(q, k, v, dropout_rate=, dropout_key=)` stands in place of `attention` in each block.
    """
    blocks = self.blocks if blocks is None else blocks
    for block, block_key in zip(blocks, split(key, len(blocks))):
      x = block(x, attend=attend, key=block_key)
    return x

  def tokens(self, images: Array, block: int = 0, *, key: Array | None = None) -> Array:
    """[B, 1 + N, D] (or N), the class token first, as block `block` (from 1) leaves them.

    0: after all blocks and the last norm.
    """
    z = self.with_class_token(self.embed(images))
    z = self.encode(z, blocks=self.blocks[:block] if block else None, key=key)
    return z if block else self.norm(z)

  def __call__(self, images: Array, *, key: Array | None = None) -> Array:
    """Returns tokens [B, 1 + N, D] (or N) after the last norm, the class token first."""
    return self.tokens(images, key=key)


class ViTClassifier(nnx.Module):
  """W z_cls: a vision transformer that classifies by its class token."""

  def __init__(self, num_classes: int, *, rngs: nnx.Rngs, **vit):
    self.vit = ViT(**vit, rngs=rngs)
    self.head = nnx.Linear(self.vit.to_tokens.out_features, num_classes, rngs=rngs)

  def __call__(self, images: Array) -> Array:
    """[B, classes] from images [B, height, width, channels]."""
    return self.head(self.vit(images)[:, 0])

  def loss(self, images: Array, labels: Array) -> Array:
    """[B] cross-entropy of labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(self(images), labels)
