"""Least squares on a stream whose batches go wrong as the config says."""

import jax
import jax.numpy as jnp
import numpy as np

from h2g.train import Batch
from h2g.train import Experiment

DIM = 4


class Numbers:
  """0, 1, 2, ... with a position that can be read and set; it may stop coming at one of them."""

  def __init__(self, hang_at: int):
    self._at, self._hang_at = 0, hang_at

  def __iter__(self):
    return self

  def __next__(self) -> int:
    if self._at == self._hang_at:
      import threading

      threading.Event().wait()
    self._at += 1
    return self._at - 1

  def get_state(self) -> int:
    return self._at

  def set_state(self, state: int) -> None:
    self._at = state


class Stream:
  def __init__(self, make, hang_at: int):
    self._make, self._hang_at = make, hang_at

  def __iter__(self):
    return _Batches(self._make, Numbers(self._hang_at))


class _Batches:
  def __init__(self, make, numbers):
    self._make, self._numbers = make, numbers
    self.get_state, self.set_state = numbers.get_state, numbers.set_state

  def __next__(self) -> Batch:
    return self._make(next(self._numbers))


def build(config) -> Experiment:
  """config.nan_batches, config.spike_batches: numbers of bad batches, from 1. hang_at: likewise."""

  def make(index: int, seeds) -> Batch:
    x, y = [], []
    for seed in seeds:
      generator = np.random.default_rng((seed, index))
      x.append(generator.normal(size=(8, DIM)).astype(np.float32))
      y.append(x[-1].sum(-1) + generator.normal(size=8).astype(np.float32))
    x, y = np.stack(x), np.stack(y)
    if index + 1 in config.nan_batches:
      x[0] = np.nan
    if index + 1 in config.spike_batches:
      y[0] += 100
    return Batch(shared={}, own={"x": x, "y": y})

  def error(params, own):
    return jnp.mean(jnp.square(own["x"] @ params["w"] + params["b"] - own["y"]))

  def loss(params, rest, batch, key):
    return error(params, batch.own), ({"seen": rest["seen"] + 1}, {})

  return Experiment(
    dataset="line",
    model="least_squares",
    metric="loss",
    init=lambda key: (
      {"w": jax.random.normal(key, (DIM,)), "b": jnp.zeros(())},
      {"seen": jnp.zeros((), jnp.int32)},
    ),
    loss=loss,
    train_batches=lambda seeds: Stream(lambda index: make(index, seeds), config.hang_at - 1),
    eval_batches=lambda seeds: make(10**6, seeds),
    evaluate=lambda params, rest, batch: {"loss": error(params, batch.own)},
    summarise=lambda stats: {"val/loss": float(stats["loss"]), "test/loss": float(stats["loss"])},
    maximise=False,
    rows=True,
  )
