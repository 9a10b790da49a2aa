"""GloGNN: every node reads every node through a coefficient matrix in closed form."""

from collections.abc import Mapping

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
from h2g.nn.conv import AdjacencyMap
from h2g.nn.conv import propagate


class GloGNN(Baseline):
  """H_0 = MLP(delta (h W + b) + (1 - delta) (A W_A + b)), [N, C]; per round
    H <- (1 - gamma) Z H + gamma H_0
    Z = [(1 - gamma) H H' + beta sum_k lambda_k S^k - gamma (1 - gamma) H_0 H'] M^-1
    M = (1 - gamma)^2 H H' + (alpha + beta) I

  Z, [N, N], is never built: by the Woodbury identity only a C x C system is solved. lambda is
  learned, S as in `GCNConv` (the H2GB code: the bare A). Padded nodes are left out of the sums over
  all nodes. `num_nodes` counts the nodes of the whole graph per type.
  Source: arXiv 2205.07308 eq. 3-11; defaults of H2GB.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    num_nodes: Mapping[str, int],
    dim: int = 64,
    num_rounds: int = 1,
    orders: int = 3,
    alpha: float = 0.0,
    beta: float = 1.0,
    gamma: float = 0.6,
    delta: float = 0.5,
    dropout_rate: float = 0.2,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.features = nnx.Linear(dim, dim, rngs=rngs)
    self.adjacency = AdjacencyMap(schema, dim, num_nodes=num_nodes, rngs=rngs)
    self.hidden = nnx.Linear(dim, dim, rngs=rngs)
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.order_weight = nnx.Param(jnp.full(orders, 1.0 / orders))
    self.num_rounds, self.dropout_rate = num_rounds, dropout_rate
    self.alpha, self.beta, self.gamma, self.delta = alpha, beta, gamma, delta

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    first_key, second_key = split(key, 2)
    h = self.features(self.encoder(graph))
    h = self.delta * h + (1.0 - self.delta) * self.adjacency(graph)
    h = dropout(jax.nn.relu(h), self.dropout_rate, first_key)
    h = dropout(jax.nn.relu(self.hidden(h)), self.dropout_rate, second_key)
    real = jnp.concatenate([graph.nodes[name].mask for name in graph.schema.node_types])
    start = h = jnp.where(real[:, None], self.head(h), 0.0)
    for _ in range(self.num_rounds):
      h = self.read_all(h, start, graph)
    begin, end = graph.target_rows
    return h[begin:end]

  def read_all(self, h: Array, start: Array, graph: HeteroGraph) -> Array:
    """(1 - gamma) Z H + gamma H_0."""
    keep, ridge = 1.0 - self.gamma, self.alpha + self.beta
    gram = h.T @ h
    system = jnp.eye(h.shape[1], dtype=h.dtype) / keep**2 + gram / ridge
    # (1 - gamma) M^-1 H
    solved = keep / ridge * (h - h @ jnp.linalg.solve(system, gram) / ridge)
    orders, travelled = 0.0, solved
    for weight in self.order_weight[...]:
      travelled = propagate(travelled, graph)
      orders = orders + weight * travelled
    inner = h.T @ solved
    return keep * h @ inner + self.beta * orders + self.gamma * (start - keep * start @ inner)
