"""The programs of a run: create, train, evaluate, keep the best. Pure functions under `jax.jit`.

S seeds train side by side: every leaf of the state but `step` has a leading axis of seeds, and the
experiment's functions, written for one seed, are mapped over it.
"""

from collections.abc import Callable
import functools
import hashlib
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from h2g.errors import InputError
from h2g.train.experiment import Batch
from h2g.train.experiment import Experiment
from h2g.train.sharding import Layout


class State(NamedTuple):
  """All that the next step depends on, besides its batch.

  params, rest, opt_state: pytrees of [S, ...].
  keys: [S, ...] uint32, random key data of each seed; step t draws from fold_in(key, t).
  step: [] int32, steps done.
  """

  params: Any
  rest: Any
  opt_state: Any
  keys: Array
  step: Array


class Best(NamedTuple):
  """The model of each seed's best evaluation so far, at first that of step 0. Leaves [S, ...]."""

  params: Any
  rest: Any


class Programs:
  """The compiled programs, shared by all groups of a run (groups have one size).

  compiled: names of the train and eval programs traced so far, one per shape of batch. Tracing and
    compiling go together here, because all shardings of a program are fixed.
  """

  def __init__(
    self,
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    length: int,
    accumulate: int = 1,
    compute_dtype: str = "float32",
  ):
    """length: most steps of one call of `steps`. accumulate, compute_dtype: see `Settings`."""
    self.compiled: set[str] = set()
    over_seeds = functools.partial(_over_seeds, layout=layout)
    low = functools.partial(_lowered, dtype=jnp.dtype(compute_dtype))

    def loss(params, rest, batch: Batch, key: Array):
      value, aux = experiment.loss(low(params), rest, low(batch), key)
      return value.astype(jnp.float32), aux

    gradients = _accumulated(jax.value_and_grad(loss, has_aux=True), accumulate)
    if accumulate > 1 and not experiment.rows:
      raise InputError(
        f"config.train.accumulate={accumulate}: the batches of {experiment.model} have no rows "
        "of examples to take in parts; use 1"
      )

    def create(keys: Array) -> tuple[State, Best]:
      def one_seed(key):
        init_key, step_key = jax.random.split(key)
        params, rest = experiment.init(init_key)
        return params, rest, optimizer.init(params), jax.random.key_data(step_key)

      state = State(*over_seeds(one_seed)(keys), jnp.zeros((), jnp.int32))
      return state, Best(state.params, state.rest)

    def step_once(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
      def one_seed(params, rest, opt_state, key_data, own):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), state.step)
        (loss, (rest, metrics)), grads = gradients(params, rest, Batch(batch.shared, own), key)
        # optax mixes dtypes in its own arithmetic, which a caller's strict rules would refuse.
        with jax.numpy_dtype_promotion("standard"):
          updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics = {"loss": loss, "grad_norm": _norm(grads), **metrics}
        return optax.apply_updates(params, updates), rest, opt_state, metrics

      *new, metrics = over_seeds(one_seed)(
        state.params, state.rest, state.opt_state, state.keys, batch.own
      )
      return State(*new, state.keys, state.step + 1), metrics

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
      """One step, for streams; metrics [1, S]."""
      self.compiled.add(_name("train", batch))
      state, metrics = step_once(state, batch)
      return state, jax.tree.map(lambda m: m[None], metrics)

    def steps(state: State, batch: Batch, count: Array) -> tuple[State, dict[str, Array]]:
      """`count` <= length steps on one resident batch; metrics [length, S], `count` rows filled.

      The trip count is an argument, not a shape: one program serves every cut of the run, so that
      where it is evaluated, saved or resumed cannot change a bit.
      """
      self.compiled.add(_name("train", batch))
      like = jax.eval_shape(step_once, state, batch)[1]
      rows = jax.tree.map(lambda m: jnp.zeros((length, *m.shape), m.dtype), like)

      def body(i, carry):
        state, rows = carry
        state, metrics = step_once(state, batch)
        return state, jax.tree.map(lambda row, m: row.at[i].set(m), rows, metrics)

      return jax.lax.fori_loop(0, count, body, (state, rows))

    def evaluate(params, rest, batch: Batch):
      self.compiled.add(_name("eval", batch))

      def one_seed(params, rest, own):
        return experiment.evaluate(low(params), rest, low(Batch(batch.shared, own)))

      return over_seeds(one_seed)(params, rest, batch.own)

    def keep(best: Best, state: State, improved: Array) -> Best:
      def choose(old, new):
        return jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

      return jax.tree.map(choose, best, Best(state.params, state.rest))

    keys = jax.eval_shape(lambda: seed_keys(layout.padded))
    self.abstract = layout.abstract(*jax.eval_shape(create, keys))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
    everywhere = layout.replicated  # each process reads metrics and statistics whole
    self.create: Callable = jax.jit(create, out_shardings=shardings)
    stepping = dict(donate_argnums=0, out_shardings=(shardings[0], everywhere))
    self.step: Callable = jax.jit(step, **stepping)
    self.steps: Callable = jax.jit(steps, **stepping)
    self.evaluate: Callable = jax.jit(evaluate, out_shardings=everywhere)
    self.keep: Callable = jax.jit(keep, donate_argnums=0, out_shardings=shardings[1])


def seed_keys(seeds: tuple[int, ...]) -> Array:
  """[S] random keys, one per seed, whatever the other seeds are."""
  return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))


def _over_seeds(function: Callable, *, layout: Layout) -> Callable:
  """`function` of one seed's leaves, as a function of leaves [S, ...]."""
  if len(layout.padded) > 1:
    return jax.vmap(function, spmd_axis_name=layout.seeds_axis)

  # A single seed is computed without a batch axis: the program is that of the plain model, and
  # operations without a batching rule work.
  def single(*args):
    out = function(*jax.tree.map(lambda leaf: leaf[0], args))
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), out)

  return single


def _lowered(tree, *, dtype):
  """float32 leaves in the dtype that computes."""
  if dtype == jnp.float32:
    return tree
  return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, tree)


def _accumulated(gradients: Callable, parts: int) -> Callable:
  """`gradients` of the mean over `parts` of the batch's rows, one part after the other."""
  if parts == 1:
    return gradients

  def cut(leaf):  # Part i holds rows i, i + parts, ...: each device goes on with rows that it has.
    if leaf.shape[0] % parts:
      raise InputError(
        f"config.train.accumulate={parts} does not divide the {leaf.shape[0]} examples of a batch"
      )
    return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

  def accumulated(params, rest, batch: Batch, key: Array):
    def one(carry, part):
      rest, total = carry
      own, i = part
      key_i = jax.random.fold_in(key, i)
      (loss, (rest, metrics)), grads = gradients(params, rest, Batch(batch.shared, own), key_i)
      return (rest, jax.tree.map(jnp.add, total, grads)), (loss, metrics)

    start = (rest, jax.tree.map(jnp.zeros_like, params))
    own = jax.tree.map(cut, batch.own)
    (rest, total), told = jax.lax.scan(one, start, (own, jnp.arange(parts)))
    loss, metrics = jax.tree.map(lambda x: x.mean(0), told)
    return (loss, (rest, metrics)), jax.tree.map(lambda x: x / parts, total)

  return accumulated


def _norm(tree) -> Array:
  """Euclidean norm over all leaves, [] float32."""
  squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def _name(kind: str, batch: Batch) -> str:
  """The program's name: its kind and the shapes of its batch."""
  leaves, structure = jax.tree.flatten(batch)
  shapes = ",".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
  return f"{kind} {hashlib.sha256(f'{structure} {shapes}'.encode()).hexdigest()[:12]}"
