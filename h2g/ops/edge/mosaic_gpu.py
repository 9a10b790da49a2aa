"""Edge attention on Hopper, forward and backward: a row of threads' registers per receiver.

Plan. One block of threads (a warp-group, 128 lanes) per receiver and group of heads. Its query
[G, D] stays in registers, spread over the lanes; the rows of its edges are read in CSR order,
straight from HBM into registers, `unroll` keys and values under way at a time, and meet in an
online softmax whose output never leaves the registers. The backward pass does the same twice:

  by receiver   q, do, lse, delta stay;   k, v stream;              dq adds up, d_bias is written
  by sender     k, v stay;                q, do, lse, delta stream; dk, dv add up

Nothing is scattered, and no array of edges x features exists. Up to 512 columns are one group of
heads; wider rows are several blocks.

A hub is cut: a block takes at most `PIECE` edges of a row. Where the graph has more edges than
that, a launch before finds the further pieces (E / PIECE blocks at most, by bisection in the
running sum of their number); the block of the row adds their results, float32, to its own by their
log-sum-exps. 50,000 edges at one receiver are 98 blocks in place of one.

Bytes, with s of an element and C = H D: forward E (2 C s + 4), backward E (4 C s + 8 H + 12), and
each node's rows a few times; forward 4 C E flops, two per byte at bfloat16, far below what the
lanes can do. The floor is every edge reading two rows forward and six in all. What may bound rows
of 256 bytes is the number of instructions: two reads, two conversions, two multiply-adds and
log2(D) steps of a butterfly per edge and warp. 32 KB must be on their way per processor for 4.3
TB/s: eight keys and values of 256 bytes in each of eight blocks, at 64 registers per thread. Rows
under 128 columns leave lanes with copies. Rates: not measured.

Same bits twice: nothing is added in an order that depends on time. Refused: float64, q, k and v of
different dtype, F different from D, widths that are not powers of two up to 512, `return_weights`.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops import wgmma
from h2g.ops.edge.call import clipped
from h2g.ops.edge.call import edge_gradients
from h2g.ops.edge.call import from_passes
from h2g.ops.edge.call import Plan
from h2g.ops.edge.index import EdgeIndex

NAME = "mosaic_gpu"
PIECE = 512  # edges of one row that one block takes
LANES = 128
COLUMNS = 512  # of a row that one block takes: four numbers per lane and array
LOG2E = math.log2(math.e)


def edge_attention(q, k, v, index: EdgeIndex, *, bias, scale, clip, keep, return_weights=False):
  """(out in v's dtype, lse, None); see `api.edge_attention`. keep: [E, H] or None."""
  dispatch.require_hopper(NAME)
  if dispatch.interpreted() and not hasattr(plgpu, "InterpretGPUParams"):
    raise NotImplementedError(f"{NAME}: this version of JAX has no interpreter of its kernels")
  if return_weights:
    raise NotImplementedError(f"{NAME} keeps no weights and cannot serve return_weights")
  if q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"{NAME} serves float32, bfloat16 and float16: q is {q.dtype}")
  if not q.dtype == k.dtype == v.dtype:
    raise NotImplementedError(
      f"{NAME} serves q, k and v of one dtype: got {q.dtype}, {k.dtype} and {v.dtype}"
    )
  width = q.shape[2]
  if v.shape[2] != width:
    raise NotImplementedError(f"{NAME} serves v as wide as k: got F {v.shape[2]} and D {width}")
  if width & (width - 1) or not 0 < width <= COLUMNS:
    raise NotImplementedError(
      f"{NAME} serves widths that are powers of two up to {COLUMNS}: got D {width}"
    )
  bias = None if bias is None else bias.astype(jnp.float32)
  out, lse = _attend(Plan(float(scale), clip, dispatch.interpreted()), q, k, v, bias, keep, index)
  return out, lse, None


# One row: what stays in registers, what streams. Functions of a row take `Refs` and give arrays
# [G, D] ("wide") or [G] ("narrow") of the block's heads.


class Refs(NamedTuple):
  """Arrays in HBM; None where a pass has none.

  q, d_out: [N, H, D]. k, v: [M, H, D]. bias, keep: [E, H]. lse, delta: [N, H]. senders, receivers,
  order (positions sorted by sender): [E].
  """

  q: Array | None = None
  k: Array | None = None
  v: Array | None = None
  bias: Array | None = None
  keep: Array | None = None
  d_out: Array | None = None
  lse: Array | None = None
  delta: Array | None = None
  senders: Array | None = None
  receivers: Array | None = None
  order: Array | None = None


