"""Many models on many data sets, over seeds: one table.

  python -m h2g.benchmark --datasets celegans,worldcup --models all --seeds 5 --workdir DIR

  --datasets A,B|all   data sets of the config; all by default, without those it lists as `more`
  --models A,B|all     models of the config; all by default
  --seeds N            seeds of every run (3), each with its own split and initialisation
  --workdir DIR        runs go to DIR/<dataset>/<model>, the table to DIR/table.{md,csv,html}
  --preset NAME        a variant of the config that says how long to train; its first by default
  --config FILE        a config that offers a BENCHMARK (configs/h2gb.py)
  --jobs N             runs at a time (1), which divide the cores: step times are of the share
  --minutes M          a run that takes longer counts as failed; 0 lets it (0)
  --config.x.y=value   another value for one setting, in every run
  --help               this text, with the names there are

The same command again goes on where it stopped and skips what is finished. A run that fails leaves
its reason in the table, the others go on. Exit status: 0 all runs finished; 1 some failed, the
table says which; 2 the command cannot be served; 130 stopped by Ctrl-C.
"""

from pathlib import Path
import sys

from absl import flags

from h2g import commands
from h2g.benchmark.grid import cells
from h2g.benchmark.grid import Grid
from h2g.errors import InputError


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  return commands.run(_main, argv)


def _main(argv: list[str]) -> int:
  overrides = tuple(word for word in argv[1:] if word.startswith(("--config.", "-config.")))
  values = _flags([word for word in argv if word not in (*overrides, *commands.HELP)])
  grid = Grid.of(values.config)
  if commands.asks_help(argv):
    print(__doc__.strip())
    for name in ("datasets", "more", "models", "presets"):
      print(f"\n{name}: {', '.join(getattr(grid, name))}")
    return 0
  if not values.workdir:
    raise InputError("--workdir is missing: name a directory, as in --workdir runs/benchmark")
  todo = cells(grid, datasets=values.datasets, models=values.models, preset=values.preset)

  from h2g.benchmark import report  # scipy and matplotlib: not for a question
  from h2g.benchmark.table import collect
  from h2g.train import jobs
  from h2g.train.workdir import cannot_write

  workdir = Path(values.workdir).expanduser()
  published = report.read_published(grid.published)

  def write() -> None:
    report.write(collect(todo, workdir), workdir, published=published, title=_title(values))

  try:
    workdir.mkdir(parents=True, exist_ok=True)
    options = (f"--config.num_seeds={values.seeds}", *overrides)
    jobs.run(
      [cell.job(grid.config, workdir, options) for cell in todo],
      at_once=values.jobs,
      minutes=values.minutes,
    )
    write()
  except KeyboardInterrupt:
    write()  # what is there already
    raise
  except OSError as error:
    raise cannot_write(workdir, error) from error
  failed = [cell for cell in todo if (cell.folder(workdir) / jobs.FAILURE).exists()]
  print(f"{len(todo) - len(failed)} of {len(todo)} runs -> {workdir / 'table.md'}")
  for cell in failed:
    print(f"failed: {cell.dataset} {cell.model}, see {cell.folder(workdir) / 'log.txt'}")
  return 1 if failed else 0


def _flags(argv: list[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string("config", "configs/h2gb.py", "", flag_values=values)
  flags.DEFINE_string("datasets", "all", "", flag_values=values)
  flags.DEFINE_string("models", "all", "", flag_values=values)
  flags.DEFINE_string("preset", "", "", flag_values=values)
  flags.DEFINE_string("workdir", "", "", flag_values=values)
  flags.DEFINE_integer("seeds", 3, "", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("jobs", 1, "", lower_bound=1, flag_values=values)
  flags.DEFINE_float("minutes", 0.0, "", lower_bound=0.0, flag_values=values)
  commands.words(values, argv)
  return values


def _title(values: flags.FlagValues) -> str:
  return f"Benchmark: {Path(values.config).stem}{f', {values.preset}' if values.preset else ''}"


if __name__ == "__main__":
  sys.exit(main(sys.argv))
