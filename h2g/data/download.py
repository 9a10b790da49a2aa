"""Files from the web: whole, checked, and resumed where an earlier attempt stopped."""

import contextlib
import hashlib
import http.client
import os
from pathlib import Path
import re
import urllib.error
import urllib.parse
import urllib.request

import tqdm

from h2g.errors import InputError

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
BROKEN = (OSError, http.client.HTTPException)  # URLError is an OSError


def fetch(url: str, to: str | Path, *, sha256: str | None = None, progress: bool = True) -> Path:
  """Downloads a file unless it is there.

  What has arrived stands in `<to>.part` and `<to>.part.tag` (which version it is of), and a later
  call asks for the rest only. The file takes its name when it is whole and its checksum is right.

  Args:
    url: http, https or file.
    to: the file; folders are made.
    sha256: its checksum, None where it is not published.
    progress: whether a bar is shown.
  Returns:
    `to`.
  Raises:
    InputError: no network, an error of the server, too few bytes (call again to go on), or a wrong
      checksum (then nothing is left). The message says where to put the file by hand.
  """
  to = Path(to)
  if to.exists():
    return to
  part, tag = to.with_name(f"{to.name}.part"), to.with_name(f"{to.name}.part.tag")
  by_hand = f"download it by hand and put it at {to}"
  if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
    raise InputError(f"{url} cannot be fetched by h2g: {by_hand}")
  try:
    to.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(2):
      if _attempt(url, part, tag, progress, fresh=attempt > 0):
        break
  except urllib.error.HTTPError as error:
    raise InputError(f"{url}: the server says {error.code} {error.reason}; {by_hand}") from error
  except BROKEN as error:
    reason = getattr(error, "reason", None) or error
    raise InputError(
      f"{url} could not be fetched ({reason}): run the command again to go on where it stopped, or "
      f"{by_hand}"
    ) from error
  if sha256 is not None and (found := _digest(part)) != sha256:
    _remove(part, tag)
    raise InputError(
      f"{url}: wrong checksum, sha256 {found[:12]}... instead of {sha256[:12]}...; it was removed, "
      "run the command again"
    )
  os.replace(part, to)
  _remove(tag)
  return to


def _attempt(url: str, part: Path, tag: Path, progress: bool, *, fresh: bool) -> bool:
  """Brings `part` to its full length; False: what is there is not of this file, start anew."""
  if fresh:
    _remove(part, tag)
  done = part.stat().st_size if part.exists() else 0
  request = urllib.request.Request(url, headers={"User-Agent": "h2g"})
  if done:
    request.add_header("Range", f"bytes={done}-")
    if tag.exists():
      request.add_header("If-Range", tag.read_text())
  try:
    answer = urllib.request.urlopen(request, timeout=TIMEOUT)
  except urllib.error.HTTPError as error:
    if error.code == 416 and done:  # nothing behind what is there: whole, or of another file
      total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
      error.close()
      return total is not None and int(total[1]) == done
    raise
  with answer:
    ranged = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if getattr(answer, "status", None) == 206 and ranged:
      if int(ranged[1]) != done:
        return False
    else:
      done = 0
    length = answer.headers.get("Content-Length")
    total = done + int(length) if length and length.isdecimal() else None
    known = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if known and not known.startswith("W/"):
      tag.write_text(known)
    else:
      _remove(tag)
    bar = tqdm.tqdm(
      total=total, initial=done, desc=part.stem, unit="B", unit_scale=True, disable=not progress
    )
    with open(part, "ab" if done else "wb") as file, bar:
      while chunk := answer.read(CHUNK):
        file.write(chunk)
        done += len(chunk)
        bar.update(len(chunk))
  if total is not None and done < total:
    raise http.client.IncompleteRead(b"", total - done)
  return True


def _digest(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(*paths: Path) -> None:
  for path in paths:
    with contextlib.suppress(OSError):
      path.unlink()
