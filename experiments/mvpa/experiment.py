"""Signals with different channels: predict the next segment, tell what spreads from what jumps.

One build serves both tasks and all attentions. `start` names a finished run of the first task,
whose networks the second one goes on from, seed by seed.
"""

from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import optax

from experiments.mvpa.signals import sources
from h2g import train
from h2g.metrics import two_classes
from h2g.models.mvpformer import MVPFormer
from h2g.models.mvpformer import MVPFormerClassifier
from h2g.models.mvpformer import trained
from h2g.nn.contrastive import next_in_group
from h2g.nn.contrastive import NextSums
from h2g.nn.lora import join
from h2g.nn.lora import partition
from h2g.nn.pure import pure
from h2g.train import Batch
from h2g.train import Experiment


def build(config) -> Experiment:
  """The experiment that `configs/mvpa.py` describes."""
  predicts, settings = config.task == "predict", dict(config.model)
  if predicts:
    model = pure(lambda rngs: MVPFormer(**settings, rngs=rngs))
  else:
    model = pure(lambda rngs: MVPFormerClassifier(2, **settings, rngs=rngs))
  wanted = trained if config.tune == "lora" and not predicts else lambda path: True
  start, before = None, config.start.get("workdir", "")
  if before:
    start = train.start_from(before, build, config, besides=("lora_rank",))
  source = sources(config)

  def init(key: Array):
    params, rest = model.init(key)
    if start is not None:
      params = join({"base": start(key)}, params)
    params, frozen = partition(params, wanted)
    return params, {"model": rest, "frozen": frozen}

  def run(params, rest, windows, key=None):
    module = model.bind(join(params, rest["frozen"]), rest["model"])
    return module(windows.segments, windows.mask, key=key), module

  def predict(params, rest, windows, keys) -> NextSums:
    """Of one subject's windows after another's; negatives are one's own."""
    draw_key, key = keys
    (tokens, outputs), module = run(params, rest, windows, key)
    contrast = dict(num_negatives=config.negatives, temperature=config.temperature)
    return next_in_group(
      tokens, module.head(outputs), windows.mask, draw_key, each=config.data.each, **contrast
    )

  def loss(params, rest, batch: Batch, key: Array):
    data_key, key, drop_key = jax.random.split(key, 3)
    drop_key = drop_key if settings["dropout_rate"] else None
    windows = source.draw(batch, data_key)
    if predicts:
      sums = predict(params, rest, windows, (key, drop_key))
      return sums.loss / sums.num, (rest, {"top1": sums.top1 / sums.num})
    logits, _ = run(params, rest, windows, drop_key)
    logits, labels = logits.astype(jnp.float32), windows.labels
    value = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    hits = (logits.argmax(1) == labels).mean(dtype=jnp.float32)
    return value.mean(), (rest, {"accuracy": hits})

  def evaluate(params, rest, batch: Batch):
    found = {}
    for name, windows in batch.shared.items():
      if predicts:
        found[name] = predict(params, rest, windows, (jax.random.key(0), None))._asdict()
      else:
        logits, _ = run(params, rest, windows)
        found[name] = {"predicted": logits.argmax(1), "labels": windows.labels}
    return found

  metric = "top1" if predicts else "f1"
  return Experiment(
    dataset=config.data.kind,
    model=config.variant,
    metric=metric,
    init=init,
    loss=loss,
    train_batches=source.train,
    eval_batches=source.evaluation,
    evaluate=evaluate,
    summarise=summarise,
    unit="windows",
    units_per_step=config.data.subjects * config.data.each,
  )


def summarise(stats: Any) -> dict[str, float]:
  """top1, copied (of the last segment in place of a prediction); or f1, kappa, accuracy."""
  found = {}
  for name, split in stats.items():
    if "num" in split:
      found |= {f"{name}/{k}": float(split[k] / split["num"]) for k in ("top1", "copied", "loss")}
    else:
      found |= {f"{name}/{k}": value for k, value in two_classes(**split).items()}
  return found
