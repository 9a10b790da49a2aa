"""Images as sequences of patches, and where each patch lies."""

from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.errors import InputError


def unit_range(images: Array) -> Array:
  """uint8 [...] -> float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def patchify(images: Array, patch: int) -> Array:
  """Cuts images into square patches, row by row.

  Args:
    images: [B, height, width, channels].
    patch: side of a patch; divides height and width.
  Returns:
    [B, N, patch * patch * channels], N = height * width / patch^2, like images.
  Raises:
    InputError: the image is not a whole number of patches.
  """
  b, height, width, channels = images.shape
  if height % patch or width % patch:
    raise InputError(f"patch={patch} does not divide images of {height} x {width} pixels")
  x = images.reshape(b, height // patch, patch, width // patch, patch, channels)
  return x.swapaxes(2, 3).reshape(b, -1, patch * patch * channels)


def unpatchify(patches: Array, patch: int, height: int, width: int) -> Array:
  """The inverse of `patchify`: [B, N, patch * patch * channels] -> [B, height, width, channels]."""
  b, _, features = patches.shape
  channels = features // patch**2
  x = patches.reshape(b, height // patch, width // patch, patch, patch, channels)
  return x.swapaxes(2, 3).reshape(b, height, width, channels)


def sincos_2d(rows: int, columns: int, dim: int) -> Array:
  """Fixed positions of a grid: half of `dim` for the row, half for the column.

  For position p and frequency i of D / 4: sin(p / 10000^(4 i / D)), cos(the same).

  Args:
    rows, columns: of the grid.
    dim: D, a multiple of 4.
  Returns:
    [rows * columns, dim] float32.
  Raises:
    InputError: dim is no multiple of 4.
  Source: arXiv 2111.06377 (MAE), after arXiv 1706.03762 sec. 3.5.
  """
  if dim % 4:
    raise InputError(f"dim={dim}: sine positions on a grid need a multiple of 4")
  frequencies = 1.0 / 10000 ** (np.arange(dim // 4) / (dim / 4))
  where = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
  angles = where.reshape(-1, 2, 1) * frequencies
  parts = np.concatenate([np.sin(angles), np.cos(angles)], axis=2)
  return jnp.asarray(parts.reshape(rows * columns, dim), jnp.float32)
