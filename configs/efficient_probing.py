"""Efficient probing: frozen encoders scored by a few attentive queries (arXiv 2506.10178).

  python -m h2g.train --config configs/efficient_probing.py:tiny --workdir runs/probe
  python -m h2g.papers check efficient_probing

A probe reads an encoder that was trained before: `config.encoder.variant` says which, and it is
trained first where `config.encoder.workdir` does not hold it yet.

  tiny      a probe on tokens of a tiny masked autoencoder over digits on canvases, three seeds
  encoder   that autoencoder, without labels
  full      the published setting: ImageNet folders (config.data.root), a masked autoencoder of the
            size ViT-B/16 (config.encoder.checkpoint, .safetensors or .npz), 90 epochs of LARS

Options after the name: `pool=` gap, cls, ep, mhca, abmilp, simpool, aim, jepa; `queries=` (heads of
mhca, aim, jepa), 8 and in `full` 32; `d_out=` divides the width of the output; `tokens=` patches or
all; `block=` probes an intermediate block, counted from 1; `objective=` (`tiny` and `encoder`) mae,
cls: an encoder that was trained to classify by its class token, none: one as it is drawn at random.

Expect: experiments/efficient_probing/README.md. `full` was not run.
"""

from ml_collections import ConfigDict

from configs import common

NAMES = ("tiny", "encoder", "full")
OPTIONS = {
  "pool": "ep",
  "queries": 0,
  "d_out": 1,
  "tokens": "patches",
  "block": 0,
  "objective": "mae",
}
TINY = {
  "image_size": 24,
  "patch": 4,
  "channels": 1,
  "dim": 64,
  "num_layers": 3,
  "num_heads": 4,
  "mlp_ratio": 4.0,
}
BASE = {
  "image_size": 224,
  "patch": 16,
  "channels": 3,
  "dim": 768,
  "num_layers": 12,
  "num_heads": 12,
  "mlp_ratio": 4.0,
}
DECODER = {"decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2, "mask_ratio": 0.5}
CANVASES = {"train": 6000, "val": 1000, "test": 2000, "seed": 0, "noise": 0.0, "grid": 4}
EPOCHS = {"mae": 40, "cls": 10, "none": 0}
IMAGENET = {"root": "imagenet", "train": 1281167, "eval_batch": 256}


def get_config(variant="tiny"):
  """Values only; see the module's docstring for the variants."""
  name, options = common.parse_variant(variant, names=NAMES, options=OPTIONS)
  common.require("objective", options["objective"], EPOCHS)
  make = {"tiny": _probe, "encoder": _encoder, "full": _full}[name]
  return make(options)


def _encoder(options) -> ConfigDict:
  objective, batch = options["objective"], 64
  epochs = EPOCHS[objective]
  config = _schedule(epochs, batch, 6000, optimizer="adamw", lr=1.5e-3, weight_decay=0.05)
  if not epochs:  # a single step at rate zero, which the trainer can save and restore
    config.train.update(steps=1, lr=0.0)
  config.train.eval_every = max(config.train.steps // 8, 1)
  config.experiment = "experiments.efficient_probing.encoder"
  config.objective, config.batch_size = objective, batch
  config.data = ConfigDict(CANVASES)
  config.vit = ConfigDict(TINY)
  config.decoder = ConfigDict({} if objective == "cls" else DECODER)
  return config


def _probe(options) -> ConfigDict:
  inner, objective = _encoder(options), options.pop("objective")
  options["queries"] = options["queries"] or 8
  config = _schedule(60, 256, 6000, optimizer="adam", lr=3e-2)
  config.experiment = "efficient_probing"
  config.num_seeds, config.batch_size = 3, 256
  variant = "encoder" if objective == "mae" else f"encoder,objective={objective}"
  workdir = f"runs/efficient_probing/{variant}"
  block = options.pop("block")
  config.encoder = ConfigDict({"variant": variant, "workdir": workdir, "block": block})
  config.encoder.config = inner
  config.data = ConfigDict(CANVASES)
  config.probe = ConfigDict({**options, "num_classes": 10})
  return config


def _full(options) -> ConfigDict:
  del options["objective"]
  options["queries"] = options["queries"] or 32
  config = _schedule(90, 4096, IMAGENET["train"], optimizer="lars", lr=0.1 * 4096 / 256)
  config.train.update(accumulate=8, compute_dtype="bfloat16", eval_every=IMAGENET["train"] // 4096)
  config.experiment, config.batch_size = "efficient_probing", 4096
  block = options.pop("block")
  config.encoder = ConfigDict({"checkpoint": "mae_vit_base.safetensors", "block": block})
  config.encoder.vit = ConfigDict(BASE)
  config.data = ConfigDict(IMAGENET)
  config.probe = ConfigDict({**options, "num_classes": 1000})
  return config


def _schedule(epochs: int, batch: int, images: int, **train) -> ConfigDict:
  """A tenth of the epochs warms up, then half a cosine; five evaluations and no weight decay."""
  steps = epochs * images // batch
  return common.trainer(
    steps=steps,
    warmup=steps // 9 if epochs == 90 else steps // 10,
    eval_every=max(steps // 5, 1),
    log_every=max(steps // 50, 1),
    steps_per_call=20,
    **train,
  )
