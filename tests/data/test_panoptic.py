"""Scenes, and the layouts of Cityscapes and ADE20K on small files of their exact form."""

import json

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from h2g.data import ade20k
from h2g.data import cityscapes
from h2g.data import panoptic
from h2g.data.scenes import scenes
from h2g.errors import InputError

CITY = "aachen_000000_000019"
# Road, sky, two cars, a group of persons (no number), a license plate (-1 as 255), out of roi.
LABELS = np.array([[7, 7, 23, 23], [26, 26, 24, 255], [7, 7, 3, 3]])
IDS = np.array([[7, 7, 23, 23], [26000, 26001, 24, 255], [7, 7, 3, 3]])
NUMBERS = np.array([[7, 7, 23, 23], [26000, 26001, 24, 0], [7, 7, 0, 0]])


def save(path, array, dtype=np.uint8):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(array, dtype)).save(path)


def as_colours(ids):
  return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1)


def photo(height, width):
  return np.random.default_rng(0).integers(0, 255, (height, width, 3))


def write_cityscapes(root):
  save(root / f"leftImg8bit/train/aachen/{CITY}_leftImg8bit.png", photo(3, 4))
  save(root / f"gtFine/train/aachen/{CITY}_gtFine_labelIds.png", LABELS)
  save(root / f"gtFine/train/aachen/{CITY}_gtFine_instanceIds.png", IDS, np.uint16)
  folder = root / "gtFine/cityscapes_panoptic_train"
  save(folder / f"{CITY}_gtFine_panoptic.png", as_colours(NUMBERS))
  segment = lambda n, category, crowd=0: {
    "id": n, "category_id": category, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": crowd
  }  # fmt: skip
  content = {
    "images": [
      {"id": CITY, "width": 4, "height": 3, "file_name": f"{CITY}_gtFine_leftImg8bit.png"}
    ],
    "annotations": [
      {
        "image_id": CITY,
        "file_name": f"{CITY}_gtFine_panoptic.png",
        "segments_info": [
          segment(7, 7),
          segment(23, 23),
          segment(26000, 26),
          segment(26001, 26),
          segment(24, 24, 1),
        ],
      }
    ],
    "categories": [
      {"id": n, "name": name, "color": [0, 0, 0], "supercategory": "x", "isthing": int(thing)}
      for n, (name, thing) in cityscapes.LABELS.items()
    ],
  }
  folder.with_suffix(".json").write_text(json.dumps(content))
  return root


@pytest.mark.parametrize("labels", ["ids", "panoptic"])
def test_cityscapes(tmp_path, labels):
  split = cityscapes.load(write_cityscapes(tmp_path), "train", labels=labels)
  assert len(split.names) == 19 and sum(split.things) == 8
  _, segments, classes = panoptic.example(split, 0)
  classes = np.append(classes, -1)[segments]
  road, sky, car = (split.names.index(name) for name in ("road", "sky", "car"))
  np.testing.assert_array_equal(
    classes, [[road, road, sky, sky], [car, car, -1, -1], [road, road, -1, -1]]
  )
  assert segments[1, 0] != segments[1, 1]  # two cars, one road
  assert segments[0, 0] == segments[2, 1]


def _without(name):
  return lambda root: next(root.rglob(name)).unlink()


def _with(name, array, dtype=np.uint8):
  return lambda root: save(next(root.rglob(name)), array, dtype)


@pytest.mark.parametrize(
  "labels, harm, message",
  [
    ("ids", _without("*_leftImg8bit.png"), "leftImg8bit/train holds no"),
    ("ids", _without("*_labelIds.png"), "labelIds.png does not exist: every image needs"),
    ("ids", _with("*_leftImg8bit.png", photo(6, 4)), "has 4 x 6 pixels, its labels 4 x 3"),
    ("ids", _with("*_labelIds.png", LABELS + 10), "has label 36: labels are 0 to 33"),
    ("ids", _with("*_instanceIds.png", IDS[:2], np.uint16), "differ in size"),
    ("ids", _with("*_instanceIds.png", IDS + 1000, np.uint16), "disagrees with"),
    ("panoptic", _without("*_panoptic.png"), "panoptic.png does not exist"),
    ("panoptic", _without("*_train.json"), "cityscapes_panoptic_train.json"),
    ("panoptic", _with("*_panoptic.png", as_colours(NUMBERS + 1)), "has segment 1, which"),
    ("instances", lambda root: None, "labels='instances' is unknown: choose ids or panoptic"),
  ],
)
def test_cityscapes_that_cannot_be_used(tmp_path, labels, harm, message):
  harm(write_cityscapes(tmp_path))
  with pytest.raises(InputError, match=message):
    panoptic.example(cityscapes.load(tmp_path, "train", labels=labels), 0)


def write_ade20k(root):
  Image.fromarray(photo(2, 3).astype(np.uint8)).save(
    _made(root / "images/training/ADE_train_00000001.jpg")
  )
  save(root / "annotations/training/ADE_train_00000001.png", [[0, 1, 150], [1, 1, 13]])
  folder = root / "ade20k_panoptic_train"
  save(folder / "ADE_train_00000001.png", as_colours(np.array([[0, 1, 2], [1, 1, 3]])))
  segments = [{"id": n, "category_id": c, "iscrowd": 0} for n, c in ((1, 0), (2, 149), (3, 149))]
  content = {
    "annotations": [
      {
        "image_id": "ADE_train_00000001",
        "file_name": "ADE_train_00000001.png",
        "segments_info": segments,
      }
    ],
    "categories": [{"id": i, "name": f"c{i}", "isthing": int(i >= 50)} for i in range(150)],
  }
  folder.with_suffix(".json").write_text(json.dumps(content))
  return root


