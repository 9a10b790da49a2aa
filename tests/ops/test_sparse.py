"""Block-sparse attention: the contract over tables and masks, tables beside masks, refusals."""

import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops import sparse
from h2g.ops.attention import attention
from h2g.ops.sparse import block_sparse_attention
from h2g.ops.sparse import BlockLists
from h2g.ops.sparse import selected_block_attention
from tests.ops import contract
from tests.ops.contract import numbers

B, H, K, D, E = 2, 4, 2, 8, 6
SIZE = (16, 8)

COMPILED = jax.jit(
  block_sparse_attention,
  static_argnames=("block_size", "scale", "softcap", "return_lse", "implementation"),
)

DENSE = jax.jit(attention, static_argnames="return_lse")


def example(num_queries, num_keys=None, seed=0):
  """q, k, v with fewer key heads."""
  num_keys = num_queries if num_keys is None else num_keys
  shapes = ((num_queries, H, D), (num_keys, K, D), (num_keys, K, E))
  return [numbers(B, *shape, seed=seed + i) for i, shape in enumerate(shapes)]


def random_table(num_queries, num_keys, heads=K, batch=B, size=SIZE, share=0.4, seed=0):
  """bool NumPy [batch, heads, N, M]; the second row of every list is empty."""
  rng = np.random.default_rng((seed, num_queries, num_keys))
  shape = batch, heads, -(-num_queries // size[0]), -(-num_keys // size[1])
  table = rng.random(shape) < share
  table[:, :, 1:2] = False
  return table


def documents(length):
  return np.arange(length, dtype=np.int32)[None, :] * 3 // length


def case_of(name, length, size=SIZE):
  """(case, arrays) of one kind of table."""
  num_keys = length + 9 if name == "cross" else length
  arrays, options = example(length, num_keys), {}
  if name == "window":
    table = sparse.window_table(length, length, size, 20)
    options = dict(mask=masks.window(20))
  elif name == "documents":
    ids = documents(length)
    table = sparse.document_table(ids, block_size=size)
    options = dict(mask=masks.segments(ids) & masks.causal(), softcap=2.0)
  elif name == "cross":
    table = random_table(length, num_keys, heads=1, batch=1, size=size)
  elif name == "device":
    table = jnp.asarray(random_table(length, length, size=size))
  elif name == "by head":
    table = sparse.from_dense(random_table(length, length, heads=H, size=size))
    bias = np.random.default_rng(1).random((B, 1, length, length)) < 0.7
    options = dict(mask=jnp.asarray(bias))
  elif name == "selected":
    blocks = -(-length // size[1])
    # Repetitions, and numbers that choose nothing.
    ids = np.random.default_rng(2).integers(-1, blocks + 1, (B, K, -(-length // size[0]), 5))
    table = jnp.asarray(ids, jnp.int32)
  else:
    raise AssertionError(name)
  call = selected_block_attention if name == "selected" else block_sparse_attention

  def case(implementation, *arrays):
    found = call(
      *arrays, table, block_size=size, implementation=implementation, return_lse=True, **options
    )
    return contract.with_lse(found)

  return jax.jit(case, static_argnums=0), arrays


def swap(pair, implementation):
  case, arrays = pair
  return case, implementation, arrays


@pytest.mark.few("device-65", "window-257")
@pytest.mark.parametrize(
  "name, length",
  [
    ("window", 1),
    ("window", 257),
    ("documents", 63),
    ("cross", 65),
    ("device", 65),
    ("by head", 63),
    ("selected", 65),
  ],
)
def test_agrees_with_float64(name, length):
  contract.agrees(*swap(case_of(name, length), "xla"))


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("device", (1, 8)), ("selected", (64, 64))])
def test_other_block_sizes(name, size):
  contract.agrees(*swap(case_of(name, 33, size), "xla"))


@pytest.mark.slow
@pytest.mark.parametrize("name, parts", [("device", 2), ("by head", 1)])
def test_several_turns_over_rows_in_order_of_length(name, parts, monkeypatch):
  monkeypatch.setattr(sparse.xla, "_TILE_BYTES", dict(cpu=1))
  monkeypatch.setattr(sparse.xla, "_SLAB", dict(cpu=16))
  monkeypatch.setattr(sparse.xla, "_PARTS", dict(cpu=parts))
  contract.agrees(*swap(case_of(name, 100), "xla"))


@pytest.mark.slow
def test_bfloat16():
  contract.agrees(*swap(case_of("documents", 65), "xla"), dtype=jnp.bfloat16)


def test_finite_differences():
  contract.matches_finite_differences(*swap(case_of("documents", 37), "xla"), step=3e-3)


@pytest.mark.slow
def test_transforms():
  contract.transforms(*swap(case_of("device", 37), "xla"))


@pytest.mark.slow
@pytest.mark.parametrize("name, axis", [("device", 0), ("by head", 2)])
def test_shards(name, axis):
  contract.shards(*swap(case_of(name, 37), "xla"), axes=(axis,) * 3)


@pytest.mark.few(1)
@pytest.mark.parametrize("lists, spec", [(1, ("x",)), (K, ("x",)), (H, (None, None, "x"))])
def test_shard_map_edge(lists, spec):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  arrays = [jnp.asarray(x) for x in example(37)]
  mask = masks.function(lambda query, key, head, batch: (query + key + head + batch) % 3 > 0)
  call = functools.partial(
    block_sparse_attention,
    table=random_table(37, 37, heads=lists),
    block_size=SIZE,
    mask=mask,
  )
  want = jax.jit(call)(*arrays)
  assert (
    contract.distance(jax.jit(functools.partial(call, sharding=sharding))(*arrays), want) < 1e-6
  )
  if spec == ("x",) and lists == 1:
    return
  placed = jax.jit(call)(*(jax.device_put(x, sharding) for x in arrays))
  assert placed.sharding.is_equivalent_to(sharding, 4)
  assert contract.distance(placed, want) < 1e-6


@pytest.mark.few(1)
@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("static", [True, False])
def test_poisoned_padding_has_no_effect(implementation, static):
  length, valid = 37, np.array([21, 0])
  ids = np.where(np.arange(length)[None, :] < valid[:, None], 0, -1).astype(np.int32)
  ids = ids if static else jnp.asarray(ids)
  table = sparse.document_table(ids, block_size=SIZE)
  rows = np.arange(length)[None, :, None, None] < valid[:, None, None, None]
  arrays = example(length)
  poisoned = [jnp.asarray(np.where(rows, x, np.nan)) for x in arrays]

  @jax.jit
  def run(*arrays):
    call = lambda *a: block_sparse_attention(
      *a, table, block_size=SIZE, mask=masks.segments(ids), implementation=implementation
    )
    return contract.value_and_grads(call, *arrays)

  out, grads = run(*poisoned)
  want = attention(*(jnp.asarray(x[:1, :21]) for x in arrays))
  np.testing.assert_allclose(out[:1, :21], want, atol=1e-5)
  np.testing.assert_array_equal(np.where(rows, 0, out), 0)
  for grad in grads:
    np.testing.assert_array_equal(np.where(rows, 0, grad), 0)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("table", ["nothing", "everything masked", "no keys", "no queries"])
def test_nothing_to_attend_gives_zeros_and_no_gradient(table):
  q, k, v = map(
    jnp.asarray, example(0 if table == "no queries" else 33, 0 if table == "no keys" else 33)
  )
  shape = 1, 1, -(-q.shape[1] // SIZE[0]), -(-k.shape[1] // SIZE[1])
  dense = np.full(shape, table == "everything masked")
  mask = masks.key_padding(0) if table == "everything masked" else None

  def call(q, k, v):
    return tuple(
      block_sparse_attention(q, k, v, dense, block_size=SIZE, mask=mask, return_lse=True)
    )

  (out, lse), pull = jax.vjp(jax.jit(call), q, k, v)
  assert out.shape == (B, q.shape[1], H, E)
  np.testing.assert_array_equal(out, 0)
  np.testing.assert_array_equal(lse, -np.inf)
  for grad in pull((jnp.ones_like(out), jnp.ones_like(lse))):
    np.testing.assert_array_equal(grad, 0)


# Properties.


@settings(max_examples=5, deadline=None)
@given(st.sampled_from([1, 64]), st.sampled_from([8]), st.integers(0, 1000))
def test_an_all_true_table_equals_dense(block_q, block_k, seed):
  q, k, v = map(jnp.asarray, example(37, 30, seed))
  table = jnp.ones((1, 1, -(-37 // block_q), -(-30 // block_k)), bool)
  got = COMPILED(q, k, v, table, block_size=(block_q, block_k), return_lse=True)
  want = DENSE(q, k, v, return_lse=True)
  np.testing.assert_allclose(got.out, want.out, atol=2e-6)
  np.testing.assert_allclose(got.lse, want.lse, atol=2e-6)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 40), st.sampled_from([0, 5, None]), st.integers(-5, 12))
def test_a_window_table_loses_nothing_of_the_mask(left, right, offset):
  q, k, v = map(jnp.asarray, example(37, 45))
  table = sparse.window_table(37, 45, SIZE, left, right, offset=offset)
  mask = masks.window(left, right, offset=offset)
  found = sparse.to_dense(table, -(-45 // SIZE[1]))
  # As arrays, so that all examples share one program.
  pairs = masks.dense(mask.dense(37, 45))
  got = COMPILED(q, k, v, jnp.asarray(found), block_size=SIZE, mask=pairs)
  np.testing.assert_allclose(got, DENSE(q, k, v, mask=pairs), atol=2e-6)
  # And holds no block that the mask could do without.
  needed = np.asarray(mask.block_table(37, 45, *SIZE)) != masks.EMPTY
  np.testing.assert_array_equal(found, needed)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_order_and_repetition_of_entries_change_nothing(seed):
  rng = np.random.default_rng(seed)
  q, k, v = map(jnp.asarray, example(37))
  table = sparse.from_dense(random_table(37, 37))
  ids, counts = map(np.array, table)
  for at in np.ndindex(counts.shape):
    ids[at][: counts[at]] = rng.permutation(ids[at][: counts[at]])
  # Each once more, and numbers of blocks that are not there.
  ids = np.concatenate([ids, np.full_like(ids, -1), np.full_like(ids, 99)], axis=-1)
  for at in np.ndindex(counts.shape):
    n = counts[at]
    ids[at][n : 2 * n] = rng.permutation(ids[at][:n])
    counts[at] = 2 * n + 1
    ids[at][2 * n] = 99
  shuffled = BlockLists(jnp.asarray(ids), jnp.asarray(counts))
  want = COMPILED(q, k, v, BlockLists(*map(jnp.asarray, table)), block_size=SIZE)
  # Longer lists are cut into other slabs, so that sums are rounded elsewhere.
  np.testing.assert_allclose(COMPILED(q, k, v, shuffled, block_size=SIZE), want, atol=1e-6)


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_lists_and_dense_tables_are_the_same_thing(seed, static):
  first, second = (random_table(50, 70, seed=seed + i) for i in range(2))
  first = first[:1]  # broadcast against the other
  give = (lambda x: x) if static else jnp.asarray
  one, other = (sparse.from_dense(give(x)) for x in (first, second))
  assert isinstance(one.ids, np.ndarray) == static
  dense = lambda table: np.asarray(sparse.to_dense(table, second.shape[3]))
  np.testing.assert_array_equal(dense(one), first)
  np.testing.assert_array_equal(dense(sparse.union(one, other)), first | second)
  np.testing.assert_array_equal(dense(sparse.intersection(one, other)), first & second)
  np.testing.assert_array_equal(dense(sparse.intersection(other, one, other)), first & second)


# Tables.


def test_document_tables_hold_what_segments_need():
  ids = np.sort(np.random.default_rng(0).integers(0, 5, (2, 50)).astype(np.int32), axis=-1)
  ids[1, 40:] = -1
  blocks = -(-50 // SIZE[1])
  needed = np.asarray(masks.segments(ids).tabulated(50, 50, *SIZE, batch=2).table) != masks.EMPTY
  for given_ids in (ids, jnp.asarray(ids)):
    table = sparse.document_table(given_ids, block_size=SIZE)
    assert isinstance(table.ids, np.ndarray) == isinstance(given_ids, np.ndarray)
    found = np.asarray(sparse.to_dense(table, blocks))
    np.testing.assert_array_equal(found & needed, needed)
    assert found.sum() <= needed.sum()
  narrow = sparse.document_table(jnp.asarray(ids), block_size=SIZE, width=2)
  assert narrow.ids.shape == (2, 1, 4, 2) and int(narrow.counts.max()) == 2


def test_dilated_and_global_tables():
  table = sparse.to_dense(sparse.dilated_table(64, 64, (8, 8), 3), 8)[0, 0]
  row, column = np.indices((8, 8))
  np.testing.assert_array_equal(table, (column <= row) & ((row - column) % 3 == 0))
  near = sparse.to_dense(sparse.dilated_table(64, 64, (8, 8), 3, reach=1, causal=False), 8)[0, 0]
  np.testing.assert_array_equal(near, np.isin(np.abs(row - column), [0, 3]))
  # A block of queries over several blocks of keys has all of its own.
  wide = sparse.to_dense(sparse.dilated_table(64, 64, (16, 8), 4), 8)[0, 0]
  assert all(wide[i, 2 * i] and wide[i, 2 * i + 1] for i in range(4))
  sinks = sparse.to_dense(sparse.global_table(64, 64, (8, 8), 9, rows=False), 8)[0, 0]
  np.testing.assert_array_equal(sinks, column < 2)
  both = sparse.to_dense(sparse.global_table(64, 64, (8, 8), 9), 8)[0, 0]
  np.testing.assert_array_equal(both, (column < 2) | (row < 2))


def test_top_k_of_pooled_scores():
  q, k, _ = map(jnp.asarray, example(50))
  scores = sparse.pooled_scores(q, k, (16, 8))
  mean = lambda x, size: np.stack(
    [np.asarray(x)[:, i : i + size].mean(1) for i in range(0, 50, size)], axis=2
  )
  wanted = np.einsum("bhnd,bhmd->bhnm", mean(q, 16), np.repeat(mean(k, 8), H // K, axis=1))
  wanted = wanted.reshape(B, K, H // K, 4, 7).mean(2) * D**-0.5
  np.testing.assert_allclose(scores, wanted, atol=1e-5)
  table = sparse.top_k_table(scores, 2, causal=(16, 8))
  assert table.ids.shape == (B, K, 4, 2)
  last = (np.arange(4) * 16 + 15)[:, None]
  open_ = np.where(np.arange(7)[None] * 8 <= last, scores, -np.inf)
  best = np.sort(np.argsort(-open_, axis=-1)[..., :2], axis=-1)
  np.testing.assert_array_equal(np.sort(table.ids, axis=-1), best)
  few = sparse.top_k_table(jnp.full((1, 1, 2, 3), -jnp.inf).at[0, 0, 0, 1].set(0.0), 9)
  np.testing.assert_array_equal(few.counts, [[[1, 0]]])
  assert int(few.ids[0, 0, 0, 0]) == 1
  # The choice has no gradient, and stops none: the whole layer is differentiable.
  total = lambda q: block_sparse_attention(
    q, k, k, sparse.top_k_table(sparse.pooled_scores(q, k, SIZE), 2), block_size=SIZE
  ).sum()
  assert np.isfinite(jax.jit(jax.grad(total))(q)).all()


def test_what_a_static_mask_empties_is_not_even_listed(monkeypatch):
  everything = sparse.from_dense(np.ones((1, 1, 8, 8), bool))
  seen = []

  def spy(operands, spec):
    seen.append(operands)
    return operands.q, jnp.zeros(operands.q.shape[:3])

  monkeypatch.setitem(sparse.IMPLEMENTATIONS, "spy", spy)
  q = jnp.zeros((1, 64, 1, 8))
  options = dict(block_size=(8, 8), mask=masks.window(7), implementation="spy")
  block_sparse_attention(q, q, q, everything, **options)
  np.testing.assert_array_equal(seen[0].ids[0, 0, 1:], [[i, i + 1] for i in range(7)])
  np.testing.assert_array_equal(seen[0].counts[0, 0], [1] + [2] * 7)


# Refusals.


def test_calls_that_cannot_be_served_say_why():
  q, k, v = map(jnp.asarray, example(37))
  table = random_table(37, 37)
  call = functools.partial(block_sparse_attention, q, k, v)
  ids = jnp.zeros((1, 1, 3, 2), jnp.int32)
  for options, message in [
    (dict(table=table[:, :, :2]), r"\(2, 2, 2\), expected \[2 or 1, 2 or 4 or 1, 3\]"),
    (dict(table=table[:, :, :, :2]), "has 2 key blocks, the keys make 5"),
    (dict(table=table[:, [0, 0, 0]]), r"expected \[2 or 1"),
    (dict(table=table.astype(int)), "must be bool"),
    (dict(table=BlockLists(ids, ids[..., 0, None])), "counts of a block table .* rank 3"),
    (dict(table=BlockLists(ids, ids[:, :, :2, 0])), "must be counts"),
    (dict(table=table, block_size=(16, 0)), "block_size .* positive"),
    (dict(table=table, block_size=16), "block_size must be .*: got 16"),
    (dict(table=table, softcap=0.0), "softcap must be positive: got 0.0"),
    (dict(table=table, mask=masks.segments(np.zeros((1, 5), int))), "mask q_ids has shape"),
  ]:
    with pytest.raises(ValueError, match=message):
      call(**(dict(block_size=SIZE) | options))
  for arrays, message in [
    ((q[0], k, v), "q must be .batch, length, heads, width.: got shape"),
    ((q, k[..., :3], v), r"k must be \[2, keys, key heads, 8\]"),
    ((q, k, v[:, :5]), r"v must be .*got \(2, 5, 2, 6\)"),
    ((q[:, :, :3], k, v), "must divide"),
    ((q, k.astype(jnp.bfloat16), v), "one dtype"),
    ((q.astype(int), k, v), "floating point"),
  ]:
    with pytest.raises(ValueError, match=message):
      block_sparse_attention(*arrays, table, block_size=SIZE)
  with pytest.raises(ValueError, match=r"ids must be int .*got float32\[1, 1, 3, 2\]"):
    selected_block_attention(q, k, v, ids.astype(jnp.float32), block_size=SIZE)
  with pytest.raises(NotImplementedError, match="no implementation 'splash'"):
    call(table, block_size=SIZE, implementation="splash")
  for name in set(sparse.IMPLEMENTATIONS) - {"reference", "xla"}:
    with pytest.raises(NotImplementedError, match=f"{name} serves .*this platform is cpu"):
      call(table, block_size=SIZE, implementation=name)
  with pytest.raises(ValueError, match="k must be at least 1"):
    sparse.top_k_table(jnp.zeros((1, 1, 2, 2)), 0)
  with pytest.raises(ValueError, match="stride must be at least 1"):
    sparse.dilated_table(8, 8, (4, 4), 0)
  with pytest.raises(ValueError, match="equally many query blocks"):
    sparse.union(BlockLists(ids, ids[..., 0]), BlockLists(ids[:, :, :2], ids[:, :, :2, 0]))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_platform_serves_every_call(platform):
  q = jax.ShapeDtypeStruct((1, 37, 2, 8), jnp.float32)
  call = lambda q: block_sparse_attention(q, q, q, random_table(37, 37, 1, 1), block_size=SIZE)
  with dispatch.lowering_for(platform):
    assert jax.eval_shape(call, q).shape == q.shape
