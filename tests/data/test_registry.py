"""Names, options and variants: what there is can be chosen, what there is not is named."""

import inspect

import pytest

from configs import datasets
from configs.h2gb import get_config
from h2g import data
from h2g.data import files
from h2g.errors import InputError


@pytest.mark.smoke
def test_configs_and_loaders_name_the_same_sets_and_options():
  assert set(datasets.OPTIONS) == set(data.LOADERS)
  for name, options in datasets.OPTIONS.items():
    parameters = inspect.signature(data.loader(name)).parameters
    for option, default in options.items():
      assert parameters[option].default == default, (name, option)


@pytest.mark.parametrize(
  "variant, options, symmetric, title",
  [
    ("celegans,label=transmitter", {"label": "transmitter", "molecules": "nodes"}, ("electrical",),
     "celegans-transmitter"),
    ("tiny,dataset=twitch,graph=DE", {"graph": "DE", "vocabulary": False}, (), "twitch-DE"),
    ("tiny,dataset=imdb-nshe", {}, (), "imdb_nshe"),
    ("dataset=heco_acm,per_class=40", {"per_class": 40}, (), "heco_acm"),
  ],
)  # fmt: skip
def test_variants(variant, options, symmetric, title):
  config = get_config(variant)
  assert dict(config.data.options) == options and config.data.symmetric == symmetric
  assert data.title(config.data) == title


@pytest.mark.parametrize(
  "variant, message",
  [
    ("dataset=celegance", "dataset=celegance is unknown: choose from celegans, airports"),
    ("dataset=worldcup,label=role", "dataset=worldcup has no option label=role"),
    ("dataset=heco_acm,per_class=many", "per_class=many must be of type int"),
    ("dataset=twitch,vocabulary=maybe", "vocabulary=maybe must be true or false"),
  ],
)
def test_variants_that_cannot_be(variant, message):
  with pytest.raises(ValueError, match=message):
    get_config(variant)


def test_prepare_serves_a_variant(data_dir):
  config = get_config("tiny,dataset=airports")
  graph = data.prepare(config.data)
  assert ("airport", "rev_flight", "airport") in graph.edges
  assert graph.nodes["airport"].features.shape[1] == 2 + 16  # degrees, singular vectors


def test_prepare_appends_encodings_embeddings_and_virtual_nodes(data_dir):
  config = get_config("tiny,dataset=airports,embedding=transe")
  config.data.update(random_walk_encoding=4, laplacian_encoding=3, embedding_dim=5, virtual_nodes=2)
  graph = data.prepare(config.data)
  assert graph.schema.feature_dims == (2 + 16 + 3 + 4 + 5, 2)
  assert graph.num_nodes["virtual_airport"] == 2
  with pytest.raises(ValueError, match="embedding=glove is unknown: choose from metapath2vec"):
    get_config("embedding=glove")


def test_unknown_options_and_values_list_the_known(data_dir):
  with pytest.raises(InputError, match="airports has no option 'label': its options are graph"):
    data.load("airports", label="x")
  with pytest.raises(InputError, match="airports has no graph='chile': choose from brazil, europe"):
    data.load("airports", graph="chile")


def test_without_the_folder_the_variable_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv("H2G_DATA", str(tmp_path / "nowhere"))
  assert files.root() == tmp_path / "nowhere"
  with pytest.raises(InputError, match="imdb-nshe does not exist: set H2G_DATA"):
    data.load("imdb-nshe")
