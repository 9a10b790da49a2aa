"""Pooling a set of tokens into one vector by attention."""

from h2g.ops.pool.api import multi_query_pool as multi_query_pool
from h2g.ops.pool.api import PoolOut as PoolOut
from h2g.ops.pool.api import queries_of_multi_head as queries_of_multi_head
