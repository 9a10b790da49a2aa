"""Images with attributes as text files list them: the split files of FashionAI, DARN, DeepFashion.

  meta.json             {"ATTRIBUTES": [name, ...], "ATTRIBUTES_NUM": {name: values, ...}}, or such
                        an object per data set under its name
  filenames_SPLIT.txt   a path a line, relative to the folder
  label_SPLIT.txt       `image attribute value [attribute value ...]` a line, zero-based: `0 3 1`
  query_SPLIT.txt, candidate_SPLIT.txt   `image attribute value` a line

Source: the lists of arXiv 2002.02814.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from h2g.data import files
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
