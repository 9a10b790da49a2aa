"""KV caches: decode attention under the contract, scores, budgets, and what eviction must keep."""

import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import cache
from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops.attention import attention
from h2g.ops.cache import decode_attention
from tests.ops import contract
from tests.ops.contract import numbers

B, H, K, D, E = 2, 4, 2, 8, 6

DECODE = jax.jit(decode_attention, static_argnames=("return_lse", "implementation", "softcap"))
DENSE = jax.jit(attention)
WINDOW_MASS = jax.jit(cache.window_mass, static_argnames=("pool", "pooling"))


def example(rows, seed=0):
  """q, k, v of a cache, heads before rows."""
  shapes = ((H, D), (K, rows, D), (K, rows, E))
  return [numbers(B, *shape, seed=seed + i) for i, shape in enumerate(shapes)]


def prefill(rows, seed=0):
  """q, k, v as attention takes them."""
  shapes = ((rows, H, D), (rows, K, D), (rows, K, E))
  return [jnp.asarray(numbers(B, *shape, seed=seed + i)) for i, shape in enumerate(shapes)]


def ragged(rows, seed=0):
  """[B, K] lengths, one of them 0 and one of them all rows."""
  lengths = np.random.default_rng((seed, rows)).integers(0, rows + 1, (B, K)).astype(np.int32)
  lengths[0, 0], lengths[1, 1] = 0, rows
  return lengths


def some_rows(rows, width, seed=0):
  """[B, K, width] row numbers with some that name nothing."""
  return np.random.default_rng((seed, rows)).integers(-2, rows + 2, (B, K, width)).astype(np.int32)


