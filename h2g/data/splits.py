"""Splits of labelled nodes."""

import numpy as np

from h2g.errors import InputError

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
