"""One's own graph: it is read from tables, archives and arrays, and what is wrong is named."""

import importlib.util
import json
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from configs.h2gb import get_config
from h2g import data
from h2g.data import check
from h2g.data import files
from h2g.data import own
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import save_npz

ITEM = """id,kind,part,price,colour
a,toy,train,1.5,red
b,book,train,,blue
c,toy,val,2.5,red
d,book,test,4,blue
e,,,5,
"""
USER = "id,age\nu,20\nv,40\n"
BUYS = "source,target,amount\nu,a,1\nu,b,2\nv,c,1\nv,d,1\nv,a,3\n"
CONFIG = {"target": "item", "label": "kind", "split": "part"}


def shop(folder, **changes):
  """A folder of tables; None leaves one out."""
  content = {
    "graph.json": json.dumps(CONFIG),
    "nodes/item.csv": ITEM,
    "nodes/user.csv": USER,
    "edges/user.buys.item.csv": BUYS,
  }
  for name, text in (content | changes).items():
    if text is not None:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_text(text, encoding="utf-8")
  return folder


def checked(path, capsys, *flags):
  status = check.main(["check", str(path), *flags])
  return status, capsys.readouterr()


def test_a_folder_of_tables(tmp_path):
  graph = own.load(shop(tmp_path / "shop"))
  assert graph.num_nodes == dict(item=5, user=2)
  assert graph.schema.class_names == ("book", "toy")
  assert graph.target_labels.tolist() == [1, 0, 1, 0, -1]
  assert {name: np.flatnonzero(mask).tolist() for name, mask in graph.splits.items()} == dict(
    train=[0, 1], val=[2], test=[3]
  )
  price, missing, blue, red = graph.nodes["item"].features.T
  assert missing.tolist() == [0, 1, 0, 0, 0] and price[1] == 0
  assert price.sum() == pytest.approx(0, abs=1e-6)
  assert blue.tolist() == [0, 1, 0, 1, 0] and red.tolist() == [1, 0, 1, 0, 0]
  edges = graph.edges["user", "buys", "item"]
  assert sorted(zip(edges.senders.tolist(), edges.receivers.tolist(), edges.features[:, 0])) == [
    (0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 2, 1), (1, 3, 1)
  ]  # fmt: skip


@pytest.mark.parametrize("inside", ["", "shop/"])
def test_an_archive_of_the_folder_is_the_same(tmp_path, inside):
  folder = shop(tmp_path / "shop")
  with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
    for file in folder.rglob("*"):
      if file.is_file():
        archive.write(file, inside + file.relative_to(folder).as_posix())
  shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, "shop")
  save_npz(own.load(folder), tmp_path / "shop.npz")
  expected = own.load(folder).summary()
  for name in ("shop.zip", "packed.tar.gz", "shop.npz"):
    assert own.load(tmp_path / name).summary() == expected


