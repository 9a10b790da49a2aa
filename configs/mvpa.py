"""Multi-variate parallel attention on signals with different channels (arXiv 2506.20354).

  python -m h2g.train --config configs/mvpa.py:tiny --workdir runs/mvpa/tiny
  python -m h2g.train --config configs/mvpa.py:tiny,task=classify,start=runs/mvpa/tiny --workdir X

A variant is a name, then options:

  tiny   synthetic subjects with 4 to 12 channels, tested on 7 and 11; three seeds
  eeg    a real recording, 14 channels (H2G_DATA/eeg-eye-state), split by time
  full   the published small model on SWEC-iEEG; data.path is the folder of subjects

  model  mvpa; no_channel, no_time (without that term); vanilla, vanilla_none (no channel
         embedding), axial, independent
  task   predict (the next segment), classify (a discharge that spreads, eyes open, a seizure)
  start  folder of a finished run with task=predict and the same model
  tune   all, or lora: the base is frozen
  anchor zero, or length (the official rule: rows of the tables counted from their end)

The numbers are in experiments/mvpa/README.md; `full` was not run.
"""

from ml_collections import ConfigDict

from configs import common

NAMES = ("tiny", "eeg", "full")
OPTIONS = {"model": "mvpa", "task": "predict", "start": "", "tune": "all", "anchor": ""}
OWN = ("task", "start", "tune")  # options that the run which is gone on from does not have
MODELS = {
  "mvpa": {},
  "no_channel": {"channel_term": False},
  "no_time": {"time_term": False},
  "vanilla": {"attention": "vanilla"},
  "vanilla_none": {"attention": "vanilla", "channel_embedding": False},
  "axial": {"attention": "axial"},
  "independent": {"attention": "independent"},
}
SMALL = {
  **{"samples": 64, "dim": 64, "num_layers": 3, "num_heads": 4, "kv_heads": 2, "mlp_dim": 160},
  **{"window": 4, "max_length": 12, "max_channels": 14, "dropout_rate": 0.0},
  # With small tables attention starts out blind to lag and distance, and stays so for hundreds of
  # steps where nothing else tells the classes apart.
  **{"init_scale": 0.1, "table_scale": 1.0, "boundary": "periodization"},
}
PUBLISHED = {
  **{"samples": 2560, "dim": 768, "num_layers": 12, "num_heads": 12, "kv_heads": 4},
  **{"mlp_dim": 1728, "window": 10, "max_length": 110, "max_channels": 128},
  **{"init_scale": 0.02, "table_scale": 0.02, "dropout_rate": 0.1, "boundary": "periodic"},
}


def get_config(variant="tiny"):
  name, options = common.parse_variant(variant, names=NAMES, options=OPTIONS)
  common.require("model", options["model"], MODELS)
  common.require("task", options["task"], ("predict", "classify"))
  common.require("tune", options["tune"], ("all", "lora"))
  predicts, full = options["task"] == "predict", name == "full"
  steps = (5400 if predicts else 120_000) if full else (250 if predicts else 400)
  config = common.trainer(
    steps=steps,
    eval_every=steps if not full else steps // 10,
    log_every=25,
    steps_per_call=25,
    optimizer="adamw",
    lr=1e-4 if full else 2e-3,
    warmup=steps // 10,
    weight_decay=0.01,
    decay="all",
    clip_norm=1.0,
    compute_dtype="bfloat16" if full else "float32",
    seeds_together=full,  # on a CPU a program without an axis of seeds takes a quarter less time
  )
  config.experiment = "mvpa"
  config.num_seeds = 1 if full else 3
  config.task, config.tune = options["task"], options["tune"]
  before = [part for part in variant.split(",") if part.partition("=")[0] not in OWN]
  of_start = {"variant": ",".join(before), "workdir": options["start"]}
  config.start = ConfigDict({} if predicts else of_start)
  config.variant = options["model"]
  config.negatives, config.temperature = 30, 0.1
  config.data = ConfigDict(
    {
      "kind": {"tiny": "subjects", "eeg": "eeg", "full": "swec"}[name],
      **{"path": "", "seed": 0, "length": 25 if full else 12, "noise": 0.5},
      # A batch: windows of each of some subjects. Negatives come from one's own subject.
      **{"subjects": 1 if full else 4, "each": 32 if full else 4},
      "test_windows": 64 if full else (128 if predicts else 512),
      **{"train_ids": ("ID01",), "val_ids": ("ID02",), "test_ids": ("ID03",)},
    }
  )
  anchor = options["anchor"] or ("length" if full else "zero")
  lora = 8 if options["tune"] == "lora" else 0
  shape = PUBLISHED if full else SMALL
  config.model = ConfigDict({**shape, **MODELS[options["model"]], "anchor": anchor})
  config.model.lora_rank = lora
  return config
