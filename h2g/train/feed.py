"""Where batches come from: one that stays on the device, or a stream that can be resumed."""

from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding

from h2g.errors import InputError
from h2g.train.experiment import Batch
from h2g.train.sharding import Layout

READERS = 4  # threads that make the batches of a MapDataset; an IterDataset brings its own
READ_AHEAD = 16  # batches that wait on the host


class Resident:
  """The same batch at every step, on the device for the whole run."""

  resident = True

  def __init__(self, batch: Batch, layout: Layout):
    self._batch = layout.place(batch)
    self.state: Any = None  # nothing to remember

  def next(self) -> Batch:
    return self._batch

  def seek(self, state: Any) -> None:
    del state

  def close(self) -> None:
    pass


class Stream:
  """Batches of an iterator with `get_state` and `set_state`; the next few wait on the device.

  `Batch.shared` is placed anew only where it is another object than that of the batch before.

  state: the iterator's state just after the batch that `next` returned last, so that a run put back
    there reads on with the batch that would have come; None before the first.
  """

  resident = False

  def __init__(self, dataset: Iterable[Batch], layout: Layout, *, state: Any, ahead: int):
    self._layout = layout
    self._ahead = ahead
    self._iterator = _checkpointable(dataset)
    self._waiting: deque[tuple[Batch, Any]] = deque()
    self._shared: tuple[Any, Any] = (None, None)  # as given, and on the devices
    self.state = state
    if state is not None:
      self._iterator.set_state(state)

  def seek(self, state: Any) -> None:
    """Goes on after the batch at which `state` was read."""
    self._waiting.clear()
    self._iterator.set_state(state)
    self.state = state

  def close(self) -> None:
    """Ends the iterator's processes and threads, where it has any."""
    if hasattr(self._iterator, "close"):
      self._iterator.close()

  def next(self) -> Batch:
    # Batches are placed ahead of use: the copy to the device runs while the current step computes.
    while len(self._waiting) <= self._ahead:
      try:
        batch = next(self._iterator)
      except StopIteration:
        break
      except RuntimeError as error:
        if "process" not in str(error):
          raise
        raise InputError(
          f"a worker process of the loader is gone ({error}); run the same command to go on from "
          "the last checkpoint"
        ) from error
      self._waiting.append((self._place(_checked(batch)), self._iterator.get_state()))
    if not self._waiting:
      raise InputError("the stream of training batches ended before the run: repeat the dataset")
    batch, self.state = self._waiting.popleft()
    return batch

  def _place(self, batch: Batch) -> Batch:
    if batch.shared is not self._shared[0]:
      self._shared = batch.shared, _place_shared(batch.shared, self._layout)
    own = self._layout.place(Batch(None, batch.own)).own
    return Batch(self._shared[1], own)


def train_feed(batches: Any, layout: Layout, *, state: Any, ahead: int) -> Resident | Stream:
  """The feed of what `Experiment.train_batches` returned, in place after `state` was read."""
  if isinstance(batches, Batch):
    return Resident(batches, layout)
  return Stream(batches, layout, state=state, ahead=ahead)


class EvalFeed:
  """The batches of one evaluation, from the start at every call; resident ones are placed once."""

  def __init__(self, batches: Any, layout: Layout):
    self._layout = layout
    self._placed = layout.place(batches) if isinstance(batches, Batch) else None
    self._batches = batches

  def __iter__(self) -> Iterator[Batch]:
    if self._placed is not None:
      yield self._placed
      return
    for batch in self._batches() if callable(self._batches) else self._batches:
      yield self._layout.place(_checked(batch))


def _place_shared(shared: Any, layout: Layout) -> Any:
  """Whole on every device, but for arrays that lie over this mesh already: they stay."""
  leaves, structure = jax.tree.flatten(shared)
  lies = lambda x: isinstance(getattr(x, "sharding", None), NamedSharding)
  there = [lies(x) and x.sharding.mesh == layout.mesh for x in leaves]
  placed = layout.place(Batch([x for x, stays in zip(leaves, there) if not stays], ())).shared
  rest = iter(placed)
  return structure.unflatten([x if stays else next(rest) for x, stays in zip(leaves, there)])


def _checkpointable(dataset: Iterable[Batch]) -> Iterator[Batch]:
  if hasattr(dataset, "to_iter_dataset"):  # a grain MapDataset: read ahead in threads
    import grain

    options = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=READ_AHEAD)
    dataset = dataset.to_iter_dataset(options)
  iterator = iter(dataset)
  if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
    raise InputError(
      f"train_batches returned {type(dataset).__name__}, whose iterator has no get_state and "
      "set_state, so the run could not be resumed: return a Batch or a grain dataset"
    )
  return iterator


def _checked(batch: Any) -> Batch:
  if not isinstance(batch, Batch):
    raise InputError(f"a stream yielded {type(batch).__name__}: it must yield h2g.train.Batch")
  return batch
