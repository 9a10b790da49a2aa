"""MVPFormer: a decoder over segments x channels of a signal, and the attentions beside MVPA.

Recordings differ in their channels, so nothing positional is added to the tokens: attention reads
lag and channel distance from two tables that all layers share.
"""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.models.decoder import FeedForward
from h2g.models.decoder import linear
from h2g.nn.dropout import dropout
from h2g.nn.dropout import split
from h2g.nn.lora import LoRADense
from h2g.nn.rotary import RMSNorm
from h2g.nn.wavelets import WaveEncoder
from h2g.ops.mvpa import mvpa

ATTENTIONS = ("mvpa", "vanilla", "axial", "independent")
ANCHORS = ("length", "zero")


class MVPAttention(nnx.Module):
  """Multi-variate parallel attention with its projections, or one without relative terms.

  `mvpa` has the terms that are switched on; `vanilla` is plain attention over all segments and
  channels, `axial` over time and then over channels, `independent` over time alone. All but `mvpa`
  need what says where a token stands to be in the tokens.

  Axes: B batch, T segments, C channels, D width.
  Source: arXiv 2506.20354; `layers/mvpa.py` of its code.
  """

  def __init__(
    self,
    dim: int,
    num_heads: int,
    kv_heads: int,
    *,
    kind: str = "mvpa",
    window: int = 10,
    time_term: bool = True,
    channel_term: bool = True,
    lora_rank: int = 0,
    scale: float = 0.02,
    rate: float = 0.0,
    rngs: nnx.Rngs,
  ):
    width = dim // num_heads
    wide = lambda rank=0: LoRADense(dim, kv_heads * width, rank=rank, scale=scale, rngs=rngs)
    self.query = LoRADense(dim, dim, rank=lora_rank, scale=scale, rngs=rngs)
    self.key, self.value = wide(), wide(lora_rank)
    self.out = linear(dim, dim, rngs, scale)
    relative = kind == "mvpa"
    self.time = wide() if relative and time_term else None
    self.chan = wide() if relative and channel_term else None
    shape = (3, kv_heads, width)
    self.bias = nnx.Param(scale * jax.random.normal(rngs.params(), shape)) if relative else None
    self.kind, self.window, self.width, self.rate = kind, window, width, rate

  def __call__(self, x: Array, e_time: Array, e_chan: Array, key_mask=None, *, key=None) -> Array:
    """[B, T, C, D] from x [B, T, C, D], e_time [T, D], e_chan [C, D] or [B, C, D]."""
    heads = lambda y: y.reshape(*y.shape[:-1], -1, self.width)
    q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
    if self.kind in ("axial", "independent"):
      batch, length, channels = x.shape[:3]
      turn = lambda y: jnp.swapaxes(y, 1, 2).reshape(batch * channels, length, 1, *y.shape[3:])
      back = lambda y: jnp.swapaxes(y.reshape(batch, channels, length, *y.shape[3:]), 1, 2)
      out = back(self._attend(turn(q), turn(k), turn(v), key))
      return self.out(out.reshape(x.shape))
    table = lambda net, rows: None if net is None else heads(net(rows.astype(x.dtype)))
    tables = table(self.time, e_time), table(self.chan, e_chan)
    if tables[1] is not None and tables[1].ndim == 4:  # rows of each recording's own
      one = lambda q, k, v, chan, mask: self._attend(
        *(y[None] for y in (q, k, v)), key, tables[0], chan, mask[None]
      )[0]
      out = jax.vmap(one)(q, k, v, tables[1], key_mask)
    else:
      out = self._attend(q, k, v, key, *tables, key_mask)
    return self.out(out.reshape(x.shape))

  def _attend(self, q, k, v, key, time=None, chan=None, key_mask=None) -> Array:
    plain = self.kind != "mvpa"
    length, channels, groups, width = k.shape[1:]
    nothing = lambda n: jnp.zeros((n, groups, width), q.dtype)
    bias = jnp.zeros((3, groups, width)) if plain else self.bias[...]
    # A term that is switched off has neither table nor bias: it is zero for every pair.
    u, w, z = bias.astype(q.dtype)
    return mvpa(
      *(q, k, v, nothing(length) if time is None else time),
      *(nothing(channels) if chan is None else chan, u, w, z),
      window=length if plain else self.window,
      key_mask=key_mask,
      dropout_rate=0.0 if key is None else self.rate,
      dropout_key=key,
    )


