"""What loaders share: where the files are, checksums, tables, arrays and archives.

Every function raises InputError with the file, the field or the row, and what to do. Nothing is
ever unpickled.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import csv
import hashlib
import io
import os
from pathlib import Path
from pathlib import PurePosixPath
import shutil
import stat
import tarfile
import tempfile
import tokenize
import zipfile
import zlib

import numpy as np

from h2g.errors import InputError

# What a damaged archive or array file can raise while it is read.
DAMAGED = (
  OSError,
  ValueError,
  EOFError,
  TypeError,
  AttributeError,
  KeyError,
  IndexError,
  NotImplementedError,
  RuntimeError,
  MemoryError,
  OverflowError,
  SyntaxError,
  tokenize.TokenError,
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
)
LIMIT = 1 << 36  # bytes that one archive may unpack to
REPOSITORY = Path(__file__).parents[2]


def root() -> Path:
  """The folder of the data sets: H2G_DATA, or shared/data beside the repository."""
  given = os.environ.get("H2G_DATA")
  return Path(given).expanduser() if given else REPOSITORY.parent / "shared" / "data"


class Source:
  """One data set's folder, whose files are read whole and compared with their checksums.

  Args of the constructor:
    slug: name of the folder under `root()`.
    digests: {file: sha256}; a file without one is read unchecked.
    folder: where the files are, instead.
  """

  def __init__(self, slug: str, digests: Mapping[str, str], folder: str | Path | None = None):
    self.folder = root() / slug if folder is None else Path(folder)
    self._digests = digests
    if not self.folder.is_dir():
      raise InputError(
        f"{self.folder} does not exist: set H2G_DATA to the folder that holds {slug}/, or give "
        "files= the folder itself"
      )

  def read(self, name: str) -> bytes:
    """The bytes of a file, verified."""
    return read_bytes(self.folder / name, self._digests.get(name))

  def text(self, name: str) -> str:
    """A file as text."""
    return decode(self.read(name), self.folder / name)

  def table(self, name: str, columns: Iterable[str], **options) -> dict[str, list[str]]:
    """Columns of a text table; see `parse_table`."""
    return parse_table(self.text(name), columns, path=self.folder / name, **options)

  def integers(self, name: str, columns: Iterable[str], *, skip: int = 0) -> list[np.ndarray]:
    """The named columns of a headerless table of integers between blanks; `skip` lines first."""
    columns = list(columns)
    lines = self.text(name).splitlines()[skip:]
    rows = [line.split() for line in lines]
    for at, row in enumerate(rows):
      if len(row) != len(columns) or not all(map(_is_integer, row)):
        raise InputError(
          f"{self.folder / name} line {at + skip + 1} is {lines[at][:60]!r}: {len(columns)} "
          f"integers are expected ({', '.join(columns)}); the file is truncated or no such table"
        )
    return list(np.array(rows, np.int64).reshape(-1, len(columns)).T)

  def arrays(self, name: str, **kinds: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file; see `parse_npz`."""
    return parse_npz(self.read(name), self.folder / name, **kinds)


def choose(name: str, **options) -> None:
  """InputError unless each value is known, as in `choose("liar", label=(value, known))`."""
  for option, (value, known) in options.items():
    if value not in known:
      raise InputError(
        f"{name} has no {option}={value!r}: choose from {', '.join(map(str, known))}"
      )


def read_bytes(path: Path, digest: str | None = None) -> bytes:
  """The bytes of a file whose sha256 is `digest` (None: any)."""
  try:
    content = Path(path).read_bytes()
  except FileNotFoundError as error:
    raise InputError(f"{path} does not exist: fetch the data set again, or give its folder") from (
      error
    )
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  found = sha256(content)
  if digest is not None and found != digest:
    raise InputError(
      f"{path} is not the original file: its {len(content)} bytes have sha256 {found[:12]}..., "
      f"not {digest[:12]}...; it is truncated or was changed, fetch it again"
    )
  return content


def sha256(content: bytes) -> str:
  """Checksum in hexadecimal digits."""
  return hashlib.sha256(content).hexdigest()


def decode(content: bytes, path) -> str:
  """UTF-8 text."""
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(f"{path} is no UTF-8 text (byte {error.start}): save it as UTF-8") from error


