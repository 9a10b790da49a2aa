"""Downloads: whole, checked, resumed; against a server in this process."""

import hashlib
import http.server
import re
import threading

import pytest

from h2g.data import download
from h2g.errors import InputError

CONTENT = bytes(range(256)) * 40


class Server(http.server.BaseHTTPRequestHandler):
  """Serves CONTENT with ranges; `stop` ends an answer early, `tag` names its version."""

  stop, tag, ranges, asked = None, '"one"', True, None

  def do_GET(self):
    kind = type(self)
    wanted = self.headers.get("Range")
    kind.asked.append(wanted)
    if self.path != "/data.zip":
      self.send_error(404)
      return
    begin = 0
    if wanted and kind.ranges and self.headers.get("If-Range", kind.tag) == kind.tag:
      begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
    if begin >= len(CONTENT):
      self.send_response(416)
      self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
      self.send_header("Content-Length", "0")
      self.end_headers()
      return
    self.send_response(206 if begin else 200)
    if begin:
      self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
    self.send_header("Content-Length", str(len(CONTENT) - begin))
    self.send_header("ETag", kind.tag)
    self.end_headers()
    self.wfile.write(CONTENT[begin : kind.stop])

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  kind = type("OneServer", (Server,), {"asked": []})
  with http.server.HTTPServer(("127.0.0.1", 0), kind) as running:
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    kind.url = f"http://127.0.0.1:{running.server_port}/data.zip"
    yield kind
    running.shutdown()
    thread.join()


def get(server, to, **options):
  return download.fetch(server.url, to, progress=False, **options)


def test_a_file_arrives_once(server, tmp_path, capsys):
  to = tmp_path / "new" / "data.zip"
  digest = hashlib.sha256(CONTENT).hexdigest()
  assert download.fetch(server.url, to, sha256=digest) == to and to.read_bytes() == CONTENT
  assert "data.zip" in capsys.readouterr().err  # the bar
  get(server, to)
  assert len(server.asked) == 1 and [path.name for path in to.parent.iterdir()] == ["data.zip"]


def test_it_goes_on_where_it_stopped(server, tmp_path):
  to, server.stop = tmp_path / "data.zip", 1000
  with pytest.raises(InputError, match=r"run the command again.*put it at .*data\.zip"):
    get(server, to)
  assert not to.exists() and (tmp_path / "data.zip.part").stat().st_size == 1000
  server.stop = None
  assert get(server, to).read_bytes() == CONTENT
  assert server.asked == [None, "bytes=1000-"]
  assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]


def test_a_part_of_another_version_is_not_used(server, tmp_path):
  to, server.stop = tmp_path / "data.zip", 1000
  with pytest.raises(InputError):
    get(server, to)
  server.stop, server.tag = None, '"two"'
  assert get(server, to).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_that_is_whole_or_too_long(server, tmp_path, size, ranges):
  server.ranges = ranges
  (tmp_path / "data.zip.part").write_bytes((CONTENT + b"12345")[:size])
  assert get(server, tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
  with pytest.raises(InputError, match="wrong checksum, sha256"):
    get(server, tmp_path / "data.zip", sha256="0" * 64)
  assert not list(tmp_path.iterdir())


def test_errors_name_the_address_and_the_place(server, tmp_path):
  to = tmp_path / "data.zip"
  with pytest.raises(
    InputError, match=rf"says 404 Not Found; download it by hand and put it at {to}"
  ):
    download.fetch(server.url.replace("data", "other"), to, progress=False)
  with pytest.raises(InputError, match=rf"http://127.0.0.1:9/x could not be fetched .*{to}"):
    download.fetch("http://127.0.0.1:9/x", to, progress=False)
  with pytest.raises(InputError, match=r"ftp://x/y cannot be fetched by h2g"):
    download.fetch("ftp://x/y", to)
  assert not list(tmp_path.iterdir())