class MVPABlock(nnx.Module):
  """x + attention(h) + SwiGLU(h), h = RMSNorm(x): both read one norm.

  `axial` attention has a second one, over the channels of a segment, after the first.
  """

  def __init__(self, dim: int, inside: int, *, rate: float, rngs: nnx.Rngs, scale: float, **attend):
    self.norm = RMSNorm(dim, epsilon=1e-5, rngs=rngs)
    self.attention = MVPAttention(dim, rate=rate, scale=scale, rngs=rngs, **attend)
    across = attend["kind"] == "axial"
    over = attend | {"kind": "vanilla"}
    self.norm_across = RMSNorm(dim, epsilon=1e-5, rngs=rngs) if across else None
    self.across = MVPAttention(dim, rate=rate, scale=scale, rngs=rngs, **over) if across else None
    self.mlp = FeedForward(dim, inside, "swiglu", out_scale=scale, rngs=rngs)
    self.rate = rate

  def __call__(self, x: Array, e_time: Array, e_chan: Array, key_mask=None, *, key=None) -> Array:
    weights, out_key, across_key = split(key, 3)
    h = self.norm(x)
    update = self.attention(h, e_time, e_chan, key_mask, key=weights)
    x = x + dropout(update, self.rate, out_key) + self.mlp(h)
    if self.across is None:
      return x
    batch, length = x.shape[:2]
    alone = lambda y: y.reshape(batch * length, 1, *y.shape[2:])
    mask = None if key_mask is None else jnp.repeat(key_mask, length, axis=0)
    update = self.across(alone(self.norm_across(x)), e_time[:1], e_chan, mask, key=across_key)
    return x + update.reshape(x.shape)


