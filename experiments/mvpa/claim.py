"""Relative lag and distance carry over to subjects with other channels; absolute places do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from h2g.ops.mvpa import mvpa
from h2g.papers import Finding
from h2g.papers import Runs
from h2g.papers import temporaries

MODELS = ("mvpa", "no_channel", "vanilla", "vanilla_none")


def check(runs: Runs) -> list[Finding]:
  """The sentences of the claim; top-1 of 31 and F1 on unseen channel counts, means over seeds."""
  first = {model: f"tiny,model={model}" for model in MODELS}
  second = {model: f"{variant},task=classify" for model, variant in first.items()}
  runs.prepare("eeg", *first.values(), *second.values())
  top1, last, f1 = {}, {}, {}
  for model in MODELS:
    top1[model] = runs.mean(first[model])
    last[model] = runs.metrics(second[model])  # `runs` says where the first is
    f1[model] = last[model]["test/f1"]
  eeg = runs.metrics("eeg")
  above = Finding.compare
  ratio = memory(window=4) / memory(window=24)
  return [
    above("next segment: MVPA - vanilla with channels", top1["mvpa"] - top1["vanilla"], 0.03),
    above("F1: MVPA - vanilla with channel embedding", f1["mvpa"] - f1["vanilla"], 0.05),
    above("F1: MVPA - vanilla without it", f1["mvpa"] - f1["vanilla_none"], 0.05),
    Finding.at_most(
      "MVPA without channel term: accuracy's distance from chance",
      abs(last["no_channel"]["test/accuracy"] - 0.5),
      0.05,
    ),
    Finding.at_most("largest difference of the fused and the dense form", apart(), 1e-4),
    Finding.at_most("peak memory of the window over that of a dense one", ratio, 1.0),
    above("EEG, next segment: MVPA - copying the last", eeg["test/top1"] - eeg["test/copied"], 0.0),
  ]


def operands() -> list[jax.Array]:
  """Random arrays of a call: 25 segments, 16 channels, 4 heads of 16 in 2 groups."""
  rng, token, row = np.random.default_rng(0), (1, 25, 16), (2, 16)
  shapes = ((*token, 4, 16), *[(*token, *row)] * 2, (25, *row), (16, *row), *[row] * 3)
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
  return temporaries(step, *operands())
