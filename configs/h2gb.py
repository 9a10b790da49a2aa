"""H2G-former and its baselines on heterogeneous, heterophilic graphs (arXiv 2407.10916).

  python -m h2g.train --config configs/h2gb.py:celegans --workdir runs/celegans

The variant is a name, then options: `celegans`, `celegans,label=transmitter`, `celegans,model=mlp`,
`model=gcn`, `model=hgt`, `sampled`, `tiny`, `celegans,ablation=labels`.

  celegans   ten seeds, each its own 60/20/20 split, trained together on the whole graph
  sampled    the same graph through HGT sampling, batches padded to a handful of shapes
  tiny       two seeds, a few steps: seconds, for a first look
  full       the published settings (dim 256, 3 layers, 8 heads, HGT sampling), for an own graph

Expect: TABLE
"""

from ml_collections import ConfigDict

from configs import common

NAMES = ("celegans", "sampled", "tiny", "full")
OPTIONS = {"model": "h2g_former", "label": "role", "molecules": "nodes", "ablation": ""}
ABLATIONS = {
    "labels": {"label_embedding": False},
    "relations": {"key_weights": False},
    "ffn": {"typed_ffn": False},
}
MODELS = {
    "h2g_former": {"dim": 64, "num_layers": 2, "num_heads": 8, "dropout_rate": 0.3, "input_dropout": 0.2, "value_weights": True, "edge_bias": True, "specialise": 8.0},
    "mlp": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
    "gcn": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
    "hgt": {"dim": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.2},
}


def get_config(variant: str = "celegans") -> ConfigDict:
  """Values only; see the module's docstring for the variants."""
  name, options = common.parse_variant(variant, names=NAMES, options=OPTIONS)
  config = common.trainer(
      steps=120, eval_every=5, checkpoint_every=40, steps_per_call=5, lr=3e-3, warmup=10,
      weight_decay=1e-3, clip_norm=1.0,
  )
  config.num_seeds = 10
  config.experiment = "h2gb"
  config.metric = "accuracy"
  config.data = ConfigDict({
      "name": "celegans",
      "path": "",
      "options": {"label": options["label"], "molecules": options["molecules"]},
      "reverses": True,
      "symmetric": ("electrical",),
      "self_loops": False,
      "similar": 3,
      "degree_encoding": True,
      "spectral_encoding": 8,
      "split": (0.6, 0.2, 0.2),
  })
  config.labels = ConfigDict({"mask_rate": 0.7, "own_label_visible": False, "smoothing": 0.1})
  config.sample = ConfigDict({
      "method": "",  # "hgt" or "neighbor"; "" trains on the whole graph
      "fanouts": (64, 64),
      "batch_size": 32,
      "subgraphs": 2,
      "max_buckets": 3,
      "evaluate": "sampled",  # or "full": on the whole graph
      "eval_batches": 0,
  })
  config.model = ConfigDict({"name": options["model"], **MODELS[options["model"]]})
  if name == "sampled":
    config.sample.method = "hgt"
    config.num_seeds = 3
    config.train.seeds_together = False
    config.train.steps_per_call = 1
  if options["ablation"]:
    config.model.update(ABLATIONS[options["ablation"]])
  return config
