"""Convolutional backbones: images to four levels of features, fine to coarse.

Each has `widths`, of its levels, and is called on [B, height, width, 3]; level i comes out as
[B, h_i, w_i, widths[i]].
"""

from collections.abc import Sequence
import itertools

from flax import nnx
import jax
from jax import Array
from jax import lax
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.nn.image import ConvNorm


def backbone(name: str, *, norm: str = "batch", rngs: nnx.Rngs) -> nnx.Module:
  """The named one: small, resnet50, stdc1, stdc2; norm as of `h2g.nn.image.make_norm`."""
  known = {
    "small": lambda: Small(norm=norm, rngs=rngs),
    "resnet50": lambda: ResNet((3, 4, 6, 3), norm=norm, rngs=rngs),
    "stdc1": lambda: STDC((2, 2, 2), norm=norm, rngs=rngs),
    "stdc2": lambda: STDC((4, 5, 3), norm=norm, rngs=rngs),
  }
  if name not in known:
    raise InputError(f"network={name!r} is unknown: choose from {', '.join(known)}")
  return known[name]()


class Small(nnx.Module):
  """Four 3x3 convolutions of stride 2: strides 2, 4, 8, 16, for images of some 64 pixels."""

  def __init__(
    self, widths: Sequence[int] = (32, 64, 96, 128), *, norm: str = "batch", rngs: nnx.Rngs
  ):
    self.widths = tuple(widths)
    into = (3, *widths)
    self.layers = nnx.List(
      [
        ConvNorm(i, o, 3, stride=2, norm=norm, kernel_init=_he(), rngs=rngs)
        for i, o in zip(into, widths)
      ]
    )

  def __call__(self, x: Array) -> list[Array]:
    levels = []
    for layer in self.layers:
      levels.append(x := layer(x))
    return levels


class Bottleneck(nnx.Module):
  """relu(x + 1x1, 3x3 (stride), 1x1 convolutions), four times wider outside than inside."""

  def __init__(self, in_dim: int, inside: int, stride: int, *, norm: str, rngs: nnx.Rngs):
    layer = lambda *args, **options: ConvNorm(
      *args, norm=norm, kernel_init=_he(), rngs=rngs, **options
    )
    self.conv1 = layer(in_dim, inside)
    self.conv2 = layer(inside, inside, 3, stride=stride)
    self.conv3 = layer(inside, 4 * inside, activation=None)
    other = stride > 1 or in_dim != 4 * inside
    self.shortcut = layer(in_dim, 4 * inside, stride=stride, activation=None) if other else None

  def __call__(self, x: Array) -> Array:
    y = self.conv3(self.conv2(self.conv1(x)))
    return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
  """Residual network of bottlenecks; strides 4, 8, 16, 32. Stride in the 3x3, as torchvision.

  Source: arXiv 1512.03385 table 1.
  """

  widths = (256, 512, 1024, 2048)

  def __init__(self, depths: Sequence[int], *, norm: str = "batch", rngs: nnx.Rngs):
    self.stem = ConvNorm(3, 64, 7, stride=2, norm=norm, kernel_init=_he(), rngs=rngs)
    stages, width = [], 64
    for i, depth in enumerate(depths):
      blocks = []
      for j in range(depth):
        stride = 2 if i > 0 and j == 0 else 1
        blocks.append(Bottleneck(width, 64 * 2**i, stride, norm=norm, rngs=rngs))
        width = 256 * 2**i
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)

  def __call__(self, x: Array) -> list[Array]:
    x = nnx.max_pool(self.stem(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    levels = []
    for blocks in self.stages:
      for block in blocks:
        x = block(x)
      levels.append(x)
    return levels


class ShortTerm(nnx.Module):
  """concat of a chain of four convolutions, each half as wide as the one before; stride 1 or 2."""

  def __init__(self, in_dim: int, out_dim: int, stride: int, *, norm: str, rngs: nnx.Rngs):
    half = out_dim // 2
    layer = lambda *args, **options: ConvNorm(
      *args, norm=norm, kernel_init=_he(), rngs=rngs, **options
    )
    widths = (in_dim, half, out_dim // 4, out_dim // 8, out_dim // 8)
    self.convs = nnx.List(
      [layer(i, o, 1 if at == 0 else 3) for at, (i, o) in enumerate(itertools.pairwise(widths))]
    )
    down = lambda: layer(half, half, 3, stride=2, groups=half, activation=None)
    self.down = down() if stride == 2 else None

  def __call__(self, x: Array) -> Array:
    first = x = self.convs[0](x)
    if self.down is not None:
      x = self.down(first)
      zero, border = jnp.zeros((), first.dtype), ((0, 0), (1, 1), (1, 1), (0, 0))
      sums = lax.reduce_window(first, zero, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), border)
      first = sums / 9.0  # zeros around count
    parts = [first]
    for conv in self.convs[1:]:
      parts.append(x := conv(x))
    return jnp.concatenate(parts, -1)


class STDC(nnx.Module):
  """Short-term dense concatenation network; strides 4, 8, 16, 32.

  Source: arXiv 2104.13188 table 2 and its code.
  """

  widths = (64, 256, 512, 1024)

  def __init__(self, depths: Sequence[int], *, norm: str = "batch", rngs: nnx.Rngs):
    options = dict(norm=norm, kernel_init=_he(), rngs=rngs)
    self.stem = nnx.List([ConvNorm(*io, 3, stride=2, **options) for io in ((3, 32), (32, 64))])
    stages, width = [], 64
    for out, depth in zip(self.widths[1:], depths):
      strides = (2, *[1] * (depth - 1))
      stages.append(
        nnx.List(
          [
            ShortTerm(width if at == 0 else out, out, stride, norm=norm, rngs=rngs)
            for at, stride in enumerate(strides)
          ]
        )
      )
      width = out
    self.stages = nnx.List(stages)

  def __call__(self, x: Array) -> list[Array]:
    for layer in self.stem:
      x = layer(x)
    levels = [x]
    for blocks in self.stages:
      for block in blocks:
        x = block(x)
      levels.append(x)
    return levels


def _he():
  """MSRA by fan out, as the reference implementations of both."""
  return nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
