"""PyTorch archives: every dtype and layout read, nothing run, nothing read beyond its end."""

import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from torch_writer import Archive
from torch_writer import array
from torch_writer import Call
from torch_writer import frame
from torch_writer import Global
from torch_writer import Storage
from torch_writer import STORAGES

from h2g.data import torch_archive
from h2g.errors import InputError

PATH = "x.pt"


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", STORAGES)
def test_every_dtype(tmp_path, name, compress):
  values = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, name, None) or name)
  archive = Archive()
  path = archive.write(tmp_path / PATH, {"x": archive.tensor(values)}, compress=compress)
  found = torch_archive.load(path)["x"]
  assert found.dtype == values.dtype and not found.flags.writeable
  np.testing.assert_array_equal(found.astype(np.float64), values.astype(np.float64))


def test_layouts_and_containers(tmp_path):
  archive, values = Archive(), np.arange(12, dtype=np.int64)
  ordered = Call(Global("collections", "OrderedDict"), [["a", 1]])
  default = Call(Global("collections", "defaultdict"), Global("builtins", "dict"))
  path = archive.write(
    tmp_path / PATH,
    [
      archive.tensor(values, offset=1, size=(2, 3), stride=(1, 4)),
      archive.tensor(values[:0], size=(0, 5), stride=(5, 1)),
      archive.tensor(values, size=(), stride=()),
      (ordered, default, Call(Global("torch", "Size"), [2, 3]), {1, 2}, None, True, "text", 2.5),
      array(np.arange(3.0, dtype=">f8")),
      array([array(np.arange(2)), array(np.arange(2, 4))]),
    ],
  )
  view, empty, scalar, plain, numbers, nested = torch_archive.load(path)
  np.testing.assert_array_equal(view, [[1, 5, 9], [2, 6, 10]])
  assert empty.shape == (0, 5) and scalar == 0
  assert plain == ({"a": 1}, {}, (2, 3), {1, 2}, None, True, "text", 2.5)
  assert np.stack(list(np.asarray(nested))).tolist() == [[0, 1], [2, 3]]
  assert len(np.asarray(numbers)) == 3


def test_big_endian_numbers(tmp_path):
  archive = Archive()
  tensor = archive.tensor(np.arange(4, dtype=np.float32).astype(">f4").view("<f4"))
  path = archive.write(tmp_path / PATH, tensor, order="big")
  np.testing.assert_array_equal(torch_archive.load(path), np.arange(4))


def test_a_table_of_pandas(tmp_path):
  rows = [array(np.full(2, k, np.float32)) for k in range(3)]
  table = frame(id=["a", "b", "c"], time=np.array([2015, 2017, 2018]), emb=rows)
  path = Archive().write(tmp_path / PATH, table)
  found = torch_archive.columns(torch_archive.load(path), path=path)
  assert list(found) == ["id", "time", "emb"] and found["id"].tolist() == ["a", "b", "c"]
  assert found["time"].tolist() == [2015, 2017, 2018]
  assert np.stack(list(found["emb"])).tolist() == [[0, 0], [1, 1], [2, 2]]
  with pytest.raises(InputError, match="holds a dict where a table is expected"):
    torch_archive.columns({}, path=path)


def test_hetero_data(tmp_path):
  archive, base = Archive(), "torch_geometric.data."
  store = lambda kind, **fields: Call(
    Global(base + "storage", kind), new=True, state={"_mapping": fields, "_key": None}
  )
  data = Call(
    Global(base + "hetero_data", "HeteroData"),
    new=True,
    state={
      "_node_store_dict": {"a": store("NodeStorage", x=archive.tensor(np.eye(2)))},
      "_edge_store_dict": {("a", "to", "a"): store("EdgeStorage", edge_index=1)},
    },
  )
  path = archive.write(tmp_path / PATH, (data, None))
  found = torch_archive.hetero(torch_archive.load(path), path=path)
  np.testing.assert_array_equal(found["nodes"]["a"]["x"], np.eye(2))
  assert found["edges"] == {("a", "to", "a"): {"edge_index": 1}}
  with pytest.raises(InputError, match="holds a int, not the HeteroData"):
    torch_archive.hetero(3, path=path)


class Run:
  def __reduce__(self):
    return os.system, ("touch hacked",)


@pytest.mark.parametrize(
  "name",
  [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr"),
    ("builtins", "__import__"), ("torch", "load"), ("torch.jit", "load"), ("numpy", "load"),
    ("functools", "partial"), ("pickle", "loads"), ("torch_geometric.data.data", "os"),
    ("pandas.io.pickle", "read_pickle"), ("collections", "OrderedDict.fromkeys"),
  ],
)  # fmt: skip
def test_nothing_but_the_list_is_called(tmp_path, name):
  path = Archive().write(tmp_path / PATH, [Call(Global(*name), "touch hacked")])
  with pytest.raises(InputError, match=rf"asks for {name[0]}\.{name[1]}, which is not on the list"):
    torch_archive.load(path)


def test_a_program_in_the_pickle_is_not_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = Archive().write(tmp_path / PATH, pickle.dumps(Run()))
  with pytest.raises(InputError, match=r"asks for posix\.system"):
    torch_archive.load(path)
  assert not (tmp_path / "hacked").exists()


