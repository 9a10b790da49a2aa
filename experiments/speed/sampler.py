"""The host's samplers beside PyTorch Geometric's, on one core, on a mag-like graph.

  python experiments/speed/sampler.py --json rows.json

PyG's HGTLoader needs torch-sparse, its NeighborLoader that or pyg-lib: compiled code that PyPI does
not have for this torch. README.md says how to compile what the loaders need in a few minutes. Where
they cannot be imported, the peer for HGT sampling is PyG's algorithm written again in NumPy and
Python dictionaries, node by node as theirs is ("HGT sampling, per node in Python"): interpreted, so
it says little about their C++.

Times are CPU seconds of the process, one thread on either side: what a batch costs a core, whatever
else the machine does.

Ours must be right first: the fan-outs are met and every kept edge joins sampled nodes of the parent
(the distribution itself is tested in tests/graph/test_sampler.py).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import numpy as np

from experiments.speed import harness
from experiments.speed.mag_like import arguments
from experiments.speed.mag_like import mag_like
from h2g.graph.graph import HeteroGraph
from h2g.graph.sampler import Sampler

HGT = (256,) * 4
NEIGHBOR = (16, 8)
BATCH = 32


def pyg_loader(graph: HeteroGraph, kind: str):
  """An endless iterator of PyG's batches, or the reason why there is none."""
  reason = harness.missing("torch", "torch_geometric")
  if reason:
    return reason
  import torch
  from torch_geometric import typing
  from torch_geometric.data import HeteroData
  from torch_geometric.loader import HGTLoader
  from torch_geometric.loader import NeighborLoader

  has = (
    typing.WITH_TORCH_SPARSE if kind == "hgt" else (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE)
  )
  if not has:
    return "neither torch-sparse nor pyg-lib is installed"

  torch.set_num_threads(1)
  data = HeteroData()
  for name, nodes in graph.nodes.items():
    data[name].x = torch.from_numpy(np.asarray(nodes.features))
  for name, edges in graph.edges.items():
    ends = np.stack([edges.senders, edges.receivers]).astype(np.int64)
    data[name].edge_index = torch.from_numpy(ends)
  options = dict(
    input_nodes=("paper", torch.from_numpy(np.flatnonzero(graph.splits["train"]))),
    batch_size=BATCH,
    shuffle=True,
    num_workers=0,
  )
  if kind == "hgt":
    loader = HGTLoader(data, num_samples={name: list(HGT) for name in data.node_types}, **options)
  else:
    loader = NeighborLoader(data, num_neighbors=list(NEIGHBOR), **options)

  def endless():
    while True:
      yield from loader

  return endless()


def hgt_per_node(graph: HeteroGraph, seeds, rng, most: int = 50) -> dict:
  """HGT sampling as PyG's code does it: dictionaries of budgets, updated node by node.

  A node that has more than `most` neighbours in a relation gives budget to `most` of them; the
  subgraph keeps the edges that the same bound lets through. Returns {edge type: (row, column)} and
  gathers the features as its loader does.
  """
  indptr = {name: np.asarray(edges.indptr) for name, edges in graph.edges.items()}
  senders = {name: np.asarray(edges.senders) for name, edges in graph.edges.items()}
  local = {name: {} for name in graph.schema.node_types}
  budget = {name: {} for name in graph.schema.node_types}

  def neighbors(name, node):
    begin, end = indptr[name][node], indptr[name][node + 1]
    if end - begin > most:
      return senders[name][rng.integers(begin, end, most)].tolist()
    return senders[name][begin:end].tolist()

  def lean(kind, nodes):
    for name in graph.schema.edge_types:
      if name[2] != kind:
        continue
      known, mine = local[name[0]], budget[name[0]]
      for node in nodes:
        found = neighbors(name, node)
        for other in found:
          if other not in known:
            mine[other] = mine.get(other, 0.0) + 1.0 / len(found)

  for seed in seeds.tolist():
    local["paper"][seed] = len(local["paper"])
  lean("paper", seeds.tolist())
  for step in range(len(HGT)):
    drawn = {}
    for kind, mine in budget.items():
      ids, value = np.array(list(mine), np.int64), np.array(list(mine.values())) ** 2
      count = min(HGT[step], len(ids))
      if not count:
        continue
      late = rng.standard_exponential(len(ids)) / value
      drawn[kind] = ids[np.argpartition(late, count - 1)[:count]].tolist()
      for node in drawn[kind]:
        del mine[node]
        local[kind][node] = len(local[kind])
    for kind, nodes in drawn.items():
      lean(kind, nodes)
  edges = {}
  for name in graph.schema.edge_types:
    rows, columns, known = [], [], local[name[0]]
    for node, row in local[name[2]].items():
      for other in neighbors(name, node):
        if (at := known.get(other)) is not None:
          rows.append(row)
          columns.append(at)
    edges[name] = np.array(rows), np.array(columns)
  features = {
    name: graph.nodes[name].features[np.fromiter(local[name], np.int64)] for name in local
  }
  return edges, features


