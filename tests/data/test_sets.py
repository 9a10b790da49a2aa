"""Each set has the sizes, the classes and the homophily that its own notes publish."""

import functools
from importlib import metadata

import numpy as np
import pytest

from h2g import data
from h2g.data import check
from h2g.data import files
from h2g.graph import HeteroGraph
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
  (edges,) = [e for name, e in graph.edges.items() if name[:2] == (target, relation)]
  return together(graph, edges.senders, edges.receivers, **options)


def direct(graph, relation):
  target = graph.schema.target
  found = homophily.relation_homophily(graph, (target, relation, target))
  return found.edge, found.adjusted


def together(graph, members, groups, **options):
  """(h, h_adj) between target nodes that share a group; one row of both arrays per membership."""
  _, groups = np.unique(np.asarray(groups), return_inverse=True)
  target = graph.schema.target
  pair = HeteroGraph.from_arrays(
    nodes={target: {"labels": graph.target_labels}, "group": {"num_nodes": groups.max() + 1}},
    edges={(target, "in", "group"): (np.asarray(members), groups)},
    target=target,
    num_classes=graph.schema.num_classes,
  )
  report = homophily.metapath_homophily(pair.with_reverses(), **options)
  return report.edge, report.adjusted


def close(found, published, digits=3):
  """To the printed precision: half a unit of the last digit, and float noise."""
  assert found == pytest.approx(published, abs=0.5001 * 10**-digits)


# The mean over all two-hop metapaths; `published` are the notes' h_adj where those are all the
# metapaths there are (as measured above where the notes differ), and None where there are more.
H2 = [
  ("imdb_nshe", {}, 0.708, (0.165, 0.418)),
  ("heco_freebase", {}, 0.486, (0.404, 0.429, 0.710)),
  ("heco_acm", {}, 0.508, (0.634, 0.350)),
  ("heco_aminer", {}, 0.160, (0.911, 0.769)),
  ("liar", {}, 0.987, (0.039, 0.003, 0.011, 0.015, 0.004, 0.006)),
  ("liar", {"label": "two"}, 0.955, (0.136, 0.012, 0.022, 0.066, 0.013, 0.022)),
  ("yelpchi_reviews", {}, 0.533, (0.916, 0.019)),
  ("airports", {"graph": "brazil"}, 1.045, None),
  ("airports", {"graph": "europe"}, 1.077, None),
  ("airports", {"graph": "usa"}, 0.996, None),
  ("flavor", {}, 0.826, None),
  ("heterophilous_npz", {"graph": "chameleon_filtered"}, 0.926, None),
  ("twitch", {"graph": "ENGB"}, 0.978, None),
  ("twitch", {"graph": "PTBR"}, 0.991, None),
  ("worldcup", {}, 1.021, None),
  ("larval_connectome", {}, 0.863, None),
]


@pytest.mark.parametrize("name, options, index, published", H2)
def test_h2_index(name, options, index, published):
  graph = graph_of(name, **options)
  report = homophily.metapath_homophily(graph.with_reverses(skip=check.symmetric(graph)))
  close(report.h2_index, index)
  if published is not None:
    assert len(report.metapaths) == len(published)
    assert report.h2_index == pytest.approx(1 - np.mean(published), abs=1e-3)


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


def test_larval_connectome():
  """The notes' figures of ad, aa and da read all four matrices in the order of dd's neurons."""
  graph = graph_of("larval_connectome")
  relations = {
    "axon_dendrite": (63545, 51022, 0.159, 0.075),  # notes: 49,501, .105, .019
    "axon_axon": (40636, 33184, 0.442, 0.369),  # notes: 31,339, .126, .037
    "dendrite_dendrite": (9019, 7662, 0.397, 0.331),
    "dendrite_axon": (3722, 3160, 0.225, 0.147),  # notes: 2,868, .121, .029
  }
  assert sizes(graph) == (dict(neuron=2952), {name: f[0] for name, f in relations.items()})
  assert len(classes(graph)) == 17 and classes(graph).sum() == 2606
  assert (classes(graph).max(), classes(graph).min()) == (476, 28)
  close(majority(graph), 0.183)
  for name, (_, pairs, *h) in relations.items():
    found = homophily.relation_homophily(graph, ("neuron", name, "neuron"))
    assert found.pairs == pairs
    close((found.edge, found.adjusted), h)


def test_liar():
  graph = graph_of("liar")
  nodes = dict(
    statement=12836, speaker=3318, subject=144, context=5161, job=1359, state=84, party=24
  )
  edges = dict(
    said_by=12836, about=27796, said_in=12707, by_holder_of=9260, from_state=10082, of_party=12836
  )
  assert sizes(graph) == (nodes, edges)
  assert classes(graph).tolist() == [1050, 2511, 2108, 2638, 2466, 2063]
  close(majority(graph), 0.206)
  assert {name: mask.sum() for name, mask in graph.splits.items()} == dict(
    train=10269, val=1284, test=1283
  )
  two = graph_of("liar", label="two")
  close(majority(two), 0.558)
  published = {  # h, h_adj of six classes; of two
    "said_by": (0.212, 0.039, 0.583, 0.136),
    "about": (0.182, 0.004, 0.513, 0.012),
    "said_in": (0.189, 0.011, 0.520, 0.022),
    "by_holder_of": (0.200, 0.015, 0.560, 0.066),
    "from_state": (0.184, 0.004, 0.517, 0.013),  # notes: .005 for .0045
    "of_party": (0.183, 0.006, 0.516, 0.022),
  }
  for relation, figures in published.items():
    close(along(graph, relation, count="walks"), figures[:2])
    close(along(two, relation, count="walks"), figures[2:])


