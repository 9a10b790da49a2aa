"""Samples follow the stated distribution, keep true edges, and depend on the arguments alone."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
import itertools
import pickle

import jax
import numpy as np
import pytest
import scipy.stats

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph.padding import pad
from h2g.graph.rows import choose
from h2g.graph.sampler import hgt_sample
from h2g.graph.sampler import neighbor_sample
from h2g.graph.sampler import Sampler
from tests.models.graphs import random_graph

TYPES = {"paper": 60, "author": 40, "venue": 6}


def big_graph(seed: int = 0) -> HeteroGraph:
  """Three types, hubs (venues), reverses, edge features that name the edge, one isolated paper."""
  rng = np.random.default_rng(seed)
  pick = lambda name, count: rng.integers(0, TYPES[name] - 1, count)
  number = lambda count: np.arange(count, dtype=np.float32)
  return HeteroGraph.from_arrays(
    nodes={
      "paper": {"features": rng.normal(size=(60, 3)), "labels": np.arange(60) % 4},
      "author": {"features": number(40)},
      "venue": {"num_nodes": 6},
    },
    edges={
      ("paper", "cites", "paper"): (pick("paper", 200), pick("paper", 200), number(200)),
      ("author", "writes", "paper"): (pick("author", 150), pick("paper", 150)),
      ("paper", "in", "venue"): (pick("paper", 90), pick("venue", 90)),
    },
    target="paper",
    splits={"train": np.arange(60) % 3 == 0},
  ).with_reverses()


def edge_list(graph, name, ids=True):
  """Counter of (sender id, receiver id, features), by parent ids."""
  edges = graph.edges[name]
  tails, heads = edges.senders, edges.receivers
  if ids:
    tails, heads = graph.nodes[name[0]].ids[tails], graph.nodes[name[2]].ids[heads]
  features = [()] * len(tails) if edges.features is None else map(tuple, edges.features.tolist())
  return Counter(zip(tails.tolist(), heads.tolist(), features))


def check_is_part_of(sample, graph, seeds):
  """Everything a sample says is true of the parent, and its indices are consistent."""
  assert sample.schema == graph.schema and sample.incoming is None
  np.testing.assert_array_equal(sample.nodes["paper"].ids[: len(seeds)], seeds)
  for name, nodes in sample.nodes.items():
    assert len(set(nodes.ids.tolist())) == len(nodes.ids) and nodes.mask.all()
    assert nodes.ids.dtype == np.int32
    parent = graph.nodes[name]
    for field in ("features", "labels"):
      if getattr(parent, field) is not None:
        np.testing.assert_array_equal(getattr(nodes, field), getattr(parent, field)[nodes.ids])
  np.testing.assert_array_equal(
    sample.splits["train"], graph.splits["train"][sample.nodes["paper"].ids]
  )
  for name, edges in sample.edges.items():
    assert not edge_list(sample, name) - edge_list(graph, name)
    for array in (edges.senders, edges.receivers, edges.indptr, edges.sender_indptr):
      assert array.dtype == np.int32
    counts = np.bincount(edges.receivers, minlength=sample.num_nodes[name[2]])
    np.testing.assert_array_equal(np.diff(edges.indptr), counts)
    assert (np.diff(edges.receivers) >= 0).all()
    counts = np.bincount(edges.senders, minlength=sample.num_nodes[name[0]])
    np.testing.assert_array_equal(np.diff(edges.sender_indptr), counts)
    np.testing.assert_array_equal(edges.sender_order, np.argsort(edges.senders, kind="stable"))


def check_has_all_edges_among_its_nodes(sample, graph):
  for name in graph.schema.edge_types:
    tails, heads = (set(sample.nodes[end].ids.tolist()) for end in (name[0], name[2]))
    among = Counter(
      {
        edge: count
        for edge, count in edge_list(graph, name).items()
        if edge[0] in tails and edge[1] in heads
      }
    )
    assert edge_list(sample, name) == among


def budgets_by_definition(graph, seeds):
  """{type: {node: budget}} before the first draw, in plain loops."""
  budgets = {name: Counter() for name in graph.schema.node_types}
  for (source, _, target), edges in graph.edges.items():
    for seed in seeds if target == graph.schema.target else ():
      senders = edges.senders[edges.receivers == seed]
      for sender in senders.tolist():
        if not (source == target and sender in seeds):
          budgets[source][sender] += 1 / len(senders)
  return budgets


def chi_squared(counts: Counter, shares: dict):
  assert set(counts) <= set(shares)
  draws = sum(counts.values())
  observed = [counts[key] for key in shares]
  return scipy.stats.chisquare(observed, [share * draws for share in shares.values()]).pvalue


def test_hgt_first_draws_follow_the_squared_budgets():
  graph, seeds = big_graph(), [3, 11, 30]
  sampler, rng = Sampler(graph), np.random.default_rng(0)
  counts = {name: Counter() for name in TYPES}
  for _ in range(2000):
    sample = sampler.hgt(seeds, [1], rng)
    for name in TYPES:
      counts[name].update(sample.nodes[name].ids[len(seeds) if name == "paper" else 0 :].tolist())
  for name, budget in budgets_by_definition(graph, seeds).items():
    total = sum(value**2 for value in budget.values())
    assert chi_squared(counts[name], {k: v**2 / total for k, v in budget.items()}) > 1e-3


def test_hgt_draws_pairs_as_successive_draws_without_replacement():
  graph, seeds = big_graph(), [3, 11, 30]
  budget = budgets_by_definition(graph, seeds)["author"]
  assert 2 < len(budget) < 12
  total = sum(value**2 for value in budget.values())
  p = {k: v**2 / total for k, v in budget.items()}
  shares = {
    frozenset(pair): sum(p[a] * p[b] / (1 - p[a]) for a, b in (pair, pair[::-1]))
    for pair in itertools.combinations(p, 2)
  }
  sampler, rng, counts = Sampler(graph), np.random.default_rng(1), Counter()
  for _ in range(2000):
    sample = sampler.hgt(seeds, {"author": [2]}, rng)
    counts[frozenset(sample.nodes["author"].ids.tolist())] += 1
    assert sample.num_nodes["paper"] == 3 and sample.num_nodes["venue"] == 0
  assert chi_squared(counts, shares) > 1e-3


@pytest.mark.smoke
def test_hgt_keeps_the_fan_outs_and_all_edges_among_its_nodes():
  graph = big_graph()
  for seed in range(10):
    rng = np.random.default_rng(seed)
    seeds = rng.permutation(60)[:5]
    fanouts = {"paper": [4, 0, 3], "author": [2, 2, 2], "venue": [1, 1, 0]}
    sample = hgt_sample(graph, seeds, fanouts, rng)
    check_is_part_of(sample, graph, seeds)
    check_has_all_edges_among_its_nodes(sample, graph)
    assert sample.num_nodes["paper"] <= 5 + 7
    assert sample.num_nodes["author"] <= 6 and sample.num_nodes["venue"] <= 2


def test_hgt_takes_every_candidate_that_there_is():
  graph, seeds = big_graph(), [3, 11]
  sample = hgt_sample(graph, seeds, [1000], np.random.default_rng(0))
  for name, budget in budgets_by_definition(graph, seeds).items():
    known = set(seeds) if name == "paper" else set()
    assert set(sample.nodes[name].ids.tolist()) == set(budget) | known


def test_hgt_neighbours_can_be_bounded():
  graph = big_graph()
  seeds = np.arange(10)
  sample = hgt_sample(graph, seeds, [20, 20], np.random.default_rng(0), max_neighbors=3)
  check_is_part_of(sample, graph, seeds)
  assert max(np.diff(edges.indptr).max() for edges in sample.edges.values()) == 3


@pytest.mark.parametrize("induced", [False, True])
def test_neighbour_fan_outs_bound_every_node_hop_and_relation(induced):
  graph = big_graph()
  for seed in range(10):
    rng = np.random.default_rng(seed)
    seeds = rng.permutation(60)[:4]
    fanouts = {name: [3, 2] for name in graph.schema.edge_types}
    fanouts["author", "writes", "paper"] = [1, 0]
    del fanouts["venue", "rev_in", "paper"]
    sample = neighbor_sample(graph, seeds, fanouts, rng, induced=induced)
    check_is_part_of(sample, graph, seeds)
    if induced:
      check_has_all_edges_among_its_nodes(sample, graph)
      continue
    for name, edges in sample.edges.items():
      first, second = fanouts.get(name, [0, 0])
      took = np.diff(edges.indptr)
      degree = np.diff(graph.edges[name].indptr)[sample.nodes[name[2]].ids]
      if name[2] == "paper":
        np.testing.assert_array_equal(took[:4], np.minimum(degree, first)[:4])
        took, degree = took[4:], degree[4:]
      assert (took <= np.minimum(degree, second)).all()


def test_neighbours_all_of_them_are_the_whole_receptive_field():
  graph, seeds = big_graph(), [7, 1]
  sample = neighbor_sample(graph, seeds, [-1], np.random.default_rng(0))
  for name, edges in graph.edges.items():
    wanted = Counter({e: n for e, n in edge_list(graph, name).items() if e[1] in seeds})
    assert edge_list(sample, name) == (wanted if name[2] == "paper" else Counter()), edges


@pytest.mark.parametrize("count", [4, 9, 30])
def test_a_choice_of_three_is_uniform(count):
  """Takes nearly all, some, or few of a row: three ways to choose, one distribution."""
  rng, rows = np.random.default_rng(count), 3000
  row, offset = choose(np.full(rows, count), 3, rng)
  assert (np.bincount(row) == 3).all()
  assert (np.diff(row * count + offset) > 0).all()  # sorted, none twice
  assert scipy.stats.chisquare(np.bincount(offset, minlength=count)).pvalue > 1e-3
  if count < 10:
    sets = Counter(map(tuple, offset.reshape(rows, 3).tolist()))
    shares = dict.fromkeys(itertools.combinations(range(count), 3), 0.0)
    assert chi_squared(sets, {key: 1 / len(shares) for key in shares}) > 1e-3


CALLS = {
  "hgt": lambda sampler, seeds, rng: sampler.hgt(seeds, [5, 5], rng),
  "hgt_bounded": lambda sampler, seeds, rng: sampler.hgt(seeds, [5, 5], rng, max_neighbors=2),
  "neighbor": lambda sampler, seeds, rng: sampler.neighbor(seeds, [3, 3], rng),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_arguments_alone_decide(call):
  """Same bits from a fresh sampler, a used, a failed, a pickled one, and from other threads."""
  graph, seeds = big_graph(), np.array([4, 2, 9])
  make = lambda sampler: call(sampler, seeds, np.random.default_rng(7))
  expected = make(Sampler(graph))
  same = lambda other: jax.tree.map(np.testing.assert_array_equal, expected, other)
  used = Sampler(graph)
  call(used, np.array([50, 51]), np.random.default_rng(1))
  same(make(used))
  with pytest.raises(AttributeError):
    call(used, seeds, object())  # no generator: fails half way
  same(make(used))
  same(make(pickle.loads(pickle.dumps(used))))
  with ThreadPoolExecutor(4) as pool:
    for other in pool.map(lambda _: make(used), range(8)):
      same(other)
  different = call(used, seeds, np.random.default_rng(8))
  leaves = zip(jax.tree.leaves(expected), jax.tree.leaves(different))
  assert not all(np.array_equal(a, b) for a, b in leaves)


def test_isolated_seeds_come_back_alone():
  graph = big_graph()
  for sample in (
    hgt_sample(graph, [59], [8, 8], np.random.default_rng(0)),
    neighbor_sample(graph, [59], [8, 8], np.random.default_rng(0)),
  ):
    assert sample.num_nodes == {"paper": 1, "author": 0, "venue": 0}
    assert all(len(edges.senders) == 0 for edges in sample.edges.values())
    check_is_part_of(sample, graph, [59])


def test_padding_of_the_parent_is_never_sampled():
  graph = random_graph().with_splits({"train": np.ones(13, bool)})
  padded = pad(graph, {"paper": 20, "author": 11}, {name: 64 for name in graph.edges})
  for sample in (hgt_sample, neighbor_sample):
    expected = sample(graph, [2, 0], [6, 6], np.random.default_rng(0))
    got = sample(padded, [2, 0], [6, 6], np.random.default_rng(0))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize(
  ("seeds", "fanouts", "message"),
  [
    ([1, 5, 1], [2], "seed 1 stands 2 times"),
    ([1, 60], [2], r"seed 1 is 60, outside the rows 0\.\.59 of 'paper'"),
    ([], [2], "give at least one row of 'paper'"),
    ([1.5], [2], r"seeds are float64\[1\]"),
    ([1], {"papers": [2]}, "unknown node type 'papers': the graph has 'paper', 'author'"),
    ([1], [-1], "fan-out -1 of node type 'paper': give 0 or more"),
    ([1], {"paper": [2], "author": [2, 2]}, r"fan-outs have \[1, 2\] steps"),
  ],
)
def test_bad_arguments_are_named(seeds, fanouts, message):
  with pytest.raises(InputError, match=message):
    hgt_sample(big_graph(), seeds, fanouts, np.random.default_rng(0))
