"""The papers: their READMEs can be read, their claims judged, and mistakes named."""

import json

import numpy as np
import pytest

from h2g.errors import InputError
from h2g.papers import claims
from h2g.papers import Finding
from h2g.papers import papers
from h2g.papers import Runs
from h2g.papers.__main__ import main
from h2g.papers.__main__ import root
from h2g.train.__main__ import parse
from h2g.train.settings import complete

BLOCK = """# A paper
```toml paper
number = 7
title = "T"
arxiv = "0000.00000"
claim = "c"
state = "holds"
result = "r"
seeds = 3
date = "2026-01-01"
machine = "m"
```
"""


@pytest.mark.smoke
def test_every_paper_has_its_four_places():
  here = root()
  found = papers(here)
  assert any(paper.slug == "h2gb" for paper in found)
  for paper in found:
    folder = here / "experiments" / paper.slug
    assert (folder / "experiment.py").is_file() and (folder / "claim.py").is_file(), paper.slug
    assert (here / "configs" / f"{paper.slug}.py").is_file(), paper.slug
    row = f"| {paper.number:02d} | `{paper.slug}` |"
    assert row in (here / "WORKSPACE.md").read_text(), f"WORKSPACE.md lacks the row {row}"


def test_the_list_shows_claim_state_and_result(capsys):
  assert main(["papers"]) == 0
  out = capsys.readouterr().out
  assert "h2gb" in out and "claim:" in out and "result:" in out


@pytest.mark.parametrize(
  "old, new, message",
  [
    ("number = 7\n", "", "lacks number"),
    ("number = 7", "number = 'x'", "number='x' must be of type int"),
    ('state = "holds"', 'state = "fine"', "choose from holds, holds in part"),
    ("seeds = 3", "seeds = 3\nspeed = 1", "speed is no field of a paper"),
    ("seeds = 3", "seeds = = 3", "is no TOML"),
  ],
)
def test_a_block_that_cannot_be_read_is_named(tmp_path, old, new, message):
  readme = tmp_path / "experiments" / "x" / "README.md"
  readme.parent.mkdir(parents=True)
  readme.write_text(BLOCK)
  assert papers(tmp_path)[0].slug == "x"
  readme.write_text(BLOCK.replace(old, new))
  with pytest.raises(InputError, match="README") as error:
    papers(tmp_path)
  assert message in str(error.value)


def test_a_claim_is_judged_over_its_runs(tmp_path):
  runs = Runs("h2gb", tmp_path, bar=False)
  made = {"": 0.9, ",model=mlp": 0.7, ",model=gcn": 0.7, ",model=hgt": 0.95}
  for name, value in made.items():
    runs._found[f"celegans{name}"] = {"test": [value - 0.01, value + 0.01]}
  findings = claims.check(runs)
  assert [finding.holds for finding in findings] == [True, True, False]
  assert json.loads((tmp_path / "claim.json").read_text())[2]["holds"] is False
  assert "| celegans | 0.9000 ± 0.0100 | 2 |" in runs.table()


def test_variants_train_side_by_side_after_what_they_read(tmp_path):
  runs = Runs("efficient_probing", tmp_path, seeds=2, bar=False)
  runs._found["tiny,pool=cls"] = {}
  found = {job.name: job for job in runs._jobs(("tiny,objective=cls", "tiny,pool=cls", "tiny"))}
  assert list(found) == ["encoder,objective=cls", "tiny,objective=cls", "encoder", "tiny"]
  encoder = tmp_path / "encoder"
  assert found["tiny"].after == (encoder,) and found["encoder"].after == ()
  assert found["tiny"].options == ("--config.num_seeds=2", f"--config.encoder.workdir={encoder}")
  assert found["encoder"].options == ()  # its number of seeds is its own

  runs = Runs("mvpa", tmp_path, seeds=2, bar=False)
  first, second = runs._jobs(("tiny,model=mvpa", "tiny,model=mvpa,task=classify"))
  assert second.after == (first.folder,)
  assert first.options == ("--config.num_seeds=2",) == second.options[:1]
  for job in (first, second):  # or what a process trained would not be found
    asked = parse(["h2g.train", *job.words[2:]]).config
    assert asked.to_json() == complete(runs.config(job.name)).to_json()


def test_nan_does_not_hold():
  assert not Finding.compare("accuracy", np.nan, 0.0).holds
  assert not Finding.at_most("time", np.nan, 1.0).holds and Finding.at_most("time", 1.0, 1.0).holds
  assert not Finding.above("gap", np.nan, 0.1).holds and Finding.above("gap", 0.2, 0.1).holds


def test_mistakes_on_the_command_line_are_one_line(capsys):
  assert main(["papers", "check", "nothing"]) == 2
  assert "is no paper here: choose from" in capsys.readouterr().err
  assert main(["papers", "chekc"]) == 2
  assert "say `check SLUG`" in capsys.readouterr().err
