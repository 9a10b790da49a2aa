"""Published PEM checkpoints (detectron2 names) onto `h2g.models.pem.Segmenter`.

Names: backbone.{stem, res2..res5} or backbone.features (STDC), sem_seg_head.pixel_decoder,
sem_seg_head.predictor. Export the `model` of the file as safetensors or npz first.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from h2g.convert.names import fill
from h2g.convert.names import Rule
from h2g.convert.read import read
from h2g.errors import InputError

DEPTHS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}
HEAD = r"sem_seg_head\."
PIXELS, QUERIES = HEAD + r"pixel_decoder\.", HEAD + r"predictor\."
LAYER = QUERIES + r"transformer_{}_layers\.(\d+)\."


def load(
  path: str | Path, params: Any, rest: Any, *, network: str = "resnet50", frozen: bool = False
) -> tuple[Any, Any]:
  """(params, rest) of a `Segmenter` from a checkpoint.

  Args:
    path: .safetensors or .npz.
    params, rest: trees of the segmenter, arrays or shapes.
    network: its backbone: resnet50, stdc1, stdc2.
    frozen: whether the norms of the backbone are frozen.
  Raises:
    InputError: as of `fill`: the message lists what is missing, unexpected or of another shape.
  """
  tree = {"params": params, "rest": rest}
  filled = fill(tree, read(path), table(network, frozen=frozen), source=path)
  return filled["params"], filled["rest"]


def table(network: str, *, frozen: bool = False) -> list[Rule]:
  """Rules onto {"params": ..., "rest": ...}."""
  if network != "resnet50" and network not in DEPTHS:
    raise InputError(
      f"network={network!r} has no published checkpoint: choose resnet50, stdc1, stdc2"
    )
  backbone = _resnet(frozen) if network == "resnet50" else _stdc(DEPTHS[network], frozen)
  return [
    Rule(r".*\.num_batches_tracked", None),
    Rule(r"criterion\.empty_weight", None),
    *backbone,
    *_pixel_decoder(),
    *_decoder(),
  ]


def _conv(x: np.ndarray) -> np.ndarray:
  """[out, in, h, w] -> [h, w, in, out]."""
  return x.transpose(2, 3, 1, 0)


def _affine(theirs: str, ours: str, weight: str, transform=None) -> list[Rule]:
  return [
    Rule(rf"{theirs}\.weight", f"params/{ours}/{weight}", transform),
    Rule(rf"{theirs}\.bias", f"params/{ours}/bias"),
  ]


def _batch_norm(theirs: str, ours: str, frozen: bool = False) -> Iterator[Rule]:
  names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
  for name, mine in names.items():
    part = "rest" if frozen or name.startswith("running") else "params"
    yield Rule(rf"{theirs}\.{name}", f"{part}/{ours}/{mine}")


def _conv_norm(conv: str, norm: str, ours: str, frozen: bool = False) -> Iterator[Rule]:
  yield Rule(rf"{conv}\.weight", f"params/{ours}/conv/kernel", _conv)
  yield from _batch_norm(norm, f"{ours}/norm", frozen)


def _resnet(frozen: bool) -> Iterator[Rule]:
  stem = r"backbone\.stem\.conv1"
  yield from _conv_norm(stem, rf"{stem}\.norm", "backbone/stem", frozen)
  for stage in range(4):
    conv = rf"backbone\.res{stage + 2}\.(\d+)\.(conv1|conv2|conv3|shortcut)"
    ours = rf"backbone/stages/{stage}/\1/\2"
    yield from _conv_norm(conv, rf"{conv}\.norm", ours, frozen)


def _stdc(depths: tuple[int, ...], frozen: bool) -> Iterator[Rule]:
  yield Rule(r"backbone\.x\d+\..*", None)  # the same layers under a second name
  pair = lambda at, ours: _conv_norm(rf"{at}\.conv", rf"{at}\.bn", ours, frozen)
  yield from pair(r"backbone\.features\.([01])", r"backbone/stem/\1")
  first = 2
  for stage, depth in enumerate(depths):
    for block in range(depth):
      at = rf"backbone\.features\.{first + block}"
      ours = rf"backbone/stages/{stage}/{block}"
      yield from pair(rf"{at}\.conv_list\.(\d+)", rf"{ours}/convs/\1")
      yield from _conv_norm(rf"{at}\.avd_layer\.0", rf"{at}\.avd_layer\.1", f"{ours}/down", frozen)
    first += depth


def _pixel_decoder() -> Iterator[Rule]:
  for theirs, ours in (
    (r"in_projections\.(\d+)", r"projections/\1"),
    ("conv_avg", "context"),
    ("out", "out"),
  ):
    yield from _conv_norm(rf"{PIXELS}{theirs}\.conv", rf"{PIXELS}{theirs}\.bn", f"pixels/{ours}")
  gate, mine = PIXELS + r"csm\.(\d+)\.mlp\.0\.mlp", r"pixels/modulations/\1"
  yield from _conv_norm(rf"{gate}\.0", rf"{gate}\.1", f"{mine}/down")
  yield Rule(rf"{gate}\.3\.weight", f"params/{mine}/up/kernel", _conv)
  deform, mine = PIXELS + r"dcn\.(\d+)", r"pixels/deforms/\1"
  yield from _affine(rf"{deform}\.dcn_offset", f"{mine}/maps", "kernel", _conv)
  yield Rule(rf"{deform}\.dcn\.weight", f"params/{mine}/kernel", _conv)
  yield Rule(
    rf"{deform}\.up_sample\.weight", f"params/{mine}/up", lambda x: x.transpose(2, 3, 0, 1)
  )
  yield from _batch_norm(rf"{deform}\.dcn_bn", f"{mine}/norm")
  yield from _batch_norm(rf"{deform}\.up_bn", f"{mine}/up_norm")


def _decoder() -> Iterator[Rule]:
  linear = lambda theirs, ours: _affine(theirs, f"decoder/{ours}", "kernel", np.transpose)
  norm = lambda theirs, ours: _affine(theirs, f"decoder/{ours}", "scale")
  for theirs, ours in (
    ("query_feat", "queries"),
    ("query_embed", "query_positions"),
    ("level_embed", "level_embedding"),
  ):
    yield Rule(rf"{QUERIES}{theirs}\.weight", f"params/decoder/{ours}")
  squeeze = lambda x: x[:, :, 0, 0].T
  yield from _affine(QUERIES + r"input_proj\.(\d+)", r"decoder/projections/\1", "kernel", squeeze)
  yield from norm(QUERIES + "decoder_norm", "norm")
  yield from linear(QUERIES + "class_embed", "classes")
  yield from linear(QUERIES + r"mask_embed\.layers\.(\d+)", r"mask_mlp/\1")
  at, cross = LAYER.format("cross_attention"), r"blocks/\1/cross"
  yield from _batch_norm(at + r"feature_proj\.bn", f"decoder/{cross}/norm")
  yield Rule(
    at + r"feature_proj\.to_query_3x3\.weight",
    f"params/decoder/{cross}/local",
    lambda x: x[:, 0].transpose(1, 2, 0),
  )
  yield Rule(at + r"feature_proj\.to_query_3x3\.bias", f"params/decoder/{cross}/local_bias")
  yield from norm(at + r"query_proj\.0", f"{cross}/query_norm")
  for theirs, ours in (
    (r"feature_proj\.out", "features"),
    (r"query_proj\.1", "query"),
    ("proj", "project"),
    ("final", "out"),
  ):
    yield from linear(at + theirs, f"{cross}/{ours}")
  yield Rule(at + "alpha", f"params/decoder/{cross}/alpha", lambda x: x.reshape(-1))
  at, mine = LAYER.format("self_attention"), r"blocks/\1/attention"
  for i, part in enumerate(("query", "key", "value")):
    third = lambda x, i=i: np.split(x, 3)[i].T
    yield Rule(at + r"self_attn\.in_proj_weight", f"params/decoder/{mine}/{part}/kernel", third)
    yield Rule(at + r"self_attn\.in_proj_bias", f"params/decoder/{mine}/{part}/bias", third)
  yield from linear(at + r"self_attn\.out_proj", f"{mine}/out")
  yield from norm(at + "norm", r"blocks/\1/norm")
  at = LAYER.format("ffn")
  yield from linear(at + "linear1", r"blocks/\1/up")
  yield from linear(at + "linear2", r"blocks/\1/down")
  yield from norm(at + "norm", r"blocks/\1/ffn_norm")
