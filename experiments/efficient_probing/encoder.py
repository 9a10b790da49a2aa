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
from h2g.train import Experiment


class Frozen(NamedTuple):
  """A trained `ViT`: `pure(...)` of it is `model`."""

  model: Any
  params: Any
  rest: Any


def build(config) -> Experiment:
  """Trains an encoder: `config.objective` "cls" by its class token's cross-entropy, else masked."""
  supervised = config.objective == "cls"
  own = {"num_classes": canvases.NUM_CLASSES} if supervised else config.decoder.to_dict()
  network = functools.partial(ViTClassifier if supervised else MaskedAutoencoder, **own)
  model = pure(lambda rngs: network(**config.vit, rngs=rngs))

  def losses(params, rest, rows, key: Array) -> Array:
    """[B] of images and labels."""
    images, labels = rows
    return model.bind(params, rest).loss(unit_range(images), labels if supervised else key)

  parts = {name: tuple(part[:2]) for name, part in canvases.splits(**config.data).items()}
  return Experiment(
    dataset="canvases",
    model=config.objective,
    init=model.init,
    unit="images",
    **train.mean_loss(losses, parts, config.batch_size),
  )


def trained(config) -> Frozen:
  """The encoder of `config.config` in `config.workdir`, trained there first if it is not."""
  inner = config.config
  experiment = build(inner)
  train.run(experiment, inner, config.workdir)
  best = train.restore_best(experiment, inner, config.workdir)
  params, rest = jax.tree.map(lambda leaf: leaf[0], best)
  return Frozen(pure(lambda rngs: ViT(**inner.vit, rngs=rngs)), params["vit"], rest["vit"])


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
  start = timm_vit.starting(model.init, config.checkpoint, config.vit, at="")
  return Frozen(model, *jax.device_put(start(jax.random.key(0))))
