"""Triplets (anchor, positive, negative) of one attribute, drawn uniformly from tables of ranks.

For each attribute the labelled items are sorted by their value once. Then an item with the same
value, or another value, is one random rank away: no search, no rejection, so it runs inside a
compiled step too.
"""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.errors import InputError


class TripletIndex(NamedTuple):
  """Labelled items of K attributes over N items, sorted by value. All int32.

  order: [K, N] items, those with equal values side by side; 0 beyond the labelled ones.
  start, count: [K, N] first rank and number of ranks that hold the value of the item at a rank.
  labelled: [K] how many items have a label.
  """

  order: np.ndarray
  start: np.ndarray
  count: np.ndarray
  labelled: np.ndarray


class Triplets(NamedTuple):
  """conditions, anchors, positives, negatives: [B] int32, an attribute and three items."""

  conditions: Array
  anchors: Array
  positives: Array
  negatives: Array


def triplet_index(labels: np.ndarray, names=None) -> TripletIndex:
  """The tables of a label matrix.

  Args:
    labels: [N, K] int, negative where an item has no label. A value that one item alone has is
      left out: it has no positive.
    names: of the attributes, for messages.
  Raises:
    InputError: an attribute has fewer than two values with two items each.
  """
  labels = np.asarray(labels)
  num, attributes = labels.shape
  tables = np.zeros((3, attributes, num), np.int32)
  labelled = np.zeros(attributes, np.int32)
  for k, values in enumerate(labels.T):
    sizes = np.bincount(values[values >= 0], minlength=1)
    items = np.flatnonzero((values >= 0) & (sizes[np.maximum(values, 0)] > 1))
    items = items[np.argsort(values[items], kind="stable")]
    if len(np.unique(values[items])) < 2:
      name = k if names is None else names[k]
      raise InputError(f"attribute {name}: needs two values with two labelled items each")
    sorted_values = values[items]
    start = np.searchsorted(sorted_values, sorted_values)
    tables[:, k, : len(items)] = items, start, sizes[sorted_values]
    labelled[k] = len(items)
  return TripletIndex(*tables, labelled)


def sample_triplets(index: TripletIndex, conditions: Array, key: Array) -> Triplets:
  """Draws a triplet for each condition.

  Args:
    index: of the labels.
    conditions: [B] int32 attributes.
    key: PRNG key.
  Returns:
    Triplets: a uniform anchor, a uniform other item of its value, a uniform item of another value.
  """
  uniform = jax.random.uniform(key, (3, *conditions.shape))
  # A float below 1 times a count may round up to the count.
  draw = lambda u, count: jnp.minimum((u * count.astype(u.dtype)).astype(jnp.int32), count - 1)
  table = lambda values, ranks: jnp.asarray(values)[conditions, ranks]
  total = jnp.asarray(index.labelled)[conditions]
  anchor = draw(uniform[0], total)
  start, count = table(index.start, anchor), table(index.count, anchor)
  positive = start + (anchor - start + 1 + draw(uniform[1], count - 1)) % count
  negative = (start + count + draw(uniform[2], total - count)) % total
  ranks = (anchor, positive, negative)
  return Triplets(conditions, *[table(index.order, rank) for rank in ranks])


def sample_identities(rows: Array, num: int, per_identity: int, key: Array) -> Array:
  """Items of a batch for batch-hard triplets: some identities, some items of each.

  Args:
    rows: [identities, items] int32, the items of each identity.
    num, per_identity: how many are drawn, without replacement.
    key: PRNG key.
  Returns:
    [num * per_identity] int32, identity by identity.
  Source: arXiv 1703.07737 sec. 2 (PK batches).
  """
  identity_key, item_key = jax.random.split(key)
  identities = jax.random.permutation(identity_key, len(rows))[:num]
  mixed = jax.random.permutation(item_key, rows[identities], axis=1, independent=True)
  return mixed[:, :per_identity].reshape(-1)
