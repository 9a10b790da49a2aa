"""One linear map per type over type-sorted rows, beside a loop over types in torch.

  python experiments/speed/typed.py --json rows.json

Peers: one matrix product per type in torch, joined at the end; `jax.lax.ragged_dot`. On a GPU also
torch's grouped product. Types are of uneven size, as the node types of real graphs are: sizes fall
as 1 / rank, and one type in eight is empty. "dynamic": the offsets are an array on the device.
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
from h2g.ops.typed import typed_linear

# rows, width in, width out, types, dtype, dynamic offsets
SHAPES = {
  "cpu": {
    "26k x 128 -> 128, 12 types": (26_000, 128, 128, 12, "float32", False),
    "26k x 128 -> 128, 4 types": (26_000, 128, 128, 4, "float32", False),
    "26k x 128 -> 128, 64 types": (26_000, 128, 128, 64, "float32", False),
    "26k x 128 -> 128, 12 types, dynamic": (26_000, 128, 128, 12, "float32", True),
  },
  "gpu": {
    "1M x 512 -> 512, 4 types": (1_000_000, 512, 512, 4, "bfloat16", False),
    "26k x 128 -> 128, 12 types": (26_000, 128, 128, 12, "bfloat16", False),
    "500k x 512 -> 512, 64 types": (500_000, 512, 512, 64, "bfloat16", False),
    "500k x 512 -> 512, 64 types, dynamic": (500_000, 512, 512, 64, "bfloat16", True),
  },
}
SHAPES["tpu"] = SHAPES["gpu"]


def type_offsets(rows: int, types: int) -> tuple[int, ...]:
  """Row offsets of types of uneven size, in random order; every eighth is empty."""
  mass = 1.0 / np.arange(1, types + 1)
  mass[7::8] = 0
  mass = np.random.default_rng(0).permutation(mass)
  ends = np.round(rows * np.cumsum(mass) / mass.sum()).astype(int)
  return (0, *ends.tolist())


def torch_loop(offsets: tuple[int, ...]):
  """What a PyTorch user writes: a product per type, and one concatenation."""
  import torch

  spans = [(t, a, b) for t, (a, b) in enumerate(itertools.pairwise(offsets)) if b > a]
  return lambda x, w: torch.cat([x[a:b] @ w[t] for t, a, b in spans])


def torch_grouped(offsets: tuple[int, ...]):
  """torch's grouped matrix product (bfloat16, GPU)."""
  import torch

  ends = torch.tensor(offsets[1:], dtype=torch.int32, device="cuda")
  return lambda x, w: torch._grouped_mm(x, w, offs=ends)


def cases(platform: str) -> Iterator[harness.Case]:
  absent = harness.missing("torch")
  for name, (rows, wide, out, types, dtype, dynamic) in SHAPES[platform].items():
    offsets = type_offsets(rows, types)
    rng = np.random.default_rng(1)
    x, w = (
      jnp.asarray(rng.standard_normal(shape, np.float32) * shape[1] ** -0.25, dtype)
      for shape in ((rows, wide), (types, wide, out))
    )

    def ours(x, w, form="xla", offsets=offsets, dynamic=dynamic):
      static = offsets if not dynamic else jnp.asarray(offsets, jnp.int32)
      return typed_linear(x, w, offsets=static, implementation=form)

    def ragged(x, w, offsets=offsets):
      return jax.lax.ragged_dot(x, w, jnp.diff(jnp.asarray(offsets, jnp.int32)))

    naive = functools.partial(ours, form="reference")
    makers = {"torch loop": torch_loop}
    if platform == "gpu":
      makers["torch grouped_mm"] = torch_grouped
    peers = {key: absent or make(offsets) for key, make in makers.items()}
    tensors = []
    if not absent:
      import torch

      kind = getattr(torch, dtype)
      tensors = [harness.to_torch(np.asarray(a, np.float32)).to(kind) for a in (x, w)]
    itemsize = jnp.dtype(dtype).itemsize
    for part in ("fwd", "fwd+bwd"):
      backward = part != "fwd"
      graded = (lambda f: harness.grads(f, 2)) if backward else (lambda f: f)
      torch_graded = harness.torch_grads if backward else (lambda f: f)
      # Forward reads x and w and writes y; backward reads them and dy, and writes dx and dw.
      moved = rows * (wide + out) + types * wide * out
      yield harness.Case(
        op="typed_linear",
        name=name,
        part=part,
        ours=harness.jax_run(graded(ours), x, w),
        peers={
          **{
            key: p if isinstance(p, str) else harness.torch_run(torch_graded(p), *tensors)
            for key, p in peers.items()
          },
          "jax.lax.ragged_dot": harness.jax_run(graded(ragged), x, w),
        },
        wanted=functools.partial(harness.in_float64, graded(naive), x, w),
        tolerance=1e-4 if dtype == "float32" else 2e-2,
        bytes=itemsize * moved * (3 if backward else 1),
        flops=2 * rows * wide * out * (3 if backward else 1),
      )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch")
