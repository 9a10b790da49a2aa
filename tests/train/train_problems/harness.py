"""The trainer's command line, in this process or in one of its own, and what it leaves behind."""

import importlib.util
import json
import os
from pathlib import Path
import re
import subprocess
import sys

import jax

from h2g.train.__main__ import main

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
CONFIG = HERE / "configs" / "blobs.py"


def arguments(workdir, *words: str, variant: str = "full", config: str = "blobs") -> list[str]:
  where = f"{CONFIG.with_name(config)}.py:{variant}"
  return ["h2g.train", "--config", where, "--workdir", str(workdir), *words]


def train(workdir, *words: str, **which) -> int:
  """The exit status of the command line, run in this process."""
  return main(arguments(workdir, *words, **which))


def spawn(workdir, *words, devices: int = 2, **which) -> subprocess.Popen:
  """The command line in a process of its own, in another directory than the repository's."""
  # Compiled as in this process, or the bits differ.
  flags = re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"])
  env = dict(os.environ, XLA_FLAGS=flags, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
  return subprocess.Popen(
    [sys.executable, "-m", *arguments(workdir, *words, **which)],
    env=env,
    cwd=HERE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def get_config(variant: str = "full"):
  spec = importlib.util.spec_from_file_location("blobs_config", CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def results(workdir) -> dict:
  """results.json without what may differ between two runs of the same command."""
  found = json.loads((Path(workdir) / "results.json").read_text())
  assert found.pop("seconds") >= 0
  return found


def rows(workdir) -> list[dict]:
  """metrics.jsonl without the times."""
  lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def final_state(workdir) -> dict:
  """Arrays of the last checkpoint of each group by path, as they stand on disk."""
  import orbax.checkpoint as ocp

  arrays = {}
  host = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  for group in sorted((Path(workdir) / "checkpoints").iterdir()):
    last = max((p for p in group.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    with ocp.StandardCheckpointer() as reader:
      for item in ("state", "best"):
        meta = reader.metadata(last / item).item_metadata.tree
        like = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=host), meta)
        tree = reader.restore(last / item, like)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
          arrays[f"{group.name} {item}{jax.tree_util.keystr(path)}"] = jax.device_get(leaf)
  return arrays


def assert_same_run(one, other) -> None:
  """Bit for bit: parameters and the rest of the state, results, every logged number."""
  assert results(one) == results(other)
  assert rows(one) == rows(other)
  first, second = final_state(one), final_state(other)
  assert first.keys() == second.keys()
  for name, value in first.items():
    assert value.tobytes() == second[name].tobytes(), name
