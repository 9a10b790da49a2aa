"""The heads of the official efficient-probing checkpoints onto `h2g.nn.pooling.AttentiveProbe`.

Names: head.0.v.weight [E, D], head.0.cls_token [1, Q, D], head.1.running_mean and running_var [E],
head.2.weight [classes, E] and bias. The encoder stands in the same file without the prefix.
"""

from pathlib import Path
from typing import Any

import numpy as np

from h2g.convert.names import fill
from h2g.convert.names import Rule
from h2g.convert.read import read
from h2g.errors import InputError

HEAD = "head."
TABLE = [
  Rule(r"head\.0\.v\.weight", "params/pool/values", np.transpose),
  Rule(r"head\.0\.cls_token", "params/pool/queries", lambda x: x[0]),
  Rule(r"head\.1\.running_(mean|var)", r"rest/norm/\1"),
  Rule(r"head\.1\.num_batches_tracked", None),
  Rule(r"head\.2\.weight", "params/classifier/kernel", np.transpose),
  Rule(r"head\.2\.bias", "params/classifier/bias"),
]


def load(path: str | Path, params: Any, rest: Any) -> tuple[Any, Any]:
  """(params, rest) of a probe with `EfficientProbing` from a published checkpoint.

  Args:
    path: .safetensors or .npz.
    params, rest: trees of the probe, arrays or shapes.
  Raises:
    InputError: as `read` and `fill`; the file has no head.
  """
  tensors = {name: value for name, value in read(path).items() if name.startswith(HEAD)}
  if not tensors:
    raise InputError(f"{path} holds no tensor {HEAD}*: it is an encoder without a probe's head")
  found = fill({"params": params, "rest": rest}, tensors, TABLE, source=path)
  return found["params"], found["rest"]
