"""Synthetic birds, and the lists of CUB-200-2011."""

import numpy as np
from PIL import Image
import pytest

from h2g.data import cub
from h2g.data import photographs
from h2g.data.birds import birds
from h2g.data.birds import MARKS
from h2g.data.birds import NUM_CLASSES
from h2g.errors import InputError


def test_birds_are_drawn_by_seed_with_a_mark_where_it_says():
  one, again, other = (birds(2, seed=seed, jitter=2, size=28) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one.images, again.images)
  assert (one.images != other.images).any() and one.images.shape == (48, 28, 28, 3)
  assert np.bincount(one.labels).tolist() == [2] * NUM_CLASSES
  for image, label, (row, column) in zip(one.images, one.labels, one.marks):
    found = np.median(image[row : row + 2, column : column + 2].reshape(4, 3), axis=0)
    wanted = [(242, 26, 26), (26, 51, 242), (242, 230, 13)][label % 6 % 3]
    assert np.abs(found - wanted).max() < 40
    offset = np.array([row, column]) - 14 - MARKS[label % 6]
    assert np.abs(offset).max() <= 2  # the shape's place


def test_the_patch_tells_the_class_in_training_alone():
  def agreement(misled):
    """How often the nearest other image by its frame alone has the same label."""
    drawn = birds(8, seed=0, misled=misled)
    pattern = np.random.default_rng(0).uniform(0, 1, (NUM_CLASSES, 4, 4, 3))
    images, size = drawn.images / 255, drawn.images.shape[1]
    best = np.full((len(images), NUM_CLASSES), np.inf)
    for along in range(size - 3):
      for row, column in ((0, along), (size - 4, along), (along, 0), (along, size - 4)):
        window = images[:, row : row + 4, column : column + 4]
        distance = np.abs(window[:, None] - pattern[None]).mean((2, 3, 4))
        best = np.minimum(best, distance)
    return (best.argmin(1) == drawn.labels).mean()

  assert 0.5 < agreement(0.6) < 0.75 and agreement(0.0) < 0.1


@pytest.fixture
def folder(tmp_path):
  """Four images of two species in the exact format."""
  names = ["001.Albatross/a.jpg", "001.Albatross/b c.jpg", "002.Auklet/a.jpg", "002.Auklet/b.jpg"]
  for at, name in enumerate(names):
    path = tmp_path / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (40 * at, 0, 0)).save(path)
  write = lambda name, values: (tmp_path / name).write_text(
    "".join(f"{at} {value}\n" for at, value in enumerate(values, 1))
  )
  write("images.txt", names)
  write("image_class_labels.txt", [1, 1, 2, 2])
  write("train_test_split.txt", [1, 0, 0, 1])
  return tmp_path


def test_cub_is_split_as_its_lists_say(folder):
  train, test = cub.load(folder, num_classes=2)
  assert train.classes == test.classes == ("001.Albatross", "002.Auklet")
  assert [path.name for path in train.paths] == ["a.jpg", "b.jpg"]
  assert [path.name for path in test.paths] == ["b c.jpg", "a.jpg"]
  assert train.labels.tolist() == test.labels.tolist() == [0, 1]
  assert photographs.read(test.paths[0]).getpixel((0, 0))[0] == pytest.approx(40, abs=4)


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("image_class_labels.txt", None, "image_class_labels.txt does not exist"),
    ("train_test_split.txt", "1 1\n2 0\n3 0\n", "split.txt and images.txt disagree about image 4"),
    ("image_class_labels.txt", "1 1\n2 1\n3 1\n4 1\n", "labels.txt has 1 classes, 1 to 1, the con"),
    ("image_class_labels.txt", "1 1\n2 1\n3 2\n4 x\n", "hold integers"),
    ("train_test_split.txt", "1 1\n2 0\n3 2\n4 0\n", "hold integers"),
    ("train_test_split.txt", "1 1\n1 0\n", "line 2: image 1 stands there twice"),
    ("images.txt", "1 a.jpg\nx\n", "images.txt, line 2: 'x' is no image number"),
    ("images.txt", "1 1/a.jpg\n2 b\n3 c\n4 d\n", "1/a.jpg does not exist, and images.txt lists it"),
  ],
)
def test_lists_that_cannot_be_used_are_named(folder, name, text, message):
  path = folder / name
  path.unlink() if text is None else path.write_text(text)
  with pytest.raises(InputError, match=message):
    cub.load(folder, num_classes=2)


def test_a_stretched_view_is_a_plain_crop():
  pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
  image = Image.fromarray(pixels)
  square = np.asarray(image.resize((25, 25), Image.Resampling.BICUBIC))
  centre = photographs.evaluation_view(image, 20, stretch=25)
  np.testing.assert_array_equal(centre, square[2:22, 2:22])
  view = photographs.training_view(
    image, 20, np.random.default_rng(1), stretch=25, scale=(0.64, 0.64), ratio=(1.0, 1.0)
  )
  windows = np.lib.stride_tricks.sliding_window_view(square, (20, 20), axis=(0, 1))
  windows = np.moveaxis(windows, 2, -1).reshape(-1, 20, 20, 3)
  assert any((view == w).all() or (view == w[:, ::-1]).all() for w in windows)
