"""One decoding step over what each head has kept of a cache, beside PyTorch, on the same arrays.

  python experiments/speed/cache.py --json rows.json

Heads keep different numbers of rows, as adaptive budgets give them; the cache is compacted and has
room for its longest head, in steps of 128. Peer: torch's scaled_dot_product_attention on that
padded cache with a mask per head, which is what a cache of one length for all heads allows. The
floor is one read of the rows that are kept.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import pathlib
import sys
from typing import Any
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax.numpy as jnp
import numpy as np

from experiments.speed import harness
from h2g.ops.cache import decode_attention


class Shape(NamedTuple):
  """One line of the table.

  Attributes:
    batch: B.
    length: rows of the text, of which a share is kept.
    heads: H.
    key_heads: K.
    width: D and E.
    share: mean over heads of what is kept; a head keeps between a fifth and nine fifths of it.
  """

  batch: int
  length: int
  heads: int
  key_heads: int
  width: int
  share: float


SHAPES = {
  "cpu": {
    "B1 S8192 H8 K8 D128 keep 20%": Shape(1, 8192, 8, 8, 128, 0.2),
    "B4 S8192 H8 K8 D128 keep 20%": Shape(4, 8192, 8, 8, 128, 0.2),
    "B1 S32768 H32 K8 D128 keep 20%": Shape(1, 32768, 32, 8, 128, 0.2),
    "B1 S32768 H8 K8 D128 keep 50%": Shape(1, 32768, 8, 8, 128, 0.5),
  },
  "gpu": {
    "B1 S131072 H32 K8 D128 keep 5%": Shape(1, 131072, 32, 8, 128, 0.05),
    "B1 S131072 H32 K8 D128 keep 50%": Shape(1, 131072, 32, 8, 128, 0.5),
    "B8 S32768 H32 K8 D128 keep 20%": Shape(8, 32768, 32, 8, 128, 0.2),
    "B32 S8192 H32 K8 D128 keep 20%": Shape(32, 8192, 32, 8, 128, 0.2),
  },
}


def kept(shape: Shape) -> np.ndarray:
  """[B, K] int32, rows of each head."""
  factor = np.random.default_rng(1).uniform(0.2, 1.8, (shape.batch, shape.key_heads))
  return np.maximum(shape.length * shape.share * factor, 1).astype(np.int32)


def ours(implementation: str | None = None) -> Callable[..., Any]:
  """(q, k, v, lengths) -> output."""
  return lambda q, k, v, lengths: decode_attention(q, k, v, lengths, implementation=implementation)


def sdpa(shape: Shape) -> Callable[..., Any]:
  """torch's own attention on the padded cache; the mask, [B, H, 1, C], is made beforehand."""
  import torch

  grouped = shape.key_heads != shape.heads

  def call(q, k, v, mask):
    with torch.no_grad():
      found = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None], k, v, attn_mask=mask, enable_gqa=grouped
      )
      return found[:, :, 0]

  return call


def cases(platform: str) -> Iterator[harness.Case]:
  dtype = jnp.bfloat16 if platform == "gpu" else jnp.float32
  for name, shape in SHAPES[platform].items():
    rng = np.random.default_rng(0)
    b, h, kh, d = shape.batch, shape.heads, shape.key_heads, shape.width
    lengths = kept(shape)
    rows = -(-int(lengths.max()) // 128) * 128
    arrays = [
      rng.standard_normal(lead, np.float32)
      for lead in ((b, h, d), (b, kh, rows, d), (b, kh, rows, d))
    ]
    # The same rounded numbers for everybody, the float64 reference included.
    arrays = [np.asarray(jnp.asarray(x, dtype)) for x in arrays]
    peer: Any = harness.missing("torch")
    if peer is None:
      tensors = [harness.to_torch(x.astype(np.float32)) for x in arrays]
      if platform == "gpu":
        tensors = [x.bfloat16() for x in tensors]
      inside = np.arange(rows)[None, None, None] < lengths[:, :, None, None]
      mask = harness.to_torch(np.repeat(inside, h // kh, axis=1))
      peer = harness.torch_run(sdpa(shape), *tensors, mask)
    yield harness.Case(
      op="cache",
      name=name,
      part="fwd",
      ours=harness.jax_run(ours(), *arrays, lengths),
      peers={"torch SDPA, padded": peer},
      wanted=functools.partial(harness.in_float64, ours("reference"), *arrays, lengths),
      tolerance=2e-2 if platform == "gpu" else 1e-4,
      bytes=float(lengths.sum()) * 2 * d * dtype(0).nbytes,
      flops=float(lengths.sum()) * 4 * d * (h // kh),
    )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch")
