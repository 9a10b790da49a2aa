"""results.json: what a finished run found, and with what; cost.json: time and memory."""

from importlib import metadata
import platform
import resource
import sys
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from h2g.train.experiment import Experiment

PACKAGES = ("h2g", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class SeedResult(NamedTuple):
  """One seed at its best validation step.

  metrics: of `Experiment.summarise`. stats: the pytree that it summarised.
  """

  seed: int
  best_step: int
  metrics: dict[str, float]
  stats: Any


def results(
  experiment: Experiment,
  found: list[SeedResult],
  *,
  steps: int,
  seconds: float,
  compile_count: int,
  config_hash: str,
  passed_over: list[dict],
) -> dict:
  """The dictionary of results.json. test_std is that of a sample (n - 1), 0 of a single seed.

  passed_over: bad steps that config.train.on_divergence let the run pass, and what was done.
  """
  metric = experiment.metric
  test = [seed.metrics[f"test/{metric}"] for seed in found]
  val = [seed.metrics[f"val/{metric}"] for seed in found]
  return {
    "dataset": experiment.dataset,
    "model": experiment.model,
    "metric": metric,
    "test": test,
    "test_mean": float(np.mean(test)),
    "test_std": float(np.std(test, ddof=1)) if len(test) > 1 else 0.0,
    "val": val,
    "val_mean": float(np.mean(val)),
    "seeds": [seed.seed for seed in found],
    "selected_by": experiment.selection,
    "maximise": experiment.maximise,
    "best_step": [seed.best_step for seed in found],
    "metrics": [seed.metrics for seed in found],
    "steps": steps,
    "passed_over": passed_over,
    "seconds": round(seconds, 3),
    "compile_count": compile_count,
    "versions": versions(),
    "config_hash": config_hash,
  }


# Dense bfloat16 multiply-adds times two per second of one device, by the start of its kind.
PEAK_FLOPS = {
  "NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12,
  "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12,
}  # fmt: skip


def cost(
  step_seconds: list[float],
  experiment: Experiment,
  *,
  seeds: int,
  devices: int,
  times: dict[str, float],
  compile_count: int,
  padding: list[float],
) -> dict:
  """The dictionary of cost.json; what differs from machine to machine is no result.

  step_ms: median time of a step of all seeds that train together, without compilation, evaluation
    and feeding; None where every call of the run compiled something.
  peak_mb: largest memory in use, in 1e6 bytes: of the device where it counts, of the process (with
    its libraries and the data) on a CPU.
  <unit>_per_s: `Experiment.units_per_step` of all seeds that train together, by step_ms.
  mfu: model FLOPs of all of them over what the devices could do; None for unknown devices (CPUs)
    or where the experiment does not count them.
  compile_count: programs compiled since the run began. padding_share: mean of the metric of that
    name over the logged steps of this process; None where the experiment has none.
  data_s, compute_s, compile_s, evaluate_s, checkpoint_s, other_s: seconds of training by what the
    run waited for, since it began: a batch, a step, its program, an evaluation, a save, the rest.
    What runs beside a step (reading ahead, writing a checkpoint) counts only while it is awaited.
  """
  peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
  unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
  peak = max(peaks) if all(peaks) else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  step = float(np.median(step_seconds)) if step_seconds else None
  kind = jax.devices()[0].device_kind
  able = next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)
  flops, units = experiment.flops_per_step, seeds * experiment.units_per_step
  return {
    "step_ms": round(1e3 * step, 3) if step else None,
    "peak_mb": round(peak / 1e6, 1),
    f"{experiment.unit}_per_s": round(units / step, 2) if step else None,
    "mfu": round(seeds * flops / (step * devices * able), 4) if step and able and flops else None,
    "compile_count": compile_count,
    "padding_share": round(float(np.mean(padding)), 4) if padding else None,
    **{f"{name}_s": round(seconds, 3) for name, seconds in times.items()},
  }


def spent(cost: dict) -> str:
  """The cost in one line."""
  times = {
    name[:-2]: value for name, value in cost.items() if name.endswith("_s") and "per" not in name
  }
  total = sum(times.values()) or 1.0
  words = [f"{cost['step_ms']} ms a step"] if cost["step_ms"] else []
  words += [f"{v} {k[:-6]}/s" for k, v in cost.items() if k.endswith("_per_s") and v]
  words += [f"model FLOPs utilisation {cost['mfu']:.3f}"] if cost["mfu"] else []
  words += [f"{cost['compile_count']} programs", f"peak {cost['peak_mb']:.0f} MB"]
  if cost["padding_share"] is not None:
    words.append(f"padding {100 * cost['padding_share']:.0f} %")
  shares = ", ".join(f"{name} {100 * value / total:.1f} %" for name, value in times.items())
  return f"{', '.join(words)}; of the time {shares}"


def versions() -> dict[str, str]:
  """Of Python and of the packages that decide the numbers."""
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue  # run from a clone that is not installed
  return found


def summary(result: dict) -> str:
  """The result in one line."""
  count = len(result["seeds"])
  spread = f" ± {result['test_std']:.4f}" if count > 1 else ""
  return (
    f"{result['dataset']} {result['model']}: test {result['metric']} {result['test_mean']:.4f}"
    f"{spread}, val {result['val_mean']:.4f} ({count} seed{'s' * (count > 1)}, "
    f"{result['steps']} steps, {result['seconds']:.1f} s)"
  )
