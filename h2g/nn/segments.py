"""From classified masks to maps: a class, or a segment, per pixel.

Axes: B images, Q masks, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np


class Segments(NamedTuple):
  """map: [B, height, width] int32, index of a segment or -1; classes: [B, S] int32 or -1."""

  map: Array
  classes: Array


def class_map(segments: Segments) -> Array:
  """[B, height, width] int32: the class of each pixel's segment, -1 where it has none."""
  flat = segments.map.astype(jnp.int32).reshape(len(segments.map), 1, -1)
  found = jnp.take_along_axis(segments.classes[:, None], flat, -1).reshape(segments.map.shape)
  return jnp.where(segments.map < 0, -1, found)


def semantic_map(class_logits: Array, mask_logits: Array) -> Array:
  """[B, height, width] int32: argmax_k sum_q p_q(k) sigmoid(mask_q).

  Args:
    class_logits: [B, Q, K + 1], the last is "no object".
    mask_logits: [B, height, width, Q].
  Source: arXiv 2107.06278 sec. 3.4.
  """
  classes = jax.nn.softmax(class_logits)[..., :-1]
  scores = jnp.einsum("bhwq,bqk->bhwk", jax.nn.sigmoid(mask_logits), classes)
  return jnp.argmax(scores, -1).astype(jnp.int32)


def panoptic_map(
  class_logits: Array,
  mask_logits: Array,
  *,
  things: Sequence[bool],
  threshold: float = 0.8,
  overlap: float = 0.8,
) -> Segments:
  """Segments that do not overlap: each pixel goes to the kept mask of largest score.

  Args:
    class_logits: [B, Q, K + 1], the last is "no object".
    mask_logits: [B, height, width, Q].
    things: K times whether segments of the class are counted; masks of one other class are merged.
    threshold: least probability of a class for a mask to be kept.
    overlap: least share of a mask (probability >= 0.5) that must remain its own.
  Returns:
    Segments; a segment has the number of its mask, S = Q.
  Source: arXiv 2107.06278 sec. 3.4.
  """
  p = jax.nn.softmax(class_logits)
  score, label = p.max(-1), jnp.argmax(p, -1).astype(jnp.int32)
  num_queries, num_classes = p.shape[1], p.shape[2] - 1
  kept = (label < num_classes) & (score > threshold)
  masks = jax.nn.sigmoid(mask_logits)
  weighed = jnp.where(kept[:, None, None], masks * score[:, None, None], -1.0)
  owner = jnp.argmax(weighed, -1)
  own = jax.nn.one_hot(owner, num_queries, dtype=bool)
  solid = masks >= 0.5
  area = lambda x: x.sum((1, 2), dtype=masks.dtype)
  kept &= (area(own & solid) > 0) & (area(own) >= overlap * area(solid))
  # Stuff of one class is one segment, that of its first mask.
  thing = jnp.append(jnp.asarray(np.asarray(things, bool)), False)[label]
  same = (label[:, :, None] == label[:, None]) & kept[:, None] & ~thing[:, :, None]
  number = jnp.where(thing, jnp.arange(num_queries)[None], jnp.argmax(same, -1))
  of_owner = lambda x: jnp.take_along_axis(x, owner[..., None], -1)[..., 0]
  take = lambda rows: of_owner(jnp.broadcast_to(rows[:, None, None], masks.shape))
  mine = of_owner(solid) & take(kept)
  return Segments(jnp.where(mine, take(number), -1).astype(jnp.int32), jnp.where(kept, label, -1))
