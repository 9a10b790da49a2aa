"""The nine graphs of H2GB, each from a small file of the published format, and what is refused."""

import gzip
import io
import pathlib
import zipfile

import numpy as np
import pytest
from torch_writer import Archive
from torch_writer import array
from torch_writer import Call
from torch_writer import frame
from torch_writer import Global

from configs import datasets
from configs.h2gb import get_config
from h2g import data
from h2g.benchmark.grid import cells
from h2g.benchmark.grid import Grid
from h2g.data import convert
from h2g.data import download
from h2g.data import h_pokec
from h2g.data import ieee_cis
from h2g.data import oag
from h2g.data import ogbn_mag
from h2g.data import pdns
from h2g.data import published
from h2g.data import rcdd
from h2g.data import store
from h2g.data.stream import SampledBatches
from h2g.errors import InputError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  def refuse(url, to, **_):
    raise InputError(f"{url} could not be fetched: put it at {to}")

  monkeypatch.setattr(download, "fetch", refuse)


def text(content):
  return content.encode() if isinstance(content, str) else content


def folder(place, files):
  for name, content in files.items():
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text(content)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
  return str(place)


def zipped(place, archive, files, top=""):
  with zipfile.ZipFile(place / archive, "w", zipfile.ZIP_DEFLATED) as out:
    for name, content in files.items():
      content = text(content)
      out.writestr(top + name, gzip.compress(content) if name.endswith(".gz") else content)
  return str(place)


def pairs(graph, name):
  edges = graph.edges[name]
  return sorted(zip(edges.senders.tolist(), edges.receivers.tolist()))


def rows(graph, split):
  return np.flatnonzero(graph.splits[split]).tolist()


# Small files of the published formats.

RCDD = {
  # Node ids in no order, as the types: items 3, 0, 5, 6, 7, 8; b 1, 4; f 2.
  rcdd.NODES: "3,item,0.5:1\n1,b,1:2\n0,item,-1:0.25\n2,f,7:8\n5,item,1:1\n4,b,3:4\n"
  "6,item,0:0\n7,item,0:0\n8,item,0:0\n",
  rcdd.EDGES: "1,3,b,item,A\n4,0,b,item,A\n2,3,f,item,B\n1,2,b,f,E\n1,3,b,item,A\n",
  rcdd.TRAIN: "3,1\n5,0\n6,0\n7,0\n8,1\n",
  rcdd.TEST: "0\t1\n",
}


def mag(papers=6):
  years = [2010, 2012, 2014, 2016, 2018, 2019]
  files = {
    "raw/num-node-dict.csv.gz": f"author,field_of_study,institution,paper\n3,2,2,{papers}\n",
    "raw/triplet-type-list.csv.gz": "\n".join(",".join(name) for name in ogbn_mag.RELATIONS),
    "raw/" + ogbn_mag.FEATURES: "".join(f"{k},{k * 2}.5\n" for k in range(papers)),
    "raw/" + ogbn_mag.YEAR: "".join(f"{year}\n" for year in years),
    "raw/" + ogbn_mag.LABEL: "0\n1\n2\n0\n1\n2\n",
    "split/time/paper/train.csv.gz": "0\n1\n2\n3\n",
    "split/time/paper/valid.csv.gz": "4\n",
    "split/time/paper/test.csv.gz": "5\n",
  }
  edges = dict(zip(ogbn_mag.RELATIONS, ("0,1\n1,1\n", "0,0\n0,2\n1,3\n", "0,1\n1,0\n3,3\n",
                                        "4,1\n5,1\n")))  # fmt: skip
  return files | {"raw/" + ogbn_mag.EDGES[name]: lines for name, lines in edges.items()}


def pokec_line(user, *, gender="1", region="zilinsky kraj, zilina", age="20", **texts):
  fields = ["null"] * 59
  fields[:8] = [str(user), "1", "60", gender, region, "2012-05-25 11:20:00.0", "null", age]
  for place, value in texts.items():
    fields[int(place[1:])] = value
  return "\t".join(fields) + "\t\n"


def clubs(*names):
  return "".join(f'<div><a href="/klub/{name}" title="x">{name}</a></div>' for name in names)


