"""Dual cross-attention learning: GLCA and PWCA beside self-attention (arXiv 2205.02151).

  python -m h2g.train --config configs/dcal.py:tiny --workdir runs/dcal

A variant is a name, then options: `tiny,branches=sa` (sa+pwca, sa+glca, sa+glca+pwca),
`tiny,branches=sa+pwca,distractors=noise` (pwca, sa), `tiny,read=mean,selection=random`,
`tiny,label_noise=0.1`, `tiny,task=reid`.

  tiny   synthetic birds of 24 x 24 pixels, 24 classes, 20 training images each, five seeds
  full   CUB-200-2011 at 448 x 448, ViT-B (`full,size=deit_tiny`: DeiT-Tiny), the published recipe;
         needs --config.data.path=CUB_200_2011 --config.checkpoint=FILE.safetensors (names of timm)

The numbers are in experiments/dcal/README.md. `full` was not run.
"""

from ml_collections import ConfigDict

from configs import common

NAMES = ("tiny", "full")
OPTIONS = {
  "branches": "sa+glca+pwca",
  "distractors": "pwca",
  "selection": "rollout",
  "read": "cls",
  "label_noise": 0.0,
  "task": "fgvc",
  "size": "vit_base",
}
BRANCHES = ("sa", "sa+pwca", "sa+glca", "sa+glca+pwca")
SIZES = {
  "vit_base": {"dim": 768, "num_layers": 12, "num_heads": 12},
  "deit_tiny": {"dim": 192, "num_layers": 12, "num_heads": 3},
}
TINY = {
  "image_size": 24,
  "patch": 4,
  "dim": 32,
  "num_layers": 3,
  "num_heads": 2,
  "mlp_ratio": 2.0,
  "ratio": 0.12,
}


def get_config(variant="tiny"):
  name, options = common.parse_variant(variant, names=NAMES, options=OPTIONS)
  common.require("branches", options["branches"], BRANCHES)
  common.require("size", options["size"], SIZES)
  common.require("task", options["task"], ("fgvc", "reid"))
  config = full(options["size"]) if name == "full" else tiny()
  config.experiment = "dcal"
  config.task = options["task"]
  config.label_noise = options["label_noise"]
  config.model.branches = tuple(options["branches"].split("+"))
  config.model.distractors = options["distractors"]
  config.model.selection, config.model.read = options["selection"], options["read"]
  config.margin = 0.0  # of the triplet loss in retrieval; 0: the soft margin
  config.per_class = 4
  return config


def tiny():
  """Minutes on two cores."""
  config = common.trainer(
    steps=800,
    eval_every=200,
    log_every=50,
    steps_per_call=50,
    lr=2e-3,
    warmup=50,
    weight_decay=0.05,
    clip_norm=1.0,
    seeds_together=False,  # on a CPU a program without an axis of seeds is 1.7 times faster
  )
  config.num_seeds = 5
  config.batch_size = 32
  config.checkpoint = ""
  config.data = ConfigDict(
    {"name": "birds", "seed": 0, "train": 20, "val": 20, "test": 100, "misled": 0.6}
  )
  config.model = ConfigDict(TINY)
  return config


def full(size):
  """AdamW, weight decay 0.05, rate 5e-4 / 512 * batch, cosine, 100 epochs of batches of 16."""
  epoch = 5994 * 9 // 10 // 16
  config = common.transformer(steps=100 * epoch, eval_every=10 * epoch, lr=5e-4 / 512 * 16)
  config.batch_size, config.eval_batch_size = 16, 32
  config.checkpoint = ""
  config.data = ConfigDict(
    {"name": "cub", "path": "CUB_200_2011", "num_classes": 200, "resize": 550, "hold_out": 10}
  )
  config.model = ConfigDict(
    {"image_size": 448, "patch": 16, "ratio": 0.1, "skip_rate": 0.1, **SIZES[size]}
  )
  config.model.learned_positions = True
  return config
