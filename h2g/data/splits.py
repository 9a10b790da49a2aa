"""Splits of labelled nodes."""

from collections.abc import Callable
import functools

import numpy as np

from h2g.errors import InputError
from h2g.graph import HeteroGraph

NAMES = ("train", "val", "test")


def stratified_split(
  labels, *, seed: int, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
) -> dict[str, np.ndarray]:
  """Random split that keeps the share of every class; unlabelled nodes are in no part.

  Args:
    labels: [N] integers, -1 unlabelled.
    seed: the same seed gives the same split.
    fractions: of train, val and test; they add up to 1. Counts per class are rounded at the cuts,
      so that every labelled node is in exactly one part.
  Returns:
    {"train", "val", "test"}: [N] bool.
  Raises:
    InputError: fractions that are no split, or a class too small to be in every part.
  """
  labels = np.asarray(labels)
  if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
    raise InputError(
      f"split fractions {tuple(fractions)} must be three positive numbers that add up to 1"
    )
  rng = np.random.default_rng(seed)
  masks = {name: np.zeros(len(labels), bool) for name in NAMES}
  for label in range(int(labels.max(initial=-1)) + 1):
    members = rng.permutation(np.flatnonzero(labels == label))
    cuts = np.round(np.cumsum([0, *fractions]) * len(members)).astype(int)
    for name, begin, end in zip(NAMES, cuts, cuts[1:]):
      if begin == end:
        raise InputError(
          f"class {label} has {len(members)} labelled nodes, none for the {name} part of the split "
          f"{tuple(fractions)}: merge the class, drop it, or change the fractions"
        )
      masks[name][members[begin:end]] = True
  return masks


def splitter(
  graph: HeteroGraph, fractions: tuple[float, ...]
) -> Callable[..., dict[str, np.ndarray]]:
  """`splits(seed=) -> {"train", "val", "test"}` masks: stratified ones, or the graph's own.

  Args:
    graph: with labels of its target type.
    fractions: as in `stratified_split`; () takes `graph.splits`, the same for every seed.
  Raises:
    InputError: () and the graph has no such splits, or one of them has no labelled node.
  """
  if fractions:
    return functools.partial(stratified_split, graph.target_labels, fractions=tuple(fractions))
  labelled = np.asarray(graph.target_labels) >= 0
  published = {name: graph.splits[name] & labelled for name in NAMES if name in graph.splits}
  for name in NAMES:
    if name not in published or not published[name].any():
      raise InputError(
        f"the graph has no published {name} part: give the fractions of a stratified split instead"
      )
  return lambda *, seed: dict(published)
