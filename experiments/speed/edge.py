"""Edge attention beside PyTorch Geometric, on the same random graphs.

  python experiments/speed/edge.py --json rows.json

Peers: PyG's softmax and scatter over gathered q, k, v; the message passing of its TransformerConv
(projections left out); our own reference form, which is what naive JAX costs. On a GPU, in
bfloat16, ours is the `mosaic_gpu` kernel, our `xla` form is a peer, and the first peer runs under
torch.compile, too. Seeds that train together are one call for us and S * H heads for the peers.
"""

from collections.abc import Iterator
import functools
import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed import harness
from h2g.ops.edge import build_edge_index
from h2g.ops.edge import edge_attention

MOST = 3e8  # numbers in an array of edges x features; naive forms of more are not run

# receivers, message rows, edges, seeds, heads, width, kind
SHAPES = {
  "cpu": {
    "N 20k E 200k H8 D16": (20_000, 20_000, 200_000, 0, 8, 16, "uniform"),
    "N 5k E 500k H8 D16": (5_000, 5_000, 500_000, 0, 8, 16, "uniform"),
    "N 20k E 200k H8 D16 power law": (20_000, 20_000, 200_000, 0, 8, 16, "power"),
    "C. elegans size, 10 seeds, H4 D8": (630, 5_200, 34_000, 10, 4, 8, "uniform"),
  },
  "gpu": {
    "arxiv size H8 D16": (169_343, 169_343, 1_166_243, 0, 8, 16, "power"),
    "products size H8 D16": (2_449_029, 2_449_029, 61_859_140, 0, 8, 16, "power"),
    "mag size H8 D64": (736_389, 1_939_743, 21_111_007, 0, 8, 64, "power"),
    "C. elegans size, 10 seeds, H4 D8": (630, 5_200, 34_000, 10, 4, 8, "uniform"),
  },
}


