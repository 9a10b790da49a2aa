"""One page that compares runs: a table of results and costs, a picture per metric.

  python -m h2g.report WORKDIR ... [--out report.html]

Reads what a run writes (config.json, metrics.jsonl, results.json, cost.json), finished or not. The
page is one file that needs no other: pictures are drawn as SVG inside it.
"""

import argparse
import html
import json
from pathlib import Path
import sys

from h2g.errors import InputError

COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
WIDTH, HEIGHT, EDGE = 520, 260, 48  # of a picture, and of the space for its numbers, in pixels
HIDDEN = ("step", "seeds", "seconds")
STYLE = (
  "body{font:14px sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse}"
  "td,th{border:1px solid #ccc;padding:.3em .7em;text-align:right}"
  "td:first-child,th:first-child{text-align:left}svg{margin:.5em}text{font:11px sans-serif}"
)


def read(workdir: Path) -> dict:
  """{"name", "rows", "results", "cost", "config"} of one run; InputError where there is none."""
  if not (workdir / "config.json").is_file():
    raise InputError(f"{workdir} holds no run: name the --workdir of a training")
  part = lambda name: json.loads(path.read_text()) if (path := workdir / name).is_file() else {}
  log, rows = workdir / "metrics.jsonl", []
  for line in log.read_text().splitlines() if log.is_file() else ():
    try:
      rows.append(json.loads(line))
    except ValueError:
      continue  # the line that a running or killed process has not finished
  names = {"results": "results.json", "cost": "cost.json", "config": "config.json"}
  return {"name": str(workdir), "rows": rows} | {k: part(name) for k, name in names.items()}


def series(rows: list[dict], metric: str) -> list[tuple[float, float]]:
  """(step, mean over the seeds that logged it) in order."""
  found: dict[int, list[float]] = {}
  for row in rows:
    numbers = [value for value in row.get(metric, ()) if value is not None]
    found.setdefault(row["step"], []).extend(numbers)
  return [(step, sum(v) / len(v)) for step, v in sorted(found.items()) if v]


def picture(title: str, lines: list[list[tuple[float, float]]]) -> str:
  """SVG of one metric over steps, one line per run in the runs' colours."""
  points = [point for line in lines for point in line]
  (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points))
  x = lambda v: EDGE + (v - left) / ((right - left) or 1) * (WIDTH - EDGE - 10)
  y = lambda v: HEIGHT - 25 - (v - low) / ((high - low) or 1) * (HEIGHT - 50)
  drawn = [
    f'<polyline fill="none" stroke="{COLORS[i % len(COLORS)]}" stroke-width="1.5" points="'
    + " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
    + '"/>'
    for i, line in enumerate(lines)
    if line
  ]
  words = [
    f'<text x="{EDGE}" y="14" font-weight="bold">{html.escape(title)}</text>',
    *(f'<text x="2" y="{y(v) + 4:.0f}">{v:.4g}</text>' for v in (low, high)),
    f'<text x="{EDGE}" y="{HEIGHT - 6}">step {left:g}</text>',
    f'<text x="{WIDTH - 10}" y="{HEIGHT - 6}" text-anchor="end">{right:g}</text>',
  ]
  frame = f'<path d="M{EDGE} 20V{HEIGHT - 20}H{WIDTH}" fill="none" stroke="#999"/>'
  return f'<svg width="{WIDTH}" height="{HEIGHT}">{frame}{"".join(drawn + words)}</svg>'


def table(runs: list[dict]) -> str:
  """HTML table: a row per run, its result, its speed and the settings in which the runs differ."""
  flat = [dict(_flat(run["config"])) for run in runs]
  names = sorted(set().union(*flat))
  differing = [n for n in names if len({json.dumps(one.get(n)) for one in flat}) > 1]
  costs = list(dict.fromkeys(name for run in runs for name in run["cost"]))
  head = ["run", "dataset", "model", "metric", "test", "val", "steps", *costs, *differing]
  rows = []
  for i, (run, settings) in enumerate(zip(runs, flat)):
    found = run["results"]
    number = lambda name, found=found: f"{found[name]:.4f}" if name in found else "not finished"
    steps = found.get("steps") or max((row["step"] for row in run["rows"]), default=0)
    cells = [found.get(name, "") for name in ("dataset", "model", "metric")]
    cells += [number("test_mean"), number("val_mean"), steps]
    cells += [run["cost"].get(name, "") for name in costs]
    cells += [settings.get(name, "") for name in differing]
    color = COLORS[i % len(COLORS)]
    first = f'<td><span style="color:{color}">&#9632;</span> {html.escape(run["name"])}</td>'
    rows.append(first + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells))
  top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
  return f"<table><tr>{top}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def page(runs: list[dict]) -> str:
  """The whole page."""
  names = dict.fromkeys(name for run in runs for row in run["rows"] for name in row)
  metrics = [name for name in names if name not in HIDDEN]
  lines = {name: [series(run["rows"], name) for run in runs] for name in metrics}
  pictures = "".join(picture(name, found) for name, found in lines.items() if any(found))
  return (
    f'<!doctype html><html lang="en"><meta charset="utf-8"><title>h2g runs</title>'
    f"<style>{STYLE}</style><h1>{len(runs)} run{'s' * (len(runs) > 1)}</h1>{table(runs)}{pictures}"
    "</html>\n"
  )


def main(words: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="python -m h2g.report", description=__doc__.split("\n")[0])
  parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
  parser.add_argument("--out", type=Path, default=Path("report.html"))
  args = parser.parse_args(words)
  try:
    text = page([read(workdir) for workdir in args.workdirs])
    args.out.write_text(text)
  except (InputError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(args.out)
  return 0


def _flat(tree, prefix: str = ""):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
