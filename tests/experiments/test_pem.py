"""PEM: a small run, empty masks, its checkpoints, and what it cannot use."""

import jax
import numpy as np
import pytest

from configs.pem import get_config
from experiments.pem.claim import never_nan
from experiments.pem.experiment import segmenter
from h2g import convert
from h2g.convert import pem as names
from h2g.errors import InputError
from h2g.train.__main__ import main


def test_empty_masks_never_give_nan():
  holds, found = never_nan()
  assert holds, found


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["prototype", "masked", "random"])
def test_a_small_run_ends_with_its_results(tmp_path, attention):
  small = ("data.train=4", "data.val=2", "data.test=2", "data.batch_size=2", "num_seeds=1")
  shape = ("model.dim=8", "model.num_heads=2", "model.conv_dim=8", "model.mask_dim=8")
  steps = ("data.eval_batch_size=2", "train.steps=2", "train.eval_every=2", "num_points=16")
  words = [f"--config.{word}" for word in (*small, *shape, *steps)]
  run = f"--workdir={tmp_path / 'run'}"
  config = f"--config=configs/pem.py:tiny,attention={attention}"
  assert main(["train", config, run, "--noprogress", *words]) == 0
  assert '"metric": "miou"' in (tmp_path / "run" / "results.json").read_text()


def published(depths=(3, 4, 6, 3), classes=19, layers=6):
  """{name: shape} of the published R50 checkpoint, written from its modules."""
  found = {}

  def norm(name, width, running=True):
    parts = ("weight", "bias", *(("running_mean", "running_var") if running else ()))
    found.update({f"{name}.{part}": (width,) for part in parts})
    if running:
      found[f"{name}.num_batches_tracked"] = ()

  def conv(name, out, into, size, norm_name):
    found[f"{name}.weight"] = (out, into, size, size)
    norm(norm_name, out)

  def linear(name, out, into, tail=()):
    found[f"{name}.weight"], found[f"{name}.bias"] = (out, into, *tail), (out,)

  conv("backbone.stem.conv1", 64, 3, 7, "backbone.stem.conv1.norm")
  width = 64
  for i, depth in enumerate(depths):
    inside = 64 * 2**i
    for j in range(depth):
      at = f"backbone.res{i + 2}.{j}"
      if j == 0:
        conv(f"{at}.shortcut", 4 * inside, width, 1, f"{at}.shortcut.norm")
      for k, shape in enumerate(((inside, width, 1), (inside, inside, 3), (4 * inside, inside, 1))):
        conv(f"{at}.conv{k + 1}", *shape, f"{at}.conv{k + 1}.norm")
      width = 4 * inside
  pixels = "sem_seg_head.pixel_decoder"
  for i, into in enumerate((256, 512, 1024, 2048)):
    at = f"{pixels}.in_projections.{i}"
    conv(f"{at}.conv", 128, into, 1, f"{at}.bn")
    gate = f"{pixels}.csm.{i}.mlp.0.mlp"
    conv(f"{gate}.0", 64, 128, 1, f"{gate}.1")
    found[f"{gate}.3.weight"] = (128, 64, 1, 1)
  conv(f"{pixels}.conv_avg.conv", 128, 2048, 1, f"{pixels}.conv_avg.bn")
  conv(f"{pixels}.out.conv", 256, 128, 1, f"{pixels}.out.bn")
  for i in range(3):
    at = f"{pixels}.dcn.{i}"
    linear(f"{at}.dcn_offset", 27, 128, (3, 3))
    conv(f"{at}.dcn", 128, 128, 3, f"{at}.dcn_bn")
    conv(f"{at}.up_sample", 128, 128, 4, f"{at}.up_bn")
  queries = "sem_seg_head.predictor"
  for name, rows in (("query_feat", 100), ("query_embed", 100), ("level_embed", 3)):
    found[f"{queries}.{name}.weight"] = (rows, 256)
  for i in range(3):
    linear(f"{queries}.input_proj.{i}", 256, 128, (1, 1))
    linear(f"{queries}.mask_embed.layers.{i}", 256, 256)
  norm(f"{queries}.decoder_norm", 256, running=False)
  linear(f"{queries}.class_embed", classes + 1, 256)
  for i in range(layers):
    cross, own, ffn = (
      f"{queries}.transformer_{kind}_layers.{i}"
      for kind in ("cross_attention", "self_attention", "ffn")
    )
    norm(f"{cross}.feature_proj.bn", 256)
    linear(f"{cross}.feature_proj.to_query_3x3", 256, 1, (3, 3))
    norm(f"{cross}.query_proj.0", 256, running=False)
    for name in ("feature_proj.out", "query_proj.1", "proj", "final"):
      linear(f"{cross}.{name}", 256, 256)
    found[f"{cross}.alpha"] = (1, 1, 256)
    found[f"{own}.self_attn.in_proj_weight"] = (768, 256)
    found[f"{own}.self_attn.in_proj_bias"] = (768,)
    linear(f"{own}.self_attn.out_proj", 256, 256)
    linear(f"{ffn}.linear1", 2048, 256)
    linear(f"{ffn}.linear2", 256, 2048)
    for at in (own, ffn):
      norm(f"{at}.norm", 256, running=False)
  found["criterion.empty_weight"] = (classes + 1,)
  return found


