"""Measures that several papers share, as functions of NumPy arrays.

Those of segmentation count first (`overlaps`, `panoptic_counts`; JAX arrays as well), so that
counts of many images add up, and divide at the end.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
  """Mean over the relevant items of the precision at their rank.

  AP = 1/R sum_r relevant[r] * (relevant among the first r) / r, by falling score.

  Args:
    scores: [Q, N] float; of equal scores the first stands first.
    relevant: [Q, N] bool.
  Returns:
    [Q] float64; NaN where nothing is relevant.
  """
  order = np.argsort(-scores, axis=1, kind="stable")
  hits = np.take_along_axis(relevant, order, axis=1)
  precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
  with np.errstate(invalid="ignore"):
    return (precision * hits).sum(1) / hits.sum(1)


def retrieval_map(
  queries: np.ndarray, query_labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray
) -> float:
  """Mean average precision of ranking a gallery by inner product; relevant: the same label.

  Queries and gallery items with a negative label, and queries without a match, are left out.

  Args:
    queries: [Q, E] float, unit norm where cosine is meant.
    query_labels: [Q] int.
    gallery: [N, E] float.
    gallery_labels: [N] int.
  Returns:
    In [0, 1]; NaN where no query is left.
  """
  asked, kept = query_labels >= 0, gallery_labels >= 0
  scores = queries[asked] @ gallery[kept].T
  relevant = query_labels[asked, None] == gallery_labels[None, kept]
  matched = relevant.any(1)
  if not matched.any():
    return float("nan")
  return float(average_precision(scores[matched], relevant[matched]).mean())


def linear_probe(
  x: np.ndarray, labels: np.ndarray, test_x: np.ndarray, test_labels: np.ndarray, ridge=1e-3
) -> float:
  """Accuracy of ridge regression from standardised features to one-hot labels.

  Args:
    x: [N, E] float, labels: [N] int: what is fitted; ridge: penalty over N.
    test_x, test_labels: what is predicted.
  """
  mean, scale = x.mean(0), x.std(0) + 1e-8
  bias = lambda x: np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
  a, targets = bias(x.astype(np.float64)), np.eye(labels.max() + 1)[labels]
  penalty = ridge * len(a) * np.diag([1.0] * x.shape[1] + [0.0])
  weights = np.linalg.solve(a.T @ a + penalty, a.T @ targets)
  return float(((bias(test_x) @ weights).argmax(1) == test_labels).mean())


def knn_accuracy(
  x: np.ndarray,
  labels: np.ndarray,
  test_x: np.ndarray,
  test_labels: np.ndarray,
  *,
  ks: Sequence[int] = (5, 10, 15, 20, 50, 100, 200),
  temperatures: Sequence[float] = (0.07, 0.1, 0.2),
) -> dict[tuple[int, float], float]:
  """Accuracy of the k nearest items by cosine, each voting with exp(cosine / temperature).

  Args:
    x: [N, E] float, labels: [N] int: the items. test_x, test_labels: what is predicted.
    ks: those above N are left out. temperatures: of the votes.
  Returns:
    {(k, temperature): accuracy}.
  Source: arXiv 1805.01978 sec. 3.4.
  """
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  cosine = unit(test_x.astype(np.float64)) @ unit(x.astype(np.float64)).T
  order = np.argsort(-cosine, axis=1, kind="stable")[:, : max(ks)]
  near = np.take_along_axis(cosine, order, axis=1)
  votes = np.eye(labels.max() + 1)[labels[order]]  # [Q, k, classes]
  found = {}
  for k in (k for k in ks if k <= len(x)):
    for temperature in temperatures:
      weights = np.exp((near[:, :k] - 1) / temperature)
      chosen = np.einsum("qk,qkc->qc", weights, votes[:, :k]).argmax(1)
      found[k, temperature] = float((chosen == test_labels).mean())
  return found


def knn_chosen(train: Pair, val: Pair, test: Pair) -> float:
  """Accuracy of `knn_accuracy` on the test part, k and temperature chosen on the validation part.

  Args:
    train, val, test: (x [N, E], labels [N]) each.
  """
  on_val, on_test = (knn_accuracy(*train, *part) for part in (val, test))
  return on_test[max(on_val, key=on_val.get)]


def map_similarity(weights: np.ndarray) -> float:
  """Mean cosine between two maps of one image: low where the maps are complementary.

  Args:
    weights: [B, M, N] float, not negative; M maps over N tokens.
  Returns:
    In [0, 1], the mean over images and pairs of maps; NaN for a single map.
  """
  norm = np.linalg.norm(weights, axis=-1, keepdims=True)
  unit = weights / np.maximum(norm, 1e-30)
  cosine = np.einsum("bmn,bkn->bmk", unit, unit)
  off = ~np.eye(cosine.shape[1], dtype=bool)
  return float(cosine[:, off].mean()) if off.any() else float("nan")


def map_entropy(weights: np.ndarray) -> float:
  """Mean over maps of -sum_n a_n ln a_n / ln N: 0 looks at one token, 1 at all alike.

  Args:
    weights: [..., N] float; maps that sum to one, N > 1.
  """
  logs = np.log(np.maximum(weights, 1e-30))
  return float(-(weights * logs).sum(-1).mean() / np.log(weights.shape[-1]))


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int = 2) -> np.ndarray:
  """[K, K] int64 counts: rows the label, columns the prediction; both [N] int in [0, K)."""
  pairs = np.asarray(labels).astype(np.int64) * num_classes + np.asarray(predicted)
  return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def f1(labels: np.ndarray, predicted: np.ndarray, positive: int = 1) -> float:
  """2 TP / (2 TP + FP + FN) of one class; 0 where it is neither present nor predicted."""
  hit, said = np.asarray(labels) == positive, np.asarray(predicted) == positive
  total = hit.sum() + said.sum()
  return float(2 * (hit & said).sum() / total) if total else 0.0


def cohen_kappa(labels: np.ndarray, predicted: np.ndarray, num_classes: int = 2) -> float:
  """(p_o - p_e) / (1 - p_e): agreement beyond that of independent raters with the same shares.

  NaN where both always name one class. Source: J. Cohen 1960.
  """
  table = confusion(labels, predicted, num_classes) / max(len(labels), 1)
  chance = float(table.sum(0) @ table.sum(1))
  return float((np.trace(table) - chance) / (1 - chance)) if chance < 1 else float("nan")


def two_classes(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
  """f1 of class 1, kappa and accuracy of predicted classes; both [N], 0 or 1."""
  right = float((np.asarray(labels) == np.asarray(predicted)).mean())
  kappa = cohen_kappa(labels, predicted)
  return {"f1": f1(labels, predicted), "kappa": kappa, "accuracy": right}


def overlaps(a: Any, b: Any, num_a: int, num_b: int) -> Any:
  """[num_a, num_b] float32: pixels that are i in one map and j in the other.

  With maps of true and predicted classes this is the confusion matrix. NumPy or JAX arrays.

  Args:
    a: integers of any shape; outside 0..num_a - 1 a pixel counts nowhere.
    b: like a.
  """
  one_hot = lambda ids, num: (ids.reshape(-1, 1) == np.arange(num)[None]).astype(np.float32)
  return one_hot(a, num_a).T @ one_hot(b, num_b)


def mean_iou(confusion: np.ndarray) -> float:
  """Mean over classes of TP / (TP + FP + FN), of [K, K] true x predicted pixels.

  Classes that are neither true nor predicted anywhere are left out; NaN where none is left.
  """
  confusion = np.asarray(confusion, np.float64)
  hit = np.diag(confusion)
  union = confusion.sum(0) + confusion.sum(1) - hit
  return float(np.mean(hit[union > 0] / union[union > 0])) if (union > 0).any() else float("nan")


class PanopticCounts(NamedTuple):
  """Per class [K]: matched segments, their summed IoU, predicted and true ones without a match."""

  matched: Any
  iou: Any
  false: Any
  missed: Any


def panoptic_counts(
  predicted: Any, predicted_classes: Any, true: Any, true_classes: Any, num_classes: int
) -> PanopticCounts:
  """Counts of one image. NumPy or JAX arrays.

  Segments of one class match where IoU > 0.5, which can hold for one pair at most. Pixels without
  true segment count for neither union; a prediction that is mostly on such pixels is no mistake.

  Args:
    predicted: [..] int, the segment of each pixel, -1 where none.
    predicted_classes: [P] int; -1 where there is no segment.
    true, true_classes: [..] and [T] likewise.
  Source: arXiv 1801.00868 eq. 1 and sec. 4.2 (void).
  """
  both = overlaps(predicted, true, len(predicted_classes), len(true_classes))
  area = lambda ids, num: overlaps(ids, ids * 0, num, 1)[:, 0]
  own, full = area(predicted, len(predicted_classes)), area(true, len(true_classes))
  void = own - both.sum(1)
  union = (own - void)[:, None] + full[None] - both
  real = (predicted_classes >= 0) & (own > 0), (true_classes >= 0) & (full > 0)
  same = (predicted_classes[:, None] == true_classes[None]) & real[0][:, None] & real[1][None]
  pairs = same & (2 * both > union)
  iou = pairs * (both / (union + (union == 0)))
  of_class = lambda ids: ids[:, None] == np.arange(num_classes)[None]
  count = lambda rows, ids: (rows[:, None] * of_class(ids)).sum(0)
  lone = real[0] & ~pairs.any(1) & (2 * void <= own)
  return PanopticCounts(
    count(pairs.any(0), true_classes),
    count(iou.sum(0), true_classes),
    count(lone, predicted_classes),
    count(real[1] & ~pairs.any(0), true_classes),
  )


def panoptic_quality(counts: PanopticCounts) -> float:
  """Mean over classes of sum IoU / (TP + FP / 2 + FN / 2); NaN where there is no segment at all."""
  matched, iou, false, missed = (np.asarray(x, np.float64) for x in counts)
  total = matched + false / 2 + missed / 2
  return float(np.mean(iou[total > 0] / total[total > 0])) if (total > 0).any() else float("nan")
