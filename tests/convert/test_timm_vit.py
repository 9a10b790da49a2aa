"""Checkpoints of timm's vision transformers: the same function, and what cannot be used."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from h2g.convert import read
from h2g.convert import timm_vit
from h2g.errors import InputError
from h2g.models.vit import ViT
from h2g.nn.pure import pure

DIM, HEADS, PATCH, SIDE, CLASSES = 12, 3, 4, 3, 5


class Network(nnx.Module):
  """A ViT with a classifier on its class token."""

  def __init__(self, side=SIDE, layers=2, *, rngs):
    settings = dict(image_size=side * PATCH, patch=PATCH, dim=DIM, num_heads=HEADS)
    self.vit = ViT(**settings, num_layers=layers, learned_positions=True, rngs=rngs)
    self.head = nnx.Linear(DIM, CLASSES, rngs=rngs)


def tensors(layers=2, side=SIDE):
  """Random weights under timm's names."""
  rng = np.random.default_rng(0)
  shapes = {
    "cls_token": (1, 1, DIM),
    "pos_embed": (1, 1 + side**2, DIM),
    "patch_embed.proj.weight": (DIM, 3, PATCH, PATCH),
    "patch_embed.proj.bias": (DIM,),
    "norm.weight": (DIM,),
    "norm.bias": (DIM,),
    "head.weight": (CLASSES, DIM),
    "head.bias": (CLASSES,),
  }
  sizes = {"attn.qkv": 3 * DIM, "attn.proj": DIM, "mlp.fc1": 4 * DIM, "mlp.fc2": DIM}
  for n in range(layers):
    for norm in ("norm1", "norm2"):
      shapes |= {f"blocks.{n}.{norm}.{part}": (DIM,) for part in ("weight", "bias")}
    for name, out in sizes.items():
      shapes[f"blocks.{n}.{name}.weight"] = out, (4 * DIM if name == "mlp.fc2" else DIM)
      shapes[f"blocks.{n}.{name}.bias"] = (out,)
  scaled = lambda shape: rng.normal(0, 0.3, shape).astype(np.float32)
  return {name: scaled(shape) for name, shape in shapes.items()}


def forward(w, images):
  """timm's ViT in NumPy float64, images [B, 3, height, width]: (tokens, logits)."""
  w = {name: value.astype(np.float64) for name, value in w.items()}
  erf = np.vectorize(math.erf)

  def linear(x, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]

  b = len(images)
  tokens = [
    np.einsum("bchw,dchw->bd", images[:, :, i : i + PATCH, j : j + PATCH],
              w["patch_embed.proj.weight"]) + w["patch_embed.proj.bias"]
    for i in range(0, images.shape[2], PATCH)
    for j in range(0, images.shape[3], PATCH)
  ]  # fmt: skip
  x = np.concatenate([np.repeat(w["cls_token"], b, 0), np.stack(tokens, 1)], 1) + w["pos_embed"]
  n = 0
  while f"blocks.{n}.norm1.weight" in w:
    name = f"blocks.{n}"
    qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").reshape(
      b, -1, 3, HEADS, DIM // HEADS
    )
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(DIM // HEADS))
    out = (scores / scores.sum(-1, keepdims=True)) @ v
    x = x + linear(out.swapaxes(1, 2).reshape(x.shape), f"{name}.attn.proj")
    h = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
    x = x + linear(h * 0.5 * (1 + erf(h / np.sqrt(2))), f"{name}.mlp.fc2")
    n += 1
  x = norm(x, "norm")
  return x, linear(x[:, 0], "head")


def network(**settings):
  model = pure(lambda rngs: Network(**settings, rngs=rngs))
  params, rest = jax.eval_shape(model.init, jax.random.key(0))
  return model, params, rest


@pytest.mark.smoke
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_checkpoint_is_the_same_function(tmp_path, suffix):
  weights, path = tensors(), tmp_path / f"vit.{suffix}"
  if suffix == "npz":
    np.savez(path, **weights)
  else:
    save_file(weights, path)
  model, params, _ = network()
  params = timm_vit.load(path, params, grid=(SIDE, SIDE), head=True)
  images = np.random.default_rng(1).normal(size=(2, 3, SIDE * PATCH, SIDE * PATCH))
  want, logits = forward(weights, images)
  module = model.bind(params, {})
  got = module.vit(jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32))
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(module.head(got[:, 0]), logits, atol=1e-5)


