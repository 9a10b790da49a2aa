"""Block lists against the tables and masks they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import block_lists
from h2g.ops import masks


def tables(seed=0):
  return np.random.default_rng(seed).integers(0, 3, (2, 2, 5, 7)).astype(np.int8)


@pytest.mark.parametrize("on_device", [False, True])
def test_lists_hold_full_tiles_then_partial_ones(on_device):
  table = tables()
  lists = block_lists.from_table(jnp.asarray(table) if on_device else table)
  assert isinstance(lists.ids, jax.Array if on_device else np.ndarray)
  for place in np.ndindex(*table.shape[:3]):
    ids, full, count = (np.asarray(x)[place] for x in lists)
    row = table[place]
    assert ids[:full].tolist() == np.flatnonzero(row == masks.FULL).tolist()
    assert ids[full:count].tolist() == np.flatnonzero(row == masks.PARTIAL).tolist()
    assert set(ids[count:].tolist()) <= {ids[max(count - 1, 0)]}
  turned = block_lists.transposed(table)
  np.testing.assert_array_equal(turned.counts, (table != masks.EMPTY).sum(-2))


@pytest.mark.parametrize("on_device", [False, True])
def test_pairs_are_what_is_not_empty_and_one_of_each_empty_row(on_device):
  table = tables()
  table[1, 0, 2] = masks.EMPTY
  codes, steps = block_lists.pairs(jnp.asarray(table) if on_device else table)
  assert isinstance(codes, jax.Array if on_device else np.ndarray)
  longest = 0
  for place in np.ndindex(*table.shape[:2]):
    found = np.stack(block_lists.decoded(np.asarray(codes)[place]), -1).tolist()
    want = []
    for n, row in enumerate(table[place]):
      want += [[n, m, row[m]] for m in np.flatnonzero(row)] or [[n, 0, masks.EMPTY]]
    assert found[: len(want)] == want
    assert all(entry == [*want[-1][:2], masks.EMPTY] for entry in found[len(want) :])
    longest = max(longest, len(want))
  assert int(steps) == longest


def test_lists_make_the_table_they_came_from():
  table = np.where(tables() == masks.EMPTY, masks.EMPTY, masks.FULL).astype(np.int8)
  lists = block_lists.from_table(table)
  for xp in (np, jnp):
    again = block_lists.table_of_lists(xp.asarray(lists.ids), xp.asarray(lists.counts), 7)
    np.testing.assert_array_equal(again, table)


def test_a_tile_past_the_last_key_is_never_full():
  table = block_lists.table_of_mask(None, 100, 100, 64, 64)
  np.testing.assert_array_equal(table[0, 0], [[2, 1], [2, 1]])


def test_program_of_a_mask_gives_the_mask():
  ids = jnp.asarray(np.sort(np.random.default_rng(0).integers(-1, 4, (2, 48)), 1), jnp.int32)
  table = np.random.default_rng(1).random((1, 3, 3, 3)) < 0.5
  bits = jnp.asarray(np.random.default_rng(2).random((2, 1, 48, 48)) < 0.5)
  checks = masks.function(lambda query, key, head, batch: (query + key + head) % 3 != batch)
  mask = (masks.causal(jnp.asarray([0, 5])) & masks.segments(ids)) | (
    ~masks.dense(bits) & masks.block_table(table, 16, 16) & checks
  )
  mask = mask | masks.prefix(3) & masks.full()
  program = block_lists.mask_program(mask, 16, 16, "test")
  want = mask.dense(48, 48, heads=3, batch=2)
  square = np.indices((48, 48)).astype(np.int32)

  def part(array, block, b, h):
    one = array[min(b, array.shape[0] - 1), min(h, array.shape[1] - 1)]
    return one if block is None else jnp.repeat(jnp.repeat(one, block[0], 0), block[1], 1)

  for b, h in np.ndindex(2, 3):
    loaded = [part(*pair, b, h) for pair in zip(program.arrays, program.blocks)]
    got = program.attends(*map(jnp.asarray, square), jnp.int32(h), jnp.int32(b), loaded)
    np.testing.assert_array_equal(got, want[b, h])


def test_masks_without_a_form_are_refused():
  reads = masks.function(lambda query, key, head, batch, x: x[query] > x[key], jnp.arange(8))
  with pytest.raises(NotImplementedError, match=r"name cannot serve mask: .*reads arrays"):
    block_lists.mask_program(reads, 64, 64, "name")
  fine = masks.block_table(np.ones((1, 1, 2, 2), bool), 32, 64)
  with pytest.raises(NotImplementedError, match="32 by 64"):
    block_lists.mask_program(fine, 64, 64, "name")
