"""A decoder that predicts the next byte of a text."""

import math

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from h2g.data import text
from h2g.errors import InputError
from h2g.models import decoder
from h2g.nn.pure import pure
from h2g.train import Batch
from h2g.train import Experiment


def build(config) -> Experiment:
  """The experiment that `configs/text.py` describes; InputError where it cannot be served."""
  data, shape = config.data, dict(config.model)
  if shape["vocab_size"] < 256:
    raise InputError(f"config.model.vocab_size={shape['vocab_size']}: bytes need 256 or more")
  parts = text.split(text.load(data.path), data.split, length=data.length)
  model = pure(lambda rngs: decoder.Decoder(**shape, rngs=rngs))

  def nll(params, rest, tokens: Array, following: Array) -> Array:
    """[B, T] float32: -log p of the byte that follows each; tokens, following [B, T]."""
    logits = model.bind(params, rest)(tokens.astype(jnp.int32))
    following = following.astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, following)

  def loss(params, rest, batch: Batch, key: Array):
    del key  # nothing random: windows are not seen twice often enough for dropout to help
    return nll(params, rest, **batch.own).mean(), (rest, {})

  def evaluate(params, rest, batch: Batch):
    return {
      name: {
        "nll": nll(params, rest, windows[:, :-1], windows[:, 1:]).sum(),
        "bytes": jnp.int32(windows[:, 1:].size),
      }
      for name, windows in batch.own.items()
    }

  def train_batches(seeds: tuple[int, ...]):
    import grain

    def batch(index: int) -> Batch:
      windows = [
        text.random_windows(parts["train"], data.length, data.batch_size, key=(seed, index))
        for seed in seeds
      ]
      windows = np.stack(windows)
      # Cut here: T positions can be split over devices, T + 1 can not.
      return Batch(shared=None, own={"tokens": windows[..., :-1], "following": windows[..., 1:]})

    return grain.MapDataset.range(config.train.steps).map(batch)

  def eval_batches(seeds: tuple[int, ...]) -> list[Batch]:
    """Both parts in batches of one shape; the last windows that do not fill one are left out."""
    windows = {
      name: text.all_windows(parts[name], data.length, data.eval_windows)
      for name in ("val", "test")
    }
    size = min(data.batch_size, *map(len, windows.values()))
    count = min(map(len, windows.values())) // size
    repeat = lambda x: np.broadcast_to(x, (len(seeds), *x.shape))
    return [
      Batch(shared=None, own={k: repeat(v[i * size : (i + 1) * size]) for k, v in windows.items()})
      for i in range(count)
    ]

  params = jax.eval_shape(model.init, jax.random.key(0))[0]
  tokens = data.batch_size * data.length
  weights = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim >= 2)
  return Experiment(
    dataset="shakespeare" if not data.path else data.path,
    model=f"decoder_{weights / 1e6:.1f}M",
    metric="loss",
    init=model.init,
    loss=loss,
    train_batches=train_batches,
    eval_batches=eval_batches,
    evaluate=evaluate,
    summarise=summarise,
    maximise=False,
    rows=True,
    sequence=True,
    unit="tokens",
    units_per_step=tokens,
    flops_per_step=decoder.train_flops(
      weights, tokens, num_layers=shape["num_layers"], dim=shape["dim"], length=data.length
    ),
  )


def summarise(stats) -> dict[str, float]:
  """loss: mean -log p of a byte, in nats; bits: the same in bits; of val and test."""
  metrics = {}
  for name, found in stats.items():
    metrics[f"{name}/loss"] = float(found["nll"] / found["bytes"])
    metrics[f"{name}/bits"] = metrics[f"{name}/loss"] / math.log(2)
  return metrics
