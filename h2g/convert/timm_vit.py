"""The plain vision transformers of timm (ViT, DeiT) onto `h2g.models.vit.ViT`.

Names: patch_embed.proj, cls_token, pos_embed, blocks.N.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1,
mlp.fc2}, norm, head. Ours has no position of the class token: theirs is added to it, the same sum.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from h2g.convert.names import fill
from h2g.convert.names import Rule
from h2g.convert.read import read
from h2g.errors import InputError


def _third(i: int):
  return lambda x: np.split(x, 3)[i].T


def _linear(theirs: str, ours: str) -> list[Rule]:
  """Of a linear layer: theirs is stored [out, in]."""
  return [Rule(rf"{theirs}\.weight", f"{ours}/kernel", np.transpose), _bias(theirs, ours)]


def _norm(theirs: str, ours: str) -> list[Rule]:
  return [Rule(rf"{theirs}\.weight", f"{ours}/scale"), _bias(theirs, ours)]


def _bias(theirs: str, ours: str) -> Rule:
  return Rule(rf"{theirs}\.bias", f"{ours}/bias")


BLOCK = r"blocks\.(\d+)\."
TABLE = [
  # [D, C, p, p] -> rows of a patch's pixels, channels last, as `patchify` lays them out.
  Rule(
    r"patch_embed\.proj\.weight",
    "to_tokens/kernel",
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
  ),
  _bias(r"patch_embed\.proj", "to_tokens"),
  Rule("cls_token", "class_token"),
  Rule("pos_embed", "positions", lambda x: x[0]),
  *_norm(BLOCK + "norm1", r"blocks/\1/norm"),
  *(
    Rule(rf"{BLOCK}attn\.qkv\.{theirs}", rf"blocks/\1/attention/{part}/{ours}", _third(i))
    for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    for i, part in enumerate(("query", "key", "value"))
  ),
  *_linear(BLOCK + r"attn\.proj", r"blocks/\1/attention/out"),
  *_norm(BLOCK + "norm2", r"blocks/\1/mlp_norm"),
  *_linear(BLOCK + r"mlp\.fc1", r"blocks/\1/mlp/up"),
  *_linear(BLOCK + r"mlp\.fc2", r"blocks/\1/mlp/down"),
  *_norm("norm", "norm"),
]


def load(path: str | Path, params: Any, *, grid: tuple[int, int], head: bool = False) -> Any:
  """Parameters of a `ViT` from a timm checkpoint.

  Args:
    path: .safetensors or .npz with timm's names.
    params: tree of a `ViT(class_token=True, learned_positions=True)`, arrays or shapes; with `head`
      {"vit": that, "head": a linear layer}.
    grid: rows and columns of patches of that ViT; positions of another grid are interpolated.
    head: whether the classifier is loaded too; otherwise it is left out.
  Returns:
    A tree like `params` of NumPy arrays.
  Raises:
    InputError: as `read` and `fill`; the positions are of no square grid.
  """
  tensors = with_grid(read(path), grid, source=path)
  if not head:
    return fill(params, tensors, [*TABLE, Rule(r"head\..*", None)], source=path)
  table = [rule._replace(path=f"vit/{rule.path}") for rule in TABLE]
  return fill(params, tensors, table + _linear("head", "head"), source=path)


def starting(init: Callable, checkpoint: str, config, *, at: str = "vit") -> Callable:
  """`init` (key -> (params, rest)) whose vision transformer comes from a checkpoint, where given.

  Args:
    init: of a network with a `ViT` at params[at], or of a `ViT` where `at` is empty.
    checkpoint: path of a timm checkpoint; empty: `init` as it is.
    config: image_size and patch, of that ViT.
    at: its name.
  """
  if not checkpoint:
    return init
  grid = (config.image_size // config.patch,) * 2
  shapes = jax.eval_shape(init, jax.random.key(0))[0]
  vit = load(checkpoint, shapes[at] if at else shapes, grid=grid)

  def start(key):
    params, rest = init(key)
    return params | {at: vit} if at else vit, rest

  return start


def with_grid(tensors: Mapping[str, np.ndarray], grid: tuple[int, int], *, source) -> dict:
  """The tensors with positions of patches alone, on the given grid.

  The class token's position, where there is one, is added to the class token. Another grid is
  reached by bicubic interpolation with antialiasing, as timm does.
  """
  tensors = dict(tensors)
  if "pos_embed" not in tensors or tensors["pos_embed"].ndim != 3:
    return tensors  # `fill` says what is wrong
  positions = np.asarray(tensors["pos_embed"], np.float32)
  side = math.isqrt(positions.shape[1])
  prefix = positions.shape[1] - side**2
  if prefix > 1:
    raise InputError(
      f"{source}: pos_embed {positions.shape} is no square grid, with or without a class token: "
      "the checkpoint is of another architecture (a distilled DeiT has two such tokens)"
    )
  if prefix and "cls_token" in tensors:
    tensors["cls_token"] = np.asarray(tensors["cls_token"], np.float32) + positions[:, :1]
  positions = positions[:, prefix:]
  if (side, side) != tuple(grid):
    on_grid = positions.reshape(1, side, side, -1)
    resized = jax.image.resize(on_grid, (1, *grid, on_grid.shape[-1]), "cubic")
    positions = np.asarray(resized).reshape(1, math.prod(grid), -1)
  return tensors | {"pos_embed": positions}
