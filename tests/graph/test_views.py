"""Views against dense products of adjacency matrices."""

import numpy as np
import pytest

from h2g.errors import InputError
from h2g.graph import padding
from h2g.graph import views
from tests.models.graphs import random_graph


def dense(graph, name):
  """[N_receivers, N_senders] counts of one relation."""
  edges = graph.edges[name]
  out = np.zeros((graph.num_nodes[name[2]], graph.num_nodes[name[0]]), int)
  count = int(edges.indptr[-1])
  np.add.at(out, (np.asarray(edges.receivers)[:count], np.asarray(edges.senders)[:count]), 1)
  return out


def homogenised(graph, names=None):
  total = graph.node_offsets[-1]
  out = np.zeros((total, total), int)
  for name in names or graph.schema.edge_types:
    out[slice(*graph.rows(name[2])), slice(*graph.rows(name[0]))] += dense(graph, name)
  return out


def paths_of(graph):
  first = [e for e in graph.schema.edge_types if e[0] == "paper"]
  return [(a, b) for a in first for b in graph.schema.edge_types if (b[0], b[2]) == (a[2], "paper")]


@pytest.mark.parametrize("padded", [False, True])
def test_two_hop_view_joins_what_any_metapath_joins(padded):
  graph = random_graph(num_edges=15).with_reverses()
  expected = sum(dense(graph, b) @ dense(graph, a) for a, b in paths_of(graph)) > 0
  np.fill_diagonal(expected, False)
  if padded:
    graph = padding.pad(graph, {}, {name: 40 for name in graph.edges})
  out = views.view(graph, "2hop")
  np.testing.assert_array_equal(dense(out, ("paper", "2hop", "paper")), expected)
  assert out.schema.node_types == ("paper",) and out.schema.feature_dims == (5,)
  np.testing.assert_array_equal(out.target_labels, graph.target_labels)


def test_one_hop_view_keeps_the_direct_relations():
  graph = random_graph().with_reverses()
  out = views.view(graph, "1hop")
  assert set(out.edges) == {("paper", "cites", "paper"), ("paper", "rev_cites", "paper")}
  for name in out.edges:
    np.testing.assert_array_equal(dense(out, name), dense(graph, name))


def test_induced_graphs_go_there_and_back():
  graph = random_graph(num_edges=15).with_reverses()
  out = views.view(graph, "metapaths")
  name = ("paper", "rev_writes>author>writes", "paper")
  writes = dense(graph, ("author", "writes", "paper"))
  expected = writes @ writes.T > 0
  np.fill_diagonal(expected, False)
  np.testing.assert_array_equal(dense(out, name), expected)
  relations = {relation for _, relation, _ in out.edges}
  assert {"cites", "rev_cites", "cites>paper>rev_cites", "rev_cites>paper>cites"} <= relations
  assert "cites>paper>cites" not in relations


def test_strict_two_hops_are_neighbours_at_distance_two():
  graph = random_graph(num_edges=6).with_reverses()
  out = views.view(graph, "strict_2hop")
  one = homogenised(graph) > 0
  off = one & ~np.eye(len(one), dtype=bool)
  expected = (off.astype(int) @ off > 0) & ~one
  np.fill_diagonal(expected, False)
  added = [name for name in out.schema.edge_types if name[1] == views.STRICT]
  np.testing.assert_array_equal(homogenised(out, added), expected)
  assert expected.any() and set(graph.edges) < set(out.edges)
  assert len(out.schema.source_runs) == 2


def test_a_walk_may_be_cut_into_pieces(monkeypatch):
  graph = random_graph().with_reverses()
  name = ("paper", "rev_writes", "author"), ("author", "writes", "paper")
  whole = views.compose(graph, *name)
  monkeypatch.setattr(views, "PIECE", 7)
  np.testing.assert_array_equal(views.compose(graph, *name), whole)


def test_what_cannot_be_viewed_is_said():
  graph = random_graph()
  with pytest.raises(InputError, match="view='3hop' is unknown: choose from '', '1hop'"):
    views.view(graph, "3hop")
  alone = graph._rebuild({e: v for e, v in graph._given_edges().items() if e[1] == "writes"})
  with pytest.raises(InputError, match="no relation joins paper to paper; try '2hop'"):
    views.view(alone, "1hop")
  with pytest.raises(InputError, match="no walk of two relations"):
    views.view(alone, "2hop")
  both = graph.with_reverses()
  count = sum(len(edges.senders) for edges in views.view(both, "2hop").edges.values())
  assert views.view(both, "2hop", max_edges=count)
  with pytest.raises(InputError, match=f"{count:,} edges, more than config.data.max_edges"):
    views.view(both, "2hop", max_edges=count - 1)
  for name in ("2hop", "strict_2hop"):  # at once, from a number that is never more than the edges
    seen = views.view(both, name)
    count = sum(len(edges.senders) for edges in seen.edges.values())
    assert views.view(both, name, max_edges=count)
    with pytest.raises(InputError, match=r"at least [1-9]"):
      views.view(both, name, max_edges=1)


def test_virtual_nodes_are_joined_both_ways_to_every_real_node_of_their_type():
  given = random_graph()
  graph = padding.pad(given, {"paper": 16, "author": 9}, dict.fromkeys(given.schema.edge_types, 60))
  found = views.with_virtual_nodes(graph, 2)
  assert found.num_nodes == {"paper": 16, "author": 9, "virtual_paper": 2, "virtual_author": 2}
  assert found.schema.feature_dims == (5, 4, 2, 2) and found.schema.target == "paper"
  assert sum(begin != end for _, begin, end in found.schema.source_runs) == 4
  for name, real in (("paper", 13), ("author", 7)):
    at, new = found.rows(name)[0], found.rows(f"virtual_{name}")[0]
    joined = np.zeros((found.node_offsets[-1],) * 2)
    joined[new : new + 2, at : at + real] = 1
    pair = [(name, "gathers", f"virtual_{name}"), (f"virtual_{name}", "spreads", name)]
    np.testing.assert_array_equal(homogenised(found, pair[:1]), joined)
    np.testing.assert_array_equal(homogenised(found, pair[1:]), joined.T)
  np.testing.assert_array_equal(
    homogenised(found, given.schema.edge_types)[:25, :25], homogenised(graph)
  )
