"""Multi-variate parallel attention with a window, beside dense forms, on the same random arrays.

  python experiments/speed/mvpa.py --json rows.json

Peers: the dense definition in float32, which scores all pairs and then leaves out what is beyond
the window, and the same function as two calls of `h2g.ops.attention`. At the end, the bytes of
temporaries of each form, forward and backward, as compiled.
"""

from collections.abc import Iterator
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed import harness
from h2g.ops.mvpa import mvpa
from h2g.papers import temporaries

# batch, segments, channels, heads, key heads, width, window
SHAPES = {
  "cpu": {
    "T25 C16 W4": (1, 25, 16, 4, 2, 16, 4),
    "T25 C32 W10": (1, 25, 32, 12, 4, 64, 10),
    "T110 C8 W10": (1, 110, 8, 4, 2, 16, 10),
  },
  "gpu": {
    "T25 C64 W10": (8, 25, 64, 12, 4, 64, 10),
    "T110 C32 W10": (2, 110, 32, 12, 4, 64, 10),
  },
}


def sizes(name: str, platform: str) -> list[tuple[int, ...]]:
  """Of the eight arrays of a call."""
  batch, length, channels, heads, groups, width, _ = SHAPES[platform][name]
  tokens = [(batch, length, channels, n, width) for n in (heads, groups, groups)]
  return tokens + [(n, groups, width) for n in (length, channels)] + [(groups, width)] * 3


def cases(platform: str) -> Iterator[harness.Case]:
  for name, (batch, length, channels, heads, groups, width, window) in SHAPES[platform].items():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(size, np.float32) for size in sizes(name, platform)]
    for part in ("fwd", "fwd+bwd"):
      graded = (lambda f: harness.grads(f, 8)) if part != "fwd" else (lambda f: f)
      form = functools.partial(mvpa, window=window, last_full=False)
      of = lambda name, graded=graded, form=form: graded(
        functools.partial(form, implementation=name)
      )
      run = lambda name, of=of, arrays=arrays: harness.jax_run(of(name), *arrays)
      wanted = functools.partial(harness.in_float64, of("reference"), *arrays)
      tokens, near = length * channels, (window + 1) / length
      yield harness.Case(
        op="mvpa",
        name=name,
        part=part,
        ours=run("xla"),
        peers={"dense definition": run("reference"), "h2g attention": run("attention")},
        wanted=wanted,
        bytes=4 * batch * tokens * width * (2 * heads + 2 * groups),
        flops=batch * heads * tokens**2 * width * (2 * near + 1) * (1 if part == "fwd" else 3.5),
      )


def memory() -> None:
  """Prints the bytes of temporaries of each form."""
  for name, (*_, window) in SHAPES["cpu"].items():
    shapes = [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes(name, "cpu")]
    for form in ("xla", "attention", "reference"):
      call = functools.partial(mvpa, window=window, last_full=False, implementation=form)
      taken = temporaries(harness.grads(call, 8), *shapes)
      print(f"{name}: {form}: {taken / 1e6:.1f} MB")


if __name__ == "__main__":
  harness.main(cases, __doc__)
  memory()
