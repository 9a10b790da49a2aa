"""The encoders that are probed: trained here on canvases, without labels or with, or published."""

import functools
import json
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from h2g import train
from h2g.convert import timm_vit
from h2g.data import canvases
from h2g.models.mae import MaskedAutoencoder
from h2g.models.vit import ViT
from h2g.models.vit import ViTClassifier
from h2g.nn.patches import unit_range
from h2g.nn.pure import pure
from h2g.train import Batch
from h2g.train import Experiment
from h2g.train import resident


class Frozen(NamedTuple):
  """A trained `ViT`: `pure(...)` of it is `model`."""

  model: Any
  params: Any
  rest: Any


def build(config) -> Experiment:
  """Trains an encoder: `config.objective` "mae" or "cls"."""
  masked = config.objective == "mae"
  parts = canvases.splits(**config.data)
  make = functools.partial(MaskedAutoencoder, **config.decoder) if masked else ViTClassifier
  if not masked:
    make = functools.partial(make, int(parts["train"].labels.max()) + 1)
  model = pure(lambda rngs: make(**config.vit, rngs=rngs))

  def scores(params, rest, images, labels, key) -> Array:
    """[B] what is summed over a part: the squared error, or whether the class is right."""
    network = model.bind(params, rest)
    if masked:
      return network.loss(unit_range(images), key)
    return (network(unit_range(images)).argmax(-1) == labels).astype(jnp.float32)

  def loss(params, rest, batch: Batch, key: Array):
    images, labels = batch.shared
    draw, key = jax.random.split(key)
    ids = jax.random.randint(draw, (config.batch_size,), 0, len(labels))
    if masked:
      return scores(params, rest, images[ids], labels[ids], key).mean(), (rest, {})
    logits = model.bind(params, rest)(unit_range(images[ids]))
    value = optax.softmax_cross_entropy_with_integer_labels(logits, labels[ids])
    return value.mean(), (rest, {})

  def evaluate(params, rest, batch: Batch):
    fixed = jax.random.key(0)
    return {name: scores(params, rest, *part, fixed).mean() for name, part in batch.shared.items()}

  metric = "loss" if masked else "accuracy"
  pairs = {name: (part.images, part.labels) for name, part in parts.items()}
  return Experiment(
    dataset="canvases",
    model=config.objective,
    metric=metric,
    init=model.init,
    loss=loss,
    train_batches=resident(pairs["train"]),
    eval_batches=resident({name: pairs[name] for name in ("val", "test")}),
    evaluate=evaluate,
    summarise=lambda stats: {f"{name}/{metric}": float(value) for name, value in stats.items()},
    maximise=not masked,
    unit="images",
    units_per_step=config.batch_size,
  )


def trained(config) -> Frozen:
  """The encoder of `config.config` in `config.workdir`, trained there first if it is not."""
  inner = config.config
  experiment = build(inner)
  train.run(experiment, inner, config.workdir)
  params, rest = jax.tree.map(
    lambda leaf: leaf[0], train.restore_best(experiment, inner, config.workdir)
  )
  model = pure(lambda rngs: ViT(**inner.vit, rngs=rngs))
  return Frozen(model, params["vit"], rest["vit"])


def precomputed(config, data) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{part: (tokens [N, 1 + patches, D] float32, labels [N] int32)} of the canvases."""
  return _precomputed(config.to_json(), data.to_json())


@functools.lru_cache(maxsize=2)  # the probes of one claim read the same tokens
def _precomputed(config: str, data: str):
  config, data = (ConfigDict(json.loads(text)) for text in (config, data))
  model, params, rest = trained(config)
  run = jax.jit(lambda images: model.bind(params, rest).tokens(unit_range(images), config.block))
  in_parts = lambda images: np.concatenate(
    [run(images[at : at + 500]) for at in range(0, len(images), 500)]
  )
  parts = canvases.splits(**data)
  return {name: (in_parts(part.images), part.labels) for name, part in parts.items()}


def published(config) -> Frozen:
  """The encoder of `config.checkpoint`, timm's names, in the sizes of `config.vit`."""
  settings = config.vit.to_dict() | {"learned_positions": True}
  model = pure(lambda rngs: ViT(**settings, rngs=rngs))
  params, rest = jax.eval_shape(model.init, jax.random.key(0))
  side = settings["image_size"] // settings["patch"]
  params = timm_vit.load(config.checkpoint, params, grid=(side, side))
  return Frozen(model, *jax.device_put((params, rest)))
