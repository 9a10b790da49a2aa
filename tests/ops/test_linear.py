"""Linear attention: the contract over decays and directions, states, padding, steps, refusals."""

import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops import linear
from h2g.ops import tiles
from h2g.ops.linear import decay_attention
from h2g.ops.linear import decay_attention_step
from h2g.ops.linear import feature_map_attention
from h2g.ops.linear import feature_map_attention_step
from tests.ops import contract
from tests.ops.contract import numbers

B, H, K, D, E = 2, 4, 2, 8, 6

COMPILED = jax.jit(
  functools.partial(decay_attention, return_state=True), static_argnames="chunk_size"
)
LENGTHS = np.array([21, 0])
CAUSAL = jax.jit(decay_attention, static_argnames="chunk_size")
BOTH_WAYS = jax.jit(functools.partial(decay_attention, causal=False), static_argnames="chunk_size")


def example(length, seed=0):
  """q, k, v with fewer key heads."""
  shapes = ((length, H, D), (length, K, D), (length, K, E))
  return [numbers(B, *shape, seed=seed + i) for i, shape in enumerate(shapes)]


def wide(x):
  """Decays and states are float32 (or float64) whatever q is."""
  return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def flat(result, dtype):
  """Output and state in one array."""
  return jnp.concatenate([result.out.ravel(), result.state.ravel().astype(dtype)])


def case_of(name, length, **options):
  """(case, arrays); logs of decays are -exp(a number), which spans fast and slow forgetting."""
  arrays = example(length)
  spread = lambda *shape: 1.5 * numbers(*shape, seed=7) - 2
  if name == "constant":
    arrays += [spread(H), numbers(B, H, D, E, seed=8)]
  elif name == "by step":
    arrays += [spread(B, length, H), numbers(B, H, D, E, seed=8)]
  elif name == "both ways":
    arrays += [spread(B, length, H)]
  elif name in ("none", "unordered"):
    arrays += [numbers(B, H, D, E, seed=8)]

  def case(implementation, q, k, v, *more):
    call = functools.partial(decay_attention, q, k, v, implementation=implementation, **options)
    if name in ("constant", "by step"):
      decay, state = map(wide, more)
      return flat(call(decay=-jnp.exp(decay), state=state, return_state=True), q.dtype)
    if name == "both ways":
      return call(decay=-jnp.exp(wide(more[0])), causal=False)
    if name == "none":
      return flat(call(state=wide(more[0]), return_state=True), q.dtype)
    if name == "unordered":
      return flat(call(state=wide(more[0]), return_state=True, causal=False), q.dtype)
    raise AssertionError(name)

  # Operation by operation, these tests would compile for minutes.
  return jax.jit(case, static_argnums=0), arrays


@pytest.mark.few("constant-257", "by step-65")
@pytest.mark.parametrize(
  "name, length",
  [
    ("constant", 1),
    ("constant", 63),
    ("constant", 257),
    ("by step", 65),
    ("both ways", 65),
    ("none", 65),
    ("unordered", 63),
  ],
)
def test_agrees_with_float64(name, length):
  contract.agrees(*swap(case_of(name, length), "xla"))


def swap(pair, implementation):
  case, arrays = pair
  return case, implementation, arrays


@pytest.mark.slow
@pytest.mark.parametrize("name", ["constant", "by step"])
def test_bfloat16(name):
  contract.agrees(*swap(case_of(name, 65, chunk_size=16), "xla"), dtype=jnp.bfloat16)


@pytest.mark.few("by step")
@pytest.mark.parametrize("name", ["constant", "by step", "both ways"])
def test_finite_differences(name):
  case, arrays = case_of(name, 37, chunk_size=8)
  contract.matches_finite_differences(case, "xla", arrays, step=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["constant", "by step"])
def test_transforms_and_shards(name):
  case, arrays = case_of(name, 37, chunk_size=8)
  contract.transforms(case, "xla", arrays)
  decay_axis = 0 if name == "constant" else 2
  contract.shards(case, "xla", arrays, axes=(2, 2, 2, decay_axis, 1))  # heads
  contract.shards(case, "xla", arrays, axes=(0, 0, 0, None, 0))  # batch


