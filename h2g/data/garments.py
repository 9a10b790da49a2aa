"""Synthetic garments: small images drawn from independent attributes, for retrieval by attribute.

Each image shows one garment: a body of one of four shapes in one of six colours, stripes in one of
four directions, sleeves of one of three lengths and a mark in one of five places. The attributes
are drawn independently, so a space that sorts by one of them has to ignore the others.
"""

from typing import NamedTuple

import numpy as np

# Attribute: names of its values.
ATTRIBUTES = {
  "shape": ("long", "flared", "tapered", "cropped"),
  "colour": ("red", "green", "blue", "yellow", "magenta", "cyan"),
  "stripes": ("horizontal", "vertical", "rising", "falling"),
  "sleeves": ("none", "short", "long"),
  "mark": ("centre", "top left", "top right", "bottom left", "bottom right"),
}
_COLOURS = np.array(
  [[0.8, 0.2, 0.2], [0.2, 0.7, 0.25], [0.25, 0.3, 0.85], [0.8, 0.75, 0.2], [0.75, 0.25, 0.75],
   [0.2, 0.75, 0.75]]
)  # fmt: skip
_WAVES = np.array([[1.0, 0.0], [0.0, 1.0], [0.71, 0.71], [-0.71, 0.71]])  # along (y, x)
_MARKS = np.array([[0.0, 0.0], [-0.28, -0.22], [-0.28, 0.22], [0.28, -0.22], [0.28, 0.22]])
_SLEEVES = np.array([0.0, 0.35, 0.75])


class Garments(NamedTuple):
  """images: [N, size, size, 3] uint8; labels: [N, 5] int32, a column per attribute."""

  images: np.ndarray
  labels: np.ndarray


def garments(
  num: int, *, seed: int, size: int = 32, noise: float = 0.08, jitter: float = 1.0
) -> Garments:
  """Draws garments; the same arguments give the same images.

  Args:
    num: of images.
    seed: of the attributes, the jitter (place, scale, tint, phase of the stripes) and the noise.
    size: side in pixels.
    noise: standard deviation of each pixel, of a full range of 1.
    jitter: how far place, size, tint, background and phase of the stripes vary; at 1 the phase is
      anything, at 0 all is fixed.
  """
  rng = np.random.default_rng(seed)
  labels = np.stack([rng.integers(0, len(names), num) for names in ATTRIBUTES.values()], axis=1)
  shape, colour, stripes, sleeves, mark = labels.T
  draw = lambda scale, *axes: jitter * rng.uniform(-scale, scale, (num, *axes, 1, 1))
  # Coordinates of the garment, about -1 to 1; arrays are [N, size, size] from here on.
  grid = np.linspace(-1, 1, size)
  scale = 1 + draw(0.08)
  y, x = (grid[None, :, None] - draw(0.1)) / scale, (grid[None, None, :] - draw(0.1)) / scale
  at = lambda table, ids: np.asarray(table)[ids][:, None, None]
  # Half the width at each height, and half the height, of each shape.
  half = np.stack([0.26 + 0 * y, 0.34 + 0.34 * y, 0.34 - 0.34 * y, 0.55 + 0 * y])
  tall = np.array([0.8, 0.75, 0.75, 0.42])
  body = (np.abs(x) < half[shape, np.arange(num)]) & (np.abs(y) < at(tall, shape))
  # Sleeves hang outside the body, downwards from the shoulders.
  down = y + 0.6
  sleeve = (
    (np.abs(x) > 0.6) & (np.abs(x) < 0.82) & (down > 0) & (down < 1.4 * at(_SLEEVES, sleeves))
  )
  cloth = body | sleeve
  wave = at(_WAVES[:, 0], stripes) * y + at(_WAVES[:, 1], stripes) * x
  light = 0.85 + 0.3 * np.sign(np.sin(14 * wave + draw(np.pi)))
  tint = _COLOURS[colour][:, None, None, :] + draw(0.06, 3).reshape(num, 1, 1, 3)
  image = np.where(cloth[..., None], tint * light[..., None], 0.5 + draw(0.1)[..., None])
  dot = (y - at(_MARKS[:, 0], mark)) ** 2 + (x - at(_MARKS[:, 1], mark)) ** 2 < 0.17**2
  image = np.where(dot[..., None], 1.0, image) + rng.normal(0, noise, image.shape)
  return Garments((image.clip(0, 1) * 255).astype(np.uint8), labels.astype(np.int32))
