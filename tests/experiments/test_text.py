"""The decoder on text through the trainer: below what pairs of bytes allow, and resumed exactly."""

import dataclasses
import json
import signal

import numpy as np
import pytest

from configs.text import get_config
from experiments.text.experiment import build
from h2g.train import run
from h2g.train.stops import Preempted


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """A text whose next letter is mostly the one before the last: pairs of bytes say nothing."""
  generator = np.random.default_rng(0)
  letters = [0, 1]
  for _ in range(20_000):
    noise = generator.random() < 0.1
    letters.append(int(generator.integers(4)) if noise else letters[-2])
  path = tmp_path_factory.mktemp("text") / "letters.txt"
  path.write_bytes(bytes(97 + letter for letter in letters))
  config = get_config("tiny")
  config.data.update(path=str(path), length=32, batch_size=16, eval_windows=16)
  config.model.update(dim=32, num_layers=2, num_heads=2, key_heads=1, mlp_dim=64)
  config.train.update(
    steps=120, eval_every=40, checkpoint_every=40, warmup=10, lr=1e-2, weight_decay=0.01
  )
  return config


def conditional_entropy(tokens, order: int) -> float:
  """Nats per byte that counts of `order` bytes before leave."""
  ahead = np.lib.stride_tricks.sliding_window_view(tokens, order + 1).astype(np.int64)
  number = lambda rows: rows @ 256 ** np.arange(rows.shape[1])
  count = lambda rows: np.unique(number(rows), return_counts=True)[1] / len(rows)
  entropy = lambda p: -np.sum(p * np.log(p))
  return entropy(count(ahead)) - entropy(count(ahead[:, :-1]))


def rows(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in ("seconds", "time")} for line in lines
  ]


@pytest.mark.slow
def test_loss_falls_below_pairs_of_bytes_and_a_stopped_run_goes_on(config, tmp_path):
  whole = run(build(config), config, tmp_path / "whole", bar=False)
  cost = json.loads((tmp_path / "whole" / "cost.json").read_text())
  assert cost["tokens_per_s"] == pytest.approx(16 * 32 / cost["step_ms"] * 1e3, rel=1e-2)
  assert cost["mfu"] is None  # the peak of a CPU is not known
  tokens = np.fromfile(config.data.path, np.uint8)
  assert whole["test_mean"] < 0.8 * conditional_entropy(tokens, 1)
  assert whole["test_mean"] > 0.9 * conditional_entropy(tokens, 2)  # nothing below is honest

  experiment = build(config)

  def summarise(stats):
    signal.raise_signal(signal.SIGTERM)
    return experiment.summarise(stats)

  with pytest.raises(Preempted, match=r"saved step \d+ of 120"):
    run(dataclasses.replace(experiment, summarise=summarise), config, tmp_path / "cut", bar=False)
  cut = run(build(config), config, tmp_path / "cut", bar=False)
  assert cut["test"] == whole["test"] and cut["metrics"] == whole["metrics"]
  assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_the_variants_are_configs_that_build(config):
  for name in ("tiny", "small"):
    settings = get_config(name)
    settings.data.update(path=config.data.path, length=32)
    experiment = build(settings)
    batch = next(iter(experiment.train_batches((0, 1))))
    assert batch.own["tokens"].shape == (2, settings.data.batch_size, 32)
