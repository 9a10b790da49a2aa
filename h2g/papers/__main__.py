"""The papers: what they claim and whether it came out.

  python -m h2g.papers                              list them
  python -m h2g.papers check SLUG [--workdir DIR]   train what the claim needs, and judge it

  --workdir DIR    default runs/SLUG; what is finished there is not trained again
  --seeds N        another number of seeds than the paper's config has
  --jobs N         variants trained at a time, each on cores of its own; as many as there are cores
  --noprogress     no progress bars

Exit status: 0 the claim holds; 1 it does not; 2 something cannot be used.
"""

from pathlib import Path
import sys

from absl import flags

from h2g import commands
from h2g.errors import InputError
from h2g.papers import claims
from h2g.papers.readme import papers


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  return commands.run(_main, argv, __doc__)


def _main(argv: list[str]) -> int:
  values = flags.FlagValues()
  workdir = flags.DEFINE_string("workdir", None, "", flag_values=values)
  seeds = flags.DEFINE_integer("seeds", None, "", lower_bound=1, flag_values=values)
  at_once = flags.DEFINE_integer("jobs", 0, "", lower_bound=0, flag_values=values)
  progress = flags.DEFINE_bool("progress", True, "", flag_values=values)
  words = commands.words(values, argv, most=2)
  known = papers(root())
  if not words or words == ["list"]:
    print(listing(known))
    return 0
  if words[0] != "check" or len(words) != 2:
    raise InputError(f"{' '.join(words)!r} is not understood: say `check SLUG`, or nothing")
  slugs = [paper.slug for paper in known]
  if words[1] not in slugs:
    raise InputError(f"{words[1]!r} is no paper here: choose from {', '.join(slugs)}")
  folder = Path(workdir.value or f"runs/{words[1]}").expanduser()
  runs = claims.Runs(words[1], folder, seeds=seeds.value, at_once=at_once.value, bar=progress.value)
  findings = claims.check(runs)
  print(runs.table())
  for finding in findings:
    print(f"{'holds ' if finding.holds else 'FAILS '} {finding.statement}   found {finding.found}")
  return 0 if all(finding.holds for finding in findings) else 1


def root() -> Path:
  """The repository: the working directory if it has experiments, else where h2g was cloned to."""
  for folder in (Path.cwd(), Path(__file__).parents[2]):
    if (folder / "experiments").is_dir():
      if str(folder) not in sys.path:
        sys.path.append(str(folder))
      return folder
  raise InputError("there is no folder experiments/ here: run from a clone of the repository")


def listing(known) -> str:
  """The table of papers as text."""
  lines = []
  for paper in known:
    lines.append(f"{paper.number:>3}  {paper.slug:<24} {paper.state}")
    lines.append(f"     {paper.title} (arXiv {paper.arxiv})")
    lines.append(f"     claim:  {paper.claim}")
    lines.append(
      f"     result: {paper.result} ({paper.seeds} seeds, {paper.date}, {paper.machine})"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
