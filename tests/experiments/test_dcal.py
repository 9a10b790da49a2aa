"""Dual cross-attention learning: its equivalences, a small run, and what it cannot use."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import save_file

from configs.dcal import get_config
from experiments.dcal.experiment import build
from h2g.data.birds import mark_patches
from h2g.errors import InputError
from h2g.models.dcal import DCALViT
from h2g.nn.pure import pure
from h2g.ops.rollout import attention_rollout
from h2g.train.__main__ import main

SMALL = dict(image_size=12, patch=4, dim=16, num_layers=2, num_heads=2, ratio=0.3)


def model(**settings):
  built = pure(lambda rngs: DCALViT(5, **SMALL | settings, rngs=rngs))
  return built, *jax.jit(built.init)(jax.random.key(0))


def images(num=4):
  return jnp.asarray(np.random.default_rng(0).normal(size=(num, 12, 12, 3)), jnp.float32)


def call(built, rest, *, key=None):
  return jax.jit(lambda params, x: built.bind(params, rest)(x, key=key))


@pytest.mark.slow
def test_the_branches_are_the_network_and_what_is_beside_it():
  built, params, rest = model()
  module, x = built.bind(params, rest), images()
  found = call(built, rest)(params, x)
  assert set(found) == {"sa", "glca"}  # pairs are for training alone
  plain = module.head(module.vit(x)[:, 0], train=False)
  np.testing.assert_allclose(found["sa"].logits, plain.logits, atol=1e-5)
  # The class token's row of the block of its own, over all tokens.
  z, seen = module.encode(module.vit.with_class_token(module.vit.embed(x)))
  row = module.glca_norm(module.glca_block(z)[:, 0])
  np.testing.assert_allclose(found["glca"].feature, row, atol=1e-5)
  weights = [jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 8**0.5) for q, k, _ in seen]
  whole = attention_rollout(jnp.stack(weights))
  np.testing.assert_allclose(module.scores(seen), whole[:, 0], atol=1e-5)
  ids = np.asarray(module.selected(seen))
  assert ids.shape == (4, 1 + 3) and (ids[:, 0] == 0).all()
  best = np.argsort(-np.asarray(whole)[:, 0, 1:], axis=1)[:, :3] + 1
  np.testing.assert_array_equal(ids[:, 1:], best)
  # An image that is its own partner: pair-wise attention is self-attention.
  alone = call(built, rest, key=jax.random.key(1))(params, x[:1])
  np.testing.assert_allclose(alone["pwca"].logits, alone["sa"].logits, atol=1e-5)


@pytest.mark.slow
def test_what_is_selected_matters_only_where_it_is_read():
  x, found = images(), {}
  for read in ("cls", "mean"):
    for selection in ("rollout", "random"):
      built, params, rest = model(read=read, selection=selection, branches=("sa", "glca"))
      found[read, selection] = call(built, rest)(params, x)["glca"].logits
  differ = lambda read: jnp.abs(found[read, "rollout"] - found[read, "random"]).max()
  assert differ("cls") < 1e-5 < 1e-4 < differ("mean")


@pytest.mark.slow
def test_distractors_reach_the_pairs_alone():
  x, key = images(), jax.random.key(1)
  _, params, rest = model()
  outs = {}
  for distractors in ("pwca", "sa", "noise"):
    other, _, _ = model(distractors=distractors)
    outs[distractors] = call(other, rest, key=key)(params, x)
  for name in ("sa", "noise"):
    np.testing.assert_allclose(outs[name]["sa"].logits, outs["pwca"]["sa"].logits, atol=1e-5)
    assert jnp.abs(outs[name]["pwca"].logits - outs["pwca"]["pwca"].logits).max() > 1e-4


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"distractors": "coco"}, "distractors='coco' is unknown: choose from pwca, sa, noise"),
    ({"selection": "all"}, "selection='all' is unknown: choose from rollout, random"),
    ({"branches": ("glca",)}, "sa, and glca, pwca or both"),
  ],
)
def test_an_unknown_part_is_named(settings, message):
  with pytest.raises(InputError, match=message):
    model(**settings)


def test_marks_lie_in_patches():
  marked = mark_patches(np.array([[0, 0], [3, 3], [4, 7]]), 4, 12)
  assert [np.flatnonzero(row).tolist() for row in marked] == [[0], [0, 1, 3, 4], [4, 5]]


SHRUNK = ("data.train=4", "data.val=2", "data.test=2", "batch_size=8", "num_seeds=1")
STEPS = ("train.steps=2", "train.eval_every=2", "train.warmup=0", "model.num_layers=1")


@pytest.mark.slow
@pytest.mark.parametrize("variant, metric", [("tiny", "accuracy"), ("tiny,task=reid", "map")])
def test_a_small_run_ends_with_its_results(tmp_path, variant, metric):
  words = [f"--config.{word}" for word in (*SHRUNK, *STEPS)]
  arguments = ["train", f"--config=configs/dcal.py:{variant}", f"--workdir={tmp_path / 'run'}"]
  assert main([*arguments, "--noprogress", *words]) == 0
  assert f'"metric": "{metric}"' in (tmp_path / "run" / "results.json").read_text()


def test_full_reads_cub_and_a_checkpoint(tmp_path):
  names = [f"00{c}.Bird/{i}.jpg" for c in (1, 2) for i in range(3)]
  for at, name in enumerate(names):
    path = tmp_path / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (40 * at, 0, 0)).save(path)
  for file, values in {
    "images.txt": names,
    "image_class_labels.txt": [1, 1, 1, 2, 2, 2],
    "train_test_split.txt": [1, 1, 0, 1, 1, 0],
  }.items():
    lines = [f"{at} {value}\n" for at, value in enumerate(values, 1)]
    (tmp_path / file).write_text("".join(lines))
  config = get_config("full,size=deit_tiny")
  config.data.update(path=str(tmp_path), num_classes=2, hold_out=2, resize=40)
  config.update(batch_size=2, eval_batch_size=3)
  config.model.update(dim=8, num_heads=2, num_layers=1, image_size=32)
  experiment = build(config)
  batch = experiment.train_batches((0,))[0]
  assert batch.own.images.shape == (1, 2, 32, 32, 3) and sorted(batch.own.labels[0]) == [0, 1]
  parts = list(experiment.eval_batches((0,))())
  counts = [{name: (of.labels >= 0).sum() for name, of in b.shared.items()} for b in parts]
  assert counts == [{"val": 2, "test": 0}, {"val": 0, "test": 2}]
  # Checkpoints: of another architecture, and one that fits, from another grid.
  config.checkpoint = str(tmp_path / "vit.safetensors")
  save_file({"stem.weight": np.zeros((3, 3), np.float32)}, config.checkpoint)
  with pytest.raises(InputError, match=r"vit\.safetensors does not fit this network: missing: 22"):
    build(config)
  shapes = {"cls_token": (1, 1, 8), "pos_embed": (1, 10, 8), "norm.weight": (8,), "norm.bias": (8,)}
  shapes |= {"patch_embed.proj.weight": (8, 3, 16, 16), "patch_embed.proj.bias": (8,)}
  inside = {"norm1": (8,), "norm2": (8,), "attn.qkv": (24, 8), "attn.proj": (8, 8)}
  for name, shape in {**inside, "mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}.items():
    shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
  save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, config.checkpoint)
  params, _ = jax.eval_shape(build(config).init, jax.random.key(0))
  assert params["vit"]["positions"].shape == (4, 8)
  config.data.num_classes = 3
  with pytest.raises(InputError, match="has 2 classes, 1 to 2, the config has num_classes=3"):
    build(config)
