"""Attention and sums along the edges of a graph, read by receiver and by sender.

`edge_attention`: "xla", and a kernel per direction for Hopper ("mosaic_gpu") and TPU
("mosaic_tpu", by name only). `edge_sum`: "xla".
"""

from h2g.ops.edge.api import edge_attention as edge_attention
from h2g.ops.edge.api import edge_sum as edge_sum
from h2g.ops.edge.api import EdgeAttentionOut as EdgeAttentionOut
from h2g.ops.edge.index import build_edge_index as build_edge_index
from h2g.ops.edge.index import EdgeIndex as EdgeIndex
from h2g.ops.edge.index import indptr_of as indptr_of
