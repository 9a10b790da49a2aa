"""Small graphs that several tests of models share."""

import numpy as np

from h2g.graph import HeteroGraph


def random_graph(seed: int = 0, *, num_papers: int = 13, num_authors: int = 7, num_edges: int = 40):
  """Two node types, three relations (one of them empty), an isolated node, edge features on one."""
  rng = np.random.default_rng(seed)
  papers = rng.integers(0, num_papers - 1, num_edges)  # the last paper stays isolated
  authors = rng.integers(0, num_authors, num_edges)
  cited = rng.integers(0, num_papers - 1, num_edges)
  labels = np.arange(num_papers) % 3
  labels[1] = -1
  return HeteroGraph.from_arrays(
    nodes={
      "paper": {"features": rng.normal(size=(num_papers, 5)), "labels": labels},
      "author": {"features": rng.normal(size=(num_authors, 4))},
    },
    edges={
      ("author", "writes", "paper"): (authors, papers, rng.normal(size=(num_edges, 2))),
      ("paper", "cites", "paper"): (papers, cited),
      ("paper", "retracted_by", "author"): np.zeros((2, 0), np.int64),
    },
    target="paper",
  )


def adjacency(graph: HeteroGraph, names=None) -> np.ndarray:
  """[N, N] float64: how many edges of all (or the named) relations lead from column to row."""
  total = graph.node_offsets[-1]
  out = np.zeros((total, total))
  for name in names or graph.schema.edge_types:
    edges, count = graph.edges[name], int(graph.edges[name].indptr[-1])
    rows = np.asarray(edges.receivers)[:count] + graph.rows(name[2])[0]
    np.add.at(out, (rows, np.asarray(edges.senders)[:count] + graph.rows(name[0])[0]), 1)
  return out