POKEC = {
  h_pokec.PROFILES: pokec_line(3, gender="0", age="0", c8="tall", c44=clubs("rock", "pop"))
  + pokec_line(1, age="null", region="null", c44=clubs("pop"))
  + pokec_line(2, gender="null", c58="more")
  + "".join(pokec_line(user, gender=str(user % 2)) for user in range(4, 9)),
  h_pokec.FRIENDS: "1\t2\n2\t1\n3\t1\n8\t4\n",
}


def pdns_files(count=7):
  kinds = ["malicious", "benign", "other", "benign", "malicious", "benign", "benign", "malicious"]
  domains = "domain_node,type\n" + "".join(f"{k},{kind}\n" for k, kind in enumerate(kinds))
  features = "".join(f"{k},{k}.5,1\n" for k in reversed(range(8)))
  files = {
    "domains.csv": domains,
    "domains2.csv": domains,
    "domain_features.csv": "domain_node,a,b\n" + features,
    "ip_features.csv": "ip_node,a\n0,1\n1,2\n",
  }
  for k in range(count):
    files[f"timestamp_{k}_edges.csv"] = f"type,source,target\nsimilar,{k},0\nresolves,{k},1\n"
  return files | {
    "timestamp_2_edges.csv": "type,source,target\napex,2,1\nsimilar,2,0\nsimilar,0,2\n"
  }


CATEGORIES = [name for name in ieee_cis.CATEGORIES if name.startswith("M")]
OTHERS = [name for name in ieee_cis.CATEGORIES if not name.startswith("M")]


def ieee(count=10):
  names = ["TransactionID", "isFraud", "TransactionDT", "TransactionAmt", *ieee_cis.SHARED, "C1",
           *CATEGORIES]  # fmt: skip
  lines = []
  for k in range(count + 1):  # the last one has no identity
    shared = [f"{k % 3}.0", "", *["x"] * 9]
    fields = [100 + k, int(k == 4), 1000 - k, 10.0, *shared, "" if k == 0 else k, *["T"] * 9]
    lines.append(",".join(map(str, fields)))
  identity = ["TransactionID", "id_01", *OTHERS]
  found = [",".join(map(str, [100 + k, -k, *(["a"] * (len(OTHERS) - 1)), "" if k % 2 else "T"]))
           for k in range(count)]  # fmt: skip
  dashed = [name.replace("_", "-") for name in identity]
  return {
    "train_transaction.csv": "\n".join([",".join(names), *lines]) + "\n",
    "train_identity.csv": "\n".join([",".join(identity), *found]) + "\n",
    "test_transaction.csv": ",".join(name for name in names if name != "isFraud") + "\n",
    "test_identity.csv": ",".join(dashed) + "\n",
  }


def oag_graph(**changes):
  row = lambda k: array(np.full(3, k, np.float32))
  tables = {
    "paper": frame(id=["p0", "p1", "p2", "p3"], time=np.array([2015, 2017, 2018, 2014]),
                   emb=[row(k) for k in range(4)]),
    "author": frame(id=["a0", "a1"], emb=[row(5), row(6)]),
    "venue": frame(id=["v0", "v1"], emb=[row(7), row(8)]),
  }  # fmt: skip
  edges = {
    "paper": {
      "paper": {"PP_cite": {0: {1: 2017}, 2: {0: 2018}}, "rev_PP_cite": {1: {0: 2017}}},
      "author": {"AP_write_first": {0: {1: 2015}, 1: {0: 2017, 1: 2017}}},
      "venue": {"rev_PV_Journal": {0: {1: 2015}}},
    },
    "author": {"paper": {"rev_AP_write_first": {1: {0: 2015}}}},
    "venue": {
      "paper": {"PV_Journal": {1: {0: 2015, 2: 2018}, 0: {1: 2017}}, "PV_Conference": {0: {3: 1}}}
    },
  }
  ids = {"paper": 4, "author": 2, "venue": 2}
  forward = {kind: {f"{kind[0]}{k}": k for k in range(count)} for kind, count in ids.items()}
  return {"node_forward": forward, "node_feature": tables, "edge_list": edges} | changes


