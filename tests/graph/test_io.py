"""Graphs as files: the round trip, and every way in which a file can be wrong."""

import jax
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.graph import load_npz
from h2g.graph import save_npz
from h2g.graph.padding import pad
from tests.models.graphs import random_graph


def arrays(**changes):
  """A right file's content, changed."""
  content = {
    "target": np.array("paper"),
    "nodes/paper/features": np.ones((4, 2)),
    "nodes/paper/labels": np.array([0, 1, 0, -1]),
    "nodes/author/num_nodes": np.array(3),
    "edges/author/writes/paper/index": np.array([[0, 1, 2], [3, 2, 1]]),
  }
  return {k: v for k, v in (content | changes).items() if v is not None}


def test_round_trip(tmp_path):
  graph = random_graph().with_splits({"train": np.arange(13) < 7})
  save_npz(jax.tree.map(lambda x: x, graph), tmp_path / "graph.npz")  # its dictionaries are sorted
  back = load_npz(tmp_path / "graph.npz")
  assert back.schema == graph.schema
  jax.tree.map(np.testing.assert_array_equal, back, graph)
  assert [path.name for path in tmp_path.iterdir()] == ["graph.npz"]  # nothing half-written
  save_npz(pad(graph, {"paper": 16}, dict.fromkeys(graph.edges, 50)), tmp_path / "graph.npz")
  jax.tree.map(np.testing.assert_array_equal, load_npz(tmp_path / "graph.npz"), graph)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
  with pytest.raises(InputError, match=r"no/where/graph\.npz cannot be written: No such file"):
    save_npz(random_graph(), tmp_path / "no" / "where" / "graph.npz")
  graph = random_graph().with_edges(("paper", "a/b", "paper"), [0], [1])
  with pytest.raises(InputError, match="the name 'a/b' holds a slash"):
    save_npz(graph, tmp_path / "graph.npz")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"target": None}, "key 'target' is missing"),
    ({"target": np.array("venue")}, "target 'venue' is no node type"),
    (
      {"edges/author/writes/paper/index": np.array([[0, 1, 7], [0, 1, 2]])},
      r"senders of \('author', 'writes', 'paper'\): edge 2 has index 7, outside the 3 nodes",
    ),
    ({"edges/author/writes/paper/index": np.zeros((3, 2), int)}, r"shape \[3, 2\]: give \[2"),
    (
      {"nodes/paper/features": np.array([[1, 2], [3, np.nan], [0, 0], [1, 1]])},
      "row 1, column 1 is nan",
    ),
    ({"nodes/paper/features": np.ones((3, 2))}, "4|3"),
    ({"nodes/paper/labels": np.array([0, 1, -2, 0])}, "label -2 of 'paper' node 2 is outside"),
    ({"class_names": np.array(["only"])}, "label 1 of 'paper' node 1 is outside"),
    ({"nodes/paper/labels": np.array([0.0, 1.0, 0.5, 0.0])}, "give integers"),
    ({"edges/author/reads/book/index": np.zeros((2, 0), int)}, "names node type 'book'"),
    ({"splits/train": np.ones(3, bool)}, r"split 'train' is bool\[3\]: give bool\[4\]"),
    ({"class_names": np.array("only")}, r"'class_names' has shape \[\]: give \[C\]"),
    ({"nodes/author/num_nodes": np.array(-3)}, "num_nodes of node type 'author' is -3"),
    ({"extra": np.ones(1)}, "key 'extra' is not understood"),
    ({"edges/author/writes/paper/features": np.ones((2, 1))}, "2 rows, 3 are expected"),
  ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, changes, message):
  np.savez(tmp_path / "graph.npz", **arrays(**changes))
  with pytest.raises(InputError, match=message) as error:
    load_npz(tmp_path / "graph.npz")
  assert "\n" not in str(error.value) and "graph.npz" in str(error.value)


def test_files_that_are_no_archives(tmp_path):
  with pytest.raises(InputError, match="does not exist"):
    load_npz(tmp_path / "none.npz")
  (tmp_path / "text.npz").write_text("not an archive")
  with pytest.raises(InputError, match=r"no readable \.npz"):
    load_npz(tmp_path / "text.npz")
  np.savez(tmp_path / "whole.npz", **arrays())
  content = (tmp_path / "whole.npz").read_bytes()
  (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
  with pytest.raises(InputError, match=r"no readable \.npz"):
    load_npz(tmp_path / "cut.npz")
  np.savez(tmp_path / "pickled.npz", target=np.array([{"a": 1}], dtype=object))
  with pytest.raises(InputError, match=r"no readable \.npz of plain arrays"):
    load_npz(tmp_path / "pickled.npz")


def test_a_lone_array_and_a_path_below_a_file(tmp_path):
  np.save(tmp_path / "array.npy", np.arange(3))
  with pytest.raises(InputError, match=r"array\.npy is no readable \.npz"):
    load_npz(tmp_path / "array.npy")
  with pytest.raises(InputError, match="cannot be written: Not a directory"):
    save_npz(random_graph(), tmp_path / "array.npy" / "graph.npz")


def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
  """Checksums, decompression, the archive's directory: each part of a file can be damaged."""
  graph = random_graph()
  save_npz(graph, tmp_path / "graph.npz")
  content = (tmp_path / "graph.npz").read_bytes()
  refused = 0
  for at in range(0, len(content), 13):
    damaged = bytearray(content)
    damaged[at] ^= 0x55
    (tmp_path / "graph.npz").write_bytes(damaged)
    try:
      back = load_npz(tmp_path / "graph.npz")
    except InputError as error:
      assert "\n" not in str(error)
      refused += 1
    else:  # a time stamp, say
      jax.tree.map(np.testing.assert_array_equal, back, graph)
  assert refused > len(content) / 13 / 2
