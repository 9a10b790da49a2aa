"""What the READMEs of the papers say about themselves, read by a program."""

import dataclasses
from pathlib import Path
import re
import tomllib

from h2g.errors import InputError

STATES = ("holds", "holds in part", "does not hold", "not run")
BLOCK = re.compile(r"^```toml paper\n(.*?)^```$", re.M | re.S)


@dataclasses.dataclass(frozen=True)
class Paper:
  """One paper, as the block of its README tells it.

  slug: folder of experiments/, config and notebook.
  number: of the paper in the project's list.
  title, arxiv: of the paper.
  claim: what is to be shown, in a sentence.
  state: one of STATES.
  result: what was measured.
  seeds, date, machine: of that measurement.
  """

  slug: str
  number: int
  title: str
  arxiv: str
  claim: str
  state: str
  result: str
  seeds: int
  date: str
  machine: str


def papers(root: Path) -> list[Paper]:
  """All papers under root/experiments, by number; InputError names a block that cannot be read."""
  found = []
  for path in sorted((root / "experiments").glob("*/README.md")):
    block = BLOCK.search(path.read_text(encoding="utf-8"))
    if block:
      found.append(_paper(path, block.group(1)))
  return sorted(found, key=lambda paper: paper.number)


def _paper(path: Path, text: str) -> Paper:
  try:
    values = tomllib.loads(text)
  except tomllib.TOMLDecodeError as error:
    raise InputError(f"{path}: the block `toml paper` is no TOML: {error}") from error
  kinds = {field.name: field.type for field in dataclasses.fields(Paper) if field.name != "slug"}
  for name, kind in kinds.items():
    if name not in values:
      raise InputError(f"{path}: the block `toml paper` lacks {name}")
    if not isinstance(values[name], kind):
      raise InputError(f"{path}: {name}={values[name]!r} must be of type {kind.__name__}")
  if unknown := sorted(set(values) - set(kinds)):
    raise InputError(f"{path}: {unknown[0]} is no field of a paper: it has {', '.join(kinds)}")
  if values["state"] not in STATES:
    raise InputError(f"{path}: state={values['state']!r}: choose from {', '.join(STATES)}")
  return Paper(slug=path.parent.name, **values)