@pytest.mark.few(1)
@pytest.mark.parametrize("spec", [("x",), (None, None, "x")])
def test_shard_map_edge(spec):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  q, k, v = map(jnp.asarray, example(37))
  call = functools.partial(decay_attention, decay=linear.retention_decay(H))
  got = jax.jit(functools.partial(call, sharding=sharding))(q, k, v)
  assert contract.distance(got, jax.jit(call)(q, k, v)) < 1e-6
  if spec == ("x",):
    return
  placed = [jax.device_put(x, sharding) for x in (q, k, v)]
  assert jax.jit(call)(*placed).sharding.is_equivalent_to(sharding, 4)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("name", ["constant", "by step"])
def test_groups_of_chunks(name, group, monkeypatch):
  """What accelerators run: several chunks through each matmul, and what is left over after them."""
  monkeypatch.setattr(linear.xla, "_sizes", lambda length, chunk, *_: (chunk, group))
  contract.agrees(*swap(case_of(name, 65, chunk_size=7), "xla"))


@pytest.mark.few(1)
@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("causal", [True, False])
def test_poisoned_padding_has_no_effect(implementation, causal):
  arrays = example(37)
  decay = -np.exp(numbers(B, 37, H))
  call = functools.partial(
    decay_attention, causal=causal, return_state=causal, implementation=implementation, chunk_size=8
  )

  def value(q, k, v, decay, **options):
    result = call(q, k, v, decay=decay, **options)
    return (
      flat(linear.LinearOut(result.out[:, :21], result.state), q.dtype)
      if causal
      else result[:, :21]
    )

  clean = [x * (np.arange(37)[None, :, None, None] < 21) for x in arrays]
  poisoned = [np.where(np.arange(37)[None, :, None, None] < 21, x, np.nan) for x in arrays]
  short = [jnp.asarray(x[:, :21]) for x in clean]
  bad_decay = np.where(np.arange(37)[None, :, None] < 21, decay, np.nan)
  run = jax.jit(lambda *a: contract.value_and_grads(functools.partial(value, lengths=LENGTHS), *a))
  got, pulled = run(*map(jnp.asarray, (*poisoned, bad_decay)))
  want = jax.jit(functools.partial(value, lengths=LENGTHS))(*short, jnp.asarray(decay[:, :21]))
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert all(np.isfinite(x).all() for x in pulled)
  assert all((np.asarray(x)[1] == 0).all() and (np.asarray(x)[:, 21:] == 0).all() for x in pulled)


