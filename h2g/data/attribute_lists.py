"""Images with attributes as text files list them: the split files of FashionAI, DARN, DeepFashion.

  meta.json             {"ATTRIBUTES": [name, ...], "ATTRIBUTES_NUM": {name: values, ...}}, or such
                        an object per data set under its name
  filenames_SPLIT.txt   a path a line, relative to the folder
  label_SPLIT.txt       `image attribute value [attribute value ...]` a line, zero-based: `0 3 1`
  query_SPLIT.txt, candidate_SPLIT.txt   `image attribute value` a line

Source: the lists of arXiv 2002.02814.
"""

from concurrent.futures import ThreadPoolExecutor
import json
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np

from h2g.data import files
from h2g.data import photographs
from h2g.data.triplets import sample_triplets
from h2g.data.triplets import triplet_index
from h2g.errors import InputError


class AttributeList(NamedTuple):
  """paths: N images; labels: [N, K] int32, -1 where not labelled; names, sizes: of K attributes."""

  paths: tuple[Path, ...]
  labels: np.ndarray
  names: tuple[str, ...]
  sizes: tuple[int, ...]


def load(
  folder: str | Path, split: str, *, part: str = "label", dataset: str = ""
) -> AttributeList:
  """Reads the images of one split and their labels; the images themselves stay on disk.

  Args:
    folder: that holds the lists.
    split: "train", "valid" or "test".
    part: which list of labels: "label", "query" or "candidate".
    dataset: name in a meta.json of several data sets.
  Raises:
    InputError: a file is missing, or a line names what does not exist; the message says which.
  """
  folder = Path(folder)
  names, sizes = _meta(folder / "meta.json", dataset)
  listed = folder / f"filenames_{split}.txt"
  paths = tuple(folder / line for line in _lines(listed) if line)
  labels = np.full((len(paths), len(names)), -1, np.int32)
  source = folder / f"{part}_{split}.txt"
  for at, line in enumerate(_lines(source), 1):
    try:
      image, *pairs = [int(word) for word in line.split()]
    except ValueError as error:
      raise InputError(f"{source}, line {at}: {line!r} is no row of integers") from error
    if not pairs or len(pairs) % 2:
      raise InputError(f"{source}, line {at}: an image, then pairs of attribute and value")
    if not 0 <= image < len(paths):
      raise InputError(f"{source}, line {at}: image {image} of {len(paths)} in {listed.name}")
    for attribute, value in zip(pairs[::2], pairs[1::2]):
      if not 0 <= attribute < len(names):
        raise InputError(f"{source}, line {at}: attribute {attribute} of {len(names)} in meta.json")
      if not 0 <= value < sizes[attribute]:
        raise InputError(
          f"{source}, line {at}: value {value} of {names[attribute]}, which has "
          f"{sizes[attribute]} values in meta.json"
        )
      labels[image, attribute] = value
  return AttributeList(paths, labels, names, sizes)


class Triplet(NamedTuple):
  """images: [..., B, 3, size, size, 3] uint8, anchor, positive, negative; conditions: [..., B]."""

  images: np.ndarray
  conditions: np.ndarray


class Searched(NamedTuple):
  """images: [N, size, size, 3] uint8; labels: [N, K] int32, -1 where not labelled."""

  images: np.ndarray
  labels: np.ndarray


def triplet_stream(
  listed: AttributeList, *, size: int, batch_size: int, seeds: tuple[int, ...] = (0,), **view
) -> grain.MapDataset:
  """Endless batches `Triplet` with leaves [seeds, B, ...]; element i depends on (seed, i) alone.

  Attributes are uniform, then the triplet (`sample_triplets`); each image is a random view
  (`photographs.training_view`, options of `view`).
  """
  index = triplet_index(listed.labels, listed.names)

  def batch(at: int, seed: int) -> Triplet:
    rng = np.random.default_rng((seed, at))
    conditions = rng.integers(0, len(listed.names), batch_size).astype(np.int32)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
      key = jax.random.key(int(rng.integers(1 << 31)))
      ids = np.stack(jax.device_get(sample_triplets(index, conditions, key))[1:], axis=1)
    views = [
      photographs.training_view(photographs.read(listed.paths[i]), size, rng, **view)
      for i in ids.reshape(-1)
    ]
    return Triplet(np.stack(views).reshape(batch_size, 3, size, size, 3), conditions)

  join = lambda at: Triplet(*(np.stack(x) for x in zip(*(batch(at, seed) for seed in seeds))))
  return grain.MapDataset.range(1 << 31).map(join)


def searched(listed: AttributeList, *, size: int) -> Searched:
  """The images that have a label, decoded, as `photographs.evaluation_view`."""
  ids = np.flatnonzero((listed.labels >= 0).any(1))
  if not len(ids):
    raise InputError(f"none of the {len(listed.paths)} images has a label to search by")
  view = lambda i: photographs.evaluation_view(photographs.read(listed.paths[i]), size)
  with ThreadPoolExecutor() as pool:
    images = list(pool.map(view, ids))
  return Searched(np.stack(images), listed.labels[ids])


def _meta(path: Path, dataset: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
  try:
    content = json.loads("\n".join(_lines(path)))
    content = content[dataset] if dataset else content
    names = tuple(content["ATTRIBUTES"])
    return names, tuple(int(content["ATTRIBUTES_NUM"][name]) for name in names)
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"{path} lacks ATTRIBUTES and ATTRIBUTES_NUM: {error}") from error


def _lines(path: Path) -> list[str]:
  return files.decode(files.read_bytes(path), path).splitlines()
