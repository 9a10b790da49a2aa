"""Cross-attention to a single key: each query takes the feature most similar to it."""

from h2g.ops.prototype.api import prototype_attention as prototype_attention
from h2g.ops.prototype.api import random_prototypes as random_prototypes
from h2g.ops.prototype.call import PrototypeOut as PrototypeOut
