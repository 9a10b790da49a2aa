"""Efficient probing: an encoder, then probes; folders of images; what is refused."""

import json

import jax
import numpy as np
from PIL import Image
import pytest

from configs.efficient_probing import get_config
from experiments.efficient_probing import claim
from experiments.efficient_probing import encoder
from experiments.efficient_probing.experiment import build
from h2g import train
from h2g.errors import InputError
from h2g.models.vit import ViT
from h2g.nn.pure import pure
from h2g.papers import Runs


def small(config):
  """The smallest canvases and networks that still are what they are."""
  inner = config.encoder.config if "encoder" in config else config
  for part in (config, inner):
    part.data.update(train=40, val=20, test=20)
    part.batch_size = 8
    part.train.update(steps=2, eval_every=2, warmup=1, steps_per_call=2)
  inner.vit.update(dim=8, num_layers=1, num_heads=2, patch=8)
  if inner.decoder:
    inner.decoder.update(decoder_dim=8)
  return config


class Small(Runs):
  """Runs whose configs are small."""

  def config(self, variant):
    return small(super().config(variant))


@pytest.mark.slow
def test_the_encoder_is_trained_once_and_probed(tmp_path):
  runs = Small("efficient_probing", tmp_path, seeds=2, bar=False)
  assert runs.test("tiny,queries=2").shape == (2,)
  written = (tmp_path / "encoder" / "results.json").stat().st_mtime_ns
  for found in claim.looks(runs).values():
    assert len(found) == 2 and all(0 <= value <= 1.001 for value in found)
  runs.test("tiny,pool=cls,block=1")  # another block
  assert (tmp_path / "encoder" / "results.json").stat().st_mtime_ns == written
  assert json.loads((tmp_path / "encoder" / "results.json").read_text())["metric"] == "loss"
  assert runs.num_params("tiny,queries=2", "^pool/") == 2 * 8 + 8 * 8


@pytest.mark.slow
def test_the_control_is_trained_to_classify(tmp_path):
  runs = Small("efficient_probing", tmp_path, bar=False)
  config = runs.config("encoder,objective=cls")
  result = train.run(encoder.build(config), config, tmp_path / "x", bar=False)
  assert result["metric"] == "loss" and result["model"] == "cls"
  assert runs.config("tiny,objective=cls").encoder.workdir.endswith("encoder,objective=cls")


@pytest.mark.slow
def test_an_encoder_as_it_is_drawn_at_random(tmp_path):
  config = small(get_config("encoder,objective=none"))
  config.train.update(steps=1, eval_every=1, warmup=0)
  experiment = encoder.build(config)
  train.run(experiment, config, tmp_path / "x", bar=False)
  kept, _ = train.restore_best(experiment, config, tmp_path / "x")
  drawn, _ = experiment.init(jax.random.split(jax.random.key(0))[0])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-6), kept, drawn)


def weights(vit) -> dict[str, np.ndarray]:
  """Random tensors of a small ViT under timm's names."""
  dim, inside = vit.dim, int(vit.dim * vit.mlp_ratio)
  shapes = {
    "cls_token": (1, 1, dim),
    "pos_embed": (1, 1 + (vit.image_size // vit.patch) ** 2, dim),
    "patch_embed.proj.weight": (dim, 3, vit.patch, vit.patch),
    "patch_embed.proj.bias": (dim,),
    **{f"{n}.{w}": (dim,) for n in ("norm", "blocks.0.norm1", "blocks.0.norm2") for w in KINDS},
  }
  for name, (out, into) in {
    "attn.qkv": (3 * dim, dim),
    "attn.proj": (dim, dim),
    "mlp.fc1": (inside, dim),
    "mlp.fc2": (dim, inside),
  }.items():
    shapes |= {f"blocks.0.{name}.weight": (out, into), f"blocks.0.{name}.bias": (out,)}
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


KINDS = ("weight", "bias")


@pytest.fixture
def photographs(tmp_path):
  """The full config on a small folder of images and a small checkpoint."""
  rng = np.random.default_rng(0)
  for split, count in (("train", 4), ("val", 3)):
    for name in ("cat", "dog"):
      folder = tmp_path / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
  config = get_config("full,queries=2")
  config.encoder.vit.update(image_size=16, patch=8, dim=8, num_layers=1, num_heads=2)
  np.savez(tmp_path / "vit.npz", **weights(config.encoder.vit))
  config.encoder.checkpoint = str(tmp_path / "vit.npz")
  config.data.update(root=str(tmp_path), eval_batch=4)
  config.probe.num_classes = 2
  config.batch_size = 4
  config.train.update(steps=2, eval_every=2, accumulate=2, compute_dtype="float32", warmup=1)
  return config


@pytest.mark.slow
def test_full_trains_on_folders_through_a_published_encoder(photographs, tmp_path):
  config = photographs
  result = train.run(build(config), config, tmp_path / "run", bar=False)
  assert result["metric"] == "accuracy" and result["model"] == "ep"
  config.probe.num_classes = 3
  with pytest.raises(InputError, match="holds 2 classes, the config has num_classes=3"):
    build(config)
  config.probe.num_classes, config.encoder.vit.num_layers = 2, 2
  with pytest.raises(InputError, match=r"vit\.npz does not fit this network: missing"):
    build(config)


def test_what_is_published():
  full = get_config("full")
  assert (full.probe.queries, full.batch_size, full.train.lr) == (32, 4096, 1.6)
  assert get_config("tiny").probe.queries == 8 and get_config("tiny,queries=4").probe.queries == 4
  params, _ = jax.eval_shape(
    pure(lambda rngs: ViT(**full.encoder.vit, rngs=rngs)).init, jax.random.key(0)
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 85_647_360  # positions are fixed


@pytest.mark.parametrize(
  "variant, error, message",
  [
    ("tiny,objective=dino", ValueError, "objective=dino is unknown"),
    ("tiny,pool=max", InputError, "pool='max' is unknown: choose from gap, cls, ep"),
  ],
)
def test_what_is_unknown(variant, error, message, tmp_path, monkeypatch):
  monkeypatch.setattr(
    "experiments.efficient_probing.encoder.precomputed",
    lambda *_: dict.fromkeys(("train", "val", "test"), (np.zeros((1, 2, 8)), 0)),
  )
  with pytest.raises(error, match=message):
    build(get_config(variant))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_claim(tmp_path):
  from h2g.papers import claims

  findings = claims.check(Runs("efficient_probing", tmp_path, bar=False))
  assert all(finding.holds for finding in findings), findings
