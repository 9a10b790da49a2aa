"""Digits somewhere on a canvas among scraps of other digits: what an image shows is in few patches.

A mean over all patches mixes the digit with the scraps, so a pooling has to find it.
"""

from typing import NamedTuple

import numpy as np

from h2g.data import digits
from h2g.errors import InputError

SIDE = 8  # of a digit
SCRAP = 4  # side of a scrap
NUM_CLASSES = 10


class Canvases(NamedTuple):
  """images: [N, size, size, 1] uint8; labels: [N] int32; boxes: [N, 2] int32, the digit's corner.

  Corners are (row, column), in pixels, of the digit's 8 x 8.
  """

  images: np.ndarray
  labels: np.ndarray
  boxes: np.ndarray


def splits(
  *,
  train: int,
  val: int,
  test: int,
  seed: int = 0,
  size: int = 24,
  scraps: int = 2,
  noise: float = 0.1,
  grid: int = 1,
) -> dict[str, Canvases]:
  """{"train", "val", "test"}: canvases of disjoint digits, two thirds of them for training.

  Args:
    train, val, test: canvases of each part.
    seed: of the parts, the places and the scraps; the same arguments give the same canvases.
    size, scraps, noise, grid: see `canvases`.
  """
  found = digits.load()
  order = np.random.default_rng((seed, 0)).permutation(len(found.labels))
  ends = [round(len(order) * share) for share in (2 / 3, 7 / 9)]
  parts = zip(("train", "val", "test"), (train, val, test), np.split(order, ends))
  return {
    name: canvases(
      found.images[ids],
      found.labels[ids],
      num,
      seed=(seed, at),
      size=size,
      scraps=scraps,
      noise=noise,
      grid=grid,
    )
    for at, (name, num, ids) in enumerate(parts, 1)
  }


def canvases(
  images: np.ndarray,
  labels: np.ndarray,
  num: int,
  *,
  seed,
  size: int = 24,
  scraps: int = 2,
  noise: float = 0.1,
  grid: int = 1,
) -> Canvases:
  """Draws canvases.

  A canvas is uniform noise in [0, noise], then scraps (4 x 4 cuts of other digits) anywhere, then
  the digit anywhere, whole, on top; overlaps keep the brighter pixel.

  Args:
    images, labels: the digits to draw from, [D, 8, 8] in [0, 1] and [D].
    num: of canvases.
    seed: of all draws.
    size: side of a canvas in pixels.
    scraps: of each canvas.
    noise: brightest pixel of the background.
    grid: corners lie at multiples of it: that of a patch keeps what is drawn whole in patches.
  Raises:
    InputError: a digit does not fit, or there are none.
  """
  if size < SIDE or not len(images):
    raise InputError(
      f"size={size} must be {SIDE} or more, and there must be digits ({len(images)})"
    )
  rng = np.random.default_rng(seed)
  out = noise * rng.random((num, size, size))
  rows = np.arange(num)[:, None, None]

  def paste(what: np.ndarray) -> np.ndarray:
    side = what.shape[-1]
    corner = grid * rng.integers(0, (size - side) // grid + 1, (num, 2))
    at = corner[:, :, None] + np.arange(side)[None, None]
    place = (rows, at[:, 0, :, None], at[:, 1, None, :])
    out[place] = np.maximum(out[place], what)
    return corner

  for _ in range(scraps):
    other = images[rng.integers(len(images), size=num)]
    cut = rng.integers(0, SIDE - SCRAP + 1, (num, 2))
    at = cut[:, :, None] + np.arange(SCRAP)[None, None]
    paste(other[rows, at[:, 0, :, None], at[:, 1, None, :]])
  chosen = rng.integers(len(images), size=num)
  corner = paste(images[chosen])
  pixels = (out[..., None] * 255).round().astype(np.uint8)
  return Canvases(pixels, labels[chosen].astype(np.int32), corner.astype(np.int32))
