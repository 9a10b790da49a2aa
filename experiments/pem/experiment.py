"""Universal segmentation by PEM and its baselines: semantic and panoptic, one training for both."""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from h2g.data import ade20k
from h2g.data import cityscapes
from h2g.data import panoptic
from h2g.data import photographs
from h2g.data import scenes
from h2g.metrics import mean_iou
from h2g.metrics import overlaps
from h2g.metrics import panoptic_counts
from h2g.metrics import panoptic_quality
from h2g.metrics import PanopticCounts
from h2g.models.pem import Segmenter
from h2g.nn.image import resize
from h2g.nn.pure import Pure
from h2g.nn.pure import pure
from h2g.nn.pure import rest_of
from h2g.nn.segments import class_map
from h2g.nn.segments import panoptic_map
from h2g.nn.segments import Segments
from h2g.nn.segments import semantic_map
from h2g.nn.set_loss import deep_set_loss
from h2g.nn.set_loss import Targets
from h2g.train import Batch
from h2g.train import Experiment
from h2g.train import in_order


def build(config) -> Experiment:
  """The experiment that `configs/pem.py` describes."""
  data = DATA[config.data.name](config.data)
  things, num_classes = data.things, len(data.things)
  model = segmenter(config, num_classes)

  def loss(params, rest, batch: Batch, key: Array):
    model_key, loss_key = jax.random.split(key)
    example = batch.own
    module = model.bind(params, rest)
    module.train()
    images = photographs.normalise(example.images)
    out = module(images.astype(jax.tree.leaves(params)[0].dtype), key=model_key)
    masks = jax.nn.one_hot(example.map.astype(jnp.int32), example.classes.shape[1])
    targets = Targets(example.classes, masks)
    found = deep_set_loss(loss_key, *jax.tree.map(wide, out), targets, num_points=config.num_points)
    parts = {name: value.mean() for name, value in found._asdict().items()}
    return found.total.sum(), (rest_of(module), parts)

  def predict(params, rest, images: Array) -> tuple[Array, Array]:
    """Last stage: class logits [B, Q, K + 1] and mask logits at full size [B, height, width, Q]."""
    module = model.bind(params, rest)
    module.eval()
    images = photographs.normalise(images)
    out = module(images.astype(jax.tree.leaves(params)[0].dtype))
    return wide(out.classes[-1]), resize(wide(out.masks[-1]), *images.shape[1:3])

  def counts(params, rest, example) -> dict:
    classes, masks = predict(params, rest, example.images)
    true = class_map(Segments(example.map, example.classes))
    confusion = overlaps(true, semantic_map(classes, masks), num_classes, num_classes)
    found = panoptic_map(classes, masks, things=things, **config.inference)
    one = functools.partial(panoptic_counts, num_classes=num_classes)
    pq = jax.vmap(one)(found.map, found.classes, example.map.astype(jnp.int32), example.classes)
    return {"confusion": confusion, "panoptic": jax.tree.map(lambda x: x.sum(0), pq)}

  def evaluate(params, rest, batch: Batch):
    return {name: counts(params, rest, part) for name, part in batch.own.items()}

  def train_batches(seeds: tuple[int, ...]):
    stream = panoptic.stream(data.train, config.data.batch_size, seeds)
    return stream.map(lambda example: Batch(shared=None, own=example))

  return Experiment(
    dataset=config.data.name,
    model=config.model.attention,
    metric="miou",
    unit="images",
    units_per_step=config.data.batch_size,
    rows=True,
    init=model.init,
    loss=loss,
    evaluate=evaluate,
    summarise=summarise,
    train_batches=train_batches,
    eval_batches=in_order(lambda: panoptic.in_order(data.splits, config.data.eval_batch_size)),
  )


def segmenter(config, num_classes: int = len(scenes.CLASSES)) -> Pure:
  """The configured network."""
  return pure(lambda rngs: Segmenter(num_classes, rngs=rngs, **config.model))


def wide(x: Array) -> Array:
  """In float32: losses and maps are computed there whatever the network computes in."""
  return x.astype(jnp.float32)


DRAWN = ("train", "val", "test", "seed", "size", "noise")
DATA = {
  "scenes": lambda config: scenes.data(**{name: config[name] for name in DRAWN}),
  "cityscapes": functools.partial(panoptic.data, cityscapes.load),
  "ade20k": functools.partial(panoptic.data, ade20k.load),
}


def summarise(stats) -> dict[str, float]:
  """miou and pq, in percent, of each part."""
  found = {}
  for name, part in stats.items():
    found[f"{name}/miou"] = 100 * mean_iou(part["confusion"])
    found[f"{name}/pq"] = 100 * panoptic_quality(PanopticCounts(*part["panoptic"]))
  return {name.replace("val/", "test/"): value for name, value in found.items()} | found
