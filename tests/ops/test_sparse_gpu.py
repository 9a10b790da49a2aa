"""GPU kernels of block-sparse attention lower for Hopper on the shapes that are timed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops import sparse

S = 8192
HALF = jnp.bfloat16


def random_table(block, share=0.1):
  return np.random.default_rng(0).random((1, 1, S // block, S // block)) < share


def documents():
  return np.arange(S, dtype=np.int32)[None, :] * 8 // S


# name: (table, block size, options)
CASES = dict(
  window=(sparse.window_table(S, S, (128, 128), 128), 128, dict(mask=masks.window(128))),
  wide_window=(sparse.window_table(S, S, (128, 128), 1024), 128, dict(mask=masks.window(1024))),
  documents=(
    sparse.document_table(documents(), block_size=(128, 128)),
    128,
    dict(mask=masks.segments(documents()) & masks.causal()),
  ),
  tenth=(random_table(128), 128, {}),
  tenth_of_64=(random_table(64), 64, dict(softcap=20.0)),
  on_device=(jnp.asarray(random_table(256)), 256, dict(mask=masks.causal(), return_lse=True)),
)


@pytest.mark.few("window-64", "documents-128", "tenth_of_64-64", "on_device-128")
@pytest.mark.lowering
@pytest.mark.parametrize("depth", [64, 128])
@pytest.mark.parametrize("case", CASES)
def test_benchmark_shapes_lower_for_cuda(case, depth):
  table, block, options = CASES[case]

  def total(q, k, v):
    found = sparse.block_sparse_attention(
      q, k, v, table, block_size=(block, block), implementation="mosaic_gpu", **options
    )
    return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(found))

  q = jax.ShapeDtypeStruct((1, S, 8, depth), HALF)
  k = jax.ShapeDtypeStruct((1, S, 2, depth), HALF)
  with dispatch.lowering_for("gpu"):
    gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
    exported = jax.export.export(gradients, platforms=["cuda"])(q, k, k)
  assert exported.mlir_module().count("stablehlo.custom_call @mosaic_gpu") == 3


def test_small_blocks_are_refused():
  q = jnp.zeros((1, 64, 2, 64), HALF)
  table = np.ones((1, 1, 2, 2), bool)
  with dispatch.lowering_for("gpu"), pytest.raises(NotImplementedError, match="block_size"):
    jax.eval_shape(
      lambda: sparse.block_sparse_attention(
        q, q, q, table, block_size=(32, 32), implementation="mosaic_gpu"
      )
    )