def oag_file(place, name=oag.FILES["cs"], **changes):
  Archive().write(place / name, oag_graph(**changes))
  return str(place)


# What comes out.


def test_rcdd(tmp_path):
  graph = data.load("rcdd", data_dir=zipped(tmp_path, rcdd.ARCHIVE, RCDD, top="AliRCD/"))
  assert graph.num_nodes == {"item": 6, "b": 2, "f": 1}
  np.testing.assert_array_equal(graph.nodes["item"].features[:3], [[0.5, 1], [-1, 0.25], [1, 1]])
  assert graph.target_labels.tolist() == [1, 1, 0, 0, 0, 1]
  assert pairs(graph, ("b", "A", "item")) == [(0, 0), (0, 0), (1, 1)]
  assert pairs(graph, ("item", "rev_A", "b")) == [(0, 0), (0, 0), (1, 1)]
  assert pairs(graph, ("b", "E", "f")) == [(0, 0)]
  assert rows(graph, "test") == [1]
  assert len(rows(graph, "train")) == 4 and len(rows(graph, "val")) == 1
  assert sorted(rows(graph, "train") + rows(graph, "val")) == [0, 2, 3, 4, 5]
  seeds = {
    tuple(rows(data.load("rcdd", data_dir=str(tmp_path), split_seed=s), "val")) for s in range(9)
  }
  assert len(seeds) > 1  # of the store: the archive was read once
  store.verify(tmp_path / "rcdd.store")


@pytest.mark.parametrize("packed", [True, False])
def test_ogbn_mag_and_mag_year(tmp_path, packed):
  if packed:
    place = zipped(tmp_path, ogbn_mag.ARCHIVE, mag(), top="mag/")
  else:
    place = folder(tmp_path, {name.removeprefix("raw/"): text for name, text in mag().items()})
  graph = data.load("ogbn-mag", data_dir=place)
  assert graph.num_nodes == {"paper": 6, "author": 3, "institution": 2, "field_of_study": 2}
  x = graph.nodes["paper"].features
  np.testing.assert_array_equal(x[:2], [[0, 0.5], [1, 2.5]])
  means = [(x[0] + x[2]) / 2, x[3], np.zeros(2)]
  np.testing.assert_allclose(graph.nodes["author"].features, means)
  np.testing.assert_allclose(
    graph.nodes["institution"].features, [[0, 0], (means[0] + means[1]) / 2]
  )
  np.testing.assert_allclose(graph.nodes["field_of_study"].features, [[0, 0], (x[4] + x[5]) / 2])
  assert pairs(graph, ogbn_mag.CITES) == [(0, 1), (1, 0), (3, 3)]
  assert ("paper", "rev_cites", "paper") not in graph.edges
  assert pairs(graph, ("paper", "rev_writes", "author")) == [(0, 0), (2, 0), (3, 1)]
  assert [rows(graph, split) for split in ("train", "val", "test")] == [[0, 1, 2, 3], [4], [5]]
  year = data.load("mag_year", data_dir=place)
  assert year.target_labels.tolist() == [0, 1, 2, 3, 4, 4] and year.schema.num_classes == 5
  assert [len(rows(year, split)) for split in ("train", "val", "test")] == [3, 1, 2]
  assert year.edges.keys() == graph.edges.keys()


