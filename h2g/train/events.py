"""TensorBoard's file of events, written here: the packages that write it import a whole framework.

A file is records, each [length u64, masked crc of it u32, content, masked crc of it u32], little
endian; a content is a protocol buffer `Event`, of which four fields are used.
"""

from pathlib import Path
import socket
import struct
import time

_WALL_TIME, _STEP, _VERSION, _SUMMARY, _SESSION = 1, 2, 3, 5, 7  # fields of Event
_START = 1  # of SessionLog.SessionStatus


class EventFile:
  """One file of scalars, written in the caller's thread so that a full disk is noticed."""

  def __init__(self, folder: Path, from_step: int):
    """A new file in `folder`; what an earlier file there says of steps after `from_step` goes."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
    self._file = open(folder / name, "ab")  # noqa: SIM115 (closed by `close`)
    self._add(_bytes(_VERSION, b"brain.Event:2"))
    # TensorBoard drops what an earlier file says of later steps.
    self._add(_int(_STEP, from_step + 1) + _bytes(_SESSION, _int(1, _START)))

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Appends {tag: value}."""
    values = [_bytes(1, tag.encode()) + _float(2, value) for tag, value in scalars.items()]
    summary = b"".join(_bytes(1, value) for value in values)
    self._add(_int(_STEP, step) + _bytes(_SUMMARY, summary))

  def flush(self) -> None:
    self._file.flush()

  def close(self) -> None:
    self._file.close()

  def _add(self, fields: bytes) -> None:
    content = _key(_WALL_TIME, 1) + struct.pack("<d", time.time()) + fields
    length = struct.pack("<Q", len(content))
    self._file.write(length + _masked(length) + content + _masked(content))


def crc32c(content: bytes) -> int:
  """The checksum of RFC 3720, appendix B.4."""
  crc = 0xFFFFFFFF
  for byte in content:
    crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
  return crc ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
  rows = []
  for value in range(256):
    for _ in range(8):
      value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    rows.append(value)
  return tuple(rows)


_TABLE = _table()


def _masked(content: bytes) -> bytes:
  crc = crc32c(content)
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def _key(field: int, kind: int) -> bytes:
  return _varint(field << 3 | kind)


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*out, value])


def _int(field: int, value: int) -> bytes:
  return _key(field, 0) + _varint(value)


def _float(field: int, value: float) -> bytes:
  return _key(field, 5) + struct.pack("<f", value)


def _bytes(field: int, content: bytes) -> bytes:
  return _key(field, 2) + _varint(len(content)) + content
