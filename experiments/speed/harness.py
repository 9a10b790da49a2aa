"""How speed is measured: correctness first, then peers side by side in one process.

A case holds our function and its peers, each ready to run. `measure` first holds every one of them
against a float64 reference, then times them:

  warm-up 3; rounds of A B C A B C ..., at least 9; twice over. Each of the two passes gives a
  median and thus a ratio ours / peer (below 1: we are faster). Printed: the ratio of both passes
  together, and the spread, by how much the two differ. A ratio nearer 1 than the spread is a tie.

The floor is the least time the machine could need: bytes over its copy bandwidth or flops over its
matmul rate, whichever is longer. For an H200 both are constants below; on a CPU they are measured.
A peer that is not installed is printed as "not measured". Import this module before torch: with
OpenMP's spinning threads, torch and XLA in one process fight for the cores (tens of times slower).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import pathlib
import platform as host
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WARM_UP = 3
ROUNDS = 9
# Copy bandwidth (read and write together) in bytes/s, bfloat16 matmul rate in flop/s, as measured.
CEILINGS = {"H200": (4.3e12, 790e12)}

# Of a row, in order. A peer that was not measured has its reason behind its name.
COLUMNS = (
  "op",
  "case",
  "platform",
  "pass",
  "ours_ms",
  "peer",
  "peer_ms",
  "ratio",
  "spread",
  "floor_ratio",
  "max_error",
)

Run = Callable[[], Any]  # runs one call to its end


@dataclasses.dataclass(frozen=True)
class Case:
  """One line of the table per peer.

  Attributes:
    op: the operation.
    name: the shapes, in words.
    part: "fwd" or "fwd+bwd".
    ours: runs our call and returns its results as a tree of arrays (values, or gradients).
    peers: {name: the same for a peer, or the reason why it is not measured}.
    wanted: returns the same results in float64, as NumPy arrays.
    tolerance: largest relative norm of the error that is accepted, of ours and of every peer.
    bytes: that any implementation must move, at least.
    flops: that any implementation must do, at least.
  """

  op: str
  name: str
  part: str
  ours: Run
  peers: Mapping[str, Run | str]
  wanted: Callable[[], Any]
  tolerance: float = 1e-4
  bytes: float = 0.0
  flops: float = 0.0


def jax_run(function: Callable[..., Any], *args) -> Run:
  """A jitted call that waits for its results; compiled when it is first made."""
  args = jax.tree.map(jnp.asarray, args)
  compiled = functools.cache(lambda: jax.jit(function).lower(*args).compile())
  return lambda: jax.block_until_ready(compiled()(*args))


def torch_run(function: Callable[..., Any], *args) -> Run:
  """A torch call that waits for its results."""
  import torch

  if not torch.cuda.is_available():
    return lambda: function(*args)

  def run():
    out = function(*args)
    torch.cuda.synchronize()
    return out

  return run


def torch_grads(function: Callable[..., Any]) -> Callable[..., Any]:
  """(*tensors) -> gradients of sum(function(*tensors) ** 2), as `grads` for JAX."""
  import torch

  def call(*tensors):
    leaves = [x.detach().requires_grad_() for x in tensors]
    return torch.autograd.grad((function(*leaves) ** 2).sum(), leaves)

  return call


def heads_first(function: Callable[..., Any], backward: bool) -> Callable[..., Any]:
  """A torch attention over [B, H, T, D] whose results are ours, [B, T, H, D]: its value, or the
  gradients of q, k, v and then those of whatever else it takes."""

  def call(*tensors):
    import torch

    if backward:
      found = torch_grads(function)(*tensors)
      return tuple(x.transpose(1, 2) for x in found[:3]) + tuple(found[3:])
    with torch.no_grad():
      return function(*tensors).transpose(1, 2)

  return call


def attention_runs(
  peers: Mapping[str, Callable[..., Any] | str],
  arrays: Sequence[Any],
  *,
  backward: bool,
  half: bool,
) -> dict[str, Run | str]:
  """{peer: a run of it, or the reason why there is none}, of functions as `heads_first` has them.

  `arrays` are q, k, v, [B, T, H, D], and what follows as it is; half: as bfloat16 tensors.
  """
  runs: dict[str, Run | str] = {}
  for peer, function in peers.items():
    if isinstance(function, str):
      runs[peer] = function
      continue
    flat = [*(x.swapaxes(1, 2) for x in arrays[:3]), *arrays[3:]]
    tensors = [to_torch(x.astype(np.float32)) for x in flat]
    if half:
      tensors = [x.bfloat16() for x in tensors]
    runs[peer] = torch_run(heads_first(function, backward), *tensors)
  return runs


def grads(function: Callable[..., Any], num: int) -> Callable[..., Any]:
  """(*arrays) -> gradients of sum(function(*arrays) ** 2) by the first `num` arguments."""
  return jax.grad(lambda *args: jnp.sum(function(*args) ** 2), tuple(range(num)))


def to_torch(x) -> Any:
  """A NumPy array as a tensor on the accelerator, if there is one."""
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  return torch.from_numpy(np.ascontiguousarray(x)).to(device)


def missing(*modules: str) -> str | None:
  """Why a peer that needs these modules cannot be measured here, or None."""
  for module in modules:
    try:
      importlib.import_module(module)
    except ImportError:
      return f"{module} is not installed"
  return None


def in_float64(function: Callable[..., Any], *args) -> Any:
  """The function's results on float64 copies of its float arguments, as NumPy arrays."""

  def widen(x):
    x = np.asarray(x)
    return jnp.asarray(x.astype(np.float64) if x.dtype.kind == "f" else x)

  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, function(*jax.tree.map(widen, args)))


