"""Dual cross-attention learning and its baselines: fine-grained classes, or retrieval of them.

One build serves all: a variant says which branches train, whose keys PWCA adds, how GLCA selects.
"""

import math
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from h2g.convert import timm_vit
from h2g.data import cub
from h2g.data import image_folder
from h2g.data.birds import Birds
from h2g.data.birds import birds
from h2g.data.birds import NUM_CLASSES
from h2g.data.photographs import normalise
from h2g.data.triplets import sample_identities
from h2g.metrics import retrieval_map
from h2g.models.dcal import DCALViT
from h2g.nn.losses import hardest
from h2g.nn.losses import triplet_loss
from h2g.nn.pure import Pure
from h2g.nn.pure import pure
from h2g.nn.pure import rest_of
from h2g.train import Batch
from h2g.train import Experiment
from h2g.train import resident


class Data(NamedTuple):
  """Where images come from.

  train, evals: as `Experiment.train_batches` and `eval_batches`; an evaluated batch is shared =
    {split: (images, labels)}, labels -1 in padded rows.
  draw: (batch, key) -> (images uint8 [B, ...], labels [B]) of one step.
  """

  train: object
  evals: object
  draw: object
  num_classes: int


def build(config) -> Experiment:
  """The experiment that `configs/dcal.py` describes."""
  data = (synthetic if config.data.name == "birds" else photographs)(config)
  retrieves, model = config.task == "reid", network(config, data.num_classes)

  def loss(params, rest, batch: Batch, key: Array):
    draw_key, label_key, noise_key, key = jax.random.split(key, 4)
    images, labels = data.draw(batch, draw_key)
    wrong = jax.random.randint(noise_key, labels.shape, 0, data.num_classes)
    replaced = jax.random.bernoulli(label_key, config.label_noise, labels.shape)
    labels = jnp.where(replaced, wrong, labels)
    module = model.bind(params, rest)
    found = module(normalise(images), key=key)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = {name: entropy(branch.logits, labels).mean() for name, branch in found.items()}
    if retrieves:
      far = lambda branch: triplet_loss(*hardest(branch.feature, labels), config.margin or None)
      losses = {name: one + far(found[name]).mean() for name, one in losses.items()}
    value = module.weighting(jnp.stack([losses[name] for name in config.model.branches]))
    return value, (rest_of(module), {f"loss_{name}": one for name, one in losses.items()})

  def evaluate(params, rest, batch: Batch):
    module, stats = model.bind(params, rest), {}
    for split, (images, labels) in batch.shared.items():
      found = module(normalise(images))
      if retrieves:
        joined = jnp.concatenate([branch.feature for branch in found.values()], axis=1)
        stats[split] = {"labels": labels, "sa": found["sa"].feature, "all": joined}
      else:
        chances = {name: jax.nn.softmax(branch.logits) for name, branch in found.items()}
        chances["all"] = sum(chances.values())
        right = {name: (chance.argmax(1) == labels).sum() for name, chance in chances.items()}
        stats[split] = {"count": (labels >= 0).sum(), **right}
    return stats

  return Experiment(
    dataset=config.data.name,
    model="+".join(config.model.branches),
    metric="map" if retrieves else "accuracy",
    init=timm_vit.starting(model.init, config.checkpoint, config.model),
    loss=loss,
    train_batches=data.train,
    eval_batches=data.evals,
    evaluate=evaluate,
    summarise=retrieval if retrieves else accuracies,
    rows=config.data.name != "birds" and not retrieves,
    unit="images",
    units_per_step=config.batch_size,
  )


def network(config, num_classes: int) -> Pure:
  """The configured network."""
  settings = config.model.to_dict() | {"bnneck": config.task == "reid"}
  return pure(lambda rngs: DCALViT(num_classes, **settings, rngs=rngs))


def drawn(data) -> dict[str, Birds]:
  """The synthetic splits; the training images are misled by their patches."""
  parts = {"train": (data.train, data.misled), "val": (data.val, 0.0), "test": (data.test, 0.0)}
  return {
    split: birds(num, seed=10 * data.seed + at, misled=misled)
    for at, (split, (num, misled)) in enumerate(parts.items())
  }


def synthetic(config) -> Data:
  """Drawn birds, all on the device."""
  splits = {split: of[:2] for split, of in drawn(config.data).items()}
  train = splits["train"]
  by_class = np.argsort(train[1], kind="stable").reshape(NUM_CLASSES, -1).astype(np.int32)

  def draw(batch: Batch, key: Array):
    images, labels = batch.shared
    if config.task == "reid":
      identities = config.batch_size // config.per_class
      ids = sample_identities(jnp.asarray(by_class), identities, config.per_class, key)
    else:
      ids = jax.random.permutation(key, len(labels))[: config.batch_size]
    return images[ids], labels[ids]

  return Data(resident(train), resident(splits), draw, NUM_CLASSES)


def photographs(config) -> Data:
  """CUB-200-2011, decoded as it is read; every n-th training image of a class validates."""
  data, size = config.data, config.model.image_size
  train, test = cub.load(data.path, num_classes=data.num_classes)
  train, held = image_folder.held_out(train, data.hold_out)
  parts = {"val": held, "test": test}
  side = (size / data.resize) ** 2
  view = dict(stretch=data.resize, scale=(side, side), ratio=(1.0, 1.0))

  def train_batches(seeds):
    stream = image_folder.train_stream(
      train, size=size, batch_size=config.batch_size, seeds=seeds, **view
    )
    return stream.map(lambda images: Batch(None, images))

  whole = dict(size=size, batch_size=config.eval_batch_size, stretch=data.resize)
  evals = lambda seeds: (
    lambda: (resident(batch)(seeds) for batch in image_folder.in_turn(parts, **whole))
  )
  draw = lambda batch, key: (batch.own.images, batch.own.labels)
  return Data(train_batches, evals, draw, data.num_classes)


def accuracies(stats) -> dict[str, float]:
  """accuracy: by the summed class probabilities of SA and GLCA; sa: of the SA branch alone."""
  found = {}
  for split, counts in stats.items():
    total = counts["count"] if counts["count"] else math.nan
    found |= {f"{split}/accuracy": counts["all"] / total, f"{split}/sa": counts["sa"] / total}
  return {name: float(value) for name, value in found.items()}


def retrieval(stats) -> dict[str, float]:
  """map: by the joined class tokens of SA and GLCA, every second image asks; sa: by SA alone."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  found = {}
  for split, of in stats.items():
    for name, feature in (("map", unit(of["all"])), ("sa", unit(of["sa"]))):
      labels = of["labels"].astype(int)
      value = retrieval_map(feature[::2], labels[::2], feature[1::2], labels[1::2])
      found[f"{split}/{name}"] = value
  return found
