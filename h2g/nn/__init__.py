"""Flax NNX modules that own parameters; the maths they call lives in `h2g.ops`."""

from h2g.nn.dropout import dropout as dropout
from h2g.nn.dropout import split as split
from h2g.nn.encoders import HeteroEncoder as HeteroEncoder
from h2g.nn.encoders import LabelEmbedding as LabelEmbedding
from h2g.nn.encoders import SharedEncoder as SharedEncoder
from h2g.nn.hetero_attention import CrossTypeAttention as CrossTypeAttention
from h2g.nn.hetero_attention import EdgeTypeAttention as EdgeTypeAttention
from h2g.nn.hetero_attention import relation_mass as relation_mass
from h2g.nn.residual import ConcatResidual as ConcatResidual
from h2g.nn.residual import FixedResidual as FixedResidual
from h2g.nn.residual import LearnedResidual as LearnedResidual
from h2g.nn.residual import NoResidual as NoResidual
from h2g.nn.typed import TypedBatchNorm as TypedBatchNorm
from h2g.nn.typed import TypedFFN as TypedFFN
from h2g.nn.typed import TypedLayerNorm as TypedLayerNorm
from h2g.nn.typed import TypedLinear as TypedLinear