def test_tables_may_be_parquet(tmp_path):
  folder = shop(tmp_path / "shop")
  if importlib.util.find_spec("pyarrow") is None:
    (folder / "nodes" / "more.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="needs pyarrow to be read: pip install pyarrow"):
      own.load(folder)
    return
  import pyarrow
  from pyarrow import parquet

  expected = own.load(folder)
  table = pyarrow.table({"id": ["u", "v"], "age": [20, 40]})
  parquet.write_table(table, folder / "nodes" / "user.parquet")
  (folder / "nodes" / "user.csv").unlink()
  found = own.load(folder).nodes["user"].features
  np.testing.assert_array_equal(found, expected.nodes["user"].features)


def test_config_data_path_takes_a_folder(tmp_path):
  config = get_config("tiny")
  config.data.path = str(shop(tmp_path / "shop"))
  graph = data.prepare(config.data)
  assert ("item", "rev_buys", "user") in graph.edges


@pytest.mark.parametrize(
  "changes, messages",
  [
    ({"nodes/item.csv": ITEM.replace("b,book", "a,book")},
     ["nodes/item.csv: node id 'a' stands twice, in rows 1 and 2",
      "edges/user.buys.item.csv row 2: target 'b' is no item"]),
    ({"nodes/item.csv": ITEM.replace("kind", "sort")}, ["label column 'kind' is missing"]),
    ({"nodes/item.csv": None}, ["is without its target type 'item': there are user",
                                "unknown node type 'item'"]),
    ({"edges/user.sells.item.csv": BUYS,
      "graph.json": json.dumps(CONFIG | {"relations": ["user.buys.item", "user.likes.item"]})},
     ["unknown relation 'user.sells.item'; graph.json lists user.buys.item",
      "relation 'user.likes.item' of graph.json has no table"]),
    ({"edges/shop.sells.item.csv": BUYS}, ["unknown node type 'shop'"]),
    ({"nodes/user.csv": USER.replace("20", "inf"), "nodes/item.csv": ITEM.replace("2.5", "nan")},
     ["nodes/user.csv: column 'age' is not finite in row 1: 'inf'",
      "nodes/item.csv: column 'price' is not finite in row 3: 'nan'"]),
    ({"nodes/user.csv": "id,age\nu,20\nv"}, ["nodes/user.csv line 3 has 1 fields, 2 are expected"]),
    ({"edges/user.buys.item.csv": "from,target\nu,a\n"}, ["column 'source' is missing"]),
    ({"edges/user.buys.item.csv": BUYS.replace("u,b,2", "u,b,two")}, ["amount 'two' is no number"]),
    ({"graph.json": "{"}, ["graph.json is no JSON"]),
    ({"graph.json": "{}"}, ["graph.json: key 'target' is missing"]),
    ({"graph.json": None}, ["graph.json is missing"]),
    ({"graph.json": json.dumps(CONFIG | {"sha256": {"nodes/user.csv": "0" * 64}})},
     ["nodes/user.csv: wrong checksum"]),
    ({"nodes/item.csv": ITEM.replace("val", "dev")}, ["row 3 is 'dev', not one of train, val"]),
  ],
)  # fmt: skip
def test_the_validator_names_every_problem(tmp_path, capsys, changes, messages):
  folder = shop(tmp_path / "shop", **changes)
  status, printed = checked(folder, capsys)
  assert status == 1
  for message in messages:
    assert message in printed.out
  with pytest.raises(InputError):
    own.load(folder)


def arrays(**changes):
  content = {
    "target": np.array("item"),
    "nodes/item/features": np.ones((6, 2)),
    "nodes/item/labels": np.array([0, 1, 0, 1, 0, -1]),
    "nodes/user/num_nodes": np.array(3),
    "edges/user/buys/item/index": np.array([[0, 1, 2], [3, 4, 5]]),
    "splits/train": np.arange(6) < 3,
    "splits/val": np.arange(6) == 4,
  }
  return {key: value for key, value in (content | changes).items() if value is not None}


@pytest.mark.parametrize(
  "changes, messages",
  [
    ({"edges/user/buys/item/index": np.array([[0, 3], [-1, 2]]),
      "nodes/item/features": np.where(np.eye(6, 2) > 0, np.nan, 0)},
     ["senders of ('user', 'buys', 'item'): edge 1 has index 3, outside the 3 nodes",
      "receivers of ('user', 'buys', 'item'): edge 0 has index -1",
      "row 0, column 0 is nan (2 such values)"]),
    ({"target": np.array("thing")}, ["without its target type 'thing': there are item, user"]),
    ({"target": None}, ["key 'target' is missing"]),
    ({"nodes/item/labels": None}, ["the target type 'item' has no labels"]),
    ({"nodes/item/labels": np.full(6, -1)}, ["no node of the target type 'item' is labelled"]),
    ({"nodes/item/labels": np.arange(5)},
     ["node type 'item': unequal lengths, features 6, labels 5"]),
    ({"edges/shop/sells/item/index": np.zeros((2, 1), int)}, ["names node type 'shop'"]),
    ({"edges/user/buys/item/index": np.zeros((3, 2), int)}, ["has shape [3, 2]: give [2, E]"]),
    ({"edges/user/buys/item/index": np.zeros((2, 2))}, ["senders of", "float64"]),
    ({"edges/user/buys/item/features": np.ones((2, 1))}, ["have 2 rows, 3 are expected"]),
    ({"splits/val": np.arange(6) < 1, "splits/test": np.arange(5) < 1},
     ["split 'test' is bool[5]"]),
    ({"splits/val": np.arange(6) < 1}, ["'item' node 0 is in two splits at once"]),
    ({"colour": np.ones(3)}, ["key 'colour' is not understood"]),
    ({"nodes/item/features": np.array([{}] * 6)}, ["no readable .npz of plain arrays"]),
  ],
)  # fmt: skip
def test_the_validator_reads_arrays(tmp_path, capsys, changes, messages):
  np.savez(tmp_path / "graph.npz", **arrays(**changes))
  status, printed = checked(tmp_path / "graph.npz", capsys)
  assert status == 1
  for message in messages:
    assert message in printed.out


def test_what_is_sound_is_summarised(tmp_path, capsys):
  np.savez(tmp_path / "graph.npz", **arrays())
  status, printed = checked(tmp_path / "graph.npz", capsys)
  assert status == 0
  assert "user -> buys -> item" in printed.out and "can be used" in printed.out
  assert "class '1' has 2 labelled nodes: too few" in printed.out
  assert "H2 index" in printed.out
  status, printed = checked("celegans", capsys)
  assert status == 0 and "H2 index 1.030" in printed.out  # electrical is found to need no reverses


def test_checksums_and_damage(tmp_path, capsys):
  path = tmp_path / "graph.npz"
  np.savez(path, **arrays())
  digest = files.sha256(path.read_bytes())
  assert checked(path, capsys, "--sha256", digest, "--nohomophily")[0] == 0
  status, printed = checked(path, capsys, "--sha256", "0" * 64)
  assert status == 1 and "is not the original file" in printed.out
  path.write_bytes(path.read_bytes()[:-40])
  status, printed = checked(path, capsys)
  assert status == 1 and "no readable .npz of plain arrays" in printed.out
  folder = shop(tmp_path / "shop")
  shutil.make_archive(str(tmp_path / "shop"), "zip", folder)
  content = (tmp_path / "shop.zip").read_bytes()
  (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
  status, printed = checked(tmp_path / "cut.zip", capsys)
  assert status == 1 and "truncated or no archive" in printed.out
  status, printed = checked(tmp_path / "nothing.npz", capsys)
  assert status == 1 and "does not exist" in printed.out


@pytest.mark.parametrize("name", ["../evil.csv", "/evil.csv", "nodes/../../evil.csv", "..\\evil"])
def test_an_archive_that_climbs_out_is_refused_and_writes_nothing(tmp_path, capsys, name):
  with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
    archive.writestr("graph.json", json.dumps(CONFIG))
    archive.writestr(name, "id\n1\n")
  status, printed = checked(tmp_path / "shop.zip", capsys)
  assert status == 1 and "climbs out of the archive's folder" in printed.out
  with pytest.raises(InputError, match="climbs out"):
    files.extract(tmp_path / "shop.zip", tmp_path / "out")
  assert [path.name for path in tmp_path.iterdir()] == ["shop.zip"]


def test_nothing_is_unpickled(tmp_path):
  class Trap:
    def __reduce__(self):
      return (open, (str(tmp_path / "sprung"), "w"))

  np.savez(tmp_path / "graph.npz", **arrays(**{"nodes/item/features": np.array([Trap()])}))
  (tmp_path / "trap.npy").write_bytes(pickle.dumps(Trap()))
  assert own.inspect(tmp_path / "graph.npz").problems
  for name in ("graph.npz", "trap.npy"):
    with pytest.raises(InputError):
      files.parse_npz((tmp_path / name).read_bytes(), name)
    with pytest.raises(InputError):
      files.parse_npy((tmp_path / name).read_bytes(), name, "f")
  assert not (tmp_path / "sprung").exists()


def test_the_command_line(capsys):
  assert check.main(["check", "--help"]) == 0
  assert "--nohomophily" in capsys.readouterr().out
  for argv in (["check"], ["check", "a", "b"], ["check", "--colour", "a"]):
    assert check.main(argv) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_networkx_and_hetero_data_need_no_files(tmp_path):
  networkx = pytest.importorskip("networkx")
  from h2g.graph import from_networkx
  from h2g.graph import from_pyg

  friends = networkx.karate_club_graph()
  for _, fields in friends.nodes(data=True):
    fields["label"] = int(fields["club"] == "Officer")
  graph = from_networkx(friends)
  save_npz(graph, tmp_path / "karate.npz")
  assert own.load(tmp_path / "karate.npz").num_nodes == {"node": 34}
  hetero = from_pyg(
    {
      "x_dict": {"item": np.ones((4, 2), np.float32)},
      "y_dict": {"item": np.array([0, 1, 0, 1])},
      "num_nodes_dict": {"user": 2},
      "edge_index_dict": {("user", "buys", "item"): np.array([[0, 1], [2, 3]])},
    }
  )
  assert isinstance(hetero, HeteroGraph) and hetero.schema.target == "item"


def test_the_readme_brings_a_graph_in_under_sixty_lines(tmp_path, monkeypatch, capsys):
  pytest.importorskip("networkx")
  readme = pathlib.Path(__file__).parents[2] / "README.md"
  section = readme.read_text(encoding="utf-8").split("## Your own graph")[1].split("\n## ")[0]
  block = section.split("```python\n")[1].split("```")[0]
  assert len(block.splitlines()) < 60
  monkeypatch.chdir(tmp_path)
  exec(compile(block, "README.md", "exec"), {})
  assert "user -> buys -> item" in capsys.readouterr().out
  for name in ("shop", "shop.npz", "club.npz", "hetero.npz"):
    assert checked(name, capsys)[0] == 0


def test_no_array_is_too_strange_for_the_validator(tmp_path):
  strange = [
    np.array(3), np.array("x"), np.array(["a", "b"]), np.zeros((0, 3)), np.zeros((2, 3, 4)),
    np.array([True]), np.array([1 + 2j]), np.arange(6).astype("datetime64[s]"),
    np.array([2**63], np.uint64), np.array(-1), np.array(2**62), np.full((2, 3), 2**40),
    np.array([("a", 1)], dtype=[("x", "U1"), ("y", int)]), np.zeros(6, "S3"),
  ]  # fmt: skip
  for key in (*arrays(), "edges/user/buys/item/features", "class_names", "nodes/user/labels"):
    for value in strange:
      np.savez(tmp_path / "graph.npz", **arrays(**{key: value}))
      graph, problems = own.inspect(tmp_path / "graph.npz")
      assert (graph is None) == bool(problems), (key, value)
