"""Bad batches: the run stops, passes them over or goes back, and can be resumed exactly."""

import dataclasses
import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_problems import faulty
from train_problems import harness

from h2g.train.step import Guard
from h2g.train.step import judged
from h2g.train.step import SPIKE_AFTER

NAN_IN_7 = "--config.nan_batches=(7,)"


def train(folder, *words: str) -> int:
  return harness.train(folder, *words, config="faulty", variant="")


def passed_over(folder) -> list[tuple]:
  found = json.loads((folder / "results.json").read_text())["passed_over"]
  return [(one["step"], one["seed"], one.get("to")) for one in found]


def test_stop(tmp_path, capsys):
  assert train(tmp_path, NAN_IN_7) == 3
  said = capsys.readouterr().err
  assert said.startswith("error: loss is nan at step 7, seed 0; the last checkpoint is from before")
  last = harness.rows(tmp_path)[-1]
  assert last["step"] == 7 and last["loss"][0] is None and last["loss"][1] > 0
  assert not (tmp_path / "results.json").exists()


def test_skip_leaves_the_seed_as_if_the_batch_had_not_come(tmp_path, capsys):
  """Seed 0's batch 7 is bad; seed 1 takes its own."""
  assert train(tmp_path / "a", NAN_IN_7, "--config.train.on_divergence=skip") == 0
  said = capsys.readouterr().out
  assert "warning: loss is nan at step 7, seed 0: batch skipped (1 in a row)" in said
  assert passed_over(tmp_path / "a") == [(7, 0, None)]
  rows = harness.rows(tmp_path / "a")
  assert [row["skipped"] for row in rows] == [[int(row["step"] == 7), 0] for row in rows]
  assert rows[6]["loss"][0] is None and all(row["loss"][0] for row in rows if row["step"] != 7)
  state = harness.final_state(tmp_path / "a")
  assert state["seeds_0-1 state['rest']['seen']"].tolist() == [39, 40]
  # The same run, without a bad batch: the other seed does not notice.
  assert train(tmp_path / "b", "--config.train.on_divergence=skip") == 0
  other = harness.final_state(tmp_path / "b")
  np.testing.assert_array_equal(
    state["seeds_0-1 state['params']['w']"][1], other["seeds_0-1 state['params']['w']"][1]
  )


def test_too_many_skips_in_a_row_stop_the_run(tmp_path, capsys):
  words = ("--config.train.on_divergence=skip", "--config.train.patience=2")
  assert train(tmp_path, "--config.nan_batches=(4,5,7,8,9)", *words) == 3
  said = capsys.readouterr()
  assert "at step 9, seed 0 (config.train.on_divergence=skip cannot help here)" in said.err
  assert said.out.count("batch skipped (1 in a row)") == 2


def test_rollback_goes_on_from_the_last_regular_checkpoint(tmp_path, capsys):
  words = ("--config.train.on_divergence=rollback", "--config.nan_batches=(3,17)")
  assert train(tmp_path / "whole", *words) == 0
  said = capsys.readouterr().out
  assert "loss is nan at step 3, seed 0: back to step 0, going on with the batch of step 4" in said
  assert "loss is nan at step 17, seed 0: back to step 15, going on with" in said
  assert passed_over(tmp_path / "whole") == [(3, 0, 0), (17, 0, 15)]
  rows = {row["step"]: row for row in harness.rows(tmp_path / "whole")}
  assert sorted(rows) == list(range(1, 41))
  assert rows[17]["rolled_back_to"] == [15.0, 15.0] and rows[17]["loss"][0] is None
  state = harness.final_state(tmp_path / "whole")
  assert state["seeds_0-1 state['rest']['seen']"].tolist() == [35, 35]  # 1-3 and 16, 17 are not in


@pytest.mark.few(1)
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_stopped_around_the_bad_batch_and_resumed_the_bits_are_the_same(
  policy, tmp_path, monkeypatch
):
  """SIGTERM between the checkpoint that it goes back to and the bad batch, and after it."""
  words = (
    f"--config.train.on_divergence={policy}",
    "--config.nan_batches=(14,)",
    "--config.spike_batches=(33,)",
    "--config.train.spike_factor=20.0",
  )
  assert train(tmp_path / "whole", *words) == 0
  build = faulty.build
  for step in (12, 15, 16, 32, 34):

    def with_signal(config, step=step):
      make = build(config).train_batches

      def batches(seeds):
        stream = make(seeds)
        inner = stream._make

        def signalling(index):
          if index == step + 2:  # two batches are read ahead
            signal.raise_signal(signal.SIGTERM)
          return inner(index)

        stream._make = signalling
        return stream

      return dataclasses.replace(build(config), train_batches=batches)

    monkeypatch.setattr(faulty, "build", with_signal)
    assert train(tmp_path / "cut", *words) == 75
  monkeypatch.setattr(faulty, "build", build)
  assert train(tmp_path / "cut", *words) == 0
  harness.assert_same_run(tmp_path / "cut", tmp_path / "whole")
  expected = {"skip": [(14, 0, None), (33, 0, None)], "rollback": [(14, 0, 10), (33, 0, 30)]}
  assert passed_over(tmp_path / "cut") == expected[policy]


@pytest.mark.smoke
def test_a_spike_is_far_above_the_running_mean_and_does_not_raise_it():
  judge = jax.jit(functools.partial(judged, factor=3.0))
  guard = Guard(jnp.zeros(()), jnp.zeros((), jnp.int32))
  kinds = []
  losses = [5.0, 100.0, *[2.0] * 40, 7.0, 5.0, np.nan, 2.0]
  for loss in losses:
    kind, guard = judge(guard, jnp.float32(loss), jnp.float32(1.0))
    kinds.append(int(kind))
  assert len(kinds) == 46 and SPIKE_AFTER == 20
  assert kinds[:42] == [0] * 42, "the first steps are never spikes"
  mean = float(guard.total) / (1 - 0.98 ** int(guard.seen))
  assert int(guard.seen) == sum(kind == 0 for kind in kinds)
  assert kinds[44] == 1 and kinds[45] == 0 and 2.0 < mean < 7.0
  negative = Guard(jnp.float32(-1.0), jnp.int32(10_000))
  for loss, kind in ((-1.5, 0), (0.9, 0), (1.1, 2), (jnp.inf, 1)):
    assert int(judge(negative, jnp.float32(loss), jnp.float32(1.0))[0]) == kind
  assert int(judge(negative, jnp.float32(-1.0), jnp.float32(np.inf))[0]) == 1