@pytest.mark.slow
def test_a_published_checkpoint_fills_the_full_network():
  model = segmenter(get_config("full"), 19)
  params, rest = jax.eval_shape(model.init, jax.random.key(0))
  # Views of one number: no memory, and each tensor can be told by its value.
  shapes = published()
  tensors = {
    name: np.broadcast_to(np.float32(i), shape) for i, (name, shape) in enumerate(shapes.items())
  }
  value = lambda name: list(shapes).index(name)
  tree = {"params": params, "rest": rest}
  filled = convert.fill(tree, tensors, names.table("resnet50"), source="r50.npz")
  at = filled["params"]["decoder"]["blocks"][5]
  head = "sem_seg_head.predictor.transformer_{}_layers.5."
  assert (
    at["cross"]["local"]
    == value(head.format("cross_attention") + "feature_proj.to_query_3x3.weight")
  ).all()
  assert (
    at["attention"]["key"]["kernel"]
    == value(head.format("self_attention") + "self_attn.in_proj_weight")
  ).all()
  assert (
    filled["rest"]["backbone"]["stages"][3][2]["conv3"]["norm"]["var"]
    == value("backbone.res5.2.conv3.norm.running_var")
  ).all()
  del tensors["backbone.stem.conv1.weight"]
  tensors["backbone.features.0.conv.weight"] = np.zeros((32, 3, 3, 3), np.float32)
  with pytest.raises(InputError, match=r"r50.npz does not fit .*missing: 1, params/backbone/stem"):
    convert.fill(tree, tensors, names.table("resnet50"), source="r50.npz")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["stdc1", "stdc2"])
def test_every_layer_of_stdc_has_a_rule(network):
  config = get_config(f"full,network={network}")
  params, _ = jax.eval_shape(segmenter(config, 19).init, jax.random.key(0))
  depths = names.DEPTHS[network]
  tensors, first = {}, 2
  layers = {f"backbone.features.{i}": params["backbone"]["stem"][i] for i in (0, 1)}
  for stage, depth in enumerate(depths):
    for block in range(depth):
      ours = params["backbone"]["stages"][stage][block]
      layers |= {
        f"backbone.features.{first + block}.conv_list.{i}": ours["convs"][i] for i in range(4)
      }
      if block == 0:
        kernel = ours["down"]["conv"]["kernel"].shape
        tensors[f"backbone.features.{first}.avd_layer.0.weight"] = np.zeros(
          [kernel[i] for i in (3, 2, 0, 1)]
        )
        for part in ("weight", "bias"):
          tensors[f"backbone.features.{first}.avd_layer.1.{part}"] = np.zeros(kernel[3])
    first += depth
  for name, layer in layers.items():
    kernel = layer["conv"]["kernel"].shape
    tensors[f"{name}.conv.weight"] = np.zeros([kernel[i] for i in (3, 2, 0, 1)])
    tensors |= {f"{name}.bn.{part}": np.zeros(kernel[3]) for part in ("weight", "bias")}
  rules = names.table(network)
  tree = {"params": {"backbone": params["backbone"]}}
  assert convert.fill(tree, tensors, rules, source="stdc")


@pytest.mark.parametrize(
  "variant, message",
  [
    ("tiny,attention=soft", "attention=soft is unknown: choose from prototype, masked, random"),
    ("tiny,double_sigmoid=1", "double_sigmoid=1 is unknown: choose from True, False"),
  ],
)
def test_an_unknown_variant_is_named(variant, message):
  with pytest.raises(ValueError, match=message):
    get_config(variant)


def test_a_full_run_without_its_data_says_where_it_looked(tmp_path):
  from experiments.pem.experiment import build

  for variant, folder in (("full", "leftImg8bit/train"), ("full_ade20k", "images/training")):
    with pytest.raises(InputError, match=f"{folder} holds no"):
      build(get_config(f"{variant},data_dir={tmp_path}"))
