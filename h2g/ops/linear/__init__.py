"""Linear attention with decay (`decay_attention`) and feature maps (`feature_map_attention`)."""

from h2g.ops.linear.api import decay_attention
from h2g.ops.linear.api import decay_attention_step
from h2g.ops.linear.api import elu_plus_one
from h2g.ops.linear.api import feature_map_attention
from h2g.ops.linear.api import feature_map_attention_step
from h2g.ops.linear.api import IMPLEMENTATIONS
from h2g.ops.linear.api import lightning_decay
from h2g.ops.linear.api import LinearOut
from h2g.ops.linear.api import ORDER
from h2g.ops.linear.api import retention_decay

__all__ = [
  "IMPLEMENTATIONS",
  "ORDER",
  "LinearOut",
  "decay_attention",
  "decay_attention_step",
  "elu_plus_one",
  "feature_map_attention",
  "feature_map_attention_step",
  "lightning_decay",
  "retention_decay",
]
