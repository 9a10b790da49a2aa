"""Attention rollout: what tokens at the top gathered from those at the bottom, over all layers."""

from h2g.ops.rollout.api import attention_rollout as attention_rollout
from h2g.ops.rollout.api import rollout_row as rollout_row
