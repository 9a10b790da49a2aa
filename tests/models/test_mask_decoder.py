"""Universal segmenters: their parts against plain formulas, their losses and maps by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.models.backbones import backbone
from h2g.models.mask_decoder import MaskedCrossAttention
from h2g.models.pixel_decoder import SelfModulation
from h2g.nn.image import doubled
from h2g.nn.image import Reading
from h2g.nn.image import resize
from h2g.nn.image import sine_grid
from h2g.nn.prototype import PrototypeCrossAttention
from h2g.nn.pure import pure
from h2g.nn.segments import panoptic_map
from h2g.nn.segments import semantic_map
from h2g.nn.set_loss import dice_loss
from h2g.nn.set_loss import hungarian_match
from h2g.nn.set_loss import point_sample
from h2g.nn.set_loss import set_loss
from h2g.nn.set_loss import Targets
from h2g.nn.set_loss import uncertain_points


def numbers(*shape, seed=0):
  return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape), jnp.float32)


@pytest.mark.smoke
def test_matching_equals_scipy():
  optimize = pytest.importorskip("scipy.optimize", reason="scipy is in the extra [dev]")
  costs = numbers(16, 6, 9)
  valid = jnp.arange(6)[None] < jnp.arange(16)[:, None] % 7
  got = np.asarray(jax.jit(jax.vmap(hungarian_match))(costs, valid))
  for cost, real, columns in zip(np.asarray(costs), np.asarray(valid), got):
    rows, wanted = optimize.linear_sum_assignment(cost[real])
    assert len(set(columns.tolist())) == 6
    np.testing.assert_array_equal(columns[real], wanted[np.argsort(rows)])
  assert np.isfinite(hungarian_match(costs[0].at[0].set(jnp.nan), valid[6])).all()
  with pytest.raises(InputError, match="9 masks cannot each have one of 6"):
    hungarian_match(costs[0].T, jnp.ones(9, bool))


def test_points_and_dice_by_hand():
  x = jnp.arange(4.0).reshape(1, 2, 2, 1)
  at = jnp.array([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5]]])
  np.testing.assert_allclose(point_sample(x, at)[0, :, 0], [0, 2, 1.5])
  assert dice_loss(jnp.full(4, 99.0), jnp.ones(4)) == pytest.approx(0.0)
  assert dice_loss(jnp.full(4, 99.0), jnp.zeros(4)) == pytest.approx(1 - 1 / 5)
  logits = jnp.broadcast_to(jnp.linspace(-4, 4, 32).reshape(1, 32, 1, 1), (1, 32, 32, 1))
  points = uncertain_points(jax.random.key(0), logits, 64)
  near = np.abs(np.asarray(points)[0, :, 0] - 0.5)
  assert near[:48].max() < 0.25 and near[48:].max() > 0.25  # 3/4 of 64 at the border


@pytest.mark.slow
def test_the_set_loss_knows_right_from_wrong():
  """Two bands; the queries that say so, in any order, lose next to nothing."""
  masks = jax.nn.one_hot(jnp.repeat(jnp.array([0, 1]), 4)[:, None] * jnp.ones((1, 8), jnp.int32), 3)
  targets = Targets(jnp.array([[2, 0, -1]]), masks[None])
  sure = lambda m: 40.0 * (m - 0.5)
  predicted = sure(jnp.stack([masks[..., 1], masks[..., 0] * 0, masks[..., 0]], -1))[None]
  classes = 20 * jax.nn.one_hot(jnp.array([[0, 3, 2]]), 4)
  value = jax.jit(lambda c, m: set_loss(jax.random.key(0), c, m, targets, num_points=32))
  right = value(classes, predicted)
  assert right.classes < 1e-3 and right.dice < 0.25  # points between the bands are half of each
  swapped = value(20 * jax.nn.one_hot(jnp.array([[2, 3, 0]]), 4), predicted)
  assert swapped.total > right.total + 5
  # No segment at all: every query says "no object", and nothing divides by zero.
  empty = Targets(jnp.full((1, 3), -1), masks[None])
  grads = jax.grad(lambda c: set_loss(jax.random.key(0), c, predicted, empty, num_points=8).total)
  assert np.isfinite(grads(classes)).all()


@pytest.mark.slow
def test_maps_by_hand():
  sure = lambda rows: 20 * jnp.asarray(rows, jnp.float32) - 10
  masks = sure([[[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]]]).swapaxes(1, 2)[:, None]
  classes = 9 * jax.nn.one_hot(jnp.array([[0, 0, 1, 2]]), 3)  # the last says "no object"
  np.testing.assert_array_equal(semantic_map(classes, masks)[0, 0], [0, 0, 0, 1])
  merged = panoptic_map(classes, masks, things=(False, True))
  np.testing.assert_array_equal(merged.map[0, 0], [0, 0, 0, 2])
  np.testing.assert_array_equal(merged.classes[0], [0, 0, 1, -1])
  apart = panoptic_map(classes, masks, things=(True, True))
  np.testing.assert_array_equal(apart.map[0, 0], [0, 0, 1, 2])
  # A mask that lost most of itself to a surer one is dropped, and so is an unsure class.
  over = jnp.concatenate([masks[..., :1], masks[..., :1] + 1], -1)
  found = panoptic_map(9.0 * jax.nn.one_hot(jnp.array([[0, 1]]), 3), over, things=(True, True))
  np.testing.assert_array_equal(found.classes[0], [-1, 1])
  unsure = panoptic_map(0.1 * classes, masks, things=(True, True))
  assert (unsure.map == -1).all()


@pytest.mark.smoke
def test_prototype_cross_attention_is_the_formula():
  dim, heads = 8, 2
  model = pure(lambda rngs: PrototypeCrossAttention(dim, heads, rngs=rngs))
  params, rest = model.init(jax.random.key(0))
  params = jax.tree.map(lambda p: p + 0.1 * numbers(*p.shape), params)
  mask = np.random.default_rng(0).random((2, 5, 12)) < 0.4
  mask[0, 1] = False
  memory, x, places = numbers(2, 3, 4, dim), numbers(2, 5, dim), numbers(5, dim)
  reading = Reading(memory, sine_grid(3, 4, dim), places, jnp.asarray(mask))
  module = model.bind(params, rest)
  module.eval()
  got = jax.jit(lambda x: module(x, reading))(x)
  # Step by step as the paper's code does, in NumPy.
  p = jax.tree.map(np.asarray, params)
  linear = lambda x, name: x @ p[name]["kernel"] + p[name]["bias"]
  scaled = lambda x, axis: x / np.linalg.norm(x, axis=axis, keepdims=True)
  m = np.asarray(memory + reading.positions[None]) / np.sqrt(1 + 1e-5)
  m = m * p["norm"]["scale"] + p["norm"]["bias"]
  m = np.pad(m, ((0, 0), (1, 1), (1, 1), (0, 0)))
  local = sum(m[:, i : i + 3, j : j + 4] * p["local"][i, j] for i in range(3) for j in range(3))
  f = scaled(linear((local + p["local_bias"]).reshape(2, 12, dim), "features"), -1)
  asked = np.asarray(x) + np.asarray(places)
  asked = (asked - asked.mean(-1, keepdims=True)) / np.sqrt(asked.var(-1, keepdims=True) + 1e-5)
  asked = asked * p["query_norm"]["scale"] + p["query_norm"]["bias"]
  q = scaled(linear(asked, "query"), -1)
  prototypes = np.zeros((2, 5, dim))
  for b, i, h in np.ndindex(2, 5, heads):
    cut = slice(h * 4, h * 4 + 4)
    similarity = f[b, :, cut] @ q[b, i, cut]
    allowed = mask[b, i] if mask[b, i].any() else np.ones(12, bool)
    prototypes[b, i, cut] = f[b, np.where(allowed, similarity, -np.inf).argmax(), cut]
  met = scaled(linear(prototypes * q, "project"), 1) * p["alpha"]
  np.testing.assert_allclose(got, np.asarray(x) + linear(met + prototypes, "out"), atol=1e-5)
  with pytest.raises(InputError, match="choose from queries, channels"):
    PrototypeCrossAttention(dim, heads, normalise="rows", rngs=None)


def test_masked_cross_attention_reads_inside_its_mask():
  model = pure(lambda rngs: MaskedCrossAttention(8, 2, rngs=rngs))
  module = model.bind(*model.init(jax.random.key(0)))
  mask = jnp.zeros((1, 3, 6), bool).at[0, :2, :2].set(True)
  read = lambda memory: module(
    numbers(1, 3, 8), Reading(memory, sine_grid(2, 3, 8), numbers(3, 8), mask)
  )
  memory = numbers(1, 2, 3, 8)
  before, after = read(memory), read(memory.at[0, 1].add(1.0))  # the second row of pixels
  np.testing.assert_allclose(before[0, :2], after[0, :2], atol=1e-6)
  assert np.abs(before[0, 2] - after[0, 2]).max() > 1e-3 and np.isfinite(before).all()


def test_layers_of_images():
  x, kernel = numbers(2, 3, 5, 4), numbers(4, 4, 4, 6)
  wanted = jax.lax.conv_transpose(
    x, kernel[::-1, ::-1], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(doubled(x, kernel), wanted, atol=1e-4)
  np.testing.assert_allclose(resize(x, 3, 5), x, atol=1e-6)
  torch = pytest.importorskip("torch", reason="torch is in the extra [pyg]")
  first = lambda y: torch.from_numpy(np.array(y)).permute(0, 3, 1, 2)
  theirs = torch.nn.functional.conv_transpose2d(
    first(x), torch.from_numpy(np.array(kernel)).permute(2, 3, 0, 1), stride=2, padding=1
  )
  np.testing.assert_allclose(doubled(x, kernel), theirs.permute(0, 2, 3, 1), atol=1e-4)
  for size in ((7, 11), (2, 3)):
    theirs = torch.nn.functional.interpolate(first(x), size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resize(x, *size), theirs.permute(0, 2, 3, 1), atol=1e-5)


def test_gates_of_self_modulation():
  """Two sigmoids leave the gate between sigmoid(0) and sigmoid(1), one between 0 and 1."""
  x = 9 * numbers(4, 3, 3, 8)
  for double, low, high in ((True, 0.5, 0.7311), (False, 0.0, 1.0)):
    model = pure(lambda rngs, double=double: SelfModulation(8, double_sigmoid=double, rngs=rngs))
    module = model.bind(*model.init(jax.random.key(0)))
    gate = np.asarray(module(x) / x - 1)
    assert low - 1e-3 <= gate.min() and gate.max() <= high + 1e-3


@pytest.mark.parametrize("name", ["small", "resnet50", "stdc1", "stdc2"])
def test_strides_and_sizes_of_backbones(name):
  model = pure(lambda rngs: backbone(name, norm="frozen", rngs=rngs))
  params, rest = jax.eval_shape(model.init, jax.random.key(0))
  levels = jax.eval_shape(lambda p, r: model.bind(p, r)(jnp.zeros((1, 64, 96, 3))), params, rest)
  first = 2 if name == "small" else 4
  for i, level in enumerate(levels):
    stride = first * 2**i
    assert level.shape[:3] == (1, 64 // stride, 96 // stride)
  count = sum(leaf.size for leaf in jax.tree.leaves((params, rest)))
  # torchvision's resnet50 without its classifier has 23,508,032 weights; 53,120 more statistics.
  if name == "resnet50":
    assert count == 23_508_032 + 53_120
  with pytest.raises(InputError, match="choose from small, resnet50"):
    backbone("vgg", rngs=None)
