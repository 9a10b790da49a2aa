"""Edge attention and sums: the contract, what padding must not do, and what must not matter."""

import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops.edge import build_edge_index
from h2g.ops.edge import edge_attention
from h2g.ops.edge import edge_sum
from tests.ops import contract


def example(num=65, rows=63, edges=257, heads=3, width=5, value_width=4, seed=0, capacity=None):
  """Random edges; the last two receivers and the last message row have none."""
  rng = np.random.default_rng(seed)
  senders = rng.integers(0, max(rows - 1, 1), edges)
  receivers = rng.integers(0, max(num - 2, 1), edges)
  index = build_edge_index(senders, receivers, rows, num, capacity=capacity)
  q, k, v, bias = (
    rng.normal(size=shape).astype(np.float32)
    for shape in (
      (num, heads, width),
      (rows, heads, width),
      (rows, heads, value_width),
      (len(index.senders), heads),
    )
  )
  return index, q, k, v, bias


def attention_case(index, **options):
  def case(implementation, q, k, v, bias):
    return edge_attention(q, k, v, index, bias=bias, implementation=implementation, **options)

  return case


SIZES = [
  pytest.param(1, 1, 1, marks=pytest.mark.slow),
  (3, 2, 0),
  (63, 65, 257),
  pytest.param(257, 63, 1025, marks=pytest.mark.slow),
  pytest.param(5, 7, 400, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("num, rows, edges", SIZES)
def test_attention_agrees_with_float64(num, rows, edges):
  index, *arrays = example(num, rows, edges)
  if edges == 0:
    out = edge_attention(*arrays[:3], index)
    np.testing.assert_array_equal(out, 0)
    return
  contract.agrees(attention_case(index, clip=1.0, scale=0.7), "xla", arrays)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention_dtypes(dtype):
  index, *arrays = example(capacity=300)
  contract.agrees(attention_case(index), "xla", arrays, dtype=dtype, grads=dtype == jnp.float32)


@pytest.mark.slow
def test_attention_finite_differences_transforms_and_shards():
  index, *arrays = example(heads=4)
  case = attention_case(index)
  contract.matches_finite_differences(case, "xla", arrays)
  contract.transforms(case, "xla", arrays)
  contract.shards(case, "xla", arrays, axes=(1, 1, 1, 1))  # heads


def test_dropout_is_the_same_forward_and_backward():
  index, *arrays = example()
  case = attention_case(index, dropout_rate=0.4, dropout_key=jax.random.key(1))
  contract.agrees(case, "xla", arrays)
  other = attention_case(index, dropout_rate=0.4, dropout_key=jax.random.key(2))
  assert contract.distance(case("xla", *arrays), other("xla", *arrays)) > 0.1


def test_log_sum_exp_has_a_gradient():
  index, *arrays = example()

  def case(implementation, q, k, v, bias):
    out = edge_attention(q, k, v, index, bias=bias, return_lse=True, implementation=implementation)
    lse = jnp.where(jnp.isfinite(out.lse), out.lse, 0)
    return out.out.sum(-1) + lse.astype(out.out.dtype)

  contract.agrees(case, "xla", arrays)
  lse = edge_attention(*arrays[:3], index, return_lse=True).lse
  np.testing.assert_array_equal(lse[-2:], -np.inf)


def test_nothing_to_attend_gives_zeros_and_no_gradient():
  index, q, k, v, bias = example()
  out, pull = jax.vjp(lambda *a: edge_attention(*a, index, bias=bias), q, k, v)
  dq, dk, dv = pull(jnp.ones_like(out))
  np.testing.assert_array_equal(out[-2:], 0)
  np.testing.assert_array_equal(dq[-2:], 0)
  np.testing.assert_array_equal(dk[-1], 0)
  np.testing.assert_array_equal(dv[-1], 0)


@pytest.mark.few("xla")
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_poisoned_padding_has_no_effect(implementation):
  index, q, k, v, bias = example()
  padded = example(capacity=300)[0]
  poisoned = np.full((300, bias.shape[1]), np.nan, np.float32)
  poisoned[:257] = bias
  # Padding points at rows that are NaN: a receiver and a message row that no edge has.
  poison = lambda x: np.concatenate([x[:-1], np.full_like(x[-1:], np.nan)])
  past = lambda x, value: np.concatenate([x[:257], np.full(300 - 257, value, np.int32)])
  padded = padded._replace(senders=past(padded.senders, 62), receivers=past(padded.receivers, 64))

  def call(index, q, k, v, bias):
    function = lambda *a: edge_attention(*a, index, bias=bias, implementation=implementation)[:-1]
    return contract.value_and_grads(function, *map(jnp.asarray, (q, k, v)))

  want, got = call(index, q, k, v, bias), call(padded, poison(q), poison(k), poison(v), poisoned)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    keep = len(b) - 1  # the poisoned row itself may be anything
    np.testing.assert_allclose(a[:keep], b[:keep], atol=1e-6)


def test_no_array_of_edges_times_features_is_allocated():
  num, rows, edges, heads, width = 64, 64, 40_000, 4, 64
  index, q, k, v, _ = example(num, rows, edges, heads, width, width)

  def loss(implementation):
    return lambda q, k, v: edge_attention(q, k, v, index, implementation=implementation).sum()

  def peak(implementation):
    step = jax.jit(jax.grad(loss(implementation), (0, 1, 2)))
    return step.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

  edges_by_features = 4 * edges * heads * width
  assert peak("xla") < edges_by_features / 2
  assert peak("reference") > edges_by_features  # the measure does see such arrays


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_edges_and_names_of_nodes_do_not_matter(seed):
  rng = np.random.default_rng(seed)
  senders, receivers = rng.integers(0, 9, 50), rng.integers(0, 7, 50)
  q, k, v = (rng.normal(size=(n, 2, 3)).astype(np.float32) for n in (7, 9, 9))
  build = functools.partial(build_edge_index, num_senders=9, num_receivers=7)
  out = edge_attention(q, k, v, build(senders, receivers))
  order = rng.permutation(50)
  shuffled = edge_attention(q, k, v, build(senders[order], receivers[order]))
  np.testing.assert_allclose(shuffled, out, atol=1e-5)
  rows, nodes = rng.permutation(9), rng.permutation(7)
  renamed = build(np.argsort(rows)[senders], np.argsort(nodes)[receivers])
  np.testing.assert_allclose(
    edge_attention(q[nodes], k[rows], v[rows], renamed), out[nodes], atol=1e-5
  )


def test_a_constant_on_a_receivers_logits_does_not_matter():
  index, q, k, v, bias = example()
  shift = np.random.default_rng(1).normal(size=(65, 3)).astype(np.float32) * 5
  out = edge_attention(q, k, v, index, bias=bias)
  moved = edge_attention(q, k, v, index, bias=bias + shift[index.receivers])
  np.testing.assert_allclose(moved, out, atol=2e-5)


def test_complete_graph_equals_dense_attention():
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(n, 2, 4)).astype(np.float32) for n in (6, 8, 8))
  index = build_edge_index(np.tile(np.arange(8), 6), np.repeat(np.arange(6), 8), 8, 6)
  dense = jax.nn.dot_product_attention(*(jnp.asarray(x)[None] for x in (q, k, v)))[0]
  np.testing.assert_allclose(edge_attention(q, k, v, index), dense, atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("weighted", [True, False])
def test_sum_meets_the_contract(weighted):
  index, _, _, v, bias = example(capacity=300)

  def case(implementation, x, weights):
    weights = weights if weighted else None
    return edge_sum(x, index, weights=weights, mean=True, implementation=implementation)

  arrays = (v, np.where(np.arange(300)[:, None] < 257, bias, 0))
  contract.agrees(case, "xla", arrays, grads=weighted)
  contract.transforms(case, "xla", arrays)
  flat = edge_sum(v[:, 0], index)
  np.testing.assert_allclose(flat, edge_sum(v, index)[:, 0], atol=1e-6)


def test_calls_that_cannot_be_served_say_why():
  index, q, k, v, bias = example()
  for change, message in [
    (dict(q=q[:3]), r"q \(3, 3, 5\) must be \[N, H, D\] with the index's N = 65"),
    (dict(k=k[:, :2]), "must be"),
    (dict(v=v[:9]), r"with \[M, H\] = \(63, 3\) of k"),
    (dict(bias=bias[:5]), r"bias \(5, 3\) must be \[E, H\]"),
    (dict(clip=-1.0), "clip=-1.0 must be positive"),
    (dict(dropout_rate=1.0), "dropout_rate=1.0"),
  ]:
    with pytest.raises(ValueError, match=message):
      edge_attention(**(dict(q=q, k=k, v=v, index=index) | change))
  with pytest.raises(NotImplementedError, match="cannot serve return_weights"):
    edge_attention(q, k, v, index, return_weights=True, implementation="xla")
  with pytest.raises(NotImplementedError, match="there are xla, mosaic_gpu"):
    edge_attention(q, k, v, index, implementation="fast")
  with pytest.raises(ValueError, match=r"receivers\[1\] = 9 is outside \[0, 3\)"):
    build_edge_index([0, 1], [0, 9], 3, 3)


def two_devices(*spec):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


@pytest.mark.slow
@pytest.mark.parametrize("op", ["attention", "attention with bias", "sum of heads", "flat sum"])
def test_shard_map_edge(op):
  """Two devices give what one gives, forward and backward, and none gathers another's heads."""
  index, q, k, v, bias = example(heads=4)
  call, arrays = {
    "attention": (lambda *a, **o: edge_attention(*a, index, clip=1.0, **o), (q, k, v)),
    "attention with bias": (
      lambda q, k, v, b, **o: edge_attention(q, k, v, index, bias=b, **o),
      (q, k, v, bias),
    ),
    "sum of heads": (lambda x, w, **o: edge_sum(x, index, weights=w, **o), (v, bias)),
    "flat sum": (
      lambda x, w, **o: edge_sum(x, index, weights=w, mean=True, **o),
      (v[:, 0], bias[:, 0]),
    ),
  }[op]
  arrays = [jnp.asarray(x) for x in arrays]
  sharding = two_devices(None, "x")
  placed = [jax.device_put(x, sharding if x.ndim > 1 else two_devices()) for x in arrays]
  run = lambda **o: jax.jit(lambda *a: contract.value_and_grads(functools.partial(call, **o), *a))
  want, mapped = run()(*arrays), run(sharding=sharding)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), mapped(*placed), want)
  assert (
    "all-gather"
    not in jax.jit(lambda *a: call(*a, sharding=sharding)).lower(*placed).compile().as_text()
  )
  text = mapped.lower(*placed).compile().as_text()
  assert "all-gather" not in text and "all-to-all" not in text
  # An array that is laid out already says so itself.
  out = call(*placed)
  assert out.sharding.is_equivalent_to(sharding, out.ndim)
  np.testing.assert_allclose(out, want[0], atol=2e-5)


def test_seeds_are_sharded_by_vmap():
  index, *arrays = example(heads=4)
  stacked = [jnp.stack([x, 0.5 * x]) for x in map(jnp.asarray, arrays[:3])]
  call = jax.jit(jax.vmap(lambda q, k, v: edge_attention(q, k, v, index)))
  placed = [jax.device_put(x, two_devices("x")) for x in stacked]
  np.testing.assert_allclose(call(*placed), call(*stacked), atol=1e-6)
  assert "all-gather" not in call.lower(*placed).compile().as_text()


def test_shards_that_do_not_fit_are_refused():
  index, q, k, v, _ = example(heads=3)
  with pytest.raises(ValueError, match="heads 3 must be divisible by its 2 shards"):
    edge_attention(q, k, v, index, sharding=two_devices(None, "x"))
  with pytest.raises(NotImplementedError, match="only batch and heads can be sharded"):
    edge_attention(q, k, v, index, sharding=two_devices("x"))
