"""Checkpoint files as dictionaries of NumPy arrays."""

from pathlib import Path

import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16 by name)
import numpy as np
import safetensors
from safetensors.numpy import load_file

from h2g.data import files
from h2g.errors import InputError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")


def read(path: str | Path) -> dict[str, np.ndarray]:
  """{name: array} of a .safetensors or .npz file.

  Args:
    path: the file; its suffix says which format.
  Raises:
    InputError: the file is missing or damaged, or a pickle (PyTorch's .pt, .pth, .bin): a pickle is
      a program, so it is refused; the message says how to export its tensors.
  """
  path = Path(path)
  if path.suffix in PICKLES:
    raise InputError(
      f"{path} is a pickle, which could run anything and is not read: where you trust it, export "
      "it with PyTorch, `safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
      "'out.safetensors')` (with ['model'] or ['state_dict'] after the load where the tensors are "
      "inside), and give that file"
    )
  if path.suffix == ".npz":
    return files.parse_npz(files.read_bytes(path), path)
  if path.suffix != ".safetensors":
    raise InputError(f"{path}: checkpoints are read from .safetensors and .npz files")
  if not path.is_file():
    raise InputError(f"{path} does not exist: give the path of a checkpoint")
  try:
    return load_file(path)
  except (safetensors.SafetensorError, *files.DAMAGED) as error:
    raise InputError(
      f"{path} is no readable safetensors file ({error}): it is truncated, fetch it again"
    ) from error
