"""What came out of a sweep: table.md, table.csv, and a picture of validation over each axis."""

from collections.abc import Sequence
import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from h2g.sweep.axes import Point
from h2g.train import jobs
from h2g.train.workdir import write_whole

COLUMNS = ("metric", "val", "test", "test_std", "seeds", "step_ms", "folder", "failure")


class Row(NamedTuple):
  """One point: its results.json (None where it has none, `failure` says why) and its step time."""

  point: Point
  found: dict | None
  failure: str
  step_ms: float | None


def collect(chosen: Sequence[Point], workdir: Path) -> list[Row]:
  """The rows, best mean validation first, those without results last."""
  rows = []
  for point in chosen:
    folder = workdir / point.folder
    found, failure = jobs.outcome(folder)
    step_ms = (jobs.read(folder / "cost.json") or {}).get("step_ms")
    rows.append(Row(point, found, failure, step_ms))
  return sorted(rows, key=_order)


def _order(row: Row) -> float:
  if row.found is None:
    return np.inf
  return -row.found["val_mean"] if row.found.get("maximise", True) else row.found["val_mean"]


def markdown(rows: Sequence[Row]) -> str:
  """The table for people."""
  names = [name for name, _ in rows[0].point.settings]
  metric = next((row.found["metric"] for row in rows if row.found), "metric")
  heads = [*names, f"val {metric}", f"test {metric}", "seeds", "step, ms"]
  lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
  for row in rows:
    cells = [value for _, value in row.point.settings]
    if row.found is None:
      cells += [row.failure.replace("|", "/"), "", "", ""]
    else:
      test = f"{row.found['test_mean']:.4f} ± {row.found['test_std']:.4f}"
      cells += [f"{row.found['val_mean']:.4f}", test, str(len(row.found["seeds"]))]
      cells.append("" if row.step_ms is None else f"{row.step_ms:.1f}")
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
  """A column per axis, then COLUMNS; every point has a row."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow([*(name for name, _ in rows[0].point.settings), *COLUMNS])
  for row in rows:
    values, found = [value for _, value in row.point.settings], row.found
    if found is None:
      writer.writerow([*values, *[""] * 6, row.point.folder, row.failure])
      continue
    numbers = [found[name] for name in ("metric", "val_mean", "test_mean", "test_std")]
    writer.writerow([*values, *numbers, len(found["seeds"]), row.step_ms, row.point.folder, ""])
  return out.getvalue()


def picture(rows: Sequence[Row]) -> bytes | None:
  """PNG: validation of every point over each axis; None where nothing is finished."""
  from matplotlib.figure import Figure

  done = [row for row in rows if row.found]
  if not done:
    return None
  names = [name for name, _ in done[0].point.settings]
  figure = Figure(figsize=(1 + 3.2 * len(names), 3.2), layout="constrained")
  for axis, at in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], range(9**9)):
    words = [row.point.settings[at][1] for row in done]
    places = _numbers(words)
    if places is None:
      known = sorted(set(words))
      places = [known.index(word) for word in words]
      axis.set_xticks(range(len(known)), known, rotation=30, ha="right")
    elif min(places) > 0 and max(places) / min(places) >= 8:
      axis.set_xscale("log")
    axis.plot(places, [row.found["val_mean"] for row in done], "o", color="C0", alpha=0.6)
    axis.plot(places[0], done[0].found["val_mean"], "o", color="C3")  # the best
    axis.set_xlabel(names[at])
    axis.grid(alpha=0.3)
  figure.axes[0].set_ylabel(f"val {done[0].found['metric']}")
  content = io.BytesIO()
  figure.savefig(content, format="png", dpi=110)
  return content.getvalue()


def write(rows: Sequence[Row], workdir: Path) -> None:
  """All files, each the old one or the whole new one."""
  write_whole(workdir / "table.md", markdown(rows).encode())
  write_whole(workdir / "table.csv", as_csv(rows).encode())
  if (content := picture(rows)) is not None:
    write_whole(workdir / "axes.png", content)


def _numbers(words: Sequence[str]) -> list[float] | None:
  try:
    return [float(word) for word in words]
  except ValueError:
    return None
