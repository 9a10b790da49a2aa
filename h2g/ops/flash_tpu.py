"""Flash attention over lists of tiles for TPUs, in Mosaic TPU: forward and backward.

Serves dense attention under a mask (`h2g.ops.attention`) and block-sparse attention
(`h2g.ops.sparse`): both say which tiles of keys each tile of queries meets. FULL tiles run without
a mask, PARTIAL ones evaluate it on index tiles, and EMPTY ones are neither loaded nor visited where
the table is known while tracing.

Plan. A tile is `tile_q` queries by `tile_k` keys. The grid is (batch, head, entry of the list of
visited tiles), entries in order of their row, so that what belongs to a row stays in VMEM from its
first entry to its last. The lists are prefetched to SMEM, where the index maps read them.

  forward  rows are tiles of queries: o, m and l in float32 scratch, k and v stream through.
  dq       the same, with dq in scratch; weights are computed again from the log-sum-exp.
  dk, dv   rows are tiles of keys, the grid is (batch, key head, entry, query head of the key head):
           q, do, lse and delta stream through. No atomics: the same bits every time.

On chip, with tiles of 512 by 512 and D = E = 128: logits, weights and their gradients in float32
1 MiB each, operands 128 KiB (16 bits) in two buffers each.

Cost. With A pairs of query and key in visited tiles: forward 2 A (D + E) flops, dq 2 A (2 D + E),
dk and dv 2 A (2 D + 2 E); bytes are those of q and o once, and of k and v once per tile of queries.
Heads are brought before positions first, which moves q, k, v, o once more. Rates: not measured.

Axes: B batch, H heads, K key heads, T queries, S keys, D head width, E value width, L lists (1, K
or H), P entries per list.
"""

import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from h2g.ops import block_lists
from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops import tiles

LANES = 128
_WIDEST = 256  # D and E, by the VMEM of 512 by 512 tiles
_MOST_PREFETCHED = 1 << 17  # int32 numbers, half of the smallest SMEM


@dataclasses.dataclass(frozen=True)
class Config:
  """The static half of a call (hashable).

  Attributes:
    name: of the implementation, for messages.
    scale: multiplies q.k.
    softcap: logits become softcap * tanh(logits / softcap); None leaves them.
    tile_q: queries per tile.
    tile_k: keys per tile.
    interpreted: kernels run in the interpreter; here so that programs of both kinds are told apart.
  """

  name: str
  scale: float
  softcap: float | None
  tile_q: int
  tile_k: int
  interpreted: bool = dataclasses.field(default_factory=dispatch.interpreted)


class Call(NamedTuple):
  """The arrays of a call.

  Attributes:
    q: [B, T, H, D].
    k: [B, S, K, D].
    v: [B, S, K, E].
    mask: Mask or None, evaluated in PARTIAL tiles.
    by_query: int32 [B|1, L, P] `block_lists.pairs` whose rows are tiles of queries.
    by_key: int32 [B|1, L, P] those whose rows are tiles of keys.
  """

  q: Array
  k: Array
  v: Array
  mask: Any
  by_query: Any
  by_key: Any


def refuse(name: str, argument: str, reason: str):
  """Raises NotImplementedError in the words that all refusals use."""
  raise NotImplementedError(f"{name} cannot serve {argument}: {reason}")


def check(name: str, q: Array, k: Array, v: Array, mask) -> None:
  """Refuses platforms, dtypes, widths and masks that the kernels do not take."""
  dispatch.require(name, "tpu")
  for argument, x in (("q", q), ("k", k), ("v", v)):
    if x.dtype not in (jnp.float32, jnp.bfloat16) or x.dtype != q.dtype:
      refuse(name, argument, f"float32 or bfloat16, all the same, not {x.dtype}")
    if not 0 < x.shape[3] <= _WIDEST:
      refuse(name, argument, f"widths from 1 to {_WIDEST}, not {x.shape[3]}")
    if 0 in x.shape:
      refuse(name, argument, f"an axis is empty, {x.shape}")

  def walk(mask):
    if isinstance(mask, masks.Function):
      refuse(name, "mask", "a function of indices")
    for field in getattr(mask, "FIELDS", ()):
      if isinstance(getattr(mask, field), masks.Mask):
        walk(getattr(mask, field))

  walk(mask)


