"""One training step of H2G-former at H2GB's settings, sampling included, beside the official way.

  python experiments/speed/h2gb_step.py --json rows.json

Settings: width 256, 3 layers, 8 heads, dropout 0.2, HGT sampling 256 x 4, 32 seeds, AdamW, clip 1;
a mag-like graph of 0.5 M nodes and 5 M edges before reverses. A step samples, computes loss and
gradients, and updates the weights; both sides draw the same subgraphs with the same generators.

The peer is the official layer written again in torch: node types one after another through their
own linears, relation weights gathered per edge ([E, H, D, D]), PyG's softmax and scatter over
edges. The peer samples with ours, because PyG's own HGT sampler needs an extension that is compiled
by whoever installs it: what is compared is everything else of the step, and that sampler stands in
sampler.py. Before anything is timed the two give the same logits on one subgraph, with copied
weights.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.speed import harness
from experiments.speed.mag_like import arguments
from experiments.speed.mag_like import mag_like
from h2g.graph import padding
from h2g.graph.graph import HeteroGraph
from h2g.graph.sampler import Sampler
from h2g.models import h2g_former
from h2g.nn.encoders import split_labels
from h2g.nn.pure import pure

FANOUTS = (256,) * 4
BATCH, DIM, LAYERS, HEADS, DROPOUT = 32, 256, 3, 8, 0.2
LR, WEIGHT_DECAY = 5e-4, 1e-5


class Draws:
  """Step i's subgraph, for whoever asks: the seeds stand first among its papers."""

  def __init__(self, graph: HeteroGraph):
    self.sampler = Sampler(graph)
    self.pool = np.flatnonzero(graph.splits["train"])

  def __call__(self, i: int) -> HeteroGraph:
    rng = np.random.default_rng(i)
    return self.sampler.hgt(rng.choice(self.pool, BATCH, replace=False), FANOUTS, rng)


def our_step(graph: HeteroGraph, draws: Draws):
  """(run one step, model, params, rest, padded graph of draw i)."""
  make = lambda rngs: h2g_former(
    graph.schema, dim=DIM, num_layers=LAYERS, num_heads=HEADS, dropout_rate=DROPOUT, rngs=rngs
  )
  model = pure(make)
  params, rest = model.init(jax.random.key(0))
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=WEIGHT_DECAY)
  )
  probes = [padding.size_of(draws(1000 + i)) for i in range(8)]
  ladder = padding.bucket_ladder(probes, max_buckets=1)

  def prepare(i: int) -> HeteroGraph:
    sample = draws(i)
    return padding.pad_to(sample, padding.choose_bucket(ladder, sample))

  def loss(params, sample, key):
    mask_key, dropout_key = jax.random.split(key)
    train = sample.splits["train"]
    seeds = jnp.arange(train.shape[0]) < BATCH
    visible, counted = split_labels(train, mask_key, seeds=seeds)
    logits = model.bind(params, rest)(sample, visible=visible, key=dropout_key)
    nll = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(sample.target_labels, 0)
    )
    return jnp.where(counted, nll, 0.0).sum() / BATCH

  @jax.jit
  def step(params, state, sample, key):
    value, grads = jax.value_and_grad(loss)(params, sample, key)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  held = {"params": params, "state": optimizer.init(params), "at": 0}

  def run():
    sample = prepare(held["at"])
    key = jax.random.key(held["at"])
    held["params"], held["state"], value = step(held["params"], held["state"], sample, key)
    held["at"] += 1
    return value.block_until_ready()

  return run, model, params, rest, prepare


