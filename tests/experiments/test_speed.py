"""The harness of experiments/speed: correctness before time, and rows of one form."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speed import harness

COLUMNS = "op, case, platform, pass, ours_ms, peer, peer_ms, ratio, spread, floor_ratio, max_error"
X = np.linspace(0, 1, 64, dtype=np.float32)


def toy(**changes):
  square = lambda x: x * x
  options = dict(
    op="square",
    name="64",
    part="fwd",
    ours=harness.jax_run(square, X),
    peers={"numpy": lambda: X * X, "torch": "it is not installed"},
    wanted=lambda: harness.in_float64(square, X),
    bytes=512,
  )
  return harness.Case(**{**options, **changes})


@pytest.mark.smoke
def test_rows_have_these_columns_and_no_others(tmp_path, monkeypatch, capsys):
  path = tmp_path / "rows" / "square.json"
  monkeypatch.setattr("sys.argv", ["square.py", "--json", str(path), "--rounds", "2"])
  monkeypatch.setattr(harness, "ceilings", lambda: (1e9, 1e9))
  harness.main(lambda platform: [toy(), toy(name="again", peers={})], "squares")
  measured, missing, alone = json.loads(path.read_text(encoding="utf-8"))
  for row in (measured, missing, alone):
    assert ", ".join(row) == COLUMNS and row["op"] == "square" and row["ours_ms"] > 0
  assert measured["peer"] == "numpy" and measured["max_error"] < 1e-6
  assert measured["ratio"] == pytest.approx(measured["ours_ms"] / measured["peer_ms"])
  assert measured["floor_ratio"] == pytest.approx(measured["ours_ms"] / 1e3 / (512 / 1e9))
  assert missing["peer"] == "torch (it is not installed)" and missing["ratio"] is None
  assert alone["peer"] is None
  assert "torch (it is not installed): not measured" in capsys.readouterr().out


def test_what_is_wrong_is_not_timed():
  for wrong in (
    dict(ours=harness.jax_run(lambda x: x * x + 1e-3, X)),
    dict(peers={"numpy": lambda: jnp.nan * X}),
  ):
    with pytest.raises(AssertionError, match="not equal to the reference"):
      harness.measure(toy(**wrong), rounds=1, limits=(1e9, 1e9))
