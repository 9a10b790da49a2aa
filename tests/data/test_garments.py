"""Synthetic garments and the triplets drawn from attributes."""

import jax
import numpy as np
import pytest

from h2g.data.garments import ATTRIBUTES
from h2g.data.garments import garments
from h2g.data.triplets import sample_triplets
from h2g.data.triplets import triplet_index
from h2g.errors import InputError


def test_garments_are_drawn_from_independent_attributes():
  found = garments(600, seed=0)
  assert found.images.shape == (600, 32, 32, 3) and found.images.dtype == np.uint8
  again = garments(600, seed=0)
  np.testing.assert_array_equal(found.images, again.images)
  assert (garments(600, seed=1).labels != found.labels).any()
  for column, names in zip(found.labels.T, ATTRIBUTES.values()):
    assert np.bincount(column).shape == (len(names),) and np.bincount(column).min() > 60
  assert np.abs(np.corrcoef(found.labels.T) - np.eye(5)).max() < 0.15


def test_triplets_agree_and_disagree_in_their_attribute_alone():
  rng = np.random.default_rng(0)
  labels = rng.integers(-1, 3, (50, 4))
  labels[0, 1] = 9  # a value that one item alone has
  conditions = np.arange(4000, dtype=np.int32) % 4
  found = sample_triplets(triplet_index(labels), conditions, jax.random.key(0))
  of = lambda items: labels[np.asarray(items), conditions]
  a, p, n = of(found.anchors), of(found.positives), of(found.negatives)
  assert (a >= 0).all() and (n >= 0).all() and (a != 9).all()
  assert (a == p).all() and (a != n).all()
  assert (np.asarray(found.anchors) != np.asarray(found.positives)).all()
  # Uniform: every labelled item of attribute 0 comes up as an anchor.
  seen = set(np.asarray(found.anchors)[conditions == 0].tolist())
  assert seen == set(np.flatnonzero(labels[:, 0] >= 0).tolist())


def test_an_attribute_without_two_values_is_named():
  with pytest.raises(InputError, match="attribute length: needs two values"):
    triplet_index(np.array([[0, 1], [1, 1], [0, 1], [1, -1]]), ("colour", "length"))