@pytest.mark.parametrize(
  "language, nodes, edges, share, follows, feature",
  [
    ("DE", (9498, 2514), (153138, 193725), 0.605, (0.632, 0.139), (0.534, 0.007)),
    ("ENGB", (7126, 2545), (35324, 148218), 0.546, (0.556, 0.085), (0.510, 0.005)),
    ("ES", (4648, 2148), (59382, 90129), 0.707, (0.580, 0.104), (0.575, 0.005)),  # .576
    ("PTBR", (1912, 1449), (31299, 38132), 0.654, (0.571, 0.107), (0.539, 0.005)),
  ],
)
def test_twitch(language, nodes, edges, share, follows, feature):
  graph = data.load("twitch", graph=language)
  assert sizes(graph) == (
    dict(zip(("streamer", "feature"), nodes)),
    dict(zip(("follows", "has"), edges)),
  )
  close(majority(graph), share)
  close(direct(graph, "follows"), follows)
  close(along(graph, "has", count="walks"), feature)
  shared = data.load("twitch", graph=language, vocabulary=True)
  assert shared.num_nodes["feature"] == 3170 and sizes(shared)[1] == sizes(graph)[1]


def test_worldcup():
  graph = graph_of("worldcup")
  nodes, edges = sizes(graph)
  assert nodes == dict(
    player=10401, squad=625, team=88, tournament=30, stage=155, match=1248, stadium=240,
    manager=475, referee=493, confederation=6, award=8,
  )  # fmt: skip
  published = dict(
    scored_in=3637, booked_in=3178, kicked_penalty_in=396, judged=1248, led_in=2538, played=2496,
    won=200, replaced_by=5878, held_in=1248,
  )  # fmt: skip
  published["in"] = 13843
  assert {name: edges[name] for name in published} == published
  assert edges["went_off_in"] + edges["came_on_in"] == 10222
  names = dict(zip(graph.schema.class_names, classes(graph)))
  assert names == dict(defender=3272, midfielder=3075, forward=2772, goalkeeper=1282)
  close(majority(graph), 0.315)
  close(graph.nodes["player"].features[:, -1].mean(), 0.185)

  close(along(graph, "in", count="walks"), (0.255, -0.023))
  close(along(graph, "scored_in", count="walks"), (0.462, 0.016))
  close(along(graph, "booked_in", count="walks"), (0.325, -0.026))
  close(direct(graph, "replaced_by"), (0.550, 0.292))
  member = graph.edges["player", "in", "squad"]
  place = {}
  for relation, kind in (("of", "team"), ("at", "tournament")):
    found = graph.edges["squad", relation, kind]
    of = np.empty(625, int)
    of[np.asarray(found.senders)] = found.receivers
    place[kind] = of[np.asarray(member.receivers)]
  close(together(graph, member.senders, place["team"], count="walks"), (0.272, -0.001))
  close(together(graph, member.senders, place["tournament"], count="walks"), (0.277, 0.006))


def test_worldcup_substitutions_of_a_team_in_a_match(data_dir):
  graph = graph_of("worldcup")
  read = lambda name: files.parse_table(
    (data_dir / f"worldcup/data-csv/{name}.csv").read_text(encoding="utf-8"), path=name
  )
  rows, changes = files.number(read("players")["player_id"], path="players"), read("substitutions")
  players = [rows[player] for player in changes["player_id"]]
  sides = [f"{match} {team}" for match, team in zip(changes["match_id"], changes["team_id"])]
  close(together(graph, players, sides, count="walks"), (0.365, 0.0085), digits=3)  # notes: .009


def test_movielens():
  try:
    metadata.distribution("recbole")
  except metadata.PackageNotFoundError:
    pytest.skip("the package recbole, which holds MovieLens-100k, is not installed")
  graph = graph_of("movielens")
  close(homophily.metapath_homophily(graph.with_reverses()).h2_index, 1.000)
  assert sizes(graph) == (dict(user=943, movie=1682), dict(rated=100000))
  close(majority(graph), 0.710, digits=3)
  close(along(graph, "rated")[0], 0.589)
  close(along(graph, "rated", count="walks")[1], 0.011)
  known = graph_of("movielens", label="age", knowledge=True)
  assert sum(sizes(known)[1].values()) == 100000 + 91631
  assert len({name[1] for name in known.edges} - {"rated"}) == 24
  assert len(classes(known)) == 4