class _Tile(NamedTuple):
  """How a block holds a row [G, D], and how many rows it reads at a time."""

  heads: int  # G
  width: int  # D
  layout: plgpu.Layout | None
  unroll: int

  def wide(self, ref, row, first) -> Array:
    """[G, D] float32: heads `first` to first + G of a row."""
    part = ref.at[row, pl.ds(first, self.heads)]
    return wgmma.load(part, self.layout).astype(jnp.float32)

  def narrow(self, ref, row, first) -> Array:
    """[G] float32."""
    return wgmma.load(ref.at[row, pl.ds(first, self.heads)], self.layout and self.layout.reduce(1))

  def store(self, ref, row, first, x: Array) -> None:
    """x [G, D] or [G] as heads `first` to first + G of a row."""
    part, x = ref.at[row, pl.ds(first, self.heads)], x.astype(ref.dtype)
    if self.layout is None or not hasattr(plgpu, "store"):
      part[...] = x
    else:  # from JAX 0.12 on; rows narrower than 32 bytes do not count as optimized there
      plgpu.store(part, x, optimized=False)

  def spread(self, x: Array) -> Array:
    """[G] -> [G, D]."""
    x = jax.lax.broadcast_in_dim(x, (self.heads, self.width), (0,))
    return x if self.layout is None else plgpu.layout_cast(x, self.layout)

  def full(self, value: float, wide: bool) -> Array:
    x = jnp.full((self.heads, self.width)[: 1 + wide], value, jnp.float32)
    if self.layout is None:
      return x
    return plgpu.layout_cast(x, self.layout if wide else self.layout.reduce(1))


class _Edge(NamedTuple):
  """One of the edges that are under way.

  row: of the array that is read. at: position in receiver order. real: whether it counts; where it
  does not it repeats the last edge that does, so that whatever is read exists.
  """

  row: Array
  at: Array
  real: Array


def _penalty(edge: _Edge, like: Array) -> Array:
  """0, or -inf for an edge that does not count, in the shape of `like`."""
  value = jnp.where(edge.real, jnp.float32(0.0), jnp.float32(-jnp.inf))
  return jnp.broadcast_to(value, like.shape)


def _logits(plan: Plan, tile: _Tile, refs: Refs, x, y, edge: _Edge, first):
  """(scaled products, logits times log2(e)), [G]; the latter -inf where the edge does not count."""
  raw = (x * y).sum(axis=1) * plan.scale
  logits = clipped(raw, plan.clip)
  if refs.bias is not None:
    logits = logits + tile.narrow(refs.bias, edge.at, first)
  return raw, logits * LOG2E + _penalty(edge, logits)


class _Forward:
  """out and lse. State: acc [G, D], largest and total [G], as in `tiles.SoftmaxState`, base 2."""

  state = (True, False, False)

  def __init__(self, plan: Plan, tile: _Tile):
    self.plan, self.tile = plan, tile

  def row_of(self, refs: Refs, at):
    return refs.senders[at], at

  def start(self, refs: Refs, row, first):
    full = self.tile.full
    return self.tile.wide(refs.q, row, first), (
      full(0.0, True),
      full(tiles.LOWEST, False),
      full(0.0, False),
    )

  def step(self, refs: Refs, query, state, edges, first):
    acc, largest, total = state
    keys = [self.tile.wide(refs.k, edge.row, first) for edge in edges]
    values = [self.tile.wide(refs.v, edge.row, first) for edge in edges]
    logits = [
      _logits(self.plan, self.tile, refs, query, key, edge, first)[1]
      for key, edge in zip(keys, edges)
    ]
    joint = functools.reduce(jnp.maximum, logits, largest)
    decay = jnp.exp2(largest - joint)
    acc, total = acc * self.tile.spread(decay), total * decay
    for x, value, edge in zip(logits, values, edges):
      weights = jnp.exp2(x - joint)
      total = total + weights
      if refs.keep is not None:
        weights = weights * self.tile.narrow(refs.keep, edge.at, first)
      acc = acc + self.tile.spread(weights) * value
    return acc, joint, total

  def merge(self, state, other):
    (acc, largest, total), (acc2, largest2, total2) = state, other
    joint = jnp.maximum(largest, largest2)
    one, two = jnp.exp2(largest - joint), jnp.exp2(largest2 - joint)
    acc = acc * self.tile.spread(one) + acc2 * self.tile.spread(two)
    return acc, joint, total * one + total2 * two

  def finish(self, state):
    acc, largest, total = state
    seen = total > 0.0
    safe = jnp.where(seen, total, jnp.ones_like(total))
    lse = jnp.where(seen, (largest + jnp.log2(safe)) / LOG2E, jnp.full_like(safe, -jnp.inf))
    return acc * self.tile.spread(1.0 / safe), lse


