"""What to keep of a KV cache, and attention over what was kept.

  scores = cache.window_mass(q[:, -32:], k)             # what matters: one number per row and head
  budget = cache.adaptive_budgets(scores, 512)          # how much each head may keep
  kept = cache.keep(scores, budget, capacity=1024)      # which rows: ids, ascending, and counts
  small = cache.compact(cache.fill(k, v), kept)         # a KVCache of those rows
  out = cache.decode_attention(q_t, small.k, small.v, small.lengths)

A paper about eviction is a scoring function, a budget, or both.
"""

from h2g.ops.cache.api import decode_attention
from h2g.ops.cache.api import DecodeOut
from h2g.ops.cache.api import IMPLEMENTATIONS
from h2g.ops.cache.api import ORDER
from h2g.ops.cache.budgets import adaptive_budgets
from h2g.ops.cache.budgets import apportion
from h2g.ops.cache.budgets import pyramid_budgets
from h2g.ops.cache.budgets import uniform_budgets
from h2g.ops.cache.scores import accumulated_mass
from h2g.ops.cache.scores import key_norm
from h2g.ops.cache.scores import recency
from h2g.ops.cache.scores import sink_recent
from h2g.ops.cache.scores import window_mass
from h2g.ops.cache.state import append
from h2g.ops.cache.state import compact
from h2g.ops.cache.state import empty
from h2g.ops.cache.state import fill
from h2g.ops.cache.state import gather
from h2g.ops.cache.state import keep
from h2g.ops.cache.state import Kept
from h2g.ops.cache.state import KVCache

__all__ = [
  "IMPLEMENTATIONS",
  "ORDER",
  "DecodeOut",
  "KVCache",
  "Kept",
  "accumulated_mass",
  "adaptive_budgets",
  "append",
  "apportion",
  "compact",
  "decode_attention",
  "empty",
  "fill",
  "gather",
  "keep",
  "key_norm",
  "pyramid_budgets",
  "recency",
  "sink_recent",
  "uniform_budgets",
  "window_mass",
]
