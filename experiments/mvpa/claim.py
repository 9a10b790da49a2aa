"""Relative lag and distance carry over to subjects with other channels; absolute places do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from h2g.ops.mvpa import mvpa
from h2g.papers import Finding
from h2g.papers import Runs

MODELS = ("mvpa", "no_channel", "no_time", "vanilla", "vanilla_none")


def check(runs: Runs) -> list[Finding]:
  """The sentences of the claim; top-1 of 31 and F1 on unseen channel counts, means over seeds."""
  top1, last = {}, {}
  for model in MODELS:
    variant = f"tiny,model={model}"
    top1[model] = runs.mean(variant)
    last[model] = metrics(runs, f"{variant},task=classify,start={runs.folder(variant)}")
  f1 = {model: found["f1"] for model, found in last.items()}
  eeg = metrics(runs, "eeg")
  above = lambda name, value, least: Finding.compare(name, value, at_least=least)
  ratio = memory(window=4) / memory(window=24)
  return [
    above(
      "next segment: MVPA - vanilla with channel embedding", top1["mvpa"] - top1["vanilla"], 0.03
    ),
    above("F1: MVPA - vanilla with channel embedding", f1["mvpa"] - f1["vanilla"], 0.05),
    above("F1: MVPA - vanilla without it", f1["mvpa"] - f1["vanilla_none"], 0.05),
    at_most(
      "MVPA without channel term: accuracy's distance from chance",
      abs(last["no_channel"]["accuracy"] - 0.5),
      0.05,
    ),
    at_most("largest difference of the fused and the dense form", apart(), 1e-4),
    at_most("peak memory of the window over that of a dense one", ratio, 1.0),
    above("EEG, next segment: MVPA - copying the last", eeg["top1"] - eeg["copied"], 0.0),
  ]


def at_most(name: str, value: float, limit: float) -> Finding:
  """`name` must be at most a number; NaN does not hold."""
  return Finding(f"{name} <= {limit:.4g}", bool(value <= limit), f"{value:.4g}")


def metrics(runs: Runs, variant: str) -> dict[str, float]:
  """Means over seeds of all test metrics of a variant, without their prefix."""
  found = runs.results(variant)["metrics"]
  names = [name for name in found[0] if name.startswith("test/")]
  return {name[5:]: float(np.mean([row[name] for row in found])) for name in names}


def operands(length=25, channels=16, heads=4, groups=2, width=16) -> list[jax.Array]:
  """Random arrays of a call."""
  rng = np.random.default_rng(0)
  q, kv = (1, length, channels, heads, width), (1, length, channels, groups, width)
  rows = [(n, groups, width) for n in (length, channels)]
  shapes = (q, kv, kv, *rows, *[(groups, width)] * 3)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def apart() -> float:
  """Largest difference of the tiled form and of attention's kernels from the dense reference."""
  run = jax.jit(mvpa, static_argnames=("window", "implementation"))
  forms = ("reference", "xla", "attention")
  dense, *others = (run(*operands(), window=4, implementation=name) for name in forms)
  return max(float(jnp.abs(other - dense).max()) for other in others)


def memory(window: int) -> int:
  """Bytes of temporaries of a forward and backward pass, as compiled."""
  call = functools.partial(mvpa, window=window, last_full=False)
  if window >= 24:
    call = functools.partial(call, implementation="reference")
  step = jax.grad(lambda *x: jnp.square(call(*x)).sum(), argnums=tuple(range(8)))
  return jax.jit(step).lower(*operands()).compile().memory_analysis().temp_size_in_bytes
