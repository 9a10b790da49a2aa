"""Poolings: many tokens to one vector, all behind one call, and the probe that scores a frozen
encoder with them.

Every pooling is `Name(dim, num_maps, rngs=)` and `name(x [B, N, D]) -> PoolOut(out [B, E], weights
[B, M, N])`, M maps over the tokens that each sum to one. `num_maps` is the number of queries, or of
heads where a pooling has heads; those with a single map take no notice of it.
"""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.nn.pure import pure
from h2g.nn.transformer import MLP
from h2g.nn.transformer import MultiHeadAttention
from h2g.ops.pool import multi_query_pool
from h2g.ops.pool import PoolOut
from h2g.ops.pool import queries_of_multi_head

EPSILON = 1e-6


class MeanPool(nnx.Module):
  """The mean over tokens: linear probing, of the patches or (the only token given) the class."""

  def __init__(self, dim: int, num_maps: int = 1, *, rngs: nnx.Rngs):
    del num_maps, rngs
    self.out_dim = dim

  def __call__(self, x: Array) -> PoolOut:
    weights = jnp.full((x.shape[0], 1, x.shape[1]), 1 / x.shape[1], jnp.float32)
    return PoolOut(x.mean(1), weights)


class EfficientProbing(nnx.Module):
  """Q free queries look at raw tokens, each owns a slice of one value projection.

  Nothing else: no projection of queries, keys or the output, no norm, no bias.
  Source: arXiv 2506.10178 sec. 3; queries N(0, 0.02^2).
  """

  def __init__(self, dim: int, num_maps: int = 32, *, d_out: int = 1, rngs: nnx.Rngs):
    """num_maps: Q. d_out: the output is dim / d_out wide; Q must divide that."""
    self.out_dim = dim // d_out
    if dim % d_out or self.out_dim % num_maps:
      raise InputError(
        f"{num_maps} queries share an output of width {dim} / {d_out} in equal slices: choose "
        "numbers that divide"
      )
    self.queries = nnx.Param(0.02 * jax.random.normal(rngs.params(), (num_maps, dim)))
    self.values = nnx.Param(_uniform(rngs, dim, self.out_dim))

  def __call__(self, x: Array) -> PoolOut:
    return multi_query_pool(x, self.queries[...], self.values[...])


class MultiHeadPool(nnx.Module):
  """Multi-head cross-attention with one learned input vector u: what efficient probing reduces.

  With queries, keys, values and output projected, as in arXiv 1706.03762.
  """

  def __init__(self, dim: int, num_maps: int = 12, *, rngs: nnx.Rngs):
    self.out_dim = dim
    self.u = nnx.Param(0.02 * jax.random.normal(rngs.params(), (dim,)))
    self.attention = MultiHeadAttention(dim, num_maps, use_bias=False, rngs=rngs)

  def __call__(self, x: Array) -> PoolOut:
    part = self.attention
    u = jnp.broadcast_to(self.u[...], (len(x), 1, self.out_dim))
    query, keys = part.heads(part.query(u))[:, 0], part.heads(part.key(x))
    out, weights = _attend(query, keys, part.heads(part.value(x)))
    return PoolOut(part.out(out.reshape(len(x), -1)), weights)


def mhca_to_mqca(params: dict, num_heads: int) -> dict:
  """Parameters of `EfficientProbing` with the maps, and the output before W_o, of `MultiHeadPool`.

  Args:
    params: of a `MultiHeadPool` as `h2g.nn.pure` gives them. num_heads: its heads.
  Source: arXiv 2506.10178 sec. 3, the redundancy of the two projections.
  """
  kernel = lambda name: params["attention"][name]["kernel"]
  queries = queries_of_multi_head(params["u"], kernel("query"), kernel("key"), num_heads)
  return {"queries": queries, "values": kernel("value")}