def tile_sizes(mask, num_queries: int, num_keys: int) -> tuple[int, int]:
  """(tile_q, tile_k): the MXU's 128 where lengths are short, so that masks skip more; else 512."""
  most = block_lists.tile_for(mask, 512, LANES)
  return tuple(min(m, LANES if n <= 1024 else 512) for m, n in zip(most, (num_queries, num_keys)))


def flash(q, k, v, mask, table, config: Config) -> tuple[Array, Array]:
  """(out [B, T, H, E] in q's dtype, lse [B, H, T] float32), differentiable in q, k, v.

  Args:
    q, k, v, mask: as in `Call`.
    table: int8 [B|1, L, N, M] of the kinds of all tiles.
    config: of the call.
  """
  if table.shape[2] > block_lists.MOST_ROWS or table.shape[3] > block_lists.MOST_ROWS:
    refuse(config.name, "q", f"a table of {table.shape[2]} by {table.shape[3]} tiles")
  if table.shape[1] not in (1, k.shape[2]):  # lists by query head: each a key head of its own
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
  by_query, by_key = block_lists.pairs(table), block_lists.pairs(table.swapaxes(2, 3))
  program = block_lists.mask_program(mask, config.tile_q, config.tile_k, config.name)
  tables = sum(a.size for a, block in zip(program.arrays, program.blocks) if block)
  prefetched = tables + max(by_query.codes.size, by_key.codes.size)
  if prefetched > _MOST_PREFETCHED:
    refuse(config.name, "mask", f"{prefetched} numbers in lists of tiles, {_MOST_PREFETCHED} fit")
  codes = (jnp.asarray(by_query.codes), jnp.asarray(by_key.codes))
  return _flash(Call(q, k, v, mask, *codes), config)


def with_sinks(out: Array, lse: Array, sinks: Array) -> tuple[Array, Array]:
  """What a key without value and with logit `sinks` [H] makes of (out, lse)."""
  sink = sinks.astype(jnp.float32)[None, :, None]
  seen = lse > -jnp.inf
  safe = tiles.finite_or_zero(lse)
  share = jnp.where(seen, jax.nn.sigmoid(safe - sink), 0.0)
  joint = jnp.where(seen, jnp.logaddexp(safe, sink), sink)
  return (out.astype(jnp.float32) * share.swapaxes(1, 2)[..., None]).astype(out.dtype), joint


# Inside a kernel.


def _dot(x, y, axes: tuple[int, int]):
  """Product over an axis of each, accumulated in float32."""
  precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  dimensions = (((axes[0],), (axes[1],)), ((), ()))
  return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


class _Entry(NamedTuple):
  """Where a program stands: grid, tile numbers, kind, and whether its row begins or ends here."""

  at: Any
  row: Any
  column: Any
  kind: Any
  first: Any
  last: Any


