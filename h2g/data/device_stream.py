"""Streams of seed nodes only: the step draws the subgraph around them, on the device."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import grain
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from h2g.data.stream import batch_of_nodes
from h2g.data.stream import fanouts_of
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph.device_sampler import sample_neighbors
from h2g.graph.device_sampler import tightened
from h2g.graph.sharded_features import gather_rows
from h2g.graph.sharded_features import shard_rows


class Whole(NamedTuple):
  """What every step draws from; placed once.

  graph: the whole graph without splits and `incoming`.
  masks: {split: [S, N_target] bool}, of each seed of the run.
  """

  graph: HeteroGraph
  masks: dict[str, Array]


class Seeds(NamedTuple):
  """A step: leaves [S, B, ...] for S seeds of the run and B subgraphs.

  nodes: [..., batch_size] int32 rows of the target type, -1 for none.
  split: [...] int32, which of the run's seeds this is: the row of `Whole.masks`.
  """

  nodes: Array
  split: Array


class DeviceBatches:
  """Training batches of one graph that hold seed nodes alone; `draw` makes subgraphs of them.

  Args of the constructor:
    graph, splits: as of `SampledBatches`; the seed nodes are the same, step by step.
    config: `method` "neighbor" (HGT sampling has no static shapes); `fanouts`, `batch_size`,
      `subgraphs` as of `SampledBatches`; `shard_features`: mesh axis over which the rows of the
      node features lie, "" keeps all of them on every device.
    mesh: the mesh of the run.
  """

  def __init__(
    self, graph: HeteroGraph, splits: Callable[..., dict[str, np.ndarray]], config, mesh: Mesh
  ):
    if config.method != "neighbor":
      raise InputError(
        f"config.sample.device with method={config.method!r}: HGT sampling has no static shapes "
        'and stays on the host; set config.sample.method="neighbor"'
      )
    axis = config.get("shard_features", "")
    if axis and axis not in mesh.shape:
      raise InputError(
        f"config.sample.shard_features={axis!r} is no mesh axis: choose from "
        f"{', '.join(mesh.shape)}"
      )
    self._graph, self._splits, self._config, self._mesh = graph, splits, config, mesh
    self._size = min(config.batch_size, graph.num_nodes[graph.schema.target])
    self._fanouts = tightened(graph, fanouts_of(config))
    self._axis = axis

  def train(self, seeds: tuple[int, ...]):
    """grain dataset of (Whole, Seeds), leaves of the latter [seeds, subgraphs, ...]; infinite.

    `Whole` is one object throughout, so that the trainer places it once.
    """
    masks = [self._splits(seed=seed) for seed in seeds]
    train_ids = [np.flatnonzero(mask["train"]) for mask in masks]
    whole = Whole(
      self._whole,
      {name: np.stack([mask[name] for mask in masks]) for name in ("train", "val", "test")},
    )
    parts = self._config.subgraphs
    split = np.repeat(np.arange(len(seeds), dtype=np.int32)[:, None], parts, 1)

    def batch(step: int):
      nodes = np.full((len(seeds), parts, self._size), -1, np.int32)
      for row, seed in enumerate(seeds):
        for part in range(parts):
          chosen = batch_of_nodes(train_ids[row], self._size, step * parts + part, seed)
          nodes[row, part, : len(chosen)] = chosen
      return whole, Seeds(nodes, split)

    return grain.MapDataset.range(1 << 31).map(batch)

  def draw(self, whole: Whole, own: Seeds, key: Array) -> tuple[HeteroGraph, Array]:
    """(subgraph with `incoming` and splits, [N_target] bool seeds) of one subgraph; traced.

    own: nodes [batch_size], split [].
    """
    splits = {name: mask[own.split] for name, mask in whole.masks.items()}
    graph = whole.graph.replace(splits=splits)
    drawn = sample_neighbors(graph, own.nodes, self._fanouts, key, gather=self._gather)
    target = drawn.nodes[graph.schema.target].mask
    return drawn, target & (jnp.arange(target.shape[0]) < own.nodes.shape[0])

  @functools.cached_property
  def _whole(self) -> HeteroGraph:
    graph = self._graph.replace(incoming=None, splits={})
    if not self._axis:
      return graph
    place = lambda x: None if x is None else shard_rows(x, self._mesh, self._axis)
    nodes = {
      name: part.replace(features=place(part.features)) for name, part in graph.nodes.items()
    }
    return graph.replace(nodes=nodes)

  @property
  def _gather(self):
    if not self._axis:
      return None
    return functools.partial(gather_rows, mesh=self._mesh, axis=self._axis)
