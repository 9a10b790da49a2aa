"""Block-sparse attention beside PyTorch, on the same random arrays.

  python experiments/speed/sparse.py --json rows.json

A sliding window, documents packed into one row, and random blocks, each as lists of blocks. Peers:
torch's compiled FlexAttention with the same blocks, and its scaled_dot_product_attention with a
dense mask; for the window also `h2g.ops.attention`, which needs no lists. Arrays are [B, S, H, D]
for JAX and the same values, heads first and contiguous, for torch: each library in the layout that
it prefers.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import pathlib
import shutil
import sys
from typing import Any
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax.numpy as jnp
import numpy as np

from experiments.speed import harness
from h2g.ops import masks
from h2g.ops import sparse
from h2g.ops.attention import attention


class Shape(NamedTuple):
  """One line of the table.

  Attributes:
    batch: B.
    length: T and S.
    heads: H and K.
    width: D and E.
    block: tokens per block, of queries and of keys.
    window: keys a query may attend to, itself included (causal); 0 for no window.
    share: of the blocks that are listed at random, the diagonal besides.
    documents: equally long ones, causal inside; 0 for none.
  """

  batch: int
  length: int
  heads: int
  width: int
  block: int
  window: int = 0
  share: float = 0.0
  documents: int = 0


SHAPES = {
  "cpu": {
    "window 128 B1 S4096 H8 D64": Shape(1, 4096, 8, 64, 128, window=128),
    "10% of blocks of 64 B1 S4096 H8 D64": Shape(1, 4096, 8, 64, 64, share=0.1),
    "8 documents B1 S4096 H8 D64": Shape(1, 4096, 8, 64, 128, documents=8),
  },
  "gpu": {
    "window 128 B1 S8192 H16 D128": Shape(1, 8192, 16, 128, 128, window=128),
    "window 1024 B1 S8192 H16 D128": Shape(1, 8192, 16, 128, 128, window=1024),
    "10% of blocks of 128 B1 S8192 H16 D128": Shape(1, 8192, 16, 128, 128, share=0.1),
    "8 documents B1 S8192 H16 D128": Shape(1, 8192, 16, 128, 128, documents=8),
  },
}


def document_ids(shape: Shape) -> np.ndarray:
  """[1, S] int32."""
  return (np.arange(shape.length, dtype=np.int32) * shape.documents // shape.length)[None]


def table_of(shape: Shape) -> Any:
  """The lists of a window or of documents, or a bool table in which every row has an entry."""
  n, blocks = shape.length, (shape.block, shape.block)
  if shape.window:
    return sparse.window_table(n, n, blocks, shape.window - 1)
  if shape.documents:
    return sparse.document_table(document_ids(shape), block_size=blocks)
  num = -(-n // shape.block)
  listed = np.random.default_rng(1).random((num, num)) < shape.share
  return (listed | np.eye(num, dtype=bool))[None, None]


def mask_of(shape: Shape) -> masks.Mask | None:
  """What the lists leave to be masked."""
  if shape.window:
    return masks.window(shape.window - 1)
  return masks.segments(document_ids(shape)) & masks.causal() if shape.documents else None


def pairs(shape: Shape) -> float:
  """Pairs of query and key that attend, per head and batch entry."""
  n, w = shape.length, shape.window
  if shape.documents:
    return n * (n // shape.documents + 1) / 2
  return n * w - w * (w - 1) / 2 if w else float(table_of(shape).sum()) * shape.block**2


def ours(shape: Shape, implementation: str | None = None) -> Callable[..., Any]:
  """(q, k, v) -> output."""
  return lambda q, k, v: sparse.block_sparse_attention(
    q,
    k,
    v,
    table_of(shape),
    block_size=(shape.block, shape.block),
    mask=mask_of(shape),
    implementation=implementation,
  )


def sdpa(shape: Shape) -> Callable[..., Any]:
  """torch's own attention, with a mask [1, 1, S, S]."""
  import torch

  block, n = shape.block, shape.length
  mask = mask_of(shape)
  if mask is None:
    dense = table_of(shape)[0, 0].repeat(block, 0).repeat(block, 1)[:n, :n][None, None]
  else:
    dense = np.array(mask.dense(n, n))
  dense = harness.to_torch(dense)
  call = torch.nn.functional.scaled_dot_product_attention
  return lambda q, k, v: call(q, k, v, attn_mask=dense)


def flex(shape: Shape, platform: str) -> Callable[..., Any]:
  """torch's compiled FlexAttention, with the same blocks; on a CPU it has no backward."""
  import torch
  from torch.nn.attention import flex_attention

  if shape.window:
    inside = lambda b, h, q, k: (q >= k) & (q - k < shape.window)
  elif shape.documents:
    ids = harness.to_torch(document_ids(shape)[0])
    inside = lambda b, h, q, k: (q >= k) & (ids[q] == ids[k])
  else:
    listed = harness.to_torch(table_of(shape)[0, 0])
    inside = lambda b, h, q, k: listed[q // shape.block, k // shape.block]
  device, n = "cuda" if platform == "gpu" else "cpu", shape.length
  # Its GPU kernels take blocks of 128 and more.
  size = max(shape.block, 128) if platform == "gpu" else shape.block
  block_mask = flex_attention.create_block_mask(
    inside, None, None, n, n, device=device, BLOCK_SIZE=size
  )
  compiled = torch.compile(flex_attention.flex_attention, dynamic=False)
  return lambda q, k, v: compiled(q, k, v, block_mask=block_mask)


def peers(shape: Shape, platform: str, backward: bool) -> dict[str, Callable[..., Any] | str]:
  """{name: function of tensors, or why it is not measured}."""
  absent = harness.missing("torch")
  unserved = None
  if platform == "cpu":
    if backward:
      unserved = "FlexAttention has no backward on a CPU"
    elif shutil.which("g++") is None and shutil.which("clang++") is None:
      unserved = "FlexAttention on a CPU is compiled by a C++ compiler, and there is none"
  return {
    "torch FlexAttention": absent or unserved or flex(shape, platform),
    "torch SDPA, dense mask": absent or sdpa(shape),
  }


def cases(platform: str) -> Iterator[harness.Case]:
  dtype = jnp.bfloat16 if platform == "gpu" else jnp.float32
  for name, shape in SHAPES[platform].items():
    rng = np.random.default_rng(0)
    b, n, h, d = shape[:4]
    # The same rounded numbers for everybody, the float64 reference included.
    arrays = [
      np.asarray(jnp.asarray(rng.standard_normal((b, n, h, d), np.float32), dtype))
      for _ in range(3)
    ]
    for part in ("fwd", "fwd+bwd"):
      backward = part != "fwd"
      graded = functools.partial(harness.grads, num=3) if backward else lambda f: f
      runs = harness.attention_runs(
        peers(shape, platform, backward), arrays, backward=backward, half=platform == "gpu"
      )
      if shape.window:
        whole = functools.partial(attention, mask=mask_of(shape))
        runs["h2g attention"] = harness.jax_run(graded(whole), *arrays)
      yield harness.Case(
        op="sparse",
        name=name,
        part=part,
        ours=harness.jax_run(graded(ours(shape)), *arrays),
        peers=runs,
        wanted=functools.partial(harness.in_float64, graded(ours(shape, "reference")), *arrays),
        tolerance=2e-2 if platform == "gpu" else 1e-4,
        bytes=dtype(0).nbytes * 4 * b * n * h * d * (3 if backward else 1),
        flops=pairs(shape) * b * h * d * 4 * (3.5 if backward else 1),
      )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch")