def test_h_pokec(tmp_path):
  graph = data.load("h_pokec", data_dir=folder(tmp_path, POKEC))
  assert graph.num_nodes["user"] == 8 and graph.num_nodes["music"] == 2
  assert graph.num_nodes["health"] == 0
  assert graph.target_labels.tolist() == [1, -1, 0, 0, 1, 0, 1, 0]
  x = graph.nodes["user"].features
  assert x.shape == (8, 3 + 2 + 51)
  ages = np.array([0, 20, 23, 20, 20, 20, 20, 20.0])
  np.testing.assert_allclose(x[:, 2], (ages - ages.mean()) / ages.std(), rtol=1e-5)
  np.testing.assert_array_equal(x[:, :2], 0)
  np.testing.assert_array_equal(x[:3, 3:5], [[1, 0], [0, 1], [0, 1]])
  assert np.flatnonzero(x[2, 5:]).tolist() == [0, 36] and np.flatnonzero(x[1, 5:]).tolist() == [50]
  friends = pairs(graph, ("user", "has_friend", "user"))
  assert friends == [(0, 1), (0, 2), (1, 0), (2, 0), (3, 7), (7, 3)]
  assert pairs(graph, ("user", "lists", "music")) == [(0, 1), (2, 0), (2, 1)]
  assert pairs(graph, ("music", "rev_lists", "user")) == [(0, 2), (1, 0), (1, 2)]
  parts = [rows(graph, split) for split in ("train", "val", "test")]
  assert [len(part) for part in parts] == [3, 2, 2]
  assert sorted(parts[0] + parts[1] + parts[2]) == [0, 2, 3, 4, 5, 6, 7]


def test_ieee_cis(tmp_path):
  place = zipped(tmp_path, ieee_cis.ARCHIVE, ieee(), top="raw/")
  graph = data.load("ieee_cis", data_dir=place, normalised=False)
  assert graph.num_nodes["transaction"] == 10 and graph.num_nodes["card1"] == 3
  assert graph.num_nodes["card2"] == 0 and graph.num_nodes["addr1"] == 1
  assert graph.target_labels.tolist() == [0] * 5 + [1] + [0] * 4  # in the order of time
  x = graph.nodes["transaction"].features
  # M1-M9, the others (id_38 has two values), three numbers, and 28 columns as `id-01`.
  assert x.shape == (10, 9 + len(OTHERS) + 1 + 3 + 28)
  c1 = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0.0])
  column = 9 + len(OTHERS) + 1 + 1
  np.testing.assert_allclose(x[:, column], (c1 - c1.mean()) / c1.std(), rtol=1e-5)
  np.testing.assert_allclose(x[:, column - 1], 0, atol=1e-5)  # a constant amount
  assert not x[:, -28:].any()
  assert pairs(graph, ("transaction", "to", "card1"))[:4] == [(0, 0), (1, 1), (2, 2), (3, 0)]
  assert pairs(graph, ("addr1", "rev_to", "transaction")) == [(0, k) for k in range(10)]
  assert len(graph.edges) == 22
  assert [rows(graph, s) for s in ("train", "val", "test")] == [list(range(8)), [8], [9]]
  moved = data.load("ieee_cis", data_dir=place).nodes["transaction"].features
  expected = x - x.min()
  np.testing.assert_allclose(moved, expected / np.maximum(expected.sum(1), 1)[:, None], rtol=1e-5)


def test_pdns(tmp_path):
  files = pdns_files(61)
  files |= {f"timestamp_{k}_edges.csv": "type,source,target\n" for k in range(7, 61)}
  place = zipped(tmp_path, pdns.ARCHIVE, files, top="raw/")
  graph = data.load("pdns", data_dir=place)
  assert graph.target_labels.tolist() == [1, 0, -1, 0, 1, 0, 0, -1]  # 7 is on no edge
  np.testing.assert_array_equal(graph.nodes["domain_node"].features[:2], [[0.5, 1], [1.5, 1]])
  similar = pairs(graph, ("domain_node", "similar", "domain_node"))
  assert similar == sorted({(k, 0) for k in range(7)} | {(0, k) for k in range(7)})
  assert pairs(graph, ("domain_node", "apex", "domain_node")) == [(1, 2), (2, 1)]
  assert len(pairs(graph, ("domain_node", "resolves", "ip_node"))) == 6
  assert len(pairs(graph, ("ip_node", "rev_resolves", "domain_node"))) == 6
  assert [len(rows(graph, s)) for s in ("train", "val", "test")] == [4, 1, 1]
  later = data.load("pdns", data_dir=place, split="time")
  assert rows(later, "test") == [5] and later.target_labels.tolist()[5:] == [0, -1, -1]
  assert sorted(rows(later, "train") + rows(later, "val")) == [0, 1, 3, 4]
  with pytest.raises(InputError, match="pdns has no split='year': choose from random, time"):
    data.load("pdns", data_dir=place, split="year")


