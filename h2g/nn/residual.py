"""Ways to join a layer's input x with its update u. Each is called (x, u, offsets) -> [N, G]."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.nn.typed import Offsets
from h2g.nn.typed import type_ids
from h2g.nn.typed import TypedLinear


class FixedResidual(nnx.Module):
  """x + u (H2GB `Fixed`, the default)."""

  def __init__(self, num_types: int, dim: int, *, rngs: nnx.Rngs):
    del num_types, dim, rngs

  def __call__(self, x: Array, update: Array, offsets: Offsets) -> Array:
    del offsets
    return x + update


class LearnedResidual(nnx.Module):
  """sigmoid(a_t) u + (1 - sigmoid(a_t)) x, one gate per node type (H2GB `Learn`, HGT's skip)."""

  def __init__(self, num_types: int, dim: int, *, rngs: nnx.Rngs):
    del dim, rngs
    self.gate = nnx.Param(jnp.ones((num_types,)))

  def __call__(self, x: Array, update: Array, offsets: Offsets) -> Array:
    alpha = jax.nn.sigmoid(self.gate[...])[type_ids(offsets)][:, None]
    return alpha * update + (1 - alpha) * x


class ConcatResidual(nnx.Module):
  """[x, u] W_t: concatenation, mapped back to the hidden width per type.

  The official `Concat` doubles the width after every layer; the map back keeps the depth free.
  """

  def __init__(self, num_types: int, dim: int, *, rngs: nnx.Rngs):
    self.project = TypedLinear(num_types, 2 * dim, dim, rngs=rngs)

  def __call__(self, x: Array, update: Array, offsets: Offsets) -> Array:
    return self.project(jnp.concatenate([x, update], axis=-1), offsets)


class NoResidual(nnx.Module):
  """u alone (H2GB `none`)."""

  def __init__(self, num_types: int, dim: int, *, rngs: nnx.Rngs):
    del num_types, dim, rngs

  def __call__(self, x: Array, update: Array, offsets: Offsets) -> Array:
    del x, offsets
    return update
