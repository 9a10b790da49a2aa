"""Measures that several papers share, as functions of NumPy arrays."""

import numpy as np


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
