"""A synthetic twin of RCDD, the largest of the H2GB graphs: built, opened, sampled; memory printed.

  python -m experiments.speed.rcdd_twin --path /data/twin.store [--scale 1] [--width 256]

  --path      folder of the store; one that is there already is opened, not built
  --scale     share of 13,806,619 nodes and 157,814,864 edges
  --width     features per node
  --batches   HGT samples to draw: 32 seeds, 256 nodes per type in each of 4 iterations
  --keep      leave the store there; one that was there before is left anyway

Seven node and seven edge types, two classes, in-degrees of a power law (exponent 2.5), a few hubs
with far more. How the published totals spread over the types is not published: these shares are
made up. `resident` is the peak of the phase as the kernel counts it, pages of mapped files
included (a sampler gives them back at 4 GiB); `own` is what is not of files at its end.
"""

import argparse
import contextlib
import math
from pathlib import Path
import shutil
import sys
import time

import numpy as np

from h2g.data import store
from h2g.errors import InputError
from h2g.graph.sampler import Sampler

NODES, EDGES, CLASSES = 13_806_619, 157_814_864, 2
SHARES = {"item": 0.3, "a": 0.2, "b": 0.16, "c": 0.12, "d": 0.1, "e": 0.08, "f": 0.04}
RELATIONS = {
  ("b", "A", "item"): 0.3,
  ("f", "B", "item"): 0.2,
  ("a", "G", "f"): 0.15,
  ("f", "H", "e"): 0.12,
  ("f", "C", "d"): 0.1,
  ("f", "D", "c"): 0.08,
  ("e", "F", "a"): 0.05,
}
CHUNK = 1 << 22
FANOUTS, BATCH = (256,) * 4, 32
LABELLED = 0.1  # of the items


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--path", required=True)
  parser.add_argument("--scale", type=float, default=1.0)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--batches", type=int, default=50)
  parser.add_argument("--keep", action="store_true")
  options = parser.parse_args(argv)
  path = Path(options.path)
  keep = options.keep or path.exists()  # what was there before stays
  try:
    if not path.exists():
      measured("build", lambda: build(path, scale=options.scale, width=options.width))
    graph = measured("open", lambda: store.load(path))
    print(graph.summary())
    sampler = measured("sampler", lambda: Sampler(graph))
    measured("sample", lambda: sample(sampler, options.batches))
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  finally:
    if not keep:
      shutil.rmtree(path, ignore_errors=True)
  return 0


def build(path: Path, *, scale: float = 1.0, width: int = 256, seed: int = 0) -> None:
  """Writes the twin, chunk by chunk."""
  rng = np.random.default_rng(seed)
  counts = dict(zip(SHARES, _shares(SHARES.values(), round(NODES * scale))))
  sizes = dict(zip(RELATIONS, _shares(RELATIONS.values(), round(EDGES * scale))))
  with store.writing(path, target="item", class_names=("normal", "risk"), reverses=True) as out:
    for name, count in counts.items():
      out.num_nodes(name, count)
      rows = max(1, CHUNK // max(width, 1))
      for begin in range(0, count if width else 0, rows):
        shape = (min(rows, count - begin), width)
        out.features(name, rng.standard_normal(shape, np.float32))
    items = counts["item"]
    part = rng.random(items)
    out.labels(np.where(part < LABELLED, rng.random(items) < 0.1, -1).astype(np.int32))
    bounds = {"train": (0, 0.64), "val": (0.64, 0.8), "test": (0.8, 1.0)}
    for name, (low, high) in bounds.items():
      out.split(name, (part >= low * LABELLED) & (part < high * LABELLED))
    for name, size in sizes.items():
      for begin in range(0, size, CHUNK):
        count = min(CHUNK, size - begin)
        senders = power_law(rng, counts[name[0]], count, 1.5)
        out.edges(name, senders, power_law(rng, counts[name[2]], count, 3.0))


def power_law(rng: np.random.Generator, num: int, count: int, skew: float) -> np.ndarray:
  """[count] of range(num): the k-th most frequent in proportion to k^(1/skew - 1)."""
  rank = (num * rng.random(count) ** skew).astype(np.int64)
  step = next(p for p in (999_983, 1_000_003, 7, 11, 13, 1) if math.gcd(p, num) == 1)
  return rank * step % num  # the frequent ones are not neighbours


def sample(sampler: Sampler, batches: int) -> None:
  """Draws HGT samples of training items and prints what they cost."""
  train = np.flatnonzero(sampler.graph.splits["train"])
  rng = np.random.default_rng(1)
  nodes = edges = 0
  began = time.perf_counter()
  for _ in range(batches):
    drawn = sampler.hgt(rng.choice(train, min(BATCH, len(train)), False), FANOUTS, rng)
    nodes += sum(drawn.num_nodes.values())
    edges += sum(len(one.senders) for one in drawn.edges.values())
  each = (time.perf_counter() - began) / batches
  print(f"{each * 1e3:.1f} ms, {nodes / batches:.0f} nodes, {edges / batches:.0f} edges a batch")


def measured(name: str, run):
  """Runs a phase and prints its time and memory; returns what it returned."""
  forget_peak()
  began = time.perf_counter()
  result = run()
  seconds = time.perf_counter() - began
  peak, own = memory()
  print(f"{name:<8}{seconds:>9.2f} s   resident {peak:6.2f} GiB   own {own:6.2f} GiB", flush=True)
  return result


def memory() -> tuple[float, float]:
  """(peak of resident memory, what is not of files now) of this process, GiB; Linux."""
  lines = Path("/proc/self/status").read_text().splitlines()
  found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
  return int(found["VmHWM"]) / 2**20, int(found["RssAnon"]) / 2**20


def forget_peak() -> None:
  """Counts the peak of resident memory anew; where the kernel declines, it stays the old one."""
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")


def _shares(parts, total: int) -> list[int]:
  ends = np.round(np.cumsum([0, *parts]) / sum(parts) * total).astype(np.int64)
  return [int(size) for size in np.diff(ends)]


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
