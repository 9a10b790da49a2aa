"""The page that compares runs: whole, well-formed, and of unfinished runs too."""

import json
import xml.etree.ElementTree as xml

import pytest

from h2g import report


@pytest.fixture
def runs(tmp_path):
  for name, lr in (("a", 0.1), ("b<", 0.2)):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": {"lr": lr, "steps": 3}}))
    rows = [{"step": i, "seeds": [0, 1], "seconds": i, "loss": [lr / i, 3.0]} for i in (1, 2, 3)]
    rows[-1]["val/loss"] = [1.0, 2.0]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 4, "se')
  done = dict(dataset="d", model="m", metric="loss", test_mean=1.5, val_mean=1.25, steps=3)
  (tmp_path / "a" / "results.json").write_text(json.dumps(done))
  (tmp_path / "a" / "cost.json").write_text(json.dumps({"step_ms": 2.0, "mfu": None}))
  return [tmp_path / "a", tmp_path / "b<"]


@pytest.mark.smoke
def test_one_page(runs, tmp_path, capsys):
  out = tmp_path / "page.html"
  assert report.main([*map(str, runs), "--out", str(out)]) == 0
  text = out.read_text()
  assert "http" not in text and "<script" not in text
  body = text[text.index("<table>") : text.index("</html>")]
  tree = xml.fromstring(f"<body>{body.replace('&#9632;', '')}</body>")
  cells = [["".join(cell.itertext()).strip() for cell in row] for row in tree.iter("tr")]
  assert cells[0][-3:] == ["step_ms", "mfu", "train.lr"]  # settings that agree are left out
  assert cells[1][1:8] == ["d", "m", "loss", "1.5000", "1.2500", "3", "2.0"]
  assert cells[2][0].endswith("b<") and cells[2][4:7] == ["not finished", "not finished", "3"]
  assert cells[2][-1] == "0.2"
  pictures = list(tree.iter("svg"))
  assert [next(p.iter("text")).text for p in pictures] == ["loss", "val/loss"]
  assert [len(list(p.iter("polyline"))) for p in pictures] == [2, 2]
  assert report.series([{"step": 1, "loss": [1.0]}, {"step": 1, "loss": [2.0]}], "loss") == [
    (1, 1.5)
  ]


def test_what_is_no_run_is_named(tmp_path, capsys):
  assert report.main([str(tmp_path)]) == 2
  assert "holds no run: name the --workdir" in capsys.readouterr().err
