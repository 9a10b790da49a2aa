"""Images in a folder per class, as ImageNet is laid out, in batches that a run can resume.

  ROOT/train/<class>/*.jpg      also .jpeg, .png, .webp, .bmp
  ROOT/val/<class>/*.jpg        the same classes

Classes are numbered by the sorted names of their folders. Images are decoded as they are read.
"""

from collections.abc import Iterator
import os
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from h2g.data import photographs
from h2g.errors import InputError


class ImageFolder(NamedTuple):
  """paths: of N images; labels: [N] int32; classes: names, by label."""

  paths: tuple[Path, ...]
  labels: np.ndarray
  classes: tuple[str, ...]


class Images(NamedTuple):
  """images: [..., B, size, size, 3] uint8; labels: [..., B] int32, -1 in padded rows."""

  images: np.ndarray
  labels: np.ndarray


def load(
  root: str | Path, *, splits: tuple[str, str] = ("train", "val"), num_classes: int | None = None
) -> tuple[ImageFolder, ImageFolder]:
  """What both parts hold; the images themselves stay on disk.

  Args:
    root: folder of the two parts.
    splits: names of the part that is trained on and of the part that is evaluated.
    num_classes: that the model has; None takes any number.
  Returns:
    (training, evaluation).
  Raises:
    InputError: a folder is missing or holds no class folders, a class has no images, the parts
      differ in their classes, or there are not num_classes of them; the message says which.
  """
  train, val = (_listed(Path(root).expanduser() / name) for name in splits)
  for one, other, name in ((train, val, splits[1]), (val, train, splits[0])):
    lacking = [c for c in one.classes if c not in set(other.classes)]
    if lacking:
      more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
      raise InputError(
        f"{Path(root) / name} lacks the class folders {', '.join(lacking[:3])}{more}, which "
        f"{'/'.join(s for s in splits if s != name)} has: both parts need the same classes"
      )
  if num_classes is not None and num_classes != len(train.classes):
    raise InputError(
      f"{Path(root) / splits[0]} holds {len(train.classes)} classes, the config has num_classes="
      f"{num_classes}: set it to {len(train.classes)}, or give another folder"
    )
  return train, val


def held_out(folder: ImageFolder, every: int) -> tuple[ImageFolder, ImageFolder]:
  """(the others, every n-th image of each class), in order of the classes."""
  order = np.argsort(folder.labels, kind="stable")
  labels = folder.labels[order]
  held = (np.arange(len(order)) - np.searchsorted(labels, labels)) % every == every - 1
  part = lambda rows: folder._replace(
    paths=tuple(folder.paths[i] for i in order[rows]), labels=labels[rows]
  )
  return part(~held), part(held)


def train_stream(
  folder: ImageFolder, *, size: int, batch_size: int, seeds: tuple[int, ...] = (0,), **view
) -> grain.MapDataset:
  """Endless batches `Images` with leaves [seeds, B, ...]: a fresh shuffle each epoch.

  Element i depends on (seed, i) alone, so an iterator over it can be put back where it was. Views
  are `photographs.training_view`, with the options of `view`.
  """
  if not 0 < batch_size <= len(folder.paths):
    raise InputError(f"batch_size={batch_size} must be 1 to the {len(folder.paths)} images")

  def example(at, rng: np.random.Generator) -> Images:
    image = photographs.read(folder.paths[at])
    return Images(photographs.training_view(image, size, rng, **view), folder.labels[at])

  of_seed = [
    grain.MapDataset.range(len(folder.paths))
    .seed(seed)
    .shuffle()
    .repeat()
    .random_map(example)
    .batch(batch_size)
    for seed in seeds
  ]
  join = lambda i: Images(*(np.stack(leaves) for leaves in zip(*(one[i] for one in of_seed))))
  return grain.MapDataset.range(len(of_seed[0])).map(join)


def eval_batches(folder: ImageFolder, *, size: int, batch_size: int, **view) -> Iterator[Images]:
  """Every image once, in order, as `photographs.evaluation_view`; the last batch is padded."""

  def example(at) -> Images:
    image = photographs.read(folder.paths[at])
    return Images(photographs.evaluation_view(image, size, **view), folder.labels[at])

  batches = grain.MapDataset.range(len(folder.paths)).map(example).batch(batch_size)
  for images, labels in batches.to_iter_dataset():
    short = batch_size - len(labels)
    padded = np.pad(images, ((0, short), (0, 0), (0, 0), (0, 0)))
    yield Images(padded, np.pad(labels, (0, short), constant_values=-1))


def in_turn(parts: dict[str, ImageFolder], **options) -> Iterator[dict[str, Images]]:
  """`eval_batches` of one part after the other, each beside empty batches of the others."""
  for name, part in parts.items():
    for images in eval_batches(part, **options):
      empty = Images(np.zeros_like(images.images), np.full_like(images.labels, -1))
      yield {other: images if other == name else empty for other in parts}


def _listed(folder: Path) -> ImageFolder:
  """The images of one part, by class and name."""
  if not folder.is_dir():
    raise InputError(f"{folder} does not exist: it must hold a folder of images per class")
  classes = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
  if not classes:
    loose = sum(path.suffix.lower() in photographs.ENDINGS for path in folder.iterdir())
    held = f"{loose} images but no class folders" if loose else "no class folders"
    raise InputError(f"{folder} holds {held}: sort the images as {folder.name}/<class>/<image>")
  paths, labels = [], []
  for label, name in enumerate(classes):
    found = sorted(e.name for e in os.scandir(folder / name) if _is_image(e.name))
    if not found:
      raise InputError(
        f"{folder / name} holds no images ({', '.join(photographs.ENDINGS)}): remove it or fill it"
      )
    paths += [folder / name / file for file in found]
    labels += [label] * len(found)
  return ImageFolder(tuple(paths), np.array(labels, np.int32), classes)


def _is_image(name: str) -> bool:
  return name.lower().endswith(photographs.ENDINGS)