def _made(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def test_ade20k(tmp_path):
  write_ade20k(tmp_path)
  split = ade20k.load(tmp_path, "train")
  assert len(split.things) == 150 and sum(split.things) == 100
  _, segments, classes = panoptic.example(split, 0)
  np.testing.assert_array_equal(segments, [[-1, 0, 1], [0, 0, 2]])
  np.testing.assert_array_equal(classes, [0, 149, 149])
  _, segments, classes = panoptic.example(ade20k.load(tmp_path, "train", labels="semantic"), 0)
  np.testing.assert_array_equal(np.append(classes, -1)[segments], [[-1, 0, 149], [0, 0, 12]])
  (tmp_path / "annotations/training/ADE_train_00000001.png").unlink()
  with pytest.raises(InputError, match="does not exist: every image needs its label file"):
    ade20k.load(tmp_path, "train", labels="semantic")
  save(tmp_path / "annotations/training/ADE_train_00000001.png", [[0, 1, 151], [1, 1, 1]])
  with pytest.raises(InputError, match="has class 151: classes are 0 to 150"):
    panoptic.example(ade20k.load(tmp_path, "train", labels="semantic"), 0)
  path = tmp_path / "ade20k_panoptic_train.json"
  path.write_text(path.read_text().replace('"category_id": 149', '"category_id": 150'))
  with pytest.raises(InputError, match="has category 150, which is none of the 150"):
    ade20k.load(tmp_path, "train")


def test_views_keep_pixels_and_segments_together():
  ids = np.repeat(np.arange(4), 8)[:, None] * np.ones((1, 48), np.int32)
  image = Image.fromarray((60 * ids[..., None] * np.ones(3)).astype(np.uint8))
  drawn = image, ids.astype(np.int32), np.arange(4, dtype=np.int32) + 5
  config = ConfigDict(
    dict(height=40, width=40, shorter=32, longest=96, least_scale=0.5, most_scale=2.0)
  )
  config.most_segments = 3
  whole = panoptic.evaluation_view(drawn, config)
  assert whole.images.shape == (40, 40, 3) and (whole.images[-1] == panoptic.PAD).all()
  assert (whole.map[-1] == -1).all()
  assert len(set(whole.classes.tolist()) & {5, 6, 7, 8}) == 3  # the largest of four
  for seed in range(4):
    view = panoptic.training_view(drawn, config, np.random.default_rng(seed))
    again = panoptic.training_view(drawn, config, np.random.default_rng(seed))
    np.testing.assert_array_equal(view.images, again.images)
    assert view.map.shape == (40, 40) and view.classes.shape == (3,)
    present = np.unique(view.map[view.map >= 0])
    np.testing.assert_array_equal(present, np.flatnonzero(view.classes >= 0))
    # Each segment is one grey level, up to the change of all colours and its blurred borders.
    greys = [np.median(view.images[view.map == s]) for s in present]
    order = np.argsort(view.classes[present])
    assert (np.diff(np.array(greys)[order]) > 0).all()


def test_batches_in_order_visit_all_once():
  one = lambda at: panoptic.Example(
    np.full((2, 2, 3), at, np.uint8), np.zeros((2, 2), np.int32), np.array([at], np.int32)
  )
  source = lambda num: panoptic.Source(num, lambda at, rng: one(at))
  found = list(panoptic.in_order({"val": source(2), "test": source(5)}, 3))
  seen = {name: np.concatenate([f[name].classes[:, 0] for f in found]) for name in ("val", "test")}
  np.testing.assert_array_equal(seen["val"], [0, 1, -1, -1, -1, -1])
  np.testing.assert_array_equal(seen["test"], [0, 1, 2, 3, 4, -1])
  assert (found[1]["val"].map == -1).all()
  stream = panoptic.stream(source(4), 2, (0, 1))
  epoch = np.concatenate([stream[i].classes[..., 0] for i in (0, 1)], axis=1)  # [seeds, 4]
  np.testing.assert_array_equal(np.sort(epoch, axis=1), [[0, 1, 2, 3]] * 2)
  assert (stream[2].classes != stream[0].classes).any() or (
    stream[3].classes != stream[1].classes
  ).any()


def test_scenes_are_what_they_say():
  drawn = scenes(40, seed=0, size=32)
  again = scenes.__wrapped__(40, seed=0, size=32)
  np.testing.assert_array_equal(drawn.images, again.images)
  assert drawn.images.shape == (40, 32, 32, 3) and drawn.map.max() < drawn.classes.shape[1]
  for segments, classes in zip(drawn.map, drawn.classes):
    present = np.unique(segments[segments >= 0])
    np.testing.assert_array_equal(present, np.flatnonzero(classes >= 0))
  assert set(np.unique(drawn.classes)) == {-1, 0, 1, 2, 3, 4, 5}
  assert (scenes(40, seed=1, size=32).map != drawn.map).any()
