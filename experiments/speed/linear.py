"""Decay attention beside PyTorch, on the same random arrays.

  python experiments/speed/linear.py --json rows.json

Peers: a loop over chunks in torch (four batched products per chunk, the state carried), the same
with everything but the state out of the loop, and on a GPU `chunk_simple_gla` of fla-core, the
kernel behind its lightning attention. Arrays are [B, S, H, D] for JAX and fla, and the same
values, heads first and contiguous, for torch: each library in the layout that it prefers. The
reference is our chunked form in float64, which the tests hold to the recurrence.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import pathlib
import sys
from typing import Any
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

import jax.numpy as jnp
import numpy as np

from experiments.speed import harness
from h2g.ops.linear import decay_attention
from h2g.ops.linear import retention_decay

CHUNK = 64  # of the peers, and for counting flops


class Shape(NamedTuple):
  """One line of the table: batch, steps, heads, width (D and E)."""

  batch: int
  length: int
  heads: int
  width: int


SHAPES = {
  "cpu": {
    "B1 S4096 H8 D64": Shape(1, 4096, 8, 64),
    "B2 S1024 H8 D64": Shape(2, 1024, 8, 64),
    "B1 S4096 H4 D128": Shape(1, 4096, 4, 128),
  },
  "gpu": {
    "B8 S2048 H32 D128": Shape(8, 2048, 32, 128),
    "B8 S4096 H32 D128": Shape(8, 4096, 32, 128),
    "B4 S8192 H32 D128": Shape(4, 8192, 32, 128),
    "B4 S16384 H32 D128": Shape(4, 16384, 32, 128),
    "B2 S32768 H32 D128": Shape(2, 32768, 32, 128),
  },
}


def ours(decay: np.ndarray, implementation: str | None = None) -> Callable[..., Any]:
  return lambda q, k, v: decay_attention(
    q, k, v, decay=jnp.asarray(decay, q.dtype), implementation=implementation
  )


def _factors(decay: np.ndarray, dtype):
  """Weights inside a chunk, of the state for queries, of keys for the state: torch, [H, ..]."""
  import torch

  g = harness.to_torch(decay).double()[:, None]
  steps = torch.arange(CHUNK, device=g.device, dtype=torch.float64)
  apart = steps[:, None] - steps[None, :]
  within = torch.where(apart >= 0, torch.exp(g[:, :, None] * apart.clamp(min=0)), 0.0)
  since, until = torch.exp(g * (steps + 1)), torch.exp(g * (CHUNK - 1 - steps))
  whole = torch.exp(g * CHUNK)[:, :, None]
  return [x.to(dtype) for x in (within, since[..., None], until[..., None], whole)]


def chunk_loop(decay: np.ndarray, dtype) -> Callable[..., Any]:
  """(q, k, v) [B, H, S, D] -> [B, H, S, D]: all of a chunk inside the loop."""
  import torch

  within, since, until, whole = _factors(decay, dtype)

  def call(q, k, v):
    q = q * q.shape[-1] ** -0.5
    state = q.new_zeros((*q.shape[:2], q.shape[3], v.shape[3]))
    outs = []
    for cq, ck, cv in zip(*(x.split(CHUNK, dim=2) for x in (q, k, v))):
      outs.append((cq @ ck.mT * within) @ cv + (cq @ state) * since)
      state = state * whole + (ck * until).mT @ cv
    return torch.cat(outs, dim=2)

  return call


def chunk_batch(decay: np.ndarray, dtype) -> Callable[..., Any]:
  """The same, all chunks in one batched product each; only the states follow one another."""
  import torch

  within, since, until, whole = (x.unsqueeze(1) for x in _factors(decay, dtype))

  def call(q, k, v):
    cut = lambda x: x.unflatten(2, (-1, CHUNK))
    cq, ck, cv = cut(q * q.shape[-1] ** -0.5), cut(k), cut(v)
    added = (ck * until).mT @ cv
    state, before = torch.zeros_like(added[:, :, 0]), []
    for new in added.unbind(2):
      before.append(state)
      state = state * whole[:, 0] + new
    states = torch.stack(before, dim=2)
    return ((cq @ ck.mT * within) @ cv + (cq @ states) * since).flatten(2, 3)

  return call


def fla(decay: np.ndarray) -> Callable[..., Any] | str:
  """fla-core's kernel on [B, S, H, D], or why it is not measured."""
  absent = harness.missing("torch", "fla")
  if absent:
    return absent
  from fla.ops.simple_gla import chunk_simple_gla

  gamma = harness.to_torch(decay).float()
  return lambda q, k, v: chunk_simple_gla(q, k, v, g_gamma=gamma, scale=q.shape[-1] ** -0.5)[0]


def peers(shape: Shape, platform: str, decay: np.ndarray) -> dict[str, Any]:
  """{name: (function of tensors or why it is not measured, whether heads stand first)}."""
  absent = harness.missing("torch")
  if absent:
    return {"torch chunk loop": (absent, True)}
  import torch

  dtype = torch.bfloat16 if platform == "gpu" else torch.float32
  found = {
    "torch chunk loop": (chunk_loop(decay, dtype), True),
    "torch chunks together": (chunk_batch(decay, dtype), True),
  }
  if platform == "gpu":
    found["fla-core"] = (fla(decay), False)
  return found


def cases(platform: str) -> Iterator[harness.Case]:
  for name, shape in SHAPES[platform].items():
    batch, length, heads, width = shape
    rng = np.random.default_rng(0)
    size = (batch, length, heads, width)
    arrays = [rng.standard_normal(size, np.float32) for _ in range(3)]
    on_gpu = platform == "gpu"
    if on_gpu:
      arrays = [np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in arrays]
    decay = np.asarray(retention_decay(heads), np.float64)
    tensors = {}
    for part in ("fwd", "fwd+bwd"):
      backward = part != "fwd"
      graded = (lambda f: harness.grads(f, 3)) if backward else (lambda f: f)

      def torch_call(peer, backward=backward, arrays=arrays, tensors=tensors, on_gpu=on_gpu):
        function, heads_first = peer
        if isinstance(function, str):
          return function
        if heads_first not in tensors:
          # NumPy's bfloat16 is not torch's.
          made = [harness.to_torch(np.asarray(x, np.float32)) for x in arrays]
          made = [x.bfloat16() if on_gpu else x for x in made]
          tensors[heads_first] = [
            x.transpose(1, 2).contiguous() if heads_first else x for x in made
          ]
        turn = (lambda x: x.transpose(1, 2)) if heads_first else (lambda x: x)
        wanted = harness.torch_grads(function) if backward else function

        def call(*args):
          out = wanted(*args)
          return tuple(map(turn, out)) if backward else turn(out)

        return harness.torch_run(call, *tensors[heads_first])

      rows = batch * length * heads
      yield harness.Case(
        op="decay_attention",
        name=name,
        part=part,
        ours=harness.jax_run(graded(ours(decay)), *arrays),
        peers={key: torch_call(peer) for key, peer in peers(shape, platform, decay).items()},
        wanted=functools.partial(
          harness.in_float64,
          graded(ours(decay, "xla")),
          *(np.asarray(x, np.float32) for x in arrays),
        ),
        tolerance=3e-2 if on_gpu else 1e-5,
        # q, k, v in and the output out; backward also its gradient in and three gradients out.
        bytes=(2 if on_gpu else 4) * rows * width * (11 if backward else 4),
        flops=rows * (2 * CHUNK * width + 4 * width**2) * (3.5 if backward else 1),
      )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch", "fla-core")
