"""Attention: the contract over masks and forms of the sweep; statistics, shards, refusals."""

import functools
import subprocess
import sys

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops.attention import attention
from h2g.ops.attention import cudnn
from h2g.ops.attention import IMPLEMENTATIONS
from h2g.ops.attention import plan
from h2g.ops.attention.call import Operands
from h2g.ops.attention.call import Spec
from tests.ops import contract
from tests.ops.contract import numbers

B, H, K, D, E = 2, 4, 2, 8, 5


def example(num_queries, num_keys, seed=0):
  shapes = ((num_queries, H, D), (num_keys, K, D), (num_keys, K, E))
  return [numbers(B, *shape, seed=seed + i) for i, shape in enumerate(shapes)]


def segment_ids(length, seed=0):
  ids = np.random.default_rng(seed).integers(-1, 4, (B, length))
  return jnp.asarray(np.sort(ids, 1), jnp.int32)


def bools(*shape, share=0.4):
  return jnp.asarray(np.random.default_rng(shape).random(shape) < share)


# How the sweep is cut up: limits of `plan` that lead small examples through each of its forms.
FORMS = dict(
  whole={},
  unrolled=dict(
    _block_sizes=lambda n: (16, 16),
    _TILE_BYTES=1 << 12,
    _LARGEST_TILE_BYTES=1 << 14,
    _WIDE=0,
    _KEYS=32,
  ),
  looped=dict(
    _block_sizes=lambda n: (16, 16),
    _TILE_BYTES=1 << 12,
    _LARGEST_TILE_BYTES=1 << 14,
    _WIDE=0,
    _MAX_TASKS=0,
  ),
  lanes=dict(_block_sizes=lambda n: (16, 16), _WIDE=0, _MAX_TASKS=0, _SMALL=0),
  dynamic=dict(
    _block_sizes=lambda n: (16, 16),
    _TILE_BYTES=1 << 12,
    _LARGEST_TILE_BYTES=1 << 14,
    _WIDE=0,
    _SMALL=0,
  ),
)


@pytest.fixture
def form(monkeypatch):
  """Switches to a form of the sweep by name."""

  def switch(name):
    for key, value in FORMS[name].items():
      monkeypatch.setattr(plan, key, value)

  return switch


def slope_hook(logits, indices, slopes, table):
  distance = (indices.query - indices.key).astype(logits.dtype)
  return logits - slopes[indices.head] * jnp.abs(distance) * 0.1 + table[indices.query, indices.key]


# name: (queries, keys, forms, options, names and arrays of further differentiable arguments)
CASES = dict(
  one=(1, 1, ("whole",), {}, dict(sinks=(H,))),  # without a sink dq would be zero
  plain=(63, 65, ("whole", "lanes"), dict(scale=0.5), {}),
  decode=(1, 257, ("whole",), dict(mask=masks.causal(256)), {}),
  causal=(65, 65, ("unrolled", "looped"), dict(mask=masks.causal()), {}),
  window=(80, 80, ("whole", "unrolled"), dict(mask=masks.window(20)), {}),
  two_sided=(40, 70, ("unrolled",), dict(mask=masks.window(9, 4, offset=30)), {}),
  prefix=(50, 50, ("dynamic",), dict(mask=masks.causal() | masks.prefix(20)), {}),
  segments=(70, 70, ("dynamic",), dict(mask=masks.causal() & masks.segments(segment_ids(70))), {}),
  padding=(33, 40, ("lanes",), dict(mask=masks.key_padding(jnp.array([0, 21], jnp.int32))), {}),
  dense=(33, 40, ("dynamic",), dict(mask=bools(B, H, 33, 40)), {}),
  table=(64, 64, ("unrolled",), dict(mask=masks.block_table(bools(1, H, 4, 4), 16, 16)), {}),
  odd_table=(50, 60, ("looped",), dict(mask=masks.block_table(bools(B, 1, 5, 6), 11, 11)), {}),
  bias=(33, 40, ("unrolled", "looped"), dict(mask=masks.causal(7)), dict(bias=(1, H, 33, 40))),
  bias_keys=(33, 40, ("looped",), {}, dict(bias=(B, 1, 1, 40))),
  bias_shared=(33, 40, ("lanes",), {}, dict(bias=(1, 1, 33, 40))),
  softcap=(33, 40, ("unrolled",), dict(softcap=1.5), dict(sinks=(H,), bias=(1, 1, 1, 40))),
  hook=(
    40,
    40,
    ("unrolled", "looped"),
    dict(mask=masks.causal(), logits_fn=slope_hook),
    dict(logits_args=((H,), (40, 40))),
  ),
  dropout=(
    40,
    40,
    ("unrolled",),
    dict(mask=masks.causal(), dropout_rate=0.3, dropout_key=jax.random.key(1)),
    dict(sinks=(H,)),
  ),
)


