"""Least squares with bad batches: see train_problems/faulty.py."""

import ml_collections


def get_config(variant=""):
  assert not variant
  return ml_collections.ConfigDict(
    {
      "experiment": "train_problems.faulty",
      "seed": 0,
      "num_seeds": 2,
      "nan_batches": (),
      "spike_batches": (),
      "hang_at": 0,
      "train": {
        "steps": 40,
        "eval_every": 10,
        "checkpoint_every": 5,
        "optimizer": "adam",
        "lr": 1e-2,
        "schedule": "constant",
      },
    }
  )
