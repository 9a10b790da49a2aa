"""Measures which sizes this device prefers, and writes them to a small JSON file.

  python experiments/speed/autotune.py --json tuning.json
  H2G_TUNING=tuning.json python -m h2g.train ...

Optional: every size has a closed form (see `h2g/ops/tuning.py`). A size is written only where it is
at least 5 % faster than the closed form, forward and backward together.
"""

import argparse
from collections.abc import Iterator
import itertools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed import harness
from h2g.ops import masks
from h2g.ops import tuning
from h2g.ops.attention import attention
from h2g.ops.linear import decay_attention
from h2g.ops.linear import retention_decay

GAIN = 0.95


def problems(lengths: list[int]) -> Iterator[tuple[str, dict, list[dict], object]]:
  """(operation, shape, candidates, function of q, k, v) for all lengths."""
  pairs = lambda first, a, second, b: [{first: x, second: y} for x, y in itertools.product(a, b)]
  for length in lengths:
    dense = lambda q, k, v: attention(q, k, v, mask=masks.causal(), implementation="xla")
    blocks = [{"block": n} for n in (64, 128, 256, 512) if n <= length]
    yield "attention.xla", dict(length=length), blocks, dense
    decay = lambda q, k, v: decay_attention(
      q, k, v, decay=retention_decay(q.shape[2]), implementation="xla"
    )
    chunks = pairs("chunk", (32, 64, 128), "group", (1, 4, 16))
    yield "linear.xla", dict(length=length), chunks, decay


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", type=pathlib.Path, required=True, help="file to write")
  parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
  parser.add_argument("--rounds", type=int, default=9)
  args = parser.parse_args()
  print(harness.versions(), flush=True)
  device, found = jax.devices()[0].device_kind, {}
  dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  for operation, shape, candidates, function in problems(args.lengths):
    rng = np.random.default_rng(0)
    size = (1, shape["length"], 8, 64)
    arrays = [jnp.asarray(rng.standard_normal(size, np.float32), dtype) for _ in range(3)]
    build = lambda function=function, arrays=arrays: harness.jax_run(
      harness.grads(function, 3), *arrays
    )
    best, medians = tuning.fastest(operation, [{}, *candidates], build, rounds=args.rounds)
    times = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in medians.items())
    print(f"{operation} {tuning.key(**shape)}: {times}", flush=True)
    if best and medians[json.dumps(best, sort_keys=True)] < GAIN * medians["{}"]:
      found.setdefault(operation, {})[tuning.key(**shape)] = best
  args.json.parent.mkdir(parents=True, exist_ok=True)
  temporary = args.json.with_suffix(".tmp")
  temporary.write_text(json.dumps({device: found}, indent=1) + "\n")
  temporary.replace(args.json)
  print(f"wrote {args.json}: {found or 'the closed forms are best'}")


if __name__ == "__main__":
  main()
