"""GOAT: each node attends to its neighbours, and to a codebook that stands for all nodes."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import dropout
from h2g.nn import split
from h2g.nn.widths import head_width
from h2g.ops.attention import attention
from h2g.ops.edge import edge_attention


class Running(nnx.Variable):
  """What a training step updates without a gradient."""


class Codebook(nnx.Module):
  """k-means by exponential moving averages: c_k = sums_k / counts_k, in whose cell about counts_k
  of the rows lie.

  `update` assigns every row to its nearest centroid, then
    counts_k <- decay counts_k + (1 - decay) n_k,  sums_k <- decay sums_k + (1 - decay) sum x
  The first update starts from rows drawn at random (official: from noise, and counts from zero).
  """

  def __init__(self, size: int, dim: int, *, decay: float, rngs: nnx.Rngs):
    self.sums = Running(jax.random.normal(rngs.params(), (size, dim)))
    self.counts = Running(jnp.ones(size))
    self.started = Running(jnp.zeros(()))
    self.decay = decay

  def centroids(self) -> tuple[Array, Array]:
    """([size, dim], log counts [size]); a cell that lost all its rows weighs next to nothing."""
    counts = jnp.maximum(self.counts[...], 1e-6)
    return self.sums[...] / counts[:, None], jnp.log(counts)

  def update(self, x: Array, real: Array, key: Array) -> None:
    """x: [N, dim]; real: [N] bool, False for padding."""
    x = jax.lax.stop_gradient(jnp.where(real[:, None], x, 0.0))
    chance = real.astype(x.dtype) / jnp.maximum(real.sum(dtype=x.dtype), 1.0)
    drawn = x[jax.random.choice(key, len(x), self.counts.shape, p=chance)]
    start = self.started[...] == 0
    centroids = jnp.where(start, drawn, self.centroids()[0])
    counts = jnp.where(start, 1.0, self.counts[...])
    near = jnp.argmin(jnp.sum(centroids**2, axis=1)[None, :] - 2.0 * x @ centroids.T, axis=1)
    cells = jax.nn.one_hot(near, len(centroids), dtype=x.dtype) * real[:, None].astype(x.dtype)
    self.counts[...] = self.decay * counts + (1 - self.decay) * cells.sum(0)
    sums = centroids * counts[:, None]
    self.sums[...] = self.decay * sums + (1 - self.decay) * cells.T @ x
    self.started[...] = jnp.ones(())


class GOAT(Baseline):
  """logits = MLP([local | global]) of each target node, h = MLP(encoder(graph)).

  local: softmax over the node itself and its incoming edges, of
    <q_v, k_u> / sqrt(D) + b_d - log n_d; d = 0 for the node, 1 for its n_1 edges, b per head.
  global: softmax over the codebook, of
    <q'(p_v), k'(c_j)> / sqrt(D) + log counts_j, values v'(c_j); p = LN(h W), the codebook that of
    all nodes' p.
  Attention reads the codebook as the steps before left it; a training step (a key) then updates it.

  The official code samples neighbours up to three hops away (20, 10, 5), appends node2vec vectors
  to p (here a positional encoding comes with the features), updates from the batch's nodes alone,
  and has batch norms where layer norms stand here.
  Source: Kong et al., ICML 2023 (PMLR 202), eq. 4-7; H2GB's `GOATModel`.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 128,
    num_heads: int = 8,
    head_dim: int = 0,
    num_centroids: int = 4096,
    decay: float = 0.99,
    dropout_rate: float = 0.2,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    """`head_dim` 0 divides `dim` among the heads; the official heads are as wide as `dim`."""
    inside = num_heads * head_width(dim, num_heads, head_dim)
    linear = lambda a, b: nnx.Linear(a, b, rngs=rngs)
    norm = lambda width: nnx.LayerNorm(width, rngs=rngs)
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.in_norm, self.in_linear = norm(dim), linear(dim, dim)
    self.qkv = linear(dim, 3 * inside)
    self.hop_bias = nnx.Param(jnp.zeros((2, num_heads)))
    self.project, self.project_norm = linear(dim, dim), norm(dim)
    self.query, self.key_value = linear(dim, inside), linear(dim, 2 * inside)
    self.codebook = Codebook(num_centroids, dim, decay=decay, rngs=rngs)
    self.up, self.up_norm = linear(2 * inside, inside), norm(inside)
    self.down, self.down_norm = linear(inside, dim), norm(dim)
    self.head = linear(dim, schema.num_classes)
    self.num_heads, self.dropout_rate = num_heads, dropout_rate

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    in_key, up_key, down_key, draw_key = split(key, 4)
    h = dropout(jax.nn.relu(self.in_norm(self.encoder(graph))), self.dropout_rate, in_key)
    h = self.in_linear(h)
    p = self.project_norm(self.project(h))
    rows = slice(*graph.target_rows)
    out = jnp.concatenate([self.local(h, graph)[rows], self.to_codebook(p[rows])], axis=1)
    if key is not None:
      self.codebook.update(p, graph.row_mask, draw_key)
    out = dropout(jax.nn.relu(self.up_norm(self.up(out))), self.dropout_rate, up_key)
    out = dropout(jax.nn.relu(self.down_norm(self.down(out))), self.dropout_rate, down_key)
    return self.head(out)

  def local(self, h: Array, graph: HeteroGraph) -> Array:
    """Attention to the node and its incoming edges, [N, heads x width]."""
    heads = self.qkv(h).reshape(len(h), 3, self.num_heads, -1)
    q, k, v = heads[:, 0], heads[:, 1], heads[:, 2]
    messages = map(graph.message_rows, (k, v))
    around, lse, _ = edge_attention(q, *messages, graph.incoming, return_lse=True)
    degree = jnp.maximum(jnp.diff(graph.incoming.indptr), 1).astype(h.dtype)
    bias = self.hop_bias[...]
    own = jnp.sum(q * k, axis=-1) * q.shape[-1] ** -0.5 + bias[:1]
    share = jax.nn.sigmoid(own - (lse + bias[1:] - jnp.log(degree)[:, None]))[..., None]
    return (share * v + (1 - share) * around).reshape(len(h), -1)

  def to_codebook(self, p: Array) -> Array:
    """Attention to the centroids, [N_target, heads x width]."""
    centroids, log_counts = self.codebook.centroids()
    q = self.query(p).reshape(1, len(p), self.num_heads, -1)
    heads = self.key_value(centroids).reshape(1, len(centroids), 2, self.num_heads, -1)
    bias = log_counts[None, None, None, :]
    return attention(q, heads[:, :, 0], heads[:, :, 1], bias=bias).reshape(len(p), -1)
