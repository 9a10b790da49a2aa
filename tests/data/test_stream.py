"""Sampled batches: the same from threads, worker processes and parts of a job."""

import json
import multiprocessing
import os
import pickle
import signal
import time

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from experiments.h2gb.experiment import _task
from h2g.data.stream import SampledBatches
from h2g.data.workers import in_workers
from h2g.data.workers import Shared
from h2g.errors import InputError
from h2g.train.feed import train_feed
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from tests.graph.test_sampler import big_graph

SEEDS = (0, 3)


def splits(*, seed: int) -> dict[str, np.ndarray]:
  order = np.random.default_rng(seed).permutation(60)
  return {name: order % 3 == at for at, name in enumerate(("train", "val", "test"))}


def batches(graph=None, **changes) -> SampledBatches:
  settings = dict(method="hgt", fanouts=(4, 4), batch_size=5, subgraphs=4, max_buckets=3)
  return SampledBatches(graph or big_graph(), splits, ConfigDict(settings | changes))


def same(one, other) -> None:
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_workers_make_what_threads_make_and_a_dead_one_ends_the_run():
  stream = batches().train(SEEDS).map(_task)
  layout = Layout(make_mesh((("data", 1), ("fsdp", 1), ("tensor", 1))), (0,))
  layout = Layout(layout.mesh, SEEDS, rows=True)
  feed = train_feed(in_workers(stream, 2), layout, state=None, ahead=1)
  for step in range(5):
    same(jax.device_get(feed.next()), stream[step])
  state = json.loads(json.dumps(feed.state))  # as a checkpoint keeps it
  old = multiprocessing.active_children()
  resumed = train_feed(in_workers(stream, 2), layout, state=state, ahead=1)
  same(jax.device_get(resumed.next()), stream[5])
  victim = next(p for p in multiprocessing.active_children() if p not in old)
  os.kill(victim.pid, signal.SIGKILL)
  began = time.monotonic()
  with pytest.raises(InputError, match=r"a worker process of the loader is gone .*exit code -9"):
    for _ in range(20):
      resumed.next()
  assert time.monotonic() - began < 50
  for one in (feed, resumed):
    one.close()
  assert not multiprocessing.active_children()


def test_a_process_of_a_job_draws_its_own_rows_alone():
  owner = batches()
  whole, part = owner.train(SEEDS)[2], owner.train(SEEDS, rows=(1, 2))[2]
  last = owner.ladder[-1]
  assert tuple(part[0].num_nodes.values()) != tuple(whole[0].num_nodes.values())
  assert part[0].nodes["paper"].ids.shape == (2, 4, last.num_nodes[0])
  for got, wanted in ((part[1], whole[1]), *((part[0].nodes[n].ids, whole[0].nodes[n].ids)
                                             for n in whole[0].nodes)):  # fmt: skip
    assert not got[:, [0, 3]].any()
    np.testing.assert_array_equal(got[:, 1:3, : wanted.shape[2]], wanted[:, 1:3])
  mesh = make_mesh((("data", 2), ("fsdp", 1), ("tensor", 1)))
  assert Layout(mesh, (0,), rows=True).rows_here(4) == (0, 1, 2, 3)  # one process has them all


def test_a_shared_graph_is_pickled_as_maps_of_files(tmp_path):
  big = np.arange(60_000, dtype=np.int64)
  np.save(tmp_path / "map.npy", big[::-1])
  mapped = np.load(tmp_path / "map.npy", mmap_mode="r")
  tree = {"big": big, "again": big, "small": np.arange(3), "map": mapped, "none": None}
  shared = Shared(tree)
  sent = pickle.dumps(shared)
  assert len(sent) < 2000 and str(tmp_path / "map.npy") in sent.decode("latin1")
  opened = pickle.loads(sent)
  same(opened.tree, tree)
  assert isinstance(opened.tree["big"], np.memmap)
  assert opened.tree["big"].filename == opened.tree["again"].filename
  with pytest.raises(InputError, match="workers=-1 cannot be used: give 0 or more"):
    in_workers(None, -1)
