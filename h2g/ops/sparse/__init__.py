"""Block-sparse attention (`block_sparse_attention`, `selected_block_attention`) and its tables."""

from h2g.ops.sparse.api import block_sparse_attention
from h2g.ops.sparse.api import IMPLEMENTATIONS
from h2g.ops.sparse.api import ORDER
from h2g.ops.sparse.api import selected_block_attention
from h2g.ops.sparse.api import SparseOut
from h2g.ops.sparse.tables import BlockLists
from h2g.ops.sparse.tables import dilated_table
from h2g.ops.sparse.tables import document_table
from h2g.ops.sparse.tables import from_dense
from h2g.ops.sparse.tables import global_table
from h2g.ops.sparse.tables import intersection
from h2g.ops.sparse.tables import pooled_scores
from h2g.ops.sparse.tables import to_dense
from h2g.ops.sparse.tables import top_k_table
from h2g.ops.sparse.tables import union
from h2g.ops.sparse.tables import window_table

__all__ = [
  "IMPLEMENTATIONS",
  "ORDER",
  "BlockLists",
  "SparseOut",
  "block_sparse_attention",
  "dilated_table",
  "document_table",
  "from_dense",
  "global_table",
  "intersection",
  "pooled_scores",
  "selected_block_attention",
  "to_dense",
  "top_k_table",
  "union",
  "window_table",
]
