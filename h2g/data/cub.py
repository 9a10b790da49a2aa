"""Caltech-UCSD Birds 200-2011: 11,788 photographs of 200 species, 5,994 of them for training.

  images.txt               `id path` a line, paths under images/
  image_class_labels.txt   `id class` a line, classes from 1
  train_test_split.txt     `id is_train` a line, 1 or 0
  images/001.Black_footed_Albatross/....jpg

Source: C. Wah et al., Caltech-UCSD Birds-200-2011, CNS-TR-2011-001.
"""

from pathlib import Path

import numpy as np

from h2g.data import files
from h2g.data.image_folder import ImageFolder
from h2g.errors import InputError

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt")


def load(folder: str | Path, *, num_classes: int = 200) -> tuple[ImageFolder, ImageFolder]:
  """The official split; the images themselves stay on disk.

  Args:
    folder: CUB_200_2011, or whatever holds the three lists and images/.
    num_classes: that the model has.
  Returns:
    (training, test); a class is named by the folder of its images.
  Raises:
    InputError: a list is missing or names what another lacks, a label is no class, the number of
      classes is another, an image is not there; the message names the file.
  """
  folder = Path(folder).expanduser()
  names, labels, is_train = (_column(folder / name) for name in LISTS)
  for name, column in zip(LISTS[1:], (labels, is_train)):
    if lacking := sorted(names.keys() - column.keys()) or sorted(column.keys() - names.keys()):
      raise InputError(
        f"{folder / name} and {LISTS[0]} disagree about image {lacking[0]}: each of them lists "
        "every image once; fetch the data set again"
      )
  ids = sorted(names)
  try:
    classes = np.array([int(labels[i]) - 1 for i in ids])
    train = np.array([bool((0, 1).index(int(is_train[i]))) for i in ids])
  except ValueError as error:
    raise InputError(f"{folder}: {LISTS[1]} and {LISTS[2]} hold integers: {error}") from error
  known = len(set(classes.tolist()))
  if known != num_classes or classes.min() < 0 or classes.max() >= num_classes:
    raise InputError(
      f"{folder / LISTS[1]} has {known} classes, {classes.min() + 1} to {classes.max() + 1}, the "
      f"config has num_classes={num_classes}: set it to {known}, or give the whole data set"
    )
  paths = [folder / "images" / names[i] for i in ids]
  if missing := next((path for path in paths if not path.is_file()), None):
    raise InputError(f"{missing} does not exist, and {LISTS[0]} lists it: fetch the images again")
  species = dict(zip(classes.tolist(), (Path(names[i]).parent.name for i in ids)))
  part = lambda rows: ImageFolder(
    tuple(paths[i] for i in np.flatnonzero(rows)),
    classes[rows].astype(np.int32),
    tuple(species[c] for c in range(num_classes)),
  )
  return part(train), part(~train)


def _column(path: Path) -> dict[int, str]:
  """{image: what stands behind it} of a list."""
  found = {}
  for at, line in enumerate(files.decode(files.read_bytes(path), path).splitlines(), 1):
    image, _, value = line.strip().partition(" ")
    if not image.isdecimal() or not value:
      raise InputError(f"{path}, line {at}: {line[:60]!r} is no image number and a value")
    if int(image) in found:
      raise InputError(f"{path}, line {at}: image {image} stands there twice")
    found[int(image)] = value
  return found
