"""H2GB: node classification on heterogeneous graphs, on the whole graph or on sampled subgraphs.

One build serves every model: they share the call `model(graph, visible=, key=) -> target logits`.
"""

from collections.abc import Callable
import functools
import inspect
from pathlib import Path
from typing import Any
from typing import NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from experiments.h2gb.models import MODELS
from h2g import data
from h2g.data.device_stream import DeviceBatches
from h2g.data.device_stream import Seeds
from h2g.data.stream import SampledBatches
from h2g.data.workers import in_workers
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.nn.encoders import split_labels
from h2g.nn.pure import pure
from h2g.nn.pure import rest_of
from h2g.train import Batch
from h2g.train import Experiment
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh


class Task(NamedTuple):
  """What differs between seeds (and, sampled, between batches). Masks are [N_target] bool."""

  train: Array
  val: Array
  test: Array
  seeds: Array | None = None  # sampled: the nodes this batch is about
  graph: HeteroGraph | None = None  # sampled: the subgraph; otherwise the shared graph is read


def build(config) -> Experiment:
  """The experiment that `configs/h2gb.py` describes; InputError where it cannot be served."""
  graph = data.prepare(config.data)
  model = pure(model_factory(config.model, graph))
  num_classes = graph.schema.num_classes
  known = ("accuracy", "macro_f1", *(("f1",) if num_classes == 2 else ()))
  if config.metric not in known:
    raise InputError(
      f"config.metric={config.metric!r} is unknown here: choose from {', '.join(known)}"
    )
  hide = functools.partial(
    split_labels,
    rate=config.labels.mask_rate,
    own_label_visible=config.labels.own_label_visible,
  )

  def loss_of_one(params, rest, shared, task: Task, key: Array):
    mask_key, dropout_key = jax.random.split(key)
    graph = shared if task.graph is None else task.graph
    module = model.bind(params, rest)
    if module.reads_labels:
      visible, counted = hide(task.train, mask_key, seeds=task.seeds)
    else:
      visible = None
      counted = task.train if task.seeds is None else task.train & task.seeds
    logits = module(graph, visible=visible, key=dropout_key)
    labels = graph.target_labels
    value = cross_entropy(logits, labels, counted, config.labels.smoothing)
    hits = jnp.sum(counted & (logits.argmax(-1) == labels), dtype=jnp.float32) / how_many(counted)
    metrics = {"train_accuracy": hits}
    if task.graph is not None:
      masks = jnp.concatenate([nodes.mask for nodes in graph.nodes.values()])
      metrics["padding_share"] = 1 - masks.mean(dtype=jnp.float32)
    return value, (rest_of(module), metrics)

  abstract = model.bind(*jax.eval_shape(model.init, jax.random.key(0)))
  # Rows copied per relation serve only the models that read relations (an own one may not say).
  typed = getattr(abstract, "reads_relations", True)
  train_batches, eval_batches, draw = batches(graph, config, typed=typed)

  def drawn(whole, own: Seeds, key: Array) -> tuple[Task, Array]:
    draw_key, key = jax.random.split(key)
    sampled, seeds = draw(whole, own, draw_key)
    return Task(**sampled.splits, seeds=seeds, graph=sampled), key

  def loss(params, rest, batch: Batch, key: Array):
    if isinstance(batch.own, Seeds):
      keys = jax.random.split(key, batch.own.split.shape[0])
      make = lambda own, key: loss_of_one(params, rest, None, *drawn(batch.shared, own, key))
      return jax.tree.map(lambda x: x.mean(0), jax.vmap(make)(batch.own, keys))
    if batch.own.graph is None:
      return loss_of_one(params, rest, batch.shared, batch.own, key)
    # A step averages over several sampled subgraphs, the leading axis of `own`.
    keys = jax.random.split(key, batch.own.train.shape[0])
    one = functools.partial(loss_of_one, params, rest, None)
    return jax.tree.map(lambda x: x.mean(0), jax.vmap(one)(batch.own, keys))

  def evaluate_one(params, rest, shared, task: Task):
    graph = shared if task.graph is None else task.graph
    module = model.bind(params, rest)
    # Validation reads the training labels, testing those of training and validation nodes; a node
    # that is predicted is in neither.
    known = jnp.stack([task.train, task.train | task.val])
    predicted = jnp.stack([task.val, task.test])
    if task.seeds is not None:
      predicted = predicted & task.seeds[None, :]
    logits = jax.vmap(lambda visible: module(graph, visible=visible))(known & ~predicted)
    stats = {}
    for split, counted, scores in zip(("val", "test"), predicted, logits):
      labels = graph.target_labels
      stats[split] = {
        "confusion": confusion(labels, scores.argmax(-1), counted, num_classes),
        "nll": cross_entropy(scores, labels, counted) * counted.sum(dtype=jnp.float32),
      }
    return stats

  def evaluate(params, rest, batch: Batch):
    if batch.own.graph is None:
      return evaluate_one(params, rest, batch.shared, batch.own)
    stats = jax.vmap(functools.partial(evaluate_one, params, rest, None))(batch.own)
    return jax.tree.map(lambda x: x.sum(0), stats)

  return Experiment(
    dataset=data.title(config.data),
    model=config.model.name,
    metric=config.metric,
    init=model.init,
    loss=loss,
    train_batches=train_batches,
    eval_batches=eval_batches,
    evaluate=evaluate,
    summarise=functools.partial(summarise, metric=config.metric),
    select="val/selection",
    rows=bool(config.sample.method),
    report=functools.partial(report, class_names=graph.schema.class_names),
  )


