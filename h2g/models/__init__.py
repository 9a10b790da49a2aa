"""Whole networks. Those for graphs share one call: model(graph, visible=, key=) -> target
logits."""

from h2g.models.hgt import HGT as HGT
from h2g.models.homogeneous import gcn as gcn
from h2g.models.homogeneous import Homogeneous as Homogeneous
from h2g.models.mlp import MLP as MLP
from h2g.models.unified_gt import h2g_former as h2g_former
from h2g.models.unified_gt import UnifiedGT as UnifiedGT