@dataclasses.dataclass(frozen=True)
class _Layout:
  """The grid of a pass and how it addresses arrays; rows are keys if `by_key`."""

  call: Call
  config: Config
  by_key: bool

  @property
  def codes(self):
    return self.call.by_key if self.by_key else self.call.by_query

  @property
  def group(self) -> int:
    return self.call.q.shape[2] // self.call.k.shape[2]

  @property
  def grid(self):
    batch, heads = self.call.q.shape[0], self.call.q.shape[2]
    steps = self.codes.shape[2]
    if self.by_key:
      return batch, heads // self.group, steps, self.group
    return batch, heads, steps

  @functools.cached_property
  def program(self):
    config = self.config
    return block_lists.mask_program(self.call.mask, config.tile_q, config.tile_k, config.name)

  def heads(self, at):
    """(query head, key head) of a program."""
    if self.by_key:
      return at[1] * self.group + at[3], at[1]
    return at[1], lax.div(at[1], jnp.int32(self.group))

  def code(self, codes_ref, at, step):
    """The entry number `step` of this program's list, from the flat prefetched lists."""
    batch, lists, steps = self.codes.shape
    which = 0 if batch == 1 else at[0] * lists
    which += 0 if lists == 1 else lax.div(at[1] * jnp.int32(lists), jnp.int32(self.grid[1]))
    return codes_ref[which * steps + step]

  def places(self, codes_ref, at):
    """(tile of queries, tile of keys)."""
    row, column, _ = block_lists.decoded(self.code(codes_ref, at, at[2]))
    return (column, row) if self.by_key else (row, column)

  def entry(self, codes_ref) -> _Entry:
    at = tuple(pl.program_id(axis) for axis in range(len(self.grid)))
    step, steps = at[2], self.grid[2]
    row, column, kind = block_lists.decoded(self.code(codes_ref, at, step))
    neighbour = lambda s: block_lists.decoded(self.code(codes_ref, at, s))[0]
    first = (step == 0) | (neighbour(jnp.maximum(step - 1, 0)) != row)
    last = (step == steps - 1) | (neighbour(jnp.minimum(step + 1, steps - 1)) != row)
    if self.by_key:
      first, last = first & (at[3] == 0), last & (at[3] == self.group - 1)
    return _Entry(at, row, column, kind, first, last)

  def spec(self, side: str, width: int):
    """Tiles of an array [B, heads, length, width]; side "q" or "k"."""
    size = self.config.tile_q if side == "q" else self.config.tile_k

    def index(*args):
      at, codes_ref = args[: len(self.grid)], args[len(self.grid)]
      which = 0 if side == "q" else 1
      return at[0], self.heads(at)[which], self.places(codes_ref, at)[which], 0

    return pl.BlockSpec((1, 1, size, width), index)

  def mask_operands(self):
    """(flat tables to prefetch, arrays, their specs)."""
    tables, arrays, specs = [], [], []
    sizes = self.config.tile_q, self.config.tile_k
    for array, block in zip(self.program.arrays, self.program.blocks):
      if block is not None:
        tables.append(array.astype(jnp.int32).reshape(-1))
        continue
      lengths = [n if n > 1 else 0 for n in array.shape[2:]]
      padding = [(0, -n % size) for n, size in zip(lengths, sizes)]
      padded = jnp.pad(array, ((0, 0), (0, 0), *padding))
      wide = tuple(n > 1 for n in padded.shape[2:])

      def index(*args, shape=array.shape, wide=wide):
        at, codes_ref = args[: len(self.grid)], args[len(self.grid)]
        place = self.places(codes_ref, at)
        ends = (p if w else 0 for p, w in zip(place, wide))
        return (at[0] if shape[0] > 1 else 0, self.heads(at)[0] if shape[1] > 1 else 0, *ends)

      arrays.append(padded)
      ends = tuple(size if w else 1 for w, size in zip(wide, sizes))
      specs.append(pl.BlockSpec((1, 1, *ends), index))
    return tables, arrays, specs

  def allowed(self, entry: _Entry, table_refs, mask_refs):
    """bool [tile_q, tile_k]: which pairs of a PARTIAL tile attend."""
    config, call = self.config, self.call
    shape = config.tile_q, config.tile_k
    row, column = (entry.column, entry.row) if self.by_key else (entry.row, entry.column)
    query = lax.broadcasted_iota(jnp.int32, shape, 0) + row * config.tile_q
    key = lax.broadcasted_iota(jnp.int32, shape, 1) + column * config.tile_k
    inside = key < call.k.shape[1]
    if self.program.attends is None:
      return inside
    batch, head = entry.at[0], self.heads(entry.at)[0]
    loaded, table_refs, mask_refs = [], list(table_refs), list(mask_refs)
    for array, block in zip(self.program.arrays, self.program.blocks):
      if block is None:
        x = mask_refs.pop(0)[0, 0].astype(jnp.int32)
      else:
        sizes = array.shape
        b, h = (batch if sizes[0] > 1 else 0), (head if sizes[1] > 1 else 0)
        # Padded rows of queries may reach behind the table.
        i = jnp.minimum(lax.div(row * config.tile_q, jnp.int32(block[0])), sizes[2] - 1)
        j = jnp.minimum(lax.div(column * config.tile_k, jnp.int32(block[1])), sizes[3] - 1)
        x = table_refs.pop(0)[((b * sizes[1] + h) * sizes[2] + i) * sizes[3] + j]
      # Integers are repeated here, so that masks are never broadcast as bits.
      loaded.append(jnp.broadcast_to(x, shape))
    return self.program.attends(query, key, head, batch, loaded) & inside

  def run(self, body, arrays, specs, out_specs, out_shape, scratch):
    """Runs `body(entry, allowed, inputs, outputs, scratch)` over the grid."""
    tables, mask_arrays, mask_specs = self.mask_operands()

    def kernel(codes_ref, *refs):
      sizes = (len(tables), len(arrays), len(mask_arrays), len(out_shape), len(scratch))
      parts, start = [], 0
      for size in sizes:
        parts.append(refs[start : start + size])
        start += size
      table_refs, inputs, mask_refs, outputs, kept = parts
      entry = self.entry(codes_ref)
      body(entry, lambda: self.allowed(entry, table_refs, mask_refs), inputs, outputs, kept)

    order = ("parallel", "parallel") + ("arbitrary",) * (len(self.grid) - 2)
    return pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1 + len(tables),
        grid=self.grid,
        in_specs=[*specs, *mask_specs],
        out_specs=out_specs,
        scratch_shapes=scratch,
      ),
      out_shape=out_shape,
      compiler_params=pltpu.CompilerParams(dimension_semantics=order),
      interpret=self.config.interpreted,
    )(self.codes.reshape(-1), *tables, *arrays, *mask_arrays)


