"""Multi-variate parallel attention: small runs of both tasks, and what the claim measures."""

import json

import numpy as np
import pytest

from configs.mvpa import get_config
from configs.mvpa import MODELS
from experiments.mvpa.claim import apart
from experiments.mvpa.claim import memory
from experiments.mvpa.experiment import build
from experiments.mvpa.experiment import summarise
from h2g.errors import InputError
from h2g.papers import Runs
from h2g.train import run
from h2g.train.__main__ import main

SIZES = ("data.length=3", "data.subjects=1", "data.each=2", "data.test_windows=2")
STEPS = ("train.steps=2", "train.eval_every=2", "train.warmup=0", "num_seeds=2")
SHAPE = ("model.dim=8", "model.num_layers=1", "model.num_heads=2", "model.kv_heads=1")


def train(folder, variant) -> dict:
  words = [f"--config.{word}" for word in (*SIZES, *STEPS, *SHAPE, "model.mlp_dim=8")]
  arguments = ["train", f"--config=configs/mvpa.py:{variant}", f"--workdir={folder}"]
  assert main([*arguments, "--noprogress", *words]) == 0
  return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_small_run_predicts_and_another_goes_on_from_it(tmp_path):
  first = train(tmp_path / "predict", "tiny")
  assert first["metric"] == "top1" and "test/copied" in first["metrics"][0]
  start = f"tiny,task=classify,tune=lora,start={tmp_path / 'predict'}"
  second = train(tmp_path / "classify", start)
  assert second["metric"] == "f1" and "test/kappa" in second["metrics"][0]
  with pytest.raises(InputError, match=r"model.dim=8, this run 64: go on with the same network"):
    build(get_config(start))


@pytest.mark.slow
def test_what_spreads_is_told_from_what_jumps_without_pretraining(tmp_path):
  """With tables as small as the weights attention was blind to distance: accuracy 0.38 to 0.5."""
  config = get_config("tiny,task=classify")
  config.num_seeds, config.data.test_windows = 1, 256
  found = run(build(config), config, tmp_path, bar=False)["metrics"][0]
  assert found["test/accuracy"] > 0.75, found


def test_what_is_gone_on_from_is_found_by_its_variant(tmp_path):
  runs = Runs("mvpa", tmp_path)
  first = "tiny,model=vanilla"
  assert runs.config(f"{first},task=classify").start.workdir == str(runs.folder(first))
  assert not get_config(f"{first},task=classify").start.workdir and not get_config(first).start
  with pytest.raises(InputError, match="holds no run: give its folder"):
    build(runs.config(f"{first},task=classify"))


def test_the_recording_of_eeg_is_served_as_well(tmp_path, data_dir):
  config = get_config("eeg")
  assert build(config).dataset == "eeg" and config.model.max_channels >= 14


@pytest.mark.slow
def test_windowed_equals_dense_and_takes_less_memory():
  assert apart() < 1e-4
  assert memory(4) < memory(24)


def test_the_variants_say_what_they_change():
  for model, changes in MODELS.items():
    found = get_config(f"tiny,model={model}").model
    assert all(found[key] == value for key, value in changes.items())
  full = get_config("full")
  assert (full.train.steps, full.train.warmup, full.train.lr) == (5400, 540, 1e-4)
  assert full.model.anchor == "length" and full.model.max_length == 110
  assert get_config("full,task=classify").train.steps == 120_000
  with pytest.raises(ValueError, match="model=flat is unknown"):
    get_config("tiny,model=flat")
  with pytest.raises(InputError, match=r"data\.path is empty"):
    build(full)


def test_what_is_measured_by_hand():
  sums = {"top1": 3.0, "copied": 1.0, "loss": 8.0, "num": 4.0}
  assert summarise({"test": sums})["test/top1"] == 0.75
  labels = np.array([0, 1, 1, 0])
  found = summarise({"val": {"labels": labels, "predicted": labels}})
  assert found == {"val/f1": 1.0, "val/kappa": 1.0, "val/accuracy": 1.0}
