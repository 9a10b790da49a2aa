"""The GPU kernels of edge attention: they lower, and the contract where JAX can interpret them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speed.edge import SHAPES
from h2g.ops import dispatch
from h2g.ops.edge import build_edge_index
from h2g.ops.edge import edge_attention
from h2g.ops.edge import EdgeIndex
from h2g.ops.edge import mosaic_gpu
from tests.ops import contract

NAME = "mosaic_gpu"


def example(num=7, rows=6, edges=26, heads=2, width=4, seed=0):
  """Half of the edges at receiver 1; the last two receivers and the last message row have none.

  Six positions of padding.
  """
  rng = np.random.default_rng(seed)
  receivers = np.where(rng.random(edges) < 0.5, 1, rng.integers(0, num - 2, edges))
  senders = rng.integers(0, rows - 1, edges)
  index = build_edge_index(senders, receivers, rows, num, capacity=edges + 6)
  shapes = (num, heads, width), (rows, heads, width), (rows, heads, width), (edges + 6, heads)
  return index, *(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def attention_case(index, **options):
  """[N, H] from q, k, v, bias: out and log-sum-exp."""

  def case(implementation, q, k, v, bias):
    found = edge_attention(
      q, k, v, index, bias=bias, return_lse=True, implementation=implementation, **options
    )
    lse = jnp.where(found.lse > -jnp.inf, found.lse, jnp.zeros_like(found.lse))
    return found.out.sum(-1) + lse.astype(found.out.dtype)

  return case


ALL = dict(clip=1.0, scale=0.7, dropout_rate=0.3, dropout_key=jax.random.key(0))


@pytest.mark.smoke
def test_agrees_with_float64(interpreted_gpu):
  index, *arrays = example()
  contract.agrees(attention_case(index, **ALL), NAME, arrays)


def test_hubs_are_cut_and_seeds_are_heads(interpreted_gpu, monkeypatch):
  """And the same bits twice, under jit and vmap."""
  monkeypatch.setattr(mosaic_gpu, "PIECE", 4)
  index, *arrays = example(edges=14)
  contract.agrees(attention_case(index, **ALL), NAME, arrays)
  contract.transforms(attention_case(index, **ALL), NAME, arrays)


@pytest.mark.smoke
def test_poisoned_padding_has_no_effect_and_no_edges_give_zeros(interpreted_gpu):
  index, q, k, v, bias = example()
  poisoned = index._replace(
    senders=np.where(np.arange(32) < 26, index.senders, 5),
    receivers=np.where(np.arange(32) < 26, index.receivers, 6),
  )
  bad = np.float32(np.nan)
  k[-1], v[-1], bias[26:] = bad, bad, bad
  run = jax.jit(
    lambda index, *a: jax.vjp(
      lambda q, k, v, b: edge_attention(q, k, v, index, bias=b, implementation=NAME), *a
    )
  )
  out, pull = run(poisoned, q, k, v, bias)
  grads = pull(jnp.ones_like(out))
  want, want_pull = jax.vjp(
    lambda q, k, v, b: edge_attention(q, k, v, index, bias=b, implementation="reference"),
    q,
    *(np.nan_to_num(x) for x in (k, v, bias)),
  )
  np.testing.assert_array_equal(out[-2:], 0)
  for got, wanted in zip((out, *grads), (want, *want_pull(jnp.ones_like(want)))):
    np.testing.assert_allclose(got, wanted, atol=2e-6)


def abstract_index(num, rows, edges):
  shape = lambda n: jax.ShapeDtypeStruct((n,), jnp.int32)
  return EdgeIndex(
    shape(num + 1), shape(edges), shape(edges), shape(rows + 1), shape(edges), shape(edges)
  )


def lowered(total, arrays, index, platform="gpu"):
  """Text of a program that computes value and gradients."""
  target = {"gpu": "cuda"}.get(platform, platform)
  with dispatch.lowering_for(platform):
    function = jax.value_and_grad(total, tuple(range(len(arrays))))
    return jax.export.export(jax.jit(function), platforms=[target])(*arrays, index).mlir_module()


@pytest.mark.lowering
@pytest.mark.parametrize("at, case", list(enumerate(SHAPES["gpu"])))
def test_benchmark_shapes_lower_for_cuda(at, case):
  """Three passes, and pieces before each; without a name, the kernels are what a GPU gets."""
  dtype, name = [(jnp.bfloat16, NAME), (jnp.float32, None)][at % 2]
  num, rows, edges, seeds, heads, width, _ = SHAPES["gpu"][case]
  lead = (seeds,) if seeds else ()
  q, k = (jax.ShapeDtypeStruct((*lead, n, heads, width), dtype) for n in (num, rows))

  def total(q, k, v, index):
    call = functools.partial(edge_attention, implementation=name)
    out = (jax.vmap(call, (0, 0, 0, None)) if seeds else call)(q, k, v, index)
    return out.astype(jnp.float32).sum()

  text = lowered(total, (q, k, k), abstract_index(num, rows, edges))
  assert text.count("custom_call @mosaic_gpu") == 6
  assert "scatter" not in text
  features = heads * width * max(seeds, 1)
  for shape in (f"{edges}x{heads}x{width}", f"{edges}x{features}"):
    assert f"tensor<{shape}x" not in text


@pytest.mark.lowering
def test_every_option_lowers_for_cuda():
  q, k, bias = (
    jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((90, 6, 32), (80, 6, 32), (700, 6))
  )

  def total(q, k, v, bias, index):
    found = edge_attention(q, k, v, index, bias=bias, return_lse=True, implementation=NAME, **ALL)
    return found.out.sum() + found.lse.sum()

  text = lowered(total, (q, k, k, bias), abstract_index(90, 80, 700))
  assert text.count("custom_call @mosaic_gpu") == 6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("heads, width", [(8, 16), (4, 8), (40, 8), (8, 64), (3, 32)])
def test_agrees_with_float64_on_the_device(heads, width, dtype):
  if jax.default_backend() != "gpu":
    pytest.skip("no GPU")
  index, *arrays = example(300, 200, 4000, heads, width)
  case = attention_case(index, **ALL)
  contract.agrees(jax.jit(case, static_argnums=0), NAME, arrays, dtype=dtype)
  if dtype == jnp.float32:
    contract.transforms(case, NAME, arrays)


def test_how_rows_lie_in_registers():
  spread = lambda *shape: mosaic_gpu._spread(*shape)._asdict()
  assert spread(8, 16) == dict(each=1, vector=1, columns=16, rows=2, warps=4)
  assert spread(8, 64) == dict(each=4, vector=4, columns=16, rows=2, warps=4)
  assert spread(4, 8) == dict(each=1, vector=1, columns=8, rows=4, warps=1)
  tile = lambda *shape: mosaic_gpu._tile(*shape, jnp.bfloat16, 25.0, True)
  assert tile(40, 8).heads == 40
  assert tile(16, 128).heads == 4
  assert [tile(h, 64).unroll for h in (1, 8)] == [8, 4]


def test_kernel_declines_what_it_does_not_serve():
  index, q, k, v, _ = (jax.tree.map(jnp.asarray, x) for x in example())
  call = functools.partial(edge_attention, index=index, implementation=NAME)
  with pytest.raises(NotImplementedError, match=f"{NAME} serves gpu, and this platform is cpu"):
    call(q, k, v)
  cut = lambda *arrays: [x[..., :3] for x in arrays]
  with dispatch.lowering_for("gpu"):
    for arrays, options, message in [
      ([x.astype(jnp.int32) for x in (q, k, v)], {}, "float16: q is int32"),
      ((q, k, v.astype(jnp.bfloat16)), {}, "of one dtype: got float32, float32 and bfloat16"),
      ((q, k, *cut(v)), {}, "as wide as k: got F 3 and D 4"),
      (cut(q, k, v), {}, "powers of two up to 512: got D 3"),
      ((q, k, v), dict(return_weights=True), "cannot serve return_weights"),
    ]:
      with pytest.raises(NotImplementedError, match=f"{NAME} .*{message}"):
        jax.eval_shape(lambda *a, options=options: call(*a, **options), *arrays)
      if arrays[0].dtype != jnp.int32:  # Without a name the same call is served by another form.
        jax.eval_shape(lambda *a, o=options: edge_attention(*a, index, **o), *arrays)