def case_of(name, rows):
  """(case, arrays) of decode attention."""
  arrays, lengths, options = example(rows), None, {}
  if name == "ragged":
    lengths = ragged(rows)
  elif name == "by entry":
    lengths, options = np.array([rows // 2, rows], np.int32), dict(softcap=1.5)
  elif name == "ids":
    options = dict(ids=jnp.asarray(some_rows(rows, rows // 2 + 1)))
    lengths = ragged(rows // 2 + 1)
  elif name == "sinks":
    lengths, arrays = ragged(rows), [*arrays, numbers(H, seed=5)]

  def case(implementation, q, k, v, *sinks):
    found = decode_attention(
      q,
      k,
      v,
      None if lengths is None else jnp.asarray(lengths),
      sinks=sinks[0] if sinks else None,
      return_lse=True,
      implementation=implementation,
      **options,
    )
    return contract.with_lse(found)

  return jax.jit(case, static_argnums=0), arrays


def swap(pair, implementation):
  case, arrays = pair
  return case, implementation, arrays


@pytest.mark.few(2)
@pytest.mark.parametrize(
  "name, rows",
  [("all", 1), ("ragged", 63), ("by entry", 65), ("ids", 65), ("sinks", 63), ("ragged", 1025)],
)
def test_agrees_with_float64(name, rows):
  contract.agrees(*swap(case_of(name, rows), "xla"))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["sinks", "ids"])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_every_form_agrees_with_float64(name, platform, monkeypatch):
  """Head by head on a CPU; on accelerators blocks of rows of all heads."""
  monkeypatch.setattr(cache.xla, "_ALONE", 1.0)
  monkeypatch.setattr(cache.xla, "_BLOCK", dict(cpu=20, gpu=20))
  with dispatch.lowering_for(platform):
    contract.agrees(*swap(case_of(name, 65), "xla"))


@pytest.mark.few(1)
@pytest.mark.smoke
@pytest.mark.parametrize("name", ["sinks", "ids"])
def test_bfloat16(name):
  contract.agrees(*swap(case_of(name, 65), "xla"), dtype=jnp.bfloat16)


@pytest.mark.slow
def test_finite_differences_and_transforms():
  contract.matches_finite_differences(*swap(case_of("sinks", 37), "xla"), step=3e-3)
  contract.transforms(*swap(case_of("sinks", 37), "xla"))


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, 0, 0, None), (1, 1, 1, 0)])
def test_shards(axes):
  contract.shards(*swap(case_of("sinks", 37), "xla"), axes=axes)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [("x",), (None, "x")])
def test_shard_map_edge(spec):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  arrays = [jnp.asarray(x) for x in example(37)]
  call = functools.partial(
    decode_attention, lengths=jnp.asarray(ragged(20)), ids=jnp.asarray(some_rows(37, 20))
  )
  want = jax.jit(call)(*arrays)
  assert (
    contract.distance(jax.jit(functools.partial(call, sharding=sharding))(*arrays), want) < 1e-6
  )
  placed = call(*(jax.device_put(x, sharding) for x in arrays))
  assert placed.sharding.is_equivalent_to(sharding, 3)
  assert contract.distance(placed, want) < 1e-6


@pytest.mark.few(1)
@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("by_ids", [False, True])
def test_poison_behind_the_lengths_has_no_effect(implementation, by_ids):
  q, k, v = example(37)
  kept = np.arange(37)[None, None] < ragged(37)[..., None]
  options = dict(lengths=jnp.asarray(ragged(37)))
  if by_ids:
    order = np.argsort(~kept, axis=-1, kind="stable")[..., ::-1].astype(np.int32)
    # Some of what is kept, and numbers that name nothing, one of them past the end.
    ids = np.where(np.take_along_axis(kept, order, -1), order, -1)
    options = dict(ids=jnp.asarray(np.concatenate([ids, np.full((B, K, 1), 37)], -1), jnp.int32))
  poisoned = [np.where(kept[..., None], x, np.nan) for x in (k, v)]
  clean = [np.where(kept[..., None], x, 0) for x in (k, v)]
  call = lambda *a: decode_attention(*a, implementation=implementation, **options)
  run = jax.jit(lambda *a: contract.value_and_grads(call, *a))
  out, grads = run(*map(jnp.asarray, (q, *poisoned)))
  want, wanted = run(*map(jnp.asarray, (q, *clean)))
  np.testing.assert_array_equal(out, want)
  jax.tree.map(np.testing.assert_array_equal, grads, wanted)
  np.testing.assert_array_equal(out[0, :2], 0)  # a head that has kept nothing
  for grad in grads[1:]:
    np.testing.assert_array_equal(np.asarray(grad)[~kept], 0)


def test_no_rows_give_zeros():
  q = jnp.asarray(numbers(B, H, D))
  out, lse = decode_attention(q, jnp.zeros((B, K, 0, D)), jnp.zeros((B, K, 0, E)), return_lse=True)
  np.testing.assert_array_equal(out, np.zeros((B, H, E)))
  np.testing.assert_array_equal(lse, -np.inf)


# Eviction.


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_compaction_then_decode_equals_masked_attention(seed):
  q, k, v = prefill(33, seed)
  rng = np.random.default_rng(seed)
  scores = rng.standard_normal((B, K, 33)).astype(np.float32)
  budget = jnp.asarray(rng.integers(0, 34, (B, K)), jnp.int32)
  kept = cache.keep(jnp.asarray(scores), budget)
  np.testing.assert_array_equal(kept.counts, budget)
  small = cache.compact(cache.fill(k, v), kept)
  got = DECODE(q[:, -1], small.k, small.v, small.lengths)
  rank = np.argsort(np.argsort(-scores, axis=-1), axis=-1)
  chosen = np.repeat(rank < np.asarray(budget)[..., None], H // K, axis=1)
  want = DENSE(q[:, -1:], k, v, mask=jnp.asarray(chosen[:, :, None]))[:, 0]
  np.testing.assert_allclose(got, want, atol=2e-6)
  # The same without moving a row, and in another order.
  whole = cache.fill(k, v)
  np.testing.assert_allclose(DECODE(q[:, -1], whole.k, whole.v, ids=kept.ids), want, atol=2e-6)
  order = jnp.asarray(rng.permutation(33))
  ids = kept.ids[..., order]
  np.testing.assert_allclose(DECODE(q[:, -1], whole.k, whole.v, ids=ids), want, atol=2e-6)
  # Positions tell where each row stood.
  np.testing.assert_array_equal(small.positions, kept.ids)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000))
def test_a_full_budget_evicts_nothing(seed):
  q, k, v = prefill(33, seed)
  whole = cache.fill(k, v)
  for scores in (WINDOW_MASS(q[:, -4:], k), cache.key_norm(k), cache.recency(33)):
    small = cache.compact(whole, cache.keep(scores, 33))
    jax.tree.map(np.testing.assert_array_equal, small, whole)
  budgets = cache.adaptive_budgets(cache.key_norm(k), 33)
  np.testing.assert_array_equal(budgets, 33)
  got = DECODE(q[:, -1], whole.k, whole.v, whole.lengths)
  np.testing.assert_allclose(got, DENSE(q, k, v, mask=masks.causal())[:, -1], atol=2e-6)


