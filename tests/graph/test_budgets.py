"""Budgets draw as the definition says, whatever way they are kept and drawn from."""

from collections import Counter
import itertools

import numpy as np
import pytest
import scipy.stats

from h2g.graph import budgets
from h2g.graph import HeteroGraph
from h2g.graph.budgets import Budget
from h2g.graph.sampler import Sampler

NODES = np.array([3, 70, 71, 140, 199])  # of 200: in four blocks of 64
SHARES = np.array([0.5, 0.2, 0.3, 1.0, 0.6])


def filled(direct: bool) -> Budget:
  budget = Budget(200, direct=200 if direct else 0)
  budget.add(NODES[:4].astype(np.int32), SHARES[:4] - 0.1)
  budget.add(np.array([199, 3, 70, 199, 71, 140, 199], np.int32), np.array([0.2, *[0.1] * 5, 0.3]))
  return budget


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "numbered"])
@pytest.mark.parametrize("few", [0, 1 << 13], ids=["blocks", "keys"])
def test_pairs_are_successive_draws_by_squared_budget(direct, few, monkeypatch):
  monkeypatch.setattr(budgets, "FEW", few)
  rng, counts, draws = np.random.default_rng(0), Counter(), 2000
  for _ in range(draws):
    drawn = filled(direct).draw(2, np.array([140]), rng)  # the strongest is in the sample already
    counts[tuple(drawn.tolist())] += 1
  p = {n: b**2 for n, b in zip(NODES.tolist(), SHARES) if n != 140}
  total = sum(p.values())
  pairs = list(itertools.combinations(p, 2))
  wanted = [
    draws * sum(p[a] / total * p[b] / (total - p[a]) for a, b in (pair, pair[::-1]))
    for pair in pairs
  ]
  assert set(counts) <= set(pairs)
  assert scipy.stats.chisquare([counts[pair] for pair in pairs], wanted).pvalue > 1e-3


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "numbered"])
@pytest.mark.parametrize("few", [0, 1 << 13], ids=["blocks", "keys"])
def test_a_budget_is_emptied_by_draws_and_by_clear(direct, few, monkeypatch):
  monkeypatch.setattr(budgets, "FEW", few)
  rng, budget, nobody = np.random.default_rng(1), filled(direct), np.zeros(0, np.int64)
  first = budget.draw(3, nobody, rng)
  rest = budget.draw(9, nobody, rng)
  assert sorted([*first, *rest]) == NODES.tolist() and len(first) == 3
  assert not len(budget.draw(9, nobody, rng)) and not len(budget.draw(0, nobody, rng))
  budget.add(np.array([5, 70], np.int32), np.ones(2))
  budget.clear()
  budget.add(np.array([70, 8], np.int32), np.ones(2))
  assert budget.draw(9, nobody, rng).tolist() == [8, 70]


@pytest.mark.parametrize("spread", [0, 6], ids=["even", "skewed"])
def test_blocks_find_as_many_as_are_wanted(spread):
  """Many entries; also where some are a million times as strong as others."""
  rng = np.random.default_rng(2)
  budget = Budget(20_000)
  nodes = rng.permutation(20_000)[:15_000]
  budget.add(nodes, 10.0 ** rng.uniform(-spread, 0, len(nodes)))
  drawn = budget.draw(500, nodes[:100], rng)
  assert len(set(drawn.tolist())) == 500 and (np.diff(drawn) > 0).all()
  assert np.isin(drawn, nodes[100:]).all()


def test_a_bounded_row_is_chosen_once_for_budgets_and_subgraph():
  """3 of 12 senders give budgets: all 12 are drawn alike, and the drawn one's edge is kept."""
  graph = HeteroGraph.from_arrays(
    nodes={"hub": {"num_nodes": 1, "labels": np.zeros(1, int)}, "leaf": {"num_nodes": 12}},
    edges={("leaf", "to", "hub"): (np.arange(12), np.zeros(12, int))},
    target="hub",
    num_classes=1,
  )
  sampler, rng, counts = Sampler(graph), np.random.default_rng(3), np.zeros(12)
  for _ in range(1000):
    sample = sampler.hgt([0], [1], rng, max_neighbors=3)
    assert len(sample.edges["leaf", "to", "hub"].senders) == 1
    counts[sample.nodes["leaf"].ids] += 1
  assert counts.sum() == 1000 and scipy.stats.chisquare(counts).pvalue > 1e-3