def torch_model(params, schema):
  """The official forward in torch, with our weights."""
  import torch
  import torch.nn.functional as F
  from torch_geometric.utils import scatter
  from torch_geometric.utils import softmax

  parameters = []

  def tensor(x):
    out = torch.nn.Parameter(torch.from_numpy(np.array(x)))
    parameters.append(out)
    return out

  tree = jax.tree.map(tensor, params)
  names = schema.node_types

  def per_type(rows, part):  # as the official code: one linear a type, in a Python loop
    return {n: rows[n] @ part["kernel"][t] + part["bias"][t] for t, n in enumerate(names)}

  def norm(rows, part):
    return {
      n: F.layer_norm(rows[n], (DIM,), part["scale"][t], part["shift"][t])
      for t, n in enumerate(names)
    }

  def drop(rows, training):
    return {n: F.dropout(x, DROPOUT, training) for n, x in rows.items()}

  gelu = lambda x: F.gelu(x, approximate="tanh")

  def forward(features, labels, visible, edges, training):
    """features {type: [N_t, F]}; labels, visible [N_target]; edges {type: (senders, receivers)}."""
    encoder = tree["encoder"]
    h = {n: features[n] @ encoder["kernel"][n] + encoder["bias"][n] for n in names}
    unknown = schema.num_classes
    slots = torch.where(visible & (labels >= 0), labels, unknown)
    h[schema.target] = h[schema.target] + tree["labels"]["kernel"][slots] + tree["labels"]["bias"]
    h = {n: gelu(x) for n, x in norm(per_type(h, tree["pre"]), tree["pre_norm"]).items()}
    counts = [len(features[n]) for n in names]
    start = dict(zip(names, np.cumsum([0, *counts])))
    sources = torch.cat([edges[r][0] + int(start[r[0]]) for r in schema.edge_types])
    targets = torch.cat([edges[r][1] + int(start[r[2]]) for r in schema.edge_types])
    kinds = torch.repeat_interleave(
      torch.arange(len(schema.edge_types)),
      torch.tensor([len(edges[r][0]) for r in schema.edge_types]),
    )
    for at in range(LAYERS):
      layer = tree["layers"][at]
      attention = layer["attention"]
      qkv = per_type(norm(h, layer["norm"]), attention["qkv"])
      q, k, v = torch.cat([qkv[n] for n in names]).view(-1, 3, HEADS, DIM // HEADS).unbind(1)
      weight = attention["key_weight"][kinds]  # [E, H, D, D]
      key = (k[sources].unsqueeze(-2) @ weight).squeeze(-2)
      logits = (q[targets] * key).sum(-1) * (DIM // HEADS) ** -0.5
      weights = softmax(logits.clamp(-5, 5), targets, num_nodes=sum(counts))
      out = scatter(weights.unsqueeze(-1) * v[sources], targets, 0, sum(counts), reduce="sum")
      out = dict(zip(names, out.reshape(-1, DIM).split(counts)))
      out = drop(per_type(out, attention["out"]), training)
      z = norm({n: h[n] + out[n] for n in names}, layer["ffn_norm"])
      inner = {n: gelu(x) for n, x in per_type(z, layer["ffn"]["up"]).items()}
      out = drop(per_type(drop(inner, training), layer["ffn"]["down"]), training)
      h = {n: z[n] + out[n] for n in names}
    return h[schema.target] @ tree["head"]["kernel"] + tree["head"]["bias"]

  return forward, parameters


def to_tensors(sample: HeteroGraph):
  import torch

  features = {name: torch.from_numpy(nodes.features) for name, nodes in sample.nodes.items()}
  edges = {
    name: tuple(torch.from_numpy(x.astype(np.int64)) for x in (part.senders, part.receivers))
    for name, part in sample.edges.items()
  }
  labels = torch.from_numpy(sample.target_labels.astype(np.int64))
  return features, labels, edges, torch.from_numpy(sample.splits["train"])


def torch_step(draws: Draws, params, schema):
  """(run one step, logits of a sample in evaluation)."""
  import torch
  import torch.nn.functional as F

  forward, parameters = torch_model(params, schema)
  optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY)
  held = {"at": 0}

  def run():
    features, labels, edges, train = to_tensors(draws(held["at"]))
    held["at"] += 1
    seeds = torch.arange(len(train)) < BATCH
    visible = train & ~seeds & (torch.rand(len(train)) < 0.3)
    logits = forward(features, labels, visible, edges, True)
    loss = F.cross_entropy(logits[:BATCH], labels[:BATCH])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return float(loss.detach())

  def logits(sample, visible):
    features, labels, edges, _ = to_tensors(sample)
    with torch.no_grad():
      return forward(features, labels, torch.from_numpy(visible), edges, False).numpy()

  return run, logits


def main() -> None:
  parser = arguments(__doc__)
  parser.add_argument("--rounds", type=int, default=harness.ROUNDS)
  parser.add_argument("--warm_up", type=int, default=harness.WARM_UP)
  args = parser.parse_args()
  harness.WARM_UP = args.warm_up
  print(harness.versions("torch", "torch_geometric"), flush=True)
  graph = mag_like(args.nodes, args.edges)
  draws = Draws(graph)
  ours, model, params, rest, prepare = our_step(graph, draws)
  base = dict(op="H2G-former step", case=f"HGT {FANOUTS[0]} x 4, batch {BATCH}", platform="cpu")
  base |= {"pass": "train", "floor_ratio": None, "peer": "per-edge weights, torch + PyG"}
  reason = harness.missing("torch", "torch_geometric")
  runs = [ours]
  if reason:
    base["why"] = reason
  else:
    theirs, logits = torch_step(draws, params, graph.schema)
    sample = draws(12345)
    visible = np.random.default_rng(0).random(sample.num_nodes["paper"]) < 0.3
    wanted = logits(sample, visible)
    padded = prepare(12345)
    wide = np.zeros(padded.num_nodes["paper"], bool)
    wide[: len(visible)] = visible
    got = jax.jit(lambda p, g, v: model.bind(p, rest)(g, visible=v))(params, padded, wide)
    base["max_error"] = harness.error(np.asarray(got)[: len(visible)], wanted)
    assert base["max_error"] < 1e-4, base
    size = padding.size_of(sample)
    print(f"same logits to {base['max_error']:.1e}; a subgraph of {sum(size.num_nodes)} nodes and "
          f"{sum(size.num_edges)} edges, ours padded by {padding.padded_share(padded):.0%}",
          flush=True)  # fmt: skip
    runs.append(theirs)
  taken = harness.times(runs, args.rounds)
  row = base | harness.beside(taken)[-1]
  print(harness.line(row), flush=True)
  sampling = harness.times([lambda: prepare(7)], 5).min() * 1e3
  print(f"of ours, sampling and padding alone: {sampling:.1f} ms")
  harness.write(args.json, [row])


if __name__ == "__main__":
  main()