def _visit(entry: _Entry, allowed, step) -> None:
  """Calls `step(None)` in a FULL tile and `step(bool tile)` in a PARTIAL one."""
  pl.when(entry.kind == masks.FULL)(lambda: step(None))
  pl.when(entry.kind == masks.PARTIAL)(lambda: step(allowed()))


def _logits(config: Config, q, k):
  """(logits, their derivative by scale * q.k or None)."""
  x = _dot(q, k, (1, 1)) * config.scale
  if config.softcap is None:
    return x, None
  bent = jnp.tanh(x / config.softcap)
  return config.softcap * bent, 1 - bent * bent


# The three passes. Operands are [B, heads, length, width], lengths in whole tiles.


def _placed(x: Array, size: int) -> Array:
  """[B, length, heads, width] with heads first, padded to whole tiles."""
  return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % size), (0, 0)))


def _forward(call: Call, config: Config) -> tuple[Array, Array]:
  layout = _Layout(call, config, False)
  q = _placed(call.q, config.tile_q)
  k, v = (_placed(x, config.tile_k) for x in (call.k, call.v))
  width, value_width, tile = q.shape[3], v.shape[3], config.tile_q

  def body(entry, allowed, inputs, outputs, kept):
    (q_ref, k_ref, v_ref), (out_ref, lse_ref) = inputs, outputs
    acc_ref, largest_ref, total_ref = kept

    @pl.when(entry.first)
    def _():
      acc_ref[...] = jnp.zeros_like(acc_ref)
      largest_ref[...] = jnp.full_like(largest_ref, tiles.LOWEST)
      total_ref[...] = jnp.zeros_like(total_ref)

    def step(attends):
      logits, _ = _logits(config, q_ref[0, 0], k_ref[0, 0])
      if attends is not None:
        logits = jnp.where(attends, logits, -jnp.inf)
      before = largest_ref[:, :1]
      largest = jnp.maximum(before, logits.max(1, keepdims=True))
      exps, decay = jnp.exp(logits - largest), jnp.exp(before - largest)
      weighed = _dot(exps.astype(v_ref.dtype), v_ref[0, 0], (1, 0))
      acc_ref[...] = acc_ref[...] * decay + weighed
      total = total_ref[:, :1] * decay + exps.sum(1, keepdims=True)
      total_ref[...] = jnp.broadcast_to(total, total_ref.shape)
      largest_ref[...] = jnp.broadcast_to(largest, largest_ref.shape)

    _visit(entry, allowed, step)

    @pl.when(entry.last)
    def _():
      total = total_ref[:, :1]
      seen = total > 0
      divisor = jnp.where(seen, total, 1.0)
      out_ref[0, 0] = (acc_ref[...] / divisor).astype(out_ref.dtype)
      lse_ref[0, 0] = jnp.where(seen, jnp.log(divisor) + largest_ref[:, :1], -jnp.inf)

  out, lse = layout.run(
    body,
    (q, k, v),
    [layout.spec("q", width), layout.spec("k", width), layout.spec("k", value_width)],
    [layout.spec("q", value_width), layout.spec("q", 1)],
    [
      jax.ShapeDtypeStruct((*q.shape[:3], value_width), q.dtype),
      jax.ShapeDtypeStruct((*q.shape[:3], 1), jnp.float32),
    ],
    [
      pltpu.VMEM((tile, value_width), jnp.float32),
      pltpu.VMEM((tile, LANES), jnp.float32),
      pltpu.VMEM((tile, LANES), jnp.float32),
    ],
  )
  length = call.q.shape[1]
  return out[:, :, :length].swapaxes(1, 2), lse[:, :, :length, 0]


