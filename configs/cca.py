"""Conditional cross attention, a space per attribute in one network (arXiv 2307.13254).

  python -m h2g.train --config configs/cca.py:tiny --workdir runs/cca

A variant is a name, then options: `tiny,model=csn` (`none`, `film`, `tiled`, `separate`: one
network per attribute), `tiny,residual=condition`, `tiny,embedding=masked`.

  tiny   synthetic garments of 32 x 32 pixels, five attributes, three seeds
  full   photographs that FashionAI, DARN or DeepFashion list by attribute (config.data.folder and
         .dataset), ViT-B/16 from timm's weights (config.checkpoint), 64 triplets a step, 100,000 an
         epoch. The paper's own rates are not at hand: one rate of 1e-5 for all parameters. Not run.

The numbers are in experiments/cca/README.md.
"""

from ml_collections import ConfigDict

from configs import common

NAMES = ("tiny", "full")
OPTIONS = {"model": "single", "residual": "cls", "embedding": "onehot"}
MODELS = ("none", "csn", "film", "single", "tiled", "separate")
TINY = {
  "image_size": 32,
  "patch": 8,
  "dim": 48,
  "num_layers": 3,
  "num_heads": 3,
  "mlp_ratio": 2.0,
  "out_dim": 32,
}


BASE = {
  "image_size": 224,
  "patch": 16,
  "dim": 768,
  "num_layers": 12,
  "num_heads": 12,
  "mlp_ratio": 4.0,
  "out_dim": 512,
  "learned_positions": True,
}


def get_config(variant="tiny"):
  """Values only; see the module's docstring for the variants."""
  name, options = common.parse_variant(variant, names=NAMES, options=OPTIONS)
  common.require("model", options["model"], MODELS)
  config = (_full if name == "full" else _tiny)()
  config.experiment = "cca"
  config.margin = 0.2
  sizes = BASE if name == "full" else TINY
  config.model = ConfigDict({"read_out": options.pop("model"), **options, **sizes})
  if name == "tiny" and config.model.read_out == "separate":
    config.train.steps = 800  # five networks; each is near 1.0 by then
  return config


def _tiny() -> ConfigDict:
  config = common.trainer(
    steps=2400,
    eval_every=800,
    log_every=50,
    steps_per_call=50,
    lr=5e-4,
    warmup=50,
    optimizer="adam",
  )
  config.num_seeds = 3
  config.images = 48  # a step, all of whose triplets are mined
  config.eval_images = 256
  config.checkpoint = ""
  config.data = ConfigDict(
    {"seed": 0, "train": 4000, "gallery": 1000, "queries": 300, "noise": 0.05, "jitter": 0.3}
  )
  return config


def _full() -> ConfigDict:
  config = common.trainer(
    steps=20 * 100_000 // 64,
    eval_every=100_000 // 64,
    lr=1e-4,
    rates=(("^vit/", 0.1),),
    optimizer="adam",
    compute_dtype="bfloat16",
  )
  config.images = 64  # triplets a step, of views drawn on the host
  config.eval_images = 64
  config.checkpoint = "vit_base_patch16_224.safetensors"
  config.data = ConfigDict({"folder": "FashionAI", "dataset": "FashionAI"})
  return config
