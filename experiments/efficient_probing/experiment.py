"""Probes of a frozen encoder: one head on whichever pooling, on stored tokens or on photographs."""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from experiments.efficient_probing import encoder
from h2g.data import image_folder
from h2g.data.photographs import normalise
from h2g.nn.pooling import probe_of
from h2g.nn.pure import Pure
from h2g.nn.pure import pure
from h2g.nn.pure import rest_of
from h2g.train import Batch
from h2g.train import Experiment
from h2g.train import resident


def build(config) -> Experiment:
  """The experiment that `configs/efficient_probing.py` describes."""
  if "root" in config.data:
    return _photographs(config)
  parts = encoder.precomputed(config.encoder, config.data)

  def drawn(batch: Batch, key: Array):
    tokens, labels = batch.shared
    ids = jax.random.randint(key, (config.batch_size,), 0, len(labels))
    return tokens[ids], labels[ids]

  return _experiment(
    config,
    probe(config.probe, parts["train"][0].shape[-1]),
    drawn,
    lambda batch: batch.shared,
    train_batches=resident(parts["train"]),
    eval_batches=resident({name: parts[name] for name in ("val", "test")}),
  )


def _photographs(config) -> Experiment:
  """On folders of images through a published encoder, computed anew for each random view.

  There is no third part: as in the published rows, the best epoch is chosen on the part that is
  reported, so val and test are the same numbers.
  """
  data, num_classes = config.data, config.probe.num_classes
  train, val = image_folder.load(data.root, num_classes=num_classes)
  frozen = encoder.published(config.encoder)
  shared, size = frozen[1:], config.encoder.vit.image_size

  def features(batch: Batch, images: Array) -> Array:
    images = normalise(images).astype(jax.tree.leaves(batch.shared[0])[0].dtype)
    vit = frozen.model.bind(*batch.shared)
    return jax.lax.stop_gradient(vit.tokens(images, config.encoder.block))

  def drawn(batch: Batch, key: Array):
    del key  # views are drawn on the host
    return features(batch, batch.own.images), batch.own.labels

  def read(batch: Batch):
    return dict.fromkeys(("val", "test"), (features(batch, batch.own.images), batch.own.labels))

  def train_batches(seeds):
    stream = image_folder.train_stream(train, size=size, batch_size=config.batch_size, seeds=seeds)
    return stream.map(lambda images: Batch(shared, images))

  def eval_batches(seeds):
    batches = lambda: image_folder.eval_batches(val, size=size, batch_size=data.eval_batch)
    repeat = lambda x: np.broadcast_to(x, (len(seeds), *x.shape))
    return lambda: (Batch(shared, jax.tree.map(repeat, batch)) for batch in batches())

  model = probe(config.probe, config.encoder.vit.dim)
  return _experiment(
    config, model, drawn, read, train_batches=train_batches, eval_batches=eval_batches, rows=True
  )


def probe(config, dim: int) -> Pure:
  """The configured pooling under the probe's head."""
  return pure(lambda rngs: probe_of(dim, **config, rngs=rngs))


def _experiment(config, model: Pure, drawn, read, **batches) -> Experiment:
  """drawn: (batch, key) -> (tokens, labels) of a step. read: batch -> {part: the same}."""

  def loss(params, rest, batch: Batch, key: Array):
    tokens, labels = drawn(batch, key)
    network = model.bind(params, rest)
    network.train()
    logits = network(tokens).astype(jnp.float32)
    value = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    accuracy = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
    return value.mean(), (rest_of(network), {"accuracy": accuracy})

  def evaluate(params, rest, batch: Batch):
    network = model.bind(params, rest)
    network.eval()
    count = lambda mask: mask.sum(dtype=jnp.int32)
    return {
      name: {"right": count(network(tokens).argmax(-1) == labels), "of": count(labels >= 0)}
      for name, (tokens, labels) in read(batch).items()
    }

  return Experiment(
    dataset=config.data.get("root", "canvases"),
    model=config.probe.pool,
    metric="accuracy",
    init=model.init,
    loss=loss,
    evaluate=evaluate,
    summarise=lambda stats: {
      f"{name}/accuracy": float(found["right"] / found["of"]) for name, found in stats.items()
    },
    unit="images",
    units_per_step=config.batch_size,
    **batches,
  )
