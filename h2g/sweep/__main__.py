"""One config with many settings, on a grid or at random: one table.

  python -m h2g.sweep --config configs/h2gb.py:celegans --axis train.lr=1e-3,3e-3 \\
      --axis model.dim=32,64 --workdir runs/sweep

  --config FILE:VARIANT  what is trained
  --axis NAME=V1,V2      values of one setting; again for the next one. variant.NAME=V1,V2 are
                         options of the variant, as in --axis variant.model=h2g_former,hgt
  --axis NAME=log(A,B)   a range, with --random: log, uniform or integer
  --random N             N points at random instead of the whole grid
  --random_seed S        of the draw (0)
  --seeds N              seeds of every point, side by side where the config trains them together;
                         0 leaves the config's (0)
  --workdir DIR          each point lives in DIR/<its settings>, the table in DIR/table.{md,csv}
  --jobs N               points at a time (1)
  --minutes M            a point that takes longer counts as failed; 0 lets it (0)
  --emit slurm|xpk|list  write a job list instead of running
  --collect              write the table of what is finished instead of running
  --config.x.y=value     another value for one setting, in every point
  --help                 this text

Every point is checked against the config before the first one runs. The same command again goes on
where it stopped; a larger sweep in the same directory keeps what is finished. Points are ordered by
validation; test values beside them are for reporting, not for choosing. Exit status: 0 all points
finished; 1 some failed, the table says why; 2 the command cannot be served; 130 stopped.
"""

from pathlib import Path
import sys

from absl import flags

from h2g import commands
from h2g.errors import InputError
from h2g.sweep.axes import Axis
from h2g.sweep.axes import points
from h2g.train.jobs import Job


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  return commands.run(_main, argv, __doc__)


def _main(argv: list[str]) -> int:
  overrides = tuple(word for word in argv[1:] if word.startswith(("--config.", "-config.")))
  values = _flags([word for word in argv if word not in overrides])
  for name in ("config", "workdir"):
    if not values[name].value:
      raise InputError(f"--{name} is missing: see --help")
  workdir = Path(values.workdir).expanduser()
  axes = [Axis.parse(text) for text in values.axis]
  chosen = points(axes, draws=values.random, seed=values.random_seed)
  seeds = (f"--config.num_seeds={values.seeds}",) if values.seeds else ()
  todo = [
    Job(
      point.label,
      point.config(values.config),
      workdir / point.folder,
      (*seeds, *overrides, *point.options),
    )
    for point in chosen
  ]
  _check(todo)

  from h2g.sweep import clusters
  from h2g.sweep import table
  from h2g.train import jobs
  from h2g.train.workdir import cannot_write

  try:
    if values.emit:
      print(f"{len(todo)} runs -> {clusters.emit(values.emit, todo, workdir)}")
      return 0
    workdir.mkdir(parents=True, exist_ok=True)
    try:
      if not values.collect:
        jobs.run(todo, at_once=values.jobs, minutes=values.minutes)
    finally:
      rows = table.collect(chosen, workdir)
      table.write(rows, workdir)  # what is there, also after a stop
  except OSError as error:
    raise cannot_write(workdir, error) from error
  done = sum(row.found is not None for row in rows)
  print(table.markdown(rows))
  print(f"{done} of {len(rows)} points -> {workdir / 'table.md'}")
  if done:
    best = next(job for job in todo if job.folder == workdir / rows[0].point.folder)
    print(f"best on validation: {' '.join([f'--config={best.config}', *best.options])}")
  return 0 if done == len(rows) else 1


def _check(todo: list[Job]) -> None:
  """InputError for the first point that the config does not take."""
  from h2g.train.__main__ import parse

  for job in todo:
    try:
      parse(["h2g.train", f"--config={job.config}", f"--workdir={job.folder}", *job.options])
    except InputError as error:
      raise InputError(f"{job.name}: {error}") from error


def _flags(argv: list[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  for name in ("config", "workdir"):
    flags.DEFINE_string(name, "", "", flag_values=values)
  flags.DEFINE_multi_string("axis", [], "", flag_values=values)
  for name, default, least in (
    ("random", 0, 0),
    ("random_seed", 0, 0),
    ("seeds", 0, 0),
    ("jobs", 1, 1),
  ):
    flags.DEFINE_integer(name, default, "", lower_bound=least, flag_values=values)
  flags.DEFINE_float("minutes", 0.0, "", lower_bound=0.0, flag_values=values)
  flags.DEFINE_enum("emit", None, ("slurm", "xpk", "list"), "", flag_values=values)
  flags.DEFINE_bool("collect", False, "", flag_values=values)
  commands.words(values, argv)
  return values


if __name__ == "__main__":
  sys.exit(main(sys.argv))