def model_factory(config, graph: HeteroGraph) -> Callable[[nnx.Rngs], nnx.Module]:
  """The configured model's constructor, bound to the graph's schema; unknown names are refused."""
  settings = {name: value for name, value in config.items() if name != "name"}
  if config.name not in MODELS:
    raise InputError(f"config.model.name={config.name!r} is unknown; choose from {sorted(MODELS)}")
  make = MODELS[config.name]
  signature = inspect.signature(make.__init__ if isinstance(make, type) else make)
  known = set(signature.parameters) - {"self", "schema", "rngs", "num_nodes"}
  if unknown := sorted(set(settings) - known):
    raise InputError(
      f"config.model.{unknown[0]} is no setting of {config.name}; it has {sorted(known)}"
    )
  if "num_nodes" in signature.parameters:  # it has a row of weights per node of the whole graph
    settings["num_nodes"] = graph.num_nodes
  return lambda rngs: make(graph.schema, **settings, rngs=rngs)


def cross_entropy(logits: Array, labels: Array, counted: Array, smoothing: float = 0.0) -> Array:
  """Mean over counted rows of -log softmax(logits)[label], labels smoothed; 0 where none counts."""
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
  nll = jnp.where(counted, optax.softmax_cross_entropy(logits, targets), 0.0)
  return nll.sum() / how_many(counted)


def how_many(counted: Array) -> Array:
  """Number of counted rows as a float to divide by, at least 1."""
  return jnp.maximum(counted.sum(dtype=jnp.float32), 1.0)


def confusion(labels: Array, predictions: Array, counted: Array, num_classes: int) -> Array:
  """[C, C] float32 counts, rows the true class, columns the predicted one."""
  rows = jnp.where(counted[:, None], jax.nn.one_hot(labels, num_classes), 0.0)
  return rows.T @ jax.nn.one_hot(predictions, num_classes)


def summarise(stats, *, metric: str) -> dict[str, float]:
  """Metrics of one seed from its summed statistics.

  accuracy, macro_f1, nll (and f1 of class 1 of two) of val and test; val/selection is the
  validation metric, ties broken by the smaller nll: few validation nodes tie often.
  """
  metrics = {}
  for split, values in stats.items():
    matrix = np.asarray(values["confusion"], np.float64)
    total, hits = matrix.sum(), np.diag(matrix)
    f1 = 2 * hits / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
    metrics[f"{split}/accuracy"] = float(hits.sum() / max(total, 1))
    metrics[f"{split}/macro_f1"] = float(f1.mean())
    metrics[f"{split}/nll"] = float(values["nll"] / max(total, 1))
    if len(matrix) == 2:
      metrics[f"{split}/f1"] = float(f1[1])
  metrics["val/selection"] = metrics[f"val/{metric}"] - 1e-3 * min(metrics["val/nll"], 1.0)
  return metrics


def batches(graph: HeteroGraph, config, *, typed: bool = True):
  """(train_batches, eval_batches, draw): the resident whole graph, or streams of subgraphs.

  With `config.sample.device` a stream holds seed nodes, and `draw` makes subgraphs in the step.
  `typed=False`: relations of the whole graph share message rows; subgraphs always keep theirs.
  """
  splits = data.splitter(graph, config.data.split)
  # Not at all where only samples are read.
  whole = functools.cache(functools.partial(graph.with_incoming, typed=typed))

  def resident(seeds: tuple[int, ...]) -> Batch:
    masks = [splits(seed=seed) for seed in seeds]
    own = {name: np.stack([mask[name] for mask in masks]) for name in ("train", "val", "test")}
    return Batch(shared=whole(), own=Task(**own))

  if not config.sample.method:
    return resident, resident, None

  sampled = SampledBatches(graph, splits, config.sample)

  evaluation = lambda seeds: [_task(item) for item in sampled.evaluation(seeds)]
  if config.sample.evaluate == "full":
    evaluation = resident
  if config.sample.device:
    mesh = make_mesh(Settings.from_config(config).mesh)
    drawing = DeviceBatches(graph, splits, config.sample, mesh)
    seeds_only = lambda seeds: drawing.train(seeds).map(lambda pair: Batch(*pair))
    return seeds_only, evaluation, drawing.draw

  def train(seeds: tuple[int, ...]):
    layout = Layout(make_mesh(Settings.from_config(config).mesh), seeds, rows=True)
    rows = layout.rows_here(config.sample.subgraphs)
    whole = len(rows) == config.sample.subgraphs
    stream = sampled.train(seeds, rows=None if whole else rows)
    return in_workers(stream.map(_task), config.sample.workers)

  return train, evaluation, None


def _task(item) -> Batch:
  graphs, seeds = item
  masks = {name: graphs.splits[name] for name in ("train", "val", "test")}
  return Batch(shared=None, own=Task(**masks, seeds=seeds, graph=graphs))


def report(stats: list[Any], workdir: Path, *, class_names: tuple[str, ...]) -> None:
  """confusion.png: test confusion over all seeds, each row normalised."""
  from h2g.train import plots

  total = np.sum([seed["test"]["confusion"] for seed in stats], axis=0)
  plots.confusion(total, class_names, workdir / "confusion.png")