def conversion_error(dim: int, num_heads: int) -> float:
  """Largest difference of a random multi-head pooling from its conversion, in maps and output.

  On 16 sets of 64 random tokens `dim` wide. That the two are one function is what efficient
  probing rests on: only rounding may be left.
  """
  mhca = pure(lambda rngs: MultiHeadPool(dim, num_heads, rngs=rngs))
  ours = pure(lambda rngs: EfficientProbing(dim, num_heads, rngs=rngs))
  params, rest = mhca.init(jax.random.key(0))
  params["u"] = jax.random.normal(jax.random.key(1), (dim,))  # maps that are far from uniform
  x = jax.random.normal(jax.random.key(2), (16, 64, dim))
  one, other = mhca.bind(params, rest)(x), ours.bind(mhca_to_mqca(params, num_heads), {})(x)
  out = other.out @ params["attention"]["out"]["kernel"]
  return float(max(abs(other.weights - one.weights).max(), abs(out - one.out).max()))


class AbMILP(nnx.Module):
  """One head of self-attention over tokens, then softmax_n(w tanh(W y_n)) weighs what came out.

  Source: arXiv 2004.07187 (self-attention), 1802.04712 (attention-based multiple instances).
  """

  def __init__(self, dim: int, num_maps: int = 1, *, rngs: nnx.Rngs):
    del num_maps
    self.out_dim = dim
    self.attention = MultiHeadAttention(dim, 1, rngs=rngs)
    self.hidden, self.score = nnx.Linear(dim, dim, rngs=rngs), nnx.Linear(dim, 1, rngs=rngs)

  def __call__(self, x: Array) -> PoolOut:
    y = self.attention(x)
    weights = jax.nn.softmax(self.score(jnp.tanh(self.hidden(y)))[..., 0], axis=-1)
    return PoolOut(jnp.einsum("bn,bnd->bd", weights, y), weights[:, None])


class SimPool(nnx.Module):
  """softmax_n(<W_q mean(x), W_k LN(x_n)> / sqrt(D)) weighs LN(x_n): one map, no values.

  Source: arXiv 2309.06891.
  """

  def __init__(self, dim: int, num_maps: int = 1, *, rngs: nnx.Rngs):
    del num_maps
    self.out_dim = dim
    self.query, self.key = (nnx.Linear(dim, dim, use_bias=False, rngs=rngs) for _ in range(2))
    self.norm = nnx.LayerNorm(dim, epsilon=EPSILON, rngs=rngs)

  def __call__(self, x: Array) -> PoolOut:
    y = self.norm(x)
    out, weights = _attend(self.query(x.mean(1))[:, None], self.key(y)[:, :, None], y[:, :, None])
    return PoolOut(out[:, 0], weights)


class AIMPool(nnx.Module):
  """A learned query, H heads; keys and values are projected from tokens after BatchNorm.

  Source: arXiv 2401.08541; one query, so no mean over queries is left to take.
  """

  def __init__(self, dim: int, num_maps: int = 12, *, rngs: nnx.Rngs):
    self.out_dim = dim
    self.attention = MultiHeadAttention(dim, num_maps, use_bias=False, rngs=rngs)
    del self.attention.query, self.attention.out  # not of this pooling
    self.query = nnx.Param(0.02 * jax.random.normal(rngs.params(), (dim,)))
    self.norm = batch_norm(dim, rngs)

  def __call__(self, x: Array) -> PoolOut:
    part, y = self.attention, self.norm(x)
    query = part.heads(jnp.broadcast_to(self.query[...], (len(x), self.out_dim)))
    out, weights = _attend(query, part.heads(part.key(y)), part.heads(part.value(y)))
    return PoolOut(out.reshape(len(x), -1), weights)


class JEPAPool(nnx.Module):
  """A whole cross-attention block: q + MHA(q, LN(x)), then + MLP(LN(.)), with all biases.

  Source: arXiv 2404.08471 (the attentive probe of V-JEPA); query truncated N(0, 0.02^2).
  """

  def __init__(self, dim: int, num_maps: int = 12, *, rngs: nnx.Rngs):
    self.out_dim = dim
    self.query = nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), (dim,)))
    self.attention = MultiHeadAttention(dim, num_maps, rngs=rngs)
    self.norm = nnx.LayerNorm(dim, epsilon=EPSILON, rngs=rngs)
    self.mlp_norm = nnx.LayerNorm(dim, epsilon=EPSILON, rngs=rngs)
    self.mlp = MLP(dim, rngs=rngs)

  def __call__(self, x: Array) -> PoolOut:
    part, y = self.attention, self.norm(x)
    q = jnp.broadcast_to(self.query[...], (len(x), self.out_dim))
    out, weights = _attend(
      part.heads(part.query(q)), part.heads(part.key(y)), part.heads(part.value(y))
    )
    q = q + part.out(out.reshape(len(x), -1))
    return PoolOut(q + self.mlp(self.mlp_norm(q)), weights)


