"""Loss curves of a few steps of both workloads on meshes of one process, as JSON lines.

  python curves.py WORKLOAD data,fsdp,tensor[,sequence[,expert]] ...      [one mesh per word]

Run with --xla_force_host_platform_device_count=8 in XLA_FLAGS.
"""

import itertools
import json
import os
from pathlib import Path
import sys
import tempfile

STEPS = 4
AXES = ("data", "fsdp", "tensor", "sequence", "expert")
MESHES = [
  sizes
  for sizes in itertools.product((1, 2, 4, 8), repeat=3)
  if sizes[0] * sizes[1] * sizes[2] <= 8
]
# With axes that a model asks for: positions of a text over one, layers' widths over the other.
ASKED = [(1, 1, 1, 8), (2, 1, 2, 2), (1, 2, 1, 2, 2), (1, 1, 1, 1, 8), (2, 1, 1, 1, 4)]
EXPERT_RULES = ((r"(gate|up)/kernel", (None, "expert")), (r"down/kernel", ("expert", None)))


def text_config(**train):
  from configs.text import get_config

  config = get_config("tiny")
  path = Path(tempfile.gettempdir()) / f"h2g_curves_{os.getpid()}.txt"
  path.write_bytes(bytes((i * i // 7) % 64 + 32 for i in range(4000)))
  config.data.update(path=str(path), length=16, batch_size=16, eval_windows=8)
  config.model.update(dim=32, num_layers=2, num_heads=8, key_heads=8, mlp_dim=64, remat="full")
  config.train.update(steps=STEPS, clip_norm=0.5, warmup=0, **train)
  return config


def graph_config(**train):
  from configs.h2gb import get_config

  config = get_config("sampled")
  config.data.update(spectral_encoding=0, similar=0)
  config.sample.update(fanouts=(8, 8), batch_size=16, subgraphs=8, max_buckets=1)
  config.model.update(dim=32, num_layers=1, num_heads=8, dropout_rate=0.0, input_dropout=0.0)
  config.num_seeds = 1
  config.train.update(steps=STEPS, clip_norm=0.5, warmup=0, **train)
  return config


def build(workload: str, **train):
  """(experiment, config) of "text" or "graph"."""
  if workload == "text":
    from experiments.text.experiment import build as make

    config = text_config(**train)
  else:
    from experiments.h2gb.experiment import build as make

    config = graph_config(**train)
  return make(config), config


def curve(experiment, config, mesh_sizes) -> dict:
  """Losses and norms of STEPS steps on one mesh, and the share of a device of the whole state."""
  import jax

  from h2g.train.feed import train_feed
  from h2g.train.loop import make_programs
  from h2g.train.settings import complete
  from h2g.train.settings import Settings
  from h2g.train.sharding import Layout
  from h2g.train.sharding import make_mesh
  from h2g.train.step import seed_keys

  settings = Settings.from_config(complete(config))
  rules = (*EXPERT_RULES, *settings.rules) if len(mesh_sizes) > 4 else settings.rules
  mesh = make_mesh(tuple(zip(AXES, mesh_sizes)))
  layout = Layout(mesh, (0,), rules, experiment.rows, experiment.sequence)
  programs = make_programs(experiment, settings, layout)
  state, _ = programs.create(seed_keys(layout.padded))
  leaves = jax.tree.leaves((state.params, state.opt_state))
  share = sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves)
  feed = train_feed(experiment.train_batches((0,)), layout, state=None, ahead=1)
  told = []
  for _ in range(STEPS):
    state, metrics = programs.step(state, feed.next())
    told.append(metrics)
  told = jax.device_get(told)
  return {
    "mesh": list(mesh_sizes),
    "share": share,
    "loss": [float(m["loss"][0, 0]) for m in told],
    "grad_norm": [float(m["grad_norm"][0, 0]) for m in told],
  }


def main(workload: str, *meshes: str) -> None:
  experiment, config = build(workload)
  every = MESHES + (ASKED if workload == "text" else [])
  chosen = [tuple(map(int, mesh.split(","))) for mesh in meshes] or every
  for sizes in chosen:
    print(json.dumps(curve(experiment, config, sizes)), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
