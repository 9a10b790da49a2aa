"""Losses between sets of predicted and true masks, at sampled points.

Axes: B images, Q predicted masks, T true masks (padded), K classes, P points.
Source: arXiv 2112.01527 (Mask2Former) sec. 3.2 and its code; points: arXiv 1912.08193 (PointRend).
"""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import optax

from h2g.errors import InputError
from h2g.ops.deform import bilinear


class Targets(NamedTuple):
  """True segments of a batch.

  classes: [B, T] int32; -1 where there is no segment.
  masks: [B, height, width, T] float of 0 and 1.
  """

  classes: Array
  masks: Array


def hungarian_match(cost: Array, valid: Array) -> Array:
  """For each valid row another column, so that the sum of their costs is least.

  Args:
    cost: [T, Q] float, T <= Q.
    valid: [T] bool.
  Returns:
    [T] int32 columns; of rows that are not valid those that are left.
  Raises:
    InputError: T > Q.
  """
  if cost.shape[0] > cost.shape[1]:
    raise InputError(f"{cost.shape[0]} masks cannot each have one of {cost.shape[1]} queries")
  # Equal costs of a padded row change no other row's choice. A NaN would never end.
  cost = jnp.where(valid[:, None], jnp.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6), 0.0)
  # optax mixes dtypes and ranks in its own arithmetic, which a caller's strict rules would refuse.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    rows, columns = optax.assignment.hungarian_algorithm(cost)
  return jnp.zeros(len(cost), jnp.int32).at[rows].set(columns.astype(jnp.int32))


def point_sample(x: Array, points: Array) -> Array:
  """Images [B, height, width, C] at points [B, P, 2] in [0, 1] (row, column): [B, P, C]."""
  size = jnp.asarray(x.shape[1:3], points.dtype).reshape(1, 1, 2)
  return bilinear(x, points * size - 0.5)


def uncertain_points(
  key: Array, logits: Array, num: int, *, oversample: float = 3.0, importance: float = 0.75
) -> Array:
  """Points where a mask is undecided, |logit| least, and some anywhere.

  Args:
    key: PRNG key.
    logits: [B, height, width, 1].
    num: P.
    oversample: candidates over P.
    importance: share of P that is the most uncertain of the candidates.
  Returns:
    [B, P, 2] in [0, 1].
  """
  among, anywhere = jax.random.split(key)
  candidates = jax.random.uniform(among, (len(logits), int(num * oversample), 2))
  uncertainty = -jnp.abs(point_sample(logits, candidates)[..., 0])
  chosen = int(num * importance)
  best = jax.lax.top_k(uncertainty, chosen)[1]
  best = jnp.take_along_axis(candidates, best[..., None], axis=1)
  return jnp.concatenate(
    [best, jax.random.uniform(anywhere, (len(logits), num - chosen, 2))], axis=1
  )


def dice_loss(logits: Array, targets: Array) -> Array:
  """[...] 1 - (2 <p, t> + 1) / (|p|_1 + |t|_1 + 1), p = sigmoid(logits [..., P])."""
  p = jax.nn.sigmoid(logits)
  both = 2 * (p * targets).sum(-1)
  return 1 - (both + 1) / (p.sum(-1) + targets.sum(-1) + 1)


def matching_cost(class_logits: Array, points: Array, classes: Array, targets: Array) -> Array:
  """[T, Q] cost of one image: -2 p_class + 5 BCE + 5 dice.

  Args:
    class_logits: [Q, K + 1].
    points: [P, Q] mask logits.
    classes: [T].
    targets: [P, T] of 0 to 1.
  """
  p = jax.nn.softmax(class_logits)[:, jnp.maximum(classes, 0)].T
  # BCE = softplus(x) - x t: products instead of a [T, Q, P] array; dice likewise.
  ce = (jax.nn.softplus(points).sum(0)[None] - targets.T @ points) / len(points)
  inside = jax.nn.sigmoid(points)
  both = 2 * targets.T @ inside
  dice = 1 - (both + 1) / (inside.sum(0)[None] + targets.sum(0)[:, None] + 1)
  return -2 * p + 5 * ce + 5 * dice


def match(key: Array, class_logits: Array, mask_logits: Array, targets: Targets, num: int) -> Array:
  """[B, T] query of each true segment; costs at `num` points that all masks of an image share."""
  points = jax.random.uniform(key, (len(class_logits), num, 2))
  predicted, true = point_sample(mask_logits, points), point_sample(targets.masks, points)
  cost = jax.vmap(matching_cost)(class_logits, predicted, targets.classes, true)
  return jax.vmap(hungarian_match)(cost, targets.classes >= 0)


class SetLoss(NamedTuple):
  """Parts of the loss, unweighted, [] float32: cross-entropy, BCE and dice of masks."""

  classes: Array
  masks: Array
  dice: Array

  @property
  def total(self) -> Array:
    """2 CE + 5 BCE + 5 dice."""
    return 2 * self.classes + 5 * self.masks + 5 * self.dice


def set_loss(
  key: Array,
  class_logits: Array,
  mask_logits: Array,
  targets: Targets,
  *,
  num_points: int,
  no_object: float = 0.1,
) -> SetLoss:
  """The loss of one set of predictions against the true segments that they are matched to.

  Unmatched queries should say "no object", class K, which weighs `no_object` in the weighted mean
  of the cross-entropy. BCE and dice are sums over true segments, each at its own points, over
  their number in the batch (at least 1). No gradient passes through the matching.

  Args:
    key: PRNG key of the points.
    class_logits: [B, Q, K + 1].
    mask_logits: [B, h, w, Q].
    targets: of the batch.
    num_points: P, of matching and of losses.
    no_object: weight.
  """
  match_key, point_key = jax.random.split(key)
  still = jax.lax.stop_gradient
  matched = match(match_key, still(class_logits), still(mask_logits), targets, num_points)
  valid = targets.classes >= 0
  num_classes = class_logits.shape[-1] - 1
  wanted = jnp.full(class_logits.shape[:2], num_classes, jnp.int32)
  place = jnp.where(valid, matched, wanted.shape[1])  # padded ones fall outside
  put = lambda row, at, classes: row.at[at].set(classes, mode="drop")
  wanted = jax.vmap(put)(wanted, place, targets.classes)
  weight = jnp.where(wanted == num_classes, no_object, 1.0)
  ce = optax.softmax_cross_entropy_with_integer_labels(class_logits, wanted)
  ce = (weight * ce).sum() / weight.sum()

  alone = lambda x: jnp.moveaxis(x, -1, 1).reshape(-1, *x.shape[1:3], 1)  # [B T, h, w, 1]
  logits = alone(jnp.take_along_axis(mask_logits, matched[:, None, None], axis=-1))
  points = uncertain_points(point_key, still(logits), num_points)
  logits = point_sample(logits, points)[..., 0]
  true = point_sample(alone(targets.masks), points)[..., 0]
  bce = optax.sigmoid_binary_cross_entropy(logits, true).mean(-1)
  count = jnp.maximum(valid.sum(dtype=bce.dtype), 1)
  mean = lambda x: jnp.where(valid.reshape(-1), x, 0).sum() / count
  return SetLoss(ce, mean(bce), mean(dice_loss(logits, true)))


def deep_set_loss(key: Array, class_logits: Array, mask_logits: Array, targets: Targets, **options):
  """`set_loss` of each layer's predictions: [L, B, Q, K + 1], [L, B, h, w, Q] -> leaves [L]."""
  of_layer = functools.partial(set_loss, targets=targets, **options)
  return jax.vmap(of_layer)(jax.random.split(key, len(class_logits)), class_logits, mask_logits)