POOLINGS = {
  "gap": MeanPool,
  "cls": MeanPool,  # of the class token alone, which the probe picks
  "ep": EfficientProbing,
  "mhca": MultiHeadPool,
  "abmilp": AbMILP,
  "simpool": SimPool,
  "aim": AIMPool,
  "jepa": JEPAPool,
}


class AttentiveProbe(nnx.Module):
  """A pooling, BatchNorm without scale and shift, a linear classifier.

  Which tokens are pooled: "patches" (the default), "class" (the first alone), "all".
  """

  def __init__(self, pool: nnx.Module, num_classes: int, *, tokens="patches", rngs: nnx.Rngs):
    """tokens: of those given, the class token first, which are pooled."""
    if tokens not in ("patches", "class", "all"):
      raise InputError(f"tokens={tokens!r} is unknown: choose patches, class or all")
    self.pool, self.tokens = pool, tokens
    self.norm = batch_norm(pool.out_dim, rngs)
    init = nnx.initializers.truncated_normal(0.01)
    self.classifier = nnx.Linear(pool.out_dim, num_classes, kernel_init=init, rngs=rngs)

  def pooled(self, x: Array) -> PoolOut:
    """The pooling of the chosen tokens of x [B, 1 + N, D]."""
    cut = {"patches": slice(1, None), "class": slice(0, 1), "all": slice(None)}[self.tokens]
    return self.pool(x[:, cut])

  def __call__(self, x: Array) -> Array:
    """[B, 1 + N, D] -> logits [B, classes]; BatchNorm follows the mode (`train()`, `eval()`)."""
    return self.classifier(self.norm(self.pooled(x).out))


def probe_of(
  dim: int, *, pool: str, queries: int, num_classes: int, d_out: int, tokens: str, rngs: nnx.Rngs
) -> AttentiveProbe:
  """The probe with a pooling of POOLINGS; InputError where there is none of that name.

  Args:
    dim: width of the tokens.
    pool: the pooling; "cls" pools the class token, whatever `tokens` says.
    queries: maps of the pooling. d_out: of `EfficientProbing`. num_classes, tokens: of the probe.
  """
  if pool not in POOLINGS:
    raise InputError(f"config.probe.pool={pool!r} is unknown: choose from {', '.join(POOLINGS)}")
  options = {"d_out": d_out} if pool == "ep" else {}
  made = POOLINGS[pool](dim, queries, **options, rngs=rngs)
  return AttentiveProbe(made, num_classes, tokens="class" if pool == "cls" else tokens, rngs=rngs)


def batch_norm(dim: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
  """Without scale and shift; running statistics move by a tenth a step."""
  return nnx.BatchNorm(
    dim, momentum=0.9, epsilon=EPSILON, use_bias=False, use_scale=False, rngs=rngs
  )


def _attend(query: Array, keys: Array, values: Array) -> PoolOut:
  """One query per head: query [B, H, d], keys [B, N, H, d], values [B, N, H, e] -> [B, H, e]."""
  scores = jnp.einsum("bhd,bnhd->bhn", query, keys) / keys.shape[-1] ** 0.5
  weights = jax.nn.softmax(scores, axis=-1)
  return PoolOut(jnp.einsum("bhn,bnhe->bhe", weights, values), weights)


def _uniform(rngs: nnx.Rngs, rows: int, columns: int) -> Array:
  """Within +-1 / sqrt(rows), as linear layers start in the official code."""
  return jax.random.uniform(rngs.params(), (rows, columns), minval=-1, maxval=1) * rows**-0.5
