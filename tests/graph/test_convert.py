"""Conversions lose nothing that they promise to keep, and say what they cannot read."""

import types

import jax
import jraph
import networkx
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph.convert import from_jraph
from h2g.graph.convert import from_networkx
from h2g.graph.convert import from_pyg
from h2g.graph.convert import to_jraph
from h2g.graph.convert import to_networkx
from h2g.graph.convert import to_pyg
from h2g.graph.padding import pad
from h2g.graph.sampler import hgt_sample
from tests.models.graphs import random_graph


def example(seed=0) -> HeteroGraph:
  graph = random_graph(seed).with_reverses()
  return graph.with_splits({"train": np.arange(13) < 6, "test": np.arange(13) > 8})


def same(a, b):
  assert a.schema == b.schema
  jax.tree.map(np.testing.assert_array_equal, a, b)


def canonical(graph):
  """The edges of each receiver sorted by sender and features: what survives without an order."""
  edges = {}
  for name, e in graph.edges.items():
    columns = [] if e.features is None else list(e.features.T[::-1])
    order = np.lexsort((*columns, e.senders, e.receivers))
    features = None if e.features is None else e.features[order]
    edges[name] = (e.senders[order], e.receivers[order], features)
  nodes = {
    name: {k: v for k, v in (("features", n.features), ("labels", n.labels)) if v is not None}
    for name, n in graph.nodes.items()
  }
  return HeteroGraph.from_arrays(
    nodes=nodes,
    edges=edges,
    target=graph.schema.target,
    num_classes=graph.schema.num_classes,
    splits=graph.splits,
  )


@pytest.mark.smoke
def test_jraph_round_trip_is_exact():
  graph = example()
  homogenised = to_jraph(graph)
  assert isinstance(homogenised, jraph.GraphsTuple)
  assert homogenised.n_node.tolist() == [20] and homogenised.n_edge.tolist() == [160]
  assert homogenised.nodes["features"].shape == (20, 5)
  same(from_jraph(homogenised, graph.schema), graph)


def test_jraph_round_trip_of_samples_and_padded_graphs():
  graph = example()
  sample = hgt_sample(graph, [3, 1], [2], np.random.default_rng(0))
  same(from_jraph(to_jraph(sample), graph.schema), sample)  # ids of the parent are kept
  padded = pad(graph, {"paper": 20}, dict.fromkeys(graph.edges, 100))
  same(from_jraph(to_jraph(padded), graph.schema), graph)


def test_jraph_edges_join_the_rows_they_name():
  graph = example()
  homogenised = to_jraph(graph)
  kinds = homogenised.nodes["type"]
  for r, (source, _, target) in enumerate(graph.schema.edge_types):
    at = homogenised.edges["type"] == r
    assert set(kinds[homogenised.senders[at]]) <= {graph.schema.node_types.index(source)}
    assert set(kinds[homogenised.receivers[at]]) <= {graph.schema.node_types.index(target)}


def test_jraph_nodes_may_stand_in_any_order():
  graph = example()
  g = to_jraph(graph)
  order = np.random.default_rng(0).permutation(20)
  order = np.concatenate([order[order >= 13], order[order < 13]])  # authors first
  order[:7], order[7:] = np.sort(order[:7]), np.sort(order[7:])
  place = np.argsort(order).astype(np.int32)
  shuffled = g._replace(
    nodes=jax.tree.map(lambda x: x[order], g.nodes),
    senders=place[g.senders],
    receivers=place[g.receivers],
  )
  same(from_jraph(shuffled, graph.schema), graph)


def test_jraph_errors_name_the_field():
  graph = example()
  g = to_jraph(graph)
  with pytest.raises(InputError, match=r"nodes of the GraphsTuple lack \['type'\]"):
    from_jraph(g._replace(nodes={"features": g.nodes["features"]}), graph.schema)
  with pytest.raises(InputError, match="type of node 0 is 9, the schema has 2 node types"):
    from_jraph(g._replace(nodes=g.nodes | {"type": np.full(20, 9)}), graph.schema)
  with pytest.raises(InputError, match=r"edge 120 of .*: sender 0 is no 'author' node"):
    from_jraph(g._replace(senders=np.zeros_like(g.senders)), graph.schema)


def test_networkx_round_trip_up_to_the_order_of_edges():
  graph = example()
  out = to_networkx(graph)
  assert out.number_of_nodes() == 20 and out.number_of_edges() == 160
  assert "label" not in out.nodes["paper", 1]  # unlabelled
  back = from_networkx(out)
  assert back.schema == graph.schema
  same(canonical(back), canonical(graph))


def test_networkx_graphs_of_others():
  club = networkx.karate_club_graph()
  for _, fields in club.nodes(data=True):
    fields["label"] = int(fields.pop("club") == "Officer")
  graph = from_networkx(club, class_names=("Mr. Hi", "Officer"))
  assert graph.schema.edge_types == (("node", "edge", "node"),)
  assert graph.num_nodes == {"node": 34}
  assert len(graph.edges["node", "edge", "node"].senders) == 2 * club.number_of_edges()
  with pytest.raises(InputError, match="no node type has labels: name the labelled type"):
    from_networkx(networkx.path_graph(3))
  club.nodes[0]["features"] = [1.0]
  with pytest.raises(InputError, match="1 of 34 members of node type 'node' have features"):
    from_networkx(club)


def test_pyg_dictionaries_round_trip():
  graph = example()
  out = to_pyg(graph)
  assert out["train_mask_dict"]["paper"].sum() == 6
  same(from_pyg(out, num_classes=3), graph)


class Data:
  """Looks like HeteroData, with stores that answer attributes and tensors that need detaching."""

  def __init__(self, dictionaries):
    self.stores = {}
    for key, found in dictionaries.items():
      field = key.removesuffix("_dict")
      for name, value in found.items():
        tensor = types.SimpleNamespace(detach=lambda v=value: types.SimpleNamespace(cpu=lambda: v))
        store = self.stores.setdefault(name, types.SimpleNamespace())
        setattr(store, field, value if isinstance(value, int) else tensor)
    self.node_types = [name for name in self.stores if isinstance(name, str)]
    self.edge_types = [name for name in self.stores if isinstance(name, tuple)]

  def __getitem__(self, name):
    return self.stores[name]


def test_pyg_objects_are_read_without_torch():
  graph = example()
  same(from_pyg(Data(to_pyg(graph)), num_classes=3), graph)


def test_pyg_errors_name_what_is_missing():
  data = to_pyg(example())
  plain = data | {"y": data["y_dict"]["paper"][:, None]}
  del plain["y_dict"]
  with pytest.raises(InputError, match="y is one array"):
    from_pyg(plain)
  same(from_pyg(plain, target="paper", num_classes=3), example())
  with pytest.raises(InputError, match="no node type has labels"):
    from_pyg(data | {"y_dict": {}})
  index = {("paper", "cites", "paper"): np.zeros((5, 2), int)}
  with pytest.raises(InputError, match=r"edge_index of .*'cites'.* is \[5, 2\]: give \[2, E\]"):
    from_pyg(data | {"edge_index_dict": index})
  with pytest.raises(InputError, match="a list has no node_types"):
    from_pyg([])
