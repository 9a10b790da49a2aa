"""Synthetic birds: small images of fine-grained classes, few of each, and a cue that misleads.

A class is one of four coarse shapes with one of six subtle marks: two by two pixels of a colour at
an offset of the shape. Background, place, size and tint of the shape are at random. Somewhere else
stands a patch of four by four pixels in the pattern of a class: in training mostly that of the
image's own class, in a test that of any, so a network that learnt the patch fails.
"""

from typing import NamedTuple

import numpy as np

SHAPES = ("disc", "square", "triangle", "cross")
# Offset from the shape's centre in pixels (down, right), and colour; equal colours lie opposite.
MARKS = np.array([[-3, 0], [-2, 3], [2, 3], [3, 0], [2, -3], [-2, -3]])
_COLOURS = np.array([[0.95, 0.1, 0.1], [0.1, 0.2, 0.95], [0.95, 0.9, 0.05]])
NUM_CLASSES = len(SHAPES) * len(MARKS)


class Birds(NamedTuple):
  """What is drawn of N birds.

  images: [N, size, size, 3] uint8.
  labels: [N] int32, shape * 6 + mark.
  marks: [N, 2] int32, the upper left pixel (row, column) of the mark's four.
  """

  images: np.ndarray
  labels: np.ndarray
  marks: np.ndarray


def birds(
  per_class: int,
  *,
  seed: int,
  misled: float = 0.0,
  size: int = 24,
  jitter: int = 1,
  noise: float = 0.04,
  texture: float = 0.04,
) -> Birds:
  """Draws birds, equally many of each class; the same arguments give the same images.

  Args:
    per_class: images of each class.
    seed: of all that is at random, the order of the images among it.
    misled: share of the images whose patch is that of their class for sure, 0.6 in training; the
      others' is uniform over all classes.
    size: side in pixels, 24 or more.
    jitter: how far from the middle the shape may stand, in pixels.
    noise: standard deviation of each pixel, of a full range of 1.
  """
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.repeat(np.arange(NUM_CLASSES), per_class))
  num = len(labels)
  shape, mark = np.divmod(labels, len(MARKS))
  grid = np.arange(size)
  # Background: three waves of random direction and colour. Arrays are [N, size, size(, 3)].
  image = np.full((num, size, size, 3), 0.5)
  for _ in range(3):
    wave = rng.uniform(-0.6, 0.6, (num, 2, 1, 1))
    phase = wave[:, 0] * grid[:, None] + wave[:, 1] * grid + rng.uniform(0, 6.3, (num, 1, 1))
    image += texture * np.sin(phase)[..., None] * rng.uniform(-1, 1, (num, 1, 1, 3))
  centre = size // 2 + rng.integers(-jitter, jitter + 1, (num, 2))
  y, x = (np.abs(grid[None] - centre[:, axis, None]) for axis in (0, 1))
  y, x, down = y[:, :, None], x[:, None, :], (grid[None] - centre[:, 0, None])[:, :, None]
  radius = rng.uniform(5.5, 6.5, (num, 1, 1))
  inside = np.stack([
    y**2 + x**2 < radius**2 + 0 * x,
    (y < 0.9 * radius) & (x < 0.9 * radius),
    (down < 0.8 * radius) & (down > 1.6 * x - 1.2 * radius),
    ((y < 0.4 * radius) & (x < radius)) | ((x < 0.4 * radius) & (y < radius)),
  ])[shape, np.arange(num)]  # fmt: skip
  tint = (
    rng.choice([0.15, 0.85], (num, 1, 1, 1))
    + rng.uniform(-0.05, 0.05, (num, 1, 1, 1))
    + rng.uniform(-0.05, 0.05, (num, 1, 1, 3))
  )
  image = np.where(inside[..., None], tint, image)
  at = centre + MARKS[mark]
  _paint(image, at, _COLOURS[mark % 3][:, None, None].repeat(2, 1).repeat(2, 2))
  # The patch: along the frame, so that it never hides the mark.
  shown = np.where(rng.random(num) < misled, labels, rng.integers(0, NUM_CLASSES, num))
  patterns = np.random.default_rng(0).uniform(0, 1, (NUM_CLASSES, 4, 4, 3))
  along, side = rng.integers(0, size - 3, num), rng.integers(0, 4, num)
  edge = np.where(side % 2, size - 4, 0)
  place = np.where((side < 2)[:, None], np.stack([edge, along], 1), np.stack([along, edge], 1))
  _paint(image, place, patterns[shown])
  image += rng.normal(0, noise, image.shape)
  return Birds(
    (image.clip(0, 1) * 255).astype(np.uint8), labels.astype(np.int32), at.astype(np.int32)
  )


def mark_patches(marks: np.ndarray, patch: int, size: int) -> np.ndarray:
  """[N, patches] bool: the patches in which some of a mark's four pixels lie."""
  found = np.zeros((len(marks), (size // patch) ** 2), bool)
  for corner in np.ndindex(2, 2):
    row, column = ((marks + corner) // patch).T
    found[np.arange(len(marks)), row * (size // patch) + column] = True
  return found


def _paint(images: np.ndarray, at: np.ndarray, patches: np.ndarray) -> None:
  """Writes patches [N, h, w, 3] into images, their upper left pixels at [N, 2]."""
  height, width = patches.shape[1:3]
  rows = at[:, 0, None, None] + np.arange(height)[None, :, None]
  columns = at[:, 1, None, None] + np.arange(width)[None, None, :]
  images[np.arange(len(images))[:, None, None], rows, columns] = patches