class MVPFormer(nnx.Module):
  """Tokens of a wavelet encoder, blocks, a last norm; `head` predicts the next segment's token.

  Axes: B batch, T segments, C channels, N samples of a segment, D width.
  Source: arXiv 2506.20354; `models/mvpformer.py` of its code.
  """

  def __init__(
    self,
    *,
    samples: int,
    dim: int,
    num_layers: int,
    num_heads: int,
    kv_heads: int,
    mlp_dim: int,
    attention: str = "mvpa",
    window: int = 10,
    time_term: bool = True,
    channel_term: bool = True,
    channel_embedding: bool = True,
    anchor: str = "length",
    max_length: int = 110,
    max_channels: int = 128,
    dropout_rate: float = 0.0,
    lora_rank: int = 0,
    init_scale: float = 0.02,
    table_scale: float = 0.02,
    boundary: str = "periodization",
    rngs: nnx.Rngs,
  ):
    """The network; InputError where the widths do not fit or a name is unknown.

    Args:
      samples: N.
      dim: D.
      num_layers, num_heads, kv_heads, mlp_dim: of the blocks; kv_heads divides num_heads, which
        divides dim.
      attention: one of ATTENTIONS. The others than mvpa add embeddings of time and channel.
      window: segments whose content is seen.
      time_term, channel_term: of mvpa.
      channel_embedding: whether the others add one.
      anchor: where a table's rows are counted from: "length" is the official rule, row C - 1 - d
        for C channels, so that what a row means depends on C; "zero" takes row d.
      max_length, max_channels: rows of the tables.
      dropout_rate: of tokens, attention weights and updates, where a key is given.
      lora_rank: of queries and values.
      init_scale: standard deviation of all weights at the start. table_scale: of both tables, the
        embeddings of the other attentions included.
      boundary: of `wavedec_db4`.
    """
    if dim % num_heads or num_heads % kv_heads:
      raise InputError(
        f"dim={dim}, num_heads={num_heads}, kv_heads={kv_heads} do not fit: each must be a "
        "multiple of the next"
      )
    for name, value, known in (
      ("attention", attention, ATTENTIONS),
      ("anchor", anchor, ANCHORS),
    ):
      if value not in known:
        raise InputError(f"{name}={value!r} is unknown: choose from {', '.join(known)}")
    attend = dict(num_heads=num_heads, kv_heads=kv_heads, kind=attention, window=window)
    attend |= dict(time_term=time_term, channel_term=channel_term, lora_rank=lora_rank)
    block = lambda: MVPABlock(
      dim, mlp_dim, rate=dropout_rate, scale=init_scale, rngs=rngs, **attend
    )
    table = lambda rows: nnx.Param(table_scale * jax.random.normal(rngs.params(), (rows, dim)))
    self.encoder = WaveEncoder(samples, dim, scale=init_scale, boundary=boundary, rngs=rngs)
    self.e_time, self.e_chan = table(max_length), table(max_channels)
    self.blocks = nnx.List([block() for _ in range(num_layers)])
    self.norm = RMSNorm(dim, epsilon=1e-5, rngs=rngs)
    self.head = linear(dim, dim, rngs, init_scale)
    self.additive, self.anchor, self.rate = attention != "mvpa", anchor, dropout_rate
    self.channel_embedding = channel_embedding

  def rows(self, length: int, channels: int, key_mask=None) -> tuple[Array, Array]:
    """The rows of both tables that attention reads, [T, D] and [C, D].

    With key_mask and anchor "length", [B, C, D]: row C - 1 - d of the padded array is the row of
    the recording's own number of channels, which stand first.
    """
    tables = {"segments": (self.e_time[...], length), "channels": (self.e_chan[...], channels)}
    for name, (table, wanted) in tables.items():
      if wanted > len(table):
        raise InputError(f"{wanted} {name} are more than the table's {len(table)} rows")
    e_time, e_chan = self.e_time[...][:length], self.e_chan[...][:channels]
    if self.anchor == "zero" and not self.additive:
      return e_time[::-1], e_chan[::-1]
    if key_mask is None or self.additive:
      return e_time, e_chan
    short = channels - key_mask.sum(1, dtype=jnp.int32)
    places = jnp.arange(channels, dtype=jnp.int32)[None] - short[:, None]
    return e_time, e_chan[jnp.maximum(places, 0)]

  def __call__(self, x: Array, key_mask: Array | None = None, *, key: Array | None = None):
    """(tokens, outputs), both [B, T, C, D], of segments [B, T, C, N].

    Args:
      x: segments of a recording. key_mask: [B, C] bool, False for channels that pad the batch.
      key: of dropout; None for evaluation.
    """
    tokens = self.encoder(x)
    e_time, e_chan = self.rows(x.shape[1], x.shape[2], key_mask)
    first, *keys = split(key, 1 + len(self.blocks))
    h = tokens
    if self.additive:
      h = h + e_time.astype(h.dtype)[None, :, None]
      if self.channel_embedding:
        h = h + e_chan.astype(h.dtype)[None, None]
    h = dropout(h, self.rate, first)
    for block, block_key in zip(self.blocks, keys):
      h = block(h, e_time, e_chan, key_mask, key=block_key)
    return tokens, self.norm(h)


class MVPFormerClassifier(nnx.Module):
  """W mean_c of the last segment's outputs: classes of a window.

  `base` is an MVPFormer; with lora_rank > 0 what is trained beside `classify` is chosen by
  `trained`.
  """

  def __init__(self, num_classes: int, *, dim: int, init_scale=0.02, rngs: nnx.Rngs, **base):
    self.base = MVPFormer(dim=dim, init_scale=init_scale, rngs=rngs, **base)
    self.classify = linear(dim, num_classes, rngs, init_scale)

  def __call__(self, x: Array, key_mask: Array | None = None, *, key: Array | None = None) -> Array:
    """[B, classes] from segments [B, T, C, N]; channels that pad are left out of the mean."""
    last = self.base(x, key_mask, key=key)[1][:, -1]
    if key_mask is None:
      return self.classify(last.mean(1))
    here = key_mask.astype(last.dtype)[..., None]
    return self.classify((last * here).sum(1) / here.sum(1))


def trained(path: str) -> bool:
  """Whether a parameter of the classifier is trained when its base is frozen (LoRA and head)."""
  return path.startswith("classify") or "/lora_" in path
