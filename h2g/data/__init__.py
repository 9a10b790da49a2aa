"""Data: loaders by name, own graphs by path, splits."""

from collections.abc import Callable
import importlib
import inspect

from h2g.data import own
from h2g.data.splits import splitter as splitter
from h2g.data.splits import stratified_split as stratified_split
from h2g.errors import InputError
from h2g.graph import embeddings
from h2g.graph import encodings
from h2g.graph import HeteroGraph
from h2g.graph import view
from h2g.graph.views import with_virtual_nodes

# Name: module and function, imported when asked for. All but celegans read files under H2G_DATA.
LOADERS = {
  "airports": ("airports", "load"),
  "celegans": ("celegans", "load"),
  "flavor": ("flavor", "load"),
  "heco_acm": ("heco", "load_acm"),
  "heco_aminer": ("heco", "load_aminer"),
  "heco_freebase": ("heco", "load_freebase"),
  "h_pokec": ("h_pokec", "load"),
  "heterophilous_npz": ("heterophilous_npz", "load"),
  "ieee_cis": ("ieee_cis", "load"),
  "imdb_nshe": ("imdb_nshe", "load"),
  "larval_connectome": ("larval_connectome", "load"),
  "liar": ("liar", "load"),
  "mag_year": ("ogbn_mag", "load_year"),
  "movielens": ("movielens", "load"),
  "oag_chem": ("oag", "load_chem"),
  "oag_cs": ("oag", "load_cs"),
  "oag_eng": ("oag", "load_eng"),
  "ogbn_mag": ("ogbn_mag", "load_venue"),
  "pdns": ("pdns", "load"),
  "rcdd": ("rcdd", "load"),
  "twitch": ("twitch", "load"),
  "worldcup": ("worldcup", "load"),
  "yelpchi_reviews": ("yelpchi_reviews", "load"),
}


def loader(name: str) -> Callable[..., HeteroGraph]:
  """The function that loads a data set; its docstring says what there is to choose.

  Raises:
    InputError: unknown name; the message lists those there are.
  """
  place = LOADERS.get(name.replace("-", "_"))
  if place is None:
    raise InputError(f"unknown data set {name!r}: choose from {', '.join(sorted(LOADERS))}")
  return getattr(importlib.import_module(f"h2g.data.{place[0]}"), place[1])


def load(name: str, **options) -> HeteroGraph:
  """A data set by name; options are its loader's.

  Raises:
    InputError: unknown name or option; the message lists those there are.
  """
  function = loader(name)
  known = [option for option in inspect.signature(function).parameters if option != "digests"]
  if unknown := [option for option in options if option not in known]:
    raise InputError(f"{name} has no option {unknown[0]!r}: its options are {', '.join(known)}")
  return function(**options)


def prepare(config) -> HeteroGraph:
  """The graph that a config's `data` section describes.

  Args:
    config: `name` of a data set with its `options`, or `path` of an own graph (see
      `h2g.data.own`); `reverses`: add reverse relations; `symmetric`: relations that need
      none; `self_loops`; `degree_encoding`, `spectral_encoding`, `laplacian_encoding` and
      `random_walk_encoding` (dimensions, 0 for none): structural features appended to the node
      features; `embedding`: likewise, vectors of `h2g.graph.embeddings.METHODS` ("" for none),
      `embedding_dim` wide; `virtual_nodes`: so many more nodes per type, joined to all of it;
      `similar`: edges from the k nodes most alike into each node of the target type (0 for none);
      `view`: a graph made from the result, see `h2g.graph.views.VIEWS` ("" for none);
      `max_edges`: of a view, 0 for any number.
  """
  if config.path:
    graph = own.load(config.path)
  else:
    graph = load(config.name, **config.options)
  extra = []  # features of the graph as given, before edges are added
  if config.degree_encoding:
    extra.append(encodings.degree_encoding(graph))
  if config.spectral_encoding:
    extra.append(encodings.spectral_encoding(graph, config.spectral_encoding))
  if config.get("laplacian_encoding", 0):
    extra.append(encodings.laplacian_encoding(graph, config.laplacian_encoding))
  if config.get("random_walk_encoding", 0):
    extra.append(encodings.random_walk_encoding(graph, config.random_walk_encoding))
  if config.get("embedding", ""):
    both = graph.with_reverses(skip=tuple(config.symmetric)) if config.reverses else graph
    extra.append(embeddings.embed(both, config.embedding, config.embedding_dim))
  for columns in extra:
    graph = encodings.append_features(graph, columns)
  if config.similar:
    graph = encodings.with_similar(graph, graph.schema.target, config.similar)
  if config.reverses:
    graph = graph.with_reverses(skip=("similar", *config.symmetric))
  graph = view(graph, config.get("view", ""), max_edges=config.get("max_edges", 0))
  if config.get("virtual_nodes", 0):
    graph = with_virtual_nodes(graph, config.virtual_nodes)
  return graph.with_self_loops() if config.self_loops else graph


def title(config) -> str:
  """Name of the data for results: the set with its graph and label, or the file."""
  which = (str(config.options.get(option, "")) for option in ("graph", "label"))
  return str(config.path) or "-".join(filter(None, (config.name, *which)))
