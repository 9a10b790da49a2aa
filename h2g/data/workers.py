"""Batches made by worker processes of grain's, which share the graph through files."""

import mmap
import multiprocessing
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from typing import Any
from typing import NamedTuple
import weakref

from absl import flags
import grain
import jax
import numpy as np

from h2g.errors import InputError

SMALL = 1 << 16  # bytes of an array that is sent as it is
BUFFER = 2  # batches that each worker makes ahead


def in_workers(dataset: grain.MapDataset, count: int):
  """The dataset read by `count` processes; 0 leaves it to the trainer's threads.

  Batches come in the order of the dataset whatever the count, and the iterator's state resumes at
  the batch after; a state belongs to one count. A worker that dies ends the iteration with a
  RuntimeError within seconds.

  Args:
    dataset: picklable (see `Shared`); its batches are NumPy arrays, made without a device.
    count: processes, 0 or more.
  """
  if count < 0:
    raise InputError(f"config.sample.workers={count} cannot be used: give 0 or more")
  if not count:
    return dataset
  if not flags.FLAGS.is_parsed():  # grain reads absl's global flags, which nobody here sets
    flags.FLAGS.mark_as_parsed()
  # One thread each, so that what is held in memory is as stated.
  dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
  options = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=BUFFER)
  return dataset.mp_prefetch(options, worker_init_fn=_begin)


class Shared:
  """A pytree of arrays that is pickled as maps of files, so that processes share one copy.

  What is a whole map of a file is opened again there; other arrays of more than `SMALL` bytes are
  written once, into a temporary directory that goes with this object.
  """

  def __init__(self, tree: Any):
    self.tree = tree
    self._folder = ""
    self._sent: Any = None

  def __reduce__(self):
    if self._sent is None:
      self._folder = tempfile.mkdtemp(prefix="h2g-graph-")
      weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
      written: dict[int, _Map] = {}
      self._sent = jax.tree.map(lambda x: self._map_of(np.asanyarray(x), written), self.tree)
    return _opened, (self._sent,)

  def _map_of(self, x: np.ndarray, written: dict):
    if x.nbytes <= SMALL:
      return np.asarray(x)
    if isinstance(x, np.memmap) and isinstance(x.base, mmap.mmap) and x.flags.c_contiguous:
      return _Map(str(x.filename), x.dtype.str, x.shape, x.offset)
    if id(x) not in written:
      path = pathlib.Path(self._folder) / f"{len(written)}.bin"
      np.ascontiguousarray(x).tofile(path)
      written[id(x)] = _Map(str(path), x.dtype.str, x.shape, 0)
    return written[id(x)]


class _Place(NamedTuple):
  path: str
  dtype: str
  shape: tuple[int, ...]
  offset: int


class _Map:
  """A leaf that says where an array is."""

  def __init__(self, *place):
    self.place = _Place(*place)


def _opened(sent: Any) -> Shared:
  def open_one(leaf):
    if not isinstance(leaf, _Map):
      return leaf
    at = leaf.place
    return np.memmap(at.path, np.dtype(at.dtype), "r", at.offset, at.shape)

  return Shared(jax.tree.map(open_one, sent))


def _begin(worker: int, count: int) -> None:
  """In each worker, before its first batch."""
  del worker, count
  jax.config.update("jax_platforms", "cpu")  # an accelerator belongs to the trainer's process
  # Whoever stops a job signals all of its processes; the trainer saves, and closes its workers.
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
  """A trainer that is killed takes its workers along."""
  multiprocessing.parent_process().join()
  os._exit(1)
