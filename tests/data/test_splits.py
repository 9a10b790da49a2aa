"""Stratified splits: exact, disjoint, reproducible; an impossible one is refused."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from h2g.data import splitter
from h2g.data import stratified_split
from h2g.errors import InputError
from h2g.graph import HeteroGraph


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(5, 40), min_size=1, max_size=5), st.integers(0, 10_000))
def test_every_labelled_node_is_in_exactly_one_part(sizes, seed):
  labels = np.concatenate([np.full(n, c) for c, n in enumerate(sizes)] + [np.full(3, -1)])
  split = stratified_split(labels, seed=seed)
  total = split["train"].astype(int) + split["val"] + split["test"]
  np.testing.assert_array_equal(total, labels >= 0)
  for label, size in enumerate(sizes):
    for name, share in zip(("train", "val", "test"), (0.6, 0.2, 0.2)):
      assert abs((split[name] & (labels == label)).sum() - share * size) <= 1


def test_the_seed_decides():
  labels = np.arange(300) % 4
  again = [stratified_split(labels, seed=seed)["train"] for seed in (3, 3, 4)]
  np.testing.assert_array_equal(again[0], again[1])
  assert (again[0] != again[2]).any()


def test_a_class_too_small_for_every_part_is_named():
  labels = np.array([0] * 50 + [1] * 50 + [2] * 2)
  with pytest.raises(
    InputError, match=r"class 2 has 2 labelled nodes, none for the (val|test) part"
  ):
    stratified_split(labels, seed=0)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.6, 0.4)])
def test_fractions_must_add_up(fractions):
  with pytest.raises(InputError, match="add up to 1"):
    stratified_split(np.arange(30) % 2, seed=0, fractions=fractions)


def test_published_splits_are_taken_as_they_are():
  labels = np.array([0, 1, 0, 1, 0, 1, -1])
  at = lambda *rows: np.isin(np.arange(7), rows)
  graph = HeteroGraph.from_arrays(nodes={"n": {"labels": labels}}, edges={}, target="n")
  graph = graph.with_splits({"train": at(0, 1, 6), "val": at(2), "test": at(3, 4)})
  split = splitter(graph, ())(seed=7)
  assert {name: np.flatnonzero(mask).tolist() for name, mask in split.items()} == dict(
    train=[0, 1], val=[2], test=[3, 4]
  )
  stratified = splitter(graph, (0.4, 0.3, 0.3))(seed=7)
  np.testing.assert_array_equal(
    stratified["train"], stratified_split(labels, seed=7, fractions=(0.4, 0.3, 0.3))["train"]
  )
  with pytest.raises(InputError, match="no published val part"):
    splitter(graph.with_splits({"train": at(0)}), ())
