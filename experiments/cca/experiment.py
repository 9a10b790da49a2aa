"""Conditional cross attention and its baselines on attribute-specific retrieval.

One build serves all: a network per attribute is the unconditional one, mapped over attributes.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from experiments.cca.model import Embedder
from experiments.cca.model import triplet_loss
from h2g.data.garments import ATTRIBUTES
from h2g.data.garments import garments
from h2g.data.triplets import sample_triplets
from h2g.data.triplets import triplet_index
from h2g.metrics import retrieval_map
from h2g.nn.pure import Pure
from h2g.nn.pure import pure
from h2g.train import Batch
from h2g.train import Experiment


class Split(NamedTuple):
  """What is searched with and in; images uint8 [N, size, size, 3], labels int32 [N, K]."""

  queries: Any
  gallery: Any


def build(config) -> Experiment:
  """The experiment that `configs/cca.py` describes."""
  train, splits = synthetic(config.data)
  names = tuple(ATTRIBUTES)
  network = networks(config.model, len(names))
  index = triplet_index(train.labels, names)

  def loss(params, rest, batch: Batch, key: Array):
    images, index = batch.shared
    condition_key, triplet_key = jax.random.split(key)
    shape = (config.triplets,)
    if config.model.read_out == "separate":  # attribute by attribute
      conditions = jnp.repeat(jnp.arange(len(names)), config.triplets)
    else:
      conditions = jax.random.randint(condition_key, shape, 0, len(names))
    drawn = sample_triplets(index, conditions, triplet_key)
    ids = jnp.stack(drawn[1:], axis=1)  # [B, 3]
    x = images[ids.reshape(-1)]
    x = network.embed(params, rest, x, jnp.repeat(conditions, 3)).reshape(*ids.shape, -1)
    value = triplet_loss(*jnp.moveaxis(x, 1, 0), config.margin)
    return value.mean(), (rest, {"violated": (value > 0).mean(dtype=jnp.float32)})

  def evaluate(params, rest, batch: Batch):
    spaces = functools.partial(network.all_spaces, params, rest)
    return {
      name: {
        part: {"spaces": spaces(images), "labels": labels}
        for part, (images, labels) in split._asdict().items()
      }
      for name, split in batch.shared.items()
    }

  def resident(shared):
    return lambda seeds: Batch(shared=shared, own=np.zeros((len(seeds), 1), np.float32))

  return Experiment(
    dataset="garments",
    model=config.model.read_out,
    metric="map",
    init=network.init,
    loss=loss,
    train_batches=resident((train.images, index)),
    eval_batches=resident(splits),
    evaluate=evaluate,
    summarise=functools.partial(summarise, names=names),
    unit="triplets",
    units_per_step=config.triplets,
  )


def synthetic(config):
  """(training garments, {"val", "test": Split}), all drawn apart."""
  draw = lambda num, seed: garments(
    num, seed=10 * config.seed + seed, noise=config.noise, jitter=config.jitter
  )
  split = lambda seed: Split(draw(config.queries, seed), draw(config.gallery, seed + 1))
  return draw(config.train, 0), {"val": split(1), "test": split(3)}


class Networks(NamedTuple):
  """One network, or one per attribute, behind the same three functions.

  init: key -> (params, rest). embed: (params, rest, images [B, ...], conditions [B]) -> [B, E];
  all_spaces: (params, rest, images [B, ...]) -> [B, K, E].
  """

  init: Any
  embed: Any
  all_spaces: Any


def networks(config, num: int) -> Networks:
  """The configured network for `num` attributes."""
  settings = config.to_dict()
  separate = settings["read_out"] == "separate"
  if separate:
    settings["read_out"] = "none"
  model = pure(lambda rngs: Embedder(num, **settings, rngs=rngs))
  return _separate(model, num) if separate else _one(model, num)


def _one(model: Pure, num: int) -> Networks:
  def embed(params, rest, images, conditions):
    return model.bind(params, rest)(pixels(images), conditions[:, None])[:, 0]

  def all_spaces(params, rest, images):
    every = jnp.broadcast_to(jnp.arange(num), (len(images), num))
    return model.bind(params, rest)(pixels(images), every)

  return Networks(model.init, embed, all_spaces)


def _separate(model: Pure, num: int) -> Networks:
  one = _one(model, 1)

  def init(key):
    return jax.vmap(model.init)(jax.random.split(key, num))

  def embed(params, rest, images, conditions):
    """Expects equally many rows of each attribute, attribute by attribute."""
    apart = lambda x: x.reshape(num, -1, *x.shape[1:])
    out = jax.vmap(one.embed)(params, rest, apart(images), apart(conditions))
    return out.reshape(len(images), -1)

  def all_spaces(params, rest, images):
    out = jax.vmap(one.all_spaces, in_axes=(0, 0, None))(params, rest, images)
    return jnp.moveaxis(out[:, :, 0], 0, 1)

  return Networks(init, embed, all_spaces)


def pixels(images: Array) -> Array:
  """uint8 -> float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def cross_map(split, space: int, attribute: int) -> float:
  """mAP when images are ranked in the space of one attribute and judged by another's values."""
  queries, gallery = split["queries"], split["gallery"]
  of = lambda part: (part["spaces"][:, space], part["labels"][:, attribute])
  return retrieval_map(*of(queries), *of(gallery))


def summarise(stats, *, names: tuple[str, ...]) -> dict[str, float]:
  """mAP of each attribute in its own space, and their mean."""
  found = {}
  for name, split in stats.items():
    values = [cross_map(split, k, k) for k in range(len(names))]
    found |= {f"{name}/map_{k}": value for k, value in zip(names, values)}
    found[f"{name}/map"] = float(np.mean(values))
  return found
