"""The shard_map edge of an operation: kernels see one shard, and nobody gathers by surprise."""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec


def over_shards(
  function: Callable[..., Any],
  arrays: tuple[Array | None, ...],
  axes: tuple[str, ...],
  out_axes: Any,
  sharding: NamedSharding | PartitionSpec | None = None,
  *,
  origin: bool = False,
) -> Any:
  """`function(*arrays)`, once per shard where batch or heads are sharded over a mesh.

  Args:
    function: of the local arrays; batch entries and heads must not interact in it.
    arrays: operands; the first one tells the layout, the others follow. None stays None.
    axes: one letter per axis of each array: "b" batch, "h" heads or independent columns (any
      number of them that the shards divide, or 1), anything else is never sharded.
    out_axes: pytree of such strings, for what `function` returns.
    sharding: layout of the first array; None reads it from the array where it shows it (an array
      that is laid out over several devices, or an explicit mesh axis) and runs unmapped where it
      does not.
    origin: the function also takes `origin`, (first batch entry, first head) of the shard, two
      int32 scalars; None where nothing is mapped. For masks and dropout, which see global numbers.
  Returns:
    What the function returns, over the whole batch and all heads.
  Raises:
    ValueError: batch or heads are not divisible by their shards, or there is no mesh in context.
    NotImplementedError: another axis is sharded.
  """
  found = _layout(arrays[0], axes[0], sharding)
  if found is None:
    return function(*arrays, **(dict(origin=None) if origin else {}))
  mesh, names = found
  shards = {letter: math.prod(mesh.shape[a] for a in on) for letter, on in names.items()}

  def place(x, letters: str) -> PartitionSpec:
    entries = []
    for letter, size in zip(letters, x.shape, strict=True):
      count = shards.get(letter, 1)
      if (size > 1 or x is arrays[0]) and size % count:
        what = "batch" if letter == "b" else "heads"
        raise ValueError(
          f"{what} {size} must be divisible by its {count} shards over mesh axes {names[letter]}"
        )
      entries.append(names[letter] if count > 1 and size > 1 else None)
    return PartitionSpec(*entries)

  def first(letter: str) -> Array:
    size = arrays[0].shape[axes[0].index(letter)] // shards[letter]
    start = jax.lax.axis_index(names[letter]) * size if names[letter] else 0
    return jnp.asarray(start, jnp.int32)

  present = [x is not None for x in arrays]

  def local(*xs):
    options = dict(origin=(first("b"), first("h"))) if origin else {}
    return function(*_filled(present, xs), **options)

  # Loops and kernels inside do not track which values vary along which axis.
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=tuple(place(x, a) for x, a in zip(arrays, axes) if x is not None),
    out_specs=jax.tree.map(
      lambda letters: PartitionSpec(*(names.get(letter) or None for letter in letters)), out_axes
    ),
    check_vma=False,
  )(*(x for x in arrays if x is not None))


def _filled(present, xs):
  xs = iter(xs)
  return [next(xs) if here else None for here in present]


def _layout(x: Array, letters: str, sharding):
  """(mesh, {"b": mesh axes, "h": mesh axes}) where the call should be mapped, else None."""
  given = sharding is not None
  if not given:
    try:
      sharding = jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else x.sharding
    except AttributeError:
      return None
  if isinstance(sharding, NamedSharding):
    mesh, spec = sharding.mesh, sharding.spec
  elif isinstance(sharding, PartitionSpec):
    mesh, spec = jax.sharding.get_abstract_mesh(), sharding
    if mesh.empty:
      raise ValueError(
        f"sharding is {spec} but no mesh is in context: use jax.set_mesh, or pass a NamedSharding"
      )
  else:
    return None
  # An axis that is already mapped by an enclosing shard_map is not ours to map.
  manual = getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ())
  names = {"b": (), "h": ()}
  for letter, entry in zip(letters, spec):
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
      continue
    on = entry if isinstance(entry, tuple) else (entry,)
    on = tuple(a for a in on if mesh.shape[a] > 1 and a not in manual)
    if on and letter not in names:
      if not given:
        return None
      raise NotImplementedError(f"sharding {spec}: only batch and heads can be sharded")
    if on:
      names[letter] = on
  return (mesh, names) if names["b"] or names["h"] else None
