"""Attention from XLA operations: O(T + S) memory both ways, fast on a CPU, correct anywhere.

Plan. Queries are cut into blocks; the mask says, while tracing where it can, which ranges of keys
each block may touch, and only those are computed. Key heads are taken a few at a time, so that one
tile of logits stays in cache (on accelerators: all at once), heads before positions, so that every
product is a plain batched matmul. The query heads of one key head stand below one another as rows
of the same matmul, so grouped heads repeat nothing. Two forms of one sweep over tiles:

  unrolled   a few dozen blocks of queries with static ranges of keys; blocks of a band (sliding
             window) that look alike go through one batched matmul.
  looped     one loop over pairs of blocks, FULL ones without a mask, then PARTIAL ones with it;
             the list of pairs is static, or compacted on the device where array contents decide.

The backward pass recomputes logits tile by tile from the saved log-sum-exp (arXiv 2205.14135 alg.
4). It computes dk and dv transposed ([D, S]): then no product contracts the leading axis of its
left operand, which the CPU does two to three times slower.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import masks
from h2g.ops import tiles
from h2g.ops.attention import call as call_lib
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Operands
from h2g.ops.attention.call import Spec
from h2g.ops.attention.call import TopKeys
from h2g.ops.attention.plan import make_plan
from h2g.ops.attention.plan import Plan
from h2g.ops.attention.sweep import Cut
from h2g.ops.attention.sweep import Group
from h2g.ops.attention.sweep import over_groups
from h2g.ops.attention.sweep import sweep
from h2g.ops.masks import Corner
from h2g.ops.masks import Tile


def attention(operands: Operands, spec: Spec) -> AttentionOut:
  """See `h2g.ops.attention`. Serves every call."""
  plan, table = make_plan(operands)
  out, lse, column_mass, entropy = _attend(operands, table, spec, plan)
  top_keys = None
  if spec.top_keys:
    stop = functools.partial(jax.tree.map, jax.lax.stop_gradient)
    top_keys = _top_keys(stop(operands), table, jax.lax.stop_gradient(lse), spec, plan)
  return AttentionOut(out, lse if spec.lse else None, column_mass, entropy, top_keys)


# The mathematics of a tile.


class Scene(NamedTuple):
  """What every tile of a group reads.

  Attributes:
    operands: of the call; its q, k and v are not read here.
    spec: of the call.
    group: heads computed together.
    q: [lanes, T, D].
    k: [key heads, S, D].
    v: [key heads, S, E].
    dtype: of accumulators and logits.
    operand_dtype: of what goes into matmuls.
    on_accelerator: as in Plan.
  """

  operands: Operands
  spec: Spec
  group: Group
  q: Array
  k: Array
  v: Array
  dtype: Any
  operand_dtype: Any
  on_accelerator: bool

  def dot(self, a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Batched matmul over axis 0."""
    a, b = a.astype(self.operand_dtype), b.astype(self.operand_dtype)
    exact = self.on_accelerator and a.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None
    dims = (((axis_a,), (axis_b,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=self.dtype)

  def products(self, cut: Cut) -> Array:
    """scale * q.k, [lanes * count, 1, q_size, k_size]."""
    q, scale = cut.rows(self.q), self.spec.scale
    # Scaling q is cheaper, but must not round it.
    early = self.operand_dtype == self.dtype
    q = q.astype(self.dtype) * scale if early else q
    raw = self.dot(cut.stacked(q), cut.keys(self.k), 2, 2)
    return jnp.reshape(raw if early else raw * scale, (-1, 1, cut.q_size, cut.k_size))

  def bias(self, tile: Tile) -> Array | None:
    return None if self.operands.bias is None else masks.tile_of(self.operands.bias, tile.corner)

  def adjusted(self, raw: Array, bias, logits_args, tile: Tile, allowed) -> Array:
    """Logits of the softmax, -inf where masked."""
    x = call_lib.adjust(raw, bias, logits_args, self.spec, tile, self.operands.origin, allowed)
    return x if allowed is None else jnp.where(allowed, x, -jnp.inf)

  def logits(self, cut: Cut) -> tuple[Array, Tile]:
    """[lanes * count, q_size, k_size]."""
    tile = cut.tile()
    allowed = cut.allowed(self.operands.mask, tile)
    x = self.adjusted(self.products(cut), self.bias(tile), self.operands.logits_args, tile, allowed)
    return x[:, 0], tile

  def drop(self, tile: Tile) -> Callable[[Array], Array]:
    """Dropout of the weights of one tile; its own transpose."""
    rate = self.spec.dropout_rate
    if not rate:
      return lambda x: x
    ids = call_lib.globally(tile, self.operands.origin)
    keep = tiles.dropout_keep(self.operands.seed, *ids, rate=rate)[:, 0]
    return lambda x: jnp.where(keep, x * (1 / (1 - rate)), 0.0)


def _scene(operands: Operands, spec: Spec, plan: Plan, group: Group, qkv) -> Scene:
  dtype = tiles.accumulator_dtype(operands.q)
  operand_dtype = operands.q.dtype if plan.on_accelerator else dtype
  q, k, v = qkv
  return Scene(operands, spec, group, q, k, v, dtype, operand_dtype, plan.on_accelerator)


def _sizes(operands: Operands):
  """(batch, T, S, H, K, E)."""
  batch, num_queries, heads, _ = operands.q.shape
  return batch, num_queries, operands.k.shape[1], heads, operands.k.shape[2], operands.v.shape[3]


# The three passes.


@functools.partial(jax.jit, static_argnums=(2, 3))
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(operands: Operands, table, spec: Spec, plan: Plan):
  """(out [B, T, H, E], lse [B, H, T], column mass [B, H, S] or None, entropy [B, H, T] or None)."""
  return _forward(operands, table, spec, plan)


def _forward(operands: Operands, table, spec: Spec, plan: Plan):
  batch, num_queries, num_keys, heads, _, width = _sizes(operands)
  dtype = tiles.accumulator_dtype(operands.q)

  def one(group, qkv, shared):
    scene = _scene(operands, spec, plan, group, qkv)

    def step(cut, state, columns, shared):
      x, tile = scene.logits(cut)
      drop = scene.drop(tile)

      def weigh(exps):
        out = scene.dot(cut.stacked(drop(exps)), cut.keys(scene.v), 2, 1)
        return jnp.reshape(out, (-1, cut.q_size, width))

      return tiles.softmax_step(None if cut.first else state, x, weigh), columns, shared

    state = tiles.softmax_init((group.batch.size, num_queries), width, dtype)
    state, _, _ = sweep(plan, group, table, num_queries, num_keys, step, state, (), ())
    sink = None if operands.sinks is None else operands.sinks.astype(dtype)[group.head][:, None]
    return tiles.softmax_finish(state, sink), shared

  like = (
    jax.ShapeDtypeStruct((batch, num_queries, heads, width), operands.q.dtype),
    jax.ShapeDtypeStruct((batch, heads, num_queries), dtype),
  )
  (out, lse), _ = over_groups(plan, operands, one, operands[:3], like, ())
  column_mass, entropy = _statistics(operands, table, lse, spec, plan)
  return out, lse, column_mass, entropy


def _weights(x: Array, lse: Array) -> Array:
  """exp(x - lse), zero in rows that attend to nothing."""
  return jnp.exp(x - tiles.finite_or_zero(lse)[..., None])


def _statistics(operands: Operands, table, lse: Array, spec: Spec, plan: Plan):
  """Column mass and entropy, None unless wanted: a second sweep, with the final lse."""
  batch, num_queries, num_keys, heads, key_heads, _ = _sizes(operands)
  if not (spec.column_mass or spec.entropy):
    return None, None
  per = heads // key_heads

  def one(group, inputs, shared):
    qkv, saved = inputs
    scene = _scene(operands, spec, plan, group, qkv)

    def step(cut, entropy, mass, shared):
      x, _ = scene.logits(cut)
      rows = cut.rows(saved)
      weights = _weights(x, rows)
      if spec.entropy:
        surprise = jnp.where(weights > 0, tiles.finite_or_zero(rows)[..., None] - x, 0.0)
        entropy = entropy + (weights * surprise).sum(-1)
      if spec.column_mass:
        mass = cut.add_columns(mass, cut.by_key_head(weights.sum(1)))
      return entropy, mass, shared

    lanes = group.batch.size
    entropy = jnp.zeros((lanes, num_queries), lse.dtype)
    mass = jnp.zeros((lanes // per, per, num_keys), lse.dtype)
    entropy, mass, _ = sweep(plan, group, table, num_queries, num_keys, step, entropy, mass, ())
    return (jnp.reshape(mass, (lanes, num_keys)), entropy), shared

  like = (
    jax.ShapeDtypeStruct((batch, heads, num_keys), lse.dtype),
    jax.ShapeDtypeStruct((batch, heads, num_queries), lse.dtype),
  )
  inputs = operands[:3], lse
  (mass, entropy), _ = over_groups(plan, operands, one, inputs, like, ())
  return mass if spec.column_mass else None, entropy if spec.entropy else None


@functools.partial(jax.jit, static_argnums=(3, 4))
def _top_keys(operands: Operands, table, lse: Array, spec: Spec, plan: Plan) -> TopKeys:
  """The largest weights of each row: a running selection over tiles."""
  batch, num_queries, num_keys, heads, _, _ = _sizes(operands)
  n = spec.top_keys

  def one(group, inputs, shared):
    qkv, saved = inputs
    scene = _scene(operands, spec, plan, group, qkv)

    def step(cut, state, columns, shared):
      x, tile = scene.logits(cut)
      weights = jnp.where(x > -jnp.inf, _weights(x, cut.rows(saved)), -1.0)
      values, places = jax.lax.top_k(weights, min(n, cut.k_size))
      key = jnp.broadcast_to(tile.key[:, 0], (weights.shape[0], 1, cut.k_size))[:, 0]
      ids = jax.vmap(lambda key, places: key[places])(key, places)
      values = jnp.concatenate([state[0], values], axis=-1)
      ids = jnp.concatenate([state[1], ids], axis=-1)
      values, places = jax.lax.top_k(values, n)
      return (values, jnp.take_along_axis(ids, places, axis=-1)), columns, shared

    shape = (group.batch.size, num_queries, n)
    state = jnp.full(shape, -1.0, lse.dtype), jnp.full(shape, -1, jnp.int32)
    (values, ids), _, _ = sweep(plan, group, table, num_queries, num_keys, step, state, (), ())
    return (jnp.maximum(values, 0.0), jnp.where(values < 0, -1, ids)), shared

  like = tuple(
    jax.ShapeDtypeStruct((batch, num_queries, heads, n), d) for d in (lse.dtype, jnp.int32)
  )
  inputs = operands[:3], lse
  (values, ids), _ = over_groups(plan, operands, one, inputs, like, ())
  return TopKeys(jnp.moveaxis(values, 2, 1), jnp.moveaxis(ids, 2, 1))


def _attend_forward(operands, table, spec, plan):
  results = _forward(operands, table, spec, plan)
  out, lse, _, entropy = results
  return results, (operands, table, out, lse, entropy)


def _attend_backward(spec: Spec, plan: Plan, saved, cotangents):
  """With p the weights, m dropout, cotangents g of out, a of lse, c of column mass, h of entropy H:

    dx = p * (m * (g.v) + c + r) - h * p * (x - lse),   r = a - delta + h * (P - H) - h
    delta = sum_s p * (m * (g.v) + c) = g.out + sum_s p c,   P = 1 - p_sink,   dsink = p_sink * (r
    + h)

  then dx passes back through hook, cap and bias to dq = scale * dx k and dk = dx^T (scale * q).
  """
  operands, table, out, lse, entropy = saved
  g_out, g_lse, g_mass, g_entropy = cotangents
  _, num_queries, num_keys, heads, key_heads, width = _sizes(operands)
  depth = operands.q.shape[3]
  dtype = lse.dtype
  floats, rejoin = _float_leaves(operands.logits_args)
  plain = operands.bias is None and spec.softcap is None and spec.logits_fn is None

  # What each row adds to dp before the product with p, but for terms that need another sweep.
  attends = lse > -jnp.inf
  delta = (g_out.astype(dtype) * out.astype(dtype)).sum(-1)
  term = jnp.where(attends, g_lse, 0.0) - jnp.swapaxes(delta, 1, 2)
  p_sink = None
  if operands.sinks is not None:
    sinks = operands.sinks.astype(dtype)[None, :, None]
    p_sink = jnp.where(attends, jnp.exp(sinks - tiles.finite_or_zero(lse)), 0.0)
  if g_entropy is not None:
    term = term + g_entropy * ((1.0 if p_sink is None else 1.0 - p_sink) - entropy)

  def one(group, inputs, shared):
    qkv, g, saved_lse, term, p_sink, mass_lanes, h = inputs
    scene = _scene(operands, spec, plan, group, qkv)
    lanes = group.batch.size
    if mass_lanes is not None:
      term = term - _weighted_rows(scene, plan, table, saved_lse, mass_lanes, num_queries, num_keys)

    def step(cut, dq, columns, shared):
      dk, dv = columns
      d_bias, d_args = shared
      tile = cut.tile()
      allowed = cut.allowed(operands.mask, tile)
      to_logits = lambda raw, bias, floats: scene.adjusted(raw, bias, rejoin(floats), tile, allowed)
      raw = scene.products(cut)
      if plain:
        x = to_logits(raw, None, floats)
      else:
        x, pull = jax.vjp(to_logits, raw, scene.bias(tile), floats)
      x = x[:, 0]
      row_lse = cut.rows(saved_lse)
      p = _weights(x, row_lse)
      drop = scene.drop(tile)
      g_rows = cut.stacked(cut.rows(g).astype(dtype))
      dp = jnp.reshape(scene.dot(g_rows, cut.keys(scene.v), 2, 2), p.shape)
      dp = drop(dp)
      if mass_lanes is not None:
        dp = dp + cut.lanes_by_key(mass_lanes)
      row = cut.rows(term)
      if h is not None:
        h_rows = cut.rows(h)
        surprise = jnp.where(p > 0, tiles.finite_or_zero(row_lse)[..., None] - x, 0.0)
        dp = dp + h_rows[..., None] * surprise
        row = row - h_rows
      dx = p * (dp + row[..., None])
      if not plain:
        dx, d_bias_tile, d_args_tile = pull(dx[:, None])
        d_args = jax.tree.map(lambda total, d: total + d.astype(total.dtype), d_args, d_args_tile)
        if d_bias is not None:
          d_bias = _add_bias(d_bias, d_bias_tile, tile.corner)
      dx = cut.stacked(jnp.reshape(dx, p.shape))
      dq = dq + jnp.reshape(scene.dot(dx, cut.keys(scene.k), 2, 1), dq.shape)
      q_rows = cut.stacked(cut.rows(scene.q).astype(dtype))
      dk = cut.add_columns(dk, scene.dot(jnp.swapaxes(q_rows, 1, 2), dx, 2, 1))
      dv = cut.add_columns(dv, scene.dot(jnp.swapaxes(g_rows, 1, 2), cut.stacked(drop(p)), 2, 1))
      return dq, (dk, dv), (d_bias, d_args)

    d_bias, d_args, d_sinks = shared
    dq = jnp.zeros((lanes, num_queries, depth), dtype)
    here = lanes * key_heads // heads
    columns = jnp.zeros((here, depth, num_keys), dtype), jnp.zeros((here, width, num_keys), dtype)
    dq, (dk, dv), (d_bias, d_args) = sweep(
      plan, group, table, num_queries, num_keys, step, dq, columns, (d_bias, d_args)
    )
    if d_sinks is not None:
      new = jnp.reshape((p_sink * term).sum(1), group.sizes).sum(0)
      first = group.starts[1]
      old = masks.slice_at(d_sinks, [first], [group.sizes[1]])
      d_sinks = jax.lax.dynamic_update_slice(d_sinks, old + new, [jnp.asarray(first, jnp.int32)])
    return (dq * spec.scale, jnp.swapaxes(dk, 1, 2) * spec.scale, jnp.swapaxes(dv, 1, 2)), (
      d_bias,
      d_args,
      d_sinks,
    )

  zeros = lambda x: None if x is None else jnp.zeros(x.shape, dtype)
  like = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (operands.q, operands.k, operands.v))
  shared = zeros(operands.bias), jax.tree.map(zeros, floats), zeros(operands.sinks)
  inputs = operands[:3], g_out, lse, term, p_sink, g_mass, g_entropy
  (dq, dk, dv), (d_bias, d_args, d_sinks) = over_groups(plan, operands, one, inputs, like, shared)
  back = lambda d, x: None if x is None else d.astype(x.dtype)
  d_args = rejoin(jax.tree.map(back, d_args, floats), absent=True)
  grads = Operands(
    dq, dk, dv, back(d_bias, operands.bias), None, back(d_sinks, operands.sinks), d_args, None, None
  )
  return grads, None


_attend.__wrapped__.defvjp(_attend_forward, _attend_backward)


def _weighted_rows(
  scene: Scene, plan: Plan, table, lse, by_key, num_queries: int, num_keys: int
) -> Array:
  """sum_s p[t,s] c[s] for every row, [lanes, T]."""

  def step(cut, total, columns, shared):
    x, _ = scene.logits(cut)
    return total + (_weights(x, cut.rows(lse)) * cut.lanes_by_key(by_key)).sum(-1), columns, shared

  total, _, _ = sweep(
    plan, scene.group, table, num_queries, num_keys, step, jnp.zeros_like(lse), (), ()
  )
  return total


def _add_bias(total: Array, update: Array, corner: Corner) -> Array:
  """Adds the gradient of one tile's bias, summing over batch entries or heads that share it."""
  entries, heads = corner.sizes[:2] if update.shape[0] > 1 else (1, 1)
  update = jnp.reshape(update, (entries, heads, *update.shape[2:])).astype(total.dtype)
  shared = tuple(axis for axis in (0, 1) if total.shape[axis] == 1 and update.shape[axis] > 1)
  update = update.sum(shared, keepdims=True) if shared else update
  starts = [0 if n == 1 else start for n, start in zip(total.shape, corner.starts)]
  old = masks.slice_at(total, starts, update.shape)
  return jax.lax.dynamic_update_slice(
    total, old + update, [jnp.asarray(s, jnp.int32) for s in starts]
  )


def _float_leaves(tree):
  """(float leaves, rejoin): `rejoin(floats)` is the tree; absent=True puts None for the others."""
  leaves, structure = jax.tree.flatten(tree)
  floating = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]

  def rejoin(floats, absent=False):
    floats = iter(floats)
    rest = (None if absent else x for x in leaves)
    return jax.tree.unflatten(structure, [next(floats) if f else x for f, x in zip(floating, rest)])

  return [x for f, x in zip(floating, leaves) if f], rejoin
