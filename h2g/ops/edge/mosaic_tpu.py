"""Edge attention on a TPU, forward and backward: edges in tiles, their rows fetched one by one.

Plan. A grid step owns 8 rows (receivers; message rows in the pass by sender) and walks the tiles of
128 edges that hold theirs. Per tile the row at the other end of each edge is copied from HBM, one
DMA per edge: k and v of a message row stand side by side in one row, so do q and do of a receiver.
All products are on the MXU: the 8 rows and H heads are 8 H rows of a matrix that is zero but in the
columns of its head, so that (8 H) x C x 128 serves every head, and an online softmax with a mask of
ownership runs over the 128 edges, as in dense attention. Gradients by receiver (dq, d_bias) and by
sender (dk, dv) have the same form. No array of edges x features; E x H scalars are bias, dropout
and, by sender, the receiver's log-sum-exp and delta.

Grid steps run one after the other on a core, so a receiver of 50,000 edges holds nobody up and is
not cut; its softmax state does not grow. (What is not finite in a row that an edge does read
spreads to the rows of the same step.)

Named only, and not in the order of choice, for it is no gain where it could be reckoned: a row of
8 heads x 16 in float32 is 1 KB with its partner, and a DMA costs some tens of nanoseconds whatever
its size, 30 ns x 2.3 M rows = 70 ms for the arxiv size, against 1 to 2 ms of memory time. XLA's own
gather moves many rows per instruction. Gathers in hardware (SparseCore) are not in all versions of
Pallas that this library supports. Bytes: E (8 C + 8) forward, three times as much with gradients;
float32 whatever the input. Rates: not measured.

Refused: other dtypes than float32 and bfloat16, rows that do not fit VMEM 128 at a time,
`return_weights`.
"""

import dataclasses
import functools

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops.edge.call import clipped
from h2g.ops.edge.call import edge_gradients
from h2g.ops.edge.call import from_passes
from h2g.ops.edge.call import Plan
from h2g.ops.edge.index import EdgeIndex

NAME = "mosaic_tpu"
ROWS = 8  # of a grid step: sublanes of a native tile
EDGES = 128  # of a tile: its lanes
VMEM = 14 * 2**20


def edge_attention(q, k, v, index: EdgeIndex, *, bias, scale, clip, keep, return_weights=False):
  """(out in v's dtype, lse, None); see `api.edge_attention`. keep: [E, H] or None."""
  dispatch.require(NAME, "tpu")
  if return_weights:
    raise NotImplementedError(f"{NAME} keeps no weights and cannot serve return_weights")
  for name, x in dict(q=q, k=k, v=v).items():
    if x.dtype not in (jnp.float32, jnp.bfloat16):
      raise NotImplementedError(f"{NAME} serves float32 and bfloat16: {name} is {x.dtype}")
  _check_room(q.shape[1], q.shape[2], v.shape[2])
  plan = Plan(float(scale), clip, dispatch.interpreted())
  wide = lambda x: None if x is None else x.astype(jnp.float32)
  out, lse = _attend(plan, *map(wide, (q, k, v, bias, keep)), index)
  return out.astype(v.dtype), lse, None


def _check_room(heads: int, width: int, value_width: int) -> None:
  columns = _whole(heads * width) + _whole(heads * value_width)
  # A row alone takes a whole native tile of 8; then matrices of 8 H rows, and tiles of logits.
  needed = 4 * (EDGES * ROWS * columns + 4 * ROWS * heads * columns + 8 * ROWS * heads * EDGES)
  if needed > VMEM:
    raise NotImplementedError(
      f"{NAME} holds {EDGES} rows in VMEM: H {heads}, D {width}, F {value_width} need "
      f"{needed >> 20} MiB of {VMEM >> 20}"
    )


