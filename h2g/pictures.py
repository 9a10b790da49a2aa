"""Attention maps over images as pictures: NumPy in, a matplotlib Figure out.

A notebook shows a Figure that ends a cell; a script calls its `savefig`. Nothing here goes through
pyplot, so no display is needed and no backend changes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from h2g.errors import InputError


def attention_maps(
  images: np.ndarray,
  maps: np.ndarray,
  *,
  titles: Sequence[str] | None = None,
  row_titles: Sequence[str] | None = None,
  strength: float = 0.75,
) -> Any:
  """A row per image: the image, then each of its maps laid over it.

  Axes: R images, M maps of each.

  Args:
    images: [R, H, W] or [R, H, W, 1 or 3], uint8 or float in [0, 1].
    maps: [R, M, h, w] float, not negative: a weight per patch, stretched over the image. Each is
      scaled to its own largest value.
    titles: of the M maps; None leaves them out.
    row_titles: of the R images.
    strength: see `overlay`.
  Returns:
    matplotlib Figure of R x (1 + M) panels.
  Raises:
    InputError: shapes disagree.
  """
  images, maps = np.asarray(images), np.asarray(maps)
  if maps.ndim != 4 or images.ndim not in (3, 4) or len(images) != len(maps):
    raise InputError(
      f"images {images.shape} and maps {maps.shape} must be [R, H, W(, 3)], [R, M, h, w]"
    )
  rows = [
    [_rgb(image), *(overlay(image, one, strength=strength) for one in of_image)]
    for image, of_image in zip(images, maps)
  ]
  titles = None if titles is None else ["", *titles]
  return grid(rows, titles=titles, row_titles=row_titles)


def grid(
  panels: Sequence[Sequence[np.ndarray]],
  *,
  titles: Sequence[str] | None = None,
  row_titles: Sequence[str] | None = None,
  size: float = 1.3,
) -> Any:
  """A grid of images: rows of panels [H, W] (grey) or [H, W, 3]; rows may differ in length.

  Args:
    panels: rows of images, uint8 or float in [0, 1].
    titles: above the columns. row_titles: left of the rows.
    size: of a panel, in inches.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  columns = max(map(len, panels), default=0)
  if not columns:
    raise InputError("a grid needs a panel: give rows of images")
  for name, given, wanted in (("titles", titles, columns), ("row_titles", row_titles, len(panels))):
    if given is not None and len(given) != wanted:
      raise InputError(f"{name} has {len(given)} entries for {wanted}")
  figure = Figure(figsize=(size * columns + 0.4, size * len(panels) + 0.3), layout="constrained")
  axes = figure.subplots(len(panels), columns, squeeze=False)
  for row, (line, images) in enumerate(zip(axes, panels)):
    for column, axis in enumerate(line):
      axis.set(xticks=[], yticks=[])
      axis.set_frame_on(False)
      if column < len(images):
        axis.imshow(_rgb(images[column]))
      if row == 0 and titles is not None:
        axis.set_title(titles[column], fontsize=8)
    if row_titles is not None:
      line[0].set_ylabel(row_titles[row], fontsize=8)
  return figure


def overlay(
  image: np.ndarray, weights: np.ndarray, *, strength: float = 0.75, colours: str = "inferno"
) -> np.ndarray:
  """An image in grey under its map in colour.

    m = weights / max(weights), stretched bilinearly
    out = (1 - strength m) grey / 2 + strength m colour(m)

  so that what has no weight stays a dark image, and what has the most glows.

  Args:
    image: [H, W] or [H, W, 1 or 3], uint8 or float in [0, 1].
    weights: [h, w] float, not negative.
    strength: in [0, 1].
    colours: name of a matplotlib colour map.
  Returns:
    [H, W, 3] float64 in [0, 1].
  Raises:
    InputError: weights are no matrix, negative or not finite.
  """
  import matplotlib

  weights = np.asarray(weights, np.float64)
  if weights.ndim != 2 or not np.isfinite(weights).all() or (weights < 0).any():
    raise InputError(f"weights {weights.shape} must be a matrix of finite numbers >= 0")
  grey = _rgb(image).mean(-1, keepdims=True)
  m = stretch(weights / max(weights.max(), 1e-30), grey.shape[:2])[..., None]
  colour = matplotlib.colormaps[colours](m[..., 0])[..., :3]
  return (1 - strength * m) * grey / 2 + strength * m * colour


def stretch(weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """[h, w] -> shape, linear between the centres of the cells, constant beyond the outermost."""
  return _mixing(weights.shape[0], shape[0]) @ weights @ _mixing(weights.shape[1], shape[1]).T


def _mixing(old: int, new: int) -> np.ndarray:
  """[new, old] rows that interpolate linearly between the centres of `old` cells."""
  at = (np.arange(new) + 0.5) * old / new - 0.5
  return np.maximum(0, 1 - np.abs(at.clip(0, old - 1)[:, None] - np.arange(old)[None, :]))


def _rgb(image: np.ndarray) -> np.ndarray:
  """[H, W(, 1 or 3)], uint8 or float in [0, 1] -> [H, W, 3] float64 in [0, 1]."""
  image = np.asarray(image)
  image = image / 255 if image.dtype == np.uint8 else image.astype(np.float64)
  if image.ndim == 2:
    image = image[..., None]
  if image.ndim != 3 or image.shape[-1] not in (1, 3):
    raise InputError(f"an image of shape {image.shape} must be [H, W] or [H, W, 1 or 3]")
  return np.broadcast_to(image, (*image.shape[:2], 3)).clip(0, 1)
