"""Heterophily: an example by hand, brute force on random graphs, and the published figures."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from h2g import data
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import homophily


def by_hand():
  """Six people a..f in two clubs: club 0 has a, b, c; club 1 has c, d, e. f is in none.

  Classes: a 0, b 0, c 1, d 1, e unlabelled, f 0.
  """
  return HeteroGraph.from_arrays(
    nodes={"person": {"labels": np.array([0, 0, 1, 1, -1, 0])}, "club": {"num_nodes": 2}},
    edges={("person", "in", "club"): np.array([[0, 1, 2, 2, 3, 4], [0, 0, 0, 1, 1, 1]])},
    target="person",
  ).with_reverses()


def test_six_people_by_hand():
  report = homophily.metapath_homophily(by_hand())
  # One metapath: person -in-> club -rev_in-> person. Induced pairs without self pairs:
  #   club 0: ab ba ac ca bc cb; club 1: cd dc (ce ec de ed have an unlabelled end: not counted).
  # Ordered labelled pairs: 8. Equal labels: ab, ba, cd, dc = 4, so edge homophily is 4/8.
  (path,) = report.metapaths
  assert path == (("person", "in", "club"), ("club", "rev_in", "person"))
  assert report.metapaths[path].pairs == 8
  assert report.edge == pytest.approx(0.5)
  # Pairs that arrive at class 0 (a: ba, ca; b: ab, cb): 4, of which 2 equal, h_0 = 1/2.
  # At class 1 (c: ac, bc, dc; d: cd): 4, of which 2 equal, h_1 = 1/2.
  # Class shares among the five labelled: 3/5 and 2/5.
  # 1 / (2 - 1) * (max(0, 0.5 - 0.6) + max(0, 0.5 - 0.4)) = 0.1.
  assert report.class_insensitive == pytest.approx(0.1)
  # Ends: class 0 holds 8 of 16, so does class 1; chance 1/4 + 1/4; (0.5 - 0.5) / 0.5 = 0.
  assert report.adjusted == pytest.approx(0.0)
  assert report.h2_index == pytest.approx(1.0)


def test_self_pairs_are_an_option():
  report = homophily.metapath_homophily(by_hand(), self_pairs=True)
  # aa, bb, cc (both clubs, one pair), dd join the 8: 12 pairs, 8 of them equal.
  assert report.metapaths[next(iter(report.metapaths))].pairs == 12
  assert report.edge == pytest.approx(8 / 12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 64))
def test_chunks_equal_brute_force(seed, self_pairs, cells):
  rng = np.random.default_rng(seed)
  num, middle = int(rng.integers(3, 12)), int(rng.integers(1, 6))
  labels = rng.integers(-1, 3, num)
  labels[:2] = (0, 1)
  graph = HeteroGraph.from_arrays(
    nodes={"n": {"labels": labels}, "m": {"num_nodes": middle}},
    edges={
      ("n", "r", "m"): rng.integers(0, (num, middle), (int(rng.integers(0, 25)), 2)).T,
      ("m", "s", "n"): rng.integers(0, (middle, num), (int(rng.integers(0, 25)), 2)).T,
      ("n", "t", "n"): rng.integers(0, num, (2, int(rng.integers(1, 20)))),
      ("n", "empty", "n"): np.zeros((2, 0), int),
    },
    target="n",
    num_classes=3,
  )
  dense, every_walk = {}, {}
  for name, edges in graph.edges.items():
    dense[name] = np.zeros((graph.num_nodes[name[0]], graph.num_nodes[name[2]]))
    dense[name][edges.senders, edges.receivers] = 1
  expected = {}
  for first, second in homophily.metapaths(graph.schema):
    walks = dense[first] @ dense[second]
    walks[labels < 0] = walks[:, labels < 0] = 0
    if not self_pairs:
      np.fill_diagonal(walks, 0)
    pairs = dense[first] @ dense[second] > 0
    pairs &= (labels[:, None] >= 0) & (labels[None, :] >= 0)
    if not self_pairs:
      np.fill_diagonal(pairs, False)
    u, v = np.nonzero(pairs)
    if len(set(labels[u]) | set(labels[v])) < 2:
      continue
    p = np.bincount(np.concatenate([labels[u], labels[v]]), minlength=3) / (2 * len(u))
    h = np.mean(labels[u] == labels[v])
    insensitive = 0.0
    for k in range(3):
      if (labels[v] == k).any():
        share = (labels == k).sum() / (labels >= 0).sum()
        insensitive += max(0.0, (labels[u] == k)[labels[v] == k].mean() - share) / 2
    adjusted = (h - (p**2).sum()) / (1 - (p**2).sum())
    expected[first, second] = (len(u), h, insensitive, adjusted)
    equal = labels[:, None] == labels[None, :]
    every_walk[first, second] = (walks.sum(), walks[equal].sum() / walks.sum())
  before = homophily.CELLS
  homophily.CELLS = cells  # tiny chunks: several rows of chunks and pieces of hubs
  try:
    if not expected:
      with pytest.raises(InputError, match="no two-hop metapath"):
        homophily.metapath_homophily(graph, self_pairs=self_pairs)
      return
    report = homophily.metapath_homophily(graph, self_pairs=self_pairs)
  finally:
    homophily.CELLS = before
  assert set(report.metapaths) == set(expected)
  for path, figures in expected.items():
    assert report.metapaths[path] == pytest.approx(figures)
  report = homophily.metapath_homophily(graph, self_pairs=self_pairs, count="walks")
  assert set(report.metapaths) == set(expected)
  for path, figures in every_walk.items():
    assert report.metapaths[path][:2] == pytest.approx(figures)


@pytest.mark.smoke
def test_the_worm_is_heterophilic():
  """Relations as the data's own notes give them; metapaths pinned from this code (2026-11-23)."""
  graph = data.load("celegans")
  published = {
    "chemical": (3604, 0.379, 0.149),
    "electrical": (2155, 0.377, 0.131),
    "monoamine": (1920, 0.247, -0.108),
    "peptide": (7035, 0.250, -0.028),
  }
  for relation, figures in published.items():
    h = homophily.relation_homophily(graph, ("neuron", relation, "neuron"))
    assert (h.pairs, round(h.edge, 3), round(h.adjusted, 3)) == figures
  report = homophily.metapath_homophily(graph.with_reverses(skip=("electrical",)))
  assert report.edge == pytest.approx(0.285, abs=5e-4)
  assert report.class_insensitive == pytest.approx(0.064, abs=5e-4)
  assert report.adjusted == pytest.approx(-0.030, abs=5e-4)
  assert report.h2_index == pytest.approx(1.030, abs=5e-4)
  assert "H2 index 1.030; 1 metapaths without" in str(report)
