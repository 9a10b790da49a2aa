"""Folders of images: what is read, that it can be resumed, and what is wrong with a folder."""

import itertools

import grain
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from h2g.data import image_folder
from h2g.data import photographs
from h2g.errors import InputError

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture
def root(tmp_path):
  for split, count in (("train", 3), ("val", 2)):
    for name, colour in COLOURS.items():
      folder = tmp_path / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        ending = ("png", "JPEG", "jpg")[i]
        Image.new("RGB", (40 + i, 30), colour).save(folder / f"{i}.{ending}", quality=95)
      (folder / "notes.txt").write_text("not an image")
  return tmp_path


def test_images_and_labels_of_both_parts(root):
  train, val = image_folder.load(root, num_classes=2)
  assert train.classes == ("blue", "red") and len(train.paths) == 6 and len(val.paths) == 4
  np.testing.assert_array_equal(val.labels, [0, 0, 1, 1])
  batches = list(image_folder.eval_batches(val, size=16, batch_size=3))
  assert [batch.labels.tolist() for batch in batches] == [[0, 0, 1], [1, -1, -1]]
  assert batches[0].images.dtype == np.uint8 and batches[0].images.shape == (3, 16, 16, 3)
  np.testing.assert_allclose(batches[0].images[2, 8, 8], COLOURS["red"], atol=3)


def test_the_stream_sees_every_image_once_an_epoch_and_can_be_put_back(root):
  train, _ = image_folder.load(root)
  stream = image_folder.train_stream(train, size=8, batch_size=2, seeds=(0, 1))
  first = stream[0]
  assert first.images.shape == (2, 2, 8, 8, 3) and first.labels.shape == (2, 2)
  for epoch in range(2):
    labels = np.concatenate([stream[3 * epoch + i].labels for i in range(3)], axis=1)
    np.testing.assert_array_equal(labels.sum(1), [3, 3])
  red = first.labels == 1
  assert (first.images[red][..., 0] > 250).all() and (first.images[~red][..., 2] > 250).all()
  read = lambda: iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=2)))
  ahead = read()
  for _ in itertools.repeat(None, 4):
    next(ahead)
  state, again = ahead.get_state(), read()
  again.set_state(state)
  for a, b in zip(next(ahead), next(again)):
    np.testing.assert_array_equal(a, b)


def test_views(root):
  ramp = np.broadcast_to(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], (50, 100, 3))
  image = Image.fromarray(np.ascontiguousarray(ramp))
  rng = np.random.default_rng(0)
  views = [photographs.training_view(image, 20, rng).astype(int) for _ in range(20)]
  rises = [np.sign(view[10, -1, 0] - view[10, 0, 0]) for view in views]
  assert {-1, 1} <= set(rises)  # some are mirrored
  shares = [abs(view[10, -1, 0] - view[10, 0, 0]) for view in views]
  assert max(shares) > 2 * min(shares)  # of different widths
  whole = photographs.training_view(image, 20, rng, scale=(1, 1), ratio=(2, 2)).astype(int)
  assert abs(whole[0, 0, 0] - whole[0, -1, 0]) > 180
  # A strip of no allowed shape: its centre.
  strip = Image.fromarray(np.ascontiguousarray(ramp[:4]))
  assert photographs.training_view(strip, 8, rng, scale=(1, 1)).shape == (8, 8, 3)
  # Half of the shorter side from the middle of the longer.
  centre = photographs.evaluation_view(image, 50, resize=50).astype(int)
  np.testing.assert_array_equal(centre, ramp[:, 25:75])
  assert photographs.evaluation_view(strip, 16).shape == (16, 16, 3)
  black = photographs.normalise(jnp.zeros((2, 2, 3), jnp.uint8))
  np.testing.assert_allclose(black[0, 0], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], 1e-5)


def remove(path):
  for file in path.iterdir():
    file.unlink()
  path.rmdir()


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda root: (root / "val").rename(root / "test"), "val does not exist"),
    (lambda root: remove(root / "val/red"), "val lacks the class folders red, which train has"),
    (lambda root: remove(root / "train/red"), "train lacks the class folders red, which val has"),
    (lambda root: (root / "val/red").rename(root / "val/rot"), "val lacks the class folders red"),
    (lambda root: [f.unlink() for f in (root / "train/red").iterdir()], "red holds no images"),
    (lambda root: None, "holds 2 classes, the config has num_classes=3"),
  ],
)
def test_a_folder_that_cannot_be_used(root, damage, message):
  damage(root)
  with pytest.raises(InputError, match=message):
    image_folder.load(root, num_classes=3)


def test_loose_images_are_no_class_folders(root):
  for split in ("train", "val"):
    for name in COLOURS:
      for file in (root / split / name).iterdir():
        file.rename(root / split / f"{name}{file.name}")
      (root / split / name).rmdir()
  with pytest.raises(InputError, match="train holds 6 images but no class folders: sort"):
    image_folder.load(root)


@pytest.mark.parametrize("content", [b"no image", None], ids=["other bytes", "cut short"])
def test_an_image_that_cannot_be_decoded_is_named(root, content):
  path = root / "train" / "red" / "1.JPEG"
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
  Image.fromarray(noise).save(path)
  path.write_bytes(path.read_bytes()[:900] if content is None else content)
  train, _ = image_folder.load(root)
  stream = image_folder.train_stream(train, size=8, batch_size=6)
  with pytest.raises(InputError, match=r"1\.JPEG cannot be decoded"):
    next(iter(stream.to_iter_dataset()))
  with pytest.raises(InputError, match="batch_size=7 must be 1 to the 6 images"):
    image_folder.train_stream(train, size=8, batch_size=7)
  with pytest.raises(InputError, match=r"none\.jpg does not exist"):
    photographs.read(root / "none.jpg")
