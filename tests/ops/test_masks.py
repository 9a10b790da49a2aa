"""Masks: the predicate, the algebra, and block tables that never say EMPTY or FULL wrongly."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import masks

B, H, T, S = 2, 3, 13, 17


def _rng(seed=0):
  return np.random.default_rng(seed)


def _segments(seed=0):
  rng = _rng(seed)
  return (
    np.sort(rng.integers(-1, 4, (B, T)).astype(np.int32), 1),
    rng.integers(-1, 4, (B, S)).astype(np.int32),
  )


def examples():
  """Name -> (mask, the same predicate in NumPy over broadcast index arrays q, k, h, b)."""
  q_ids, k_ids = _segments()
  table = _rng(1).random((B, 1, 4, 3)) < 0.5
  array = _rng(2).random((1, H, T, S)) < 0.5
  lengths = np.array([5, 17], np.int32)
  offsets = np.array([-3, 4], np.int32)
  slopes = np.array([1, 2, 3], np.int32)
  return dict(
    full=(masks.full(), lambda q, k, h, b: q == q),
    causal=(masks.causal(), lambda q, k, h, b: k <= q),
    causal_offset=(masks.causal(S - T), lambda q, k, h, b: k <= q + S - T),
    causal_offsets=(masks.causal(jnp.asarray(offsets)), lambda q, k, h, b: k <= q + offsets[b]),
    window=(masks.window(3, 2), lambda q, k, h, b: (k >= q - 3) & (k <= q + 2)),
    window_open=(masks.window(None, 2, offset=1), lambda q, k, h, b: k <= q + 3),
    segments=(
      masks.segments(jnp.asarray(q_ids), jnp.asarray(k_ids)),
      lambda q, k, h, b: (q_ids[b, q] == k_ids[b, k]) & (k_ids[b, k] >= 0),
    ),
    prefix=(masks.prefix(4), lambda q, k, h, b: k < 4),
    padding=(
      masks.key_padding(jnp.asarray(lengths), 2),
      lambda q, k, h, b: (k >= 2) & (k < lengths[b]),
    ),
    queries=(masks.query_padding(7), lambda q, k, h, b: q < 7),
    table=(
      masks.block_table(jnp.asarray(table), 4, 6),
      lambda q, k, h, b: table[b, 0, q // 4, k // 6],
    ),
    table_static=(masks.block_table(table, 4, 6), lambda q, k, h, b: table[b, 0, q // 4, k // 6]),
    dense=(masks.dense(jnp.asarray(array)), lambda q, k, h, b: array[0, h, q, k]),
    function=(
      masks.function(
        lambda q, k, h, b, slopes: (q - k) % (slopes[h] + b) == 0, jnp.asarray(slopes)
      ),
      lambda q, k, h, b: (q - k) % (slopes[h] + b) == 0,
    ),
  )


def _expected(predicate):
  q, k = np.arange(T)[None, None, :, None], np.arange(S)[None, None, None, :]
  h, b = np.arange(H)[None, :, None, None], np.arange(B)[:, None, None, None]
  return np.broadcast_to(predicate(*np.broadcast_arrays(q, k, h, b)), (B, H, T, S))


def _dense(mask):
  return np.asarray(mask.dense(T, S, heads=H, batch=B))


def _true_table(dense, block_q, block_k):
  """Exact EMPTY / PARTIAL / FULL of each block, the slow way."""
  rows = [dense[:, :, i : i + block_q] for i in range(0, T, block_q)]
  out = np.zeros((B, H, len(rows), -(-S // block_k)), np.int8)
  for i, row in enumerate(rows):
    for j in range(out.shape[3]):
      block = row[..., j * block_k : (j + 1) * block_k]
      out[:, :, i, j] = np.where(
        block.all((2, 3)), masks.FULL, np.where(block.any((2, 3)), masks.PARTIAL, masks.EMPTY)
      )
  return out


@pytest.mark.parametrize("name", examples())
def test_predicate(name):
  mask, predicate = examples()[name]
  np.testing.assert_array_equal(_dense(mask), _expected(predicate))
  assert bool(mask(3, 2, 1, 1)) == bool(_expected(predicate)[1, 1, 3, 2])


EXACT = (
  "full",
  "causal",
  "causal_offset",
  "causal_offsets",
  "window",
  "window_open",
  "prefix",
  "padding",
  "queries",
)
EXACT += ("table", "table_static", "dense")


@pytest.mark.parametrize("blocks", [(4, 6), (5, 3)])
@pytest.mark.parametrize("name", examples())
def test_block_table_is_sound(name, blocks):
  mask, predicate = examples()[name]
  truth = _true_table(_expected(predicate), *blocks)
  for table in (mask.block_table(T, S, *blocks), mask.block_table(T, S, *blocks, static=True)):
    table = np.broadcast_to(np.asarray(table), truth.shape)
    assert not np.any((table == masks.EMPTY) & (truth != masks.EMPTY))
    assert not np.any((table == masks.FULL) & (truth != masks.FULL))
  assert isinstance(mask.block_table(T, S, *blocks, static=True), np.ndarray)
  if name in EXACT and blocks == (4, 6):
    np.testing.assert_array_equal(
      np.broadcast_to(np.asarray(mask.block_table(T, S, *blocks)), truth.shape), truth
    )
  if blocks == (5, 3):
    tabulated = mask.tabulated(T, S, *blocks, heads=H, batch=B)
    np.testing.assert_array_equal(np.asarray(tabulated.block_table(T, S, *blocks)), truth)


leaves = st.sampled_from(sorted(examples()))
trees = st.recursive(
  leaves,
  lambda inner: st.one_of(
    st.tuples(st.just("&"), inner, inner),
    st.tuples(st.just("|"), inner, inner),
    st.tuples(st.just("~"), inner),
  ),
  max_leaves=4,
)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(trees, st.sampled_from([(4, 6), (3, 5), (7, 2)]))
def test_algebra(tree, blocks):
  table = examples()

  def build(node):
    if isinstance(node, str):
      mask, predicate = table[node]
      return mask, _expected(predicate)
    parts = [build(n) for n in node[1:]]
    if node[0] == "~":
      return ~parts[0][0], ~parts[0][1]
    (a, x), (b, y) = parts
    return (a & b, x & y) if node[0] == "&" else (a | b, x | y)

  mask, expected = build(tree)
  np.testing.assert_array_equal(_dense(mask), expected)
  truth = _true_table(expected, *blocks)
  found = np.broadcast_to(np.asarray(mask.block_table(T, S, *blocks)), truth.shape)
  assert not np.any((found == masks.EMPTY) & (truth != masks.EMPTY))
  assert not np.any((found == masks.FULL) & (truth != masks.FULL))
  start, stop = (
    np.broadcast_to(np.asarray(x), truth.shape[:3]) for x in mask.block_bounds(T, S, *blocks)
  )
  for index in np.ndindex(*truth.shape[:3]):
    some = np.flatnonzero(truth[index] != masks.EMPTY)
    assert not len(some) or (start[index] <= some[0] and some[-1] < stop[index])
  for valid, axis in ((mask.valid_keys(S), 2), (mask.valid_queries(T), 3)):
    if valid is not None:  # may keep what nobody attends to, never drop what somebody does
      assert not np.any(
        expected.any((1, axis)) & ~np.broadcast_to(np.asarray(valid), (B, (T, S)[axis == 2]))
      )


@pytest.mark.parametrize("name", examples())
def test_is_a_pytree(name):
  mask, _ = examples()[name]
  leaves, tree = jax.tree.flatten(mask)
  again = jax.tree.unflatten(tree, leaves)
  assert again == mask and hash(again) == hash(mask)
  assert len(mask.axes()) == len(leaves)
  assert all(len(axes) == np.ndim(leaf) for axes, leaf in zip(mask.axes(), leaves))
  np.testing.assert_array_equal(
    np.asarray(jax.jit(lambda m: m.dense(T, S, heads=H, batch=B))(mask)), _dense(mask)
  )
  with pytest.raises(AttributeError, match="immutable"):
    mask.offset = 3


def test_static_masks_are_equal_by_value():
  assert masks.causal() & masks.window(3) == masks.causal() & masks.window(3)
  assert masks.causal() != masks.causal(1)
  assert len({masks.causal(), masks.causal(0), masks.window(None, 0)}) == 1


def test_static_tables_are_numpy_even_under_jit():
  @jax.jit
  def f(ids):
    mask = masks.causal() & masks.segments(ids)
    table = mask.block_table(T, T, 4, 4, static=True)
    assert isinstance(table, np.ndarray) and (table[0, 0] == masks.EMPTY).sum() == 6
    return jnp.asarray(mask.block_table(T, T, 4, 4))

  ids = np.repeat(np.arange(4, dtype=np.int32), 4)[None, :T]
  assert (np.asarray(f(ids)) != masks.EMPTY).sum() == 4


def test_shards_see_global_numbers_in_functions():
  mask = masks.function(lambda q, k, h, b: (h == 5) & (b == 7)) & masks.causal()
  moved = mask.shifted(jnp.int32(6), jnp.int32(4))
  assert bool(moved(1, 0, 1, 1)) and not bool(moved(1, 0, 0, 1))
  assert bool(moved.shifted(jnp.int32(0), jnp.int32(1))(1, 0, 0, 1))


@pytest.mark.parametrize(
  "build, message",
  [
    (lambda: masks.dense(jnp.zeros((1, 1, 2, 2))), "True attends"),
    (lambda: masks.segments(jnp.zeros((4,), jnp.int32)), "q_ids"),
    (lambda: masks.causal(jnp.zeros((2,))), "offset"),
    (lambda: masks.window(1.5), "left"),
    (lambda: masks.block_table(jnp.zeros((2, 2), bool), 8, 8), "block table"),
    (lambda: masks.key_padding(jnp.zeros((2, 2), jnp.int32)), "lengths"),
    (lambda: masks.function(lambda q, k, h, b: q - k).dense(2, 2), "must return bool"),
  ],
)
def test_refuses(build, message):
  with pytest.raises(ValueError, match=message):
    build()


def test_check_names_the_shapes():
  with pytest.raises(ValueError, match=r"\(1, 4\)"):
    masks.segments(jnp.zeros((1, 4), jnp.int32)).check(B, H, T, S)
  with pytest.raises(ValueError, match="block table"):
    (masks.causal() & masks.block_table(np.ones((1, 1, 2, 2), bool), 4, 4)).check(B, H, T, S)
