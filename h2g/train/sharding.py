"""Which device holds what: the mesh, and the rules that lay parameters, state and batches on it."""

import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from h2g.errors import InputError
from h2g.train.experiment import Batch

SEEDS = "data"  # seeds that train together are spread over this mesh axis
ROWS = ("data", "fsdp")  # examples are spread over these, where they hold no seeds
POSITIONS = "sequence"  # positions of an example, where there is such an axis


def make_mesh(axes: tuple[tuple[str, int], ...]) -> Mesh:
  """A mesh over the job's devices.

  An axis of -1 takes what remains; without one, a single process may use fewer devices than it has.
  """
  names, sizes = zip(*axes)
  chosen = jax.devices()
  count = len(chosen)
  text = ", ".join(f"{name}={size}" for name, size in axes)
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise InputError(f"config.mesh ({text}) cannot be used: sizes are >= 1, one of them may be -1")
  rest = count // math.prod(size for size in sizes if size != -1)
  shape = tuple(rest if size == -1 else size for size in sizes)
  used = math.prod(shape)
  if used > count or used < 1 or (used < count and (-1 in sizes or jax.process_count() > 1)):
    raise InputError(
      f"config.mesh ({text}) does not fit {count} device(s): the sizes must multiply to {count}; "
      "set one of them to -1"
    )
  types = (AxisType.Auto,) * len(names)
  return jax.make_mesh(shape, names, axis_types=types, devices=chosen[:used])


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a group of seeds lies on a mesh.

  seeds: the group's seeds. rules: ordered (pattern, axes) pairs, see `Settings`.
  rows, sequence: whether streamed leaves are [S, B, ...] of B examples, or [S, B, T, ...] with T
    positions, see `Experiment`.
  """

  mesh: Mesh
  seeds: tuple[int, ...]
  rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
  rows: bool = False
  sequence: bool = False

  @property
  def seeds_axis(self) -> str | None:
    # A single seed leaves the axis free: padding it by repeats would only train it several times.
    return SEEDS if len(self.seeds) > 1 and self.mesh.shape[SEEDS] > 1 else None

  @property
  def padded(self) -> tuple[int, ...]:
    """The seeds, repeated from the first until each device of the axis holds as many."""
    if self.seeds_axis is None:
      return self.seeds
    missing = -len(self.seeds) % self.mesh.shape[SEEDS]
    return self.seeds + tuple(self.seeds[i % len(self.seeds)] for i in range(missing))

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  def named(self, *axes: str | None) -> NamedSharding:
    """The sharding of an array [S, ...] whose axes after S are split along `axes`."""
    return NamedSharding(self.mesh, PartitionSpec(self.seeds_axis, *axes))

  def abstract(self, state, best):
    """(state, best) of ShapeDtypeStructs with their shardings, from ones without.

    A leaf of the optimiser's state is laid like the parameter whose path ends its own path, where
    the shapes agree (Adam's moments do); other leaves are only split over seeds.
    """
    specs = {path: (leaf.shape, self._axes(path, leaf)) for path, leaf in _paths(state.params)}

    def like_params(path: str, leaf):
      parts = path.split("/")
      for start in range(len(parts)):
        shape, axes = specs.get("/".join(parts[start:]), (None, ()))
        if shape == leaf.shape:
          return self._struct(leaf, axes)
      return self._struct(leaf, ())

    by_rule = lambda path, leaf: self._struct(leaf, self._axes(path, leaf))
    step = jax.ShapeDtypeStruct(state.step.shape, state.step.dtype, sharding=self.replicated)
    state = state._replace(
      params=_map(by_rule, state.params),
      rest=_map(by_rule, state.rest),
      opt_state=_map(like_params, state.opt_state),
      keys=self._struct(state.keys, ()),
      step=step,
      guard=jax.tree.map(lambda leaf: self._struct(leaf, ()), state.guard),
    )
    return state, best._replace(params=state.params, rest=state.rest)

  def number(self, value: int) -> jax.Array:
    """[] int32 that every device holds."""
    return _from_host(np.int32(value), self.replicated)

  def place(self, batch: Batch) -> Batch:
    """The host's batch as global arrays: `own` split over seeds, `shared` whole on every device.

    Examples of one seed are split over the axes that do not hold seeds, as far as these divide
    their number. Every process of a job gives the same batch and puts its part on its devices.
    """
    for path, leaf in _paths(batch.own):
      if np.ndim(leaf) < 1 or np.shape(leaf)[0] != len(self.padded):
        raise InputError(
          f"batch.own/{path} has shape {np.shape(leaf)}: its first axis must be that of the "
          f"{len(self.padded)} seeds asked for"
        )
    shardings = Batch(
      shared=jax.tree.map(lambda _: self.replicated, batch.shared),
      own=jax.tree.map(lambda leaf: self.named(*self._row_axes(leaf)), batch.own),
    )
    if jax.process_count() == 1:
      return jax.device_put(batch, shardings)
    return jax.tree.map(_from_host, batch, shardings)

  def rows_here(self, count: int) -> tuple[int, ...]:
    """Which of `count` examples of a step lie on this process's devices, ascending.

    What stands at the others in this process's batch is never read.
    """
    shape = (len(self.padded), count)
    sharding = self.named(*self._row_axes(np.empty(shape, bool)))
    here = np.zeros(count, bool)
    for index in sharding.addressable_devices_indices_map(shape).values():
      here[index[1]] = True
    return tuple(np.flatnonzero(here).tolist())

  def _row_axes(self, leaf) -> tuple:
    """Mesh axes of the axes after S of a leaf of `Batch.own`."""
    if not self.rows or np.ndim(leaf) < 2:
      return ()
    axes, left = [], np.shape(leaf)[1]
    for axis in ROWS:
      size = self.mesh.shape[axis]
      if size > 1 and axis != self.seeds_axis and left % size == 0:
        axes.append(axis)
        left //= size
    split = (tuple(axes) or None,)
    positions = self.mesh.shape.get(POSITIONS, 1) if self.sequence and np.ndim(leaf) > 2 else 1
    if positions > 1 and np.shape(leaf)[2] % positions == 0:
      return (*split, POSITIONS)
    return split if axes else ()

  def _axes(self, path: str, leaf) -> tuple[str | None, ...]:
    """Mesh axes of one parameter [S, ...] by the first rule that matches, checked."""
    for pattern, axes in self.rules:
      if not re.search(pattern, path):
        continue
      shape = leaf.shape[1:]
      if len(axes) > len(shape):
        raise InputError(
          f"config.sharding_rules[{pattern!r}]={axes} has more axes than parameter {path} of "
          f"shape {shape}: make the pattern narrower"
        )
      for size, axis in zip(shape, axes):
        if axis is not None and size % self.mesh.shape[axis]:
          raise InputError(
            f"config.sharding_rules[{pattern!r}]={axes}: parameter {path} of shape {shape} "
            f"cannot be split over the {self.mesh.shape[axis]} devices of {axis!r}: use a width "
            "that they divide"
          )
        if axis is not None and axis == self.seeds_axis:
          raise InputError(
            f"config.sharding_rules[{pattern!r}] uses {axis!r}, which holds the seeds: set "
            "config.train.seeds_together=False, or use fsdp or tensor"
          )
      return axes
    return ()

  def _struct(self, leaf, axes) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.named(*axes))


def _from_host(leaf, sharding: NamedSharding) -> jax.Array:
  """A global array whose parts on this process's devices are cut from its own copy."""
  if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.device_put(leaf, sharding)
  leaf = np.asarray(leaf)
  return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def _paths(tree: Any) -> list[tuple[str, Any]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [(_text(path), leaf) for path, leaf in leaves]


def _map(function, tree: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_text(path), leaf), tree)


def _text(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