def test_oag(tmp_path):
  graph = data.load("oag-cs", data_dir=oag_file(tmp_path))
  assert graph.num_nodes == {"paper": 4, "author": 2}
  np.testing.assert_array_equal(graph.nodes["author"].features, [[5] * 3, [6] * 3])
  assert graph.target_labels.tolist() == [0, 1, 0, -1]  # venues numbered as they come
  assert pairs(graph, ("paper", "PP_cite", "paper")) == [(0, 1), (0, 2), (1, 0), (2, 0)]
  assert pairs(graph, ("author", "AP_write_first", "paper")) == [(0, 1), (1, 0), (1, 1)]
  assert pairs(graph, ("paper", "rev_AP_write_first", "author")) == [(0, 1), (1, 0), (1, 1)]
  assert len(graph.edges) == 3
  assert [rows(graph, s) for s in ("train", "val", "test")] == [[0], [1], [2]]


def test_oag_of_other_subjects(tmp_path):
  place = oag_file(tmp_path, oag.FILES["eng"])
  assert data.load("oag_eng", data_dir=place).num_nodes == {"paper": 4, "author": 2}
  assert data.load("oag_chem", data_dir=place, swapped=True).num_nodes["paper"] == 4
  with pytest.raises(InputError, match=r"OAG_Chemistry\.pt could not be fetched: put it at"):
    data.load("oag_chem", data_dir=place)


def test_means_in_chunks_are_means():
  rng = np.random.default_rng(0)
  senders, receivers, x = (
    rng.integers(0, 9, 60),
    rng.integers(0, 7, 60),
    rng.normal(size=(9, 1 << 21)),
  )
  x = np.concatenate(
    [x[:, :3], np.zeros((9, (1 << 21) - 3))], axis=1
  )  # so wide that chunks are small
  found = np.concatenate([rows[:, :3] for rows in published.mean_of(senders, receivers, x, 8)])
  expected = [x[senders[receivers == k]].mean(0)[:3] if (receivers == k).any() else np.zeros(3)
              for k in range(8)]  # fmt: skip
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_tables_are_the_same_in_small_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(published, "BLOCK", 7)
  (tmp_path / "whole").mkdir()
  small = data.load("rcdd", data_dir=folder(tmp_path, RCDD))
  monkeypatch.undo()
  whole = data.load("rcdd", data_dir=folder(tmp_path / "whole", RCDD))
  np.testing.assert_array_equal(small.nodes["item"].features, whole.nodes["item"].features)
  assert pairs(small, ("b", "A", "item")) == pairs(whole, ("b", "A", "item"))


def test_configs_name_what_the_official_settings_say():
  config = get_config("full,dataset=h_pokec,data_dir=/data/pokec")
  assert config.data.options.data_dir == "/data/pokec" and config.data.split == ()
  assert config.sample.fanouts["user"] == (2048, 2048, 512, 512) and config.metric == "accuracy"
  assert get_config("full,dataset=rcdd").metric == "f1"
  assert get_config("full,dataset=ieee-cis").train.lr == 1e-3
  assert get_config("full,dataset=mag-year").model.dim == 512
  assert get_config("full,dataset=oag-cs,model=mlp").sample.subgraphs == 8


# What is refused.


def edited(files, part, old, new):
  (name,) = [name for name in files if name.endswith(part)]
  assert old in files[name]
  return files | {name: files[name].replace(old, new)}


def without(files, part):
  return {name: content for name, content in files.items() if not name.endswith(part)}