def test_one_file_cannot_change_what_the_next_may_call(tmp_path):
  rebuild = Global("torch._utils", "_rebuild_tensor_v2")
  holder = Global("torch_geometric.data.data", "Data")
  made = Call(holder, new=True, state=(None, {"__class__": holder, "fields": rebuild}))
  first = Archive().write(
    tmp_path / "first.pt", [made, Call(Global("torch", "Size"), state={"a": 1})]
  )
  with pytest.raises(InputError):
    torch_archive.load(first)
  archive = Archive()
  second = archive.write(tmp_path / PATH, archive.tensor(np.eye(2)))
  np.testing.assert_array_equal(torch_archive.load(second), np.eye(2))


def bad(make, message):
  return pytest.param(make, message, id=message)


FLOATS = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    bad(lambda a: a.tensor(FLOATS, size=(5,), stride=(1,)), "reaches number 5 of 4"),
    bad(lambda a: a.tensor(FLOATS, offset=4), "reaches number 8 of 4"),
    bad(lambda a: a.tensor(FLOATS, offset=-1), "a tensor of size"),
    bad(lambda a: a.tensor(FLOATS, stride=(-1,)), "a tensor of size"),
    bad(lambda a: a.tensor(FLOATS, size=(1 << 40,), stride=(0,)), "repeats its 4 numbers"),
    bad(lambda a: a.tensor(FLOATS, size=("4",)), "a tensor of size"),
    bad(lambda a: a.tensor(FLOATS, count=5), "has 16 bytes, 5 numbers of float32 are 20"),
    bad(lambda a: a.tensor(FLOATS, kind="Double"), "4 numbers of float64 are 32"),
    bad(lambda a: a.tensor(FLOATS, kind="ComplexFloat"), "asks for torch.ComplexFloatStorage"),
    bad(lambda a: Storage("storage", Global("torch", "FloatStorage"), "9", "cpu", 4),
        "data/9 are missing"),
    bad(lambda a: Storage("module", 1), "refers to"),
    bad(lambda a: Call(Global("torch._utils", "_rebuild_tensor_v2"), [1.0], 0, (1,), (1,)),
        "a tensor without numbers"),
    bad(lambda a: Call(Global("builtins", "int"), "x"), "no readable PyTorch archive"),
    bad(lambda a: Call(Global("builtins", "bytearray"), 1 << 40), "no readable PyTorch archive"),
  ],
)  # fmt: skip
def test_tensors_that_cannot_be(tmp_path, make, message):
  archive = Archive()
  path = archive.write(tmp_path / PATH, make(archive))
  with pytest.raises(InputError, match=message):
    torch_archive.load(path)


def test_damaged_archives(tmp_path):
  archive = Archive()
  path = archive.write(tmp_path / PATH, archive.tensor(np.arange(1000.0)))
  content = path.read_bytes()
  for at in range(0, len(content), 97):
    path.write_bytes(content[:at])
    with pytest.raises(InputError):
      torch_archive.load(path)
  at = content.index(np.float64(500).tobytes())
  path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
  with pytest.raises(InputError, match="wrong checksum of archive/data/0"):
    torch_archive.load(path)
  with pytest.raises(InputError, match="does not exist"):
    torch_archive.load(tmp_path / "none.pt")


@pytest.mark.parametrize(
  ("extra", "message"),
  [
    ([("../out", b"")], "climbs out"),
    ([("/etc/passwd", b"")], "climbs out"),
    ([("other/data.pkl", b"")], "2 members data.pkl"),
  ],
)
def test_strange_members(tmp_path, extra, message):
  path = Archive().write(tmp_path / PATH, 1, extra=extra)
  with pytest.raises(InputError, match=message):
    torch_archive.load(path)


def test_a_zip_without_a_pickle(tmp_path):
  with zipfile.ZipFile(tmp_path / PATH, "w") as archive:
    archive.writestr("a.csv", "1")
  with pytest.raises(InputError, match=r"0 members data\.pkl"):
    torch_archive.load(tmp_path / PATH)


def test_what_pytorch_itself_writes(tmp_path):
  torch = pytest.importorskip("torch", reason="reads archives that PyTorch wrote")
  wide = torch.arange(12).reshape(3, 4).to(torch.bfloat16)
  given = {"a": wide.T, "b": [torch.zeros(0, 3), torch.tensor(True)], "c": torch.nn.Parameter(wide)}
  torch.save(given, tmp_path / PATH)
  found = torch_archive.load(tmp_path / PATH)
  np.testing.assert_array_equal(found["a"].astype(float), wide.T.float().numpy())
  np.testing.assert_array_equal(found["c"].astype(float), wide.float().numpy())
  assert found["b"][0].shape == (0, 3) and found["b"][1]


def test_what_pytorch_geometric_itself_writes(tmp_path):
  torch = pytest.importorskip("torch", reason="reads archives that PyTorch wrote")
  pyg = pytest.importorskip("torch_geometric.data", reason="reads graphs of PyTorch Geometric")
  data = pyg.HeteroData()
  data["a"].x = torch.ones(3, 2)
  data["a", "to", "b"].edge_index = torch.tensor([[0, 1], [1, 0]])
  torch.save((data, None), tmp_path / PATH)
  found = torch_archive.hetero(torch_archive.load(tmp_path / PATH), path=PATH)
  np.testing.assert_array_equal(found["nodes"]["a"]["x"], np.ones((3, 2)))
  edges = found["edges"]["a", "to", "b"]["edge_index"]
  np.testing.assert_array_equal(edges, [[0, 1], [1, 0]])