def case_of(name, **statistics):
  """(case for the contract, its arrays)."""
  num_queries, num_keys, _, options, further = CASES[name]
  shapes, tree = jax.tree.flatten(
    further, is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int)
  )

  @functools.partial(jax.jit, static_argnums=0)
  def case(implementation, q, k, v, *rest):
    rest = jax.tree.unflatten(tree, rest)
    return attention(q, k, v, **options, **rest, **statistics, implementation=implementation)

  return case, [*example(num_queries, num_keys), *(numbers(*shape, seed=9) for shape in shapes)]


@pytest.mark.few("causal-looped", "bias-unrolled")
@pytest.mark.parametrize(
  "name, how", [(name, how) for name, case in CASES.items() for how in case[2]]
)
def test_agrees_with_float64(name, how, form):
  form(how)
  case, arrays = case_of(name)
  contract.agrees(case, "xla", arrays)


@pytest.mark.smoke
def test_bfloat16_and_auto():
  case, arrays = case_of("bias")
  contract.agrees(case, None, arrays, dtype=jnp.bfloat16)


@pytest.mark.slow
def test_finite_differences_transforms_and_shards(form):
  form("unrolled")
  case, arrays = case_of("softcap")
  contract.matches_finite_differences(case, "xla", arrays)
  contract.transforms(case, "xla", arrays)
  contract.shards(case, "xla", arrays, axes=(2, 2, 2, None, 0))  # heads


def flat_statistics(result):
  """Everything differentiable in one array; -inf stands for nothing attended."""
  parts = (result.out, result.lse, result.column_mass, result.entropy)
  return jnp.concatenate([jnp.where(x > -1e9, x, 0.0).ravel() for x in parts])


WANTED = dict(return_lse=True, return_column_mass=True, return_entropy=True, top_keys=3)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, how",
  [("softcap", "looped"), ("dropout", "unrolled"), ("padding", "dynamic"), ("window", "unrolled")],
)
def test_statistics(name, how, form):
  form(how)
  case, arrays = case_of(name, **WANTED)
  contract.agrees(lambda *a: flat_statistics(case(*a)), "xla", arrays)
  got, want = (
    case(implementation, *map(jnp.asarray, arrays)) for implementation in ("xla", "reference")
  )
  np.testing.assert_allclose(got.top_keys.values, want.top_keys.values, rtol=1e-4, atol=1e-6)
  sure = np.asarray(want.top_keys.values) > 0
  assert (np.asarray(got.top_keys.ids) == np.asarray(want.top_keys.ids))[sure].mean() > 0.99
  np.testing.assert_array_equal(
    np.asarray(got.top_keys.ids) == -1, np.asarray(want.top_keys.ids) == -1
  )