def test_parts_of_a_cache_merge_by_their_log_sum_exp():
  q, k, v = map(jnp.asarray, example(65))
  whole = DECODE(q, k, v, return_lse=True)
  parts = [DECODE(q, k[:, :, a:b], v[:, :, a:b], return_lse=True) for a, b in ((0, 20), (20, 65))]
  lse = jnp.logaddexp(parts[0].lse, parts[1].lse)
  out = sum(p.out * jnp.exp(p.lse - lse)[..., None] for p in parts)
  np.testing.assert_allclose(lse, whole.lse, atol=1e-6)
  np.testing.assert_allclose(out, whole.out, atol=1e-6)


def test_token_by_token_equals_causal_attention():
  q, k, v = prefill(12)
  want = DENSE(q, k, v, mask=masks.causal())
  state = cache.fill(k[:, :5], v[:, :5], capacity=12)
  step = jax.jit(cache.append)
  for t in range(5, 12):
    state = step(state, k[:, t], v[:, t])
    out = DECODE(q[:, t], state.k, state.v, state.lengths)
    np.testing.assert_allclose(out, want[:, t], atol=2e-6)
  np.testing.assert_array_equal(state.positions, np.broadcast_to(np.arange(12), (B, K, 12)))
  # No room: the new row is dropped.
  after = step(state, k[:, 0], v[:, 0])
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_sinks_and_a_ring_of_recent_rows():
  q, k, v = prefill(20)
  state = cache.empty(B, K, 7, D, E)
  step = jax.jit(functools.partial(cache.append, overwrite_after=2))
  for t in range(20):
    state = step(state, k[:, t], v[:, t], position=t)
  np.testing.assert_array_equal(np.sort(state.positions[0, 0]), [0, 1, 15, 16, 17, 18, 19])
  kept = cache.keep(cache.sink_recent(20, sinks=2), 7)
  assert kept.ids.shape == (1, 1, 7)
  small = cache.compact(cache.fill(k, v), kept, capacity=9)
  assert small.k.shape == (B, K, 9, D)
  got = DECODE(q[:, -1], state.k, state.v, state.lengths)
  np.testing.assert_allclose(got, DECODE(q[:, -1], small.k, small.v, small.lengths), atol=2e-6)


def test_ragged_prefills():
  _, k, v = prefill(12)
  lengths = jnp.array([5, 12])
  state = cache.fill(k, v, lengths=lengths, capacity=14)
  np.testing.assert_array_equal(state.lengths, [[5, 5], [12, 12]])
  kept = cache.keep(cache.recency(12), 3, lengths=lengths)
  np.testing.assert_array_equal(kept.ids[:, 0], [[2, 3, 4], [9, 10, 11]])
  few = cache.keep(jnp.zeros((B, K, 12)), 8, lengths=lengths)
  np.testing.assert_array_equal(few.counts, [[5, 5], [8, 8]])  # of equal ones the first
  np.testing.assert_array_equal(few.ids[0, 0], [0, 1, 2, 3, 4, -1, -1, -1])
  small = cache.compact(state, few)
  np.testing.assert_array_equal(small.lengths, few.counts)
  np.testing.assert_array_equal(small.k[0, 0, 5:], 0)
  grown = cache.append(small, k[:, 0], v[:, 0])
  np.testing.assert_array_equal(grown.lengths, [[6, 6], [8, 8]])
  np.testing.assert_array_equal(grown.positions[0, 0, :6], [0, 1, 2, 3, 4, 5])


# Budgets.


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(any),
  st.integers(0, 500),
  st.sampled_from([None, 60, 500]),
)
def test_apportioned_integers_add_up(shares, total, limit):
  if limit is not None and total > limit * len(shares):
    with pytest.raises(ValueError, match=r"more than .* parts"):
      cache.apportion(shares, total, limit)
    return
  found = cache.apportion(shares, total, limit)
  assert found.sum() == total and (found >= 0).all()
  assert limit is None or (found <= limit).all()
  if limit is None:
    assert (np.abs(found - total * np.array(shares) / np.sum(shares)) < 1 + 1e-6).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 300), st.sampled_from([1.0, 2.0, 20.0]))
