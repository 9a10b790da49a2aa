"""Flash attention over lists of tiles for Hopper, in Mosaic GPU: forward and backward.

Serves dense attention under any mask (`h2g.ops.attention`) and block-sparse attention
(`h2g.ops.sparse`): both say which tiles of keys each tile of queries meets (`block_lists.Lists`),
FULL tiles run without a mask and PARTIAL ones evaluate it on index tiles in registers.

Plan. A tile is `tile_q` queries by `tile_k` keys, 128 or 64 each. Every program has one warpgroup
per 64 rows, which computes, and one that only moves memory (TMA into a ring of `stages` slots).

  forward  one program per (head, tile of queries, batch entry): q stays in shared memory, o, m and
           l in registers; k and v stream through. The two computing warpgroups take turns at the
           tensor cores, so that one's exponentials hide behind the other's matmuls
           (arXiv 2407.08608 section 3.1).
  dq       the same, with q and do resident and 64 or 128 keys per step (registers).
  dk, dv   one program per (key head, tile of keys, batch entry): k and v resident, q, do, lse and
           delta stream by 64 queries, over all query heads of the key head. Logits are computed
           transposed, so that both products read their left operand from registers. No atomics: the
           same bits every time.
  dbias    one program per tile of the bias, over the batch entries and heads that share it.

On chip, at D = E = 128 in 16 bits: forward 32 KiB for q and 64 KiB per stage, of 227; dq 64 and 32
KiB per stage of 64 keys; dk, dv the same with queries and keys exchanged. Registers per thread of
the accumulators: forward 64 (o) + 64 (logits) + 32 (weights in 16 bits).

Cost. With A pairs of query and key in listed tiles: forward 2 A (D + E) flops, dq 2 A (2 D + E),
dk and dv 2 A (2 D + 2 E), dbias 2 A (D + E); bytes are those of q, k, v, o and of what the mask and
the bias hold, once per head, as long as k and v of a head fit the L2 cache. At D = 128 and a few
hundred keys per query the matmuls are the floor; at D = 64 exponentials are within a factor of 1.3
of them. Rates: not measured.

Axes: B batch, H heads, K key heads, T queries, S keys, D head width, E value width.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.extend.core
import jax.numpy as jnp

from h2g.ops import block_lists
from h2g.ops import dispatch
from h2g.ops import wgmma
from h2g.ops.block_lists import Lists
from h2g.ops.masks import Mask

ROWS = 64  # of a warpgroup
LOG2E = math.log2(math.e)
_SHARED_MEMORY = 220 << 10  # bytes of tiles in a program; barriers and row vectors take some of 227
_WIDTHS = (64, 128)
_WGMMA = plgpu.Layout.WGMMA
_OLD = jax.__version_info__ < (0, 11)
_TURN = plgpu.transpose_ref if _OLD else None


@dataclasses.dataclass(frozen=True)
class Config:
  """The static half of a call (hashable).

  Attributes:
    name: of the implementation, for messages.
    scale: multiplies q.k.
    softcap: logits become softcap * tanh(logits / softcap); None leaves them.
    hook: `hook(logit, batch, head, query, key) -> logit`, elementwise, after the cap; None.
    tile_q: queries per tile, 64 or 128.
    tile_k: keys per tile, 64 or 128.
    interpreted: kernels run in the interpreter; here so that programs of both kinds are told apart.
  """

  name: str
  scale: float
  softcap: float | None
  hook: Callable[..., Array] | None
  tile_q: int
  tile_k: int
  interpreted: bool = dataclasses.field(default_factory=dispatch.interpreted)

  @property
  def plain(self) -> bool:
    """Whether logits are scale * q.k + bias and nothing else."""
    return self.softcap is None and self.hook is None


class Call(NamedTuple):
  """The arrays of a call.

  Attributes:
    q: [B, T, H, D].
    k: [B, S, K, D].
    v: [B, S, K, E].
    bias: [B|1, H|1, T|1, S|1] float or None.
    sinks: [H] or None.
    mask: Mask or None, evaluated in PARTIAL tiles.
    origin: [2] int32, global numbers of batch entry 0 and head 0, for the hook; None for (0, 0).
    by_query: tiles of keys for each tile of queries; L is 1 or K.
    by_key: tiles of queries for each tile of keys.
    table: int32 [B|1, L, N, M] that the lists were made from; needed with a bias.
  """

  q: Array
  k: Array
  v: Array
  bias: Array | None
  sinks: Array | None
  mask: Mask | None
  origin: Array | None
  by_query: Lists
  by_key: Lists
  table: Array | None = None


def refuse(name: str, argument: str, reason: str):
  """Raises NotImplementedError in the words that all refusals use."""
  raise NotImplementedError(f"{name} cannot serve {argument}: {reason}")


def check(name: str, q: Array, v: Array) -> None:
  """Refuses devices, dtypes and widths that the kernels do not take."""
  dispatch.require(name, "gpu")
  if jax.default_backend() == "gpu" and not dispatch.interpreted():
    found = getattr(jax.devices()[0], "compute_capability", "unknown")
    if found != "9.0":
      refuse(name, "this device", f"compute capability 9.0 only, not {found}")
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    refuse(name, "q", f"bfloat16 or float16 only, not {q.dtype}")
  for argument, x in (("q", q), ("v", v)):
    if x.shape[3] > max(_WIDTHS):
      refuse(name, argument, f"widths up to {max(_WIDTHS)}, not {x.shape[3]}")


def flash(call: Call, config: Config) -> tuple[Array, Array]:
  """(out [B, T, H, E] in q's dtype, lse [B, H, T] float32), differentiable in q, k, v, bias, sinks.

  lse is the logarithm of the sum of exp(logits), sink included; -inf where nothing is attended.
  """
  if call.by_query.ids.shape[1] not in (1, call.k.shape[2]) or _is_row(call.bias, axis=3):
    # Lists, or sums over queries, for each query head: then each is a key head of its own.
    times = call.q.shape[2] // call.k.shape[2]
    k, v = (jnp.repeat(x, times, axis=2) for x in (call.k, call.v))
    call = call._replace(k=k, v=v)
  call = call._replace(table=None if call.bias is None else jnp.asarray(call.table, jnp.int32))
  _check_program(call, config)
  return _flash(call, config)


# What a tile of a mask or of a hook may compute: elementwise, on arrays of one shape and scalars.
# The hardware's approximations of tanh, sin and cos are too coarse to be here.
_ELEMENTWISE = frozenset(
  """abs add add_any and broadcast_in_dim convert_element_type div eq exp exp2 ge gt integer_pow
  jit le log lt max min mul ne neg not or pjit rem rsqrt select_n sign square sub xor""".split()  # noqa: SIM905
)


def _check_program(call: Call, config: Config) -> None:
  """Refuses masks and hooks that compute what the kernel language lacks."""
  program = block_lists.mask_program(call.mask, config.tile_q, config.tile_k, config.name)
  whole = lambda dtype: jax.ShapeDtypeStruct((ROWS, ROWS), dtype)
  index, scalar = whole(jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
  if program.attends is not None:
    single = lambda x, block: block is not None or x.shape[2] == x.shape[3] == 1
    loaded = [
      scalar if single(x, block) else index for x, block in zip(program.arrays, program.blocks)
    ]
    _check_elementwise(config.name, "mask", program.attends, index, index, scalar, scalar, loaded)
  if config.hook is not None:
    slope = functools.partial(_with_slope, config.hook)
    arguments = (whole(jnp.float32), scalar, scalar, index, index)
    _check_elementwise(config.name, "logits_fn", slope, *arguments)


def _with_slope(hook, x: Array, *places) -> tuple[Array, Array]:
  """(hook of x, its derivative by x)."""
  return jax.jvp(lambda x: hook(x, *places), (x,), (jnp.ones_like(x),))


def _check_elementwise(name: str, argument: str, function, *arguments) -> None:
  try:
    traced = jax.make_jaxpr(function)(*arguments)
  except (TypeError, ValueError, IndexError) as error:
    refuse(name, argument, f"it does not take tiles of rank 2 ({error})")
  if traced.consts:
    refuse(name, argument, "a function of indices that reads arrays")
  shapes = {x.aval.shape for x in traced.jaxpr.outvars}
  if not shapes <= {(), (ROWS, ROWS)}:
    refuse(name, argument, f"it gives shapes {sorted(shapes)} for a tile {(ROWS, ROWS)}")

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name not in _ELEMENTWISE:
        refuse(name, argument, f"{equation.primitive.name} does not run in the kernel")
      if "jaxpr" in equation.params:
        walk(equation.params["jaxpr"].jaxpr)

  walk(traced.jaxpr)


def _lowerable(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function, in primitives that every supported version lowers in kernels."""

  def evaluate(jaxpr, *values):
    env = dict(zip(jaxpr.invars, values))
    read = lambda x: x.val if isinstance(x, jax.extend.core.Literal) else env[x]
    for equation in jaxpr.eqns:
      inputs, name = [read(x) for x in equation.invars], equation.primitive.name
      if name in ("jit", "pjit"):
        outputs = evaluate(equation.params["jaxpr"].jaxpr, *inputs)
      elif name == "not" and equation.invars[0].aval.dtype == jnp.bool_:
        outputs = [inputs[0] ^ True]
      elif name == "add_any":
        outputs = [inputs[0] + inputs[1]]
      else:
        outputs = equation.primitive.bind(*inputs, **equation.params)
        outputs = outputs if equation.primitive.multiple_results else [outputs]
      env.update(zip(equation.outvars, outputs))
    return [read(x) for x in jaxpr.outvars]

  def run(*arguments):
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    results = evaluate(traced.jaxpr, *jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return run


def _is_row(bias: Array | None, axis: int) -> bool:
  """Whether the bias varies along this axis only (3: keys, also where along none; 2: queries)."""
  if bias is None:
    return False
  queries, keys = (n > 1 for n in bias.shape[2:])
  return not queries if axis == 3 else queries and not keys


# Arrays as kernels read them.


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


def _leaf(array: Array, lengths: tuple[int, int], block=None, *, transposed: bool) -> Leaf:
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
      return wgmma.load(ref.at[b, h, *both], _WGMMA)
    axis, part = (of_query, queries) if leaf.kind == "query" else (of_key, keys)
    return self.spread(wgmma.load(ref.at[b, h, part], _WGMMA.reduce(1 - axis)), axis)

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
    found = _lowerable(self.attends)(query, key, where.head, where.batch, loaded)
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
          x, steep = _lowerable(functools.partial(_with_slope, config.hook))(x, *places)
          slope = steep if slope is None else slope * steep
        else:
          x = _lowerable(config.hook)(x, *places)
    if allowed is not None:
      x = jnp.where(allowed, x, -jnp.inf)
    return (x, slope) if tangent else x


# Steps that kernels share.


def _turned(ref):
  """The transpose of a tile in shared memory; older versions of JAX have a function for it."""
  if _TURN is not None:
    return _TURN(ref, (1, 0))
  return ref.transpose((1, 0))


def _dot(a, b, shape: tuple[int, int], issued: Callable[[], None] | None = None) -> Array:
  """a b^T of two tiles in shared memory, float32 in registers; `issued` runs while it computes."""
  if dispatch.interpreted():  # whose older versions have no transposed tiles
    issued and issued()
    return jnp.dot(a[...], b[...].T, preferred_element_type=jnp.float32)

  def compute(acc):
    plgpu.wgmma(acc, a, _turned(b))
    issued and issued()
    return acc[...]

  return pl.run_scoped(compute, plgpu.ACC(shape, jnp.float32))


def _two_dots(a, b, c, d, shape: tuple[int, int]) -> tuple[Array, Array]:
  """(a b^T, c d^T) of tiles in shared memory, waited for together."""
  if dispatch.interpreted():
    return _dot(a, b, shape), _dot(c, d, shape)

  def compute(one, other):
    plgpu.wgmma(one, a, _turned(b))
    plgpu.wgmma(other, c, _turned(d))
    return one[...], other[...]

  return pl.run_scoped(compute, *(plgpu.ACC(shape, jnp.float32),) * 2)


def _add_dot(total: Array, a: Array, b) -> Array:
  """total + a b, accumulated in place; the left operand comes from registers."""
  if dispatch.interpreted():  # the interpreter has neither such operands nor such accumulators
    return total + jnp.dot(a, b[...], preferred_element_type=jnp.float32)
  return pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.ACC.init(total))


def _shared(*shape: int, dtype):
  """Shared memory for matrices that TMA fills and the tensor cores read."""
  minor = 128 // jnp.dtype(dtype).itemsize
  transforms = (plgpu.TilingTransform((8, minor)), plgpu.SwizzleTransform(128))
  return plgpu.SMEM(shape, dtype, transforms=transforms)


def _launch(body, *, out_type, scratch_types, grid, warpgroups: int):
  """A kernel with `warpgroups` that compute and one that moves memory.

  The last axis of the grid varies fastest: tiles of one head run together and share its k and v in
  the L2 cache.
  """
  options = {}
  if dispatch.interpreted():
    options["interpret"] = plgpu_interpreter()
  return plgpu.kernel(
    body,
    out_type=out_type,
    scratch_types=scratch_types,
    grid=grid,
    grid_names=("batch", "heads", "tiles"),
    num_threads=warpgroups + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(approx_math=True),
    **options,
  )


def plgpu_interpreter():
  """Parameters that make a kernel run in Mosaic GPU's interpreter."""
  from jax._src.pallas.mosaic_gpu.interpret import params  # public in no version so far

  return params.InterpretGPUParams()


def _registers(warpgroups: int, memory: bool) -> None:
  """Moves registers from the warpgroup that waits to those that compute."""
  if warpgroups == 2 and not dispatch.interpreted():
    plgpu.set_max_registers(40 if memory else 232, action="decrease" if memory else "increase")


def _stages(resident: int, per_stage: int) -> int:
  """Slots of the ring: as many as fit, at most four."""
  return max(2, min(4, (_SHARED_MEMORY - resident) // per_stage))


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


def _weights_and_gradient(
  logits: Logits, products: Array, d_weights: Array, rows, where: Where, masked: bool
) -> tuple[Array, Array]:
  """(weights, gradient by scale * q.k) of one tile.

  Args:
    logits: of the kernel.
    products: q.k.
    d_weights: do.v.
    rows: (lse in base 2, delta) vectors along the queries; lse is +inf for rows without weights.
    where: of the tile.
    masked: whether it is PARTIAL.
  """
  config, allowed = logits.config, logits.allowed(where) if masked else None
  slope = None
  if config.plain and logits.bias is None:
    x, factor = products, LOG2E * config.scale
    if allowed is not None:
      x = jnp.where(allowed, x * factor, -jnp.inf)
      factor = 1.0
  else:
    x, slope = logits(products, where, allowed, tangent=True)
    factor = LOG2E
  lse, delta = (where.spread(row, where.axes[0]) for row in rows)
  weights = jnp.exp2(x * factor - lse)
  gradient = weights * (d_weights - delta)
  if slope is not None:
    gradient = gradient * slope
    if allowed is not None and config.hook is not None:
      gradient = jnp.where(allowed, gradient, 0.0)
  return weights, gradient


def _slot(step: Array, stages: int) -> Array:
  return lax.rem(step, jnp.int32(stages))


def _drain(free, used: Array, stages: int) -> None:
  """Waits until all slots of a ring that were filled have been read."""
  for slot in range(stages):
    pl.when(slot < used)(functools.partial(plgpu.barrier_wait, free.at[slot]))


def _two_loops(full: Array, count: Array, step: Callable[..., Any], carry):
  """`step(i, carry, partial)` over FULL steps, then over PARTIAL ones."""
  carry = lax.fori_loop(0, full, functools.partial(step, partial=False), carry)
  return lax.fori_loop(full, count, functools.partial(step, partial=True), carry)


# Operands in whole tiles.


class Padded(NamedTuple):
  """What all kernels of a call read.

  Attributes:
    q, k, v: lengths in whole tiles, widths 64 or 128; zeros behind what was given.
    logits: function of products, with arrays (refs inside a kernel) in its leaves.
    sinks: [H] float32 or None.
  """

  q: Array
  k: Array
  v: Array
  logits: Logits
  sinks: Array | None


jax.tree_util.register_pytree_node(
  Logits,
  lambda x: ((x.bias, x.mask, x.origin), x[:3]),
  lambda aux, children: Logits(*aux, *children),
)


def _whole(n: int, tile: int) -> int:
  return -(-n // tile) * tile


def _width(n: int) -> int:
  return next(w for w in _WIDTHS if n <= w)


def _pad_rows(x: Array, length: int) -> Array:
  """[B, T, H, D] with zeros up to `length` and up to a width that TMA tiles have."""
  shape = (0, 0), (0, length - x.shape[1]), (0, 0), (0, _width(x.shape[3]) - x.shape[3])
  return jnp.pad(x, shape) if any(after for _, after in shape) else x


def _padded(call: Call, config: Config, *, transposed: bool = False) -> Padded:
  """The operands; `transposed` for kernels whose rows are keys."""
  num_queries, num_keys = call.q.shape[1], call.k.shape[1]
  lengths = _whole(num_queries, config.tile_q), _whole(num_keys, config.tile_k)
  program = block_lists.mask_program(call.mask, config.tile_q, config.tile_k, config.name)
  leaf = functools.partial(_leaf, lengths=lengths, transposed=transposed)
  mask = tuple(leaf(x, block=block) for x, block in zip(program.arrays, program.blocks))
  bias = None if call.bias is None else leaf(call.bias)
  origin = None
  if call.origin is not None and config.hook is not None:
    origin = jnp.asarray(call.origin, jnp.int32)
  ragged = num_keys if num_keys % config.tile_k else None
  return Padded(
    _pad_rows(call.q, lengths[0]),
    _pad_rows(call.k, lengths[1]),
    _pad_rows(call.v, lengths[1]),
    Logits(config, ragged, program.attends, bias, mask, origin),
    None if call.sinks is None else call.sinks.astype(jnp.float32),
  )


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


def _place(tiles: int) -> Place:
  # Last tiles first: under a causal mask they have most to do.
  tile = tiles - 1 - lax.axis_index("tiles")
  return Place(lax.axis_index("batch"), lax.axis_index("heads"), tile, lax.axis_index("warpgroup"))


# Forward.


def _forward(call: Call, config: Config) -> tuple[Array, Array]:
  padded = _padded(call, config)
  batch, length, heads, depth = padded.q.shape
  width, dtype = padded.v.shape[3], padded.q.dtype
  warpgroups = config.tile_q // ROWS
  per_key_head = heads // padded.k.shape[2]
  tiles, tile_k = length // config.tile_q, config.tile_k
  size = dtype.itemsize
  resident = config.tile_q * size * (depth + (width if width != depth else 0))
  stages = _stages(resident, tile_k * (depth + width) * size)

  def body(padded, lists, out_ref, lse_ref, shared, barriers):
    q_ref, k_ref, v_ref, logits, sinks = padded
    q_shared, o_shared, k_shared, v_shared, lse_shared = shared
    q_ready, k_ready, v_ready, k_free, v_free, turn = barriers
    place = _place(tiles)
    wg = place.warpgroup
    walk = Walk(lists, place.row(lists, per_key_head))
    full, count = walk.counts()

    def take_turn():
      if warpgroups == 2:
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    @pl.when(wg < warpgroups)
    def _compute():
      _registers(warpgroups, memory=False)
      query = place.tile * config.tile_q + wg * ROWS
      mine = (place.batch, pl.ds(query, ROWS), place.head)
      q_tile = q_shared.at[wg]
      plgpu.copy_gmem_to_smem(q_ref.at[mine], q_tile, q_ready.at[wg])
      plgpu.barrier_wait(q_ready.at[wg])
      if warpgroups == 2:
        pl.when(wg == 1)(take_turn)

      def step(i, carry, partial):
        acc, largest, total = carry
        slot = _slot(i, stages)
        plgpu.barrier_wait(k_ready.at[slot])
        x = _dot(q_tile, k_shared.at[slot], (ROWS, tile_k), take_turn)
        plgpu.barrier_arrive(k_free.at[slot])
        _, entry = walk.at(i, full, count)
        where = Where(place.batch, place.head, query, entry * tile_k, x.shape, False)
        factor, may_mask = LOG2E, partial or logits.bias is not None or config.hook is not None
        if config.plain and config.scale > 0 and logits.bias is None:
          # The scale goes into the exponent, where it costs nothing.
          factor = LOG2E * config.scale
          allowed = logits.allowed(where) if partial else None
          x = x if allowed is None else jnp.where(allowed, x, -jnp.inf)
        else:
          x = logits(x, where, logits.allowed(where) if partial else None)
        new = jnp.maximum(largest, x.max(axis=1) * factor)
        # -inf (nothing seen) becomes 0, so that exp(-inf - 0) is 0 and not NaN.
        safe = jnp.where(new == -jnp.inf, 0.0, new) if may_mask else new
        decay = jnp.exp2(largest - safe)
        weights = jnp.exp2(x * factor - where.spread(safe, 0))
        acc = acc * lax.broadcast_in_dim(decay, acc.shape, [0])
        total = total * decay + weights.sum(axis=1)
        narrow = weights.astype(dtype)
        acc, total, new, narrow = lax.optimization_barrier((acc, total, new, narrow))
        if warpgroups == 2:
          plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(v_ready.at[slot])
        if warpgroups == 2:
          plgpu.barrier_wait(turn)
        acc = _add_dot(acc, narrow, v_shared.at[slot])
        plgpu.barrier_arrive(v_free.at[slot])
        return acc, new, total

      rows = _WGMMA.reduce(1)
      carry = (
        wgmma.filled((ROWS, width), 0.0, _WGMMA),
        wgmma.filled((ROWS,), -jnp.inf, rows),
        wgmma.filled((ROWS,), 0.0, rows),
      )
      acc, largest, total = _two_loops(full, count, step, carry)
      if warpgroups == 2:
        pl.when(wg == 0)(take_turn)
      if sinks is not None:
        sink = sinks[place.head] * LOG2E
        joint = jnp.maximum(largest, sink)
        safe = jnp.where(joint == -jnp.inf, 0.0, joint)
        decay = jnp.exp2(largest - safe)
        total = total * decay + jnp.exp2(sink - safe)
        acc = acc * lax.broadcast_in_dim(decay, acc.shape, [0])
        largest = safe
      seen = total > 0.0
      divisor = jnp.where(seen, total, 1.0)
      acc = acc * lax.broadcast_in_dim(1.0 / divisor, acc.shape, [0])
      lse = jnp.where(seen, jnp.log(divisor) + largest * (1 / LOG2E), -jnp.inf)
      o_tile = q_tile if o_shared is None else o_shared.at[wg]
      o_tile[...] = acc.astype(dtype)
      lse_shared.at[wg][...] = lse
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(o_tile, out_ref.at[mine])
      plgpu.copy_smem_to_gmem(
        lse_shared.at[wg], lse_ref.at[place.batch, place.head, pl.ds(query, ROWS)]
      )
      plgpu.wait_smem_to_gmem(0)

    @pl.when(wg == warpgroups)
    def _move():
      _registers(warpgroups, memory=True)
      key_head = lax.div(place.head, jnp.int32(per_key_head))

      @pl.loop(0, count)
      def _(i):
        slot = _slot(i, stages)
        _, entry = walk.at(i, full, count)
        rows = (place.batch, pl.ds(entry * tile_k, tile_k), key_head)
        for ref, tile, ready, free in (
          (k_ref, k_shared, k_ready, k_free),
          (v_ref, v_shared, v_ready, v_free),
        ):
          pl.when(i >= stages)(lambda free=free: plgpu.barrier_wait(free.at[slot]))
          plgpu.copy_gmem_to_smem(ref.at[rows], tile.at[slot], ready.at[slot])

      _drain(k_free, count, stages)
      _drain(v_free, count, stages)

  ring = plgpu.Barrier(num_barriers=stages)
  free = plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages)
  out, lse = _launch(
    body,
    out_type=(
      jax.ShapeDtypeStruct((batch, length, heads, width), dtype),
      jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
    ),
    scratch_types=(
      (
        _shared(warpgroups, ROWS, depth, dtype=dtype),
        None if width == depth else _shared(warpgroups, ROWS, width, dtype=dtype),
        _shared(stages, tile_k, depth, dtype=dtype),
        _shared(stages, tile_k, width, dtype=dtype),
        plgpu.SMEM((warpgroups, ROWS), jnp.float32),
      ),
      (
        plgpu.Barrier(num_barriers=warpgroups),
        ring,
        ring,
        free,
        free,
        plgpu.Barrier(num_arrivals=2) if warpgroups == 2 else None,
      ),
    ),
    grid=(batch, heads, tiles),
    warpgroups=warpgroups,
  )(padded, call.by_query)
  num_queries = call.q.shape[1]
  return out[:, :num_queries, :, : call.v.shape[3]], lse[:, :, :num_queries]


# Backward.


class Saved(NamedTuple):
  """What the backward kernels read beside the operands, in whole tiles.

  Attributes:
    do: [B, T, H, E] like q.
    lse: [B, H, T] float32, in base 2; +inf for rows without weights, so that theirs come out as 0.
    delta: [B, H, T] float32, sum(do * out) less the gradient of lse.
  """

  do: Array
  lse: Array
  delta: Array


def _d_queries(call: Call, config: Config, saved: Saved) -> tuple[Array, Array | None]:
  """(dq in whole tiles, row sums [B, H, T] of the gradient of a bias along queries, or None)."""
  padded = _padded(call, config)
  batch, length, heads, depth = padded.q.shape
  width, dtype = padded.v.shape[3], padded.q.dtype
  warpgroups = config.tile_q // ROWS
  per_key_head = heads // padded.k.shape[2]
  tiles, size = length // config.tile_q, dtype.itemsize
  keys = min(config.tile_k, 64 if max(depth, width) > 64 else 128)
  ratio = config.tile_k // keys
  stages = _stages(config.tile_q * (depth + width) * size, keys * (depth + width) * size)
  sums = _is_row(call.bias, axis=2)

  def body(padded, lists, saved, dq_ref, sums_ref, shared, barriers):
    q_ref, k_ref, v_ref, logits, _ = padded
    q_shared, do_shared, k_shared, v_shared, sums_shared = shared
    q_ready, ready, free = barriers
    place = _place(tiles)
    wg = place.warpgroup
    walk = Walk(lists, place.row(lists, per_key_head), ratio)
    full, count = walk.counts()

    @pl.when(wg < warpgroups)
    def _compute():
      _registers(warpgroups, memory=False)
      query = place.tile * config.tile_q + wg * ROWS
      mine = (place.batch, pl.ds(query, ROWS), place.head)
      vector = (place.batch, place.head, pl.ds(query, ROWS))
      q_tile, do_tile = q_shared.at[wg], do_shared.at[wg]
      plgpu.copy_gmem_to_smem(q_ref.at[mine], q_tile, q_ready.at[wg])
      plgpu.copy_gmem_to_smem(saved.do.at[mine], do_tile, q_ready.at[wg])
      rows = [wgmma.load(ref.at[vector], _WGMMA.reduce(1)) for ref in (saved.lse, saved.delta)]
      plgpu.barrier_wait(q_ready.at[wg])

      def step(i, carry, partial):
        acc, total = carry
        slot = _slot(i, stages)
        _, entry = walk.at(i, full, count)
        plgpu.barrier_wait(ready.at[slot])
        k_tile, v_tile = k_shared.at[slot], v_shared.at[slot]
        x, d_weights = _two_dots(q_tile, k_tile, do_tile, v_tile, (ROWS, keys))
        where = Where(place.batch, place.head, query, entry * keys, x.shape, False)
        _, gradient = _weights_and_gradient(logits, x, d_weights, rows, where, partial)
        if sums:
          total = total + gradient.sum(axis=1)
        acc = _add_dot(acc, gradient.astype(dtype), k_tile)
        plgpu.barrier_arrive(free.at[slot])
        return acc, total

      total = wgmma.filled((ROWS,), 0.0, _WGMMA.reduce(1)) if sums else None
      carry = wgmma.filled((ROWS, depth), 0.0, _WGMMA), total
      acc, total = _two_loops(full, count, step, carry)
      q_tile[...] = (acc * config.scale).astype(dtype)
      if sums:
        sums_shared.at[wg][...] = total
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(q_tile, dq_ref.at[mine])
      if sums:
        plgpu.copy_smem_to_gmem(sums_shared.at[wg], sums_ref.at[vector])
      plgpu.wait_smem_to_gmem(0)

    @pl.when(wg == warpgroups)
    def _move():
      _registers(warpgroups, memory=True)
      key_head = lax.div(place.head, jnp.int32(per_key_head))

      @pl.loop(0, count)
      def _(i):
        slot = _slot(i, stages)
        _, entry = walk.at(i, full, count)
        pl.when(i >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
        rows = (place.batch, pl.ds(entry * keys, keys), key_head)
        plgpu.copy_gmem_to_smem(k_ref.at[rows], k_shared.at[slot], ready.at[slot])
        plgpu.copy_gmem_to_smem(v_ref.at[rows], v_shared.at[slot], ready.at[slot])

      _drain(free, count, stages)

  vector = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
  return _launch(
    body,
    out_type=(jax.ShapeDtypeStruct(padded.q.shape, dtype), vector if sums else None),
    scratch_types=(
      (
        _shared(warpgroups, ROWS, depth, dtype=dtype),
        _shared(warpgroups, ROWS, width, dtype=dtype),
        _shared(stages, keys, depth, dtype=dtype),
        _shared(stages, keys, width, dtype=dtype),
        plgpu.SMEM((warpgroups, ROWS), jnp.float32) if sums else None,
      ),
      (
        plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
      ),
    ),
    grid=(batch, heads, tiles),
    warpgroups=warpgroups,
  )(padded, call.by_query, saved)


def _d_keys(call: Call, config: Config, saved: Saved) -> tuple[Array, Array, Array | None]:
  """(dk, dv in whole tiles, column sums [B, H, S] of the gradient of a bias along keys, or None).

  Column sums need a key head per query head.
  """
  padded = _padded(call, config, transposed=True)
  batch, _, heads, depth = padded.q.shape
  num_keys, key_heads = padded.k.shape[1:3]
  width, dtype = padded.v.shape[3], padded.q.dtype
  warpgroups = config.tile_k // ROWS
  group = heads // key_heads
  tiles, size = num_keys // config.tile_k, dtype.itemsize
  ratio = config.tile_q // ROWS
  stages = _stages(config.tile_k * (depth + width) * size, ROWS * (depth + width) * size)
  sums = _is_row(call.bias, axis=3)

  def body(padded, lists, saved, dk_ref, dv_ref, sums_ref, shared, barriers):
    q_ref, k_ref, v_ref, logits, _ = padded
    k_shared, v_shared, q_shared, do_shared, lse_shared, delta_shared, sums_shared = shared
    k_ready, ready, free = barriers
    place = _place(tiles)
    wg = place.warpgroup
    walk = Walk(lists, place.row(lists, 1), ratio, group)
    full, count = walk.counts()

    @pl.when(wg < warpgroups)
    def _compute():
      _registers(warpgroups, memory=False)
      key = place.tile * config.tile_k + wg * ROWS
      mine = (place.batch, pl.ds(key, ROWS), place.head)
      k_tile, v_tile = k_shared.at[wg], v_shared.at[wg]
      plgpu.copy_gmem_to_smem(k_ref.at[mine], k_tile, k_ready.at[wg])
      plgpu.copy_gmem_to_smem(v_ref.at[mine], v_tile, k_ready.at[wg])
      plgpu.barrier_wait(k_ready.at[wg])

      def step(i, carry, partial):
        dk, dv, total = carry
        slot = _slot(i, stages)
        repeat, entry = walk.at(i, full, count)
        head = place.head * group + repeat
        plgpu.barrier_wait(ready.at[slot])
        q_tile, do_tile = q_shared.at[slot], do_shared.at[slot]
        rows = [wgmma.load(ref.at[slot], _WGMMA.reduce(0)) for ref in (lse_shared, delta_shared)]
        x, d_weights = _two_dots(k_tile, q_tile, v_tile, do_tile, (ROWS, ROWS))
        where = Where(place.batch, head, entry * ROWS, key, x.shape, True)
        weights, gradient = _weights_and_gradient(logits, x, d_weights, rows, where, partial)
        if sums:
          total = total + gradient.sum(axis=1)
        dv = _add_dot(dv, weights.astype(dtype), do_tile)
        dk = _add_dot(dk, gradient.astype(dtype), q_tile)
        plgpu.barrier_arrive(free.at[slot])
        return dk, dv, total

      total = wgmma.filled((ROWS,), 0.0, _WGMMA.reduce(1)) if sums else None
      zeros = [wgmma.filled((ROWS, n), 0.0, _WGMMA) for n in (depth, width)]
      dk, dv, total = _two_loops(full * group, count * group, step, (*zeros, total))
      k_tile[...] = (dk * config.scale).astype(dtype)
      v_tile[...] = dv.astype(dtype)
      if sums:
        sums_shared.at[wg][...] = total
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(k_tile, dk_ref.at[mine])
      plgpu.copy_smem_to_gmem(v_tile, dv_ref.at[mine])
      if sums:
        vector = (place.batch, place.head, pl.ds(key, ROWS))
        plgpu.copy_smem_to_gmem(sums_shared.at[wg], sums_ref.at[vector])
      plgpu.wait_smem_to_gmem(0)

    @pl.when(wg == warpgroups)
    def _move():
      _registers(warpgroups, memory=True)

      @pl.loop(0, count * group)
      def _(i):
        slot = _slot(i, stages)
        repeat, entry = walk.at(i, full, count)
        head = place.head * group + repeat
        pl.when(i >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
        part = pl.ds(entry * ROWS, ROWS)
        for ref, tile in ((q_ref, q_shared), (saved.do, do_shared)):
          source = ref.at[place.batch, part, head]
          plgpu.copy_gmem_to_smem(source, tile.at[slot], ready.at[slot])
        for ref, tile in ((saved.lse, lse_shared), (saved.delta, delta_shared)):
          source = ref.at[place.batch, head, part]
          plgpu.copy_gmem_to_smem(source, tile.at[slot], ready.at[slot])

      _drain(free, count * group, stages)

  vector = jax.ShapeDtypeStruct((batch, heads, num_keys), jnp.float32)
  return _launch(
    body,
    out_type=(
      jax.ShapeDtypeStruct(padded.k.shape, dtype),
      jax.ShapeDtypeStruct(padded.v.shape, dtype),
      vector if sums else None,
    ),
    scratch_types=(
      (
        _shared(warpgroups, ROWS, depth, dtype=dtype),
        _shared(warpgroups, ROWS, width, dtype=dtype),
        _shared(stages, ROWS, depth, dtype=dtype),
        _shared(stages, ROWS, width, dtype=dtype),
        plgpu.SMEM((stages, ROWS), jnp.float32),
        plgpu.SMEM((stages, ROWS), jnp.float32),
        plgpu.SMEM((warpgroups, ROWS), jnp.float32) if sums else None,
      ),
      (
        plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
        plgpu.Barrier(num_arrivals=4, num_barriers=stages),
        plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
      ),
    ),
    grid=(batch, key_heads, tiles),
    warpgroups=warpgroups,
  )(padded, call.by_key, saved)


def _d_bias(call: Call, config: Config, saved: Saved) -> Array:
  """The gradient [B|1, H|1, T, S] of a bias that varies along queries and keys, in whole tiles."""
  padded = _padded(call, config)
  batch, length, heads, depth = padded.q.shape
  num_keys, key_heads = padded.k.shape[1:3]
  width, dtype = padded.v.shape[3], padded.q.dtype
  entries, bias_heads = call.bias.shape[:2]
  warpgroups = config.tile_q // ROWS
  tiles, columns, keys = length // config.tile_q, num_keys // ROWS, ROWS
  per_list, per_key_head = config.tile_k // keys, heads // key_heads
  repeats_h = heads // bias_heads
  repeats = repeats_h * (batch // entries)
  stages = min(2, repeats)
  d_dtype = call.bias.dtype

  def body(padded, table, saved, out_ref, shared, barriers):
    q_ref, k_ref, v_ref, logits, _ = padded
    q_shared, do_shared, k_shared, v_shared, out_shared = shared
    ready, free = barriers
    here = _place(tiles * columns)
    wg = here.warpgroup
    tile = lax.div(here.tile, jnp.int32(columns))
    column = here.tile - tile * columns

    def at(repeat):
      """(batch entry, head, whether anything attends) of a repeat."""
      of_batch = lax.div(repeat, jnp.int32(repeats_h))
      b = of_batch if entries == 1 else here.batch
      h = repeat - of_batch * repeats_h if bias_heads == 1 else here.head
      kind = table[
        b if table.shape[0] > 1 else 0,
        lax.div(h, jnp.int32(per_key_head)) if table.shape[1] > 1 else 0,
        tile,
        lax.div(column, jnp.int32(per_list)),
      ]
      return b, h, kind != 0

    @pl.when(wg < warpgroups)
    def _compute():
      _registers(warpgroups, memory=False)
      query = tile * config.tile_q + wg * ROWS

      def step(repeat, carry):
        b, h, some = at(repeat)

        def add(carry):
          acc, used = carry
          slot = _slot(used, stages)
          vector = (b, h, pl.ds(query, ROWS))
          rows = [wgmma.load(ref.at[vector], _WGMMA.reduce(1)) for ref in (saved.lse, saved.delta)]
          plgpu.barrier_wait(ready.at[slot])
          q_tile, do_tile = q_shared.at[slot, wg], do_shared.at[slot, wg]
          k_tile, v_tile = k_shared.at[slot], v_shared.at[slot]
          x, d_weights = _two_dots(q_tile, k_tile, do_tile, v_tile, (ROWS, keys))
          plgpu.barrier_arrive(free.at[slot])
          where = Where(b, h, query, column * keys, x.shape, False)
          _, gradient = _weights_and_gradient(logits, x, d_weights, rows, where, True)
          return acc + gradient, used + 1

        return lax.cond(some, add, lambda carry: carry, carry)

      carry = wgmma.filled((ROWS, keys), 0.0, _WGMMA), jnp.int32(0)
      acc, _ = lax.fori_loop(0, repeats, step, carry)
      out_shared.at[wg][...] = acc.astype(d_dtype)
      plgpu.commit_smem()
      part = (here.batch, here.head, pl.ds(query, ROWS), pl.ds(column * keys, keys))
      plgpu.copy_smem_to_gmem(out_shared.at[wg], out_ref.at[part])
      plgpu.wait_smem_to_gmem(0)

    @pl.when(wg == warpgroups)
    def _move():
      _registers(warpgroups, memory=True)

      def step(repeat, used):
        b, h, some = at(repeat)

        @pl.when(some)
        def _():
          slot = _slot(used, stages)
          pl.when(used >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
          for i in range(warpgroups):
            rows = (b, pl.ds(tile * config.tile_q + i * ROWS, ROWS), h)
            plgpu.copy_gmem_to_smem(q_ref.at[rows], q_shared.at[slot, i], ready.at[slot])
            plgpu.copy_gmem_to_smem(saved.do.at[rows], do_shared.at[slot, i], ready.at[slot])
          rows = (b, pl.ds(column * keys, keys), lax.div(h, jnp.int32(per_key_head)))
          plgpu.copy_gmem_to_smem(k_ref.at[rows], k_shared.at[slot], ready.at[slot])
          plgpu.copy_gmem_to_smem(v_ref.at[rows], v_shared.at[slot], ready.at[slot])

        return used + some.astype(jnp.int32)

      _drain(free, lax.fori_loop(0, repeats, step, jnp.int32(0)), stages)

  return _launch(
    body,
    out_type=jax.ShapeDtypeStruct((entries, bias_heads, length, num_keys), d_dtype),
    scratch_types=(
      (
        _shared(stages, warpgroups, ROWS, depth, dtype=dtype),
        _shared(stages, warpgroups, ROWS, width, dtype=dtype),
        _shared(stages, keys, depth, dtype=dtype),
        _shared(stages, keys, width, dtype=dtype),
        _shared(warpgroups, ROWS, keys, dtype=d_dtype),
      ),
      (
        plgpu.Barrier(num_arrivals=2 * warpgroups + 2, num_barriers=stages),
        plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
      ),
    ),
    grid=(entries, bias_heads, tiles * columns),
    warpgroups=warpgroups,
  )(padded, call.table, saved)


@functools.partial(jax.jit, static_argnums=1)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _flash(call: Call, config: Config) -> tuple[Array, Array]:
  return _one_by_one(_forward, config)(call)


def _one_by_one(function, config: Config):
  """Under vmap a kernel runs once per entry."""
  return jax.custom_batching.sequential_vmap(lambda *arrays: function(*arrays, config))


def _flash_forward(call: Call, config: Config):
  out, lse = _one_by_one(_forward, config)(call)
  return (out, lse), (call, out, lse)


def _flash_backward(config: Config, residuals, cotangents):
  return (_one_by_one(_gradients, config)(*residuals, *cotangents),)


def _gradients(call: Call, out: Array, lse: Array, d_out: Array, d_lse: Array, config: Config):
  """With p the weights, delta = do.out - dlse: dx = p (do.v - delta), dsink = -p_sink delta."""
  attends = lse > -jnp.inf
  delta = jnp.einsum("bthe,bthe->bht", d_out.astype(jnp.float32), out.astype(jnp.float32))
  delta = delta - jnp.where(attends, d_lse, 0.0)
  length = _whole(call.q.shape[1], config.tile_q)
  rows = lambda x, value: jnp.pad(
    x, ((0, 0), (0, 0), (0, length - x.shape[2])), constant_values=value
  )
  safe = jnp.where(attends, lse * LOG2E, jnp.inf)
  saved = Saved(_pad_rows(d_out, length), rows(safe, jnp.inf), rows(delta, 0.0))

  dq, row_sums = _d_queries(call, config, saved)
  dk, dv, column_sums = _d_keys(call, config, saved)
  cut = lambda x, like: x[:, : like.shape[1], :, : like.shape[3]]
  d_bias = None
  if call.bias is not None:
    num_queries, num_keys = call.q.shape[1], call.k.shape[1]
    if row_sums is not None:
      d_bias = row_sums[:, :, :num_queries, None]
    elif column_sums is not None:
      d_bias = column_sums[:, :, None, :num_keys]
    else:
      d_bias = _d_bias(call, config, saved)[:, :, :num_queries, :num_keys]
    shared = [i for i, n in enumerate(call.bias.shape) if n == 1 and d_bias.shape[i] > 1]
    d_bias = d_bias.sum(shared, keepdims=True).astype(call.bias.dtype)
  d_sinks = None
  if call.sinks is not None:
    sinks = call.sinks.astype(jnp.float32)[None, :, None]
    p_sink = jnp.where(attends, jnp.exp(sinks - jnp.where(attends, lse, 0.0)), 0.0)
    d_sinks = -(p_sink * delta).sum((0, 2)).astype(call.sinks.dtype)
  nothing = (None,) * 5
  return Call(cut(dq, call.q), cut(dk, call.k), cut(dv, call.v), d_bias, d_sinks, *nothing)


_flash.__wrapped__.defvjp(_flash_forward, _flash_backward)
