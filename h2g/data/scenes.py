"""Synthetic panoptic scenes: textured bands with discs, squares and triangles before them.

Three bands of one texture each (stuff) in any order, with wavy borders, and one to five shapes
(things) of any of three colours, so that colour says nothing about the class.
"""

import functools
from typing import NamedTuple

import numpy as np

from h2g.data import panoptic

CLASSES = ("rows", "columns", "checks", "disc", "square", "triangle")
THINGS = (False, False, False, True, True, True)
MOST = 8  # segments of a scene: three bands and five things
LEAST_VISIBLE = 16  # pixels; what is hidden further is no segment
_TINTS = np.array([[0.85, 0.3, 0.25], [0.25, 0.7, 0.35], [0.3, 0.4, 0.9]])


class Scenes(NamedTuple):
  """images: [N, size, size, 3] uint8; map: [N, size, size] int32, the segment of each pixel, or -1
  for none; classes: [N, S] int32 of segments, -1 where there is none."""

  images: np.ndarray
  map: np.ndarray
  classes: np.ndarray


@functools.lru_cache(maxsize=8)
def scenes(num: int, *, seed: int, size: int = 64, noise: float = 0.08) -> Scenes:
  """Draws scenes; the same arguments give the same scenes.

  Args:
    num: N.
    seed: of everything drawn.
    size: side in pixels; things are 14 to 28 of 64 across.
    noise: standard deviation of each pixel, of a full range of 1.
  Returns:
    Scenes with S = 8: the bands first, from the top, then things from back to front.
  """
  drawn = [_scene(np.random.default_rng((seed, i)), size, noise) for i in range(num)]
  return Scenes(*(np.stack(parts) for parts in zip(*drawn)))


def data(*, train: int, val: int, test: int, seed: int = 0, **drawing) -> panoptic.Data:
  """Scenes as examples; those of training, validation and test are drawn apart.

  Args:
    train, val, test: how many.
    seed: of all parts.
    drawing: size and noise of `scenes`.
  """

  def source(num: int, at: int) -> panoptic.Source:
    drawn = scenes(num, seed=10 * seed + at, **drawing)
    return panoptic.Source(num, lambda at, rng: panoptic.Example(*(part[at] for part in drawn)))

  splits = {"val": source(val, 1), "test": source(test, 2)}
  return panoptic.Data(THINGS, CLASSES, source(train, 0), splits)


def _scene(rng: np.random.Generator, size: int, noise: float):
  y, x = np.mgrid[:size, :size] * (64 / size)
  borders = np.array([64 / 3, 128 / 3]) + rng.uniform(-7, 7, 2)
  waves = 3 * np.sin(x / rng.uniform(5, 12) + rng.uniform(0, 6))
  segment = (y[..., None] + waves[..., None] > borders).sum(-1)
  order = rng.permutation(3)
  classes = np.full(MOST, -1, np.int32)
  classes[:3] = order
  period, phase = rng.uniform(0.8, 1.2, 3), rng.uniform(0, 6, 3)
  rows, columns = (np.sin(axis * period[segment] + phase[segment]) for axis in (y, x))
  light = np.choose(order[segment], [np.sign(rows), np.sign(columns), np.sign(rows * columns)])
  grey = rng.uniform(0.4, 0.6, 3)[segment]
  image = (grey + 0.15 * light)[..., None] + rng.uniform(-0.05, 0.05, 3)
  for at in range(3, 3 + rng.integers(1, 6)):
    kind, centre, r = rng.integers(3), rng.uniform(8, 56, 2), rng.uniform(7, 14)
    dy, dx = y - centre[0], x - centre[1]
    shape = (
      dy**2 + dx**2 < r**2,
      np.maximum(abs(dy), abs(dx)) < 0.85 * r,
      (dy < 0.75 * r) & (abs(dx) < 0.6 * (dy + r)),
    )[kind]
    segment = np.where(shape, at, segment)
    tint = _TINTS[rng.integers(3)] + rng.uniform(-0.15, 0.15, 3)
    image = np.where(shape[..., None], tint, image)
    classes[at] = 3 + kind
  visible = np.bincount(segment.reshape(-1), minlength=MOST)
  classes[visible < LEAST_VISIBLE] = -1
  segment = np.where(classes[segment] < 0, -1, segment)
  image = (image + rng.normal(0, noise, image.shape)).clip(0, 1)
  return (image * 255).astype(np.uint8), segment.astype(np.int32), classes