def random_edges(num: int, rows: int, edges: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
  """(senders, receivers); "power": degrees fall as rank ** -0.6 on both sides, in random order."""
  rng = np.random.default_rng(0)
  if kind == "uniform":
    return rng.integers(0, rows, edges), rng.integers(0, num, edges)

  def draw(count):
    mass = np.cumsum(np.arange(1, count + 1) ** -0.6)
    found = np.searchsorted(mass, rng.random(edges) * mass[-1])
    return rng.permutation(count)[np.minimum(found, count - 1)]

  return draw(rows), draw(num)


def pyg(receivers: np.ndarray, senders: np.ndarray, num: int, compiled: bool = False):
  """Attention by gather, softmax over an index and scatter, as PyG's layers write it."""
  import torch
  from torch_geometric.utils import scatter
  from torch_geometric.utils import softmax

  to, source = harness.to_torch(receivers), harness.to_torch(senders)

  def attend(q, k, v):
    logits = (q[to] * k[source]).sum(-1) * q.shape[-1] ** -0.5
    weights = softmax(logits, to, num_nodes=num)
    return scatter(weights.unsqueeze(-1) * v[source], to, dim=0, dim_size=num, reduce="sum")

  return torch.compile(attend) if compiled else attend


def transformer_conv(receivers: np.ndarray, senders: np.ndarray, num: int, heads: int, width: int):
  """The message passing of PyG's TransformerConv alone: q, k, v come as they are."""
  from torch_geometric.nn import TransformerConv

  pairs = harness.to_torch(np.stack([senders, receivers]))
  conv = TransformerConv((1, 1), width, heads=heads, root_weight=False)

  def attend(q, k, v):
    size = (k.shape[0], num)
    return conv.propagate(pairs, query=q, key=k, value=v, edge_attr=None, size=size)

  return attend


def in_parts(function, backward: bool, parts: int, q, k, v, index):
  """`harness.in_float64` of a large graph: receivers in groups, whose gradients of k, v add up."""
  wanted = np.linspace(0, index.indptr[-1], parts + 1)
  bounds = np.unique([0, *np.searchsorted(index.indptr, wanted), len(q)])
  of_q, of_rows = [], 0.0
  for first, last in itertools.pairwise(bounds):
    mine = slice(index.indptr[first], index.indptr[last])
    senders, receivers = index.senders[mine], index.receivers[mine] - first
    part = build_edge_index(senders, receivers, len(k), last - first)
    found = harness.in_float64(function, q[first:last], k, v, part)
    of_q.append(found[0] if backward else found)
    if backward:
      of_rows = of_rows + np.stack(found[1:])
  whole = np.concatenate(of_q)
  return (whole, *of_rows) if backward else whole


def cases(platform: str) -> Iterator[harness.Case]:
  absent = harness.missing("torch", "torch_geometric")
  dtype, named = (jnp.bfloat16, "mosaic_gpu") if platform == "gpu" else (jnp.float32, "xla")
  for name, (num, rows, edges, seeds, heads, width, kind) in SHAPES[platform].items():
    senders, receivers = random_edges(num, rows, edges, kind)
    index = build_edge_index(senders, receivers, rows, num)
    rng = np.random.default_rng(1)
    lead = (seeds,) if seeds else ()
    arrays = [
      np.asarray(jnp.asarray(rng.standard_normal((*lead, n, heads, width), np.float32), dtype))
      for n in (num, rows, rows)
    ]

    def ours(q, k, v, index, form=named, seeds=seeds):
      one = functools.partial(edge_attention, implementation=form)
      return (jax.vmap(one, (0, 0, 0, None)) if seeds else one)(q, k, v, index)

    naive = functools.partial(ours, form="reference")
    # [S, N, H, D] -> [N, S * H, D], how a peer would run seeds together.
    fold = lambda x: np.moveaxis(x, 0, 1).reshape(x.shape[1], -1, x.shape[3])
    folded = [fold(x) if seeds else x for x in arrays]
    count = heads * max(seeds, 1)

    def unfold(x, seeds=seeds, heads=heads):
      x = x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim == 3 else x
      return x.reshape(x.shape[0], seeds, heads, -1).movedim(1, 0) if seeds else x

    makers = {
      "PyG softmax + scatter": functools.partial(pyg, receivers, senders, num),
      "PyG TransformerConv": functools.partial(
        transformer_conv, receivers, senders, num, count, width
      ),
    }
    if platform == "gpu":
      makers["PyG compiled"] = functools.partial(pyg, receivers, senders, num, compiled=True)
    peers = {key: absent or make() for key, make in makers.items()}
    tensors = [] if absent else [harness.to_torch(x.astype(np.float32)) for x in folded]
    if platform == "gpu":
      tensors = [x.bfloat16() for x in tensors]
    row_bytes = dtype(0).nbytes * count * width
    large = int(edges * count * width / MOST)
    for part in ("fwd", "fwd+bwd"):
      backward = part != "fwd"
      graded = (lambda f: harness.grads(f, 3)) if backward else (lambda f: f)

      def torch_call(function, backward=backward, tensors=tensors, unfold=unfold):
        flat = lambda q, k, v: function(q, k, v).reshape(q.shape[0], q.shape[1], -1)
        wanted = harness.torch_grads(flat) if backward else flat

        def call(*args):
          out = wanted(*args)
          return tuple(map(unfold, out)) if backward else unfold(out)

        return harness.torch_run(call, *tensors)

      run = lambda form, graded=graded, arrays=arrays, index=index: harness.jax_run(
        graded(form), *arrays, index
      )
      own = {"h2g xla": run(functools.partial(ours, form="xla"))} if platform == "gpu" else {}
      own["naive JAX"] = "edges x features do not fit" if large else run(naive)
      reference = functools.partial(harness.in_float64, graded(naive))
      if large and not seeds:
        reference = functools.partial(in_parts, graded(naive), backward, large + 1)
      yield harness.Case(
        op="edge_attention",
        name=name,
        part=part,
        ours=run(ours),
        peers={
          **{key: p if isinstance(p, str) else torch_call(p) for key, p in peers.items()},
          **own,
        },
        wanted=functools.partial(reference, *arrays, index),
        tolerance=2e-2 if platform == "gpu" else 1e-4,
        # Every edge reads its key and value; backward also its query, output gradient, key, value.
        bytes=row_bytes * edges * (6 if backward else 2),
        flops=edges * count * width * (14 if backward else 4),
      )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch", "torch_geometric")
