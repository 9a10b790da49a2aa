"""h2g: attention on heterogeneous things, in JAX.

Pure attention primitives (`h2g.ops`) compose into Flax modules (`h2g.nn`), networks (`h2g.models`)
and experiments that one trainer (`python -m h2g.train`) runs. WORKSPACE.md is the map.
"""

__version__ = "0.1.0"
