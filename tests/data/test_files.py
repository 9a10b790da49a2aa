"""Loaders refuse what is not the published format: one line that names the file and the place."""

import gzip
import io
import os
import tarfile
import zipfile

import numpy as np
import pytest

from h2g.data import airports
from h2g.data import encode
from h2g.data import files
from h2g.data import flavor
from h2g.data import heco
from h2g.data import heterophilous_npz
from h2g.data import imdb_nshe
from h2g.data import larval_connectome
from h2g.data import liar
from h2g.data import movielens
from h2g.data import twitch
from h2g.data import worldcup
from h2g.data import yelpchi_reviews
from h2g.errors import InputError


def write(folder, content):
  for name, text in content.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return folder


def npz(**arrays):
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def npy(array):
  out = io.BytesIO()
  np.save(out, array)
  return out.getvalue()


def zipped(**members):
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as archive:
    for name, text in members.items():
      archive.writestr(f"Supplementary-Data-S1/{name}.csv", text)
  return out.getvalue()


# Files of the published formats, each of a handful of rows.
IMDB = {
  "node2id.txt": "4\nm0\t0\nm1\t1\na0\t2\nd0\t3\n",
  "imdb_m_label.txt": "0\n2\n",
  "relations.txt": "0\t2\t0\t1\n1\t2\t0\t1\n0\t3\t1\t1\n",
}
AIRPORTS = {
  "labels-brazil-airports.txt": "node label\n7 0\n9 3\n",
  "brazil-airports.edgelist": "7 9\n9 9\n",
}
FLAVOR = {
  "ingr_info.tsv": "# id\tingredient name\tcategory\n0\tmint\therb\n1\tbeef\tmeat\n",
  "comp_info.tsv": "# id\tCompound name\tCAS number\n0\tmenthol\t1\n",
  "ingr_comp.tsv": "# ingredient id\tcompound id\n0\t0\n",
  "backbone.csv": "0,1,2,category,prevalence\nmint,beef,3,herb,0.1\n",
}
MASKS = {name: np.zeros((10, 3), bool) for name in ("train_masks", "val_masks", "test_masks")}
PAGES = dict(node_features=np.eye(3), node_labels=np.arange(3), edges=np.array([[0, 1]]), **MASKS)
HECO = {
  "labels.npy": npy(np.array([0.0, 1.0])),
  "pa.txt": "0\t1\n1\t0\n",
  "pr.txt": "0\t2\n",
} | {
  f"{part}_{n}.npy": npy(np.array([0])) for part in ("train", "val", "test") for n in heco.PER_CLASS
}
YELP = {"metadata.gz": gzip.compress(b"5 9 None 1 None\n5 8 None -1 None\n6 9 None 1 None\n")}
LIAR_ROW = '1.json\ttrue\tA "word\tjobs,tax\tann\tMayor\tNone\tnone\t1\t2\t3\t4\t5\ta "speech\n'
LIAR = {
  "train.tsv": LIAR_ROW,
  "valid.tsv": LIAR_ROW.replace("1.json", "2.json"),
  "test.tsv": LIAR_ROW.replace("1.json", "3.json").replace("true", "false"),
}
TWITCH = {
  "edges/ES_edges.csv": "from,to\n0,1\n",
  "features/ES.json": '{"0": [5, 7], "1": [7]}',
  "target/ES_target.csv": "id,days,mature,views,partner,new_id\n"
  "88,10,True,5,False,1\n99,20,False,7,True,0\n",
}
BRAIN = dict(
  inputs=",axon_input,dendrite_input\n4,1.0,2.0\n8,0.0,3.0\n9,0.0,0.0\n",
  outputs=",axon_output,dendrite_output\n8,1.0,2.0\n4,0.0,3.0\n",
  annotations="left_id,right_id,celltype,x,level_7_cluster\n4,no pair,KC,,0\n",
  ad_connectivity_matrix=",4,8\n4,0.0,2.0\n8,10.0,0\n",
  aa_connectivity_matrix=",8,4\n8,0.0,0.5\n4,0.0,0.0\n",
  dd_connectivity_matrix=",4,8\n4,0,0\n8,0,0\n",
  da_connectivity_matrix=",4,8\n4,0.0,0.0\n8,0.0,1.0\n",
)
MOVIES = {
  "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
  "1\t24\tM\twriter\t85711\n2\t53\tF\tother\tV3N4P\n",
  "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
  '5\tToy "Story\t1995\tComedy Drama\n',
  "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t5\t3\t9\n",
}
LOADERS = {
  "imdb": (lambda f: imdb_nshe.load(files=f, digests={}), IMDB),
  "airports": (lambda f: airports.load(files=f, digests={}), AIRPORTS),
  "flavor": (lambda f: flavor.load(files=f, digests={}), FLAVOR),
  "pages": (
    lambda f: heterophilous_npz.load("texas", files=f, digests={}),
    {"texas.npz": npz(**PAGES)},
  ),
  "heco": (lambda f: heco.load_aminer(files=f, digests={}), HECO),
  "yelp": (lambda f: yelpchi_reviews.load(files=f, digests={}), YELP),
  "liar": (lambda f: liar.load(files=f, digests={}), LIAR),
  "twitch": (lambda f: twitch.load("ES", files=f, digests={}), TWITCH),
  "brain": (
    lambda f: larval_connectome.load(files=f, digests={}),
    {larval_connectome.ARCHIVE: zipped(**BRAIN)},
  ),
  "movies": (lambda f: movielens.load(files=f, digests={}), MOVIES),
}


