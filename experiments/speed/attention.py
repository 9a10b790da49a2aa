"""Dense attention and sliding windows beside PyTorch, on the same random arrays.

  python experiments/speed/attention.py --json rows.json

Peers: torch's scaled_dot_product_attention (on a GPU held to its cuDNN backend), its compiled
FlexAttention where a mask or a change of the logits is involved, `jax.nn.dot_product_attention`.
Arrays are [B, S, H, D] for JAX and the same values, heads first and contiguous, for torch: each
library in the layout that it prefers.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import pathlib
import sys
from typing import Any
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed import harness
from h2g.ops import masks
from h2g.ops.attention import attention


class Shape(NamedTuple):
  """One line of the table.

  Attributes:
    batch: B.
    length: T and S.
    heads: H.
    key_heads: K.
    width: D and E.
    kind: "full", "causal", "window" (causal) or "bias" ([1, H, S, S], differentiated).
    window: keys a query may attend to, itself included.
  """

  batch: int
  length: int
  heads: int
  key_heads: int
  width: int
  kind: str
  window: int = 0

  @property
  def pairs(self) -> float:
    """Pairs of query and key that attend, per head and batch entry."""
    n, w = self.length, self.window
    if self.kind == "causal":
      return n * (n + 1) / 2
    return n * w - w * (w - 1) / 2 if self.kind == "window" else n * n


SHAPES = {
  "cpu": {
    "causal B2 S512 H8 D64": Shape(2, 512, 8, 8, 64, "causal"),
    "causal B2 S2048 H8 D64": Shape(2, 2048, 8, 8, 64, "causal"),
    "full B2 S1024 H8 D64": Shape(2, 1024, 8, 8, 64, "full"),
    "causal B2 S1024 H8 K1 D64": Shape(2, 1024, 8, 1, 64, "causal"),
    "window 128 B1 S4096 H8 D64": Shape(1, 4096, 8, 8, 64, "window", 128),
    "bias B2 S512 H8 D64": Shape(2, 512, 8, 8, 64, "bias"),
  },
  "gpu": {
    "causal B4 S2048 H16 D64": Shape(4, 2048, 16, 16, 64, "causal"),
    "causal B1 S8192 H16 D128": Shape(1, 8192, 16, 16, 128, "causal"),
    "causal B1 S16384 H16 D128": Shape(1, 16384, 16, 16, 128, "causal"),
    "full B1 S8192 H16 D128": Shape(1, 8192, 16, 16, 128, "full"),
    "causal B1 S8192 H64 K8 D128": Shape(1, 8192, 64, 8, 128, "causal"),
    "window 1024 B2 S8192 H16 D64": Shape(2, 8192, 16, 16, 64, "window", 1024),
    "bias B1 S1024 H16 D64": Shape(1, 1024, 16, 16, 64, "bias"),
  },
}


def _mask(shape: Shape) -> masks.Mask | None:
  if shape.kind == "window":
    return masks.window(shape.window - 1)
  return masks.causal() if shape.kind == "causal" else None


def ours(shape: Shape, implementation: str | None = None) -> Callable[..., Any]:
  """(q, k, v[, bias]) -> output."""
  mask = _mask(shape)
  return lambda q, k, v, *bias: attention(
    q, k, v, bias=bias[0] if bias else None, mask=mask, implementation=implementation
  )


def jax_nn(shape: Shape, implementation: str) -> Callable[..., Any]:
  """What JAX itself offers for the same call."""
  options = dict(is_causal=shape.kind in ("causal", "window"), implementation=implementation)
  if shape.kind == "window":
    options["local_window_size"] = (shape.window - 1, 0)
  return lambda q, k, v, *bias: jax.nn.dot_product_attention(q, k, v, *bias, **options)


def sdpa(shape: Shape, platform: str) -> Callable[..., Any]:
  """torch's own attention on [B, H, S, D]."""
  import torch

  F = torch.nn.functional
  kernels = torch.nn.attention
  grouped = shape.key_heads != shape.heads

  def call(q, k, v, *bias):
    options = dict(is_causal=shape.kind == "causal", enable_gqa=grouped)
    if bias:
      options["attn_mask"] = bias[0]
    if platform == "gpu" and not bias:
      with kernels.sdpa_kernel(kernels.SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, **options)
    return F.scaled_dot_product_attention(q, k, v, **options)

  return call


def flex(shape: Shape, platform: str) -> Callable[..., Any]:
  """torch's compiled FlexAttention; on a CPU it has no backward."""
  import torch
  from torch.nn.attention import flex_attention

  device = "cuda" if platform == "gpu" else "cpu"
  inside = lambda b, h, q, k: (q >= k) & (q - k < shape.window)
  block_mask = None
  if shape.kind == "window":
    n = shape.length
    block_mask = flex_attention.create_block_mask(inside, None, None, n, n, device=device)
  compiled = torch.compile(flex_attention.flex_attention)

  def call(q, k, v, *bias):
    change = (lambda x, b, h, i, j: x + bias[0][0, h, i, j]) if bias else None
    return compiled(q, k, v, score_mod=change, block_mask=block_mask)

  return call


def peers(shape: Shape, platform: str, backward: bool) -> dict[str, Callable[..., Any] | str]:
  """{name: function of tensors, or why it is not measured}."""
  absent = harness.missing("torch")
  found: dict[str, Any] = {}
  if shape.kind != "window":
    found["torch SDPA"] = absent or sdpa(shape, platform)
  if shape.kind == "window" or (shape.kind == "bias" and platform == "gpu"):
    unserved = "FlexAttention has no backward on a CPU" if backward and platform == "cpu" else None
    found["torch FlexAttention"] = absent or unserved or flex(shape, platform)
  return found


def cases(platform: str) -> Iterator[harness.Case]:
  dtype = jnp.bfloat16 if platform == "gpu" else jnp.float32
  for name, shape in SHAPES[platform].items():
    rng = np.random.default_rng(0)
    b, n, h, kh, d = shape[:5]
    arrays = [rng.standard_normal((b, n, count, d), np.float32) for count in (h, kh, kh)]
    if shape.kind == "bias":
      arrays.append(rng.standard_normal((1, h, n, n), np.float32))
    # The same rounded numbers for everybody, the float64 reference included.
    arrays = [np.asarray(jnp.asarray(x, dtype)) for x in arrays]
    for part in ("fwd", "fwd+bwd"):
      backward = part != "fwd"
      graded = functools.partial(harness.grads, num=len(arrays)) if backward else lambda f: f
      runs = harness.attention_runs(
        peers(shape, platform, backward), arrays, backward=backward, half=platform == "gpu"
      )
      theirs = "cudnn" if platform == "gpu" else "xla"
      runs[f"jax.nn {theirs}"] = harness.jax_run(graded(jax_nn(shape, theirs)), *arrays)
      size = dtype(0).nbytes
      values = size * b * n * d * (2 * h + 2 * kh)
      bias_bytes = size * h * n * n if shape.kind == "bias" else 0
      yield harness.Case(
        op="attention",
        name=name,
        part=part,
        ours=harness.jax_run(graded(ours(shape)), *arrays),
        peers=runs,
        wanted=functools.partial(harness.in_float64, graded(ours(shape, "reference")), *arrays),
        tolerance=2e-2 if platform == "gpu" else 1e-4,
        bytes=(values + bias_bytes) * (3 if backward else 1),
        flops=shape.pairs * b * h * d * 4 * (3.5 if backward else 1),
      )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch")
