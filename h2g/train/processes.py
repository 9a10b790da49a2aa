"""Several processes as one job: how they meet, agree to stop, and end when one of them is gone.

Every process runs the same command. They train one run together: each computes on its own devices,
the first writes the logs, all write checkpoints (into one work directory, that all can reach).
"""

from collections.abc import Mapping
import os
import sys
from typing import NoReturn

from h2g.errors import InputError

HEARTBEAT_S = 20  # without a sign of life for so long, a process is taken for dead
MEETING_S = 300  # how long the first process waits for the others
STOP_EVERY = 10  # steps between questions whether any process was told to stop

# What the processes' collectives and their coordinator say when a peer has gone.
_SIGNS = (
  "gloo", "nccl", "connection", "unavailable", "heartbeat", "deadline", "coordination", "barrier",
)  # fmt: skip


def join(
  coordinator_address: str | None, num_processes: int | None, process_id: int | None, find: bool
) -> None:
  """Joins the job, before anything else of JAX; does nothing for a process on its own.

  Args:
    coordinator_address: host:port of process 0. num_processes: in the job. process_id: of this one,
      from 0. All three, or none: then Slurm, Open MPI and GKE are asked through their variables.
    find: JAX asks its surroundings, whatever the variables say (a Cloud TPU pod shows none).
  Raises:
    InputError: some of the three are missing, or the processes did not meet.
  """
  given = (coordinator_address, num_processes, process_id)
  explicit = any(value is not None for value in given)
  if explicit and any(value is None for value in given):
    raise InputError("give all of --coordinator_address, --num_processes, --process_id, or none")
  if explicit and not 0 <= process_id < num_processes:
    raise InputError(f"--process_id={process_id}: with --num_processes={num_processes} they count "
                     "from 0")  # fmt: skip
  if not (explicit or find or in_a_job(os.environ)):
    return
  import jax

  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      *given,
      initialization_timeout=MEETING_S,
      heartbeat_timeout_seconds=HEARTBEAT_S,
      shutdown_timeout_seconds=HEARTBEAT_S,
    )
  except (RuntimeError, ValueError) as error:  # nobody came, or nothing tells where they are
    where = coordinator_address or "where the surroundings say"
    reason = " ".join(str(error).split())[:200]
    raise InputError(f"the processes of the job did not meet at {where}: {reason}") from error


def in_a_job(variables: Mapping[str, str]) -> bool:
  """Whether Slurm, Open MPI or GKE started this process as one of several."""
  count = lambda name: int(variables.get(name) or 1)
  return (
    ("SLURM_PROCID" in variables and count("SLURM_NTASKS") > 1)
    or count("OMPI_COMM_WORLD_SIZE") > 1
    or "," in variables.get("TPU_WORKER_HOSTNAMES", "")
  )


def several() -> bool:
  """Whether this process is one of a job's. Does not load JAX."""
  if "jax" not in sys.modules:
    return False
  import jax

  # Asked first: counting processes would start the devices.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def any_of(flag: bool) -> bool:
  """Whether the flag is set in any process; all must ask at the same step."""
  if not several():
    return flag
  from jax.experimental import multihost_utils
  import numpy as np

  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def lost_a_peer(error: BaseException) -> bool:
  """Whether the error comes of another process that is gone."""
  # Its type depends on where the peer was missed: a step, a barrier, a save.
  return several() and any(sign in str(error).lower() for sign in _SIGNS)


def leave(status: int) -> NoReturn:
  """Ends this process of a job at once: an orderly end would wait for the others."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