def test_statistics_mean_what_they_say():
  q, k, v = map(jnp.asarray, example(9, 12))
  result = attention(q, k, v, mask=masks.causal(3), **WANTED)
  logits = np.einsum("bthd,bshd->bhts", q, np.repeat(k, H // K, 2)) * D**-0.5
  logits = np.where(np.asarray(masks.causal(3).dense(9, 12)), logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(result.lse, np.log(np.exp(logits).sum(-1)), rtol=1e-5)
  np.testing.assert_allclose(result.column_mass, weights.sum(2), rtol=1e-5, atol=1e-6)
  entropy = -(weights * np.log(np.maximum(weights, 1e-30))).sum(-1)
  np.testing.assert_allclose(result.entropy, entropy, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(result.top_keys.values, -np.sort(-weights, -1)[..., :3], rtol=1e-5)
  np.testing.assert_array_equal(
    result.top_keys.ids, np.argsort(-weights, -1, kind="stable")[..., :3]
  )
  assert attention(q, k, v).shape == (B, 9, H, E)


@pytest.mark.few("whole", "dynamic")
@pytest.mark.parametrize("how", ["whole", "unrolled", "looped", "dynamic"])
def test_nothing_to_attend_gives_zeros_and_poison_stays_where_it_is(how, form):
  form(how)
  lengths = jnp.array([0, 37], jnp.int32)
  ids = jnp.where(jnp.arange(50)[None] < lengths[:, None], 0, -1).astype(jnp.int32)
  for mask in (masks.segments(ids), masks.key_padding(lengths) & masks.query_padding(lengths)):
    q, k, v = (jnp.asarray(x) for x in example(50, 50))
    outside = (ids < 0)[:, :, None, None]
    poisoned = [jnp.where(outside, jnp.nan, x) for x in (q, k, v)]

    @jax.jit
    def run(q, k, v, mask=mask):
      f = lambda q, k, v: attention(q, k, v, mask=mask, return_lse=True)
      result, pull = jax.vjp(f, q, k, v)
      return result, pull(jax.tree.map(jnp.ones_like, result))

    (clean, clean_grads), (result, grads) = run(q, k, v), run(*poisoned)
    for got, want in zip(jax.tree.leaves((result, grads)), jax.tree.leaves((clean, clean_grads))):
      np.testing.assert_array_equal(got, want)
    assert not np.any(np.where(outside, result.out, 0.0))
    assert np.all(np.asarray(result.lse[0]) == -np.inf)
    for grad in grads:
      assert not np.any(np.where(outside, grad, 0.0))


def test_empty_axes():
  q, k, v = map(jnp.asarray, example(5, 6))
  for a, b, c in ((q[:, :0], k, v), (q, k[:, :0], v[:, :0]), (q[:0], k[:0], v[:0])):
    result = attention(a, b, c, mask=masks.causal(), return_lse=True)
    assert result.out.shape == (*a.shape[:3], E) and not np.any(result.out)
    assert np.all(np.asarray(result.lse) == -np.inf)
  assert attention(q, k, v[..., :0]).shape == (B, 5, H, 0)
  mean = attention(q[..., :0], k[..., :0], v, scale=1.0)  # no logit differs from another
  np.testing.assert_allclose(mean[0, 3, 0], v[0, :, 0].mean(0), atol=1e-6)


@pytest.mark.slow
def test_a_bias_may_mask(form):
  form("unrolled")
  q, k, v = map(jnp.asarray, example(33, 40))
  allowed = bools(1, H, 33, 40).at[0, 0, 3].set(False)
  bias = jnp.where(allowed, 0.0, -jnp.inf)
  f = lambda q, bias: attention(q, k, v, bias=bias)
  out, pull = jax.vjp(f, q, bias)
  np.testing.assert_allclose(out, attention(q, k, v, mask=allowed), atol=1e-6)
  assert not np.any(out[:, 3, 0])
  assert all(np.isfinite(x).all() for x in pull(out))


@pytest.mark.few("looped")
@pytest.mark.parametrize("how", ["unrolled", "looped"])
def test_hook_that_closes_over_arrays(how, form):
  form(how)
  q, k, v = map(jnp.asarray, example(40, 40))
  slopes, table = jnp.asarray(numbers(H)), jnp.asarray(numbers(40, 40))

  def given(q, slopes, table):
    return attention(q, k, v, logits_fn=slope_hook, logits_args=(slopes, table))

  def closed(q, slopes, table):
    return attention(q, k, v, logits_fn=lambda x, ids: slope_hook(x, ids, slopes, table))

  for got, want in zip(
    jax.tree.leaves(contract.value_and_grads(closed, q, slopes, table)),
    jax.tree.leaves(contract.value_and_grads(given, q, slopes, table)),
  ):
    assert contract.distance(got, want) < 1e-5


# Shards.


def _mesh():
  return Mesh(np.array(jax.devices()[:2]), ("x",))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, None, "x")])
def test_shard_map_edge(spec, form):
  form("unrolled")
  sharding = NamedSharding(_mesh(), spec)
  mask = masks.function(lambda q, k, h, b: (q + h + b) % 3 != k % 3) & masks.segments(
    segment_ids(40)
  )
  mask = mask & masks.dense(bools(1, H, 40, 40, share=0.8))
  options = dict(mask=mask, logits_fn=slope_hook, dropout_rate=0.2, dropout_key=jax.random.key(3))
  options.update(WANTED)

  def case(q, k, v, bias, sinks, slopes, table, sharding=None):
    more = dict(bias=bias, sinks=sinks, logits_args=(slopes, table), sharding=sharding)
    return flat_statistics(attention(q, k, v, **more, **options))

  arrays = [*example(40, 40), numbers(B, 1, 1, 40), numbers(H), numbers(H), numbers(40, 40)]
  arrays = [jnp.asarray(x) for x in arrays]
  run = lambda f: jax.jit(lambda *a: contract.value_and_grads(f, *a))(*arrays)
  got, want = run(functools.partial(case, sharding=sharding)), run(case)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert contract.distance(a, b) < 1e-5


@pytest.mark.smoke
def test_layout_is_read_from_arrays_and_from_the_mesh_in_context():
  q, k, v = map(jnp.asarray, example(12, 12))
  want = attention(q, k, v, mask=masks.causal())
  mesh, spec = _mesh(), PartitionSpec(None, None, "x")
  placed = jax.device_put((q, k, v), NamedSharding(mesh, spec))
  got = attention(*placed, mask=masks.causal())
  assert got.sharding.is_equivalent_to(NamedSharding(mesh, spec), 4)
  np.testing.assert_allclose(got, want, atol=1e-6)
  with jax.set_mesh(mesh):
    text = jax.jit(lambda *a: attention(*a, sharding=spec)).lower(*placed).compile().as_text()
  assert "all-gather" not in text and "all-reduce" not in text
  with pytest.raises(ValueError, match="no mesh is in context"):
    attention(q, k, v, sharding=spec)
  with pytest.raises(NotImplementedError, match="batch and heads"):
    attention(q, k, v, sharding=NamedSharding(mesh, PartitionSpec(None, "x")))
  with pytest.raises(ValueError, match="divisible"):
    attention(q[:1], k[:1], v[:1], sharding=NamedSharding(mesh, PartitionSpec("x")))


# Properties.


@functools.partial(jax.jit, static_argnames=("static", "softcap"))
def _run(q, k, v, bias, mask, *, static=None, softcap=None):
  return attention(q, k, v, bias=bias, mask=mask if static is None else static, softcap=softcap)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(st.integers(0, 2**31), st.floats(-5, 5))
def test_keys_may_be_shuffled_and_logits_shifted(seed, constant):
  rng = np.random.default_rng(seed)
  q, k, v = map(jnp.asarray, example(17, 23, seed % 100))
  bias, allowed = jnp.asarray(numbers(1, H, 17, 23, seed=seed % 97)), bools(B, 1, 17, 23)
  want = _run(q, k, v, bias, allowed)
  order = rng.permutation(23)
  got = _run(q, k[:, order], v[:, order], bias[..., order], allowed[..., order])
  np.testing.assert_allclose(got, want, atol=2e-6)
  np.testing.assert_allclose(_run(q, k, v, bias + constant, allowed), want, atol=1e-5)


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
  st.sampled_from(["causal", "window", "bias", "segments"]),
  st.sampled_from([8, 16, 24, 64]),
  st.sampled_from(["unrolled", "looped", "dynamic"]),
)
def test_block_sizes_and_forms_agree(name, block, how):
  case, arrays = case_of(name)
  arrays = [jnp.asarray(x) for x in arrays]
  want = case("xla", *arrays)
  with pytest.MonkeyPatch.context() as patch:
    for key, value in dict(FORMS[how], _block_sizes=lambda n: (block, block)).items():
      patch.setattr(plan, key, value)
    np.testing.assert_allclose(case("xla", *arrays), want, atol=3e-6)


