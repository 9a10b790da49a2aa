"""The optimiser of one seed, from the settings."""

import re

import jax
import optax

from h2g.errors import InputError
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
  """Gradient clipping, then the named optimiser under its schedule, then rates by parameter."""
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
    "lars": lambda: _lars(schedule, decay, mask, settings.momentum),
  }[settings.optimizer]()
  before = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
  after = [_by_path(settings.rates)] if settings.rates else []
  return optax.chain(*before, main, *after) if before or after else main


def _by_path(rates: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
  """Multiplies each parameter's update by the factor of the first pattern found in its path.

  InputError where a pattern is the first of no parameter: a misspelt one would change nothing.
  """

  def scale(updates, params=None):
    del params
    used = set()

    def one(path, update):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      for pattern, factor in rates:
        if re.search(pattern, name):
          used.add(pattern)
          return update * factor
      return update

    scaled = jax.tree_util.tree_map_with_path(one, updates)
    if unused := [pattern for pattern, _ in rates if pattern not in used]:
      raise InputError(f"config.train.rates: {unused[0]!r} is found in no parameter's path")
    return scaled

  return optax.stateless(scale)


def _lars(schedule, decay, mask, momentum) -> optax.GradientTransformation:
  """g <- g + decay p; g <- 0.001 g |p| / |g| where p has two axes or more (g where a norm is zero);
  mu <- momentum mu + g; p <- p - rate mu.

  `optax.lars` has the rate inside mu, which differs under a schedule. Source: arXiv 1708.03888, as
  in the code of arXiv 2111.06377 and 2506.10178.
  """
  trust = optax.scale_by_trust_ratio(trust_coefficient=0.001)
  return optax.chain(
    optax.add_decayed_weights(decay, mask),
    optax.masked(trust, _matrices),
    optax.trace(momentum),
    optax.scale_by_learning_rate(schedule),
  )


def _matrices(params):
  return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
