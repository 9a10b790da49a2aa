"""What the loaders of the published H2GB graphs share: files, stores, tables in chunks, means."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import gzip
import io
import lzma
from pathlib import Path
import stat
from typing import BinaryIO
import zipfile

import numpy as np

from h2g.data import download
from h2g.data import files as shared
from h2g.data import store
from h2g.errors import InputError
from h2g.graph import HeteroGraph

BLOCK = 1 << 24  # bytes of a table that are parsed at a time
HUB = "https://huggingface.co/datasets/junhongmit/H2GB/resolve/main/"
DAMAGED = (*shared.DAMAGED, lzma.LZMAError)


class Files:
  """The raw files of a set: in a folder, or in one archive in it, fetched when neither is there.

  Args of the constructor:
    slug: folder under `h2g.data.files.root()`.
    data_dir: the folder instead, "" for none.
    names: files that must be there, relative to the folder or, in the archive, wherever they are.
    archive: name of the .zip that holds them, or "".
    urls: {file or archive: address}; those without one must be brought by hand.
    how: where else to get them, for messages.
    digests: {file or archive: sha256} where they are known.
  """

  def __init__(self, slug, data_dir="", *, names, archive="", urls=None, how="", digests=None):
    self.folder = Path(data_dir).expanduser() if data_dir else shared.root() / slug
    self._names, self._archive, self._how = names, archive, how
    self._urls, self._digests = urls or {}, digests or {}
    self._members, self._zip = {}, None

  def __enter__(self) -> "Files":
    for name in self._names:
      if self._place(name) is None and not self._archive:
        self._get(name)
    if self._archive and any(self._place(name) is None for name in self._names):
      self._open(self._get(self._archive))
    return self

  def __exit__(self, *_):
    if self._zip is not None:
      self._zip.close()

  def where(self, name: str) -> str:
    """The file, or the archive and the file, for messages."""
    place = self._place(name)
    return str(place) if place else f"{self.folder / self._archive}: {name}"

  def has(self, name: str) -> bool:
    return self._place(name) is not None or name in self._members

  def matching(self, start: str, end: str) -> list[str]:
    """Names of files that begin and end so."""
    found = {
      path.name for folder in self._folders() if folder.is_dir() for path in folder.iterdir()
    }
    return sorted(
      name for name in found | set(self._members) if name.startswith(start) and name.endswith(end)
    )

  @contextlib.contextmanager
  def open(self, name: str) -> Iterator[BinaryIO]:
    """A file, unpacked while it is read; what damage raises becomes InputError."""
    place, where = self._place(name), self.where(name)
    try:
      with contextlib.ExitStack() as stack:
        if place is not None:
          file = stack.enter_context(open(place, "rb"))
          if not place.stat().st_size:
            raise InputError(f"{where} is empty: fetch it again")
        elif name in self._members:
          file = stack.enter_context(self._zip.open(self._members[name]))
        else:
          raise InputError(f"{where} is missing")
        if name.endswith(".gz"):
          file = stack.enter_context(gzip.GzipFile(fileobj=file))
        yield file
    except InputError:
      raise
    except DAMAGED as error:
      raise InputError(f"{where} cannot be read ({error}): it is truncated, fetch it again") from (
        error
      )

  def _folders(self) -> tuple[Path, ...]:
    return self.folder, self.folder / "raw"

  def _place(self, name: str) -> Path | None:
    places = (folder / name for folder in self._folders())
    return next((place for place in places if place.is_file()), None)

  def _get(self, name: str) -> Path:
    place, found = self.folder / name, self._place(name)
    if found is not None:
      return found
    if name in self._urls:
      return download.fetch(self._urls[name], place, sha256=self._digests.get(name))
    raise InputError(f"{place} does not exist: {self._how}")

  def _open(self, path: Path) -> None:
    try:
      self._zip = zipfile.ZipFile(path)
    except DAMAGED as error:
      raise InputError(f"{path} is no zip archive ({error}): fetch it again") from error
    for entry in self._zip.infolist():
      place = shared.safe_name(entry.filename, path)
      if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{path}: entry {entry.filename!r} is a link or a device")
      if entry.is_dir() or place.parts[0] == "__MACOSX":
        continue
      wanted = [name for name in self._names if place.as_posix().endswith(f"/{name}")]
      name = str(place) if str(place) in self._names else (wanted or [place.name])[0]
      if name in self._members:
        raise InputError(f"{path}: {name} is there twice; fetch the archive again")
      self._members[name] = entry
    for name in self._names:
      if not self.has(name):
        raise InputError(
          f"{path} holds no {name}: it is another archive, or its files were renamed"
        )


def opened(
  files: Files, name: str, convert: Callable[[Files, store.Builder], None], **options
) -> Path:
  """The store beside the raw files, converted first where it is not there.

  Args:
    files: not entered yet; with the store there, none of them is needed.
    name: of the store, without its suffix.
    convert: `convert(files, out)` fills the builder.
    **options: of `store.writing`.
  """
  place = files.folder / f"{name}.store"
  if not store.is_store(place):
    with files, store.writing(place, reverses=True, **options) as out:
      convert(files, out)
  return place


def with_split(graph: HeteroGraph, parts: Iterable[tuple[str, np.ndarray]]) -> HeteroGraph:
  """The graph with splits from rows: {name: rows of the target type}."""
  masks = {}
  for name, rows in dict(parts).items():
    masks[name] = np.zeros(graph.num_nodes[graph.schema.target], bool)
    masks[name][rows] = True
  return graph.with_splits(masks)


def cut(rows: np.ndarray, seed: int, **shares: float) -> dict[str, np.ndarray]:
  """{part: rows} of a seeded shuffle; the last part gets what rounding leaves."""
  rows = np.random.default_rng(seed).permutation(rows)
  ends = [int(len(rows) * share) for share in np.cumsum(list(shares.values()))[:-1]]
  return dict(zip(shares, np.split(rows, ends)))


# Tables.


def blocks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
  """(number of the first line, whole lines) of a text file, about BLOCK bytes at a time."""
  line, rest = 1, b""
  while content := file.read(BLOCK):
    content = rest + content
    end = content.rfind(b"\n") + 1
    if not end and len(content) > 64 * BLOCK:
      raise ValueError("a line without an end")
    content, rest = content[:end], content[end:]
    if content:
      yield line, content
      line += content.count(b"\n")
  if rest:
    yield line, rest


def numbers(
  files: Files, name: str, dtype, *, columns: int | None = None, delimiter: str = ",", skip: int = 0
) -> Iterator[np.ndarray]:
  """Chunks [n, columns] of a table of numbers without a header; `skip` lines first."""
  where = files.where(name)
  with files.open(name) as file:
    for _ in range(skip):
      file.readline()
    for line, content in blocks(file):
      rows = parsed(content, dtype, where, line + skip, delimiter)
      columns = columns or rows.shape[1]
      if rows.shape[1] != columns:
        raise InputError(
          f"{where} line {line + skip} has {rows.shape[1]} fields, {columns} are expected"
        )
      yield rows


def parsed(content: bytes, dtype, where: str, line: int, delimiter: str = ",") -> np.ndarray:
  """[n, K] numbers of whole lines; InputError names the first that is wrong."""
  try:
    rows = np.loadtxt(io.BytesIO(content), dtype, delimiter=delimiter, comments=None, ndmin=2)
    if len(rows) and np.dtype(dtype).kind == "f" and not np.isfinite(rows).all():
      raise ValueError(f"a number is not finite at row {np.argwhere(~np.isfinite(rows))[0][0] + 1}")
    return rows
  except (ValueError, OverflowError) as error:
    raise InputError(
      f"{where}, lines from {line}: {error}; it is truncated, or not the published table"
    ) from error


def table(files: Files, name: str, columns: Iterable[str], **options) -> dict[str, list[str]]:
  """Columns of a small text table, see `h2g.data.files.parse_table`."""
  with files.open(name) as file:
    content = file.read()
  where = files.where(name)
  return shared.parse_table(shared.decode(content, where), columns, path=where, **options)


def mean_of(senders, receivers, x: np.ndarray, num: int) -> Iterator[np.ndarray]:
  """Chunks [n, F] of the mean over senders of x, per receiver 0..num - 1; zeros where none is."""
  order = np.argsort(receivers, kind="stable")
  senders = np.asarray(senders)[order]
  ends = np.concatenate([[0], np.cumsum(np.bincount(receivers, minlength=num))])
  begin, width = 0, x.shape[1]
  while begin < num:
    limit = ends[begin] + (1 << 25) // width
    end = max(begin + 1, min(num, int(np.searchsorted(ends, limit, side="right")) - 1))
    out = np.zeros((end - begin, width))
    counts = np.diff(ends[begin : end + 1])
    filled = np.flatnonzero(counts)
    if len(filled):
      rows = x[senders[ends[begin] : ends[end]]]
      out[filled] = np.add.reduceat(
        rows, ends[begin:end][filled] - ends[begin], axis=0, dtype=float
      )
      out[filled] /= counts[filled, None]
    yield out.astype(np.float32)
    begin = end
