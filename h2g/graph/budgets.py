"""Budgets of HGT sampling: how strongly a sample leans on each node outside it.

Plan: what is added is scattered into an array, an entry per node where a type has few, otherwise an
entry per candidate in the order in which they were found; so neither memory nor time grows with the
nodes of a large type, apart from one table of 4 bytes a node that stands between calls. What is
drawn is found by its share of the sum of squares: first a block of 64 entries, then the entry.
"""

import numpy as np

from h2g.graph.rows import distinct

BLOCK = 64
FEW = 1 << 13  # entries up to which a key for each is cheaper than sums of blocks
DIRECT = 1 << 20  # nodes of a type up to which each has its entry
NONE = -1


class Budget:
  """Budgets of one node type; one call after another uses its memory.

  Args of the constructor:
    num_nodes: of the type.
    direct: up to so many nodes each has its entry.
  """

  def __init__(self, num_nodes: int, *, direct: int = DIRECT):
    self._entry = None if num_nodes <= direct else np.full(num_nodes, NONE, np.int32)
    self._value = np.zeros(_padded(num_nodes if self._entry is None else 0))
    self._nodes = np.zeros(0, np.int64)  # of the entries, and how many there are, beside a table
    self._count = 0

  def clear(self) -> None:
    """Forgets all budgets."""
    self._value.fill(0)
    if self._entry is not None:
      self._entry[self._nodes[: self._count]] = NONE
      self._count = 0

  def add(self, nodes: np.ndarray, share: np.ndarray) -> None:
    """Adds share[i] to the budget of nodes[i]; a node may stand there many times."""
    entry = nodes if self._entry is None else self._entries(nodes)
    np.add.at(self._value, entry.astype(np.intp), share)

  def draw(self, count: int, sampled: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Successive draws without replacement, each in proportion to the squared budget.

    Args:
      count: how many nodes; fewer come back where fewer have a budget.
      sampled: nodes that are in the sample: what they were given does not count.
      rng: the source of randomness.
    Returns:
      [<= count] int64 nodes, ascending.
    """
    value = self._value
    if self._entry is not None:
      value = value[: _padded(self._count)]
      sampled = self._entry[sampled]
      sampled = sampled[sampled != NONE]
    value[sampled] = 0
    taken = [np.zeros(0, np.int64)]
    few = len(value) <= FEW
    while count > 0:
      part = (by_keys if few else by_blocks)(value, count, rng)
      value[part] = 0
      taken.append(part)
      if few or not len(part):
        break
      few = 2 * len(part) < count  # there are hardly enough, or some have nearly all of the sum
      count -= len(part)
    drawn = np.concatenate(taken)
    # In the order of the parent: rows are read with better locality.
    return np.sort(drawn if self._entry is None else self._nodes[drawn])

  def _entries(self, nodes: np.ndarray) -> np.ndarray:
    """The entries of nodes, new ones for those that have none."""
    entry = self._entry[nodes]
    new = nodes[entry == NONE]
    if not len(new):
      return entry
    new = distinct(new, self._entry)
    end = self._count + len(new)
    if end > len(self._nodes):
      more = _padded(max(end, 2 * len(self._nodes))) - len(self._nodes)
      self._nodes = np.append(self._nodes, np.zeros(more, np.int64))
      self._value = np.append(self._value, np.zeros(more))
    self._entry[new] = np.arange(self._count, end)
    self._nodes[self._count : end] = new
    self._count = end
    return self._entry[nodes]


def by_keys(value: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
  """`count` entries, or all that are not 0: with independent exponentials e_i, the smallest
  e_i / value_i^2 are distributed as successive draws without replacement."""
  left = np.flatnonzero(value)
  if len(left) > count:
    late = rng.standard_exponential(len(left)) / np.square(value[left])
    left = left[np.argpartition(late, count - 1)[:count]]
  return left


def by_blocks(value: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
  """At most `count` entries, the first of successive draws without replacement.

  Independent draws, each entry at its first: repeats are left out. There may be too few; those that
  are missing are drawn from what remains.
  """
  blocks = value.reshape(-1, BLOCK)
  ends = np.cumsum(np.einsum("ij,ij->i", blocks, blocks))
  if not ends[-1]:
    return np.zeros(0, np.int64)
  which, where = rng.random((2, count + count // 4 + 8))
  # Both below 1 by more than the products are rounded: nobody without budget is found.
  block = np.searchsorted(ends, which * ends[-1], side="right")
  inside = np.cumsum(np.square(blocks[block]), axis=1)
  at = np.count_nonzero(inside <= (where * inside[:, -1])[:, None], axis=1)
  found = block * BLOCK + at
  _, first = np.unique(found, return_index=True)
  return found[np.sort(first)[:count]]


def _padded(count: int) -> int:
  return -(-count // BLOCK) * BLOCK