MAG, IEEE, PDNS = mag(), ieee(), pdns_files(61)
ARCHIVES = {one.__name__.split(".")[-1]: one.ARCHIVE for one in (rcdd, ogbn_mag, ieee_cis, pdns)}
REFUSED = [
  # set, files, message
  ("rcdd", without(RCDD, rcdd.EDGES), "holds no AliRCD_ICDM_edges.csv"),
  ("rcdd", edited(RCDD, rcdd.NODES, "2,f,7:8", "1,f,7:8"), "node id 1 stands 2 times"),
  ("rcdd", edited(RCDD, rcdd.NODES, "2,f,7:8", "99,f,7:8"), "node id 99 among 9 nodes"),
  ("rcdd", edited(RCDD, rcdd.NODES, "3:4", "x:4"), "could not convert"),
  ("rcdd", edited(RCDD, rcdd.NODES, "3:4", "nan:4"), "not finite"),
  ("rcdd", edited(RCDD, rcdd.NODES, "3:4", "3"), "number of columns|columns, 2 are exp"),
  ("rcdd", edited(RCDD, rcdd.NODES, ",item,", ",thing,"), "'item' is no node type"),
  ("rcdd", edited(RCDD, rcdd.EDGES, "1,2,b,f,E", "1,2,b,f"), "line 4 is .* are expected"),
  ("rcdd", edited(RCDD, rcdd.EDGES, "1,2,b,f,E", "1,2,b,f,A"), "line 4: unknown relation"),
  ("rcdd", edited(RCDD, rcdd.EDGES, "1,2,b,f,E", "1,3,b,f,E"), "not the type of node 3"),
  ("rcdd", edited(RCDD, rcdd.EDGES, "1,2,b,f,E", "1,77,b,f,E"), "node 77 is not in"),
  ("rcdd", edited(RCDD, rcdd.TRAIN, "5,0", "5"), "train_labels"),
  ("rcdd", edited(RCDD, rcdd.TRAIN, "5,0", "2,0"), "row 2: 2, 0 is no item"),
  ("rcdd", edited(RCDD, rcdd.TRAIN, "5,0", "5,2"), "5, 2 is no item and label"),
  ("rcdd", edited(RCDD, rcdd.TEST, "0\t1", "3\t1"), "an item is labelled twice"),
  ("rcdd", edited(RCDD, rcdd.TEST, "0\t1", "0,1"), "test_labels"),
  ("ogbn_mag", edited(MAG, "list.csv.gz", "writes", "reads"), "unknown relation author"),
  ("ogbn_mag", edited(MAG, "node-feat.csv.gz", "5,10.5\n", ""), "has 5 rows.*truncated"),
  ("ogbn_mag", edited(MAG, "node-feat.csv.gz", "10.5", "x"), "could not convert"),
  ("ogbn_mag", edited(MAG, "label.csv.gz", "0\n1\n", "0\n"), "4 rows for 6 papers"),
  ("ogbn_mag", edited(MAG, "label.csv.gz", "0\n1", "0.5\n1"), "node-label"),
  ("ogbn_mag", edited(MAG, "dict.csv.gz", "paper", "book"), "column 'paper' is missing"),
  ("ogbn_mag", edited(MAG, "cites___paper/edge.csv.gz", "1,0", "1,9"), "paper 9 is outside"),
  ("ogbn_mag", edited(MAG, "test.csv.gz", "5", "6"), "a row outside the 6 papers"),
  ("ogbn_mag", without(MAG, "node_year.csv.gz"), "holds no node-feat/paper/node_year"),
  (
    "h_pokec",
    edited(POKEC, h_pokec.PROFILES, "\tmore\t", "\t"),
    "line 3: 58 fields, 59 are expected",
  ),
  ("h_pokec", edited(POKEC, h_pokec.PROFILES, "4\t1\t60\t0", "4\t1\t60\t7"), "gender 7"),
  ("h_pokec", edited(POKEC, h_pokec.PROFILES, "4\t1\t60\t0", "3\t1\t60\t0"), "user 3 stands twice"),
  ("h_pokec", edited(POKEC, h_pokec.FRIENDS, "8\t4", "9\t4"), "names a user who is not in"),
  ("h_pokec", edited(POKEC, h_pokec.FRIENDS, "8\t4", "8"), "lines from"),
  ("h_pokec", edited(POKEC, h_pokec.FRIENDS, "8\t4", "8\tx"), "could not convert"),
  ("h_pokec", without(POKEC, h_pokec.FRIENDS), "https://snap.stanford.edu/data/soc-pokec-rel"),
  (
    "ieee_cis",
    edited(IEEE, "train_transaction.csv", "isFraud", "fraud"),
    "column 'isFraud' is missing",
  ),
  (
    "ieee_cis",
    edited(IEEE, "train_transaction.csv", "101,0,", "100,0,"),
    "TransactionID 100 stands twice",
  ),
  ("ieee_cis", edited(IEEE, "train_transaction.csv", "101,0,", "101,3,"), "neither 0 nor 1"),
  (
    "ieee_cis",
    edited(IEEE, "train_transaction.csv", "999,10.0,", "999,ten,"),
    "a number is expected",
  ),
  (
    "ieee_cis",
    edited(IEEE, "train_transaction.csv", "101,0,", "101,"),
    "fields, .* are expected: the file is truncated",
  ),
  ("ieee_cis", edited(IEEE, "train_identity.csv", "101,", "100,"), "stands twice"),
  ("ieee_cis", edited(IEEE, "train_identity.csv", "id_38", "id_99"), "column 'id_38' is"),
  (
    "pdns",
    edited(PDNS, "timestamp_3_edges.csv", "similar", "friend"),
    "unknown relation 'friend'; there are apex, similar, resolves",
  ),
  ("pdns", edited(PDNS, "domains2.csv", "type", "kind"), "column 'type' is missing"),
  ("pdns", edited(PDNS, "domain_features.csv", "1,1.5", "0,1.5"), "0 stands twice"),
  ("pdns", edited(PDNS, "domains2.csv", "1,benign", "0,benign"), "0 stands twice"),
  ("pdns", edited(PDNS, "domain_features.csv", "1,1.5", "1,x"), "could not convert"),
  ("pdns", edited(PDNS, "ip_features.csv", "1,2", "5,2"), "1 in row 1 is no node"),
  ("pdns", edited(PDNS, "timestamp_3_edges.csv", "3,1", "0.5,1"), "not whole"),
  ("pdns", without(PDNS, "timestamp_9_edges.csv"), "holds no timestamp_9_edges.csv"),
]