def test_positions_move_to_another_grid(tmp_path):
  weights, path = tensors(side=2), tmp_path / "vit.safetensors"
  save_file(weights, path)
  _, params, _ = network(side=5)
  got = timm_vit.load(path, params["vit"], grid=(5, 5))
  assert got["positions"].shape == (25, DIM)
  torch = pytest.importorskip("torch")
  for side, to in ((2, 5), (6, 3)):  # larger, and smaller with antialiasing
    theirs = tensors(side=side)["pos_embed"]
    grid = torch.tensor(theirs[:, 1:].reshape(1, side, side, DIM)).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid, size=(to, to), mode="bicubic", antialias=True)
    ours = timm_vit.with_grid({"pos_embed": theirs}, (to, to), source="")["pos_embed"]
    np.testing.assert_allclose(ours[0], want.permute(0, 2, 3, 1).reshape(-1, DIM), atol=1e-5)


def test_half_precision_becomes_ours(tmp_path):
  path = tmp_path / "vit.safetensors"
  save_file({name: value.astype(ml_dtypes.bfloat16) for name, value in tensors().items()}, path)
  _, params, _ = network()
  got = timm_vit.load(path, params["vit"], grid=(SIDE, SIDE))
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
  np.testing.assert_allclose(got["norm"]["scale"], tensors()["norm.weight"], rtol=1e-2)


def test_another_architecture_is_told_in_one_error(tmp_path):
  weights, path = tensors(layers=3), tmp_path / "other.safetensors"
  del weights["norm.bias"]
  weights["blocks.0.mlp.fc1.weight"] = np.zeros((3, DIM), np.float32)
  weights["blocks.1.attn.qkv.weight"] = np.zeros((DIM + 1, DIM), np.float32)
  save_file(weights, path)
  _, params, _ = network()
  with pytest.raises(InputError) as error:
    timm_vit.load(path, params["vit"], grid=(SIDE, SIDE))
  message = str(error.value)
  assert message.startswith(f"{path} does not fit this network: missing: 1, norm/bias (12,);")
  assert "unexpected: 12, blocks.2.attn.proj.bias (12,)" in message and "and 4 more" in message
  assert "blocks.0.mlp.fc1.weight (3, 12) for blocks/0/mlp/up/kernel (12, 48)" in message
  assert "blocks.1.attn.qkv.weight (13, 12) for blocks/1/attention/query/kernel" in message
  assert "\n" not in message


@pytest.mark.parametrize(
  "name, content, message",
  [
    (
      "deit.pth",
      b"",
      "deit.pth is a pickle.* export it with PyTorch, `safetensors.torch.save_file",
    ),
    ("pytorch_model.bin", b"", "pytorch_model.bin is a pickle"),
    ("vit.h5", b"", "are read from .safetensors and .npz"),
    ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "cut.safetensors is no readable safetensors file"),
    ("cut.npz", b"PK", "cut.npz is no readable .npz"),
    ("none.safetensors", None, "none.safetensors does not exist"),
  ],
)
def test_files_that_are_not_read(tmp_path, name, content, message):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match=message):
    read(path)


def test_a_pickle_in_an_archive_of_arrays_is_not_loaded(tmp_path):
  path = tmp_path / "objects.npz"
  np.savez(path, a=np.array([print], object))
  with pytest.raises(InputError, match="never unpickled"):
    read(path)


def test_positions_of_no_square_grid_are_named(tmp_path):
  weights, path = tensors(), tmp_path / "distilled.npz"
  weights["pos_embed"] = np.zeros((1, 2 + SIDE**2, DIM), np.float32)
  np.savez(path, **weights)
  with pytest.raises(InputError, match=r"distilled.npz: pos_embed \(1, 11, 12\) is no square grid"):
    timm_vit.load(path, network()[1]["vit"], grid=(SIDE, SIDE))
