"""Probes of a frozen encoder: one head on whichever pooling, on stored tokens or on photographs."""

import functools

import jax
from jax import Array

from experiments.efficient_probing import encoder
from h2g.data import image_folder
from h2g.data.photographs import normalise
from h2g.nn.pooling import probe_of
from h2g.nn.pure import forward
from h2g.nn.pure import Pure
from h2g.nn.pure import pure
from h2g.train import Batch
from h2g.train import classification
from h2g.train import Experiment
from h2g.train import in_order
from h2g.train import resident
from h2g.train import rows_at_random


def build(config) -> Experiment:
  """The experiment that `configs/efficient_probing.py` describes."""
  read = _photographs if "root" in config.data else _canvases
  dim, drawn, evaluated, batches = read(config)
  model = probe(config.probe, dim)
  return Experiment(
    dataset=config.data.get("root", "canvases"),
    model=config.probe.pool,
    init=model.init,
    unit="images",
    units_per_step=config.batch_size,
    **classification(functools.partial(forward, model), drawn, evaluated),
    **batches,
  )


def probe(config, dim: int) -> Pure:
  """The configured pooling under the probe's head."""
  return pure(lambda rngs: probe_of(dim, **config, rngs=rngs))


def _canvases(config):
  """(width of tokens, what `classification` asks for twice, batches): tokens are computed once."""
  parts = encoder.precomputed(config.encoder, config.data)
  drawn = lambda batch, key: rows_at_random(batch.shared, config.batch_size, key)
  held = {name: parts[name] for name in ("val", "test")}
  batches = dict(train_batches=resident(parts["train"]), eval_batches=resident(held))
  return parts["train"][0].shape[-1], drawn, lambda batch: batch.shared, batches


def _photographs(config):
  """The same of folders of images through a published encoder, anew for each random view.

  There is no third part: as in the published rows, the best epoch is chosen on the part that is
  reported, so val and test are the same numbers.
  """
  data, vit = config.data, config.encoder.vit
  train, val = image_folder.load(data.root, num_classes=config.probe.num_classes)
  frozen = encoder.published(config.encoder)
  shared = frozen[1:]

  def tokens(batch: Batch, key=None) -> tuple[Array, Array]:
    del key  # views are drawn on the host
    images, labels = batch.own
    images = normalise(images).astype(jax.tree.leaves(batch.shared[0])[0].dtype)
    found = frozen.model.bind(*batch.shared).tokens(images, config.encoder.block)
    return jax.lax.stop_gradient(found), labels

  def train_batches(seeds):
    options = dict(size=vit.image_size, batch_size=config.batch_size, seeds=seeds)
    return image_folder.train_stream(train, **options).map(lambda own: Batch(shared, own))

  options = dict(size=vit.image_size, batch_size=data.eval_batch)
  held = in_order(lambda: image_folder.eval_batches(val, **options), shared)
  batches = dict(train_batches=train_batches, eval_batches=held, rows=True)
  return vit.dim, tokens, lambda batch: dict.fromkeys(("val", "test"), tokens(batch)), batches
