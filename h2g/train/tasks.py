"""Parts of an `Experiment` that many have alike: telling one class of many, a mean over rows."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import optax

from h2g.train.experiment import Batch
from h2g.train.experiment import resident
from h2g.train.experiment import rows_at_random


def classification(
  forward: Callable[[Any, Any, Any, bool], tuple[Array, Any]],
  drawn: Callable[[Batch, Array], tuple[Any, Array]],
  read: Callable[[Batch], dict[str, tuple[Any, Array]]],
) -> dict[str, Any]:
  """`metric`, `loss`, `evaluate` and `summarise` of an `Experiment` that names classes.

    loss = mean_b -log softmax(logits_b)[label_b],   accuracy = share of argmax logits_b = label_b

  Args:
    forward: (params, rest, inputs, training) -> (logits [B, classes], rest after the call).
    drawn: (batch, key) -> (inputs, labels [B] int) of a step.
    read: batch -> {part: (inputs, labels)} of an evaluation; negative labels (padding) count for
      nothing.
  """

  def loss(params, rest, batch: Batch, key: Array):
    inputs, labels = drawn(batch, key)
    logits, rest = forward(params, rest, inputs, True)
    logits = logits.astype(jnp.float32)
    value = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    accuracy = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
    return value.mean(), (rest, {"accuracy": accuracy})

  def evaluate(params, rest, batch: Batch):
    count = lambda mask: mask.sum(dtype=jnp.int32)
    found = {}
    for name, (inputs, labels) in read(batch).items():
      logits, _ = forward(params, rest, inputs, False)
      found[name] = {"right": count(logits.argmax(-1) == labels), "of": count(labels >= 0)}
    return found

  def summarise(stats) -> dict[str, float]:
    share = lambda found: float(found["right"] / found["of"])
    return {f"{name}/accuracy": share(found) for name, found in stats.items()}

  return dict(metric="accuracy", loss=loss, evaluate=evaluate, summarise=summarise)


def mean_loss(
  losses: Callable[[Any, Any, Any, Array], Array], parts: dict[str, Any], batch_size: int
) -> dict[str, Any]:
  """What an `Experiment` has around a loss of rows that all stay on the device.

  Steps draw rows of "train" at random; the best step is that of the lowest mean over "val", with
  the same key at every evaluation.

  Args:
    losses: (params, rest, rows, key) -> [B] losses of rows, leaves [B, ...].
    parts: {"train", "val", "test"}: pytrees of arrays [N, ...].
    batch_size: B of a step.
  """

  def loss(params, rest, batch: Batch, key: Array):
    draw, key = jax.random.split(key)
    rows = rows_at_random(batch.shared, batch_size, draw)
    return losses(params, rest, rows, key).mean(), (rest, {})

  def evaluate(params, rest, batch: Batch):
    fixed = jax.random.key(0)
    return {name: losses(params, rest, part, fixed).mean() for name, part in batch.shared.items()}

  return dict(
    metric="loss",
    maximise=False,
    loss=loss,
    evaluate=evaluate,
    summarise=lambda stats: {f"{name}/loss": float(value) for name, value in stats.items()},
    train_batches=resident(parts["train"]),
    eval_batches=resident({name: parts[name] for name in ("val", "test")}),
    units_per_step=batch_size,
  )
