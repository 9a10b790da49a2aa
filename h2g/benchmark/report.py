"""Writes a table down: table.md, table.csv, table.html and ranks.png."""

import csv
import html
import io
from pathlib import Path

import numpy as np

from h2g.benchmark.table import LEVEL
from h2g.benchmark.table import Table
from h2g.train.workdir import write_whole

COLUMNS = ("dataset", "model", "metric", "mean", "std", "seeds", "step_ms", "peak_mb")
# {(dataset, model): the published cell as it stands, for instance "54.91 ± 0.19"}
Published = dict[tuple[str, str], str]


def read_published(path: Path | None) -> Published:
  """Published numbers from a CSV with the columns dataset, model, mean, std (percent)."""
  if path is None or not path.is_file():
    return {}
  with path.open(newline="", encoding="utf-8") as file:
    rows = csv.DictReader(line for line in file if not line.startswith("#"))
    return {
      (row["dataset"], row["model"]): " ± ".join(filter(None, (row["mean"], row["std"])))
      for row in rows
    }


def write(table: Table, workdir: Path, *, published: Published, title: str) -> None:
  """All four files, each the old one or the whole new one."""
  write_whole(workdir / "table.md", markdown(table, published, title).encode())
  write_whole(workdir / "table.csv", as_csv(table).encode())
  write_whole(workdir / "table.html", page(table, published, title).encode())
  write_whole(workdir / "ranks.png", picture(table))


def as_csv(table: Table) -> str:
  """One row per run that has a value: COLUMNS; std of a sample, seeds their number."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(COLUMNS)
  for (dataset, model), score in table.scores.items():
    if score.test:
      numbers = f"{score.mean:.6f}", f"{score.std:.6f}", len(score.seeds)
      cost = ("" if x is None else x for x in (score.step_ms, score.peak_mb))
      writer.writerow([dataset, model, score.metric, *numbers, *cost])
  return out.getvalue()


def markdown(table: Table, published: Published, title: str) -> str:
  """The results with ranks, their cost, and what failed."""
  heads, rows = _results(table, published, bold="**{}**")
  parts = [f"# {title}", "", _reading(table), "", *_lines(heads, rows), "", "## Cost", ""]
  parts += ["Median time of a step of all seeds together, and the largest memory of the run.", ""]
  parts += _lines(*_costs(table))
  failures = _failures(table)
  if failures:
    parts += ["", "## What failed", "", *(f"- {line}" for line in failures)]
  return "\n".join(parts) + "\n"


def page(table: Table, published: Published, title: str) -> str:
  """The same as one HTML page that needs nothing else but ranks.png beside it."""
  quote = html.escape
  results = _html(*_results(table, published, bold="<b>{}</b>"), escape=False)
  failures = "".join(f"<li>{quote(line)}</li>" for line in _failures(table))
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{quote(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
tbody tr:hover {{ background: #f4f7fb }}
img {{ max-width: 100% }}
</style></head><body>
<h1>{quote(title)}</h1>
<p>{quote(_reading(table).replace("**", "").replace("`", ""))}</p>
{results}
<p><img src="ranks.png" alt="Mean rank of every model"></p>
<h2>Cost</h2>
<p>Median time of a step of all seeds together, and the largest memory of the run.</p>
{_html(*_costs(table))}
{f"<h2>What failed</h2><ul>{failures}</ul>" if failures else ""}
</body></html>
"""