@pytest.mark.slow
def test_an_all_true_block_table_is_dense(form):
  form("unrolled")
  q, k, v = map(jnp.asarray, example(40, 48))
  table = np.ones((1, 1, 5, 6), bool)
  for mask in (
    masks.block_table(table, 8, 8),
    masks.block_table(jnp.asarray(table), 8, 8),
    masks.full(),
  ):
    np.testing.assert_allclose(attention(q, k, v, mask=mask), attention(q, k, v), atol=1e-6)


def test_dropout_keeps_the_mean():
  q, k = jnp.zeros((1, 64, 1, D)), jnp.zeros((1, 512, 1, D))
  out = attention(q, k, jnp.ones((1, 512, 1, 1)), dropout_rate=0.25, dropout_key=jax.random.key(0))
  assert abs(float(out.mean()) - 1) < 0.01 and 0.015 < float(out.std()) < 0.045
  other = attention(
    q, k, jnp.ones((1, 512, 1, 1)), dropout_rate=0.25, dropout_key=jax.random.key(1)
  )
  assert np.any(np.asarray(out) != np.asarray(other))


# Work and memory.


def _shapes(length, batch=1, heads=8, width=64, dtype=jnp.float32):
  return [jax.ShapeDtypeStruct((batch, length, heads, width), dtype)] * 3


