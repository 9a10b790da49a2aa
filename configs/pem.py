"""Prototype-based efficient MaskFormer (arXiv 2402.19422): universal segmentation.

  python -m h2g.train --config configs/pem.py:tiny --workdir runs/pem

A variant is a name, then options: `tiny,attention=masked` (Mask2Former's), `tiny,attention=random`
(a random allowed pixel), `tiny,double_sigmoid=False`, `tiny,normalise=channels`,
`tiny,when_empty=batch`.

  tiny             synthetic scenes of 32 x 32 pixels, three seeds
  full             Cityscapes panoptic, ResNet-50 (or full,network=stdc1), the published settings
  full_ade20k      ADE20K panoptic, ResNet-50 with frozen norms, the published settings

`full,data_dir=FOLDER` says where the set lies. The numbers are in experiments/pem/README.md.
"""

from ml_collections import ConfigDict

from configs import common

NAMES = ("tiny", "full", "full_ade20k")
ATTENTIONS = ("prototype", "masked", "random")
OPTIONS = {
  "attention": "prototype",
  "double_sigmoid": "True",
  "normalise": "queries",
  "when_empty": "query",
  "network": "",
  "data_dir": "",
}
TINY = {
  "network": "small",
  "conv_dim": 48,
  "mask_dim": 64,
  "dim": 64,
  "num_heads": 4,
  "num_queries": 16,
  "num_layers": 3,
  "inside": 128,
}
FULL = {
  "network": "resnet50",
  "conv_dim": 128,
  "mask_dim": 256,
  "dim": 256,
  "num_heads": 8,
  "num_queries": 100,
  "num_layers": 6,
  "inside": 2048,
}


def get_config(variant="tiny"):
  name, options = common.parse_variant(variant, names=NAMES, options=OPTIONS)
  common.require("attention", options["attention"], ATTENTIONS)
  common.require("double_sigmoid", options["double_sigmoid"], ("True", "False"))
  common.require("normalise", options["normalise"], ("queries", "channels"))
  common.require("when_empty", options["when_empty"], ("query", "batch"))
  options["double_sigmoid"] = options["double_sigmoid"] == "True"
  data_dir, network = options.pop("data_dir"), options.pop("network")
  config = tiny() if name == "tiny" else full(name == "full_ade20k", data_dir)
  config.experiment = "pem"
  config.model.update(options)
  if network:
    config.model.network = network
  return config


def tiny():
  config = common.trainer(
    steps=1500,
    eval_every=1500,
    log_every=50,
    lr=1e-3,
    warmup=60,
    weight_decay=0.05,
    optimizer="adamw",
    clip_norm=1.0,
    seeds_together=False,  # convolutions mapped over seeds are several times slower on CPUs
  )
  config.num_seeds = 3
  config.num_points = 112
  config.inference = ConfigDict({"threshold": 0.5, "overlap": 0.8})
  config.data = ConfigDict(
    {
      "name": "scenes",
      "seed": 0,
      "size": 32,
      "train": 4000,
      "val": 124,
      "test": 496,
      "noise": 0.08,
      "batch_size": 8,
      "eval_batch_size": 62,
    }
  )
  config.model = ConfigDict(TINY)
  return config


def full(ade20k: bool, data_dir: str):
  steps, lr = (160_000, 4e-4) if ade20k else (90_000, 7e-4)
  config = common.transformer(steps=steps, eval_every=5000, lr=lr, clip_norm=0.01)
  config.train.rates = (("^backbone/", 0.1),)
  config.num_points = 12_544
  config.inference = ConfigDict({"threshold": 0.8, "overlap": 0.8})
  config.data = ConfigDict(
    {
      "name": "ade20k" if ade20k else "cityscapes",
      "folder": data_dir,
      "height": 640 if ade20k else 512,
      "width": 640 if ade20k else 1024,
      "shorter": 640 if ade20k else 1024,
      "longest": 2560 if ade20k else 4096,
      "least_scale": 0.5,
      "most_scale": 2.0,
      "batch_size": 32,
      "eval_batch_size": 4,
      "most_segments": 96,
    }
  )
  norm = {"backbone_norm": "frozen" if ade20k else "batch"}
  config.model = ConfigDict({**FULL, **norm})
  return config
