"""Writes the tables of README.md from the rows of the speed scripts.

  for op in attention edge typed linear sparse cache pool; do
    python experiments/speed/$op.py --json rows/$op.json
  done
  python experiments/speed/tables.py rows

Replaces what stands between the two markers in experiments/speed/README.md; the text around them
stays.
"""

import json
import pathlib
import sys

README = pathlib.Path(__file__).parent / "README.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
OPERATIONS = ("attention", "sparse", "linear", "edge", "typed", "cache", "pool")


def table(rows: list[dict]) -> str:
  """Markdown of one operation; a line per case, pass and peer."""
  lines = [
    "| case | pass | ours, ms | peer | peer, ms | ours / peer | spread | x floor | max error |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    cells = [row["case"], row["pass"], _number(row["ours_ms"]), row["peer"]]
    cells += [_number(row["peer_ms"]), _number(row["ratio"]), _number(row["spread"])]
    cells += [_number(row["floor_ratio"]), _number(row["max_error"], ".0e")]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def write(folder: pathlib.Path) -> None:
  """Puts the tables of folder/<operation>.json into the README."""
  parts = [BEGIN]
  for operation in OPERATIONS:
    path = folder / f"{operation}.json"
    if not path.is_file():
      sys.exit(f"error: {path} is missing: run experiments/speed/{operation}.py --json {path}")
    rows = json.loads(path.read_text(encoding="utf-8"))
    parts += [f"### {operation} ({rows[0]['platform']})", table(rows)]
  text = README.read_text(encoding="utf-8")
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end:
    sys.exit(f"error: {README} lacks the markers {BEGIN} and {END}")
  README.write_text(before + "\n\n".join([*parts, END]) + after, encoding="utf-8")


def _number(value, form: str = ".3g") -> str:
  return "not measured" if value is None else format(value, form)


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(f"error: name the folder of the rows\n\n{__doc__.strip()}")
  write(pathlib.Path(sys.argv[1]))
