"""Multi-query pooling (efficient probing) beside pooling by multi-head cross-attention.

  python experiments/speed/pool.py --json rows.json

Peers, as many heads as we have queries: multi-head cross-attention asked by one learned vector,
without its output projection, in JAX and in torch (`scaled_dot_product_attention`); efficient
probing with every token projected, as the equation reads. Our queries are those of the multi-head
peer (`queries_of_multi_head`), so all compute the same vector, and gradients are by all weights and
tokens; those by tokens and values, which all share, are held against the reference.
"""

from collections.abc import Iterator
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed import harness
from h2g.ops.pool import multi_query_pool
from h2g.ops.pool import queries_of_multi_head

# batch, tokens, width, queries = heads
SHAPES = {
  "cpu": {
    "B512 N64 D96 Q8, the brief's digits": (512, 64, 96, 8),
    "B64 N196 D768 Q12, ViT-B/16": (64, 196, 768, 12),
    "B64 N196 D768 Q32, ViT-B/16": (64, 196, 768, 32),
  },
  "gpu": {
    "B512 N196 D768 Q12, ViT-B/16": (512, 196, 768, 12),
    "B512 N196 D768 Q32, ViT-B/16": (512, 196, 768, 32),
  },
}
SHAPES["tpu"] = SHAPES["gpu"]


def multi_head(x, u, w_q, w_k, w_v, heads: int):
  """[B, D] before the output projection: multi-head cross-attention asked by u."""
  split = lambda y: y.reshape(*y.shape[:-1], heads, -1)
  q, k, v = split(u @ w_q), split(x @ w_k), split(x @ w_v)
  scores = jnp.einsum("hd,bnhd->bhn", q, k) / k.shape[-1] ** 0.5
  return jnp.einsum("bhn,bnhd->bhd", jax.nn.softmax(scores, -1), v).reshape(len(x), -1)


def torch_multi_head(x, u, w_q, w_k, w_v, heads: int):
  """The same in torch."""
  import torch

  split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)
  q = split((u @ w_q).expand(len(x), 1, -1))
  out = torch.nn.functional.scaled_dot_product_attention(q, split(x @ w_k), split(x @ w_v))
  return out.transpose(1, 2).flatten(1)


def cases(platform: str) -> Iterator[harness.Case]:
  absent = harness.missing("torch")
  for name, (batch, tokens, dim, heads) in SHAPES[platform].items():
    rng = np.random.default_rng(0)
    draw = lambda *shape, scale, rng=rng: (rng.standard_normal(shape) * scale).astype(np.float32)
    x, u = draw(batch, tokens, dim, scale=1.0), draw(dim, scale=1.0)
    w_q, w_k, w_v = (draw(dim, dim, scale=dim**-0.5) for _ in range(3))
    queries = np.asarray(queries_of_multi_head(*map(jnp.asarray, (u, w_q, w_k)), heads))

    # Ours gives the maps and values of the peers, so one reference serves; gradients by x and W_v.
    ours = lambda x, v, q, form=None: multi_query_pool(x, q, v, implementation=form).out
    theirs = functools.partial(
      lambda x, v, u, q, k, heads: multi_head(x, u, q, k, v, heads), heads=heads
    )
    torchs = functools.partial(
      lambda x, v, u, q, k, heads: torch_multi_head(x, u, q, k, v, heads), heads=heads
    )
    naive = functools.partial(ours, form="reference")
    for part in ("fwd", "fwd+bwd"):
      backward = part != "fwd"
      all_of = lambda f, num, backward=backward: harness.grads(f, num) if backward else f
      cut = lambda run, backward=backward: (lambda: run()[:2]) if backward else run
      peers = {
        "multi-head, JAX": cut(harness.jax_run(all_of(theirs, 5), x, w_v, u, w_q, w_k)),
        "every token projected, JAX": cut(harness.jax_run(all_of(naive, 3), x, w_v, queries)),
      }
      if absent:
        peers["multi-head, torch"] = absent
      else:
        graded = harness.torch_grads(torchs) if backward else torchs
        tensors = [harness.to_torch(a) for a in (x, w_v, u, w_q, w_k)]
        peers["multi-head, torch"] = cut(harness.torch_run(graded, *tensors))
      yield harness.Case(
        op="pool",
        name=name,
        part=part,
        ours=cut(harness.jax_run(all_of(ours, 3), x, w_v, queries)),
        peers=peers,
        wanted=cut(functools.partial(harness.in_float64, all_of(naive, 3), x, w_v, queries)),
        tolerance=1e-4,
        bytes=4.0 * batch * tokens * dim * (2 if backward else 1),
        flops=(4.0 * batch * tokens * heads * dim + 2.0 * batch * dim * dim)
        * (3 if backward else 1),
      )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch")