def test_empty_blocks_cost_nothing():
  tasks = lambda length, mask: plan.make_plan(Operands(*_shapes(length), mask=mask))[0].tasks
  cost = lambda length, mask: plan._cost(tasks(length, mask)) / length**2
  assert cost(2048, None) == 1
  assert cost(2048, masks.causal()) < 0.57
  assert cost(4096, masks.window(127)) < 0.07
  assert len(tasks(4096, masks.window(127))) == 2  # the first block, and the rest as one band
  assert tasks(16384, masks.causal()) is None


def test_tiles_share_pieces_of_keys_and_mask_the_diagonal_only():
  tasks = plan.make_plan(Operands(*_shapes(2048), mask=masks.causal()))[0].tasks
  assert tasks[5].runs == (
    (0, 512, False),
    (512, 512, False),
    (1024, 256, False),
    (1280, 256, True),
  )
  assert len({run[:2] for task in tasks for run in task.runs}) == 3 + 8  # pieces of k copied out
  # Where pieces of 512 keys would be too many tiles, they are longer.
  tasks = plan.make_plan(Operands(*_shapes(4096), mask=masks.causal()))[0].tasks
  assert tasks[-1].runs[:2] == ((0, 2048, False), (2048, 1792, False))


def test_memory_is_linear_in_length():
  f = jax.grad(lambda q, k, v: attention(q, k, v, mask=masks.causal()).sum(), (0, 1, 2))
  temporary = jax.jit(f).lower(*_shapes(16384)).compile().memory_analysis().temp_size_in_bytes
  assert temporary < 300e6  # seven arrays of the size of q are 235 MB; the weights would be 8.6 GB


