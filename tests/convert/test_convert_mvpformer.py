"""The official names onto our tree, in small files of the exact format."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from h2g.convert import mvpformer
from h2g.errors import InputError
from h2g.models.mvpformer import MVPFormer
from h2g.nn.pure import pure

SMALL = dict(samples=16, dim=8, num_layers=2, num_heads=4, kv_heads=2, mlp_dim=12)
SMALL |= dict(max_length=5, max_channels=6, boundary="periodic")


def official(coefficients=22, layers=2):
  """Random tensors under the official names, [out, in]."""
  rng = np.random.default_rng(0)
  shapes = {
    **{"mvpformer.positional_embedding.weight": (5, 8), "mvpformer.ln_f.weight": (8,)},
    **{"mvpformer.channel_embedding.weight": (6, 8), "encoder.proj.weight": (8, coefficients)},
    **{"encoder.ln.weight": (coefficients,), "head.head.weight": (8, 8)},
  }
  block = {
    **{"ln_1.weight": (8,), "ln_2.weight": (8,), "attn.q_attn.weight": (8, 8)},
    **{"attn.c_attn.weight": (8, 8), "attn.position_net.weight": (4, 8)},
    **{"attn.channel_net.weight": (4, 8), "attn.c_proj.weight": (8, 8), "attn.attn_bias": (12,)},
    **{"mlp.gate_proj.weight": (12, 8), "mlp.up_proj.weight": (12, 8)},
    **{"mlp.down_proj.weight": (8, 12), "attn.time_bias": (1, 1, 5, 5), "attn.masked_bias": ()},
  }
  for i in range(layers):
    shapes |= {f"mvpformer.h.{i}.{name}": shape for name, shape in block.items()}
  return {k: np.asarray(rng.normal(size=shape), np.float32) for k, shape in shapes.items()}


@pytest.mark.slow
def test_a_base_checkpoint_fills_the_tree(tmp_path):
  built = pure(lambda rngs: MVPFormer(**SMALL, rngs=rngs))
  params, rest = jax.eval_shape(built.init, jax.random.key(0))
  tensors = official()
  save_file(tensors, tmp_path / "base.safetensors")
  found = mvpformer.load(tmp_path / "base.safetensors", params)
  attend = found["blocks"][1]["attention"]
  here = "mvpformer.h.1.attn."
  np.testing.assert_array_equal(attend["value"]["kernel"], tensors[here + "c_attn.weight"][4:].T)
  np.testing.assert_array_equal(attend["bias"][1, 1], tensors[here + "attn_bias"][6:8])
  np.testing.assert_array_equal(found["encoder"]["norm"]["scale"], 1)
  rest = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest)
  out = built.bind(found, rest)(jnp.ones((1, 3, 2, 16)))[1]
  assert np.isfinite(np.asarray(out)).all()


def test_another_architecture_names_the_tensors(tmp_path):
  built = pure(lambda rngs: MVPFormer(**SMALL, rngs=rngs))
  params, _ = jax.eval_shape(built.init, jax.random.key(0))
  np.savez(tmp_path / "base.npz", **official(coefficients=16, layers=3))
  with pytest.raises(InputError, match=r"base\.npz does not fit .*mvpformer\.h\.2\.") as error:
    mvpformer.load(tmp_path / "base.npz", params)
  assert "encoder.proj.weight (8, 16) for encoder/proj/kernel" in str(error.value)
