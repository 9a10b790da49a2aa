"""The TPU kernels of edge attention: the contract in the interpreter, and that they lower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speed.edge import SHAPES
from h2g.ops import dispatch
from h2g.ops.edge import build_edge_index
from h2g.ops.edge import edge_attention
from tests.ops import contract
from tests.ops.test_edge_gpu import abstract_index
from tests.ops.test_edge_gpu import ALL
from tests.ops.test_edge_gpu import attention_case
from tests.ops.test_edge_gpu import lowered

NAME = "mosaic_tpu"


def example(num, rows, edges, heads=3, width=5, value_width=4):
  """Half of the edges at receiver 1 (a hub); the last two receivers and the last row have none."""
  rng = np.random.default_rng(0)
  receivers = np.where(rng.random(edges) < 0.5, 1, rng.integers(0, num - 2, edges))
  senders = rng.integers(0, rows - 1, edges)
  index = build_edge_index(senders, receivers, rows, num, capacity=edges + 6)
  shapes = (num, heads, width), (rows, heads, width), (rows, heads, value_width), (edges + 6, heads)
  return index, *(rng.normal(size=shape).astype(np.float32) for shape in shapes)


@pytest.mark.slow
def test_agrees_with_float64():
  index, *arrays = example(11, 9, 150, heads=2)
  with dispatch.interpreting():
    contract.agrees(jax.jit(attention_case(index, **ALL), static_argnums=0), NAME, arrays)


def test_seeds_and_poisoned_padding():
  """Two seeds in one call, NaN where no edge reads: each agrees with the definition."""
  num = 150
  index, q, k, v, bias = example(9, 7, num, heads=2)
  poisoned = index._replace(
    senders=np.where(np.arange(num + 6) < num, index.senders, 6),
    receivers=np.where(np.arange(num + 6) < num, index.receivers, 8),
  )
  clean = [np.stack([x, 0.5 * x]) for x in (q, k, v, bias)]
  bad = [x.copy() for x in clean]
  bad[1][:, -1], bad[2][:, -1], bad[3][:, num:] = np.nan, np.nan, np.nan

  def run(index, arrays, name):
    case = functools.partial(attention_case(index, **ALL), name)
    one = lambda *a: contract.value_and_grads(case, *a)
    return jax.jit(jax.vmap(one))(*map(jnp.asarray, arrays))

  with dispatch.interpreting():
    got = run(poisoned, bad, NAME)
  np.testing.assert_array_equal(got[0][:, -2:], 0)
  want = run(index, clean, "reference")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


@pytest.mark.lowering
@pytest.mark.parametrize("case", list(SHAPES["gpu"]))
def test_benchmark_shapes_lower_for_tpu(case):
  num, rows, edges, seeds, heads, width, _ = SHAPES["gpu"][case]
  lead = (seeds,) if seeds else ()
  q, k = (jax.ShapeDtypeStruct((*lead, n, heads, width), jnp.bfloat16) for n in (num, rows))
  bias = jax.ShapeDtypeStruct((edges, heads), jnp.float32)

  def total(q, k, v, bias, index):
    call = functools.partial(edge_attention, implementation=NAME, clip=5.0)
    one = lambda q, k, v: call(q, k, v, index, bias=bias)
    out = (jax.vmap(one) if seeds else one)(q, k, v)
    return out.astype(jnp.float32).sum()

  text = lowered(total, (q, k, k, bias), abstract_index(num, rows, edges), "tpu")
  assert text.count("custom_call @tpu_custom_call") == 3
  assert "scatter" not in text
  features = heads * width * max(seeds, 1)
  for shape in (f"{edges}x{heads}x{width}", f"{edges}x{features}"):
    assert f"tensor<{shape}x" not in text


def test_kernel_declines_what_it_does_not_serve():
  index, q, k, v, _ = (jax.tree.map(jnp.asarray, x) for x in example(9, 7, 33))
  call = functools.partial(edge_attention, index=index, implementation=NAME)
  with pytest.raises(NotImplementedError, match=f"{NAME} serves tpu, and this platform is cpu"):
    call(q, k, v)
  wide = [jnp.zeros((*x.shape[:2], 1024)) for x in (q, k, v)]
  with dispatch.lowering_for("tpu"):
    for arrays, options, message in [
      ([x.astype(jnp.float16) for x in (q, k, v)], {}, "float32 and bfloat16: q is float16"),
      (wide, {}, "H 3, D 1024, F 1024 need"),
      ((q, k, v), dict(return_weights=True), "cannot serve return_weights"),
    ]:
      with pytest.raises(NotImplementedError, match=f"{NAME} .*{message}"):
        jax.eval_shape(lambda *a, options=options: call(*a, **options), *arrays)
      jax.eval_shape(lambda *a, options=options: edge_attention(*a, index, **options), *arrays)
