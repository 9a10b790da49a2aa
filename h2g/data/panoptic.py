"""Photographs with a segment per pixel: crops for training, whole images for evaluation.

`cityscapes` and `ade20k` say where files are and what their numbers mean; here is what they share.
"""

from collections.abc import Callable
import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageEnhance

from h2g.data import files
from h2g.data import photographs
from h2g.errors import InputError

PAD = 128  # of images; padded pixels belong to no segment
SCALES = 16  # sizes between the least and the most of a training view


class Example(NamedTuple):
  """images: [..., height, width, 3] uint8; map: [..., height, width] int32, the segment of each
  pixel or -1; classes: [..., S] int32 of segments, -1 where there is none."""

  images: np.ndarray
  map: np.ndarray
  classes: np.ndarray


class Source(NamedTuple):
  """num: of examples. get: (index, generator, or None in evaluation) -> `Example` of one image."""

  num: int
  get: Callable[[int, np.random.Generator | None], Example]


class Data(NamedTuple):
  """What an experiment needs of a set.

  things: per class, whether its segments are counted. names: of the classes.
  train: examples to learn from. splits: {name: examples to evaluate on}.
  """

  things: tuple[bool, ...]
  names: tuple[str, ...]
  train: Source
  splits: dict[str, Source]


class Panoptic(NamedTuple):
  """One split on disk.

  images: paths. read: index -> (map [height, width] int32, classes [S] int32), as in `Example`.
  things, names: as in `Data`.
  """

  images: tuple[Path, ...]
  read: Callable[[int], tuple[np.ndarray, np.ndarray]]
  things: tuple[bool, ...]
  names: tuple[str, ...]


def read_ids(path: Path) -> np.ndarray:
  """A PNG of one number per pixel, 8 or 16 bits: [height, width] int32."""
  try:
    with Image.open(path) as image:
      ids = np.asarray(image)
  except FileNotFoundError as error:
    raise InputError(f"{path} does not exist: every image needs its label file") from error
  except (OSError, ValueError, SyntaxError, EOFError) as error:
    raise InputError(f"{path} cannot be decoded as an image ({error}): replace it") from error
  if ids.ndim not in (2, 3) or ids.dtype.kind not in "iu":
    raise InputError(f"{path} holds {ids.dtype} {ids.shape}: it must hold a number per pixel")
  return ids.astype(np.int32)


def read_panoptic_png(path: Path) -> np.ndarray:
  """A PNG whose colours are numbers, R + 256 G + 256^2 B: [height, width] int32."""
  colours = read_ids(path)
  if colours.ndim != 3:
    raise InputError(f"{path} holds {colours.shape}: a panoptic PNG has three channels")
  return colours[..., :3] @ np.array([1, 256, 256**2], np.int32)


