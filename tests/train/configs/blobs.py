"""Configs of the trainer's tests: `full` (a resident batch) and `stream` (grain minibatches)."""

import ml_collections


def get_config(variant="full"):
  if variant not in ("full", "stream"):
    raise ValueError(f"unknown variant {variant!r}: choose full or stream")
  config = ml_collections.ConfigDict()
  config.experiment = "train_problems.blobs"
  config.seed = 0
  config.num_seeds = 3
  config.hidden = 16
  config.stream = variant == "stream"
  config.nan_at = 0
  config.train = ml_collections.ConfigDict()
  config.train.steps = 60
  config.train.eval_every = 10
  config.train.checkpoint_every = 20
  config.train.steps_per_call = 10
  config.train.seeds_together = True
  config.train.lr = 1e-2
  config.train.warmup = 5
  config.train.weight_decay = 1e-2
  config.train.clip_norm = 1.0
  return config
