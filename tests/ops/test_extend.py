"""The page *Extend a primitive* (`h2g/ops/__init__.py`) runs as it stands, and stays short."""

import doctest

import pytest

import h2g.ops


@pytest.mark.smoke
def test_every_example_runs():
  found = doctest.testmod(h2g.ops)
  assert found.attempted >= 15 and not found.failed


def test_every_example_is_under_twenty_lines():
  sections = h2g.ops.__doc__.split("\n**A new ")[1:]
  assert [s.split("**")[0] for s in sections] == ["mask", "logits hook", "operation"]
  for section in sections:
    code = [line for line in section.splitlines() if line.startswith((">>>", "..."))]
    assert len(code) < 20
