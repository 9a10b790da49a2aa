"""PyTorch archives (.pt) read without running what they hold.

A .pt file is a zip archive: `data.pkl`, a pickle of the containers, and one member per storage of
numbers. Pickles are programs; this reader knows a closed list of what such a program may call
(tensors, containers, NumPy arrays, the columns of a pandas table, the stores of PyTorch Geometric)
and refuses all else by name. What it builds is inert: arrays, dictionaries, lists and `Holder`s.
Numbers are not copied: they are maps of the file.
"""

from collections import OrderedDict
from collections.abc import Callable
import io
import math
import mmap
from pathlib import Path
import pickle
from typing import Any
import zipfile
import zlib

import ml_dtypes
import numpy as np

from h2g.data.files import DAMAGED
from h2g.data.files import safe_name
from h2g.errors import InputError

DTYPES = {
  "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16,
  "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8,
  "Bool": np.bool_,
}  # fmt: skip
TORCH_DTYPES = (
  "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
# Classes of which only the fields are kept.
HOLDERS = {
  *(
    ("torch_geometric.data." + module, name)
    for module, names in {
      "data": ("Data", "DataEdgeAttr", "DataTensorAttr"),
      "hetero_data": ("HeteroData",),
      "graph_store": ("EdgeAttr", "EdgeLayout"),
      "feature_store": ("TensorAttr", "_FieldStatus"),
      "storage": ("BaseStorage", "NodeStorage", "EdgeStorage", "GlobalStorage"),
    }.items()
    for name in names
  ),
  ("pandas.core.frame", "DataFrame"),
  ("pandas.core.series", "Series"),
  ("pandas.core.internals.managers", "BlockManager"),
  ("pandas.core.internals.managers", "SingleBlockManager"),
}
INDEXES = {
  *(("pandas.core.indexes.base", name) for name in ("Index",)),
  ("pandas.core.indexes.range", "RangeIndex"),
  *(("pandas.core.indexes.numeric", name) for name in ("Int64Index", "Float64Index")),
}
CHUNK = 1 << 24
UNPICKLING = (*DAMAGED, pickle.UnpicklingError, RecursionError, AssertionError)


class Holder:
  """An object of a known class, of which only the fields are kept, under `fields`."""

  kind = ""

  def __new__(cls, *args):  # all that pickles call
    self = super().__new__(cls)
    self.fields = {"args": args} if args else {}
    return self

  def __setstate__(self, state):
    if isinstance(state, dict):
      self.fields = self.fields | state
    else:
      self.fields = self.fields | {"state": state}

  def __repr__(self):
    return f"{self.kind}({', '.join(map(str, self.fields))})"


def load(path: str | Path) -> Any:
  """What a .pt archive holds: tensors as read-only arrays, containers, `Holder`s.

  Raises:
    InputError: the archive is damaged, of another kind, asks for anything that is not on the list
      (the message names it), or holds a tensor that reaches beyond its numbers.
  """
  path = Path(path)
  try:
    return _read(path)
  except InputError:
    raise
  except FileNotFoundError as error:
    raise InputError(f"{path} does not exist: give the path of a .pt archive") from error
  except UNPICKLING as error:
    raise InputError(
      f"{path} is no readable PyTorch archive ({error}): it is truncated, or was written by "
      "another program; fetch it again"
    ) from error


def hetero(graph: Any, *, path) -> dict[str, dict]:
  """{"nodes": {type: {field: value}}, "edges": {(source, relation, target): {...}}} of HeteroData.

  Also of what `InMemoryDataset` saves: the graph in a tuple with its slices.
  """
  if isinstance(graph, tuple | list) and graph:
    graph = graph[0]
  if not isinstance(graph, Holder) or graph.kind != "HeteroData":
    raise InputError(f"{path} holds a {type(graph).__name__}, not the HeteroData that is expected")
  found = {}
  for part in ("node", "edge"):
    stores = graph.fields.get(f"_{part}_store_dict")
    if not isinstance(stores, dict):
      raise InputError(f"{path}: the HeteroData has no {part} stores")
    found[f"{part}s"] = {
      name: dict(one.fields.get("_mapping", {}) if isinstance(one, Holder) else one)
      for name, one in stores.items()
    }
  return found


def columns(table: Any, *, path) -> dict[str, np.ndarray]:
  """{column: values} of a pickled pandas DataFrame."""
  wrong = InputError(f"{path} holds a table of a pandas version that is not known")
  if not isinstance(table, Holder) or table.kind != "DataFrame":
    raise InputError(f"{path} holds a {type(table).__name__} where a table is expected")
  manager = table.fields.get("_mgr", table.fields.get("_data"))
  if not isinstance(manager, Holder):
    raise wrong
  try:
    if "args" in manager.fields:  # pandas 1.3 and later: blocks and axes are arguments
      blocks, axes = manager.fields["args"][:2]
      blocks = [(values, places) for values, places, *_ in blocks]
    else:  # earlier: a tuple whose last part is a dictionary of versions
      state = manager.fields["state"][3]["0.14.1"]
      axes = state["axes"]
      blocks = [(block["values"], block["mgr_locs"]) for block in state["blocks"]]
    names, found = [str(name) for name in np.asarray(axes[0]).tolist()], {}
    for values, places in blocks:
      if isinstance(places, slice):
        places = range(*places.indices(len(names)))
      for row, place in zip(np.asarray(values), np.asarray(places).tolist(), strict=True):
        found[names[place]] = row
  except UNPICKLING as error:
    raise wrong from error
  if set(found) != set(names):
    raise wrong
  return {name: found[name] for name in names}


def _read(path: Path) -> Any:
  if not path.exists():
    raise FileNotFoundError(path)
  if not zipfile.is_zipfile(path):
    raise InputError(
      f"{path} is no zip archive: it is truncated, or was written before PyTorch 1.6; load and "
      "save it again with a newer PyTorch"
    )
  with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
    names = [str(safe_name(name, path)) for name in archive.namelist()]
    if len(set(names)) < len(names):
      raise InputError(f"{path}: an entry is there twice; fetch the archive again")
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise InputError(f"{path} has {len(pickles)} members data.pkl: it is no PyTorch archive")
    top = pickles[0].removesuffix("data.pkl")
    order = "little"
    if f"{top}byteorder" in names:
      order = archive.read(f"{top}byteorder").decode().strip()
    if order not in ("little", "big"):
      raise InputError(f"{path}: byte order {order!r} is neither little nor big")
    storages = _Storages(path, archive, file, top, order)
    return _Unpickler(archive.read(pickles[0]), path, storages).load()


class _Storages:
  """Numbers of an archive by key, each read once."""

  def __init__(self, path, archive, file, top, order):
    self.path, self.order, self._archive, self._file = path, order, archive, file
    self._top, self._known, self._map = top, {}, None

  def bytes(self, key: str) -> np.ndarray:
    """[n] uint8 of a member whose checksum is right."""
    if key not in self._known:
      try:
        entry = self._archive.getinfo(f"{self._top}data/{key}")
      except KeyError as error:
        raise InputError(f"{self.path}: the numbers data/{key} are missing") from error
      self._known[key] = self._content(entry)
    return self._known[key]

  def _content(self, entry: zipfile.ZipInfo) -> np.ndarray:
    if not entry.file_size:
      return np.zeros(0, np.uint8)
    if entry.compress_type != zipfile.ZIP_STORED:
      return np.frombuffer(self._archive.read(entry), np.uint8)
    # As PyTorch writes them: stored as they are, so that the file can be mapped.
    self._file.seek(entry.header_offset)
    header = self._file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
      raise zipfile.BadZipFile(f"no header of {entry.filename}")
    begin = entry.header_offset + 30
    begin += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if self._map is None:
      self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
    if begin + entry.file_size > len(self._map):
      raise zipfile.BadZipFile(f"{entry.filename} ends behind the file")
    content, found = np.frombuffer(self._map, np.uint8, entry.file_size, begin), 0
    for start in range(0, len(content), CHUNK):
      found = zlib.crc32(content[start : start + CHUNK], found)
    if found != entry.CRC:
      raise InputError(f"{self.path}: wrong checksum of {entry.filename}; fetch the archive again")
    return content


class _Unpickler(pickle.Unpickler):
  """Calls only what is in the table it makes; see `_globals`."""

  def __init__(self, content: bytes, path: Path, storages: _Storages):
    super().__init__(io.BytesIO(content))
    self._path, self._storages, self._table = path, storages, _globals(path)

  def find_class(self, module: str, name: str):
    found = self._table.get((module, name))
    if found is None:
      raise InputError(
        f"{self._path} asks for {module}.{name}, which is not on the list of what is read: nothing "
        "of it was run; do not use the file unless you know why it is there"
      )
    return found

  def persistent_load(self, pid):
    if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
      raise InputError(f"{self._path} refers to {str(pid)[:60]!r}, which is no storage")
    _, kind, key, _, count = pid
    dtype = np.dtype(DTYPES[kind]) if kind in DTYPES else None
    if dtype is None or not isinstance(key, str) or not isinstance(count, int) or count < 0:
      raise InputError(f"{self._path}: storage {key!r} is of kind {kind!r}, which is not known")
    content = self._storages.bytes(key)
    if kind == "Byte" and len(content) != count:
      count = len(content)  # an untyped storage counts bytes
    if len(content) != count * dtype.itemsize:
      raise InputError(
        f"{self._path}: data/{key} has {len(content)} bytes, {count} numbers of {dtype} are "
        f"{count * dtype.itemsize}: it is truncated"
      )
    if self._storages.order == "big" and dtype.itemsize > 1:
      if kind == "BFloat16":
        raise InputError(f"{self._path}: bfloat16 in big-endian order is not read")
      dtype = dtype.newbyteorder(">")
    return content.view(dtype)


def _globals(path: Path) -> dict[tuple[str, str], Callable]:
  """What a pickle may name; made anew for each file, so that none can change it for the next."""

  def tensor(storage, offset, size, stride, *_):
    if not isinstance(storage, np.ndarray):
      raise InputError(f"{path}: a tensor without numbers")
    whole = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in whole):
      raise InputError(f"{path}: a tensor of size {size} with strides {stride} at {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) + 1
    if 0 not in size and last > len(storage):
      raise InputError(
        f"{path}: a tensor of size {tuple(size)} reaches number {last} of {len(storage)}: the "
        "archive is damaged"
      )
    if 0 in size:
      return np.zeros(size, storage.dtype)
    if math.prod(size) > len(storage):
      raise InputError(f"{path}: a tensor of size {tuple(size)} repeats its {len(storage)} numbers")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)

  def parameter(data, *_):
    return data

  def mapping(*_):  # a defaultdict without what makes its defaults
    return {}

  def size(values=()):
    return tuple(values)

  def inert(*_):
    return None

  class Dtype:
    """A NumPy dtype: a code and, later, its byte order."""

    def __init__(self, code, *_):
      self.value = np.dtype(str(code))

    def __setstate__(self, state):
      if self.value.kind not in "fiubSUO" or any(part is not None for part in state[2:5]):
        raise InputError(f"{path}: a NumPy array of structured or unknown numbers")
      if state[1] in ("<", ">") and self.value.kind not in "O":
        self.value = self.value.newbyteorder(state[1])

  class Array:
    """A NumPy array; `np.asarray` makes one."""

    value = None

    def __setstate__(self, state):
      _, shape, dtype, fortran, content = state[-5:]
      order = "F" if fortran else "C"
      if dtype.value.kind == "O":
        self.value = np.empty(len(content), object)
        self.value[:] = [_plain(item) for item in content]
        self.value = self.value.reshape(shape, order=order)
      else:
        if isinstance(content, str):
          content = content.encode("latin1")
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order=order)

    def __array__(self, dtype=None, copy=None):
      return self.value if dtype is None else self.value.astype(dtype)

    def __len__(self):
      return len(self.value)

  def empty(*_):
    return Array()

  def _plain(item):
    return item.value if isinstance(item, Array) else item

  def buffer(content, dtype, shape, order):  # protocol 5
    array = Array()
    array.value = np.frombuffer(content, dtype.value).reshape(shape, order=order)
    return array

  def scalar(dtype, content):
    if isinstance(content, str):
      content = content.encode("latin1")
    return np.frombuffer(content, dtype.value)[0].item()

  def encoded(text, encoding="latin1"):
    if encoding not in ("latin1", "ascii", "utf-8"):
      raise InputError(f"{path}: bytes in the encoding {encoding!r}")
    return text.encode(encoding)

  def array_of_bytes(content=b"", encoding="latin1"):
    return encoded(content, encoding) if isinstance(content, str) else b"".join([content])

  def block(values, places, *_):
    return values, places

  def index(kind, fields):
    if kind == "RangeIndex":
      return np.arange(fields["start"], fields["stop"], fields["step"])
    return np.asarray(fields["data"])

  known = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): mapping,
    ("torch", "Size"): size,
    ("torch", "device"): inert,
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): parameter,
    ("torch.nn.parameter", "Parameter"): parameter,
    ("torch.storage", "UntypedStorage"): "Byte",
    ("numpy", "dtype"): Dtype,
    ("numpy", "ndarray"): "ndarray",
    ("_codecs", "encode"): encoded,
    ("pandas._libs.internals", "_unpickle_block"): block,
    ("pandas.core.internals.blocks", "new_block"): block,
    ("pandas.core.indexes.base", "_new_Index"): index,
  }
  for core in ("numpy.core", "numpy._core"):
    known[core + ".multiarray", "_reconstruct"] = empty
    known[core + ".multiarray", "scalar"] = scalar
    known[core + ".numeric", "_frombuffer"] = buffer
  for module in ("builtins", "__builtin__"):
    for kind in (dict, list, set, frozenset, tuple, int, float, bool, str, slice, complex):
      known[module, kind.__name__] = kind
    known[module, "bytearray"] = array_of_bytes
  for name in DTYPES:
    known["torch", f"{name}Storage"] = name
  for name in TORCH_DTYPES:
    known["torch", name] = name  # as text, which nothing can change
  for key in INDEXES:
    known[key] = key[1]
  for key in HOLDERS:
    known[key] = type(key[1], (Holder,), {"kind": key[1]})
  return known
