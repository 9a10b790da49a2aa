"""A small classification problem for the trainer's tests: an MLP on overlapping blobs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from h2g.train import Batch
from h2g.train import Experiment

CLASSES = 3
DIM = 8


def data(count: int = 240):
  """x [count, DIM] float32 and y [count] int32, always the same."""
  generator = np.random.default_rng(7)
  centers = generator.normal(size=(CLASSES, DIM))
  y = generator.integers(CLASSES, size=count).astype(np.int32)
  x = centers[y] + 1.5 * generator.normal(size=(count, DIM))
  return x.astype(np.float32), y


def masks(seed: int, count: int = 240) -> dict[str, np.ndarray]:
  order = np.random.default_rng(seed).permutation(count)
  parts = np.split(order, [count * 6 // 10, count * 8 // 10])
  names = ("train", "val", "test")
  return {name: np.isin(np.arange(count), part) for name, part in zip(names, parts)}


def build(config) -> Experiment:
  """`config.stream` trains on random minibatches from grain instead of the whole set."""
  x, y = data()
  hidden = config.get("hidden", 16)

  def init(key):
    one, two = jax.random.split(key)
    kernel = jax.random.normal(one, (DIM, hidden)) * DIM**-0.5
    params = {
      "in": {"kernel": kernel, "bias": jnp.zeros(hidden)},
      "out": {"kernel": jax.random.normal(two, (hidden, CLASSES)) * hidden**-0.5},
    }
    return params, {"steps_seen": jnp.zeros((), jnp.int32), "rng": key}

  def logits(params, x, key=None):
    h = jax.nn.relu(x @ params["in"]["kernel"] + params["in"]["bias"][None])
    if key is not None:
      h = jnp.where(jax.random.bernoulli(key, 0.8, h.shape), h / 0.8, 0.0)
    return h @ params["out"]["kernel"]

  def loss(params, rest, batch, key):
    source = batch.shared if "x" in batch.shared else batch.own
    x, y = source["x"], source["y"]
    counted = batch.own["train"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x, key), y)
    value = jnp.sum(jnp.where(counted, losses, 0.0)) / jnp.maximum(counted.sum(), 1).astype(x.dtype)
    if poison := config.get("nan_at", 0):  # seed-independent: the loss of that step is not a number
      value = jnp.where(rest["steps_seen"] == poison - 1, jnp.nan, value)
    return value, (rest | {"steps_seen": rest["steps_seen"] + 1}, {"counted": counted.sum()})

  def evaluate(params, rest, batch):
    hits = logits(params, batch.shared["x"]).argmax(-1) == batch.shared["y"]
    return {
      split: jnp.stack([jnp.sum(hits & batch.own[split]), batch.own[split].sum()])
      for split in ("val", "test")
    }

  def summarise(stats):
    return {f"{split}/accuracy": float(hits / count) for split, (hits, count) in stats.items()}

  def whole(seeds):
    own = [masks(seed) for seed in seeds]
    own = {name: np.stack([one[name] for one in own]) for name in ("train", "val", "test")}
    return Batch(shared={"x": x, "y": y}, own=own)

  def streamed(seeds):
    import grain

    train = [np.flatnonzero(masks(seed)["train"]) for seed in seeds]

    def minibatch(index: int) -> Batch:
      size = (16, 32)[index % 3 == 0]  # two shapes
      own = {"x": [], "y": [], "train": []}
      for seed, rows in zip(seeds, train):
        chosen = np.random.default_rng((seed, index)).choice(rows, size)
        own["x"].append(x[chosen])
        own["y"].append(y[chosen])
        own["train"].append(np.ones(size, bool))
      return Batch(shared={}, own={name: np.stack(value) for name, value in own.items()})

    return grain.MapDataset.range(config.train.steps).map(minibatch)

  return Experiment(
    dataset="blobs",
    model="mlp",
    metric="accuracy",
    init=init,
    loss=loss,
    train_batches=streamed if config.get("stream", False) else whole,
    eval_batches=whole,
    evaluate=evaluate,
    summarise=summarise,
    rows=config.get("stream", False),
  )
