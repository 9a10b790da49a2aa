"""The embedded graph is the published one, and nothing in it betrays the label."""

import shutil

import numpy as np
import pytest

from h2g import data
from h2g.data import celegans
from h2g.errors import InputError


def edges_of(graph, relation):
  return sum(int(e.indptr[-1]) for name, e in graph.edges.items() if name[1] == relation)


@pytest.mark.smoke
def test_counts_are_those_of_the_tables():
  graph = data.load("celegans")
  assert graph.num_nodes == dict(neuron=302, muscle=95, pharynx=31, other=22, molecule=177)
  counts = {
    name: edges_of(graph, name) for name in ("chemical", "electrical", "monoamine", "peptide")
  }
  assert counts == dict(chemical=4681, electrical=2698, monoamine=1952, peptide=7078)
  labels = np.asarray(graph.target_labels)
  assert np.bincount(labels[labels >= 0]).tolist() == [66, 69, 94, 71]
  assert (labels < 0).sum() == 2
  assert graph.schema.class_names == ("sensory", "interneuron", "motor", "several")


def test_transmitter_is_strict_by_default():
  graph = data.load("celegans", label="transmitter")
  labels = np.asarray(graph.target_labels)
  assert np.bincount(labels[labels >= 0]).tolist() == [129, 71, 26, 17]
  assert edges_of(graph, "monoamine") == 0  # it names who releases what
  assert graph.nodes["neuron"].features.shape[1] == 3  # the roles, nothing of the transmitter
  assert edges_of(data.load("celegans", label="transmitter", strict=False), "monoamine") == 1952


def test_molecules_are_nodes_or_features():
  nodes = data.load("celegans")
  features = data.load("celegans", molecules="features")
  expresses = nodes.edges["neuron", "expresses", "molecule"]
  dense = np.zeros((302, 177))
  dense[expresses.senders, expresses.receivers] = 1
  np.testing.assert_array_equal(features.nodes["neuron"].features[:, 7:], dense)
  assert "molecule" not in data.load("celegans", molecules="none").schema.node_types


def test_no_feature_is_a_function_of_the_name_alone():
  """Neurons of one class (the letters of the name) with one transmitter set do differ elsewhere."""
  x = data.load("celegans").nodes["neuron"].features
  assert set(np.unique(x)) == {0.0, 1.0}
  assert (
    len(np.unique(x, axis=0)) < 15
  )  # transmitter sets only: far fewer than the 118 name classes


def test_a_changed_file_is_refused(tmp_path):
  shutil.copytree(celegans.FILES, tmp_path, dirs_exist_ok=True)
  with open(tmp_path / "edgelist_MA.csv", "a") as file:
    file.write("RIML,ALML,tyramine,lgc-55\n")
  with pytest.raises(InputError, match=r"edgelist_MA\.csv is not the original file"):
    celegans.load(files=tmp_path)
  (tmp_path / "edgelist_NP.csv").unlink()
  with pytest.raises(InputError, match=r"edgelist_(MA|NP)\.csv"):
    celegans.load(files=tmp_path)


def test_unknown_names_list_the_known():
  with pytest.raises(InputError, match="choose from airports, celegans"):
    data.load("celegance")
  with pytest.raises(InputError, match="choose from role, transmitter"):
    data.load("celegans", label="roles")
