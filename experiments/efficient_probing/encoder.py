"""The encoders that are probed: trained here on canvases, without labels or with, or published."""

import functools
import json
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
from ml_collections import ConfigDict
import numpy as np

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
  """Trains an encoder: `config.objective` "mae", or "cls": by the class token's cross-entropy."""
  masked = config.objective == "mae"
  own = config.decoder.to_dict() if masked else {"num_classes": canvases.NUM_CLASSES}
  network = functools.partial(MaskedAutoencoder if masked else ViTClassifier, **own)
  model = pure(lambda rngs: network(**config.vit, rngs=rngs))

  def losses(params, rest, part, key: Array) -> Array:
    """[B] of images and labels."""
    images, labels = part
    return model.bind(params, rest).loss(unit_range(images), key if masked else labels)

  def loss(params, rest, batch: Batch, key: Array):
    draw, key = jax.random.split(key)
    ids = jax.random.randint(draw, (config.batch_size,), 0, len(batch.shared[1]))
    part = [array[ids] for array in batch.shared]
    return losses(params, rest, part, key).mean(), (rest, {})

  def evaluate(params, rest, batch: Batch):
    fixed = jax.random.key(0)
    return {name: losses(params, rest, part, fixed).mean() for name, part in batch.shared.items()}

  parts = {name: tuple(part[:2]) for name, part in canvases.splits(**config.data).items()}
  return Experiment(
    dataset="canvases",
    model=config.objective,
    metric="loss",
    maximise=False,
    init=model.init,
    loss=loss,
    train_batches=resident(parts["train"]),
    eval_batches=resident({name: parts[name] for name in ("val", "test")}),
    evaluate=evaluate,
    summarise=lambda stats: {f"{name}/loss": float(value) for name, value in stats.items()},
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
  found = {}
  for name, (images, labels, _) in canvases.splits(**data).items():
    parts = [run(images[at : at + 500]) for at in range(0, len(images), 500)]
    found[name] = np.concatenate(parts), labels
  return found


def published(config) -> Frozen:
  """The encoder of `config.checkpoint`, timm's names, in the sizes of `config.vit`."""
  settings = config.vit.to_dict() | {"learned_positions": True}
  model = pure(lambda rngs: ViT(**settings, rngs=rngs))
  params, rest = jax.eval_shape(model.init, jax.random.key(0))
  side = settings["image_size"] // settings["patch"]
  params = timm_vit.load(config.checkpoint, params, grid=(side, side))
  return Frozen(model, *jax.device_put((params, rest)))
