"""Where a program works, and the steps it takes along its list of tiles."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

from jax import Array
from jax import lax
import jax.numpy as jnp

from h2g.ops.block_lists import Lists


class Walk(NamedTuple):
  """The steps of a program along one list.

  Attributes:
    lists: refs.
    row: index (batch, list, tile) of the list.
    ratio: steps per listed tile.
    repeats: how often the list is walked (query heads of a key head), 1 for once.
  """

  lists: Lists
  row: tuple[Any, Any, Any]
  ratio: int = 1
  repeats: int = 1

  def counts(self) -> tuple[Array, Array]:
    """(FULL steps, all steps) of one repeat."""
    return tuple(ref[self.row] * self.ratio for ref in (self.lists.full, self.lists.counts))

  def at(self, step: Array, full: Array, count: Array) -> tuple[Array, Array]:
    """(repeat, number of the step's part among the parts of all tiles)."""
    repeat = jnp.int32(0)
    if self.repeats > 1:
      # FULL steps of all repeats come first.
      some = step < full * self.repeats
      length = jnp.where(some, full, count - full)
      length = jnp.maximum(length, 1)
      rest = jnp.where(some, step, step - full * self.repeats)
      repeat = lax.div(rest, length)
      step = rest - repeat * length + jnp.where(some, 0, full)
    if self.ratio == 1:
      return repeat, self.lists.ids[*self.row, step]
    entry = lax.div(step, jnp.int32(self.ratio))
    part = step - entry * self.ratio
    return repeat, self.lists.ids[*self.row, entry] * self.ratio + part


def two_loops(full: Array, count: Array, step: Callable[..., Any], carry):
  """`step(i, carry, partial)` over FULL steps, then over PARTIAL ones."""
  carry = lax.fori_loop(0, full, functools.partial(step, partial=False), carry)
  return lax.fori_loop(full, count, functools.partial(step, partial=True), carry)


class Place(NamedTuple):
  """Where a program works.

  Attributes:
    batch, head, tile: its own numbers.
    warpgroup: of the thread.
  """

  batch: Array
  head: Array
  tile: Array
  warpgroup: Array

  def row(self, lists: Lists, heads: int) -> tuple[Any, Any, Any]:
    """Its list: there is one for all heads, or one per key head (of which `heads` share one)."""
    batch = self.batch if lists.counts.shape[0] > 1 else 0
    of_head = lax.div(self.head, jnp.int32(heads)) if lists.counts.shape[1] > 1 else 0
    return batch, of_head, self.tile


def place_of(tiles: int) -> Place:
  # Last tiles first: under a causal mask they have most to do.
  tile = tiles - 1 - lax.axis_index("tiles")
  return Place(lax.axis_index("batch"), lax.axis_index("heads"), tile, lax.axis_index("warpgroup"))
