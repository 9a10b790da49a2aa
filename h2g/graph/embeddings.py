"""Embeddings of nodes learned from edges alone, before any model: metapath2vec, node2vec, TransE.

Walks are drawn with NumPy, vectors are trained in JAX; the same seed gives the same vectors. Every
function returns {node type: [N_t, dim] float32}; nodes without edges get zeros. Axes: W walks,
L nodes of a walk, N nodes of all types.
"""

from collections.abc import Sequence
import functools

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from h2g.errors import InputError
from h2g.graph.graph import EdgeType
from h2g.graph.graph import HeteroGraph
from h2g.graph.homophily import metapaths

BATCH = 4096  # pairs or triples per step
LR = 0.005
TRIES = 8  # proposals of a node2vec step; after the last one it is taken as it is


def metapath2vec(
  graph: HeteroGraph,
  dim: int,
  *,
  paths: Sequence[Sequence[EdgeType]] | None = None,
  walks: int = 10,
  length: int = 20,
  window: int = 4,
  steps: int = 400,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Skip-gram vectors of walks along metapaths.

  Args:
    graph: add reverses first, or few metapaths lead back.
    dim: width of the vectors.
    paths: as of `metapath_walks`.
    walks, length: walks from each target node, and the nodes of each.
    window, steps, seed: as of `skip_gram`.
  Source: Dong et al., KDD 2017, eq. 3 (walks), eq. 5 (negatives drawn from all types).
  """
  rng = np.random.default_rng(seed)
  found = metapath_walks(graph, rng, paths=paths, walks=walks, length=length)
  rows = skip_gram(found, graph.node_offsets[-1], dim, window=window, steps=steps, seed=seed)
  return _by_type(graph, rows)


def node2vec(
  graph: HeteroGraph,
  dim: int,
  *,
  p: float = 1.0,
  q: float = 1.0,
  walks: int = 5,
  length: int = 20,
  window: int = 4,
  steps: int = 400,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Skip-gram vectors of second-order walks on the graph without types, edges both ways.

  Args: `p`, `q`, `walks`, `length` as of `node2vec_walks`; the others as of `metapath2vec`.
  Source: arXiv 1607.00653.
  """
  rng = np.random.default_rng(seed)
  found = node2vec_walks(graph, rng, p=p, q=q, walks=walks, length=length)
  rows = skip_gram(found, graph.node_offsets[-1], dim, window=window, steps=steps, seed=seed)
  return _by_type(graph, rows)


def transe(
  graph: HeteroGraph, dim: int, *, margin: float = 1.0, steps: int = 400, seed: int = 0
) -> dict[str, np.ndarray]:
  """Vectors with head + relation near tail: sum max(0, margin + |h + r - t| - |h' + r - t'|) small.

  Each edge's head or tail is replaced by a node of the same type (the paper: by any). Entities are
  scaled to length 1 before every step.
  Source: Bordes et al., NeurIPS 2013, algorithm 1.
  """
  heads, relations, tails, pools = [], [], [], []
  for r, name in enumerate(graph.schema.edge_types):
    edges = graph.edges[name]
    count, (h, h_end), (t, t_end) = int(edges.indptr[-1]), graph.rows(name[0]), graph.rows(name[2])
    heads.append(np.asarray(edges.senders)[:count] + h)
    tails.append(np.asarray(edges.receivers)[:count] + t)
    relations.append(np.full(count, r))
    pools.append((h, h_end, t, t_end))
  triples = np.stack([np.concatenate(x) for x in (heads, relations, tails)], 1).astype(np.int32)
  if not len(triples):
    raise InputError("transe has nothing to learn from: the graph has no edges")
  pools = np.array(pools, np.int32)
  key = jax.random.key(seed)
  entities = _train_transe(
    key, triples, pools, graph.node_offsets[-1], dim, margin=margin, steps=steps
  )
  touched = np.zeros(graph.node_offsets[-1], bool)
  touched[triples[:, [0, 2]]] = True
  return _by_type(graph, np.where(touched[:, None], np.asarray(entities), 0.0))


METHODS = {"metapath2vec": metapath2vec, "node2vec": node2vec, "transe": transe}


def embed(graph: HeteroGraph, method: str, dim: int, *, seed: int = 0) -> dict[str, np.ndarray]:
  """The embedding of that name; InputError lists the names."""
  if method not in METHODS:
    raise InputError(f"embedding={method!r} is unknown: choose from {', '.join(METHODS)}")
  return METHODS[method](graph, dim, seed=seed)


def metapath_walks(
  graph: HeteroGraph,
  rng: np.random.Generator,
  *,
  paths: Sequence[Sequence[EdgeType]] | None = None,
  walks: int = 10,
  length: int = 20,
) -> np.ndarray:
  """[W, L] int32 node rows; -1 where a walk has ended, because no edge goes on.

  Each walk starts at a target node and follows one of `paths` at a time, drawn evenly: sequences of
  relations of one length that lead from the target type to itself, by default all pairs of two.
  Along a relation every edge of the node is equally likely.
  """
  paths = [tuple(path) for path in (metapaths(graph.schema) if paths is None else paths)]
  if not paths:
    raise InputError("metapath2vec: no walk of two relations leads back; add reverses")
  if len({len(path) for path in paths}) > 1:
    raise InputError("metapath2vec: metapaths must be of one length")
  start, _ = graph.target_rows
  here = np.tile(np.flatnonzero(np.asarray(graph.nodes[graph.schema.target].mask)), walks)
  out = np.full((len(here), length), -1, np.int32)
  out[:, 0] = here + start
  alive = np.ones(len(here), bool)
  for at in range(1, length, len(paths[0])):
    chosen = rng.integers(len(paths), size=len(here))
    for p, path in enumerate(paths):
      who = np.flatnonzero(alive & (chosen == p))
      local = here[who]
      for hop, name in enumerate(path):
        local, going = _along(graph, name, local, rng)
        alive[who[~going]] = False
        who, local = who[going], local[going]
        if at + hop < length:
          out[who, at + hop] = local + graph.rows(name[2])[0]
      here[who] = local
  return out


def node2vec_walks(
  graph: HeteroGraph,
  rng: np.random.Generator,
  *,
  p: float = 1.0,
  q: float = 1.0,
  walks: int = 5,
  length: int = 20,
) -> np.ndarray:
  """[W, L] int32 node rows of walks from every node; -1 after the end.

  From u, where the walk came from t, it goes on to v with weight 1/p if v = t, 1 if an edge joins v
  and t, 1/q otherwise. Steps are proposed evenly and accepted in proportion to their weight.
  """
  heads, tails = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  for name in graph.schema.edge_types:
    edges = graph.edges[name]
    count = int(edges.indptr[-1])
    u = np.asarray(edges.senders)[:count].astype(np.int64) + graph.rows(name[0])[0]
    v = np.asarray(edges.receivers)[:count].astype(np.int64) + graph.rows(name[2])[0]
    heads += [u, v]
    tails += [v, u]
  total = graph.node_offsets[-1]
  codes = np.sort(np.concatenate(heads) * total + np.concatenate(tails))
  heads, tails = codes // max(total, 1), codes % max(total, 1)
  indptr = np.searchsorted(heads, np.arange(total + 1))
  here = np.tile(np.flatnonzero(np.diff(indptr)), walks)
  out = np.full((len(here), length), -1, np.int32)
  out[:, 0], before = here, None
  most = max(1.0, 1 / p, 1 / q)
  for at in range(1, length):
    following = np.empty_like(here)
    left = np.arange(len(here))
    for attempt in range(TRIES):
      u = here[left]
      v = tails[indptr[u] + rng.integers(0, np.diff(indptr)[u])]
      accept = np.ones(len(left), bool)
      if before is not None and (p, q) != (1, 1):
        t = before[left]
        place = np.searchsorted(codes, v * total + t)
        joined = codes[np.minimum(place, len(codes) - 1)] == v * total + t
        weight = np.where(v == t, 1 / p, np.where(joined, 1.0, 1 / q))
        accept = (rng.random(len(left)) * most < weight) | (attempt == TRIES - 1)
      following[left[accept]] = v[accept]
      left = left[~accept]
    before, here = here, following
    out[:, at] = here
  return out


def skip_gram(
  walks: np.ndarray,
  num_nodes: int,
  dim: int,
  *,
  window: int = 4,
  negatives: int = 5,
  steps: int = 400,
  seed: int = 0,
) -> np.ndarray:
  """[N, dim] vectors x with log s(x_u . y_v) - negatives E_n log s(-x_u . y_n) large, by Adam.

  (u, v) are drawn from all pairs at most `window` places apart in a walk; n from the walks' nodes
  with the 3/4 power of their number, the same 256 for a whole batch.
  Source: arXiv 1310.4546 eq. 4.
  """
  walks = walks[walks[:, 1] >= 0]  # a walk of one node has no pair
  if not len(walks):
    return np.zeros((num_nodes, dim), np.float32)
  often = np.bincount(walks[walks >= 0], minlength=num_nodes).astype(np.float64) ** 0.75
  logits = np.log(np.maximum(often / often.sum(), 1e-30)).astype(np.float32)
  vectors = _train_skip_gram(
    jax.random.key(seed), walks, logits, dim, window=window, negatives=negatives, steps=steps
  )
  return np.where(often[:, None] > 0, np.asarray(vectors), 0.0)


@functools.partial(jax.jit, static_argnames=("dim", "window", "negatives", "steps"))
def _train_skip_gram(key, walks, logits, dim, *, window, negatives, steps) -> Array:
  num_nodes, shared = logits.shape[0], 256
  share = jnp.cumulative_sum(jax.nn.softmax(logits))

  def loss(tables, key):
    walk_key, at_key, shift_key, sign_key, negative_key = jax.random.split(key, 5)
    walk = jax.random.randint(walk_key, (BATCH,), 0, walks.shape[0])
    at = jax.random.randint(at_key, (BATCH,), 0, walks.shape[1])
    shift = jax.random.randint(shift_key, (BATCH,), 1, window + 1)
    other = jnp.where(jax.random.bernoulli(sign_key, 0.5, (BATCH,)), at + shift, at - shift)
    inside = (other >= 0) & (other < walks.shape[1])
    u, v = walks[walk, at], walks[walk, jnp.clip(other, 0, walks.shape[1] - 1)]
    real = (inside & (u >= 0) & (v >= 0)).astype(jnp.float32)
    drawn = jnp.searchsorted(share, jax.random.uniform(negative_key, (shared,)))
    x, y = tables["in"][jnp.maximum(u, 0)], tables["out"][jnp.maximum(v, 0)]
    against = tables["out"][jnp.minimum(drawn, num_nodes - 1)]
    near = jax.nn.log_sigmoid(jnp.sum(x * y, axis=1))
    far = jax.nn.log_sigmoid(-x @ against.T).mean(1)
    return -jnp.sum(real * (near + negatives * far)) / jnp.maximum(real.sum(), 1.0)

  draw_key, steps_key = jax.random.split(key)
  start = jax.random.uniform(draw_key, (num_nodes, dim), minval=-0.5, maxval=0.5) / dim
  tables = {"in": start, "out": jnp.zeros((num_nodes, dim))}
  return _minimised(loss, tables, steps_key, steps)["in"]


@functools.partial(jax.jit, static_argnames=("num_nodes", "dim", "margin", "steps"))
def _train_transe(key, triples, pools, num_nodes, dim, *, margin, steps) -> Array:
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
  length = lambda x: jnp.sqrt(jnp.sum(x * x, axis=-1) + 1e-9)

  def loss(tables, key):
    row_key, side_key, node_key = jax.random.split(key, 3)
    at = jax.random.randint(row_key, (BATCH,), 0, triples.shape[0])
    h, r, t = triples[at, 0], triples[at, 1], triples[at, 2]
    side = jax.random.bernoulli(side_key, 0.5, (BATCH,))  # True replaces the tail
    pool = jnp.where(side[:, None], pools[r][:, 2:], pools[r][:, :2])
    node = jax.random.randint(node_key, (BATCH,), pool[:, 0], pool[:, 1])
    e = unit(tables["entities"])
    relation = tables["relations"][r]
    true = length(e[h] + relation - e[t])
    false = length(e[jnp.where(side, h, node)] + relation - e[jnp.where(side, node, t)])
    return jnp.mean(jax.nn.relu(margin + true - false))

  e_key, r_key, steps_key = jax.random.split(key, 3)
  bound = 6.0 / dim**0.5
  draw = lambda key, rows: jax.random.uniform(key, (rows, dim), minval=-bound, maxval=bound)
  tables = {"entities": draw(e_key, num_nodes), "relations": unit(draw(r_key, pools.shape[0]))}
  return unit(_minimised(loss, tables, steps_key, steps)["entities"])


def _minimised(loss, tables, key: Array, steps: int):
  """The tables after `steps` steps of Adam on loss(tables, key of the step)."""
  optimizer = optax.adam(LR)

  def step(at, carry):
    tables, state = carry
    grads = jax.grad(loss)(tables, jax.random.fold_in(key, at))
    # optax mixes dtypes in its own arithmetic, which a caller's strict rules would refuse.
    with jax.numpy_dtype_promotion("standard"):
      updates, state = optimizer.update(grads, state)
    return optax.apply_updates(tables, updates), state

  return jax.lax.fori_loop(0, steps, step, (tables, optimizer.init(tables)))[0]


def _along(graph: HeteroGraph, name: EdgeType, nodes: np.ndarray, rng: np.random.Generator):
  """(receivers, going): one edge of the relation from each node, where there is one."""
  edges = graph.edges[name]
  begin = np.asarray(edges.sender_indptr)[nodes]
  degree = np.asarray(edges.sender_indptr)[nodes + 1] - begin
  going = degree > 0
  if not going.any():
    return np.zeros(len(nodes), np.int64), going
  at = begin + (rng.random(len(nodes)) * degree).astype(np.int64)
  order = np.asarray(edges.sender_order)
  at = order[np.where(going, at, 0)]
  return np.asarray(edges.receivers)[at].astype(np.int64), going


def _by_type(graph: HeteroGraph, rows: np.ndarray) -> dict[str, np.ndarray]:
  names = graph.schema.node_types
  return {name: rows[slice(*graph.rows(name))].astype(np.float32) for name in names}