@pytest.mark.parametrize("name", LOADERS)
def test_small_files_of_the_format_are_read(tmp_path, name):
  load, content = LOADERS[name]
  graph = load(write(tmp_path, content))
  assert (np.asarray(graph.target_labels) >= 0).any()


def test_what_the_small_files_say(tmp_path):
  graph = LOADERS["brain"][0](write(tmp_path, LOADERS["brain"][1]))
  ad = graph.edges["neuron", "axon_dendrite", "neuron"]
  assert sorted(zip(ad.senders.tolist(), ad.receivers.tolist(), np.expm1(ad.features[:, 0]))) == [
    (0, 1, pytest.approx(2)), (1, 0, pytest.approx(10))
  ]  # fmt: skip
  aa = graph.edges["neuron", "axon_axon", "neuron"]  # its rows stand in another order
  assert (aa.senders.tolist(), aa.receivers.tolist()) == ([1], [0])
  assert graph.target_labels.tolist() == [0, -1]
  graph = LOADERS["liar"][0](write(tmp_path, LIAR))
  assert graph.num_nodes == dict(
    statement=3, speaker=1, subject=2, context=1, job=1, state=0, party=1
  )


@pytest.mark.parametrize(
  "name, changes, message",
  [
    ("imdb", {"relations.txt": "0\t2\t5\t1\n"}, "line 1: unknown relation 5, known are 0 and 1"),
    ("imdb", {"relations.txt": "0\t2\t0\n"}, "relations.txt line 1 is '0\\\\t2\\\\t0': 4 integers"),
    ("imdb", {"relations.txt": "0\t3\t0\t1\n"}, "line 1: node 3 is no actor"),
    ("imdb", {"node2id.txt": "2\nm0\t0\nm1\t0\n"}, "line 3: id 0 stands twice"),
    ("imdb", {"imdb_m_label.txt": "0\n"}, "1 labels for 2 movies"),
    ("airports", {"brazil-airports.edgelist": "7 8\n"}, "row 1: to '8' is no airport"),
    ("airports", {"labels-brazil-airports.txt": "node label\n7 0\n7 1\n"}, "node '7' stands twice"),
    ("flavor", {"ingr_info.tsv": "# id\tname\n0\tmint\n"}, "column 'ingredient name' is missing"),
    ("flavor", {"backbone.csv": "0,1,2,category,prevalence\nmint,pork,3,herb,0\n"},
     "backbone.csv row 1: 1 'pork' is no name"),
    ("flavor", {"ingr_comp.tsv": "# ingredient id\tcompound id\n0\t0\n1"}, "line 3 has 1 fields"),
    ("pages", {"texas.npz": npz(**PAGES)[:-30]}, "texas.npz is no readable .npz"),
    ("pages", {"texas.npz": npz(**PAGES | {"edges": np.array([[{}, {}]])})}, "never unpickled"),
    ("pages", {"texas.npz": npz(**PAGES | {"node_labels": np.arange(3.0)})},
     "array 'node_labels' is float64"),
    ("pages", {"texas.npz": npz(node_labels=np.arange(3))}, "array 'node_features' is missing"),
    ("pages", {"texas.npz": npz(**PAGES | {"val_masks": np.zeros((9, 3), bool)})},
     r"val_masks are \[9, 3\], ten of 3 nodes"),
    ("heco", {"labels.npy": npy(np.array(["x", "y"]))}, "labels.npy is <U1"),
    ("heco", {"labels.npy": b"\x93NUMPY"}, "labels.npy is no readable .npy"),
    ("heco", {"labels.npy": npy(np.zeros(2)).replace(b"}", b'"')}, "labels.npy is no readable"),
    ("heco", {"val_20.npy": npy(np.array([7]))}, "val_20.npy names nodes that do not exist"),
    ("heco", {"pa.txt": "0\t1\n1\n"}, "pa.txt line 2 is '1': 2 integers are expected"),
    ("heco", {"pa.txt": "0\t99999\n"}, "edge 0 has index 99999, outside the 13329 nodes"),
    ("yelp", {"metadata.gz": YELP["metadata.gz"][:-9]}, "metadata.gz is no whole .gz file"),
    ("yelp", {"metadata.gz": gzip.compress(b"5 9 None 3 None\n")}, "label '3' is neither 1"),
    ("yelp", {"metadata.gz": gzip.compress(b"5 9 None 1\n")}, "line 1 has 4 fields, 5 are"),
    ("liar", {"test.tsv": LIAR_ROW}, "statement '1.json' stands twice"),
    ("liar", {"test.tsv": LIAR_ROW.replace("true", "maybe")}, "row 1: label 'maybe' is none of"),
    ("liar", {"test.tsv": LIAR_ROW[:40]}, "test.tsv line 1 has"),
    ("liar", {"test.tsv": b"\xff\xfe"}, "test.tsv is no UTF-8 text"),
    ("twitch", {"target/ES_target.csv": "id,days,views,partner,new_id\n1,2,3,True,0\n"},
     "column 'mature' is missing; the first line names id, days"),
    ("twitch", {"edges/ES_edges.csv": "from,to\n0,7\n"}, "ES_edges.csv row 1: to '7' is no stream"),
    ("twitch", {"features/ES.json": '{"0": [5'}, "ES.json is no JSON of lists"),
    ("brain", {larval_connectome.ARCHIVE: zipped(**BRAIN)[:-20]}, "cannot be read from the"),
    ("brain", {larval_connectome.ARCHIVE: zipped(**BRAIN | {
      "dd_connectivity_matrix": ",4,8\n4,0,0\n8,0"})}, "is no matrix of 2 columns"),
    ("brain", {larval_connectome.ARCHIVE: zipped(**BRAIN | {
      "dd_connectivity_matrix": ",4,8\n4,0,x\n8,0,0\n"})}, "count 'x' is no number"),
    ("brain", {larval_connectome.ARCHIVE: zipped(outputs="")}, "inputs.csv cannot be read from"),
    ("movies", {"ml-100k.user": MOVIES["ml-100k.user"].replace("M\t", "x\t")}, "neither F nor M"),
    ("movies", {"ml-100k.inter": MOVIES["ml-100k.inter"].replace("1\t5", "1\t6")},
     "item_id '6' is no node"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, name, changes, message):
  load, content = LOADERS[name]
  with pytest.raises(InputError, match=message):
    load(write(tmp_path, content | changes))


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_and_a_changed_file_are_named(tmp_path, name):
  load, content = LOADERS[name]
  write(tmp_path, content)
  gone = next(iter(content))
  (tmp_path / gone).unlink()
  with pytest.raises(InputError, match=f"{os.path.basename(gone)} does not exist"):
    load(tmp_path)


def test_worldcup_refuses_an_unknown_position(tmp_path, data_dir):
  place = data_dir / "worldcup" / "data-csv"
  names = {table for table, _ in (*worldcup.NODES.values(), *worldcup.EDGES.values())}
  content = {f"data-csv/{name}.csv": (place / f"{name}.csv").read_bytes() for name in names}
  squads = content["data-csv/squads.csv"].replace(b",GK", b",XX", 1)
  write(tmp_path, content | {"data-csv/squads.csv": squads})
  with pytest.raises(InputError, match="unknown position_code 'XX'"):
    worldcup.load(files=tmp_path, digests={})
  with pytest.raises(InputError, match=r"squads\.csv is not the original file"):
    worldcup.load(files=tmp_path)


def test_movielens_says_how_to_install(monkeypatch):
  def missing(name):
    raise movielens.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(movielens.metadata, "distribution", missing)
  with pytest.raises(InputError, match=r"pip install --no-deps recbole==1\.2\.1"):
    movielens.load()


def test_archives_are_unpacked_whole_or_not_at_all(tmp_path):
  def tar(name, **fields):
    path = tmp_path / "in" / "a.tar.gz"
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
      good = tarfile.TarInfo("data/x.txt")
      good.size = 3
      archive.addfile(good, io.BytesIO(b"abc"))
      bad = tarfile.TarInfo(name)
      for key, value in fields.items():
        setattr(bad, key, value)
      archive.addfile(bad, io.BytesIO(b"") if not bad.size else io.BytesIO(b"x" * bad.size))
    return path

  out = tmp_path / "out"
  for name, fields, message in (
    ("../climb", {}, "climbs out"),
    ("data/link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link or a device"),
    ("data/x.txt", {}, "is there twice"),
    ("data/big", {"size": 2000}, "unpacks to more than 1000 bytes"),
  ):
    with pytest.raises(InputError, match=message):
      files.extract(tar(name, **fields), out, limit=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
  path = tar("data/y.txt", size=2)
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(InputError, match="truncated or no archive"):
    files.extract(path, out)
  assert sorted(found.name for found in tmp_path.iterdir()) == ["in"]
  files.extract(tar("data/y.txt", size=2), out)
  assert (out / "data/x.txt").read_bytes() == b"abc" and (out / "data/y.txt").stat().st_size == 2
  with pytest.raises(InputError, match="exists already"):
    files.extract(path, out)


def test_sparse_matrices_are_checked():
  good = dict(row=np.array([0, 1]), col=np.array([2, 0]), data=np.ones(2), shape=np.array([2, 3]))
  rows, columns, values, shape = files.sparse(npz(format=np.array(b"coo"), **good), "x.npz")
  assert (rows.tolist(), columns.tolist(), shape) == ([0, 1], [2, 0], (2, 3)) and values.sum() == 2
  with pytest.raises(InputError, match="in 'bsr' form"):
    files.sparse(npz(format=np.array(b"bsr"), **good), "x.npz")
  with pytest.raises(InputError, match="outside the matrix"):
    files.sparse(npz(format=np.array("coo"), **good | {"col": np.array([2, 3])}), "x.npz")


def test_encodings_of_columns():
  numeric = encode.numeric([1.0, np.nan, 3.0], [5.0, 5.0, 5.0])
  np.testing.assert_allclose(numeric, [[-1, 0, 0], [0, 1, 0], [1, 0, 0]], atol=1e-6)
  assert encode.one_hot(["b", "", "a"]).tolist() == [[0, 1], [0, 0], [1, 0]]
  words = encode.words(["the cat", "the dog", "The CAT!", ""], 16)
  np.testing.assert_array_equal(words[0], words[2])
  assert np.linalg.norm(words, axis=1) == pytest.approx([1, 1, 1, 0])
  assert (words[0] != words[1]).any()
