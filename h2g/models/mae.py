"""The masked autoencoder: a vision transformer that reads a quarter of the patches, and a small
decoder that draws the others."""

from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.models.vit import ViT
from h2g.nn.patches import patchify
from h2g.nn.patches import sincos_2d
from h2g.nn.transformer import Block

# A tenth of `xavier_uniform`, which the official code has here too. Where most patches are blank,
# their targets are zero: outputs of unit variance are then silenced first, all that feeds them with
# it, and hundreds of steps later the loss is still that of predicting zero.
QUIET = nnx.initializers.variance_scaling(0.01, "fan_avg", "uniform")


class MaskedAutoencoder(nnx.Module):
  """loss = mean over masked patches of |decoder(encoder(visible patches)) - normalised pixels|^2.

  Each image keeps its own random patches. The decoder sees them encoded, a learned mask token in
  place of each other one, and positions.

  Axes: B images, N patches, V visible patches, D width.
  Source: arXiv 2111.06377 sec. 3.
  """

  def __init__(
    self,
    *,
    decoder_dim: int,
    decoder_layers: int,
    decoder_heads: int,
    mask_ratio: float = 0.75,
    rngs: nnx.Rngs,
    **vit: Any,
  ):
    """The networks; InputError where no patch or every patch would be masked.

    Args:
      decoder_dim, decoder_layers, decoder_heads: of the decoder.
      mask_ratio: share of the patches that the encoder does not see.
      vit: settings of `ViT`, the encoder.
    """
    self.vit = ViT(**vit, rngs=rngs)
    num = self.vit.grid[0] * self.vit.grid[1]
    self.visible = round(num * (1 - mask_ratio))
    if not 0 < self.visible < num:
      raise InputError(f"mask_ratio={mask_ratio} leaves {self.visible} of {num} patches visible")
    linear = lambda inside, outside: nnx.Linear(
      inside, outside, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
    )
    self.to_decoder = linear(self.vit.to_tokens.out_features, decoder_dim)
    self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, decoder_dim)))
    self.positions = nnx.Variable(sincos_2d(*self.vit.grid, decoder_dim))
    self.decoder = nnx.List(
      [Block(decoder_dim, decoder_heads, rngs=rngs) for _ in range(decoder_layers)]
    )
    self.norm = nnx.LayerNorm(decoder_dim, epsilon=1e-6, rngs=rngs)
    self.to_pixels = nnx.Linear(
      decoder_dim, self.vit.to_tokens.in_features, kernel_init=QUIET, rngs=rngs
    )

  def visible_ids(self, num_images: int, key: Array) -> Array:
    """[B, V] int32: the patches that each image keeps, uniform, in rising order."""
    num = self.vit.grid[0] * self.vit.grid[1]
    order = jnp.argsort(jax.random.uniform(key, (num_images, num)), axis=1)
    return jnp.sort(order[:, : self.visible], axis=1)

  def __call__(self, images: Array, ids: Array) -> Array:
    """Pixels of every patch, [B, N, patch * patch * channels], from those of `ids` [B, V]."""
    vit = self.vit
    seen = jnp.take_along_axis(vit.embed(images), ids[:, :, None], axis=1)
    encoded = self.to_decoder(vit.norm(vit.encode(vit.with_class_token(seen))))
    first, patches = encoded[:, : -ids.shape[1]], encoded[:, -ids.shape[1] :]
    positions = self.positions[...]
    empty = jnp.broadcast_to(self.mask_token[...], (len(images), *positions.shape))
    filled = empty.at[jnp.arange(len(images))[:, None], ids].set(patches) + positions[None]
    x = jnp.concatenate([first, filled], axis=1)
    for block in self.decoder:
      x = block(x)
    return self.to_pixels(self.norm(x))[:, first.shape[1] :]

  def loss(self, images: Array, key: Array) -> Array:
    """[B] mean squared error over the masked patches, each patch scaled to mean 0, variance 1."""
    ids = self.visible_ids(len(images), key)
    target = patchify(images, self.vit.patch)
    target = target - target.mean(-1, keepdims=True)
    target = target * jax.lax.rsqrt(jnp.mean(target**2, -1, keepdims=True) + 1e-6)
    error = jnp.mean((self(images, ids) - target) ** 2, axis=-1)
    masked = jnp.ones(error.shape).at[jnp.arange(len(images))[:, None], ids].set(0.0)
    return (error * masked).sum(1) / masked.sum(1)
