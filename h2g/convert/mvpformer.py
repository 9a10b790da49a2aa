"""The published checkpoints of MVPFormer onto `h2g.models.mvpformer`.

Names: mvpformer.h.N.{ln_1, attn.{q_attn, c_attn, position_net, channel_net, c_proj, attn_bias},
mlp.{gate,up,down}_proj}, mvpformer.{positional,channel}_embedding, mvpformer.ln_f, encoder.proj,
head.head; with LoRA attn.{q_attn,c_attn}.lora_{A,B}. `ln_2` and the masks are never used and are
left out. The official loader sets the encoder's norm to ones, so that is done here too.

Source: `models/mvpformer.py`, `layers/mvpa.py` of IBM/multi-variate-parallel-transformer.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from h2g.convert.names import fill
from h2g.convert.names import Rule
from h2g.convert.read import read

BLOCK = r"mvpformer\.h\.(\d+)\."
ATTEND = BLOCK + r"attn\."


def _kernel(theirs: str, ours: str, half: int | None = None) -> Rule:
  """Theirs is stored [out, in]; `c_attn` holds keys and values below one another."""
  turn = lambda x: (x if half is None else np.split(x, 2)[half]).T
  return Rule(theirs + r"\.weight", f"{ours}/kernel", turn)


def table(groups: int) -> list[Rule]:
  """Of a generative model with this many key heads."""
  here = r"blocks/\1/attention/"
  return [
    Rule(r"mvpformer\.positional_embedding\.weight", "e_time"),
    Rule(r"mvpformer\.channel_embedding\.weight", "e_chan"),
    Rule(r"mvpformer\.ln_f\.weight", "norm/scale"),
    Rule(BLOCK + r"ln_1\.weight", r"blocks/\1/norm/scale"),
    Rule(BLOCK + r"ln_2\.weight", None),
    Rule(ATTEND + r"(time_bias|masked_bias)", None),
    _kernel(ATTEND + "q_attn", here + "query"),
    _kernel(ATTEND + "c_attn", here + "key", 0),
    _kernel(ATTEND + "c_attn", here + "value", 1),
    _kernel(ATTEND + "position_net", here + "time"),
    _kernel(ATTEND + "channel_net", here + "chan"),
    _kernel(ATTEND + "c_proj", here + "out"),
    Rule(ATTEND + "attn_bias", here + "bias", lambda x: x.reshape(3, groups, -1)),
    *(
      Rule(ATTEND + rf"{theirs}\.lora_{half}", f"{here}{ours}/lora_{half.lower()}", np.transpose)
      for theirs, ours in (("q_attn", "query"), ("c_attn", "value"))
      for half in "AB"
    ),
    *(_kernel(BLOCK + rf"mlp\.{name}_proj", rf"blocks/\1/mlp/{name}") for name in MLP),
    _kernel(r"encoder\.proj", "encoder/proj"),
    Rule(r"encoder\.ln\.weight", "encoder/norm/scale", np.ones_like),
    _kernel(r"head\.head", "head"),
  ]


MLP = ("gate", "up", "down")


def load(path: str | Path, params: Any) -> Any:
  """Parameters of an `MVPFormer(anchor="length", boundary="periodic")` from a `base` checkpoint.

  Args:
    path: .safetensors or .npz with the official names.
    params: tree of the MVPFormer, arrays or shapes.
  Returns:
    A tree like `params` of NumPy arrays.
  Raises:
    InputError: as `read` and `fill`.
  """
  tensors = dict(read(path))
  norm = params["encoder"]["norm"]["scale"]
  tensors.setdefault("encoder.ln.weight", np.ones(norm.shape, np.float32))
  groups = jax.tree.leaves(params["blocks"], is_leaf=lambda x: isinstance(x, dict) and "bias" in x)
  return fill(params, tensors, table(groups[0]["bias"].shape[1]), source=path)