def test_state_at_the_length_and_zero_output_past_it():
  q, k, v = map(jnp.asarray, example(37))
  decay = linear.lightning_decay(H, 1, 4)
  out, state = COMPILED(q, k, v, lengths=jnp.array([21, 37]), decay=decay)
  cut, cut_state = COMPILED(q[:1, :21], k[:1, :21], v[:1, :21], decay=decay)
  np.testing.assert_allclose(out[:1, :21], cut, atol=1e-5)
  np.testing.assert_allclose(state[:1], cut_state, atol=1e-5)
  np.testing.assert_array_equal(out[0, 21:], 0)
  alone = CAUSAL(q, k, v, lengths=jnp.array([21, 37]), decay=decay)
  np.testing.assert_allclose(alone, out, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(st.sampled_from([1, 7]), st.sampled_from([1, 13]), st.integers(0, 1000))
def test_chunks_and_cuts_do_not_matter(chunk, cut, seed):
  q, k, v = map(jnp.asarray, example(30, seed))
  decay = jnp.asarray(-np.exp(2 * numbers(B, 30, H, seed=seed)))
  call = COMPILED
  want = call(q, k, v, decay=decay, chunk_size=30)
  got = call(q, k, v, decay=decay, chunk_size=chunk)
  first = call(q[:, :cut], k[:, :cut], v[:, :cut], decay=decay[:, :cut], chunk_size=chunk)
  second = call(
    q[:, cut:], k[:, cut:], v[:, cut:], decay=decay[:, cut:], state=first.state, chunk_size=chunk
  )
  joined = linear.LinearOut(jnp.concatenate([first.out, second.out], 1), second.state)
  for a in (got, joined):
    # Decays of hundreds in a chunk: their sums are rounded before differences are taken.
    assert max(map(contract.distance, a, want)) < 2e-5


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(st.sampled_from([1, 13]), st.booleans())
def test_a_reset_is_a_document_boundary(cut, causal):
  q, k, v = map(jnp.asarray, example(30))
  decay = jnp.asarray(-np.exp(numbers(B, 30, H))).at[:, cut].set(-jnp.inf)
  call = functools.partial(CAUSAL if causal else BOTH_WAYS, chunk_size=8)
  parts = [
    call(q[:, at], k[:, at], v[:, at], decay=decay[:, at])
    for at in (slice(None, cut), slice(cut, None))
  ]
  got, pulled = contract.value_and_grads(lambda *a: call(*a[:3], decay=a[3]), q, k, v, decay)
  np.testing.assert_allclose(got, jnp.concatenate(parts, 1), atol=1e-5)
  assert all(np.isfinite(x).all() for x in pulled)


@pytest.mark.few("True")
@pytest.mark.parametrize("features", [False, True])
def test_steps_equal_the_whole(features):
  q, k, v = map(jnp.asarray, example(11))
  decay = jnp.asarray(-np.exp(numbers(B, 11, H)))
  whole, step = (
    (feature_map_attention, feature_map_attention_step)
    if features
    else (decay_attention, decay_attention_step)
  )
  want = whole(q, k, v, decay=decay, return_state=True)
  step, state, outs = jax.jit(step), jnp.zeros_like(want.state), []
  for t in range(11):
    out, state = step(q[:, t], k[:, t], v[:, t], state, decay=decay[:, t])
    outs.append(out)
  np.testing.assert_allclose(jnp.stack(outs, 1), want.out, atol=1e-5)
  np.testing.assert_allclose(state, want.state, atol=1e-5)
  constant = step(q[:, 0], k[:, 0], v[:, 0], state, decay=linear.retention_decay(H))
  assert constant.out.shape == (B, H, E)


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("causal", [True, False])
def test_feature_maps_equal_the_sum_over_pairs(causal, eps):
  q, k, v = map(jnp.asarray, example(21))
  got = feature_map_attention(q, k, v, causal=causal, eps=eps, chunk_size=8)
  phi_q, phi_k, v = (
    np.float64(np.repeat(x, H // x.shape[2], 2))
    for x in map(np.asarray, (linear.elu_plus_one(q), linear.elu_plus_one(k), v))
  )
  weights = np.einsum("bthd,bshd->bhts", phi_q, phi_k)
  weights = np.tril(weights) if causal else weights
  want = np.einsum("bhts,bshe->bthe", weights / (weights.sum(-1, keepdims=True) + eps), v)
  np.testing.assert_allclose(got, want, atol=1e-5)

  def case(implementation, q, k, v):
    options = dict(causal=causal, eps=eps, implementation=implementation)
    return feature_map_attention(q, k, v, **options)

  contract.agrees(jax.jit(case, static_argnums=0), "xla", example(21))


def test_nothing_in_the_normaliser_gives_zeros():
  q, k, v = map(jnp.asarray, example(5))
  call = jax.jit(functools.partial(feature_map_attention, feature_map=jax.nn.relu))
  got, pulled = contract.value_and_grads(call, q, -jnp.abs(k), v)
  np.testing.assert_array_equal(got, 0)
  assert all(np.isfinite(x).all() for x in pulled)


def test_no_steps_and_named_decays():
  q, k, v = (jnp.asarray(x[:, :0]) for x in example(1))
  state = jnp.asarray(numbers(B, H, D, E))
  out, after = decay_attention(q, k, v, state=state, return_state=True)
  assert out.shape == (B, 0, H, E)
  np.testing.assert_array_equal(after, state)
  np.testing.assert_allclose(jnp.exp(linear.retention_decay(2)), [31 / 32, 63 / 64], rtol=1e-6)
  np.testing.assert_allclose(linear.lightning_decay(4, 1, 2), [0, -1, -2, -3])


@pytest.mark.slow
def test_tile_weights_are_products_of_decays():
  log = np.array([-0.5, -np.inf, -0.25, -80.0, -1.0], np.float32)
  weights = tiles.decay_weights(*tiles.decay_sums(jnp.asarray(log)[None]))
  product = lambda start, stop: np.prod(np.exp(np.float64(log[start:stop])))
  within = [[product(s + 1, t + 1) if s <= t else 0 for s in range(5)] for t in range(5)]
  np.testing.assert_allclose(weights.within[0], within, rtol=1e-5, atol=1e-38)
  np.testing.assert_allclose(
    weights.since[0, :, 0], [product(0, t + 1) for t in range(5)], rtol=1e-6
  )
  np.testing.assert_allclose(weights.until[0, :, 0], within[-1], rtol=1e-5, atol=1e-38)
  assert weights.whole[0, 0, 0] == 0
  same = tiles.constant_decay_weights(jnp.full((1, 1), -0.5), 5, 5)
  other = tiles.decay_weights(*tiles.decay_sums(jnp.full((5,), -0.5)))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), same, other)


def test_long_sequences_keep_a_state_per_group_and_no_square():
  length = 8192
  q = jax.ShapeDtypeStruct((1, length, 1, 32), jnp.float32)
  loss = lambda q, k, v: decay_attention(q, k, v, decay=jnp.full((1,), -0.1)).sum()
  step = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()
  assert step.memory_analysis().temp_size_in_bytes < 20 * 4 * length * 32


# Kernels. What they serve is one decay per head; on a CPU they run interpreted, GPU kernels with
# plain products in place of wgmma, where JAX has an interpreter for them.

KERNELS = {"mosaic_gpu": "gpu", "mosaic_tpu": "tpu"}
GPU_DECAY = np.array([-0.3, -0.01], np.float32)
BENCHMARK = [(8, 2048, 32, 128), (4, 16384, 32, 128), (2, 32768, 32, 128)]


@pytest.mark.few("63")
@pytest.mark.parametrize("length", [1, 63, 257])
def test_tpu_kernels_agree_with_float64(length, interpreted):
  contract.agrees(*swap(case_of("constant", length, chunk_size=64), "mosaic_tpu"))


@pytest.mark.slow
def test_tpu_kernels_in_bfloat16_and_without_decay(interpreted):
  options = dict(chunk_size=16)
  contract.agrees(*swap(case_of("constant", 65, **options), "mosaic_tpu"), dtype=jnp.bfloat16)
  contract.agrees(*swap(case_of("none", 65, **options), "mosaic_tpu"))


@pytest.mark.slow
def test_tpu_kernels_where_heads_stay_in_the_middle(interpreted):
  """Widths of whole lanes are read in place, others heads first; here one of each."""
  q, k, v = numbers(1, 40, 2, 128), numbers(1, 40, 2, 128, seed=1), numbers(1, 40, 2, 8)

  def case(implementation, q, k, v):
    decay = linear.retention_decay(2).astype(wide(q).dtype)
    return decay_attention(
      q, k, v, decay=decay, chunk_size=16, causal=False, implementation=implementation
    )

  contract.agrees(jax.jit(case, static_argnums=0), "mosaic_tpu", [q, k, v])
  contract.agrees(jax.jit(case, static_argnums=0), "mosaic_tpu", [q, k, k])


@pytest.mark.slow
def test_tpu_kernels_finite_differences_transforms_and_shards(interpreted):
  case, arrays = case_of("constant", 37, chunk_size=16)
  contract.matches_finite_differences(case, "mosaic_tpu", arrays, step=3e-3)
  contract.transforms(case, "mosaic_tpu", arrays)
  contract.shards(case, "mosaic_tpu", arrays, axes=(2, 2, 2, 0, 1))  # heads


@pytest.mark.parametrize("implementation", ["mosaic_tpu"])
def test_kernels_ignore_padding_and_forget_at_once(implementation, interpreted):
  q, k, v = example(37)
  call = functools.partial(decay_attention, implementation=implementation, chunk_size=16)
  decay = jnp.array([-np.inf, 0.0, -0.5, -1e30])
  poison = lambda x: np.where(np.arange(37)[None, :, None, None] < 21, x, np.nan)
  run = jax.jit(
    lambda *a: contract.value_and_grads(lambda *b: call(*b, lengths=LENGTHS, decay=decay), *a)
  )
  out, pulled = run(*(jnp.asarray(poison(x)) for x in (q, k, v)))
  want = CAUSAL(*(x[:1, :21] for x in (q, k, v)), decay=decay)
  np.testing.assert_allclose(out[:1, :21], want, atol=1e-5)
  np.testing.assert_array_equal(out[1], 0)
  assert all(np.isfinite(x).all() for x in pulled)


def gpu_case(length, width=64, value_width=128, heads=2):
  """(case, arrays) of widths that wgmma takes."""
  shapes = ((length, heads, width), (length, heads, width), (length, heads, value_width))
  arrays = [numbers(1, *shape, seed=i) for i, shape in enumerate(shapes)]
  arrays.append(numbers(1, heads, width, value_width, seed=8))

  def case(implementation, q, k, v, state):
    state = wide(state)
    options = dict(state=state, return_state=True, implementation=implementation)
    return flat(decay_attention(q, k, v, decay=GPU_DECAY.astype(state.dtype), **options), q.dtype)

  return jax.jit(case, static_argnums=0), arrays


@pytest.fixture
def gpu_interpreted(interpreted):
  if not hasattr(plgpu, "InterpretGPUParams"):
    pytest.skip(f"jax {jax.__version__} has no interpreter for Mosaic GPU kernels")


@pytest.mark.few("63")
@pytest.mark.smoke
@pytest.mark.parametrize("length", [1, 63, 257])
def test_gpu_kernels_agree_with_float64(length, gpu_interpreted):
  contract.agrees(*swap(gpu_case(length), "mosaic_gpu"), dtype=jnp.bfloat16)


def test_gpu_kernels_give_the_same_bits_and_run_both_ways(gpu_interpreted):
  case, arrays = gpu_case(150, width=128)
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
  run = jax.jit(lambda *a: contract.value_and_grads(lambda *b: case("mosaic_gpu", *b), *a))
  jax.tree.map(np.testing.assert_array_equal, run(*arrays), run(*arrays))
  q, k, v, _ = arrays
  options = dict(decay=jnp.asarray(GPU_DECAY), causal=False)
  both = decay_attention(q, k, v, implementation="mosaic_gpu", **options)
  wanted = decay_attention(wide(q), wide(k), wide(v), implementation="xla", **options)
  assert contract.distance(both, wanted) < 1e-2


@pytest.mark.smoke
@pytest.mark.parametrize("length", [63, 150])
def test_gradient_of_the_decay_beside_gpu_kernels(length):
  q, k, v, state = map(jnp.asarray, gpu_case(length)[1])
  g_out, g_state = numbers(1, length, 2, 128, seed=9), numbers(1, 2, 64, 128, seed=10)

  def value(decay):
    options = dict(decay=decay, state=state, return_state=True, scale=0.3)
    out, last = decay_attention(q, k, v, **options)
    return jnp.sum(out * g_out) + jnp.sum(last * g_state)

  def gradient(decay):
    return linear.mosaic_gpu._decay_gradient(q, k, v, g_out, decay, state, g_state, 0.3)

  decay = jnp.asarray(GPU_DECAY)
  # Two numbers, each a sum of thousands that cancel.
  assert contract.distance(jax.jit(gradient)(decay), jax.jit(jax.grad(value))(decay)) < 2e-4


@pytest.mark.few(*(f"{at == 0}-shape{at}-{name}" for at in (0, 1) for name in KERNELS))
@pytest.mark.lowering
@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("shape", BENCHMARK)
@pytest.mark.parametrize("learned", [False, True])
def test_kernels_lower(implementation, shape, learned):
  platform = KERNELS[implementation]
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  decay = jax.ShapeDtypeStruct(shape[2:3], jnp.float32)

  def loss(q, k, v, decay):
    result = decay_attention(q, k, v, decay=decay, implementation=implementation, return_state=True)
    return jnp.sum(result.out.astype(jnp.float32) ** 2) + jnp.sum(result.state)

  step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3) if learned else (0, 1, 2)))
  target = "cuda" if platform == "gpu" else platform
  with dispatch.lowering_for(platform):
    module = jax.export.export(step, platforms=[target])(x, x, x, decay).mlir_module()
  # No loop of XLA's beside them, but for the gradient of the decay on a GPU.
  call, number = ("mosaic_gpu", 4) if platform == "gpu" else ("tpu_custom_call", 3)
  assert module.count(f"custom_call @{call}") == number
  assert "stablehlo.while" not in module or (platform == "gpu" and learned)


