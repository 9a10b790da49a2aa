"""Numerics of the GPU kernels of attention: the contract, in Mosaic GPU's interpreter or on a GPU.

  python -m tests.ops.interpreted_flash causal bias

A process of its own: the interpreter blocks a thread per warpgroup, so XLA's pool of threads must
be larger than the two that the tests otherwise have.
"""

import contextlib
import os
import sys

if __name__ == "__main__":
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=16"

import jax
import jax.numpy as jnp
import numpy as np

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops.attention import attention
from tests.ops import contract
from tests.ops.contract import numbers

B, H, K = 2, 4, 2


def _segment_ids(length):
  ids = np.random.default_rng(0).integers(-1, 4, (B, length))
  return jnp.asarray(np.sort(ids, 1), jnp.int32)


def _bools(*shape, share=0.4):
  return np.random.default_rng(shape).random(shape) < share


def _hook(logits, indices):
  near = jnp.abs(indices.query - indices.key) < 9
  return jnp.where(near, logits, 0.5 * logits * logits) + 0.01 * indices.head.astype(logits.dtype)


# name: (queries, keys, D, E, options, shapes of further differentiable arguments)
CASES = dict(
  plain=(128, 128, 64, 64, dict(scale=0.3), {}),
  one=(1, 65, 16, 64, {}, dict(sinks=(H,))),
  causal=(257, 257, 64, 64, dict(mask=masks.causal()), {}),
  wide=(63, 130, 128, 72, dict(mask=masks.causal(67)), {}),
  window=(300, 300, 64, 64, dict(mask=masks.window(70)), {}),
  documents=(200, 200, 64, 64, dict(mask=masks.segments(_segment_ids(200)) & masks.causal()), {}),
  padding=(130, 130, 64, 64, dict(mask=masks.key_padding(jnp.asarray([100, 0]))), {}),
  dense=(130, 70, 64, 64, dict(mask=jnp.asarray(_bools(B, H, 130, 70))), {}),
  table=(
    256,
    256,
    64,
    64,
    dict(mask=masks.block_table(_bools(1, H, 4, 4), 64, 64) & masks.causal()),
    {},
  ),
  device_table=(
    256,
    256,
    64,
    64,
    dict(mask=masks.block_table(jnp.asarray(_bools(B, 1, 4, 4)), 64, 64)),
    {},
  ),
  function=(
    130,
    130,
    64,
    64,
    dict(mask=masks.function(lambda q, k, h, b: ~((q - k) % 3 == h))),
    {},
  ),
  bias=(130, 130, 64, 64, dict(mask=masks.causal()), dict(bias=(1, H, 130, 130))),
  bias_of_keys=(70, 130, 64, 64, {}, dict(bias=(B, 1, 1, 130))),
  bias_of_queries=(70, 130, 64, 64, dict(softcap=3.0), dict(bias=(1, H, 70, 1))),
  cap=(128, 130, 64, 64, dict(softcap=2.0), dict(sinks=(H,))),
  hook=(128, 130, 64, 64, dict(logits_fn=_hook, mask=masks.causal(2)), {}),
)
FAST = ("one", "wide")  # seconds on an idle machine; the interpreter is slow on a busy one


def check(name: str) -> None:
  num_queries, num_keys, depth, width, options, further = CASES[name]
  arrays = [
    numbers(B, num_queries, H, depth),
    numbers(B, num_keys, K, depth, seed=1),
    numbers(B, num_keys, K, width, seed=2),
    *(numbers(*shape, seed=3) for shape in further.values()),
  ]

  def case(implementation, q, k, v, *rest):
    found = attention(
      q,
      k,
      v,
      **options,
      **dict(zip(further, rest)),
      return_lse=True,
      implementation=implementation,
    )
    # The log-sum-exp goes into the value too, so that its gradient is seen.
    lse = jnp.where(jnp.isfinite(found.lse), found.lse, 0.0)
    return found.out + (0.1 * jnp.swapaxes(lse, 1, 2)[..., None]).astype(q.dtype)

  contract.agrees(case, "mosaic_gpu", arrays, dtype=jnp.bfloat16)


if __name__ == "__main__":
  jax.config.update("jax_numpy_rank_promotion", "raise")
  jax.config.update("jax_numpy_dtype_promotion", "strict")
  on_gpu = jax.default_backend() == "gpu"
  with contextlib.nullcontext() if on_gpu else dispatch.interpreting():
    for name in sys.argv[1:] or CASES:
      check(name)
      print("agrees", name, flush=True)
