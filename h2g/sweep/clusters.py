"""Job lists: the commands of a sweep, one a line, and the file that a cluster's tool takes.

The runs find their places by themselves: afterwards the same `python -m h2g.sweep` command without
`--emit` finds what is finished, runs the rest and writes the table.
"""

from collections.abc import Sequence
from pathlib import Path
import shlex

from h2g.train.jobs import Job
from h2g.train.workdir import write_whole

SLURM = """#!/bin/bash
# sbatch {script}      (with --partition, --gpus-per-task, --time, ... as the cluster asks)
#SBATCH --job-name={name}
#SBATCH --array=1-{count}
#SBATCH --ntasks=1
#SBATCH --output={folder}/slurm-%A_%a.log
#SBATCH --requeue
#SBATCH --signal=TERM@120
# One run per task of the array. Two minutes before the time limit it saves and stops (status 75).
srun bash -c "exec $(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {jobs})"
"""
XPK = """#!/bin/bash
# bash {script} --cluster=CLUSTER --tpu-type=v5litepod-8 --base-docker-image=IMAGE
# One workload per run; what is given on the command line is passed on to each. {folder} must be a
# place that all workloads can write to.
set -e
"""


def emit(kind: str, jobs: Sequence[Job], workdir: Path) -> Path:
  """Writes workdir/jobs.txt and, for "slurm" or "xpk", the script beside it.

  Returns:
    The file to hand on.
  """
  commands = [shlex.join(["python", *job.words]) for job in jobs]
  workdir.mkdir(parents=True, exist_ok=True)
  listing = workdir / "jobs.txt"
  write_whole(listing, ("\n".join(commands) + "\n").encode())
  if kind == "list":
    return listing
  script = workdir / f"sweep.{'sbatch' if kind == 'slurm' else 'sh'}"
  known = dict(script=script, folder=workdir, jobs=shlex.quote(str(listing)))
  if kind == "slurm":
    text = SLURM.format(name=f"sweep-{workdir.name}", count=len(jobs), **known)
  else:
    create = 'xpk workload create --workload={}-{} "$@" --command={}\n'
    lines = [create.format("sweep", n, shlex.quote(word)) for n, word in enumerate(commands, 1)]
    text = XPK.format(**known) + "".join(lines)
  write_whole(script, text.encode())
  return script
