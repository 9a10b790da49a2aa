"""Photographs as arrays: decoding, the views of training and of evaluation, the usual scaling.

Views are uint8, four times smaller on their way to the device than floats; `normalise` runs there.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from h2g.errors import InputError

# Of ImageNet's pixels in [0, 1], by channel.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TRIES = 10  # at a crop inside the image, before its centre is taken


def read(path: str | Path) -> Image.Image:
  """The whole image in RGB; InputError names a file that is missing, damaged or no image."""
  try:
    with Image.open(path) as image:
      return image.convert("RGB")
  except FileNotFoundError as error:
    raise InputError(f"{path} does not exist: the list that names it is of another folder") from (
      error
    )
  except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
    reason = " ".join(str(error).split()).replace(str(path), "it")
    raise InputError(f"{path} cannot be decoded as an image ({reason}): replace it") from error


def training_view(
  image: Image.Image,
  size: int,
  rng: np.random.Generator,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  stretch: int | None = None,
) -> np.ndarray:
  """A random part of the image, resized to a square, mirrored half of the time.

  Args:
    image: in RGB.
    size: side in pixels.
    rng: of the draws.
    scale: range of the part's share of the area, uniform.
    ratio: range of its width over its height, uniform in the logarithm.
    stretch: side of a square that the whole image is stretched to before; None leaves it. With
      scale (size / stretch)^2 and ratio 1 this is the plain random crop of fine-grained sets.
  Returns:
    [size, size, 3] uint8.
  Source: arXiv 1409.4842 sec. 6, in the form that torchvision made common (bicubic).
  """
  image = _stretched(image, stretch)
  box = _random_box(*image.size, rng, scale, ratio)
  view = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
  return view[:, ::-1] if rng.random() < 0.5 else view


def evaluation_view(
  image: Image.Image, size: int, *, resize: int | None = None, stretch: int | None = None
) -> np.ndarray:
  """The centre of the image.

  Args:
    image: in RGB.
    size: side in pixels.
    resize: length of the shorter side before the centre is cut; by default size * 256 / 224, or
      stretch.
    stretch: as in `training_view`.
  Returns:
    [size, size, 3] uint8.
  """
  image, resize = _stretched(image, stretch), stretch if resize is None else resize
  shorter = max(size, round(size * 256 / 224) if resize is None else resize)
  width, height = image.size
  factor = shorter / min(width, height)
  new = (max(size, int(width * factor)), max(size, int(height * factor)))
  image = image.resize(new, Image.Resampling.BICUBIC)
  left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def _stretched(image: Image.Image, side: int | None) -> Image.Image:
  return image if side is None else image.resize((side, side), Image.Resampling.BICUBIC)


def normalise(images: Any) -> Any:
  """(x / 255 - MEAN) / STD in float32: uint8 [..., 3], of NumPy or JAX, like the input."""
  mean, std = (np.asarray(values, np.float32) for values in (MEAN, STD))
  shape = (1,) * (images.ndim - 1) + (3,)
  return (images.astype(np.float32) / np.float32(255) - mean.reshape(shape)) / std.reshape(shape)


def _random_box(width: int, height: int, rng: np.random.Generator, scale, ratio) -> tuple:
  """(left, top, right, bottom) in pixels."""
  for _ in range(TRIES):
    area = width * height * rng.uniform(*scale)
    shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  # The largest centred part of an allowed shape.
  w = min(width, round(height * ratio[1])) or 1
  h = min(height, round(width / ratio[0])) or 1
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h