def _gradients(call: Call, out: Array, lse: Array, d_out: Array, d_lse: Array, config: Config):
  """With p the weights and delta = do.out - dlse: dx = p (do.v - delta)."""
  attends = lse > -jnp.inf
  delta = jnp.einsum("bthe,bthe->bht", d_out.astype(jnp.float32), out.astype(jnp.float32))
  delta = delta - jnp.where(attends, d_lse, 0.0)
  column = lambda x: _placed(x.swapaxes(1, 2)[..., None], config.tile_q)
  q, d_out = (_placed(x, config.tile_q) for x in (call.q, d_out.astype(call.q.dtype)))
  k, v = (_placed(x, config.tile_k) for x in (call.k, call.v))
  # No pair of a row that attends to nothing is allowed, so that any finite number serves as lse.
  arrays = (q, k, v, d_out, column(tiles.finite_or_zero(lse)), column(delta))
  width, value_width = q.shape[3], v.shape[3]

  def slopes(inputs, attends):
    """(p, gradient by q.k), float32 [tile_q, tile_k]."""
    q, k, v, d_out, lse, delta = (ref[0, 0] for ref in inputs)
    logits, slope = _logits(config, q, k)
    weights = jnp.exp(logits - lse)
    if attends is not None:
      weights = jnp.where(attends, weights, 0.0)
    d_logits = weights * (_dot(d_out, v, (1, 1)) - delta)
    d_logits = d_logits if slope is None else d_logits * slope
    return weights, d_logits * config.scale

  def query_body(entry, allowed, inputs, outputs, kept):
    (dq_ref,), (acc_ref,) = outputs, kept

    @pl.when(entry.first)
    def _():
      acc_ref[...] = jnp.zeros_like(acc_ref)

    def step(attends):
      _, d_logits = slopes(inputs, attends)
      acc_ref[...] += _dot(d_logits.astype(inputs[1].dtype), inputs[1][0, 0], (1, 0))

    _visit(entry, allowed, step)

    @pl.when(entry.last)
    def _():
      dq_ref[0, 0] = acc_ref[...].astype(dq_ref.dtype)

  def key_body(entry, allowed, inputs, outputs, kept):
    @pl.when(entry.first)
    def _():
      for ref in kept:
        ref[...] = jnp.zeros_like(ref)

    def step(attends):
      weights, d_logits = slopes(inputs, attends)
      q_ref, d_out_ref, (dk_ref, dv_ref) = inputs[0], inputs[3], kept
      dk_ref[...] += _dot(d_logits.astype(q_ref.dtype), q_ref[0, 0], (0, 0))
      dv_ref[...] += _dot(weights.astype(d_out_ref.dtype), d_out_ref[0, 0], (0, 0))

    _visit(entry, allowed, step)

    @pl.when(entry.last)
    def _():
      for ref, kept_ref in zip(outputs, kept):
        ref[0, 0] = kept_ref[...].astype(ref.dtype)

  def run(body, by_key, results):
    layout = _Layout(call, config, by_key)
    sides = (("q", width), ("k", width), ("k", value_width), ("q", value_width), ("q", 1), ("q", 1))
    side, size = ("k", config.tile_k) if by_key else ("q", config.tile_q)
    return layout.run(
      body,
      arrays,
      [layout.spec(*s) for s in sides],
      [layout.spec(side, x.shape[3]) for x in results],
      [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
      [pltpu.VMEM((size, x.shape[3]), jnp.float32) for x in results],
    )

  (dq,) = run(query_body, False, (q,))
  dk, dv = run(key_body, True, (k, v))
  cut = lambda x, like: x[:, :, : like.shape[1]].swapaxes(1, 2)
  return Call(cut(dq, call.q), cut(dk, call.k), cut(dv, call.v), None, None, None)


# One compiled program per shape of call, differentiated by hand.


def _one_by_one(function, config: Config):
  """Under vmap a kernel runs once per entry."""
  return jax.custom_batching.sequential_vmap(lambda *arrays: function(*arrays, config))


@functools.partial(jax.jit, static_argnums=1)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _flash(call: Call, config: Config) -> tuple[Array, Array]:
  return _one_by_one(_forward, config)(call)


def _flash_forward(call: Call, config: Config):
  out, lse = _one_by_one(_forward, config)(call)
  return (out, lse), (call, out, lse)


def _flash_backward(config: Config, residuals, cotangents):
  return (_one_by_one(_gradients, config)(*residuals, *cotangents),)


_flash.__wrapped__.defvjp(_flash_forward, _flash_backward)