@pytest.mark.parametrize("implementation", KERNELS)
def test_kernels_decline_what_they_do_not_serve(implementation):
  q, k, v = (jnp.zeros((B, 40, H, D)) for _ in range(3))
  call = functools.partial(decay_attention, implementation=implementation)
  with pytest.raises(NotImplementedError, match=f"{implementation} serves .*this platform is cpu"):
    call(q, k, v)
  with dispatch.interpreting(), pytest.raises(NotImplementedError, match=r"serves|no interpreter"):
    call(*(x.astype(jnp.float16) for x in (q, k, v)))
  if implementation == "mosaic_gpu":
    q, k, v = (jnp.zeros((B, 40, H, 64), jnp.bfloat16) for _ in range(3))
  with dispatch.lowering_for(KERNELS[implementation]):
    by_step = jnp.zeros((B, 40, H))
    with pytest.raises(NotImplementedError, match=f"{implementation}.* decay differs by step"):
      call(q, k, v, decay=by_step)
    with pytest.raises(NotImplementedError, match=f"{implementation}.* float16"):
      call(*(x.astype(jnp.float16) for x in (q, k, v)))
    with pytest.raises(NotImplementedError, match=f"{implementation}.* chunk_size"):
      call(q, k, v, chunk_size=9)
    with pytest.raises(NotImplementedError, match=f"{implementation}.* D 2048"):
      call(*(jnp.zeros((1, 64, 1, 2048), q.dtype) for _ in range(3)))
    # Without a name the same calls are served by another form.
    assert decay_attention(q, k, v, decay=by_step).shape == v.shape