def parse_table(
  text: str,
  columns: Iterable[str] = (),
  *,
  path,
  delimiter: str = ",",
  header: bool = True,
  quoting: bool = True,
) -> dict[str, list[str]]:
  """{column: values as text} of a delimited table.

  Args:
    text: the file's content; empty lines are skipped.
    columns: with a header, those that must be there and are returned (none: all are); without one,
      the names of all columns in order, "" for one to leave out.
    path: for messages.
    delimiter: between fields.
    header: whether the first row names the columns.
    quoting: whether quotation marks enclose fields; off where they are part of the text.
  Raises:
    InputError: a column is missing or stands twice, a row has another number of fields.
  """
  columns = list(columns)
  if quoting:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
      rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
      raise InputError(f"{path} line {reader.line_num}: {error}") from error
  else:
    lines = enumerate(text.split("\n"), 1)
    rows = [(at, line.rstrip("\r").split(delimiter)) for at, line in lines if line.strip()]
  if header:
    if not rows:
      raise InputError(f"{path} is empty: its first line must name the columns")
    names = [name.strip().removeprefix("# ") for name in rows.pop(0)[1]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
      raise InputError(f"{path}: column {twice[0]!r} stands twice in the first line")
    columns = columns or names
    for name in columns:
      if name not in names:
        raise InputError(
          f"{path}: column {name!r} is missing; the first line names {', '.join(names)}"
        )
  else:
    names = columns
  for line, row in rows:
    if len(row) != len(names):
      raise InputError(
        f"{path} line {line} has {len(row)} fields, {len(names)} are expected: the file is "
        "truncated or its columns have changed"
      )
  by_column = list(zip(*(row for _, row in rows))) or [()] * len(names)
  return {name: list(by_column[names.index(name)]) for name in columns if name or header}


def parse_npz(content: bytes, path, **kinds: str) -> dict[str, np.ndarray]:
  """Arrays of an .npz file.

  Args:
    content: the file's bytes.
    path: for messages.
    **kinds: {key: dtype kinds it may have, as in `np.dtype.kind`} of the arrays that must be there;
      without any, all arrays are returned.
  """
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
      arrays = {key: archive[key] for key in kinds or archive.files if key in archive.files}
      names = archive.files
  except DAMAGED as error:
    raise InputError(
      f"{path} is no readable .npz of plain arrays ({error}): it is truncated, or holds objects, "
      "which are never unpickled"
    ) from error
  for key, kind in kinds.items():
    if key not in arrays:
      raise InputError(f"{path}: array {key!r} is missing; the file holds {', '.join(names)}")
    if arrays[key].dtype.kind not in kind:
      raise InputError(f"{path}: array {key!r} is {arrays[key].dtype}, which is not expected")
  return arrays


def parse_npy(content: bytes, path, kinds: str) -> np.ndarray:
  """The array of an .npy file, of one of the dtype kinds `kinds`."""
  try:
    array = np.load(io.BytesIO(content), allow_pickle=False)
    kind = array.dtype.kind
  except DAMAGED as error:
    raise InputError(f"{path} is no readable .npy of a plain array ({error})") from error
  if kind not in kinds:
    raise InputError(f"{path} is {array.dtype}, which is not expected")
  return array


def sparse(content: bytes, path) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
  """(rows, columns, values, shape) of a SciPy sparse matrix's .npz, in CSR or COO form."""
  found = parse_npz(content, path, format="SU", shape="iu", data="fiub")
  kind = np.asarray(found["format"]).item()
  kind = kind.decode() if isinstance(kind, bytes) else kind
  shape = tuple(int(size) for size in found["shape"])
  if kind == "coo":
    ends = parse_npz(content, path, row="iu", col="iu")
    rows, columns = ends["row"], ends["col"]
  elif kind == "csr":
    ends = parse_npz(content, path, indptr="iu", indices="iu")
    rows, columns = np.repeat(np.arange(len(ends["indptr"]) - 1), np.diff(ends["indptr"])), None
    columns = ends["indices"]
  else:
    raise InputError(f"{path} is a sparse matrix in {kind!r} form: save it as csr or coo")
  sizes = {len(rows), len(columns), len(found["data"])}
  inside = len(shape) == 2 and all(
    len(ids) == 0 or (ids.min() >= 0 and ids.max() < size)
    for ids, size in zip((rows, columns), shape)
  )
  if len(sizes) > 1 or not inside:
    raise InputError(f"{path}: entries outside the matrix of shape {shape}, or of unequal number")
  return rows, columns, found["data"], shape


def number(ids: Iterable[str], *, path, column: str = "id") -> dict[str, int]:
  """{id: row}; InputError for one that stands twice."""
  rows = {}
  for at, name in enumerate(ids):
    if name in rows:
      raise InputError(
        f"{path}: {column} {name!r} stands twice, in rows {rows[name] + 1} and {at + 1}; every "
        "node has one row"
      )
    rows[name] = at
  return rows


def lookup(
  rows: Mapping[str, int], values: Iterable[str], *, path, column: str, what: str = "node"
) -> np.ndarray:
  """[len(values)] int64 row of each value; InputError for one that `rows` lacks."""
  found = np.empty(len(values := list(values)), np.int64)
  for at, value in enumerate(values):
    row = rows.get(value)
    if row is None:
      raise InputError(f"{path} row {at + 1}: {column} {value!r} is no {what}")
    found[at] = row
  return found


def numbers(values: Iterable[str], *, path, column: str, missing: tuple[str, ...] = ()):
  """[len(values)] float64 of text; NaN for what `missing` lists, InputError for other text."""
  found = np.empty(len(values := list(values)), np.float64)
  for at, value in enumerate(values):
    try:
      found[at] = np.nan if value in missing else float(value)
    except ValueError as error:
      raise InputError(f"{path} row {at + 1}: {column} {value!r} is no number") from error
  return found


def _is_integer(text: str) -> bool:
  return text.isdecimal() or (text[:1] == "-" and text[1:].isdecimal())


# Archives.


def read_member(content: bytes, name: str, path) -> bytes:
  """One file of a zip archive, whose own checksum it must match."""
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      return archive.read(name)
  except DAMAGED as error:
    raise InputError(
      f"{path}: {name} cannot be read from the archive ({error}): it is truncated or another file"
    ) from error


def safe_name(name: str, path) -> PurePosixPath:
  """The relative path of an archive's entry; InputError for one that would climb out."""
  parts = PurePosixPath(name.replace("\\", "/"))
  drive = len(name) > 1 and name[1] == ":"
  if parts.is_absolute() or drive or ".." in parts.parts or "\0" in name:
    raise InputError(f"{path}: entry {name!r} climbs out of the archive's folder; do not use it")
  return parts


def read_archive(path: str | Path, *, limit: int = LIMIT) -> dict[str, bytes]:
  """{name: content} of every file of a zip or tar archive; errors as in `extract`."""
  path, found, left = Path(path), {}, limit
  try:
    for name, size, opened in _entries(path):
      name = str(safe_name(name, path))
      left -= size
      if name in found or left < 0:
        what = f"entry {name!r} is there twice" if left >= 0 else f"more than {limit} bytes"
        raise InputError(f"{path}: {what}; it is not that archive")
      with opened() as file:
        found[name] = file.read()
  except InputError:
    raise
  except DAMAGED as error:
    raise InputError(
      f"{path} cannot be unpacked ({error}): it is truncated or no archive, fetch it again"
    ) from error
  return found


def extract(archive: str | Path, to: str | Path, *, limit: int = LIMIT) -> Path:
  """Unpacks a zip or tar archive into the new folder `to`, whole or not at all.

  Args:
    archive: .zip, .tar, .tar.gz, .tar.xz, .tar.bz2; told by content.
    to: folder, which must not exist yet.
    limit: bytes that it may unpack to.
  Returns:
    `to`.
  Raises:
    InputError: an entry climbs out, is a link or a device, or is there twice; the archive is
      damaged, too large, or of another kind. Then nothing is left.
  """
  archive, to = Path(archive), Path(to)
  if to.exists():
    raise InputError(f"{to} exists already: remove it, or unpack {archive} to another folder")
  to.parent.mkdir(parents=True, exist_ok=True)
  partial = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
  try:
    seen, left = set(), limit
    for name, size, opened in _entries(archive):
      place = safe_name(name, archive)
      if place in seen:
        raise InputError(f"{archive}: entry {name!r} is there twice; fetch the archive again")
      seen.add(place)
      left -= size
      if left < 0:
        raise InputError(f"{archive} unpacks to more than {limit} bytes: it is not that archive")
      out = partial.joinpath(*place.parts)
      out.parent.mkdir(parents=True, exist_ok=True)
      with opened() as file, open(out, "wb") as target:
        shutil.copyfileobj(file, target)
    partial.chmod(0o755)
    os.replace(partial, to)
  except InputError:
    raise
  except DAMAGED as error:
    raise InputError(
      f"{archive} cannot be unpacked ({error}): it is truncated or no archive, fetch it again"
    ) from error
  finally:
    with contextlib.suppress(OSError):
      shutil.rmtree(partial)
  return to


def _entries(path: Path):
  """(name, size, open) of each plain file of a zip or tar archive."""
  if not path.is_file():
    raise InputError(f"{path} does not exist: give the path of an archive")
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      for entry in archive.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
          raise InputError(f"{path}: entry {entry.filename!r} is a link or a device")
        safe_name(entry.filename, path)
        if not entry.is_dir():
          yield entry.filename, entry.file_size, lambda entry=entry: archive.open(entry)
    return
  with tarfile.open(path) as archive:
    for entry in archive:
      safe_name(entry.name, path)
      if entry.isfile():
        yield entry.name, entry.size, lambda entry=entry: archive.extractfile(entry)
      elif not entry.isdir():
        raise InputError(f"{path}: entry {entry.name!r} is a link or a device")
