"""The transformer block and patches against plain NumPy."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.models.vit import ViT
from h2g.nn.patches import patchify
from h2g.nn.patches import sincos_2d
from h2g.nn.patches import unpatchify
from h2g.nn.transformer import Block


def norm(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def dense(block, x, context=None, query=None):
  """The block in float64, head by head."""
  linear = lambda layer, x: x @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])
  asking = norm(x if query is None else query)
  context = asking if context is None else norm(context)
  part = block.attention
  heads = lambda x: x.reshape(*x.shape[:2], part.num_heads, -1)
  q, k, v = (
    heads(linear(part.query, asking)),
    *(heads(linear(layer, context)) for layer in (part.key, part.value)),
  )
  scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  x = x + linear(part.out, np.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape))
  inside = linear(block.mlp.up, norm(x))
  return x + linear(block.mlp.down, np.float64(jax.nn.gelu(jnp.float32(inside), approximate=False)))


def test_a_block_is_its_equation_whoever_asks_whomever():
  block = Block(12, 3, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  x, other = rng.standard_normal((2, 2, 5, 12))
  call = jax.jit(lambda *args: block(*args))
  both = np.concatenate([x, other], 1)
  for args in [(x,), (x[:, :2], x), (x, both), (x[:, :1], x, other[:, :1])]:
    got = call(*(jnp.asarray(a, jnp.float32) for a in args))
    np.testing.assert_allclose(got, dense(block, *args), rtol=2e-5, atol=2e-5)


def test_stochastic_depth_skips_whole_examples():
  block = Block(12, 3, skip_rate=0.5, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 5, 12)), jnp.float32)
  got = block(x, key=jax.random.key(0))
  still = (got == x).all((1, 2))  # neither attention nor MLP: a quarter of the examples
  assert 5 < still.sum() < 30
  # Nothing is skipped in evaluation.
  assert not np.allclose(block(x), got) and not (block(x) == x).all((1, 2)).any()
  vit = ViT(
    image_size=8, patch=4, dim=12, num_layers=4, num_heads=3, skip_rate=0.2, rngs=nnx.Rngs(0)
  )
  np.testing.assert_allclose([block.skip_rate for block in vit.blocks], [0.05, 0.1, 0.15, 0.2])


def test_attention_can_be_replaced():
  block = Block(12, 3, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 12)), jnp.float32)
  mean = lambda q, k, v, **_: jnp.broadcast_to(v.mean(1, keepdims=True), q.shape)
  value = block.attention.value(block.norm(x)).mean(1, keepdims=True)
  y = x + block.attention.out(value)
  np.testing.assert_allclose(block(x, attend=mean), y + block.mlp(block.mlp_norm(y)), atol=1e-5)


def test_patches_and_back():
  images = jnp.arange(2 * 6 * 9 * 2.0).reshape(2, 6, 9, 2)
  patches = patchify(images, 3)
  assert patches.shape == (2, 6, 18)
  np.testing.assert_array_equal(patches[1, 4].reshape(3, 3, 2), images[1, 3:6, 3:6])
  np.testing.assert_array_equal(unpatchify(patches, 3, 6, 9), images)
  with pytest.raises(InputError, match="patch=4 does not divide images of 6 x 9"):
    patchify(images, 4)


def test_positions_tell_row_from_column():
  table = np.asarray(sincos_2d(3, 4, 8))
  assert table.shape == (12, 8) and len(np.unique(table, axis=0)) == 12
  np.testing.assert_allclose(table[5, :2], np.sin([1.0, 0.01]), rtol=1e-6)  # row 1, column 1
  np.testing.assert_allclose(table[5, 6:], np.cos([1.0, 0.01]), rtol=1e-6)
  with pytest.raises(InputError, match="multiple of 4"):
    sincos_2d(2, 2, 6)


def test_the_vision_transformer_is_its_parts():
  model = ViT(image_size=8, patch=4, channels=1, dim=8, num_layers=2, num_heads=2, rngs=nnx.Rngs(0))
  images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
  tokens = jax.jit(lambda images: model(images))(images)
  assert tokens.shape == (3, 5, 8)
  x = np.float64(model.with_class_token(model.embed(images)))
  for block in model.blocks:
    x = dense(block, x)
  np.testing.assert_allclose(tokens, norm(x), rtol=1e-4, atol=1e-4)
  assert "positions" not in nnx.to_pure_dict(nnx.state(model, nnx.Param))