@pytest.mark.parametrize(("name", "files", "message"), REFUSED)
def test_what_is_not_the_published_format_leaves_no_store(tmp_path, name, files, message):
  archive = ARCHIVES.get(name)
  place = zipped(tmp_path, archive, files, top="x/") if archive else folder(tmp_path, files)
  before = sorted(tmp_path.iterdir())
  with pytest.raises(InputError, match=message):
    data.load(name, data_dir=place)
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"node_feature": []}, "'node_feature' is missing"),
    ({"edge_list": {}}, "relation 'PV_Journal' is missing"),
    ({"edge_list": {"paper": {"cat": {"eats": {0: {1: 1}}}}}}, "an unknown node type 'cat'"),
    ({"edge_list": {"paper": {"author": {"AP": {0: 1}}}}}, "is not {target: {source: time}}"),
    ({"edge_list": {"venue": {"paper": {"PV_Journal": {0: {9: 1}}}}}}, "a paper outside 4"),
    ({"edge_list": {"paper": {"author": {"AP": {0: {9: 1}}}},
                    "venue": {"paper": {"PV_Journal": {0: {0: 1}}}}}}, "index 9 is outside the 2"),
    ({"node_forward": {"author": {"a0": 0, "a1": 1}}}, "without its target type 'paper'"),
    ({"node_forward": {"author": {"a0": 1, "a1": 0}}}, "author 'a0' is row 0 of its table"),
    ({"node_forward": {"author": {"a0": 0}}}, "author has 1 nodes and 2 ids"),
    ({"node_forward": {"cat": {}}}, "holds a NoneType where a table is expected"),
    ({"more": Call(Global("posix", "system"), "true")}, r"asks for posix\.system"),
  ],
)  # fmt: skip
def test_archives_that_are_no_graph_of_oag(tmp_path, changes, message):
  place = oag_file(tmp_path, **changes)
  with pytest.raises(InputError, match=message):
    data.load("oag_cs", data_dir=place)
  assert [path.name for path in tmp_path.iterdir()] == [oag.FILES["cs"]]


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["rcdd", "ogbn_mag", "h_pokec", "oag_cs"])
def test_truncated_files(tmp_path, name, share):
  if name == "rcdd":
    path = tmp_path / rcdd.ARCHIVE
    zipped(tmp_path, rcdd.ARCHIVE, RCDD)
  elif name == "ogbn_mag":
    path = tmp_path / ogbn_mag.ARCHIVE
    zipped(tmp_path, ogbn_mag.ARCHIVE, MAG)
  elif name == "h_pokec":
    path = tmp_path / h_pokec.FRIENDS
    folder(tmp_path, POKEC)
  else:
    path = tmp_path / oag.FILES["cs"]
    oag_file(tmp_path)
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * share)])
  before = sorted(tmp_path.iterdir())
  with pytest.raises(InputError):
    data.load(name, data_dir=str(tmp_path))
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
  ("entry", "message"),
  [("../AliRCD_ICDM_nodes.csv", "climbs out"), ("/etc/AliRCD_ICDM_nodes.csv", "climbs out")],
)
def test_an_archive_that_climbs_out(tmp_path, entry, message):
  place = zipped(tmp_path, rcdd.ARCHIVE, RCDD | {entry: "x"})
  with pytest.raises(InputError, match=message):
    data.load("rcdd", data_dir=place)


