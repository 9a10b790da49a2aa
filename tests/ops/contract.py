"""What every implementation of every operation must show.

A case is a function of float arrays, the same for all implementations:
`function(implementation, *arrays) -> array`. The reference is evaluated in float64.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

Case = Callable[..., jax.Array]
# Relative norms; bfloat16 rounds inputs and output (2^-9 each), everything between is float32.
TOLERANCE = {jnp.dtype("float32"): 2e-6, jnp.dtype("bfloat16"): 2e-2}


def numbers(*shape, seed=0) -> np.ndarray:
  """Standard normal float32, the same for the same shape and seed."""
  return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def with_lse(found) -> jax.Array:
  """`found.out` and `found.lse` in one flat array, zeros where nothing was attended to (-inf)."""
  lse = jnp.where(found.lse > -jnp.inf, found.lse, jnp.zeros_like(found.lse))
  return jnp.concatenate([found.out.ravel(), lse.astype(found.out.dtype).ravel()])


def distance(got, want) -> float:
  """|got - want| / |want|, Frobenius."""
  got, want = (np.asarray(x, np.float64) for x in (got, want))
  assert got.shape == want.shape, (got.shape, want.shape)
  assert np.isfinite(got).all(), "not finite"
  return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def in_float64(function, *arrays):
  """The function's value and its gradients under a fixed cotangent, computed in float64."""
  with jax.enable_x64(True):
    arrays = [jnp.asarray(np.asarray(x, np.float64)) for x in arrays]
    return jax.tree.map(np.asarray, value_and_grads(function, *arrays))


def value_and_grads(function, *arrays):
  """(value, gradients) of sum(cos(i) * value[i]): a cotangent without symmetry."""
  value, pull = jax.vjp(function, *arrays)
  cotangent = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
  return value, pull(cotangent.astype(value.dtype))


def agrees(
  case: Case, implementation: str, arrays, *, dtype=jnp.float32, grads: bool = True
) -> None:
  """Value and gradients against the float64 reference, by relative norm."""
  arrays = [jnp.asarray(x, dtype) for x in arrays]
  value, pulled = value_and_grads(lambda *a: case(implementation, *a), *arrays)
  wanted, wanted_pulled = in_float64(lambda *a: case("reference", *a), *arrays)
  tolerance = TOLERANCE[jnp.dtype(dtype)]
  assert value.dtype == dtype
  assert distance(value, wanted) <= tolerance
  if grads:
    for at, (got, want) in enumerate(zip(pulled, wanted_pulled)):
      assert got.dtype == dtype
      assert distance(got, want) <= 4 * tolerance, f"gradient of argument {at}"


def matches_finite_differences(
  case: Case, implementation: str, arrays, *, step: float = 1e-2
) -> None:
  """The directional derivative along a random direction against central differences."""
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
  directions = [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in arrays]
  weigh = lambda value: float(jnp.sum(value * jnp.cos(jnp.arange(value.size)).reshape(value.shape)))
  _, pulled = value_and_grads(lambda *a: case(implementation, *a), *arrays)
  slope = sum(float(jnp.sum(g * d)) for g, d in zip(pulled, directions))
  up, down = (
    weigh(case(implementation, *(x + sign * step * d for x, d in zip(arrays, directions))))
    for sign in (1, -1)
  )
  measured = (up - down) / (2 * step)
  assert abs(measured - slope) <= 2e-2 * max(abs(slope), 1.0), (measured, slope)


def transforms(case: Case, implementation: str, arrays) -> None:
  """jit, vmap and a second run give the same as plain calls; the second run to the bit."""
  arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
  plain = jax.jit(lambda *a: value_and_grads(lambda *b: case(implementation, *b), *a))
  value, pulled = plain(*arrays)
  again = plain(*arrays)
  jax.tree.map(np.testing.assert_array_equal, (value, pulled), again)
  stacked = [jnp.stack([x, 0.5 * x, -x]) for x in arrays]
  values, pulls = jax.jit(jax.vmap(plain))(*stacked)
  for at, factor in enumerate((1.0, 0.5, -1.0)):
    wanted, wanted_pulled = plain(*(factor * x for x in arrays))
    assert distance(values[at], wanted) <= 5e-6
    for got, want in zip(pulls, wanted_pulled):
      assert distance(got[at], want) <= 2e-5


def shards(case: Case, implementation: str, arrays, axes) -> None:
  """Two devices, each array split along the given axis (None: whole), give what one gives."""
  mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
  arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
  placed = [
    jax.device_put(
      x, NamedSharding(mesh, PartitionSpec(*(("x" if i == axis else None) for i in range(x.ndim))))
    )
    for x, axis in zip(arrays, axes)
  ]
  function = jax.jit(lambda *a: value_and_grads(lambda *b: case(implementation, *b), *a))
  one, two = function(*arrays), function(*placed)
  for got, want in zip(jax.tree.leaves(two), jax.tree.leaves(one)):
    assert distance(got, want) <= 5e-6
