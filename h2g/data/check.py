"""Find what is wrong with a graph of your own.

  python -m h2g.data.check PATH [--sha256 DIGEST] [--nohomophily]

  PATH            an .npz file, a folder of tables with a graph.json, a .zip or .tar archive of one
                  (see h2g/data/own.py), or the name of a data set
  --sha256        what the file's checksum must be
  --nohomophily   leave out the homophily, which takes a while on large graphs
  --help          this text

Prints every problem with its file and its field or row and ends with status 1, or a summary, the
homophily and the H2 index and ends with status 0. Status 2: the command line cannot be read.
"""

from pathlib import Path
import sys

from absl import flags
import numpy as np

from h2g import commands
from h2g import data
from h2g.data import files
from h2g.data import own
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import homophily

FEW = 5  # labelled nodes of a class that cannot be split well


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  return commands.run(_main, argv, __doc__)


def _main(argv: list[str]) -> int:
  values = flags.FlagValues()
  digest = flags.DEFINE_string("sha256", None, "", flag_values=values)
  measure = flags.DEFINE_bool("homophily", True, "", flag_values=values)
  words = commands.words(values, argv, most=1)
  if not words:
    raise InputError("no path was given, one is expected; --help says more")
  graph, problems = check(words[0], digest.value)
  for problem in problems:
    print(f"problem: {problem}")
  if graph is None:
    print(f"{len(problems)} problem{'s' * (len(problems) > 1)} found in {words[0]}")
    return 1
  print(graph.summary())
  for note in notes(graph):
    print(f"note: {note}")
  if measure.value:
    print(f"\n{homophily_table(graph)}")
  print(f"\n{words[0]} can be used")
  return 0


def check(path: str, digest: str | None = None) -> own.Inspection:
  """The graph at a path, or of a data set's name, and what is wrong with it."""
  place = Path(path).expanduser()
  if not place.exists() and path.replace("-", "_") in data.LOADERS:
    try:
      return own.Inspection(data.load(path), ())
    except InputError as error:
      return own.Inspection(None, (str(error),))
  before = []
  if digest is not None and place.is_file():
    try:
      files.read_bytes(place, digest.lower())
    except InputError as error:
      before.append(str(error))
  elif digest is not None:
    before.append(f"{path} is no file: --sha256 is that of a file")
  graph, problems = own.inspect(place)
  return own.Inspection(None if before else graph, (*before, *problems))


def notes(graph: HeteroGraph) -> list[str]:
  """What is allowed, but worth knowing."""
  found = []
  labels = np.asarray(graph.target_labels)
  counts = np.bincount(labels[labels >= 0], minlength=graph.schema.num_classes)
  for name, count in zip(graph.schema.class_names, counts):
    if count < FEW:
      found.append(f"class {name!r} has {count} labelled nodes: too few for a stratified split")
  touched = {name: np.zeros(n, bool) for name, n in graph.num_nodes.items()}
  for name, edges in graph.edges.items():
    touched[name[0]][np.asarray(edges.senders)] = True
    touched[name[2]][np.asarray(edges.receivers)] = True
    pairs = np.asarray(edges.senders, np.int64) * graph.num_nodes[name[2]] + edges.receivers
    if double := len(pairs) - len(np.unique(pairs)):
      found.append(f"{' -> '.join(name)}: {double} edges repeat another one")
  for name, seen in touched.items():
    if not seen.all():
      found.append(f"{(~seen).sum()} of {len(seen)} {name} nodes have no edge")
  return found


def symmetric(graph: HeteroGraph) -> tuple[str, ...]:
  """Relations that are listed in both directions already: they need no reverses."""
  found = []
  for (source, relation, target), edges in graph.edges.items():
    if source == target and len(edges.senders):
      pairs = np.stack([np.asarray(edges.senders), np.asarray(edges.receivers)])
      forth, back = (np.unique(p, axis=1) for p in (pairs, pairs[::-1]))
      if np.array_equal(forth, back):
        found.append(relation)
  return tuple(found)


def homophily_table(graph: HeteroGraph) -> str:
  """Homophily of the target's own relations and of its metapaths, and the H2 index."""
  lines = []
  for name in graph.schema.edge_types:
    if name[0] == name[2] == graph.schema.target and graph.schema.num_classes > 1:
      h = homophily.relation_homophily(graph, name)
      if h.pairs:
        figures = f"{h.pairs} labelled pairs, h {h.edge:.3f}, adjusted {h.adjusted:+.3f}"
        lines.append(f"{' -> '.join(name)}: {figures}")
  try:
    lines.append(str(homophily.metapath_homophily(graph.with_reverses(skip=symmetric(graph)))))
  except InputError as error:
    lines.append(f"no H2 index: {error}")
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
