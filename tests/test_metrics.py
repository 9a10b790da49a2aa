"""Measures against cases counted by hand."""

import numpy as np
import pytest

from h2g.metrics import average_precision
from h2g.metrics import cohen_kappa
from h2g.metrics import confusion
from h2g.metrics import f1
from h2g.metrics import knn_accuracy
from h2g.metrics import linear_probe
from h2g.metrics import map_entropy
from h2g.metrics import map_similarity
from h2g.metrics import mean_iou
from h2g.metrics import overlaps
from h2g.metrics import panoptic_counts
from h2g.metrics import panoptic_quality
from h2g.metrics import PanopticCounts
from h2g.metrics import retrieval_map


def test_average_precision_by_hand():
  scores = np.array([[0.9, 0.8, 0.7, 0.1]] * 3)
  relevant = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]], bool)
  np.testing.assert_allclose(average_precision(scores, relevant), [(1 + 2 / 3) / 2, 0.25, 1.0])
  assert np.isnan(average_precision(scores[:1], np.zeros((1, 4), bool)))[0]


def test_map_leaves_out_what_has_no_label_or_no_match():
  gallery = np.eye(3)
  queries = np.array([[1.0, 0.5, 0], [0, 1, 0.5], [0, 0, 1]])
  found = retrieval_map(queries, np.array([0, -1, 7]), gallery, np.array([1, 0, -1]))
  assert found == pytest.approx(0.5)  # one query is left; its match is second of two
  assert np.isnan(retrieval_map(queries, np.array([5, 5, 5]), gallery, np.array([1, 0, 2])))


def test_a_linear_probe_finds_what_is_linear_and_nothing_else():
  rng = np.random.default_rng(0)
  labels, other = rng.integers(0, 3, (2, 600))
  x = np.eye(3)[labels] @ rng.normal(size=(3, 8)) + 0.01 * rng.normal(size=(600, 8))
  assert linear_probe(x[:400], labels[:400], x[400:], labels[400:]) > 0.99
  assert linear_probe(x[:400], other[:400], x[400:], other[400:]) < 0.5


def test_the_nearest_vote_by_cosine():
  x = np.array([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [0.3, 1.0], [0.2, 1.0]])
  labels = np.array([0, 0, 1, 1, 1])
  asked, right = np.array([[2.0, 0.1], [0.1, 3.0]]), np.array([0, 1])
  found = knn_accuracy(x, labels, asked, right, ks=(1, 5, 9), temperatures=(0.07, 100.0))
  assert set(found) == {(1, 0.07), (1, 100.0), (5, 0.07), (5, 100.0)}
  assert found[1, 0.07] == found[5, 0.07] == 1.0
  assert found[5, 100.0] == 0.5  # all vote alike: the larger class takes both


def test_maps_that_share_nothing_and_maps_that_are_equal():
  apart, same = np.eye(4)[None, :3], np.full((2, 3, 4), 0.25)
  assert map_similarity(apart) == 0 and map_similarity(same) == pytest.approx(1)
  assert map_entropy(apart) == 0 and map_entropy(same) == pytest.approx(1)
  assert np.isnan(map_similarity(same[:, :1]))


def test_f1_and_kappa_by_hand():
  labels, predicted = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0, 0, 0])
  np.testing.assert_array_equal(confusion(labels, predicted), [[4, 1], [1, 2]])
  assert f1(labels, predicted) == pytest.approx(2 / 3)
  assert cohen_kappa(labels, predicted) == pytest.approx((0.75 - 34 / 64) / (1 - 34 / 64))
  assert cohen_kappa(labels, 0 * labels) == 0.0 and f1(0 * labels, 0 * labels) == 0.0
  assert np.isnan(cohen_kappa(0 * labels, 0 * labels)) and cohen_kappa(labels, labels) == 1.0


def test_panoptic_quality_by_hand():
  """Two classes; one pair matched at IoU 3/4, one prediction at IoU 1/2: a miss and a mistake."""
  true = np.array([0, 0, 0, 0, 1, 1, 1, 1, -1, -1])
  predicted = np.array([0, 0, 0, -1, 1, 1, 2, 2, 3, 3])
  counts = panoptic_counts(predicted, np.array([5, 4, 4, 4, -1]) - 4, true, np.array([1, 0, -1]), 2)
  np.testing.assert_allclose(counts.matched, [0, 1])
  np.testing.assert_allclose(counts.iou, [0, 0.75])
  np.testing.assert_allclose(counts.false, [2, 0])  # the one on void alone is no mistake
  np.testing.assert_allclose(counts.missed, [1, 0])
  assert panoptic_quality(counts) == pytest.approx(0.75 / 2)
  perfect = panoptic_counts(true, np.array([1, 0]), true, np.array([1, 0]), 3)
  assert panoptic_quality(perfect) == 1.0  # the class that nobody has is left out
  wrong_class = panoptic_counts(true, np.array([0, 1]), true, np.array([1, 0]), 2)
  assert panoptic_quality(wrong_class) == 0.0
  assert np.isnan(panoptic_quality(PanopticCounts(*np.zeros((4, 2)))))


def test_mean_iou_by_hand():
  true, predicted = np.array([[0, 0, 1, -1]]), np.array([[0, 1, 1, 1]])
  confusion = overlaps(true, predicted, 3, 3)
  np.testing.assert_array_equal(confusion, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
  assert mean_iou(confusion) == pytest.approx(0.5)
  assert np.isnan(mean_iou(np.zeros((2, 2))))
