"""Conditional cross attention: its equivalences, a small run, and what it cannot use."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs.cca import get_config
from experiments.cca.claim import entanglement
from experiments.cca.claim import map_table
from experiments.cca.claim import prevalence
from experiments.cca.experiment import build
from experiments.cca.experiment import networks
from h2g import train
from h2g.errors import InputError
from h2g.models.cca import Embedder
from h2g.nn.losses import cosine_distance
from h2g.nn.losses import mined_triplet_loss
from h2g.nn.losses import triplet_loss
from h2g.nn.pure import pure
from h2g.train.__main__ import main

SMALL = dict(image_size=16, patch=4, dim=16, num_layers=3, num_heads=2, out_dim=8)


def model(**settings):
  built = pure(lambda rngs: Embedder(5, **SMALL, **settings, rngs=rngs))
  return built, *built.init(jax.random.key(0))


def inputs():
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(3, 16, 16, 3)), jnp.float32)
  return images, jnp.asarray(rng.integers(0, 5, (3, 4)), jnp.int32)


@pytest.mark.slow
@pytest.mark.parametrize(
  "residual, embedding",
  [
    ("cls", "onehot"),
    pytest.param("cls", "masked", marks=pytest.mark.slow),
    pytest.param("condition", "onehot", marks=pytest.mark.slow),
  ],
)
def test_one_query_gives_what_a_query_per_token_gives(residual, embedding):
  settings = dict(residual=residual, embedding=embedding)
  single, params, rest = model(read_out="single", **settings)
  tiled, _, _ = model(read_out="tiled", **settings)
  embed = lambda built: jax.jit(lambda p, *x: built.bind(p, rest)(*x))
  one, many = embed(single)(params, *inputs()), embed(tiled)(params, *inputs())
  assert one.shape == (3, 4, 8)
  np.testing.assert_allclose(one, many, atol=1e-5)
  # The gradients as well: the rows that are not read change nothing.
  value = lambda built: lambda p: (embed(built)(p, *inputs()) ** 3).sum()
  for a, b in zip(*[jax.tree.leaves(jax.jit(jax.grad(value(m)))(params)) for m in (single, tiled)]):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("read_out", ["none", "csn", "film", "single"])
def test_spaces_are_unit_rows_that_do_not_interact(read_out):
  built, params, rest = model(read_out=read_out)
  images, conditions = inputs()
  module = built.bind(params, rest)
  together = module(images, conditions)
  np.testing.assert_allclose(jnp.linalg.norm(together, axis=-1), 1.0, atol=1e-5)
  alone = module(images, conditions[:, 2:3])
  np.testing.assert_allclose(together[:, 2:3], alone, atol=1e-5)
  other = module(images, (conditions + 1) % 5)
  starts_alike = read_out in ("none", "film")  # film starts at scale and shift zero
  assert np.allclose(other, together, atol=1e-5) == starts_alike


def test_the_cross_attention_is_the_formula():
  built, params, rest = model(read_out="single")
  images, conditions = inputs()
  module = built.bind(params, rest)
  weights = module.attention_map(images, conditions)
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
  block, z = module.vit.blocks[-1], module.tokens(images)
  values = block.attention.heads(block.attention.value(block.norm(z)))
  read = jnp.einsum("bchn,bnhd->bchd", weights, values).reshape(3, 4, 16)
  x = z[:, :1] + block.attention.out(read)
  x = x + block.mlp(block.mlp_norm(x))
  expected = module.head(module.vit.norm(x))
  expected = expected / jnp.linalg.norm(expected, axis=-1, keepdims=True)
  np.testing.assert_allclose(module(images, conditions), expected, atol=1e-5)


def test_the_triplet_loss_by_hand():
  x, y = jnp.array([1.0, 0.0]), jnp.array([0.6, 0.8])
  loss = lambda *abc: triplet_loss(cosine_distance(*abc[:2]), cosine_distance(*abc[::2]), 0.2)
  assert loss(x, x, y) == pytest.approx(0.0)
  assert loss(x, y, x) == pytest.approx(0.2 + 0.4)
  assert loss(x, y, y) == pytest.approx(0.2)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"read_out": "tile"}, "read_out='tile' is unknown: choose from none, csn, film"),
    ({"residual": "image"}, "residual='image' is unknown: choose cls or condition"),
    ({"embedding": "one"}, "embedding='one' is unknown: choose onehot or masked"),
  ],
)
def test_an_unknown_part_is_named(settings, message):
  with pytest.raises(InputError, match=message):
    model(**settings)


@pytest.mark.slow
def test_separate_networks_are_the_unconditional_one_each():
  config = get_config("tiny,model=separate")
  config.model.update(dim=12, num_layers=1)
  both = networks(config, 2)
  params, rest = both.init(jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)
  spaces = both.spaces(params, rest, images)
  assert spaces.shape == (4, 2, 32)
  config.model.read_out = "none"
  one = networks(config, 1)
  of = lambda tree, k: jax.tree.map(lambda leaf: leaf[k], tree)
  for k in range(2):
    alone = one.spaces(of(params, k), of(rest, k), images)[:, 0]
    np.testing.assert_allclose(spaces[:, k], alone, atol=1e-5)


def test_what_the_claim_measures_on_spaces_that_are_known():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, (200, 2))
  apart = {"spaces": np.eye(3)[labels], "labels": labels}  # [N, 2, 3]: a space per attribute
  split = {"queries": apart, "gallery": apart}
  table = map_table(split)
  np.testing.assert_allclose(np.diag(table), 1.0)
  # A foreign space orders at random, up to the ties within each of its values.
  assert np.abs(table[~np.eye(2, dtype=bool)] - prevalence(labels)).max() < 0.06
  assert entanglement(split) < 0.5
  both = np.repeat(np.eye(9)[labels @ [3, 1]][:, None], 2, axis=1)
  one = {"spaces": both, "labels": labels}
  assert entanglement({"queries": one, "gallery": one}) == 1.0


@pytest.mark.slow
def test_a_small_run_ends_with_its_results(tmp_path):
  small = ("data.train=60", "data.gallery=30", "data.queries=10", "images=6", "num_seeds=2")
  steps = ("train.steps=2", "train.eval_every=2", "model.dim=16", "model.num_heads=2")
  words = [f"--config.{word}" for word in (*small, *steps, "train.warmup=0", "model.num_layers=2")]
  arguments = ["train", "--config=configs/cca.py:tiny", f"--workdir={tmp_path / 'run'}"]
  assert main([*arguments, "--noprogress", *words]) == 0
  result = (tmp_path / "run" / "results.json").read_text()
  assert '"metric": "map"' in result


@pytest.fixture
def lists(tmp_path):
  """A small folder of photographs with lists, and the full config on it."""
  rng = np.random.default_rng(0)
  meta = {"ATTRIBUTES": ["skirt", "collar"], "ATTRIBUTES_NUM": {"skirt": 2, "collar": 2}}
  (tmp_path / "meta.json").write_text(json.dumps({"FashionAI": meta}))
  rows = [f"{i} {i % 2} {i // 2 % 2}" for i in range(8)]
  for i in range(8):
    Image.fromarray(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
  for split in ("train", "valid", "test"):
    (tmp_path / f"filenames_{split}.txt").write_text("\n".join(f"{i}.png" for i in range(8)))
    for part in ("label", "query", "candidate"):
      (tmp_path / f"{part}_{split}.txt").write_text("\n".join(rows))
  config = get_config("full")
  config.data.folder, config.checkpoint = str(tmp_path), ""
  config.model.update(image_size=16, patch=8, dim=8, num_layers=2, num_heads=2, out_dim=4)
  config.images, config.eval_images = 2, 4
  config.train.update(steps=2, eval_every=2, compute_dtype="float32")
  return config


@pytest.mark.slow
def test_full_trains_on_lists_of_photographs(lists, tmp_path):
  result = train.run(build(lists), lists, tmp_path / "run", bar=False)
  assert result["metric"] == "map"
  (tmp_path / "query_test.txt").unlink()
  with pytest.raises(InputError, match=r"query_test\.txt"):
    build(lists)


def test_a_checkpoint_of_another_architecture(lists, tmp_path):
  np.savez(tmp_path / "vit.npz", **{"norm.weight": np.ones(8, np.float32)})
  lists.checkpoint = str(tmp_path / "vit.npz")
  with pytest.raises(InputError, match=r"vit\.npz does not fit this network: missing"):
    jax.eval_shape(build(lists).init, jax.random.key(0))


def test_all_triplets_of_a_batch_by_hand():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6, 2, 3))
  x /= np.linalg.norm(x, axis=-1, keepdims=True)
  labels = rng.integers(-1, 2, (6, 2))
  got = mined_triplet_loss(jnp.asarray(x, jnp.float32), jnp.asarray(labels, jnp.int32), 0.2)
  for k in range(2):
    y = labels[:, k]
    values = [
      0.2 - x[a, k] @ x[p, k] + x[a, k] @ x[n, k]
      for a, p, n in itertools.product(range(6), repeat=3)
      if a != p and min(y[[a, p, n]]) >= 0 and y[a] == y[p] != y[n]
    ]
    above = [value for value in values if value > 0]
    np.testing.assert_allclose(got.loss[k], np.mean(above) if above else 0, atol=1e-5)
    np.testing.assert_allclose(got.violated[k], len(above) / max(len(values), 1), atol=1e-5)


def test_too_few_photographs_name_the_attribute(lists, tmp_path):
  (tmp_path / "label_train.txt").write_text("0 0 1 1 0\n1 0 1 1 1\n2 1 0\n3 1 1\n")
  with pytest.raises(InputError, match="attribute skirt: needs two values with two labelled items"):
    build(lists).train_batches((0,))
