"""A convolutional pixel decoder: levels of a backbone, top down, to the features of masks.

Source: arXiv 2402.19422 sec. 3.3 and its code; where they differ, the code, with a flag.
"""

from flax import nnx
import jax
from jax import Array
import numpy as np

from h2g.nn.image import ConvNorm
from h2g.nn.image import doubled
from h2g.nn.image import make_norm
from h2g.ops.deform import deform_conv


class SelfModulation(nnx.Module):
  """x + x * w, w = sigmoid(sigmoid(MLP(mean of x))): the code; `double_sigmoid=False`: one gate."""

  def __init__(self, dim: int, *, double_sigmoid: bool = True, norm: str = "batch", rngs: nnx.Rngs):
    self.down = ConvNorm(dim, dim // 2, norm=norm, rngs=rngs)
    self.up = nnx.Conv(dim // 2, dim, (1, 1), use_bias=False, rngs=rngs)
    self.double_sigmoid = double_sigmoid

  def __call__(self, x: Array) -> Array:
    w = jax.nn.sigmoid(self.up(self.down(x.mean((1, 2), keepdims=True))))
    return x + x * (jax.nn.sigmoid(w) if self.double_sigmoid else w)


class DeformUp(nnx.Module):
  """(x, up): modulated deformable 3x3 convolution, then twice the size; each with norm and ReLU.

  27 maps say where the 9 taps are read and, through a sigmoid, how much each weighs; they start at
  zero: a plain convolution with half of each tap.
  """

  def __init__(self, dim: int, *, norm: str = "batch", rngs: nnx.Rngs):
    zeros, msra = nnx.initializers.zeros_init(), nnx.initializers.he_normal()
    self.maps = nnx.Conv(dim, 27, (3, 3), padding=1, kernel_init=zeros, rngs=rngs)
    self.kernel = nnx.Param(msra(rngs.params(), (3, 3, dim, dim)))
    side = 1 - np.abs(np.arange(4) / 2 - 0.75)
    bound = (16 * dim) ** -0.5  # PyTorch's default; the first output channel starts bilinear
    first = jax.random.uniform(rngs.params(), (4, 4, dim, dim), minval=-bound, maxval=bound)
    self.up = nnx.Param(first.at[..., 0].set(np.outer(side, side)[..., None].astype(np.float32)))
    self.norm, self.up_norm = (make_norm(dim, norm, rngs=rngs) for _ in range(2))

  def __call__(self, x: Array) -> tuple[Array, Array]:
    maps = self.maps(x)
    offsets = maps[..., :18].reshape(*maps.shape[:3], 9, 2)
    x = deform_conv(x, self.kernel[...], offsets, jax.nn.sigmoid(maps[..., 18:]), padding=1)
    x = jax.nn.relu(self.norm(x))
    return x, jax.nn.relu(self.up_norm(doubled(x, self.up[...])))


class PixelDecoder(nnx.Module):
  """Four levels of a backbone, top down: ([coarse, .., fine of three], mask features)."""

  def __init__(
    self,
    widths: tuple[int, ...],
    dim: int = 128,
    mask_dim: int = 256,
    *,
    double_sigmoid: bool = True,
    norm: str = "batch",
    rngs: nnx.Rngs,
  ):
    into = lambda width: ConvNorm(width, dim, norm=norm, rngs=rngs)
    gate = lambda: SelfModulation(dim, double_sigmoid=double_sigmoid, norm=norm, rngs=rngs)
    self.projections = nnx.List([into(width) for width in widths])
    self.context = into(widths[-1])
    self.modulations = nnx.List([gate() for _ in range(4)])
    self.deforms = nnx.List([DeformUp(dim, norm=norm, rngs=rngs) for _ in range(3)])
    self.out = ConvNorm(dim, mask_dim, norm=norm, rngs=rngs)

  def __call__(self, features: list[Array]) -> tuple[list[Array], Array]:
    """features: four levels [B, h_i, w_i, width_i], fine to coarse."""
    projected = [project(x) for project, x in zip(self.projections, features)]
    up = self.context(features[-1].mean((1, 2), keepdims=True))
    levels = []
    for i, deform in enumerate(self.deforms):
      x, up = deform(self.modulations[i](projected[3 - i]) + up)
      levels.append(x)
    return levels, self.out(self.modulations[3](projected[0]) + up)