def test_calls_that_cannot_be_served_say_why():
  q, k, v = map(jnp.asarray, example(5))
  state = jnp.zeros((B, H, D, E))
  for change, message in [
    (dict(q=q[0]), r"q must be \[batch, steps, heads, width\]: got shape \(5, 4, 8\)"),
    (dict(q=q.astype(jnp.bfloat16)), "one dtype: got bfloat16, float32, float32"),
    (dict(k=k[:, :3]), r"k must be \[2, 5, key heads, 8\] .*: got \(2, 3, 2, 8\)"),
    (dict(v=v[:, :, :1]), r"\[B, T, K\] = \(2, 5, 2\) of k: got \(2, 5, 1, 6\)"),
    (dict(q=q[:, :, :3]), "must divide that of heads: got 2 and 3"),
    (dict(decay=jnp.zeros(3)), r"decay must be \[H\] = \(4,\) or .*: got \(3,\)"),
    (dict(decay=jnp.zeros(H, int)), "decay must be floating point, a logarithm: got int32"),
    (dict(decay=-0.1), "decay must be an array, .*: got -0.1"),
    (dict(state=state[:1]), r"state must be \[B, H, D, E\] = \(2, 4, 8, 6\): got \(1, 4, 8, 6\)"),
    (dict(state=state, normalize=True), r"E \+ 1\] = \(2, 4, 8, 7\)"),
    (dict(lengths=jnp.zeros(3, int)), r"lengths must be int \[B\] = \(2,\): got int32\(3,\)"),
    (dict(chunk_size=0), "chunk_size must be a positive int: got 0"),
    (dict(causal=False, decay=jnp.zeros(H), return_state=True), "need causal=True"),
  ]:
    with pytest.raises(ValueError, match=message):
      decay_attention(**(dict(q=q, k=k, v=v) | change))
  with pytest.raises(NotImplementedError, match="no implementation 'fast': there are"):
    decay_attention(q, k, v, implementation="fast")
  with pytest.raises(ValueError, match="one step: got shape"):
    decay_attention_step(q, k, v, state)
  with pytest.raises(ValueError, match="feature_map must keep all axes but the last"):
    feature_map_attention(q, k, v, feature_map=lambda x: x[:, :2])
  with pytest.raises(ValueError, match="layer 4 must be from 0 to layers - 1 = 3"):
    linear.lightning_decay(H, 4, 4)
