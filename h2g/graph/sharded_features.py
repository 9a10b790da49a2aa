"""Rows gathered from a table that lies over several devices, for features that do not fit one.

Plan: device d of D holds rows d N / D : (d + 1) N / D of the table. Every device has all n ids
(they are small), gathers the rows that it owns, zeros elsewhere, and the sum over devices is the
result: one row plus zeros, so it comes out bit for bit. Bytes per call and device, for rows F
floats wide: 4 n F are gathered and written, and an all-reduce moves 8 n F (D - 1) / D (ring); with
`scatter` each device keeps the rows of its own ids, a reduce-scatter of half the traffic. The
gradient adds rows of the cotangent into the shard that owns them. No device ever holds the table.
"""

import functools

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np


def shard_rows(table, mesh: Mesh, axis: str) -> Array:
  """The table [N, ...] over the devices of a mesh axis, rows of zeros behind it to fill the last.

  Each device's part is cut on the host and copied to it alone.
  """
  table = np.asarray(table)
  size = mesh.shape[axis]
  rows = -(-max(len(table), 1) // size)
  sharding = NamedSharding(mesh, PartitionSpec(axis))

  def part(index):
    begin = index[0].start or 0
    cut = table[begin : begin + rows]
    return np.pad(cut, [(0, rows - len(cut)), *[(0, 0)] * (table.ndim - 1)])

  return jax.make_array_from_callback((rows * size, *table.shape[1:]), sharding, part)


def gather_rows(table: Array, ids: Array, *, mesh: Mesh, axis: str, scatter: bool = False) -> Array:
  """table[ids], where the rows of the table are sharded over a mesh axis.

  Args:
    table: [N, ...] float, N a multiple of the axis' devices (see `shard_rows`).
    ids: [n] int32 in [0, N); what is outside gives zeros.
    mesh, axis: where the rows lie.
    scatter: n, a multiple of the devices, is split over them in the result.
  Returns:
    [n, ...] rows, the same on all devices, or sharded over the axis with `scatter`. Differentiable
    in the table.
  Raises:
    ValueError: N or n is no multiple of the number of devices.
  """
  size = mesh.shape[axis]
  if table.shape[0] % size:
    raise ValueError(f"table {table.shape} must have a multiple of {size} rows: use shard_rows")
  if scatter and ids.shape[0] % size:
    raise ValueError(f"ids {ids.shape} must be a multiple of {size} to be scattered")
  whole = PartitionSpec()
  local = functools.partial(_owned, axis=axis, scatter=scatter)
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(PartitionSpec(axis), whole),
    out_specs=PartitionSpec(axis) if scatter else whole,
  )(table, ids)


def _owned(rows: Array, ids: Array, *, axis: str, scatter: bool) -> Array:
  at = ids - jax.lax.axis_index(axis) * rows.shape[0]
  mine = (at >= 0) & (at < rows.shape[0])
  found = rows[jnp.clip(at, 0, rows.shape[0] - 1)]
  found = jnp.where(mine.reshape(-1, *[1] * (rows.ndim - 1)), found, 0)
  if scatter:
    return jax.lax.psum_scatter(found, axis, scatter_dimension=0, tiled=True)
  return jax.lax.psum(found, axis)
