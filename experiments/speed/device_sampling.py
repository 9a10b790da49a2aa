"""How much of a sampled H2G-former step is spent outside the compiled program.

  python experiments/speed/device_sampling.py --json row.json

The trainer's own stream and step, on a mag-like graph of 0.5 M nodes and 5 M edges before reverses:
width 256, 3 layers, 8 heads, 32 seeds, neighbour sampling of (8, 4) per relation. Once with
`config.sample.device` (the step draws its subgraph), once with the host's sampler in the trainer's
threads. Outside is all time of the loop but that from a call of the step to its results; aim: under
10 % on the device.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import importlib
import pathlib
import sys
import time
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax
import numpy as np

from experiments.speed import harness
from experiments.speed.mag_like import arguments
from experiments.speed.mag_like import mag_like
from h2g.train.feed import train_feed
from h2g.train.loop import make_programs
from h2g.train.settings import complete
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import seed_keys


def measure(graph, steps: int, *, device: bool) -> dict:
  """{"step_ms", "outside"} of `steps` steps, after a few that compile."""
  # As the command line finds them: by name.
  config = importlib.import_module("configs.h2gb").get_config("sampled")
  experiment = importlib.import_module("experiments.h2gb.experiment")
  config.model.update(dim=256, num_layers=3, num_heads=8, dropout_rate=0.2, specialise=0.0)
  config.sample.update(
    method="neighbor", fanouts=(8, 4), batch_size=32, subgraphs=1, device=device, evaluate="full"
  )
  config.num_seeds, config.mesh = 1, {"data": 1}
  config = complete(config)
  masks = lambda graph, split: lambda *, seed: graph.splits
  with (
    mock.patch.object(experiment.data, "prepare", lambda _: graph),
    mock.patch.object(experiment.data, "splitter", masks),
  ):
    built = experiment.build(config)
  settings = Settings.from_config(config)
  layout = Layout(make_mesh(settings.mesh), (0,), rows=built.rows)
  programs = make_programs(built, settings, layout)
  state, _ = programs.create(seed_keys((0,)))
  feed = train_feed(built.train_batches((0,)), layout, state=None, ahead=settings.prefetch)
  inside = 0.0
  for step in range(-3, steps):
    if step == 0:
      inside, began, known = 0.0, time.perf_counter(), len(programs.compiled)
    batch = feed.next()
    start = time.perf_counter()
    state, metrics = programs.step(state, batch)
    jax.block_until_ready((state, metrics))
    inside += time.perf_counter() - start
  total = time.perf_counter() - began
  feed.close()
  late = len(programs.compiled) - known
  loss = float(np.asarray(metrics["loss"]).ravel()[0])
  return dict(step_ms=total / steps * 1e3, outside=1 - inside / total, compiled=late, loss=loss)


def main() -> None:
  parser = arguments(__doc__)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--where", default="device,host")
  args = parser.parse_args()
  print(harness.versions(), flush=True)
  graph, rows = mag_like(args.nodes, args.edges), []
  for where in args.where.split(","):
    found = measure(graph, args.steps, device=where == "device")
    rows.append(dict(op="device_sampling", case=where, platform=jax.default_backend(), **found))
    print(
      f"sampled on the {where}: {found['step_ms']:.0f} ms a step, {found['outside']:.1%} of it "
      f"outside the compiled program (loss {found['loss']:.2f}, {found['compiled']} late compiles)",
      flush=True,
    )
  harness.write(args.json, rows)


if __name__ == "__main__":
  main()
