"""TPU kernels of block-sparse attention: the contract in the interpreter, and that they lower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops import sparse
from tests.ops import contract
from tests.ops.contract import numbers

NAME = "mosaic_tpu"
B, H, K, D, E = 2, 4, 2, 8, 6
T, S = 257, 300


def arrays():
  return [numbers(B, T, H, D), numbers(B, S, K, D), numbers(B, S, K, E, seed=1)]


def random_lists(lists):
  """The second row of blocks lists nothing."""
  table = np.random.default_rng(3).random((1, lists, 3, 3)) < 0.6
  table[:, :, 1] = False
  return table


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=("lists", "on_device", "causal", "softcap")
)
def case(implementation, q, k, v, *, lists=1, on_device=False, causal=False, softcap=None):
  table = random_lists(lists)
  found = sparse.block_sparse_attention(
    q,
    k,
    v,
    jnp.asarray(table) if on_device else table,
    block_size=(128, 128),
    mask=masks.causal() if causal else None,
    softcap=softcap,
    return_lse=True,
    implementation=implementation,
  )
  return contract.with_lse(found)


@pytest.mark.few(1)
@pytest.mark.parametrize(
  "dtype, options",
  [
    (jnp.float32, dict(lists=K, causal=True)),
    (jnp.float32, dict(lists=H, on_device=True)),
    (jnp.bfloat16, dict(softcap=2.0)),
  ],
)
def test_agrees_with_float64(dtype, options):
  with dispatch.interpreting():
    contract.agrees(functools.partial(case, **options), NAME, arrays(), dtype=dtype)


@pytest.mark.slow
def test_same_bits_under_jit_and_vmap():
  with dispatch.interpreting():
    contract.transforms(functools.partial(case, causal=True), NAME, arrays())


LONG = 8192


def tenth(block):
  return np.random.default_rng(0).random((1, 1, LONG // block, LONG // block)) < 0.1


# name: (table, block, options), as experiments/speed times them.
BENCHMARK = dict(
  window=(
    sparse.window_table(LONG, LONG, (128, 128), 1024),
    128,
    dict(mask=masks.window(1024)),
  ),
  tenth=(tenth(128), 128, {}),
  on_device=(jnp.asarray(tenth(256)), 256, dict(mask=masks.causal(), return_lse=True)),
)


@pytest.mark.lowering
@pytest.mark.parametrize("depth", [64, 128])
@pytest.mark.parametrize("name", BENCHMARK)
def test_benchmark_shapes_lower_for_tpu(name, depth):
  table, block, options = BENCHMARK[name]

  def total(*arrays):
    found = sparse.block_sparse_attention(
      *arrays, table, block_size=(block, block), implementation=NAME, **options
    )
    return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(found))

  q = jax.ShapeDtypeStruct((1, LONG, 8, depth), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((1, LONG, 2, depth), jnp.bfloat16)
  with dispatch.lowering_for("tpu"):
    for function, number in ((total, 1), (jax.value_and_grad(total, (0, 1, 2)), 3)):
      text = jax.export.export(jax.jit(function), platforms=["tpu"])(q, k, k).mlir_module()
      assert text.count("custom_call @tpu_custom_call") == number


def test_small_blocks_are_refused():
  q = jnp.zeros((1, 64, 2, 64), jnp.bfloat16)
  table = np.ones((1, 1, 2, 2), bool)
  with dispatch.lowering_for("tpu"), pytest.raises(NotImplementedError, match="block_size"):
    jax.eval_shape(
      lambda: sparse.block_sparse_attention(
        q, q, q, table, block_size=(32, 32), implementation=NAME
      )
    )
