"""Writes PyTorch archives as `torch.save` does, without PyTorch: for what tests read."""

import io
import pickle
import struct
import zipfile

import numpy as np

STORAGES = {
  "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16",
  "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
  "bool": "Bool",
}  # fmt: skip


class Global:
  """A name that the pickle asks for."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Call:
  """function(*args), then a state."""

  def __init__(self, function, *args, state=None, new=False):
    self.function, self.args, self.state, self.new = function, args, state, new


class Storage:
  """A persistent reference to a storage."""

  def __init__(self, *pid):
    self.pid = pid


class Pickler(pickle._Pickler):
  def save(self, obj, **options):
    if isinstance(obj, Global):
      self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
    elif isinstance(obj, Call):
      self.save(obj.function)
      self.save(obj.args)
      self.write(pickle.NEWOBJ if obj.new else pickle.REDUCE)
      if obj.state is not None:
        self.save(obj.state)
        self.write(pickle.BUILD)
    elif isinstance(obj, Storage):
      self.save(obj.pid)
      self.write(pickle.BINPERSID)
    else:
      super().save(obj, **options)


def pickled(obj) -> bytes:
  out = io.BytesIO()
  Pickler(out, 2).dump(obj)
  return out.getvalue()


class Archive:
  """Collects storages while `tensor` makes tensors of arrays; `write` makes the file."""

  def __init__(self):
    self.members = {}

  def tensor(self, array, *, offset=0, size=None, stride=None, count=None, kind=None):
    array = np.ascontiguousarray(array)
    key = str(len(self.members))
    self.members[key] = array.tobytes()
    kind = Global("torch", f"{kind or STORAGES[array.dtype.name]}Storage")
    strides = tuple(step // array.itemsize for step in array.strides)
    return Call(
      Global("torch._utils", "_rebuild_tensor_v2"),
      Storage("storage", kind, key, "cpu", array.size if count is None else count),
      offset,
      array.shape if size is None else size,
      strides if stride is None else stride,
      False,
      Call(Global("collections", "OrderedDict")),
    )

  def write(self, path, obj, *, top="archive", order="little", extra=(), compress=False):
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
      archive.writestr(f"{top}/data.pkl", obj if isinstance(obj, bytes) else pickled(obj))
      archive.writestr(f"{top}/byteorder", order)
      for key, content in self.members.items():
        info = zipfile.ZipInfo(f"{top}/data/{key}")
        info.compress_type = kind
        info.extra = struct.pack("<HH", 0x4246, 9) + b"Z" * 9  # padding, as PyTorch writes it
        archive.writestr(info, content)
      archive.writestr(f"{top}/version", "3\n")
      for name, content in extra:
        archive.writestr(name, content)
    return path


def array(values):
  """A NumPy array as it is pickled; of objects where the values are Calls or the dtype says so."""
  values = np.asarray(values) if not isinstance(values, list) else values
  plain = not isinstance(values, list) and values.dtype != object
  code = values.dtype.str[1:] if plain else "O8"
  state = (3, "<" if plain and values.itemsize > 1 else "|", None, None, None, -1, -1, 0)
  dtype = Call(Global("numpy", "dtype"), code, False, True, state=state)
  content = values.tobytes() if plain else list(values)
  shape = values.shape if plain else (len(values),)
  made = Call(
    Global("numpy.core.multiarray", "_reconstruct"), Global("numpy", "ndarray"), (0,), b"b",
    state=(1, shape, dtype, False, content),
  )  # fmt: skip
  return made


def frame(**columns):
  """A pandas DataFrame as version 2 pickles it: one block a column."""
  rows = len(next(iter(columns.values())))
  blocks = []
  for place, values in enumerate(columns.values()):
    if isinstance(values, list):
      one = array(values)
      content = one.state[4]
      one.state = (*one.state[:1], (1, rows), *one.state[2:4], content)
    else:
      one = array(np.asarray(values)[None])
    block = Global("pandas._libs.internals", "_unpickle_block")
    span = Call(Global("builtins", "slice"), place, place + 1, 1)
    blocks.append(Call(block, one, span, 2))
  base = "pandas.core.indexes.base"
  new = Global(base, "_new_Index")
  names = Call(new, Global(base, "Index"), {"data": array(list(columns)), "name": None})
  span = {"name": None, "start": 0, "stop": rows, "step": 1}
  index = Call(new, Global("pandas.core.indexes.range", "RangeIndex"), span)
  manager = Global("pandas.core.internals.managers", "BlockManager")
  state = {"_mgr": Call(manager, tuple(blocks), [names, index]), "_typ": "dataframe", "attrs": {}}
  return Call(Global("pandas.core.frame", "DataFrame"), state=state, new=True)
