"""Pictures of a run, drawn without a display."""

import io
from pathlib import Path

import numpy as np

from h2g.train.workdir import write_whole


def curves(rows: list[dict], path: Path, *, metric: str, title: str) -> None:
  """Loss and the selection metric over steps: the mean over seeds, and each seed thin behind it.

  Args:
    rows: of metrics.jsonl. path: PNG to write. metric: name of the selection metric.
  """
  figure = _figure(10, 3.6)
  left, right = figure.subplots(1, 2)
  _draw(left, rows, "loss", "C0")
  left.set(xlabel="step", ylabel="training loss")
  for color, name in (("C1", f"val/{metric}"), ("C2", f"test/{metric}")):
    _draw(right, rows, name, color)
  right.set(xlabel="step", ylabel=metric)
  if right.has_data():
    right.legend()
  figure.suptitle(title)
  _save(figure, path)


def confusion(matrix: np.ndarray, names: tuple[str, ...], path: Path) -> None:
  """Confusion matrix [C, C], rows the true class: colour by row share, counts in the cells."""
  matrix = np.asarray(matrix)
  share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  size = 2.5 + 0.55 * len(matrix)
  figure = _figure(size + 1, size)
  axis = figure.subplots()
  image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
  ticks = range(len(matrix))
  labels = list(names) if len(names) == len(matrix) else [str(i) for i in ticks]
  axis.set_xticks(ticks, labels, rotation=45, ha="right")
  axis.set_yticks(ticks, labels)
  axis.set(xlabel="predicted", ylabel="true")
  if len(matrix) <= 20:
    for i, j in np.ndindex(matrix.shape):
      color = "white" if share[i, j] > 0.5 else "black"
      axis.text(j, i, f"{matrix[i, j]:g}", ha="center", va="center", color=color, fontsize=8)
  figure.colorbar(image, ax=axis, label="share of the true class")
  _save(figure, path)


def _draw(axis, rows: list[dict], name: str, color: str) -> None:
  """One line per seed, and their mean where seeds share steps."""
  lines: dict[int, list[tuple[int, float]]] = {}
  for row in rows:
    for seed, value in zip(row["seeds"], row.get(name, ())):
      value = np.nan if value is None else value  # a gap
      lines.setdefault(seed, []).append((row["step"], value))
  if not lines:
    return
  for points in lines.values():
    axis.plot(*zip(*points), color=color, alpha=0.25 if len(lines) > 1 else 1, linewidth=0.8)
  by_step: dict[int, list[float]] = {}
  for points in lines.values():
    for step, value in points:
      by_step.setdefault(step, []).append(value)
  steps = sorted(by_step)
  axis.plot(steps, [np.mean(by_step[step]) for step in steps], color=color, label=name)


def _figure(width: float, height: float):
  # Not through pyplot, which would change the backend of a notebook that trains in its own process.
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path: Path) -> None:
  content = io.BytesIO()
  figure.savefig(content, format="png", dpi=110)
  write_whole(Path(path), content.getvalue())
