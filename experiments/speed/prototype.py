"""Prototype attention beside the same by other means.

  python experiments/speed/prototype.py --json rows.json

Peers compute the same: all similarities at once in JAX and in torch, then argmax and gather. Beside
softmax attention, which computes something else, experiments/pem/claim.py sets the whole module.
"""

from collections.abc import Iterator
import functools
import pathlib
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax
import numpy as np

from experiments.speed import harness
from h2g.ops.prototype import prototype_attention


class Shape(NamedTuple):
  """Batch, features, queries, heads, width of a head."""

  batch: int
  features: int
  queries: int
  heads: int
  width: int


SHAPES = {
  "cpu": {"B1 N16384 Q100 H8 D32": Shape(1, 16384, 100, 8, 32)},
  "gpu": {"B8 N16384 Q100 H8 D32": Shape(8, 16384, 100, 8, 32)},
}


def torch_argmax(q, x, mask):
  import torch

  similarity = torch.einsum("bqhd,bnhd->bhqn", q, x).masked_fill(~mask[:, None], -torch.inf)
  index = similarity.argmax(-1).transpose(1, 2)[..., None]
  return torch.take_along_dim(x, index, 1)


def cases(platform: str) -> Iterator[harness.Case]:
  for name, shape in SHAPES[platform].items():
    rng = np.random.default_rng(0)
    draw = lambda n, s=shape, rng=rng: rng.standard_normal(
      (s.batch, n, s.heads, s.width), np.float32
    )
    q, x = draw(shape.queries), draw(shape.features)
    mask = rng.random((shape.batch, shape.queries, shape.features)) < 0.5
    ours = lambda q, x, m, i=None: prototype_attention(q, x, mask=m, implementation=i).prototypes
    dense = functools.partial(ours, i="reference")
    peer = harness.missing("torch")
    products = shape.batch * shape.heads * shape.queries * shape.features * shape.width
    yield harness.Case(
      op="prototype_attention",
      name=name,
      part="fwd",
      ours=harness.jax_run(ours, q, x, mask),
      peers={
        "jax, all at once": harness.jax_run(dense, q, x, mask),
        "torch": peer or harness.torch_run(torch_argmax, *map(harness.to_torch, (q, x, mask))),
      },
      wanted=lambda f=dense, a=(q, x, mask): np.asarray(jax.jit(f)(*a)),
      bytes=q.nbytes * 2 + x.nbytes + mask.nbytes,
      flops=2 * products,
    )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch")
