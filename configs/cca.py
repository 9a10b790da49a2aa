"""Conditional cross attention, a space per attribute in one network (arXiv 2307.13254).

  python -m h2g.train --config configs/cca.py:tiny --workdir runs/cca

A variant is a name, then options: `tiny,model=csn` (`none`, `film`, `tiled`, `separate`: one
network per attribute), `tiny,residual=condition`, `tiny,embedding=masked`.

  tiny   synthetic garments of 32 x 32 pixels, five attributes, three seeds

The numbers are in experiments/cca/README.md. The published settings (224 x 224 photographs) have no
variant yet.
"""

from ml_collections import ConfigDict

from configs import common

NAMES = ("tiny",)
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


def get_config(variant="tiny"):
  _, options = common.parse_variant(variant, names=NAMES, options=OPTIONS)
  common.require("model", options["model"], MODELS)
  config = common.trainer(
    steps=1200,
    eval_every=400,
    log_every=50,
    steps_per_call=50,
    lr=1e-3,
    warmup=50,
    optimizer="adam",
  )
  config.experiment = "cca"
  config.num_seeds = 3
  # A network of its own sees 2.5 times the triplets of its attribute that the one network sees.
  config.triplets = 32 if options["model"] == "separate" else 64
  config.margin = 0.2
  config.data = ConfigDict(
    {"seed": 0, "train": 4000, "gallery": 1000, "queries": 300, "noise": 0.05, "jitter": 0.3}
  )
  config.model = ConfigDict({"read_out": options.pop("model"), **options, **TINY})
  return config