def test_pyramid_and_uniform_budgets(layers, total, steepness):
  found = cache.pyramid_budgets(total, layers, steepness=steepness)
  assert found.sum() == total and (np.diff(found) <= 0).all()
  even = cache.uniform_budgets(total, layers)
  assert even.sum() == total and even.max() - even.min() <= 1
  if steepness == 1:
    np.testing.assert_array_equal(found, even)
  limited = cache.pyramid_budgets(total, layers, steepness=steepness, limit=-(-total // layers) + 1)
  assert limited.sum() == total and limited.max() <= -(-total // layers) + 1


ADAPTIVE = jax.jit(cache.adaptive_budgets, static_argnames=("budget", "floor"))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0, 5, 17]), st.sampled_from([0.0, 0.5, 1.0]))
def test_adaptive_budgets_take_the_largest_of_all_heads(seed, budget, floor):
  scores = np.random.default_rng(seed).standard_normal((B, K, 17)).astype(np.float32)
  scores[:, 0] += 1
  found = np.asarray(ADAPTIVE(jnp.asarray(scores), budget, floor=floor))
  np.testing.assert_array_equal(found.sum(-1), K * budget)
  assert (found >= int(floor * budget)).all() and (found <= 17).all()
  if floor == 0:
    order = np.argsort(-scores.reshape(B, -1), axis=-1)[:, : K * budget] // 17
    np.testing.assert_array_equal(found, [[(x == h).sum() for h in range(K)] for x in order])
  lengths = jnp.array([3, 17])
  fewer = np.asarray(ADAPTIVE(jnp.asarray(scores), budget, floor=floor, lengths=lengths))
  np.testing.assert_array_equal(fewer.sum(-1), [min(K * budget, K * 3), K * budget])


# Scores.