def check(graph: HeteroGraph, sample: HeteroGraph) -> None:
  """Edges are the parent's, by looking each of a few hundred up."""
  for name, edges in sample.edges.items():
    parent = graph.edges[name]
    tails = sample.nodes[name[0]].ids[edges.senders]
    heads = sample.nodes[name[2]].ids[edges.receivers]
    for tail, head in list(zip(tails, heads))[:300]:
      row = parent.senders[parent.indptr[head] : parent.indptr[head + 1]]
      assert tail in row, (name, tail, head)


def main() -> None:
  parser = arguments(__doc__)
  parser.add_argument("--rounds", type=int, default=harness.ROUNDS)
  args = parser.parse_args()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  print(harness.versions("torch", "torch_geometric"), "one core", flush=True)
  graph = mag_like(args.nodes, args.edges)
  sampler, pool = Sampler(graph), np.flatnonzero(graph.splits["train"])
  rng = np.random.default_rng(0)
  seeds = lambda: rng.choice(pool, BATCH, replace=False)
  kinds = {
    "hgt": (lambda: sampler.hgt(seeds(), HGT, rng), f"HGT {HGT[0]} x {len(HGT)}, batch {BATCH}"),
    "hgt_50": (
      lambda: sampler.hgt(seeds(), HGT, rng, max_neighbors=50),
      f"HGT {HGT[0]} x {len(HGT)}, 50 neighbours at most, batch {BATCH}",
    ),
    "neighbor": (
      lambda: sampler.neighbor(seeds(), NEIGHBOR, rng),
      f"neighbours {NEIGHBOR}, batch {BATCH}",
    ),
  }
  rows = []
  for kind, (ours, case) in kinds.items():
    check(graph, ours())
    loader = pyg_loader(graph, "neighbor" if kind == "neighbor" else "hgt")
    name = "PyG NeighborLoader" if kind == "neighbor" else "PyG HGTLoader"
    peers = {name: loader if isinstance(loader, str) else (lambda it=loader: next(it))}
    if kind != "neighbor":
      peers["HGT sampling, per node in Python"] = lambda: hgt_per_node(graph, seeds(), rng)
    runs = {key: peer for key, peer in peers.items() if not isinstance(peer, str)}
    taken = harness.times([ours, *runs.values()], args.rounds, clock=time.process_time)
    alone, *compared = harness.beside(taken)
    base = dict(op="sampler", case=case, platform="cpu", **alone)
    base |= {"pass": "one batch", "floor_ratio": None, "max_error": 0.0}
    found = iter(compared)
    for key, peer in peers.items():
      result = dict(why=peer) if isinstance(peer, str) else next(found)
      rows.append(base | {"peer": key} | result)
      print(harness.line(rows[-1]), flush=True)
  harness.write(args.json, rows)


if __name__ == "__main__":
  main()
