"""The edges of a graph as two sorted lists: what edge operations read instead of scattering."""

from typing import NamedTuple

from jax import Array
import numpy as np


class EdgeIndex(NamedTuple):
  """E edges from M message rows to N receivers, readable in both directions. int32 arrays.

  Edges stand in receiver order. Positions >= indptr[-1] are padding: ignored everywhere, whatever
  stands there.

  Attributes:
    indptr: [N + 1] the edges of receiver n stand at positions indptr[n]:indptr[n + 1].
    senders: [E] message row of each edge.
    receivers: [E] receiver of each edge, ascending; padding repeats 0.
    sender_indptr: [M + 1] the edges that leave row m are
      sender_order[sender_indptr[m]:sender_indptr[m + 1]].
    sender_order: [E] positions in receiver order, sorted by sender (stable).
    edge_ids: [E] where each edge stood before sorting.
  """

  indptr: Array
  senders: Array
  receivers: Array
  sender_indptr: Array
  sender_order: Array
  edge_ids: Array


def build_edge_index(
  senders, receivers, num_senders: int, num_receivers: int, *, capacity: int | None = None
) -> EdgeIndex:
  """Sorts edges both ways, on the host, in O(E).

  Args:
    senders: [E] integers in [0, num_senders).
    receivers: [E] integers in [0, num_receivers).
    num_senders, num_receivers: M and N.
    capacity: length of the edge arrays, at least E; the surplus is padding.
  Returns:
    EdgeIndex of NumPy arrays.
  Raises:
    ValueError: lengths differ, an index is out of range, or the capacity is too small.
  """
  senders, receivers = np.asarray(senders), np.asarray(receivers)
  if senders.shape != receivers.shape or senders.ndim != 1:
    raise ValueError(f"senders {senders.shape} and receivers {receivers.shape} must be equal [E]")
  for name, ids, bound in (
    ("senders", senders, num_senders),
    ("receivers", receivers, num_receivers),
  ):
    if ids.size and (ids.min() < 0 or ids.max() >= bound):
      at = int(np.flatnonzero((ids < 0) | (ids >= bound))[0])
      raise ValueError(f"{name}[{at}] = {ids[at]} is outside [0, {bound})")
  num_edges = len(senders)
  capacity = num_edges if capacity is None else capacity
  if capacity < num_edges:
    raise ValueError(f"capacity {capacity} is smaller than the number of edges {num_edges}")

  order = np.argsort(receivers, kind="stable")
  pad = lambda ids: np.pad(ids.astype(np.int32), (0, capacity - num_edges))
  sorted_senders = senders[order]
  return EdgeIndex(
    indptr=indptr_of(receivers, num_receivers),
    senders=pad(sorted_senders),
    receivers=pad(receivers[order]),
    sender_indptr=indptr_of(senders, num_senders),
    sender_order=pad(np.argsort(sorted_senders, kind="stable")),
    edge_ids=pad(order),
  )


def indptr_of(ids: np.ndarray, num: int) -> np.ndarray:
  """[num + 1] int32 row starts of ids in [0, num) that are sorted, or will be."""
  indptr = np.zeros(num + 1, np.int32)
  np.cumsum(np.bincount(ids.astype(np.int64, copy=False), minlength=num), out=indptr[1:])
  return indptr
