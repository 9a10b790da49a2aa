"""Operations: pure functions on arrays, each with a definition and several implementations.

  masks       which query may attend to which key: an algebra of predicates
  attention   dense softmax attention, with bias, hooks and statistics
  sparse      attention over lists of blocks
  linear      decay and feature-map attention with explicit state
  edge        attention along the edges of a graph
  typed       one linear map per node or edge type
  cache       what to keep of a KV cache, and decoding from it

Each folder holds `api.py` (signature, checks, choice), `reference.py` (the definition), `xla.py`
(fast anywhere) and kernels named by engine (`cudnn`, `mosaic_gpu`, `mosaic_tpu`).
`implementation=None` takes the best that is exact for the call; a name means that one, or an error
that says why.

# Extend a primitive

**A new mask** is a function of indices. Blocks that it leaves empty are skipped once it is
tabulated, and it combines with every other mask:

>>> import jax, jax.numpy as jnp
>>> from h2g.ops import masks
>>> from h2g.ops.attention import attention
>>> def dilated(step):
...   return masks.function(lambda query, key, head, batch: (query - key) % step == 0)
>>> mask = masks.causal() & dilated(2)
>>> print(mask.dense(4, 4)[0, 0].astype(int))
[[1 0 0 0]
 [0 1 0 0]
 [1 0 1 0]
 [0 1 0 1]]
>>> keys = jax.random.split(jax.random.key(0), 3)
>>> q, k, v = (jax.random.normal(key, (1, 4, 2, 8)) for key in keys)
>>> attention(q, k, v, mask=mask.tabulated(4, 4, 2, 2)).shape
(1, 4, 2, 8)

**A new logits hook** is an elementwise function `(logits, indices, *arrays) -> logits`,
differentiable in its arrays. Distance decay with a learned slope per head (arXiv 2108.12409):

>>> def alibi(logits, indices, slopes):
...   distance = jnp.abs(indices.query - indices.key).astype(logits.dtype)
...   return logits - slopes[indices.head] * distance
>>> def loss(slopes):
...   return attention(q, k, v, logits_fn=alibi, logits_args=(slopes,)).sum()
>>> jax.grad(loss)(jnp.ones(2)).shape
(2,)

**A new operation** is a function per implementation and an order of preference per platform;
an implementation that cannot serve a call exactly raises NotImplementedError, and the next one is
asked. Root-mean-square normalisation:

>>> from h2g.ops import dispatch
>>> def reference(x):
...   return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))
>>> def kernel(x):
...   dispatch.require("mosaic_tpu", "tpu")  # a Pallas kernel would follow here
>>> IMPLEMENTATIONS = dict(reference=reference, mosaic_tpu=kernel)
>>> ORDER = dict(cpu=("reference",), gpu=("reference",), tpu=("mosaic_tpu", "reference"))
>>> def rms_norm(x, *, implementation=None):
...   return dispatch.choose("rms_norm", IMPLEMENTATIONS, ORDER, implementation, x)
>>> print(rms_norm(jnp.array([[1.0, 7.0]])))
[[0.2 1.4]]
>>> rms_norm(jnp.ones((1, 2)), implementation="mosaic_tpu")
Traceback (most recent call last):
  ...
NotImplementedError: mosaic_tpu serves tpu, and this platform is cpu

Its test is one call of `tests/ops/contract.py` per implementation.
"""
