"""From products to logits: arrays as kernels read them, the tile's place, bias, mask and hook."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from h2g.ops import wgmma
from h2g.ops.flash_gpu.call import Config
from h2g.ops.flash_gpu.call import LOG2E
from h2g.ops.flash_gpu.program import lowerable
from h2g.ops.flash_gpu.program import with_slope


def is_row(bias: Array | None, axis: int) -> bool:
  """Whether the bias varies along this axis only (3: keys, also where along none; 2: queries)."""
  if bias is None:
    return False
  queries, keys = (n > 1 for n in bias.shape[2:])
  return not queries if axis == 3 else queries and not keys


class Leaf(NamedTuple):
  """An array that a kernel reads part of for each tile.

  Attributes:
    array: by `kind`: "scalar" [b, h], "query" [b, h, T], "key" [b, h, S], "tile" [b, h, T, S] (or
      [b, h, S, T] for kernels whose rows are keys), "block" [b, h, T / bq, S / bk].
    kind: what varies.
    block: (bq, bk) of kind "block".
  """

  array: Any
  kind: str
  block: tuple[int, int] | None = None


jax.tree_util.register_pytree_node(
  Leaf, lambda x: ((x.array,), x[1:]), lambda aux, children: Leaf(*children, *aux)
)


def leaf_of(array: Array, lengths: tuple[int, int], block=None, *, transposed: bool) -> Leaf:
  """From an array [B|1, H|1, T|1, S|1], padded to whole tiles."""
  if block is not None:
    return Leaf(array.astype(jnp.int32), "block", block)
  queries, keys = (n > 1 for n in array.shape[2:])
  padding = [(0, n - size if size > 1 else 0) for n, size in zip(lengths, array.shape[2:])]
  array = jnp.pad(array, ((0, 0), (0, 0), *padding))
  # An axis of length 1 that is not broadcast pads like one that is: every real index is 0.
  if not (queries or keys):
    return Leaf(array[:, :, 0, 0], "scalar")
  if not keys:
    return Leaf(array[:, :, :, 0], "query")
  if not queries:
    return Leaf(array[:, :, 0, :], "key")
  return Leaf(jnp.swapaxes(array, 2, 3) if transposed else array, "tile")


class Where(NamedTuple):
  """Which logits a warpgroup holds: `shape` [rows, columns].

  Attributes:
    batch, head: int32 scalars.
    query, key: first ones, int32 scalars.
    shape: of the logits in registers.
    transposed: rows are keys and columns queries.
  """

  batch: Array
  head: Array
  query: Array
  key: Array
  shape: tuple[int, int]
  transposed: bool

  @property
  def axes(self) -> tuple[int, int]:
    """(axis of queries, axis of keys)."""
    return (1, 0) if self.transposed else (0, 1)

  def indices(self) -> tuple[Array, Array]:
    """(query, key) numbers of every logit, int32 of `shape`."""
    return tuple(
      wgmma.iota(self.shape, axis) + start for axis, start in zip(self.axes, (self.query, self.key))
    )

  def read(self, leaf: Leaf) -> Array:
    """A scalar, or an array of `shape`."""
    ref = leaf.array
    b, h = (i if n > 1 else 0 for i, n in zip((self.batch, self.head), ref.shape[:2]))
    if leaf.kind == "scalar":
      return ref[b, h]
    if leaf.kind == "block":
      size_q, size_k = leaf.block
      return ref[b, h, lax.div(self.query, jnp.int32(size_q)), lax.div(self.key, jnp.int32(size_k))]
    of_query, of_key = self.axes
    queries = pl.ds(self.query, self.shape[of_query])
    keys = pl.ds(self.key, self.shape[of_key])
    if leaf.kind == "tile":
      both = (keys, queries) if self.transposed else (queries, keys)
      return wgmma.load(ref.at[b, h, *both], wgmma.LAYOUT)
    axis, part = (of_query, queries) if leaf.kind == "query" else (of_key, keys)
    return self.spread(wgmma.load(ref.at[b, h, part], wgmma.LAYOUT.reduce(1 - axis)), axis)

  def spread(self, vector: Array, axis: int) -> Array:
    """A vector along one axis, repeated along the other."""
    return lax.broadcast_in_dim(vector, self.shape, [axis])


class Logits(NamedTuple):
  """What turns products q.k into logits inside a kernel.

  Attributes:
    config: of the call.
    num_keys: S where the last tile of keys is padded, else None.
    attends: of the `MaskProgram`.
    bias: Leaf or None.
    mask: leaves of the `MaskProgram`.
    origin: scalars, or None.
  """

  config: Config
  num_keys: int | None
  attends: Callable[..., Array] | None
  bias: Leaf | None
  mask: tuple[Leaf, ...]
  origin: Any

  def allowed(self, where: Where) -> Array | None:
    """Which pairs attend, in a PARTIAL tile."""
    if self.attends is None and self.num_keys is None:
      return None
    query, key = where.indices()
    inside = None if self.num_keys is None else key < self.num_keys
    if self.attends is None:
      return inside
    loaded = [where.read(leaf) for leaf in self.mask]
    loaded = [x.astype(jnp.int32) if x.dtype == jnp.int8 else x for x in loaded]
    found = lowerable(self.attends)(query, key, where.head, where.batch, loaded)
    if found.shape != where.shape:
      # A mask that does not vary along the tile is a scalar: repeat it through arithmetic.
      found = (query * 0 + found.astype(jnp.int32)) != 0
    return found if inside is None else found & inside

  def __call__(self, products: Array, where: Where, allowed: Array | None, tangent: bool = False):
    """Logits from q.k: -inf where masked; with `tangent` also their derivative by scale * q.k."""
    config = self.config
    x = products * config.scale
    if self.bias is not None:
      x = x + where.read(self.bias).astype(jnp.float32)
    slope = None
    if not config.plain:
      if allowed is not None:
        x = jnp.where(allowed, x, 0.0)
      if config.softcap is not None:
        # tanh from exp2: the approximate instruction is too coarse for logits.
        y = 1.0 - 2.0 / (1.0 + jnp.exp2(x * (2 * LOG2E / config.softcap)))
        x = config.softcap * y
        slope = 1.0 - y * y
      if config.hook is not None:
        query, key = where.indices()
        batch, head = where.batch, where.head
        if self.origin is not None:
          batch, head = batch + self.origin[0], head + self.origin[1]
        places = batch, head, query, key
        if tangent:
          x, steep = lowerable(functools.partial(with_slope, config.hook))(x, *places)
          slope = steep if slope is None else slope * steep
        else:
          x = lowerable(config.hook)(x, *places)
    if allowed is not None:
      x = jnp.where(allowed, x, -jnp.inf)
    return (x, slope) if tangent else x


jax.tree_util.register_pytree_node(
  Logits,
  lambda x: ((x.bias, x.mask, x.origin), x[:3]),
  lambda aux, children: Logits(*aux, *children),
)
