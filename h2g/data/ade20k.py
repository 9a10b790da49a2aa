"""ADE20K as the scene parsing challenge has it: 150 classes, 100 of them counted.

  FOLDER/images/{training,validation}/NAME.jpg
  FOLDER/annotations/{training,validation}/NAME.png   0 other, 1 to 150 the class
  FOLDER/objectInfo150.txt                            names in the last column (optional)
  FOLDER/ade20k_panoptic_{train,val}.json             in the panoptic format of COCO, with
  FOLDER/ade20k_panoptic_{train,val}/NAME.png

Source: http://sceneparsing.csail.mit.edu (ADEChallengeData2016).
"""

import functools
from pathlib import Path

import numpy as np

from h2g.data.panoptic import by_number
from h2g.data.panoptic import Panoptic
from h2g.data.panoptic import PanopticFile
from h2g.data.panoptic import read_ids
from h2g.errors import InputError

NUM_CLASSES = 150
FOLDERS = {"train": "training", "val": "validation"}


def load(folder: str | Path, split: str, *, labels: str = "panoptic") -> Panoptic:
  """One split.

  Args:
    folder: ADEChallengeData2016.
    split: "train" or "val".
    labels: "panoptic": of the JSON and its PNGs; "semantic": of annotations, a segment per class.
  Raises:
    InputError: a folder or label file is missing, the JSON has not 150 categories; when an image is
      read: sizes differ, or a class is out of range. The message names the file.
  """
  if split not in FOLDERS or labels not in ("panoptic", "semantic"):
    raise InputError(
      f"split={split!r}, labels={labels!r}: choose train or val, panoptic or semantic"
    )
  folder = Path(folder).expanduser()
  photos = folder / "images" / FOLDERS[split]
  images = tuple(sorted(photos.glob("*.jpg")))
  if not images:
    raise InputError(f"{photos} holds no *.jpg: unpack ADEChallengeData2016 there")
  if labels == "semantic":
    truth = tuple(folder / "annotations" / FOLDERS[split] / f"{i.stem}.png" for i in images)
    for path in truth:
      if not path.is_file():
        raise InputError(f"{path} does not exist: every image needs its label file")
    return Panoptic(images, functools.partial(_read, truth), (False,) * NUM_CLASSES, _names(folder))
  path = folder / f"ade20k_panoptic_{split}.json"
  listed = PanopticFile(path, path.with_suffix(""))
  if len(listed.names) != NUM_CLASSES:
    raise InputError(f"{path} has {len(listed.names)} categories, not {NUM_CLASSES}")
  at = {Path(name).stem: i for i, (_, name, _) in enumerate(listed.annotations)}
  order = [at.get(image.stem) for image in images]
  if None in order:
    raise InputError(f"{path} lacks {images[order.index(None)].name}")
  return Panoptic(images, lambda i: listed.read(order[i]), listed.things, listed.names)


def _names(folder: Path) -> tuple[str, ...]:
  path = folder / "objectInfo150.txt"
  if not path.is_file():
    return tuple(str(i) for i in range(1, NUM_CLASSES + 1))
  lines = path.read_text(encoding="utf-8").splitlines()[1:]
  return tuple(line.split("\t")[-1].strip() for line in lines)


def _read(truth: tuple[Path, ...], at: int) -> tuple[np.ndarray, np.ndarray]:
  ids = read_ids(truth[at])
  if ids.ndim != 2 or ids.max(initial=0) > NUM_CLASSES:
    raise InputError(f"{truth[at]} has class {ids.max()}: classes are 0 to {NUM_CLASSES}")
  return by_number(ids, {i: i - 1 for i in range(1, NUM_CLASSES + 1)})
