"""The models of the benchmark: slug -> constructor `(schema, **settings, rngs=...)`.

Each is called `model(graph, visible=, key=) -> target logits`. Their settings stand in
configs/h2gb.py.
"""

from h2g import models

MODELS = {
  "h2g_former": models.h2g_former,
  "mlp": models.MLP,
  "gcn": models.gcn,
  "hgt": models.HGT,
}
