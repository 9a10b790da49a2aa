"""Each set has the sizes, the classes and the homophily that its own notes publish."""

import functools

import numpy as np
import pytest

from h2g import data
from h2g.graph import homophily

pytestmark = pytest.mark.usefixtures("data_dir")


@functools.cache
def graph_of(name, **options):
  return data.load(name, **options)


def sizes(graph):
  edges = {}
  for name, found in graph.edges.items():
    edges[name[1]] = edges.get(name[1], 0) + len(found.senders)
  return dict(graph.num_nodes), edges


def classes(graph):
  labels = np.asarray(graph.target_labels)
  return np.bincount(labels[labels >= 0], minlength=graph.schema.num_classes)


def majority(graph):
  return classes(graph).max() / classes(graph).sum()


def along(graph, relation, **options):
  """(h, h_adj) of the metapath out and back over one relation of the target type."""
  target = graph.schema.target
  (name,) = [e for e in graph.edges if e[1] == relation and e[0] == target]
  both = graph.edges[name]
  pair = graph.replace(
    edges={name: both}, schema=graph.schema.__class__(**vars_of(graph.schema, (name,)))
  ).with_reverses()
  report = homophily.metapath_homophily(pair, **options)
  return report.edge, report.adjusted


def vars_of(schema, edge_types):
  keep = [schema.edge_types.index(name) for name in edge_types]
  fields = {field: getattr(schema, field) for field in schema.__dataclass_fields__}
  dims = tuple(schema.edge_feature_dims[k] for k in keep)
  return fields | {"edge_types": edge_types, "edge_feature_dims": dims}


def direct(graph, relation):
  target = graph.schema.target
  found = homophily.relation_homophily(graph, (target, relation, target))
  return found.edge, found.adjusted


def close(found, published, digits=3):
  """To the printed precision: half a unit of the last digit, and float noise."""
  assert found == pytest.approx(published, abs=0.5001 * 10**-digits)


def test_imdb_nshe():
  graph = graph_of("imdb_nshe")
  assert sizes(graph) == (
    dict(movie=3676, actor=4353, director=1678),
    dict(acted_by=11028, directed_by=3676),
  )
  assert classes(graph).tolist() == [984, 1396, 1296]
  close(along(graph, "acted_by"), (0.445, 0.165))  # pairs once; the notes' .174 is that of walks
  close(along(graph, "acted_by", count="walks"), (0.451, 0.174))
  close(along(graph, "directed_by"), (0.613, 0.418))


@pytest.mark.parametrize(
  "graph, nodes, edges, share, h",
  [
    ("brazil", 131, 1003, 0.267, (0.431, -0.033)),
    ("europe", 399, 5993, 0.256, (0.405, -0.074)),
    ("usa", 1190, 13599, 0.251, (0.698, 0.263)),
  ],
)
def test_airports(graph, nodes, edges, share, h):
  graph = graph_of("airports", graph=graph)
  assert sizes(graph) == (dict(airport=nodes), dict(flight=edges))
  close(majority(graph), share)
  close(direct(graph, "flight"), h)


def test_flavor():
  graph = graph_of("flavor")
  assert sizes(graph) == (
    dict(ingredient=1530, compound=1107),
    dict(contains=36781, backbone=1470),
  )
  assert len(classes(graph)) == 14 and classes(graph).max() == 424
  close(majority(graph), 0.277)
  close(along(graph, "contains", count="walks"), (0.196, 0.085))
  close(along(graph, "contains"), (0.114, 0.010))  # the notes print .115 for .11449
  close(direct(graph, "backbone"), (0.781, 0.747))
  assert graph.nodes["ingredient"].features is None  # names betray the category