def test_links_twins_and_flipped_bits_in_an_archive(tmp_path):
  link = zipfile.ZipInfo(rcdd.NODES)
  link.external_attr = 0o120777 << 16
  with zipfile.ZipFile(tmp_path / rcdd.ARCHIVE, "w") as out:
    out.writestr(link, "/etc/passwd")
  with pytest.raises(InputError, match="is a link or a device"):
    data.load("rcdd", data_dir=str(tmp_path))
  zipped(tmp_path, rcdd.ARCHIVE, RCDD | {f"again/{rcdd.NODES}": "x"})
  with pytest.raises(InputError, match="is there twice"):
    data.load("rcdd", data_dir=str(tmp_path))
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as archive:
    for name, content in RCDD.items():
      archive.writestr(name, content)
  (tmp_path / rcdd.ARCHIVE).write_bytes(out.getvalue().replace(b"0.25", b"0.35"))
  with pytest.raises(InputError, match=r"nodes\.csv cannot be read \(Bad CRC"):
    data.load("rcdd", data_dir=str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == [rcdd.ARCHIVE]


def test_the_command_line_converts_and_says_what_is_missing(tmp_path, capsys):
  place = zipped(tmp_path, rcdd.ARCHIVE, RCDD)
  assert convert.main(["convert", "rcdd", "--data_dir", place]) == 0
  assert "labels of item: normal 3, risk 3" in capsys.readouterr().out
  assert store.is_store(tmp_path / "rcdd.store")
  assert convert.main(["convert", "oag-cs", f"--data_dir={place}"]) == 2
  error = capsys.readouterr().err
  assert oag.FILES["cs"] in error and error.startswith("error: https://huggingface.co/")
  assert convert.main(["convert", "celegans"]) == 2
  assert "give one name of ogbn_mag" in capsys.readouterr().err
  assert convert.main(["convert", "--help"]) == 0
  assert set(convert.NAMES) == set(datasets.PUBLISHED)


def test_one_fan_out_per_node_type_is_sampled(tmp_path):
  config = get_config(f"sampled,dataset=h_pokec,data_dir={folder(tmp_path, POKEC)}")
  graph = data.prepare(config.data)
  assert ("music", "rev_lists", "user") in graph.edges and graph.splits["train"].any()
  config.sample.batch_size = 2
  splits = data.splitter(graph, config.data.split)
  drawn, seeds = SampledBatches(graph, splits, config.sample).evaluation((0,))[0]
  assert seeds.sum() == 2 and drawn.schema == graph.schema


def test_a_benchmark_names_them_and_all_leaves_them_out():
  path = pathlib.Path(__file__).parents[2] / "configs" / "h2gb.py"
  grid = Grid.of(path)
  found = cells(grid, datasets="rcdd,celegans", models="mlp", preset="full")
  assert [cell.variant for cell in found] == [
    "full,dataset=rcdd,model=mlp",
    "full,dataset=celegans,model=mlp",
  ]
  everything = {cell.dataset for cell in cells(grid, datasets="all", models="mlp", preset="")}
  assert not everything & set(datasets.PUBLISHED)
