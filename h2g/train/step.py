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

SPIKE_MEMORY = 0.98  # of the running mean of the loss, per step
SPIKE_AFTER = 20  # good steps before a loss can be a spike: the first ones fall too fast to tell

# Metric "divergence" of a step, where it is asked for.
GOOD, NOT_A_NUMBER, SPIKE = 0, 1, 2


class Guard(NamedTuple):
  """What tells a spike from a usual loss. Leaves [S].

  total: float32, sum over good steps of their loss, older ones weighing less. seen: int32, good
  steps.
  """

  total: Array
  seen: Array


class State(NamedTuple):
  """All that the next step depends on, besides its batch.

  params, rest, opt_state: pytrees of [S, ...].
  keys: [S, ...] uint32, random key data of each seed; step t draws from fold_in(key, t).
  step: [] int32, steps done.
  guard: a Guard where spikes are looked for, else ().
  """

  params: Any
  rest: Any
  opt_state: Any
  keys: Array
  step: Array
  guard: Any = ()


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
    skip: bool = False,
    spike_factor: float = 0.0,
  ):
    """length: most steps of one call of `steps`. accumulate, compute_dtype: see `Settings`.

    skip: whether a bad step leaves the model as it was. spike_factor: see `Settings`. With either,
    the metric "divergence" tells GOOD, NOT_A_NUMBER or SPIKE.
    """
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
        guard = Guard(jnp.zeros(()), jnp.zeros((), jnp.int32)) if spike_factor else ()
        return params, rest, optimizer.init(params), jax.random.key_data(step_key), guard

      *parts, guard = over_seeds(one_seed)(keys)
      state = State(*parts, jnp.zeros((), jnp.int32), guard)
      return state, Best(state.params, state.rest)

    def step_once(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
      def one_seed(params, rest, opt_state, key_data, guard, own):
        old = (params, rest, opt_state)
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), state.step)
        (loss, (rest, metrics)), grads = gradients(params, rest, Batch(batch.shared, own), key)
        # optax mixes dtypes in its own arithmetic, which a caller's strict rules would refuse.
        with jax.numpy_dtype_promotion("standard"):
          updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics = {"loss": loss, "grad_norm": _norm(grads), **metrics}
        new = (optax.apply_updates(params, updates), rest, opt_state)
        if skip or spike_factor:
          kind, guard = judged(guard, loss, metrics["grad_norm"], spike_factor)
          metrics["divergence"] = kind
          if skip:
            new = jax.tree.map(lambda a, b: jnp.where(kind == GOOD, b, a), old, new)
        return *new, guard, metrics

      *new, guard, metrics = over_seeds(one_seed)(
        state.params, state.rest, state.opt_state, state.keys, state.guard, batch.own
      )
      return State(*new, state.keys, state.step + 1, guard), metrics

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
      once = jax.jit(step_once, inline=True)  # traced once, not for its shapes and again
      like = jax.eval_shape(once, state, batch)[1]
      rows = jax.tree.map(lambda m: jnp.zeros((length, *m.shape), m.dtype), like)

      def body(i, carry):
        state, rows = carry
        state, metrics = once(state, batch)
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
    # It runs once, and LLVM takes its time over so many random draws: not worth optimising.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    self.create: Callable = jax.jit(create, out_shardings=shardings, compiler_options=quick)
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


def judged(guard, loss: Array, grad_norm: Array, factor: float) -> tuple[Array, Any]:
  """(GOOD, NOT_A_NUMBER or SPIKE; the guard after this step) of one seed."""
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  if not factor:
    return jnp.where(finite, GOOD, NOT_A_NUMBER), guard
  weight = 1 - SPIKE_MEMORY ** guard.seen.astype(jnp.float32)  # of all good steps so far
  mean = guard.total / jnp.maximum(weight, 1 - SPIKE_MEMORY)
  spike = (guard.seen >= SPIKE_AFTER) & (loss - mean > (factor - 1) * jnp.abs(mean))
  kind = jnp.where(finite, jnp.where(spike, SPIKE, GOOD), NOT_A_NUMBER)
  after = Guard(SPIKE_MEMORY * guard.total + (1 - SPIKE_MEMORY) * loss, guard.seen + 1)
  return kind, jax.tree.map(lambda a, b: jnp.where(kind == GOOD, b, a), guard, after)


def _norm(tree) -> Array:
  """Euclidean norm over all leaves, [] float32."""
  squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def _name(kind: str, batch: Batch) -> str:
  """The program's name: its kind and the shapes of its batch."""
  leaves, structure = jax.tree.flatten(batch)
  shapes = ",".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
  return f"{kind} {hashlib.sha256(f'{structure} {shapes}'.encode()).hexdigest()[:12]}"