def by_number(ids: np.ndarray, classes: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """(map, classes) of numbered pixels; numbers that `classes` lacks become -1."""
  present, at = np.unique(ids, return_inverse=True)
  kept = [number for number in present.tolist() if number in classes]
  place = np.array([kept.index(n) if n in classes else -1 for n in present.tolist()], np.int32)
  return place[at].reshape(ids.shape), np.array([classes[n] for n in kept], np.int32)


class PanopticFile:
  """A JSON of the panoptic format of COCO, with its folder of PNGs.

  Args of the constructor:
    path: of the JSON; `folder`: of the PNGs.
    categories: {id in the file: class}; None numbers them in the file's order.
  """

  def __init__(self, path: Path, folder: Path, categories: dict[int, int] | None = None):
    self.path, self.folder = path, folder
    content = json.loads(files.decode(files.read_bytes(path), path))
    try:
      listed = content["categories"]
      self.names = tuple(str(c["name"]) for c in listed)
      self.things = tuple(bool(c["isthing"]) for c in listed)
      self.categories = categories or {int(c["id"]): i for i, c in enumerate(listed)}
      self.annotations = [
        (str(a["image_id"]), str(a["file_name"]), [self._segment(s) for s in a["segments_info"]])
        for a in content["annotations"]
      ]
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(f"{path} is no panoptic JSON: {type(error).__name__} {error}") from error

  def _segment(self, segment) -> tuple[int, int]:
    """(number in the PNG, class); crowds have class -1."""
    category = int(segment["category_id"])
    if category not in self.categories:
      raise InputError(
        f"{self.path}: segment {segment['id']} has category {category}, which is none of the "
        f"{len(self.categories)} of this set"
      )
    crowd = segment.get("iscrowd", 0)
    return int(segment["id"]), -1 if crowd else self.categories[category]

  def read(self, at: int) -> tuple[np.ndarray, np.ndarray]:
    """(map, classes) of an annotation."""
    _, name, segments = self.annotations[at]
    ids = read_panoptic_png(self.folder / name)
    known = dict(segments)
    unknown = sorted(set(np.unique(ids).tolist()) - set(known) - {0})
    if unknown:
      raise InputError(f"{self.folder / name} has segment {unknown[0]}, which {self.path} lacks")
    return by_number(ids, {number: c for number, c in known.items() if c >= 0})


def example(split: Panoptic, at: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
  """(image, map, classes); InputError where image and labels differ in size."""
  image = photographs.read(split.images[at])
  segments, classes = split.read(at)
  if image.size != segments.shape[::-1]:
    height, width = segments.shape
    raise InputError(
      f"{split.images[at]} has {image.size[0]} x {image.size[1]} pixels, its labels "
      f"{width} x {height}"
    )
  return image, segments, classes


def training_view(drawn, config, rng: np.random.Generator) -> Example:
  """A random part at a random size, mirrored half of the time, colours varied.

  The shorter side is `config.shorter` times one of 16 factors from least_scale to most_scale (the
  longer at most `longest`), of which height x width pixels are cut, padded where it is smaller.
  """
  image, segments, classes = drawn
  factor = rng.choice(np.linspace(config.least_scale, config.most_scale, SCALES))
  image, segments = _resized(image, segments, config.shorter * factor, config.longest)
  top, left = (
    int(rng.integers(max(0, have - want) + 1))
    for have, want in zip(segments.shape, (config.height, config.width))
  )
  part = np.s_[top : top + config.height, left : left + config.width]
  pixels, segments = np.asarray(_varied(image, rng))[part], segments[part]
  if rng.random() < 0.5:
    pixels, segments = pixels[:, ::-1], segments[:, ::-1]
  return _padded(pixels, segments, classes, config)


def evaluation_view(drawn, config) -> Example:
  """The whole image as large as height x width allow, padded below and to the right."""
  image, segments, classes = drawn
  fit = min(config.height / segments.shape[0], config.width / segments.shape[1])
  image, segments = _resized(image, segments, fit * min(segments.shape), 1 << 30)
  part = np.s_[: config.height, : config.width]
  return _padded(np.asarray(image)[part], segments[part], classes, config)


def source(split: Panoptic, config) -> Source:
  """Views of the images of a split, drawn where a generator is given, else whole."""

  def get(at: int, rng: np.random.Generator | None) -> Example:
    drawn = example(split, at)
    return evaluation_view(drawn, config) if rng is None else training_view(drawn, config, rng)

  return Source(len(split.images), get)


def data(load: Callable[[str, str], Panoptic], config) -> Data:
  """A set on disk: what it publishes with labels to validate on serves as validation and test."""
  train, val = (load(config.folder, split) for split in ("train", "val"))
  views = source(val, config)
  return Data(train.things, train.names, source(train, config), {"val": views, "test": views})


def stream(source: Source, batch_size: int, seeds: tuple[int, ...]):
  """Endless grain dataset of `Example` with leaves [seeds, B, ...], a fresh order each epoch.

  Element i depends on (seed, i) alone, so an iterator over it can be put back where it was.
  """
  import grain

  def one(seed: int, at: int) -> Example:
    index = _order(source.num, seed, at // source.num)[at % source.num]
    return source.get(int(index), np.random.default_rng((seed, at)))

  def batch(step: int) -> Example:
    span = range(step * batch_size, (step + 1) * batch_size)
    return _stacked([_stacked([one(seed, at) for at in span]) for seed in seeds])

  return grain.MapDataset.range(1 << 31).map(batch)


def in_order(splits: dict[str, Source], batch_size: int):
  """Yields {name: `Example` [B, ...]}, every image once; what is missing at ends is empty."""
  for start in range(0, max(source.num for source in splits.values()), batch_size):
    found = {}
    for name, source in splits.items():
      rows = [source.get(at, None) for at in range(start, min(start + batch_size, source.num))]
      like = rows[0] if rows else source.get(0, None)
      empty = Example(like.images, np.full_like(like.map, -1), np.full_like(like.classes, -1))
      found[name] = _stacked(rows + [empty] * (batch_size - len(rows)))
    yield found


def _stacked(examples: list[Example]) -> Example:
  return Example(*(np.stack(leaves) for leaves in zip(*examples)))


@functools.lru_cache(maxsize=8)
def _order(num: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch, 1)).permutation(num)


def _resized(image: Image.Image, segments: np.ndarray, shorter: float, longest: int):
  factor = min(shorter / min(segments.shape), longest / max(segments.shape))
  size = tuple(max(1, round(n * factor)) for n in image.size)
  nearest = Image.fromarray(segments).resize(size, Image.Resampling.NEAREST)
  return image.resize(size, Image.Resampling.BILINEAR), np.asarray(nearest)


def _varied(image: Image.Image, rng: np.random.Generator) -> Image.Image:
  """Brightness, contrast, saturation and hue, each half of the time (arXiv 1512.02325 sec. 2.2)."""
  if rng.random() < 0.5:
    shifted = np.asarray(image, np.float32) + rng.uniform(-32, 32)
    image = Image.fromarray(shifted.clip(0, 255).astype(np.uint8))
  for change in (ImageEnhance.Contrast, ImageEnhance.Color):
    if rng.random() < 0.5:
      image = change(image).enhance(rng.uniform(0.5, 1.5))
  if rng.random() < 0.5:
    hue, *others = image.convert("HSV").split()
    turn = round(rng.uniform(-18, 18) / 360 * 255)
    turned = Image.fromarray(((np.asarray(hue, np.int32) + turn) % 256).astype(np.uint8))
    image = Image.merge("HSV", (turned, *others)).convert("RGB")
  return image


def _padded(pixels: np.ndarray, segments: np.ndarray, classes: np.ndarray, config) -> Example:
  """To height x width, with the `most_segments` largest segments that are left."""
  below = [(0, config.height - pixels.shape[0]), (0, config.width - pixels.shape[1])]
  pixels = np.pad(pixels, [*below, (0, 0)], constant_values=PAD)
  segments = np.pad(segments, below, constant_values=-1)
  area = np.bincount(segments[segments >= 0], minlength=len(classes))
  kept = np.argsort(-area, kind="stable")[: config.most_segments]
  kept = kept[area[kept] > 0]
  place = np.full(len(classes) + 1, -1, np.int32)
  place[kept] = np.arange(len(kept))
  padded = np.full(config.most_segments, -1, np.int32)
  padded[: len(kept)] = classes[kept]
  return Example(pixels, place[segments], padded)
