"""Cityscapes, fine annotations: 19 classes, 8 of them counted.

  FOLDER/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
  FOLDER/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png      a label per pixel
  FOLDER/gtFine/SPLIT/CITY/NAME_gtFine_instanceIds.png   the label, or 1000 label + number
  FOLDER/gtFine/cityscapes_panoptic_SPLIT.json           written by the set's own scripts, with
  FOLDER/gtFine/cityscapes_panoptic_SPLIT/NAME_gtFine_panoptic.png

Source: https://www.cityscapes-dataset.com and its scripts (labels.py, createPanopticImgs.py).
"""

import functools
from pathlib import Path

import numpy as np

from h2g.data.panoptic import by_number
from h2g.data.panoptic import Panoptic
from h2g.data.panoptic import PanopticFile
from h2g.data.panoptic import read_ids
from h2g.errors import InputError

# Label: (name, whether it is counted), in the order of classes.
LABELS = {
  7: ("road", False), 8: ("sidewalk", False), 11: ("building", False), 12: ("wall", False),
  13: ("fence", False), 17: ("pole", False), 19: ("traffic light", False),
  20: ("traffic sign", False), 21: ("vegetation", False), 22: ("terrain", False),
  23: ("sky", False), 24: ("person", True), 25: ("rider", True), 26: ("car", True),
  27: ("truck", True), 28: ("bus", True), 31: ("train", True), 32: ("motorcycle", True),
  33: ("bicycle", True),
}  # fmt: skip
CLASS = {label: i for i, label in enumerate(LABELS)}
LAST = 33  # 0 to 33 exist, and -1, stored as 255 (license plates); those not above are not learned


def load(folder: str | Path, split: str, *, labels: str = "ids") -> Panoptic:
  """One split.

  Args:
    folder: that holds leftImg8bit and gtFine.
    split: "train" or "val" ("test" has no public labels).
    labels: "ids": of labelIds and instanceIds; "panoptic": of the JSON and its PNGs.
  Raises:
    InputError: a folder or label file is missing, or labels other than those above; when an image
      is read: sizes differ, or a label does not exist. The message names the file.
  """
  folder = Path(folder).expanduser()
  names, things = zip(*LABELS.values())
  photos = folder / "leftImg8bit" / split
  images = tuple(sorted(photos.glob("*/*_leftImg8bit.png")))
  if not images:
    raise InputError(f"{photos} holds no CITY/*_leftImg8bit.png: unpack leftImg8bit there")
  if labels == "panoptic":
    path = folder / "gtFine" / f"cityscapes_panoptic_{split}.json"
    listed = PanopticFile(path, path.with_suffix(""), CLASS)
    at = {name: i for i, (name, _, _) in enumerate(listed.annotations)}
    order = [at.get(_stem(image)) for image in images]
    if None in order:
      raise InputError(f"{path} lacks {images[order.index(None)].name}")
    return Panoptic(images, lambda i: listed.read(order[i]), things, names)
  if labels != "ids":
    raise InputError(f"labels={labels!r} is unknown: choose ids or panoptic")
  truth = tuple(
    folder / "gtFine" / split / image.parent.name / f"{_stem(image)}_gtFine" for image in images
  )
  for stem in truth:
    for kind in ("labelIds", "instanceIds"):
      path = stem.with_name(f"{stem.name}_{kind}.png")
      if not path.is_file():
        raise InputError(f"{path} does not exist: every image needs its label file")
  return Panoptic(images, functools.partial(_read, truth), things, names)


def _stem(image: Path) -> str:
  return image.name.removesuffix("_leftImg8bit.png")


def _read(truth: tuple[Path, ...], at: int) -> tuple[np.ndarray, np.ndarray]:
  """(map, classes); groups, counted labels without a number, are no segments."""
  path = truth[at].with_name(f"{truth[at].name}_labelIds.png")
  instances = truth[at].with_name(f"{truth[at].name}_instanceIds.png")
  labels, ids = read_ids(path), read_ids(instances)
  if labels.shape != ids.shape:
    raise InputError(f"{path} {labels.shape} and {instances} {ids.shape} differ in size")
  wrong = labels[(labels > LAST) & (labels != 255)]
  if wrong.size:
    raise InputError(f"{path} has label {wrong[0]}: labels are 0 to {LAST}, and 255")
  learned = np.isin(labels, list(LABELS))
  if (np.where(ids >= 1000, ids // 1000, ids)[learned] != labels[learned]).any():
    raise InputError(f"{instances} disagrees with {path}: numbers are 1000 label + number")
  counted = np.isin(labels, [label for label, (_, thing) in LABELS.items() if thing])
  numbers = np.where(learned & ~(counted & (ids < 1000)), ids, -1)
  classes = {n: CLASS[n // 1000 if n >= 1000 else n] for n in np.unique(numbers).tolist() if n >= 0}
  return by_number(numbers, classes)
