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

from h2g.convert import timm_vit
from h2g.data import attribute_lists
from h2g.data.garments import ATTRIBUTES
from h2g.data.garments import garments
from h2g.data.photographs import normalise
from h2g.metrics import retrieval_map
from h2g.models.cca import Networks
from h2g.models.cca import spaces_of
from h2g.nn.losses import cosine_distance
from h2g.nn.losses import mined_triplet_loss
from h2g.nn.losses import triplet_loss
from h2g.nn.patches import unit_range
from h2g.train import Batch
from h2g.train import Experiment
from h2g.train import resident
from h2g.train import rows_at_random


class Split(NamedTuple):
  """What is searched with and in; images uint8 [N, size, size, 3], labels int32 [N, K]."""

  queries: Any
  gallery: Any


def build(config) -> Experiment:
  """The experiment that `configs/cca.py` describes."""
  photographs = "folder" in config.data
  names, sampled, splits = (_photographs if photographs else _garments)(config)
  network = networks(config, len(names))

  def mined(params, rest, batch: Batch, key: Array):
    images, labels = rows_at_random(batch.shared, config.images, key)
    spaces = network.spaces(params, rest, images)
    value, violated = mined_triplet_loss(spaces, labels, config.margin)
    return value.mean(), (rest, {"violated": violated.mean()})

  def drawn(params, rest, batch: Batch, key: Array):
    del key  # triplets and their views are drawn on the host
    images, conditions = batch.own
    flat = images.reshape(-1, *images.shape[2:])
    x = network.embed(params, rest, flat, jnp.repeat(conditions, 3)).reshape(
      -1, 3, config.model.out_dim
    )
    near, far = cosine_distance(x[:, 0], x[:, 1]), cosine_distance(x[:, 0], x[:, 2])
    value = triplet_loss(near, far, config.margin)
    return value.mean(), (rest, {"violated": (value > 0).mean(dtype=jnp.float32)})

  def evaluate(params, rest, batch: Batch):
    spaces = lambda image: network.spaces(params, rest, image[None])[0]
    search = lambda part: {
      "spaces": jax.lax.map(spaces, part.images, batch_size=config.eval_images),
      "labels": part.labels,
    }
    return {
      name: {part: search(value) for part, value in split._asdict().items()}
      for name, split in batch.shared.items()
    }

  return Experiment(
    dataset=config.data.get("folder", "garments"),
    model=config.model.read_out,
    metric="map",
    init=network.init,
    loss=drawn if photographs else mined,
    train_batches=sampled,
    eval_batches=resident(splits),
    evaluate=evaluate,
    summarise=functools.partial(summarise, names=names),
    rows=photographs,
    unit="triplets" if photographs else "images",
    units_per_step=config.images,
  )


def _garments(config):
  """Names of the attributes, resident training garments, {"val", "test": Split}, drawn apart."""
  data = config.data
  draw = lambda num, seed: garments(
    num, seed=10 * data.seed + seed, noise=data.noise, jitter=data.jitter
  )
  split = lambda seed: Split(draw(data.queries, seed), draw(data.gallery, seed + 1))
  splits = {"val": split(1), "test": split(3)}
  return tuple(ATTRIBUTES), resident(tuple(draw(data.train, 0))), splits


def _photographs(config):
  """The same of a folder of lists: a stream of triplets, the images of the searches in memory."""
  data, size = config.data, config.model.image_size
  load = functools.partial(attribute_lists.load, data.folder, dataset=data.dataset)
  train = load("train")
  stream = functools.partial(
    attribute_lists.triplet_stream, train, size=size, batch_size=config.images
  )
  part = lambda name, which: attribute_lists.searched(load(name, part=which), size=size)
  splits = {
    ours: Split(part(theirs, "query"), part(theirs, "candidate"))
    for ours, theirs in (("val", "valid"), ("test", "test"))
  }
  return train.names, lambda seeds: stream(seeds=seeds).map(lambda own: Batch((), own)), splits


def networks(config, num: int) -> Networks:
  """The configured network for `num` attributes, or one per attribute."""
  scale = normalise if "folder" in config.data else unit_range
  found = spaces_of(num, config.model.to_dict(), scale)
  init = timm_vit.starting(found.init, config.checkpoint, config.model)
  return found._replace(init=init)


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