def picture(table: Table) -> bytes:
  """PNG: mean ranks from best to worst, the critical difference from the best shaded."""
  from matplotlib.figure import Figure

  ranks = table.mean_ranks()
  order = np.argsort(ranks, kind="stable")[::-1]
  figure = Figure(figsize=(7.5, 1.2 + 0.26 * len(order)), layout="constrained")
  axis = figure.subplots()
  difference = table.critical_difference()
  best = ranks.min()
  if difference is not None:
    label = f"within the critical difference {difference:.1f} of the best"
    axis.axvspan(best, best + difference, color="C0", alpha=0.1, label=label)
    axis.legend(loc="lower right", fontsize=8)
  for place, model in enumerate(order):
    each = table.ranks()[:, model]
    axis.plot(each, np.full(len(each), place), ".", color="0.7")
    axis.plot(ranks[model], place, "o", color="C3" if ranks[model] == best else "C0")
  axis.set_yticks(range(len(order)), [table.models[model] for model in order])
  axis.set(xlabel="rank (small: one data set, large: mean)", xlim=(0.5, len(order) + 0.5))
  axis.grid(axis="x", alpha=0.3)
  content = io.BytesIO()
  figure.savefig(content, format="png", dpi=110)
  return content.getvalue()


def _reading(table: Table) -> str:
  """How to read the table, with what the tests say."""
  counts = {len(score.seeds) for score in table.scores.values() if score.test}
  seeds = "-".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "no"
  text = (
    f"Test mean ± standard deviation over {seeds} seeds; ranks from 1, the best. **Bold** is the "
    "best of a data set; `=` marks models that paired t-tests over the seeds, with Holm's "
    f"correction, cannot tell from it at {LEVEL:.0%}."
  )
  p, difference = table.friedman(), table.critical_difference()
  if p is not None:
    text += f" Friedman's test that all models rank alike: p = {p:.2g}."
  if difference is not None:
    text += f" Nemenyi's critical difference of mean ranks: {difference:.2f}."
  return text


def _results(table: Table, published: Published, *, bold: str):
  """(heads, rows) of the results, best mean rank first."""
  shown = [d for d in table.datasets if any((d, m) in published for m in table.models)]
  heads = ["model", "mean rank", *table.datasets, *(f"{d} (published, %)" for d in shown)]
  alike = {dataset: table.as_good_as_best(dataset) for dataset in table.datasets}
  best = dict(zip(table.datasets, np.nanmax(np.nan_to_num(table.means(), nan=-1.0), axis=1)))
  ranks = table.mean_ranks()
  rows = []
  for place in np.argsort(ranks, kind="stable"):
    model = table.models[place]
    row = [model, f"{ranks[place]:.2f}"]
    for dataset in table.datasets:
      score = table.scores[dataset, model]
      if not score.test:
        row.append("failed" if score.failure != "not run yet" else "-")
        continue
      text = f"{score.mean:.3f} ± {score.std:.3f}"
      if score.mean == best[dataset]:
        row.append(bold.format(text))
      else:
        row.append(text + (" =" if model in alike[dataset] else ""))
    rows.append([*row, *(published.get((d, model), "-") for d in shown)])
  return heads, rows


def _costs(table: Table):
  """(heads, rows): time and memory by model and data set."""
  number = lambda x, digits: "-" if x is None else f"{x:.{digits}f}"
  rows = []
  for model in table.models:
    found = [table.scores[dataset, model] for dataset in table.datasets]
    cells = [f"{number(s.step_ms, 1)} ms, {number(s.peak_mb, 0)} MB" for s in found]
    rows.append([model, *cells])
  return ["model", *table.datasets], rows


def _failures(table: Table) -> list[str]:
  found = ((d, m, s.failure) for (d, m), s in table.scores.items() if not s.test)
  return [f"{dataset}, {model}: {reason}" for dataset, model, reason in found]


def _lines(heads: list[str], rows: list[list[str]]) -> list[str]:
  """A Markdown table."""
  line = lambda cells: f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
  return [line(heads), line(["---"] * len(heads)), *map(line, rows)]


def _html(heads: list[str], rows: list[list[str]], *, escape: bool = True) -> str:
  quote = html.escape if escape else str
  row = lambda cells, tag: f"<tr>{''.join(f'<{tag}>{quote(cell)}</{tag}>' for cell in cells)}</tr>"
  body = "\n".join(row(cells, "td") for cells in rows)
  return f"<table><thead>{row(heads, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table>"
