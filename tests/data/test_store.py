"""The array store: what goes in comes out, whole or not at all, in little memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from h2g.data import own
from h2g.data import store
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import mapped as mapped_pages
from h2g.graph.sampler import Sampler


def graph(seed=0):
  rng = np.random.default_rng(seed)
  ends = lambda high, count: rng.integers(0, high, count)
  return HeteroGraph.from_arrays(
    nodes={
      "item": {"features": rng.normal(size=(40, 3)), "labels": rng.integers(-1, 3, 40)},
      "user": {"num_nodes": 9},
      "empty": {"num_nodes": 0},
    },
    edges={
      ("item", "by", "user"): (ends(40, 90), ends(9, 90), rng.normal(size=(90, 2))),
      ("item", "like", "item"): (ends(40, 70), ends(40, 70)),
      ("user", "none", "empty"): (ends(1, 0), ends(1, 0)),
    },
    target="item",
    class_names=("x", "y", "z"),
    splits={"train": rng.random(40) < 0.5},
  )


def edges_of(edges):
  columns = [edges.senders, edges.receivers]
  if edges.features is not None:
    columns += list(np.asarray(edges.features).T)
  return sorted(zip(*(column.tolist() for column in columns)))


@pytest.mark.parametrize("memory", [1 << 30, 24 * 7])  # all edges in one window, or seven at a time
def test_a_graph_comes_back_with_its_reverses(tmp_path, monkeypatch, memory):
  monkeypatch.setattr(store, "CHUNK", 16)
  given = graph()
  store.save(given, tmp_path / "g.store", reverses=True, memory=memory)
  store.verify(tmp_path / "g.store")
  found, expected = store.load(tmp_path / "g.store"), given.with_reverses()
  assert found.schema == expected.schema
  assert found.num_nodes == expected.num_nodes
  np.testing.assert_array_equal(found.nodes["item"].features, given.nodes["item"].features)
  np.testing.assert_array_equal(found.target_labels, given.target_labels)
  np.testing.assert_array_equal(found.splits["train"], given.splits["train"])
  for name, edges in found.edges.items():
    other = expected.edges[name]
    assert edges_of(edges) == edges_of(other)
    np.testing.assert_array_equal(edges.indptr, other.indptr)
    np.testing.assert_array_equal(edges.sender_indptr, other.sender_indptr)
    np.testing.assert_array_equal(edges.sender_order, np.argsort(edges.senders, kind="stable"))
    order = np.lexsort((edges.senders, edges.receivers))
    np.testing.assert_array_equal(order, np.arange(len(order)))
  assert own.load(tmp_path / "g.store").schema == found.schema


def test_maps_are_sampled_as_arrays_in_memory(tmp_path):
  store.save(graph(), tmp_path / "g.store")
  mapped = store.load(tmp_path / "g.store")
  order = {name: (edges.senders, edges.receivers) for name, edges in mapped.edges.items()}
  plain = HeteroGraph.from_arrays(
    nodes={
      "item": {"features": mapped.nodes["item"].features, "labels": mapped.target_labels},
      "user": {"num_nodes": 9},
      "empty": {"num_nodes": 0},
    },
    edges={name: (*ends, mapped.edges[name].features) for name, ends in order.items()},
    target="item",
    class_names=("x", "y", "z"),
    splits=mapped.splits,
  )
  assert not mapped.nodes["item"].features.flags.writeable
  for seed in range(3):
    one, other = (
      Sampler(which).hgt([1, 4], [3, 3], np.random.default_rng(seed)) for which in (mapped, plain)
    )
    for name in one.nodes:
      np.testing.assert_array_equal(one.nodes[name].ids, other.nodes[name].ids)
    for name in one.edges:
      np.testing.assert_array_equal(one.edges[name].senders, other.edges[name].senders)
      np.testing.assert_array_equal(one.edges[name].features, other.edges[name].features)


def test_pages_that_were_read_are_given_back(tmp_path):
  store.save(graph(), tmp_path / "g.store")
  mapped = store.load(tmp_path / "g.store")
  features = mapped.nodes["item"].features
  before = features.copy()
  assert mapped_pages.Maps([np.asarray(features)]).trim(0) == mapped_pages.STATM.exists()
  np.testing.assert_array_equal(features, before)
  assert not mapped_pages.Maps([features]).trim(1 << 60)
  assert not mapped_pages.Maps([before, None]).trim(0)


def test_a_symmetric_relation_holds_each_edge_once_in_both_directions(tmp_path):
  with store.writing(tmp_path / "s", target="a", reverses=True, memory=48) as out:
    out.num_nodes("a", 5)
    out.labels(np.array([0, 1, 0, 1, -1]))
    out.symmetric_edges(("a", "near", "a"), [0, 1, 3, 0], [1, 0, 3, 4])
    out.symmetric_edges(("a", "near", "a"), [0], [1])
    out.extra("year", np.array([7, 8]))
  found = store.load(tmp_path / "s")
  assert list(found.edges) == [("a", "near", "a")]
  pairs = edges_of(found.edges["a", "near", "a"])
  assert pairs == [(0, 1), (0, 4), (1, 0), (3, 3), (4, 0)]
  assert store.extra(tmp_path / "s", "year").tolist() == [7, 8]
  with pytest.raises(InputError, match="keeps no array 'month': there are year"):
    store.extra(tmp_path / "s", "month")


LABELS = np.array([0, 1, -1])


def three(out):
  out.num_nodes("a", 3)
  out.labels(LABELS)


@pytest.mark.parametrize(
  ("fill", "message"),
  [
    (lambda out: out.num_nodes("b", 3), "without its target type 'a': it has b"),
    (lambda out: out.num_nodes("a", 3), "the target type 'a' has no labels"),
    (lambda out: (out.num_nodes("a", 2), out.labels(LABELS)), "has 2 nodes and 3 labels"),
    (lambda out: (three(out), out.labels(np.full(3, -1))), "no node of the target type 'a' is lab"),
    (lambda out: (three(out), out.labels(np.full(3, -2))), "must be -1"),
    (lambda out: (three(out), out.labels(np.ones(3))), "labels of 'a' are float64"),
    (lambda out: (three(out), out.num_nodes("a", 4)), "has 3 nodes, and 4"),
    (lambda out: (three(out), out.features("a", np.ones((2, 2)))), "has 3 nodes, and 2"),
    (lambda out: (three(out), out.features("a", np.full((3, 1), np.nan))), "row 0, column 0 is"),
    (lambda out: (three(out), out.features("a", np.array([["x"]]))), "are <U1"),
    (lambda out: (out.features("a", np.ones((1, 2))), out.features("a", np.ones((1, 3)))),
     "row 1 has 3 columns, 2 are expected"),
    (lambda out: (three(out), out.edges(("a", "r", "b"), [0], [0])), "names node type 'b'"),
    (lambda out: (three(out), out.edges(("a", "r", "a"), [0], [3])), "index 3 is outside the 3"),
    (lambda out: (three(out), out.edges(("a", "r", "a"), [0], [-1])), "edge 0 has index -1"),
    (lambda out: (three(out), out.edges(("a", "r", "a"), [0, 1], [1])), "2 senders and 1 rec"),
    (lambda out: (three(out), out.edges(("a", "r", "a"), [0.5], [1])), "are float64"),
    (lambda out: (three(out), out.edges(("a", "r"), [0], [1])), "must be .source, relation, targ"),
    (lambda out: (three(out), out.split("train", np.ones(2, bool))), "split 'train' is bool"),
    (lambda out: 1 / 0, None),
  ],
)  # fmt: skip
def test_what_is_no_graph_leaves_nothing(tmp_path, fill, message):
  with (
    pytest.raises(InputError if message else ZeroDivisionError, match=message),
    store.writing(tmp_path / "s", target="a") as out,
  ):
    fill(out)
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_what_cannot_be_written_is_said(tmp_path):
  store.save(graph(), tmp_path / "s")
  with pytest.raises(InputError, match="exists already"):
    store.save(graph(), tmp_path / "s")
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot be written"):
    store.save(graph(), tmp_path / "file" / "s")


def damage_manifest(**changes):
  def change(path):
    manifest = json.loads((path / "graph.json").read_text())
    (path / "graph.json").write_text(json.dumps(manifest | changes))

  return change


def cut(path):
  file = path / "node0.features.npy"
  file.write_bytes(file.read_bytes()[:-1])


def other_dtype(path):
  file = path / "node0.features.npy"
  file.write_bytes(file.read_bytes().replace(b"<f4", b"<i4"))


def climb(path):
  manifest = json.loads((path / "graph.json").read_text())
  manifest["arrays"]["../x.npy"] = manifest["arrays"].popitem()[1]
  (path / "graph.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (cut, "node0.features.npy has 607 bytes, 608 are expected: it is truncated"),
    (other_dtype, "is not float32"),
    (lambda path: (path / "node0.features.npy").unlink(), "node0.features.npy is missing"),
    (lambda path: (path / "graph.json").unlink(), "graph.json does not exist"),
    (lambda path: (path / "graph.json").write_text("{"), "cannot be read"),
    (lambda path: (path / "graph.json").write_text("[]"), "is no manifest of a store"),
    (climb, "names a file '../x.npy' outside of its folder"),
    (damage_manifest(version=2), "has version 2, this h2g reads 1"),
    (damage_manifest(target="shop"), "target type 'shop' is not there"),
    (damage_manifest(class_names=["x"]), "outside the 1 classes"),
    (damage_manifest(nodes=[{"name": "item"}]), "does not describe a graph"),
    (damage_manifest(arrays=[]), "key 'arrays' is missing"),
  ],
)
def test_a_damaged_store_is_refused(tmp_path, damage, message):
  store.save(graph(), tmp_path / "s")
  damage(tmp_path / "s")
  with pytest.raises(InputError, match=message):
    store.load(tmp_path / "s")


def test_verify_finds_a_changed_byte_and_an_index_out_of_range(tmp_path):
  store.save(graph(), tmp_path / "s")
  file = tmp_path / "s" / "node0.features.npy"
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(bytes(content))
  store.load(tmp_path / "s")
  with pytest.raises(InputError, match="wrong checksum"):
    store.verify(tmp_path / "s")


@pytest.mark.slow
def test_the_twin_of_rcdd_stays_small(tmp_path):
  """At 1/100: built in far less memory than it takes on disk."""
  pytest.importorskip("resource")
  command = ["-m", "experiments.speed.rcdd_twin", "--scale", "0.01", "--batches", "5"]
  run = subprocess.run(
    [sys.executable, *command, "--path", str(tmp_path / "twin")],
    capture_output=True,
    text=True,
    check=True,
  )
  peak = {
    line.split()[0]: float(line.split()[4]) for line in run.stdout.splitlines() if "GiB" in line
  }
  assert set(peak) == {"build", "open", "sampler", "sample"}
  assert max(peak.values()) < 1.0, run.stdout
  assert not (tmp_path / "twin").exists()