def _whole(n: int) -> int:
  """n in whole lanes."""
  return -(-n // 128) * 128


# Inside a grid step. "Expanded" matrices have a row per (row of the step, head), R H in all.


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
  return jax.lax.dot_general(
    a,
    b,
    (((axis_a,), (axis_b,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )


def _iota(shape, axis: int) -> Array:
  return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _row_and_head(shape, heads: int) -> tuple[Array, Array]:
  """Row of the step and head of each row of an expanded matrix."""
  at = _iota(shape, 0)
  row = jax.lax.div(at, jnp.int32(heads))
  return row, at - row * heads


def _of_rows(heads: int) -> Array:
  """[R H, R]: 1 where an expanded row belongs to a row."""
  shape = (ROWS * heads, ROWS)
  return (_row_and_head(shape, heads)[0] == _iota(shape, 1)).astype(jnp.float32)


def _of_heads(heads: int) -> Array:
  """[R H, H]: 1 where an expanded row belongs to a head."""
  shape = (ROWS * heads, heads)
  return (_row_and_head(shape, heads)[1] == _iota(shape, 1)).astype(jnp.float32)


def _own(x: Array, heads: int, width: int) -> Array:
  """Zero outside the columns of an expanded row's head."""
  first = _row_and_head(x.shape, heads)[1] * width
  column = _iota(x.shape, 1)
  return jnp.where((column >= first) & (column < first + width), x, jnp.zeros_like(x))


def _expand(x: Array, heads: int, width: int) -> Array:
  """[R, C] -> [R H, C]."""
  return _own(_dot(_of_rows(heads), x, 1, 0), heads, width)


def _contract(x: Array, heads: int, width: int) -> Array:
  """[R H, C] -> [R, C]: the inverse of `_expand`."""
  return _dot(_of_rows(heads), _own(x, heads, width), 0, 0)


@dataclasses.dataclass(frozen=True)
class _Shape:
  """Static: of a pass.

  Attributes:
    heads: H.
    first, second: width per head of the two halves of a streamed row.
    parts: which arrays of E x H scalars there are, of "bias", "keep", "lse", "delta".
  """

  heads: int
  first: int
  second: int
  parts: tuple[str, ...]

  @property
  def columns(self) -> tuple[int, int]:
    return _whole(self.heads * self.first), _whole(self.heads * self.second)


def _walk(shape: _Shape, starts, ids, stream, scalars, buffers, state, step):
  """The state after all tiles of this grid step's edges.

  Args:
    shape: static.
    starts: SMEM [1, R + 1] positions where the edges of each row begin.
    ids: HBM [E / 128, 1, 128], the row to fetch for each edge.
    stream: HBM [.., 1, C], what is fetched.
    scalars: list of HBM [E / 128, H, 128].
    buffers: SMEM [1, 128], VMEM [128, 1, C], list of VMEM [H, 128], semaphores.
    state: before.
    step: function (state, tile, owned [R H, 128], first half, second half [128, ..],
      {part: [R H, 128]}) -> state.
  """
  id_buffer, rows, parts, sems = buffers
  begin, end = starts[0, 0], starts[0, ROWS]
  heads = shape.heads
  expanded = (ROWS * heads, EDGES)

  def body(tile, state):
    copies = [pltpu.make_async_copy(ids.at[tile], id_buffer, sems.at[0])]
    for i, (source, part) in enumerate(zip(scalars, parts)):
      copies.append(pltpu.make_async_copy(source.at[tile], part, sems.at[1 + i]))
    for copy in copies:
      copy.start()
    copies[0].wait()
    low = jnp.maximum(begin - tile * EDGES, 0)
    high = jnp.minimum(end - tile * EDGES, EDGES)
    fetch = lambda i: pltpu.make_async_copy(stream.at[id_buffer[0, i]], rows.at[i], sems.at[5])

    def each(do):
      def one(i, nothing):
        do(fetch(i))
        return nothing

      jax.lax.fori_loop(low, high, one, 0)

    each(lambda copy: copy.start())
    each(lambda copy: copy.wait())
    for copy in copies[1:]:
      copy.wait()
    at = _iota((EDGES, rows.shape[2]), 0)
    fetched = rows[:, 0, :]
    fetched = jnp.where((at >= low) & (at < high), fetched, jnp.zeros_like(fetched))
    lane = _iota((heads, EDGES), 1)
    real = (lane >= low) & (lane < high)
    spread = lambda x: _dot(_of_heads(heads), jnp.where(real, x, jnp.zeros_like(x)), 1, 0)
    named = {name: spread(part[...]) for name, part in zip(shape.parts, parts)}
    row = _row_and_head(expanded, heads)[0]
    position = tile * EDGES + _iota(expanded, 1)
    owned = jnp.zeros(expanded, jnp.bool_)
    for r in range(ROWS):
      owned |= (row == r) & (position >= starts[0, r]) & (position < starts[0, r + 1])
    cut = shape.columns[0]
    return step(state, tile, owned, fetched[:, :cut], fetched[:, cut:], named)

  tile = jax.lax.div(begin, jnp.int32(EDGES))
  stop = jnp.where(end > begin, jax.lax.div(end + (EDGES - 1), jnp.int32(EDGES)), tile)
  return jax.lax.fori_loop(tile, stop, body, state)


def _logits(plan: Plan, raw: Array, named, owned: Array) -> Array:
  logits = clipped(raw, plan.clip)
  if "bias" in named:
    logits = logits + named["bias"]
  return jnp.where(owned, logits, -jnp.inf)


def _forward_kernel(starts, q, ids, stream, *refs, plan: Plan, shape: _Shape):
  count = len(shape.parts)
  scalars, (out, lse_out), buffers = refs[:count], refs[count : count + 2], refs[count + 2 :]
  heads = shape.heads
  queries = _expand(q[...], heads, shape.first)

  def step(state, tile, owned, keys, values, named):
    del tile
    x = _logits(plan, _dot(queries, keys, 1, 1) * plan.scale, named, owned)
    weigh = lambda exps: _dot(exps * named["keep"] if "keep" in named else exps, values, 1, 0)
    return tuple(tiles.softmax_step(tiles.SoftmaxState(*state), x, weigh))

  state = tuple(tiles.softmax_init((ROWS * heads,), shape.columns[1]))
  state = _walk(shape, starts, ids, stream, scalars, _buffers(buffers), state, step)
  found, lse = tiles.softmax_finish(tiles.SoftmaxState(*state))
  out[...] = _contract(found, heads, shape.second)
  # One column per head; what a row without edges gets is set outside.
  lse = jnp.broadcast_to(tiles.finite_or_zero(lse)[:, None], (ROWS * heads, lse_out.shape[1]))
  lse_out[...] = _contract(lse, heads, 1)


def _backward_kernel(starts, *refs, plan: Plan, shape: _Shape, by_sender: bool):
  """By receiver: (dq[, d_bias]); by sender: (dk, dv)."""
  heads, count = shape.heads, len(shape.parts)
  given, refs = refs[: 2 if by_sender else 4], refs[2 if by_sender else 4 :]
  ids, stream, scalars, refs = refs[0], refs[1], refs[2 : 2 + count], refs[2 + count :]
  num_outs = 2 if by_sender or "bias" in shape.parts else 1
  outs, buffers = refs[:num_outs], _buffers(refs[num_outs:])
  one = _expand(given[0][...], heads, shape.first)
  two = _expand(given[1][...], heads, shape.second)
  row_numbers = {}
  if not by_sender:
    for name, ref in zip(("lse", "delta"), given[2:]):
      own = _expand(ref[...], heads, 1)
      row_numbers[name] = jnp.sum(own, axis=1, keepdims=True)

  def step(state, tile, owned, first, second, named):
    raw = _dot(one, first, 1, 1) * plan.scale
    numbers = {
      name: jnp.broadcast_to(row_numbers.get(name, named.get(name)), raw.shape)
      for name in ("lse", "delta")
    }
    weights = jnp.exp(_logits(plan, raw, named, owned) - numbers["lse"])
    d_weights = _dot(two, second, 1, 1)
    d_raw, d_logits, kept = edge_gradients(
      raw, weights, d_weights, numbers["delta"], named.get("keep"), plan.scale, plan.clip
    )
    if by_sender:
      return state[0] + _dot(d_raw, first, 1, 0), state[1] + _dot(kept, second, 1, 0)
    if num_outs == 2:
      # Tiles are shared with the rows before and after: theirs is read and written back.
      part, sem = buffers[2][shape.parts.index("bias")], buffers[3].at[0]
      pltpu.make_async_copy(outs[1].at[tile], part, sem).start()
      pltpu.make_async_copy(outs[1].at[tile], part, sem).wait()
      mine = _dot(_of_heads(heads), d_logits, 0, 0)
      some = _dot(_of_heads(heads), owned.astype(jnp.float32), 0, 0) > 0
      part[...] = jnp.where(some, mine, part[...])
      pltpu.make_async_copy(part, outs[1].at[tile], sem).start()
      pltpu.make_async_copy(part, outs[1].at[tile], sem).wait()
    return (state[0] + _dot(d_raw, first, 1, 0),)

  zeros = lambda n: jnp.zeros((ROWS * heads, n), jnp.float32)
  state = tuple(map(zeros, shape.columns if by_sender else shape.columns[:1]))
  state = _walk(shape, starts, ids, stream, scalars, buffers, state, step)
  for ref, x, width in zip(outs, state, (shape.first, shape.second)):
    ref[...] = _contract(x, heads, width)


def _buffers(refs):
  ids, rows, *parts, sems = refs
  return ids, rows, parts, sems


# What stands around the kernels: shapes, grids, padding to whole tiles.


def _flat(x: Array, rows: int) -> Array:
  """[n, H, D] -> [rows, whole lanes], zeros behind."""
  x = jnp.reshape(x, (x.shape[0], -1))
  return jnp.pad(x, ((0, rows - x.shape[0]), (0, _whole(x.shape[1]) - x.shape[1])))


def _beside(x: Array, y: Array) -> Array:
  """[n, 1, C]: two arrays [n, H, ..] in one row."""
  flat = lambda x: _flat(x, x.shape[0])
  return jnp.concatenate([flat(x), flat(y)], 1)[:, None]


def _tiled(x: Array) -> Array:
  """[E] or [E, H] -> [E / 128, 1 or H, 128]."""
  x = jnp.reshape(x, (x.shape[0], -1))
  x = jnp.pad(x, ((0, -x.shape[0] % EDGES), (0, 0)))
  return jnp.swapaxes(jnp.reshape(x, (-1, EDGES, x.shape[1])), 1, 2)


def _call(plan: Plan, shape: _Shape, kernel, indptr, resident, ids, stream, scalars, outs):
  """Runs a kernel over all rows.

  Args:
    plan, shape: static.
    kernel: as above.
    indptr: [rows + 1].
    resident: arrays [rows, H, ..] of which a grid step holds 8 rows.
    ids: [E].
    stream: [.., 1, C].
    scalars: {part: [E, H]}.
    outs: for each output its number of columns, or None for an array of E x H scalars.
  """
  num = indptr.shape[0] - 1
  steps = -(-num // ROWS)
  bounds = jnp.pad(indptr, (0, steps * ROWS - num), mode="edge")
  at = ROWS * jnp.arange(steps)[:, None, None] + jnp.arange(ROWS + 1)[None, None, :]
  # Rows without edges may be NaN, which a product with zero would pass on to their neighbours.
  some = (jnp.diff(indptr) > 0)[:, None]
  resident = [jnp.where(some, _flat(x, num), 0.0) for x in resident]
  resident = [jnp.pad(x, ((0, steps * ROWS - num), (0, 0))) for x in resident]
  ids, scalars = _tiled(ids), [_tiled(scalars[name]) for name in shape.parts]
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  block = lambda columns: pl.BlockSpec((ROWS, columns), lambda step: (step, 0))
  scalar_type = (ids.shape[0], shape.heads, EDGES)
  found = pl.pallas_call(
    functools.partial(kernel, plan=plan, shape=shape),
    grid=(steps,),
    in_specs=[
      pl.BlockSpec((None, 1, ROWS + 1), lambda step: (step, 0, 0), memory_space=pltpu.SMEM),
      *(block(x.shape[1]) for x in resident),
      *(anywhere for _ in range(2 + len(scalars))),
    ],
    out_specs=[anywhere if n is None else block(n) for n in outs],
    out_shape=[
      jax.ShapeDtypeStruct(scalar_type if n is None else (steps * ROWS, n), jnp.float32)
      for n in outs
    ],
    scratch_shapes=[
      pltpu.SMEM((1, EDGES), jnp.int32),
      pltpu.VMEM((EDGES, 1, stream.shape[2]), jnp.float32),
      *(pltpu.VMEM((shape.heads, EDGES), jnp.float32) for _ in scalars),
      pltpu.SemaphoreType.DMA((6,)),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary",), vmem_limit_bytes=2 * VMEM
    ),
    interpret=plan.interpret,
  )(bounds[at], *resident, ids, stream, *scalars)
  return found


def _heads_of(x: Array, num: int, heads: int, width: int) -> Array:
  """[rows, columns] -> [num, H, width]."""
  return jnp.reshape(x[:num, : heads * width], (num, heads, width))


def _given(**arrays) -> dict[str, Array]:
  return {name: x for name, x in arrays.items() if x is not None}


def _forward(plan: Plan, q, k, v, bias, keep, index: EdgeIndex):
  num, heads, width = q.shape
  value_width = v.shape[2]
  scalars = _given(bias=bias, keep=keep)
  shape = _Shape(heads, width, value_width, tuple(scalars))
  outs = [shape.columns[1], _whole(heads)]
  out, lse = _call(
    plan, shape, _forward_kernel, index.indptr, [q], index.senders, _beside(k, v), scalars, outs
  )
  some = jnp.diff(index.indptr) > 0
  lse = jnp.where(some[:, None], lse[:num, :heads], -jnp.inf)
  return _heads_of(out, num, heads, value_width), lse


def _by_receiver(plan: Plan, q, k, v, bias, keep, d_out, lse, delta, index: EdgeIndex):
  num, heads, width = q.shape
  scalars = _given(bias=bias, keep=keep)
  shape = _Shape(heads, width, v.shape[2], tuple(scalars))
  kernel = functools.partial(_backward_kernel, by_sender=False)
  outs = [shape.columns[0]] + ([] if bias is None else [None])
  resident = [q, d_out, tiles.finite_or_zero(lse), delta]
  found = _call(
    plan, shape, kernel, index.indptr, resident, index.senders, _beside(k, v), scalars, outs
  )
  d_bias = None
  if bias is not None:
    d_bias = jnp.reshape(jnp.swapaxes(found[1], 1, 2), (-1, heads))[: bias.shape[0]]
    real = jnp.arange(bias.shape[0]) < index.indptr[-1]
    d_bias = jnp.where(real[:, None], d_bias, 0.0)
  return _heads_of(found[0], num, heads, width), d_bias


def _by_sender(plan: Plan, q, k, v, bias, keep, d_out, lse, delta, index: EdgeIndex):
  count, heads, width = k.shape
  order = index.sender_order
  receivers = index.receivers[order]
  scalars = _given(bias=bias, keep=keep)
  scalars = {name: x[order] for name, x in scalars.items()}
  scalars |= dict(lse=tiles.finite_or_zero(lse)[receivers], delta=delta[receivers])
  shape = _Shape(heads, width, v.shape[2], tuple(scalars))
  kernel = functools.partial(_backward_kernel, by_sender=True)
  dk, dv = _call(
    plan,
    shape,
    kernel,
    index.sender_indptr,
    [k, v],
    receivers,
    _beside(q, d_out),
    scalars,
    list(shape.columns),
  )
  return _heads_of(dk, count, heads, width), _heads_of(dv, count, heads, v.shape[2])


_attend = from_passes(_forward, _by_receiver, _by_sender)
