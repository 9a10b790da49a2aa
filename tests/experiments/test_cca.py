"""Conditional cross attention: its equivalences, a small run, and what it cannot use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.cca import get_config
from experiments.cca.claim import at_most
from experiments.cca.claim import entanglement
from experiments.cca.claim import map_table
from experiments.cca.claim import prevalence
from experiments.cca.experiment import build
from experiments.cca.experiment import networks
from experiments.cca.model import Embedder
from experiments.cca.model import triplet_loss
from h2g.errors import InputError
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


@pytest.mark.smoke
@pytest.mark.parametrize(
  "residual, embedding", [("cls", "onehot"), ("cls", "masked"), ("condition", "onehot")]
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
  assert triplet_loss(x, x, y) == pytest.approx(0.0)
  assert triplet_loss(x, y, x) == pytest.approx(0.2 + 0.4)
  assert triplet_loss(x, y, y) == pytest.approx(0.2)


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
def test_separate_networks_are_the_one_network_attribute_by_attribute():
  config = get_config("tiny,model=separate").model
  both = networks(config, 2)
  params, rest = both.init(jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)
  spaces = jax.jit(both.all_spaces)(params, rest, images)
  assert spaces.shape == (4, 2, 32)
  rows = jax.jit(both.embed)(params, rest, images, jnp.array([0, 0, 1, 1]))
  np.testing.assert_allclose(rows[:2], spaces[:2, 0], atol=1e-5)
  np.testing.assert_allclose(rows[2:], spaces[2:, 1], atol=1e-5)


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
  assert at_most("x", 0.1, 0.2).holds and not at_most("x", float("nan"), 0.2).holds


def test_a_small_run_ends_with_its_results(tmp_path):
  small = ("data.train=60", "data.gallery=30", "data.queries=10", "triplets=4", "num_seeds=2")
  steps = ("train.steps=2", "train.eval_every=2", "model.dim=16", "model.num_heads=2")
  words = [f"--config.{word}" for word in (*small, *steps, "train.warmup=0", "model.num_layers=2")]
  arguments = ["train", "--config=configs/cca.py:tiny", f"--workdir={tmp_path / 'run'}"]
  assert main([*arguments, "--noprogress", *words]) == 0
  result = (tmp_path / "run" / "results.json").read_text()
  assert '"metric": "map"' in result


def test_too_few_garments_name_the_attribute():
  config = get_config("tiny")
  config.data.train = 2
  with pytest.raises(InputError, match="needs two values with two labelled items each"):
    build(config)