LONG = """
import resource
import jax
from h2g.ops import masks
from h2g.ops.attention import attention
keys = jax.random.split(jax.random.key(0), 3)
q, k, v = (jax.random.normal(key, (1, 16384, 8, 64)) for key in keys)
loss = lambda q, k, v: (attention(q, k, v, mask=masks.causal()) ** 2).sum()
grads = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
assert all(bool(jax.numpy.isfinite(x).all()) for x in grads)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
def test_a_process_with_16k_tokens_forward_and_backward_stays_under_1500_mb():
  done = subprocess.run(
    [sys.executable, "-c", LONG], capture_output=True, text=True, timeout=600, check=True
  )
  assert float(done.stdout) < 1.5, f"peak of the whole process: {done.stdout} GB"


# Refusals.

Q, KV = jnp.zeros((B, 6, H, D)), jnp.zeros((B, 7, K, D))


@pytest.mark.parametrize(
  "arguments, options, message",
  [
    ((Q[0], KV, KV), {}, r"q must be \[batch"),
    ((Q, KV[..., :4], KV), {}, r"\(2, 7, 2, 4\)"),
    ((Q, KV, KV[:, :5]), {}, "v must be"),
    ((Q[:, :, :3], KV, KV), {}, "must divide"),
    ((Q, KV.astype(jnp.bfloat16), KV), {}, "one dtype"),
    ((Q, KV, KV), dict(bias=jnp.zeros((1, 1, 6, 6))), r"bias must broadcast.*\(1, 1, 6, 6\)"),
    ((Q, KV, KV), dict(bias=jnp.zeros((1, 1, 6, 7), bool)), "a bool array is a mask"),
    ((Q, KV, KV), dict(mask=jnp.zeros((1, 1, 6, 7))), "True attends"),
    ((Q, KV, KV), dict(mask=jnp.zeros((3, 1, 6, 7), bool)), "does not broadcast"),
    ((Q, KV, KV), dict(sinks=jnp.zeros(K)), "one per head"),
    ((Q, KV, KV), dict(sinks=jnp.zeros(H, jnp.int32)), "sinks must be floating point: got int32"),
    ((Q, KV, KV), dict(bias=[[0.0]]), "bias must be an array: got list"),
    ((Q, KV, KV), dict(softcap=0.0), "softcap"),
    ((Q, KV, KV), dict(dropout_rate=0.5), "dropout_key"),
    ((Q, KV, KV), dict(dropout_rate=1.0, dropout_key=jax.random.key(0)), r"\[0, 1\)"),
    ((Q, KV, KV), dict(top_keys=8), "top_keys"),
    ((Q, KV, KV), dict(logits_args=(Q,)), "without logits_fn"),
    ((Q, KV, KV), dict(logits_fn=lambda x, ids: x.sum(-1)), "logits_fn must return"),
  ],
)
def test_wrong_arguments(arguments, options, message):
  with pytest.raises(ValueError, match=message):
    attention(*arguments, **options)


def _half(length=128, keys=None, batch=1, heads=4, width=64, value_width=None):
  shape = lambda n, w: jax.ShapeDtypeStruct((batch, n, heads, w), jnp.bfloat16)
  keys = length if keys is None else keys
  return dict(q=shape(length, width), k=shape(keys, width), v=shape(keys, value_width or width))


def _bias(*shape, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(shape, dtype)


SPEC = Spec(scale=1.0)
REFUSED = dict(
  left_window_without_causal=(dict(mask=masks.window(8, None)), {}, "mask: .*future"),
  right_window=(dict(mask=masks.window(8, 8)), {}, "mask: a window of 8 keys to the right"),
  mask_without_bias=(dict(mask=masks.dense(jnp.ones((1, 1, 128, 128), bool))), {}, "mask: .*Dense"),
  offset=(dict(mask=masks.causal(1)), {}, "mask: an offset"),
  cross_causal=(dict(**_half(128, 256), mask=masks.causal()), {}, "mask: .*128 queries by 256"),
  padding=(dict(mask=masks.key_padding(5)), {}, "mask: .*Range"),
  bias_gradient_in_a_batch=(
    dict(**_half(batch=2), bias=_bias(1, 4, 128, 128)),
    {},
    "bias: .*batch 2",
  ),
  bias_broadcast=(dict(bias=_bias(1, 1, 128, 128)), {}, "bias: .*batch 1 only"),
  bias_dtype=(dict(bias=_bias(1, 4, 128, 128, dtype=jnp.float32)), {}, "bias: .*rounded"),
  bias_odd=(dict(**_half(127), bias=_bias(1, 4, 127, 127)), {}, "bias: even lengths"),
  bias_window=(
    dict(bias=_bias(1, 4, 128, 128), mask=masks.window(8)),
    {},
    "bias: together with a window",
  ),
  float32=(dict(q=_bias(1, 128, 4, 64, dtype=jnp.float32)), {}, "q: bfloat16 or float16"),
  head_width=(_half(width=60), {}, "q: head widths"),
  wide_heads=(_half(width=256), {}, "q: head widths"),
  value_width=(_half(value_width=32), {}, "v: a value width"),
  softcap=({}, dict(softcap=30.0), "softcap"),
  hook=({}, dict(logits_fn=slope_hook), "logits_fn"),
  sinks=(dict(sinks=_bias(4)), {}, "sinks"),
  dropout=({}, dict(dropout_rate=0.1), "dropout_rate"),
  lse=({}, dict(lse=True), "return_lse"),
  column_mass=({}, dict(column_mass=True), "return_column_mass"),
  entropy=({}, dict(entropy=True), "return_entropy"),
  top_keys=({}, dict(top_keys=2), "top_keys"),
)


@pytest.mark.parametrize("name", REFUSED)
def test_cudnn_refuses(name):
  arrays, static, message = REFUSED[name]
  operands = Operands(**{**_half(), **arrays})
  with pytest.raises(NotImplementedError, match=f"cudnn cannot serve {message}"):
    cudnn.check(operands, Spec(**{**dict(scale=1.0), **static}))


def test_cudnn_serves():
  for mask in (
    None,
    masks.full(),
    masks.causal(),
    masks.causal() & masks.window(8, None),
    masks.window(8),
  ):
    cudnn.check(Operands(**_half(127), mask=mask), SPEC)
  cudnn.check(Operands(**_half(), bias=_bias(1, 4, 128, 128), mask=masks.causal()), SPEC)
  cudnn.check(Operands(**_half(100, 300)), SPEC)


def test_a_name_means_that_one_or_an_error():
  with pytest.raises(NotImplementedError, match="cudnn cannot serve q"):
    attention(Q, KV, KV, implementation="cudnn")
  with pytest.raises(NotImplementedError, match=r"'fast'.*reference, xla"):
    attention(Q, KV, KV, implementation="fast")
  half = [x.astype(jnp.bfloat16) for x in (Q, KV, KV)]
  with pytest.raises(NotImplementedError, match="this platform is"):
    attention(*half, implementation="cudnn")
  assert set(IMPLEMENTATIONS) >= {"reference", "xla", "cudnn"}


@pytest.mark.lowering
@pytest.mark.parametrize("platform, target", [("gpu", "cuda"), ("tpu", "tpu")])
def test_lowers_without_the_hardware(platform, target):
  mask = masks.causal() & masks.segments(jnp.zeros((1, 512), jnp.int32))
  f = lambda q, k, v: attention(q, k, v, mask=mask, softcap=20.0, implementation="xla")
  grad = jax.jit(jax.grad(lambda *a: f(*a).astype(jnp.float32).sum(), (0, 1, 2)))
  with dispatch.lowering_for(platform):
    exported = jax.export.export(grad, platforms=[target])(*_shapes(512, dtype=jnp.bfloat16))
  assert exported.platforms == (target,)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("mask", [None, masks.causal(), masks.window(100)])
def test_cudnn_agrees(mask):
  arrays = [numbers(2, 256, 4, 64, seed=i) for i in range(3)]
  case = lambda implementation, *a: attention(*a, mask=mask, implementation=implementation)
  contract.agrees(case, "cudnn", arrays, dtype=jnp.bfloat16)
