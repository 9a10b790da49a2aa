"""Layers over images that the networks for segmentation share.

Running statistics of batch norms are other state of the module: `module.train()` or
`module.eval()` after `bind` chooses, `h2g.nn.pure.rest_of` reads them back.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.errors import InputError

NORMS = ("batch", "frozen")


class Reading(NamedTuple):
  """What a cross-attention module reads.

  memory: [B, height, width, D] features of one level.
  positions: [height, width, D] of them.
  query_positions: [Q, D].
  mask: [B, Q, N] bool, True may be read; rows without any are the module's to handle.
  """

  memory: Array
  positions: Array
  query_positions: Array
  mask: Array


class FrozenBatchNorm(nnx.Module):
  """(x - mean) / sqrt(var + 1e-5) * scale + bias with four fixed vectors: of a checkpoint."""

  def __init__(self, dim: int):
    self.scale, self.bias = nnx.Variable(jnp.ones(dim)), nnx.Variable(jnp.zeros(dim))
    self.mean, self.var = nnx.Variable(jnp.zeros(dim)), nnx.Variable(jnp.ones(dim))

  def __call__(self, x: Array) -> Array:
    factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + 1e-5)
    shift = self.bias[...] - self.mean[...] * factor
    wide = lambda v: v.reshape(*(1,) * (x.ndim - 1), -1).astype(x.dtype)
    return x * wide(factor) + wide(shift)


def make_norm(dim: int, norm: str, *, rngs: nnx.Rngs) -> nnx.Module:
  """Batch norm over all axes but the last: "batch", or "frozen" to given statistics."""
  if norm not in NORMS:
    raise InputError(f"norm={norm!r} is unknown: choose from {', '.join(NORMS)}")
  if norm == "frozen":
    return FrozenBatchNorm(dim)
  return nnx.BatchNorm(dim, momentum=0.9, epsilon=1e-5, rngs=rngs)


class ConvNorm(nnx.Module):
  """Convolution without bias, batch norm, ReLU. [B, height, width, in] -> [.., out]."""

  def __init__(
    self,
    in_dim: int,
    out_dim: int,
    size: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: str = "batch",
    activation: Callable[[Array], Array] | None = jax.nn.relu,
    kernel_init=None,
    rngs: nnx.Rngs,
  ):
    """Args: size: of the kernel, padded by size // 2; activation: None for none."""
    self.conv = nnx.Conv(
      in_dim,
      out_dim,
      (size, size),
      strides=stride,
      padding=size // 2,
      feature_group_count=groups,
      use_bias=False,
      kernel_init=kernel_init or nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
      rngs=rngs,
    )
    self.norm = make_norm(out_dim, norm, rngs=rngs)
    self.activation = activation

  def __call__(self, x: Array) -> Array:
    x = self.norm(self.conv(x))
    return x if self.activation is None else self.activation(x)


def depthwise(x: Array, kernel: Array) -> Array:
  """Each channel under a kernel of its own, same size out: a sum of shifted products.

  Args:
    x: [B, height, width, C].
    kernel: [K, K, C], K odd.
  """
  size, (height, width) = len(kernel), x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), *[(size // 2, size // 2)] * 2, (0, 0)))
  tap = lambda i, j: padded[:, i : i + height, j : j + width] * kernel[i, j].reshape(1, 1, 1, -1)
  return sum(tap(i, j) for i in range(size) for j in range(size))


def doubled(x: Array, kernel: Array) -> Array:
  """Transposed convolution of size 4, stride 2, padding 1: twice the height and width.

    out[b, 2 i + r, 2 j + s] = sum of the four x[b, i + di, j + dj] kernel[..] that reach it

  Each of the four (r, s) is one product with 2 x 2 neighbours, which no library is slow at.

  Args:
    x: [B, height, width, C].
    kernel: [4, 4, C, E], as PyTorch's up to the order of axes.
  Returns:
    [B, 2 height, 2 width, E].
  """
  b, height, width, _ = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  near = ((-1, 3), (0, 1)), ((0, 2), (1, 0))  # (shift of x, place in the kernel) for r = 0, 1
  parts = []
  for r in (0, 1):
    for s in (0, 1):
      pairs = [(row, column) for row in near[r] for column in near[s]]
      taps = [
        padded[:, 1 + di : 1 + di + height, 1 + dj : 1 + dj + width] for (di, _), (dj, _) in pairs
      ]
      weights = jnp.concatenate([kernel[i, j] for (_, i), (_, j) in pairs])
      parts.append(jnp.concatenate(taps, -1) @ weights)
  out = jnp.stack(parts, 3).reshape(b, height, width, 2, 2, -1)
  return out.swapaxes(2, 3).reshape(b, 2 * height, 2 * width, -1)


def resize(x: Array, height: int, width: int) -> Array:
  """Bilinear, pixel centres aligned, without smoothing: [B, h, w, C] -> [B, height, width, C]."""
  return jax.image.resize(x, (len(x), height, width, x.shape[-1]), "bilinear", antialias=False)


def sine_grid(rows: int, columns: int, dim: int) -> Array:
  """Fixed positions of a grid that span the same range at every size.

  For the row y = 1..rows, p = 2 pi y / rows, and frequency i of dim / 4: sine and cosine of
  p / 10000^(4 i / dim), interleaved; then the same for the column.

  Returns:
    [rows, columns, dim] float32.
  Source: arXiv 2005.12872 appendix A.4, normalised as in its code.
  """
  if dim % 4:
    raise InputError(f"dim={dim}: sine positions on a grid need a multiple of 4")
  frequencies = 1.0 / 10000 ** (np.arange(dim // 4) / (dim / 4))

  def along(size: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(1, size + 1)[:, None] / size * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(size, -1)

  y = np.broadcast_to(along(rows)[:, None], (rows, columns, dim // 2))
  x = np.broadcast_to(along(columns)[None], (rows, columns, dim // 2))
  return jnp.asarray(np.concatenate([y, x], -1), jnp.float32)
