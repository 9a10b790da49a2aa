"""The optimiser of one seed, from the settings."""

import jax
import optax

from h2g.train.settings import Settings


def make_schedule(settings: Settings) -> optax.Schedule:
  """Learning rate by step: linear over `warmup` steps, then the schedule to the last step."""
  after = max(settings.steps - settings.warmup, 1)
  main = {
    "cosine": lambda: optax.cosine_decay_schedule(settings.lr, after),
    "linear": lambda: optax.linear_schedule(settings.lr, 0.0, after),
    "constant": lambda: optax.constant_schedule(settings.lr),
  }[settings.schedule]()
  if not settings.warmup:
    return main
  # The ramp is (step + 1) / warmup: a first step with rate zero would be a step for nothing.
  start = settings.lr / settings.warmup
  ramp = optax.linear_schedule(start, settings.lr, max(settings.warmup - 1, 1))
  return optax.join_schedules([ramp, main], [settings.warmup])


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
  """Gradient clipping, then the named optimiser under its schedule."""
  schedule = make_schedule(settings)
  mask = None if settings.decay == "all" else _matrices
  decay = settings.weight_decay
  main = {
    "adamw": lambda: optax.adamw(schedule, weight_decay=decay, mask=mask),
    "lion": lambda: optax.lion(schedule, weight_decay=decay, mask=mask),
    "adam": lambda: optax.chain(optax.add_decayed_weights(decay, mask), optax.adam(schedule)),
    "sgd": lambda: optax.chain(
      optax.add_decayed_weights(decay, mask), optax.sgd(schedule, settings.momentum)
    ),
  }[settings.optimizer]()
  if settings.clip_norm:
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), main)
  return main


def _matrices(params):
  return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
