"""Digits on canvases: what is where."""

import numpy as np
import pytest

from h2g.data import canvases
from h2g.data import digits
from h2g.errors import InputError


def test_the_digit_is_whole_and_its_label_and_corner_are_right():
  found = digits.load()
  made = canvases.canvases(found.images[:50], found.labels[:50], 40, seed=1, noise=0.0)
  assert made.images.shape == (40, 24, 24, 1) and made.images.dtype == np.uint8
  for image, label, (row, column) in zip(*made):
    cut = image[row : row + 8, column : column + 8, 0] / 255
    # Whatever overlaps only brightens: a digit of this label lies below the cut.
    below = (found.images[:50] <= cut[None] + 0.01).all((1, 2))
    assert label in found.labels[:50][below]
  bare = canvases.canvases(found.images[:50], found.labels[:50], 5, seed=1, noise=0.0, scraps=0)
  inked = [image > 0 for image in bare.images]
  assert all(mask.sum() <= 64 for mask in inked)
  other = canvases.canvases(found.images[:50], found.labels[:50], 40, seed=1, noise=0.0)
  np.testing.assert_array_equal(made.images, other.images)


def test_a_grid_keeps_what_is_drawn_whole_in_patches():
  found = digits.load()
  made = canvases.canvases(found.images[:50], found.labels[:50], 200, seed=1, noise=0.0, grid=4)
  assert not (made.boxes % 4).any() and made.boxes.max() == 16 and made.boxes.min() == 0
  patches = made.images.reshape(200, 6, 4, 6, 4).any((2, 4)).sum((1, 2))
  assert patches.max() <= 6  # four of the digit, one of each scrap


def test_parts_have_their_own_digits():
  parts = canvases.splits(train=300, val=50, test=60, scraps=0, noise=0.0)
  assert [len(part.labels) for part in parts.values()] == [300, 50, 60]
  seen = [
    {image[r : r + 8, c : c + 8].tobytes() for image, _, (r, c) in zip(*part)}
    for part in parts.values()
  ]
  assert not seen[0] & seen[2] and not seen[0] & seen[1] and not seen[1] & seen[2]
  with pytest.raises(InputError, match="size=7 must be 8 or more"):
    canvases.splits(train=1, val=1, test=1, size=7)
