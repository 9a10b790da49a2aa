"""Flash attention over lists of tiles for Hopper, in Mosaic GPU: forward and backward.

Serves dense attention under any mask (`h2g.ops.attention`) and block-sparse attention
(`h2g.ops.sparse`): both say which tiles of keys each tile of queries meets (`block_lists.Lists`),
FULL tiles run without a mask and PARTIAL ones evaluate it on index tiles in registers.

Plan. A tile is `tile_q` queries by `tile_k` keys, 128 or 64 each. Every program has one warpgroup
per 64 rows, which computes, and one that only moves memory (TMA into a ring of `stages` slots).

  forward  one program per (head, tile of queries, batch entry): q stays in shared memory, o, m and
           l in registers; k and v stream through. The two computing warpgroups take turns at the
           tensor cores, so that one's exponentials hide behind the other's matmuls
           (arXiv 2407.08608 section 3.1).
  dq       the same, with q and do resident and 64 or 128 keys per step (registers).
  dk, dv   one program per (key head, tile of keys, batch entry): k and v resident, q, do, lse and
           delta stream by 64 queries, over all query heads of the key head. Logits are computed
           transposed, so that both products read their left operand from registers. No atomics: the
           same bits every time.
  dbias    one program per tile of the bias, over the batch entries and heads that share it.

On chip, at D = E = 128 in 16 bits: forward 32 KiB for q and 64 KiB per stage, of 227; dq 64 and 32
KiB per stage of 64 keys; dk, dv the same with queries and keys exchanged. Registers per thread of
the accumulators: forward 64 (o) + 64 (logits) + 32 (weights in 16 bits).

Cost. With A pairs of query and key in listed tiles: forward 2 A (D + E) flops, dq 2 A (2 D + E),
dk and dv 2 A (2 D + 2 E), dbias 2 A (D + E); bytes are those of q, k, v, o and of what the mask and
the bias hold, once per head, as long as k and v of a head fit the L2 cache. At D = 128 and a few
hundred keys per query the matmuls are the floor; at D = 64 exponentials are within a factor of 1.3
of them. Rates: not measured.

Axes: B batch, H heads, K key heads, T queries, S keys, D head width, E value width.
"""

from h2g.ops.flash_gpu.api import flash as flash
from h2g.ops.flash_gpu.call import Call as Call
from h2g.ops.flash_gpu.call import check as check
from h2g.ops.flash_gpu.call import Config as Config
from h2g.ops.flash_gpu.call import refuse as refuse
from h2g.ops.flash_gpu.call import ROWS as ROWS