class _Gradients:
  """What the two backward passes share: state is a sum of rows."""

  def __init__(self, plan: Plan, tile: _Tile):
    self.plan, self.tile = plan, tile

  def merge(self, state, other):
    return tuple(a + b for a, b in zip(state, other))

  def finish(self, state):
    return state

  def of_edge(self, refs: Refs, edge: _Edge, x, y, d_out, value, lse, delta, first):
    """(d_raw, d_logits, p * keep), [G]; zeros where the edge does not count."""
    raw, logits = _logits(self.plan, self.tile, refs, x, y, edge, first)
    keep = None if refs.keep is None else self.tile.narrow(refs.keep, edge.at, first)
    weights = jnp.exp2(logits - lse * LOG2E)
    d_weights = (d_out * value).sum(axis=1)
    return edge_gradients(raw, weights, d_weights, delta, keep, self.plan.scale, self.plan.clip)


class _ByReceiver(_Gradients):
  """dq, and d_bias as it goes."""

  state = (True,)

  def row_of(self, refs: Refs, at):
    return refs.senders[at], at

  def start(self, refs: Refs, row, first):
    wide, narrow = self.tile.wide, self.tile.narrow
    stay = wide(refs.q, row, first), wide(refs.d_out, row, first)
    stay = (*stay, narrow(refs.lse, row, first), narrow(refs.delta, row, first))
    return stay, (self.tile.full(0.0, True),)

  def step(self, refs: Refs, stay, state, edges, first, d_bias=None):
    query, d_out, lse, delta = stay
    (dq,) = state
    keys = [self.tile.wide(refs.k, edge.row, first) for edge in edges]
    values = [self.tile.wide(refs.v, edge.row, first) for edge in edges]
    for key, value, edge in zip(keys, values, edges):
      d_raw, d_logits, _ = self.of_edge(refs, edge, query, key, d_out, value, lse, delta, first)
      dq = dq + self.tile.spread(d_raw) * key
      if d_bias is not None:

        @pl.when(edge.real)
        def _(edge=edge, d_logits=d_logits):
          self.tile.store(d_bias, edge.at, first, d_logits)

    return (dq,)


class _BySender(_Gradients):
  """dk and dv."""

  state = (True, True)

  def row_of(self, refs: Refs, at):
    at = refs.order[at]
    return refs.receivers[at], at

  def start(self, refs: Refs, row, first):
    stay = self.tile.wide(refs.k, row, first), self.tile.wide(refs.v, row, first)
    return stay, (self.tile.full(0.0, True), self.tile.full(0.0, True))

  def step(self, refs: Refs, stay, state, edges, first):
    key, value = stay
    dk, dv = state
    read = lambda ref: [self.tile.wide(ref, edge.row, first) for edge in edges]
    queries, d_outs = read(refs.q), read(refs.d_out)
    for query, d_out, edge in zip(queries, d_outs, edges):
      lse = self.tile.narrow(refs.lse, edge.row, first)
      delta = self.tile.narrow(refs.delta, edge.row, first)
      d_raw, _, kept = self.of_edge(refs, edge, query, key, d_out, value, lse, delta, first)
      dk = dk + self.tile.spread(d_raw) * query
      dv = dv + self.tile.spread(kept) * d_out
    return dk, dv


# All rows: pieces, grids, shapes.