@pytest.mark.parametrize(
  "name, nodes, edges, counts, h",
  [
    (
      "heco_freebase",
      dict(movie=3492, actor=33401, director=2502, writer=4459),
      dict(acted_by=65341, directed_by=3762, written_by=6414),
      [1327, 618, 1547],
      dict(acted_by=(0.692, 0.404), written_by=(0.643, 0.429), directed_by=(0.830, 0.710)),
    ),
    (
      "heco_acm",
      dict(paper=4019, author=7167, subject=60),
      dict(written_by=13407, about=4019),
      [1993, 965, 1061],
      dict(written_by=(0.809, 0.634), about=(0.639, 0.350)),
    ),
    (
      "heco_aminer",
      dict(paper=6564, author=13329, reference=35890),
      dict(written_by=18007, cites=58831),
      [1333, 1114, 526, 3591],
      dict(written_by=(0.960, 0.911), cites=(0.861, 0.769)),
    ),
  ],
)
def test_heco(name, nodes, edges, counts, h):
  graph = graph_of(name)
  assert sizes(graph) == (nodes, edges)
  assert classes(graph).tolist() == counts
  for relation, figures in h.items():
    close(along(graph, relation), figures)
  for per_class in (20, 40, 60):
    part = {part: graph.splits[f"{part}_{per_class}"] for part in ("train", "val", "test")}
    labels = np.asarray(graph.target_labels)[part["train"]]
    assert np.bincount(labels).tolist() == [per_class] * len(counts)
    assert part["val"].sum() == part["test"].sum() == 1000
    assert not (part["train"] & (part["val"] | part["test"])).any()


@pytest.mark.parametrize(
  "graph, nodes, features, num_classes, share, edges, h",
  [
    ("actor", 7600, 932, 5, 0.259, 26659, (0.217, 0.003)),
    ("chameleon_filtered", 890, 2325, 5, 0.272, 8854, (0.236, 0.030)),
    ("squirrel_filtered", 2223, 2089, 5, 0.340, 46998, (0.207, 0.009)),
    ("chameleon", 2277, 2325, 5, 0.229, 31371, (0.230, 0.032)),
    ("squirrel", 5201, 2089, 5, 0.200, 198353, (0.222, 0.007)),
    ("tolokers", 11758, 10, 2, 0.782, 519000, (0.595, 0.093)),
    ("minesweeper", 10000, 7, 2, 0.800, 39402, (0.683, 0.009)),
    ("cornell", 183, 1703, 5, 0.448, 277, (0.123, -0.220)),
    ("texas", 183, 1703, 5, 0.552, 279, (0.061, -0.294)),
    ("wisconsin", 251, 1703, 5, 0.470, 450, (0.178, -0.173)),
  ],
)
def test_heterophilous_npz(graph, nodes, features, num_classes, share, edges, h):
  graph = data.load("heterophilous_npz", graph=graph)
  assert sizes(graph) == (dict(node=nodes), dict(link=edges))
  assert graph.schema.feature_dims == (features,) and len(classes(graph)) == num_classes
  close(majority(graph), share)
  close(direct(graph, "link"), h)
  parts = np.stack([graph.splits[part] for part in ("train", "val", "test")])
  assert parts.any(1).all() and parts.sum(0).max() == 1


def test_texas_4_classes_leaves_a_node_out_of_the_masks_only():
  five, four = (data.load("heterophilous_npz", graph=g) for g in ("texas", "texas_4_classes"))
  np.testing.assert_array_equal(five.target_labels, four.target_labels)
  outside = ~np.stack(list(four.splits.values())).any(0)
  assert np.asarray(four.target_labels)[outside].tolist() == [1]


def test_words_may_be_nodes():
  graph = data.load("heterophilous_npz", graph="texas", words="nodes")
  features = data.load("heterophilous_npz", graph="texas").nodes["node"].features
  has = graph.edges["node", "has", "word"]
  dense = np.zeros((183, 1703))
  dense[has.senders, has.receivers] = 1
  np.testing.assert_array_equal(dense, features)


def test_yelpchi_reviews():
  graph = graph_of("yelpchi_reviews")
  assert sizes(graph) == (
    dict(review=67395, user=38063, product=201),
    dict(by=67395, about=67395),
  )
  close(classes(graph)[1] / 67395, 0.132)
  close(along(graph, "by"), (0.997, 0.916))
  close(along(graph, "about"), (0.791, 0.019))
  users = np.asarray(graph.edges["review", "by", "user"].receivers)
  writer = np.empty(67395, int)
  writer[np.asarray(graph.edges["review", "by", "user"].senders)] = users
  owned = [set(writer[mask]) for mask in graph.splits.values()]
  assert not (owned[0] & owned[1] or owned[0] & owned[2] or owned[1] & owned[2])
  user = graph_of("yelpchi_reviews", label="user")
  assert user.num_nodes == dict(user=38063, product=201)
  close(classes(user)[1] / 38063, 0.203)
  close(along(user, "reviewed", count="walks"), (0.785, 0.018))