def error(got: Any, wanted: Any) -> float:
  """Largest relative norm of the error over the results."""

  def one(a, b):
    a = a.detach().cpu().double().numpy() if hasattr(a, "detach") else np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    if a.shape != b.shape:
      raise ValueError(f"results of shape {a.shape} beside a reference of shape {b.shape}")
    distance = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
    return float(distance) if np.isfinite(distance) else float("inf")

  flat = lambda tree: list(tree) if isinstance(tree, (tuple, list)) else [tree]
  return max(one(a, b) for a, b in zip(flat(got), flat(wanted), strict=True))


def times(
  runs: Sequence[Run], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> np.ndarray:
  """[2, len(runs), rounds] seconds: two passes of interleaved rounds, after the warm-up."""
  for run in runs:
    for _ in range(WARM_UP):
      run()
  taken = np.empty((2, len(runs), rounds))
  for again in range(2):
    for turn in range(rounds):
      for at, run in enumerate(runs):
        start = clock()
        run()
        taken[again, at, turn] = clock() - start
  return taken


def beside(taken: np.ndarray) -> list[dict]:
  """Columns of the first run alone, then of each other run beside it; taken: of `times`.

  ratio: of the medians of all rounds. spread: between those of the two passes.
  """
  overall = np.median(np.moveaxis(taken, 1, 0).reshape(taken.shape[1], -1), axis=1) * 1e3
  passes = np.median(taken, axis=2)
  ratios = passes[:, :1] / passes
  rows = [dict(ours_ms=overall[0], peer_ms=None, ratio=None, spread=None)]
  for peer_ms, (first, second) in zip(overall[1:], ratios.T[1:]):
    ratio, spread = overall[0] / peer_ms, float(abs(first - second))
    rows.append(dict(ours_ms=overall[0], peer_ms=peer_ms, ratio=ratio, spread=spread))
  return rows


def ceilings() -> tuple[float, float]:
  """(bytes/s copied, flop/s of matmul) of this machine; measured where it is not in the table."""
  device = jax.devices()[0]
  for name, found in CEILINGS.items():
    if name in device.device_kind:
      return found
  x = jax.random.normal(jax.random.key(0), (2**24,))  # 64 MB, past the caches
  a = jax.random.normal(jax.random.key(1), (1024, 1024))
  copy, product = jax_run(lambda x: x + 1, x), jax_run(lambda a: a @ a, a)
  taken = times([copy, product]).min(axis=(0, 2))
  return 2 * x.nbytes / taken[0], 2 * 1024**3 / taken[1]


def measure(case: Case, *, rounds: int = ROUNDS, limits: tuple[float, float]) -> list[dict]:
  """One row per peer; one row without a peer where none can be measured.

  Raises:
    AssertionError: ours or a peer is further from the float64 reference than the case allows; then
      nothing is timed.
  """
  wanted = case.wanted()
  runs = {"ours": case.ours, **{k: v for k, v in case.peers.items() if not isinstance(v, str)}}
  errors = {name: error(run(), wanted) for name, run in runs.items()}
  wrong = {name: found for name, found in errors.items() if not found <= case.tolerance}
  assert not wrong, f"{case.op} {case.name} {case.part}: not equal to the reference: {wrong}"
  taken = times(list(runs.values()), rounds)
  ours, *compared = beside(taken)
  floor = max(case.bytes / limits[0], case.flops / limits[1])
  row = dict(
    op=case.op,
    case=case.name,
    platform=jax.default_backend(),
    **{"pass": case.part},
    **ours,
    floor_ratio=ours["ours_ms"] / 1e3 / floor if floor else None,
    max_error=errors["ours"],
  )
  compared, rows = iter(compared), []
  for name, peer in case.peers.items():
    if isinstance(peer, str):
      rows.append(row | {"peer": f"{name} ({peer})"})
    else:
      rows.append(row | {"peer": name} | next(compared))
  return [{column: row[column] for column in COLUMNS} for row in rows or [row | {"peer": None}]]


def line(row: Mapping[str, Any]) -> str:
  floor = "" if row["floor_ratio"] is None else f"   {row['floor_ratio']:.1f}x the floor"
  head = f"{row['op']:<14} {row['case']:<40} {row['pass']:<8} ours {row['ours_ms']:8.2f} ms"
  if row["ratio"] is None:
    return f"{head}   {row['peer'] or 'peers'}: not measured{floor}"
  verdict = " tie" if abs(row["ratio"] - 1) <= row["spread"] else ""
  return (
    f"{head}   {row['peer']} {row['peer_ms']:8.2f} ms   "
    f"ratio {row['ratio']:.2f} ±{row['spread']:.2f}{verdict}{floor}"
  )


def versions(*packages: str) -> str:
  """Machine, Python and packages in one line, for beside a table."""
  found = []
  for package in ("jax", *packages):
    try:
      found.append(f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
      continue
  kind = jax.devices()[0].device_kind
  cores = f"{os.cpu_count()} cores" if jax.default_backend() == "cpu" else kind
  return f"{cores}, Python {host.python_version()}, {', '.join(found)}, {time.strftime('%Y-%m-%d')}"


def main(cases: Callable[[str], Sequence[Case]], description: str, *packages: str) -> None:
  """The command line of a speed script.

  Args:
    cases: (platform) -> the cases in order, made one at a time if it is a generator.
    description: for --help.
    *packages: whose versions are printed.
  """
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
  parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at least {ROUNDS} for a claim")
  parser.add_argument("--only", default="", help="cases whose name contains this")
  parser.add_argument("--passes", default="fwd,fwd+bwd", help="which of them, by comma")
  parser.add_argument("--peers", default="", help="peers whose name contains this; ours always run")
  args = parser.parse_args()
  if args.rounds < 1:
    parser.error(f"--rounds {args.rounds} must be at least 1")
  print(versions(*packages), flush=True)
  limits, rows = ceilings(), []
  copy, matmul = (limit / 1e9 for limit in limits[:2])
  print(f"ceilings: copy {copy:.0f} GB/s, matmul {matmul:.0f} GFLOP/s", flush=True)
  for case in cases(jax.default_backend()):
    if args.only not in case.name or case.part not in args.passes.split(","):
      continue
    kept = {name: peer for name, peer in case.peers.items() if args.peers in name}
    case = dataclasses.replace(case, peers=kept)
    for row in measure(case, rounds=args.rounds, limits=limits):
      rows.append(row)
      print(line(row), flush=True)
  write(args.json, rows)


def write(path: pathlib.Path | None, rows: list[dict]) -> None:
  """The rows as JSON; no path writes nothing."""
  if path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