def _rows(plan: Plan, make, refs: Refs, indptr: Array, heads: int, out_dtypes, with_bias=False):
  """What `make`'s pass gives for every row of `indptr`.

  Args:
    plan: static.
    make: `_Forward`, `_ByReceiver` or `_BySender`.
    refs: arrays, [.., H, ..].
    indptr: [rows + 1].
    heads: H.
    out_dtypes: of what `finish` gives.
    with_bias: whether to write d_bias.
  Returns:
    (list of arrays [rows, H, D] or [rows, H], d_bias [E, H] or None).
  """
  num, num_edges = indptr.shape[0] - 1, refs.senders.shape[0]
  width, dtype = refs.q.shape[2], refs.q.dtype
  tile = _tile(heads, width, dtype, num_edges / num, plan.interpret)
  work = make(plan, tile)
  extra = (num_edges - 1) // PIECE
  array = lambda rows, wide, dtype: jax.ShapeDtypeStruct((rows, heads, width)[: 2 + wide], dtype)
  bias_type = [jax.ShapeDtypeStruct((num_edges, heads), jnp.float32)] if with_bias else []

  def walk(refs, d_bias, row, begin, end, first):
    """The state after edges [begin, end) of the row, in its CSR."""
    stay, state = work.start(refs, row, first)
    options = dict(d_bias=d_bias[0]) if d_bias else {}

    def body(i, state):
      edges = []
      for u in range(tile.unroll):
        at = begin + i * tile.unroll + u
        source, position = work.row_of(refs, jnp.minimum(at, end - 1))
        edges.append(_Edge(source, position, at < end))
      return work.step(refs, stay, state, edges, first, **options)

    steps = jax.lax.div(end - begin + (tile.unroll - 1), jnp.int32(tile.unroll))
    return jax.lax.fori_loop(0, steps, body, state)

  def launch(body, blocks, out_type, *arrays):
    """One block per row (or piece) and group of heads; neighbours in the grid are neighbours."""
    return plgpu.kernel(
      body,
      out_type=out_type,
      grid=(heads // tile.heads, blocks),
      grid_names=("heads", "row"),
      compiler_params=plgpu.CompilerParams(
        approx_math=jnp.dtype(dtype).itemsize < 4,
        lowering_semantics=plgpu.LoweringSemantics.Lane,
      ),
      **(dict(interpret=plgpu.InterpretGPUParams()) if plan.interpret else {}),
    )(*arrays)

  def place():
    return jax.lax.axis_index("row"), jax.lax.axis_index("heads") * tile.heads

  # How many pieces of the rows before a row stand beside their first ones.
  more = None
  parts, far_bias = [], []
  if extra:
    over = jnp.maximum(jnp.diff(indptr) - 1, 0) // PIECE
    more = jnp.cumulative_sum(over, include_initial=True).astype(jnp.int32)

    def piece(refs, indptr, more, *outs):
      j, first = place()

      @pl.when(j < more[num])
      def _():
        row = _bisect(more, j, num)
        begin = indptr[row] + (j - more[row] + 1) * PIECE
        end = jnp.minimum(begin + PIECE, indptr[row + 1])
        count = len(work.state)
        state = walk(refs, outs[count:], row, begin, end, first)
        for ref, x in zip(outs, state):
          tile.store(ref, j, first, x)

    out_type = [array(extra, wide, jnp.float32) for wide in work.state]
    found = launch(piece, extra, out_type + bias_type, refs, indptr, more)
    parts, far_bias = found[: len(work.state)], found[len(work.state) :]

  def whole(refs, indptr, more, parts, *outs):
    row, first = place()
    begin = indptr[row]
    end = jnp.minimum(begin + PIECE, indptr[row + 1])
    state = walk(refs, outs[len(out_dtypes) :], row, begin, end, first)
    if more is not None:

      def add(j, state):
        load = lambda ref, wide: (tile.wide if wide else tile.narrow)(ref, j, first)
        return work.merge(state, tuple(map(load, parts, work.state)))

      state = jax.lax.fori_loop(more[row], more[row + 1], add, state)
    for ref, x in zip(outs, work.finish(state)):
      tile.store(ref, row, first, x)

  wides = work.state[: len(out_dtypes)]
  out_type = [array(num, wide, dtype) for wide, dtype in zip(wides, out_dtypes)]
  outs = launch(whole, num, out_type + bias_type, refs, indptr, more, parts)
  d_bias = None
  if with_bias:
    d_bias = outs.pop()
    position = jnp.arange(num_edges, dtype=indptr.dtype)
    if far_bias:
      far = position - indptr[refs.receivers] >= PIECE
      d_bias = jnp.where(far[:, None], far_bias[0], d_bias)
    d_bias = jnp.where((position < indptr[-1])[:, None], d_bias, 0.0)
  return outs, d_bias


def _bisect(starts, j, num: int):
  """The row r in [0, num) with starts[r] <= j < starts[r + 1]; starts ascend from 0."""

  def halve(_, bounds):
    low, high = bounds
    middle = jax.lax.div(low + high, jnp.int32(2))
    below = starts[middle] <= j
    return jnp.where(below, middle, low), jnp.where(below, high, middle)

  steps = max(num, 1).bit_length()
  return jax.lax.fori_loop(0, steps, halve, (jnp.int32(0), jnp.int32(num)))[0]


def _forward(plan: Plan, q, k, v, bias, keep, index: EdgeIndex):
  refs = Refs(q, k, v, bias, keep, senders=index.senders)
  outs, _ = _rows(plan, _Forward, refs, index.indptr, q.shape[1], (v.dtype, jnp.float32))
  return tuple(outs)


def _by_receiver(plan: Plan, q, k, v, bias, keep, d_out, lse, delta, index: EdgeIndex):
  refs = Refs(
    q, k, v, bias, keep, d_out, lse, delta, senders=index.senders, receivers=index.receivers
  )
  (dq,), d_bias = _rows(
    plan, _ByReceiver, refs, index.indptr, q.shape[1], (q.dtype,), with_bias=bias is not None
  )
  return dq, d_bias


def _by_sender(plan: Plan, q, k, v, bias, keep, d_out, lse, delta, index: EdgeIndex):
  refs = Refs(q, k, v, bias, keep, d_out, lse, delta, *index[1:3], index.sender_order)
  outs, _ = _rows(plan, _BySender, refs, index.sender_indptr, q.shape[1], (k.dtype, v.dtype))
  return tuple(outs)


_attend = from_passes(_forward, _by_receiver, _by_sender)


# How a row lies in registers.


class _Spread(NamedTuple):
  """Lanes of a row [G, D]: `vector` neighbouring columns each, `columns` lanes along D, `rows`
  lanes and `warps` warps along G; `each` numbers per lane in all, copies where lanes are left over.
  """

  each: int
  vector: int
  columns: int
  rows: int
  warps: int


def _spread(heads: int, width: int) -> _Spread:
  """Fewest numbers per lane, then widest vectors (16 bytes of float32 at most)."""
  odd = lambda n: n & -n  # the largest power of two that divides n
  found = []
  for vector in (4, 2, 1):
    if vector > width:
      continue
    columns = min(width // vector, 32)
    rows = min(32 // columns, odd(heads))
    warps = min(4, odd(heads // rows))
    each = heads * width // (columns * rows * warps)
    found.append(_Spread(each, vector, columns, rows, warps))
  return min(found, key=lambda s: s.each)


def _tile(heads: int, width: int, dtype, degree: float, interpret: bool) -> _Tile:
  """Closed form: as many heads as four numbers per lane hold, eight rows where lanes hold one."""
  groups = [n for n in range(heads, 0, -1) if heads % n == 0]
  fits = [n for n in groups if n * width <= COLUMNS and _spread(n, width).each <= 8]
  group = fits[0] if fits else 1
  spread = _spread(group, width)
  unroll = max(2, min(8, 16 // spread.each))
  if degree < 12:  # what is read past the end of a row is read in vain
    unroll = min(unroll, 4)
  return _Tile(group, width, None if interpret else _layout(spread), unroll)


def _layout(spread: _Spread):
  """The layout of registers, in Mosaic's terms (see its TiledLayout)."""
  columns = spread.columns * spread.vector
  copies = lambda n: (mgpu.fragmented_array.Replicated(n),) if n > 1 else ()
  found = mgpu.TiledLayout(
    mgpu.fragmented_array.Tiling(
      (
        (spread.warps * spread.rows, columns),
        (spread.rows, columns),
        (spread.vector,),
      )
    ),
    warp_dims=(-5, *copies(4 // spread.warps)),
    lane_dims=(*copies(32 // (spread.rows * spread.columns)), -3, -2),
    vector_dim=-1,
    _check_canonical=False,
  ).canonicalize()
  return plgpu.Layout.TILED(found.tiling, found.warp_dims, found.lane_dims, found.vector_dim)
