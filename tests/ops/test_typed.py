"""Typed linear maps: the contract for static and dynamic offsets, padding, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops.typed import typed_linear
from tests.ops import contract

OFFSETS = (0, 1, 1, 64, 257)


def arrays(rows=257, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    rng.normal(size=shape).astype(np.float32) for shape in ((rows, 5), (4, 5, 3), (4, 3))
  )


def case_of(offsets):
  def case(implementation, x, w, bias):
    return typed_linear(x, w, offsets=offsets, bias=bias, implementation=implementation)

  return case


@pytest.mark.slow
@pytest.mark.parametrize(
  "offsets", [OFFSETS, np.array(OFFSETS, np.int32)], ids=["static", "dynamic"]
)
def test_contract(offsets):
  case = case_of(offsets if isinstance(offsets, tuple) else jnp.asarray(offsets))
  contract.agrees(case, "xla", arrays())
  contract.agrees(case, "xla", arrays(), dtype=jnp.bfloat16, grads=False)
  contract.matches_finite_differences(case, "xla", arrays())
  contract.transforms(case, "xla", arrays())
  contract.shards(case, "xla", arrays(256 + 2), axes=(None, None, None))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 63, 65, 128, 257])
def test_odd_sizes_with_offsets_on_the_device(rows):
  """The types' ends fall inside tiles, on their edges, and past the last."""
  for ends in ((0, 0, rows, rows), (rows // 2, rows // 2, rows - 1, rows), (rows // 3,) * 4):
    case = case_of(jnp.asarray((0, *ends), jnp.int32))
    contract.agrees(case, "xla", arrays(rows))


@pytest.mark.parametrize("dynamic", [False, True])
def test_rows_past_the_last_type_are_zeros_even_if_poisoned(dynamic):
  x, w, bias = arrays(300)
  clean = np.array(x)
  clean[257:] = 0
  x[257:] = np.nan
  offsets = jnp.asarray(OFFSETS, jnp.int32) if dynamic else OFFSETS
  case = case_of(offsets)
  value, grads = contract.value_and_grads(lambda *a: case("xla", *a), x, w, bias)
  np.testing.assert_array_equal(value[257:], 0)
  wanted, wanted_grads = contract.value_and_grads(lambda *a: case("reference", *a), clean, w, bias)
  np.testing.assert_allclose(value, wanted, atol=1e-5)
  for got, want in zip(grads, wanted_grads):
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_one_type_equals_the_untyped_map():
  x, w, bias = arrays()
  got = typed_linear(x, w[:1], offsets=(0, 257), bias=bias[:1])
  np.testing.assert_allclose(got, x @ w[0] + bias[0], atol=1e-5)


def test_refusals_name_the_shapes():
  x, w, bias = arrays()
  with pytest.raises(ValueError, match=r"with the same F"):
    typed_linear(x[:, :3], w, offsets=OFFSETS)
  with pytest.raises(ValueError, match="must ascend"):
    typed_linear(x, w, offsets=(0, 9, 3, 64, 257))
  with pytest.raises(ValueError, match="T \\+ 1 = 5 numbers from 0 to at most N = 257"):
    typed_linear(x, w, offsets=(0, 1, 1, 64, 258))
  with pytest.raises(ValueError, match=r"bias \(3, 3\) must be"):
    typed_linear(x, w, offsets=OFFSETS, bias=bias[:3])
  with pytest.raises(NotImplementedError, match="there are xla, reference"):
    typed_linear(x, w, offsets=OFFSETS, implementation="mosaic_gpu")


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_shard_map_edge(dynamic):
  """Columns out over two devices: what one gives, and no gathering."""
  x, w, bias = (jnp.asarray(a) for a in arrays())
  w, bias = jnp.concatenate([w, -w], 2), jnp.concatenate([bias, 2 * bias], 1)
  offsets = jnp.asarray(OFFSETS, jnp.int32) if dynamic else OFFSETS
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
  place = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  columns = place(None, None, "x")
  placed = [jax.device_put(a, s) for a, s in [(x, place()), (w, columns), (bias, place(None, "x"))]]

  def run(sharding):
    call = lambda x, w, bias: typed_linear(x, w, offsets=offsets, bias=bias, sharding=sharding)
    return jax.jit(lambda *a: contract.value_and_grads(call, *a))

  want, mapped = run(None)(x, w, bias), run(columns)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), mapped(*placed), want)
  assert "all-gather" not in mapped.lower(*placed).compile().as_text()
  out = typed_linear(*placed[:2], offsets=offsets, bias=placed[2])
  assert out.sharding.is_equivalent_to(place(None, "x"), 2)
  with pytest.raises(NotImplementedError, match="sharded"):
    typed_linear(x, w, offsets=offsets, sharding=place("x"))
