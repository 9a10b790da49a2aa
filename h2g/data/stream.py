"""Streams of sampled subgraphs, padded to a handful of shapes."""

from collections.abc import Callable
from collections.abc import Collection
import functools
import threading
from typing import Any

import grain
import jax
import numpy as np

from h2g.data.workers import Shared
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import padding
from h2g.graph.sampler import Sampler

METHODS = ("hgt", "neighbor")
PROBES = 16  # sampled graphs whose sizes set the ladder of shapes
EVAL_STREAM = 1 << 32  # random streams of evaluation, apart from those of training steps


class SampledBatches:
  """Training and evaluation batches of one graph: pure functions of (seed, step).

  Args of the constructor:
    graph: the whole graph, on the host.
    splits: `splits(seed=) -> {"train", "val", "test"}` masks.
    config: `method` "hgt" or "neighbor"; `fanouts`, nodes drawn per type and iteration (hgt) or
      neighbours per relation and hop, for all alike or {type: ...}; `batch_size` seed nodes per
      subgraph; `subgraphs` per step, over which the loss is averaged; `max_buckets` shapes;
      `eval_batches` at most (0: all nodes).
  """

  def __init__(self, graph: HeteroGraph, splits: Callable[..., dict[str, np.ndarray]], config):
    if config.method not in METHODS:
      raise InputError(
        f"config.sample.method={config.method!r} is unknown: choose from {', '.join(METHODS)}"
      )
    if config.batch_size < 1 or config.subgraphs < 1:
      raise InputError("config.sample.batch_size and config.sample.subgraphs must be 1 or more")
    self._graph, self._splits, self._config = graph, splits, config
    target = graph.num_nodes[graph.schema.target]
    self._size = min(config.batch_size, target)
    self._target = graph.schema.target

  def __getstate__(self):  # to a worker process, which gets the graph by `Shared`
    _ = self.ladder
    return self.__dict__ | {"_graph": None, "_splits": None}

  @functools.cached_property
  def ladder(self) -> tuple[padding.Bucket, ...]:
    """The shapes that batches are padded to."""
    rng = np.random.default_rng(0)
    probe = Sampler(self._graph)
    nodes = self._graph.num_nodes[self._graph.schema.target]
    probes = [self._sample(probe, rng.choice(nodes, self._size, False), rng) for _ in range(PROBES)]
    ladder = padding.bucket_ladder(probes, max_buckets=max(1, self._config.max_buckets - 1))
    # The last rung is for the batch that is larger than any probe.
    double = lambda sizes: tuple(2 * size for size in sizes)
    last = padding.Bucket(double(ladder[-1].num_nodes), double(ladder[-1].num_edges))
    return (*ladder, last)

  def train(self, seeds: tuple[int, ...], *, rows: Collection[int] | None = None):
    """grain dataset of (graphs, seed masks), leaves [seeds, subgraphs, ...]; infinite.

    Picklable; in another process the graph is a map of files.

    Args:
      rows: the subgraphs of a step that this process of a job needs; the others are left zero. All
        batches then have the last shape of the ladder, since no process knows what the others drew.
        None draws all.
    """
    _ = self.ladder  # before the threads, and before a fan-out that is wrong has written anything
    return grain.MapDataset.range(1 << 31).map(_Drawing(self, seeds, rows))

  def evaluation(self, seeds: tuple[int, ...]):
    """List of such batches (one subgraph each) that visit validation and test nodes once."""
    samplers = self._samplers(seeds)
    pools = {}
    for seed, sampler in samplers.items():
      pool = np.flatnonzero(sampler.graph.splits["val"] | sampler.graph.splits["test"])
      pools[seed] = np.random.default_rng((seed, EVAL_STREAM)).permutation(pool)
    count = -(-max(map(len, pools.values())) // self._size)
    count = min(count, self._config.eval_batches or count)
    batches = []
    for at in range(count):
      sampled = []
      for seed in seeds:
        chosen = pools[seed][at * self._size : (at + 1) * self._size]
        rng = np.random.default_rng((seed, EVAL_STREAM, at))
        sampled.append((self._sample(samplers[seed], chosen, rng), len(chosen)))
      batches.append(self._stack(sampled, len(seeds)))
    return batches

  def _samplers(self, seeds) -> dict[int, Sampler]:
    return {seed: Sampler(self._graph.with_splits(self._splits(seed=seed))) for seed in seeds}

  def _sample(self, sampler: Sampler, nodes: np.ndarray, rng: np.random.Generator) -> HeteroGraph:
    draw = sampler.hgt if self._config.method == "hgt" else sampler.neighbor
    return draw(nodes, fanouts_of(self._config), rng)

  def _stack(
    self,
    sampled: list[tuple[HeteroGraph, int]],
    num_seeds: int,
    bucket: padding.Bucket | None = None,
  ) -> tuple[Any, np.ndarray]:
    """All graphs in one bucket, the smallest that holds each; leaves [seeds, subgraphs, ...]."""
    if bucket is None:
      buckets = [padding.choose_bucket(self.ladder, graph) for graph, _ in sampled]
      bucket = max(buckets, key=self.ladder.index)
    padded = [padding.pad_to(graph, bucket) for graph, _ in sampled]
    rows = np.arange(padded[0].num_nodes[self._target])
    masks = np.stack([rows < count for _, count in sampled])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    split = lambda x: x.reshape(num_seeds, -1, *x.shape[1:])
    return jax.tree.map(split, stacked), split(masks)


def fanouts_of(config):
  """`config.fanouts` as a plain list or dictionary."""
  fanouts = config.fanouts
  return dict(fanouts.items()) if hasattr(fanouts, "items") else list(fanouts)


class _Drawing:
  """step -> batch, in threads of this process or in another one."""

  def __init__(self, owner: SampledBatches, seeds: tuple[int, ...], rows: Collection[int] | None):
    masks = {seed: owner._splits(seed=seed) for seed in seeds}
    self._owner, self._seeds, self._rows = owner, seeds, rows
    self._shared, self._lock = Shared((owner._graph, masks)), threading.Lock()
    self._samplers: dict[int, Sampler] = {}

  def __getstate__(self):
    return self.__dict__ | {"_samplers": {}, "_lock": None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())

  def __call__(self, step: int) -> tuple[Any, np.ndarray]:
    with self._lock:
      if not self._samplers:
        graph, masks = self._shared.tree
        self._samplers = {seed: Sampler(graph.with_splits(masks[seed])) for seed in self._seeds}
    owner, parts = self._owner, self._owner._config.subgraphs
    mine = range(parts) if self._rows is None else sorted(self._rows)
    sampled = []
    for seed in self._seeds:
      ids = np.flatnonzero(self._samplers[seed].graph.splits["train"])
      for part in mine:
        at = step * parts + part
        chosen = batch_of_nodes(ids, owner._size, at, seed)
        rng = np.random.default_rng((seed, at))
        sampled.append((owner._sample(self._samplers[seed], chosen, rng), len(chosen)))
    if self._rows is None:
      return owner._stack(sampled, len(self._seeds))
    batch = owner._stack(sampled, len(self._seeds), owner.ladder[-1])

    def among_all(x):
      out = np.zeros((len(x), parts, *x.shape[2:]), x.dtype)
      out[:, list(mine)] = x
      return out

    return jax.tree.map(among_all, batch)


@functools.lru_cache(maxsize=8)
def _order(ids: bytes, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(np.frombuffer(ids, np.int64))


def batch_of_nodes(ids: np.ndarray, size: int, at: int, seed: int) -> np.ndarray:
  """The `at`-th batch of `size` nodes when every epoch is a fresh shuffle; the remainder is
  dropped."""
  per_epoch = max(1, len(ids) // size)
  order = _order(ids.astype(np.int64).tobytes(), seed, at // per_epoch)
  begin = at % per_epoch * size
  return order[begin : begin + size]
