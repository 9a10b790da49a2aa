"""A synthetic graph like ogbn-mag: four node types, four relations, heavy-tailed degrees.

By default 0.5 M nodes and 5 M edges, before reverses: types and relations in ogbn-mag's
proportions, 128 features on every type, degrees that fall as rank ** -0.6 on both sides.
"""

import argparse
import pathlib

import numpy as np

from h2g.graph import HeteroGraph

NODES = {"paper": 0.3797, "author": 0.5848, "institution": 0.0045, "field_of_study": 0.0310}
EDGES = {
  ("author", "writes", "paper"): 0.3387,
  ("paper", "cites", "paper"): 0.2568,
  ("paper", "has_topic", "field_of_study"): 0.3551,
  ("author", "affiliated_with", "institution"): 0.0494,
}


def arguments(text: str) -> argparse.ArgumentParser:
  """The command line of a script that measures on the graph; text: the script's, its first line."""
  parser = argparse.ArgumentParser(description=text.splitlines()[0])
  parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
  parser.add_argument("--nodes", type=int, default=500_000)
  parser.add_argument("--edges", type=int, default=5_000_000)
  return parser


def mag_like(
  num_nodes: int = 500_000,
  num_edges: int = 5_000_000,
  *,
  width: int = 128,
  num_classes: int = 349,
  seed: int = 0,
) -> HeteroGraph:
  """The graph with reverses, and a split `train` of 85 % of the papers."""
  rng = np.random.default_rng(seed)
  counts = {name: max(4, round(share * num_nodes)) for name, share in NODES.items()}

  def ends(name: str, total: int) -> np.ndarray:
    mass = np.cumsum(np.arange(1, counts[name] + 1) ** -0.6)
    rank = np.searchsorted(mass, rng.random(total) * mass[-1])
    return rng.permutation(counts[name])[np.minimum(rank, counts[name] - 1)]

  nodes = {
    name: {"features": rng.standard_normal((count, width), np.float32)}
    for name, count in counts.items()
  }
  nodes["paper"]["labels"] = rng.integers(0, num_classes, counts["paper"])
  edges = {
    name: (ends(name[0], round(share * num_edges)), ends(name[2], round(share * num_edges)))
    for name, share in EDGES.items()
  }
  graph = HeteroGraph.from_arrays(nodes=nodes, edges=edges, target="paper", num_classes=num_classes)
  train = rng.random(counts["paper"]) < 0.85
  return graph.with_splits({"train": train, "val": ~train, "test": ~train}).with_reverses()