def weights_of(q, k, offset):
  """[B, H, T, S] causal softmax in NumPy."""
  k = np.repeat(np.asarray(k, np.float64), H // K, axis=2)
  logits = np.einsum("bthd,bshd->bhts", np.asarray(q, np.float64), k) * D**-0.5
  t, s = np.indices(logits.shape[2:])
  logits = np.where(s <= t + offset, logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def by_key_head(x):
  return x.reshape(B, K, H // K, *x.shape[2:]).mean(2)


def test_accumulated_mass_is_the_sum_of_columns():
  q, k, _ = prefill(21)
  weights = weights_of(q, k, 0)
  np.testing.assert_allclose(
    jax.jit(cache.accumulated_mass)(q, k), by_key_head(weights.sum(2)), atol=1e-5
  )
  mean = by_key_head(weights.sum(2)) / np.arange(21, 0, -1)
  np.testing.assert_allclose(
    jax.jit(functools.partial(cache.accumulated_mass, mean=True))(q, k), mean, atol=1e-5
  )


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_window_mass_is_that_of_the_last_queries_smoothed(pooling):
  q, k, _ = prefill(21)
  got = np.asarray(WINDOW_MASS(q[:, -4:], k, pool=3, pooling=pooling))
  mass = by_key_head(weights_of(q[:, -4:], k, 17).mean(2))[..., :17]
  side = np.pad(mass, ((0, 0), (0, 0), (1, 1)))
  parts = np.stack([side[..., i : i + 17] for i in range(3)])
  np.testing.assert_allclose(
    got[..., :17], parts.mean(0) if pooling == "mean" else parts.max(0), atol=1e-6
  )
  assert (got[..., 17:] == np.inf).all()
  # An entry that is shorter, with poison behind it, scores as if it were alone.
  poisoned = k.at[0, 15:].set(jnp.nan)
  ends = jnp.stack([q[0, 11:15], q[1, -4:]])
  both = WINDOW_MASS(ends, poisoned, pool=3, pooling=pooling, lengths=jnp.array([15, 21]))
  alone = WINDOW_MASS(ends[:1], k[:1, :15], pool=3, pooling=pooling)
  np.testing.assert_allclose(both[0, :, :15], alone[0], atol=1e-6)
  assert (np.asarray(both[0, :, 15:]) == -np.inf).all()
  np.testing.assert_allclose(both[1], got[1], atol=1e-6)


def test_other_scores():
  _, k, _ = prefill(9)
  norm = -np.linalg.norm(np.asarray(k), axis=-1).swapaxes(1, 2)
  np.testing.assert_allclose(cache.key_norm(k), norm, rtol=1e-6)
  kept = cache.keep(cache.sink_recent(9, sinks=2), np.array([5, 2]))
  np.testing.assert_array_equal(kept.ids[0], [[0, 1, 6, 7, 8], [0, 1, -1, -1, -1]])
  # Scores combine: what is marked is kept whatever the others say.
  pinned = cache.key_norm(k).at[:, :, 4].set(jnp.inf)
  assert (np.asarray(cache.keep(pinned, 1).ids) == 4).all()


# Refusals.


def test_calls_that_cannot_be_served_say_why():
  q, k, v = map(jnp.asarray, example(9))
  for change, message in [
    (dict(q=q[:, None]), r"q must be \[B, H, D\], one query per head: got shape \(2, 1, 4, 8\)"),
    (dict(k=k[..., :3]), r"k must be \[2, K, C, 8\] for q of shape .*: got \(2, 2, 9, 3\)"),
    (dict(v=v[:, :, :5]), r"\[B, K, C\] = \(2, 2, 9\) of k: got \(2, 2, 5, 6\)"),
    (dict(q=q.astype(jnp.bfloat16)), "one dtype: got bfloat16, float32, float32"),
    (dict(q=q.astype(int)), "q must be floating point: got int32"),
    (dict(q=q[:, :3]), "must divide that of heads: got 2 and 3"),
    (dict(sinks=jnp.zeros(2)), r"sinks must be \[4\], one per head: got shape \(2,\)"),
    (dict(softcap=-1.0), "softcap must be positive: got -1.0"),
    (dict(lengths=jnp.zeros((B, H), int)), r"lengths must be int \[2\] or \[2, 2\]: got int32"),
    (dict(lengths=5), "lengths must be an int array, .*: got 5"),
    (dict(ids=jnp.zeros((B, K))), r"ids must be int \[2, 2, n\]: got float32"),
  ]:
    with pytest.raises(ValueError, match=message):
      decode_attention(**(dict(q=q, k=k, v=v) | change))
  with pytest.raises(NotImplementedError, match="no implementation 'paged': there are"):
    decode_attention(q, k, v, implementation="paged")
  rows = jnp.moveaxis(k, 1, 2)
  state = cache.fill(rows, rows)
  scores = cache.key_norm(rows)
  for call, message in [
    (lambda: cache.keep(scores[0], 3), r"scores must be \[B, K, S\]: got shape"),
    (lambda: cache.keep(scores, -1), "must not be negative: got -1"),
    (lambda: cache.keep(scores, np.zeros((3,), int)), r"disagree: got \(2, 2\), \(3,\)"),
    (lambda: cache.keep(scores, 1.5), r"budget must be an int, .*: got float64"),
    (lambda: cache.compact(state, cache.keep(scores[:, [0, 0, 0]], 3)), r"\[B, K\] = \(2, 3\)"),
    (lambda: cache.compact(state, cache.keep(scores, 3), capacity=2), "capacity 2 is less than"),
    (lambda: cache.fill(rows, rows, capacity=3), "capacity 3 is less than the 9 rows"),
    (lambda: cache.fill(rows, rows[:, :3]), r"v must be \[B, S, K, E\]"),
    (lambda: cache.append(state, k[:, :, 0], v[:, :, 0]), r"v must be \(2, 2, 8\)"),
    (lambda: cache.append(state, k[:, :, 0], k[:, :, 0], overwrite_after=9), "from 0 to 8: got 9"),
    (lambda: cache.window_mass(rows, rows, pool=4), "pool must be odd and positive: got 4"),
    (lambda: cache.window_mass(rows, rows, pooling="sum"), "pooling must be"),
    (lambda: cache.window_mass(rows, rows[:, :3]), "more than the 3 rows of k"),
    (lambda: cache.apportion([0, 0], 3), "shares are all 0"),
    (lambda: cache.apportion([1, -1], 3), "not negative"),
    (lambda: cache.apportion([1, 1], -3), "total must not be negative: got -3"),
    (lambda: cache.pyramid_budgets(9, 3, steepness=0.5), "steepness must be at least 1"),
    (lambda: cache.adaptive_budgets(scores, 10), "between 0 and the number of rows 9: got 10"),
    (lambda: cache.adaptive_budgets(scores, 3, floor=2), r"floor must be in \[0, 1\]: got 2"),
  ]:
    with pytest.raises(ValueError, match=message):
      call()


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_platform_serves_every_call(platform):
  q, k = (
    jax.ShapeDtypeStruct((1, 2, 8), jnp.float32),
    jax.ShapeDtypeStruct((1, 1, 9, 8), jnp.float32),
  )
  with dispatch.lowering_for(platform):
    assert jax.eval_shape(decode_attention, q, k, k).shape == q.shape
