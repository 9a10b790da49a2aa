"""Runs that several tests look at."""

import os
from pathlib import Path
import sys

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # train_problems


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
  """The cache of compiled programs stands with the tests' other files, and goes with them."""
  from h2g.train.compilation import enable_compilation_cache

  home = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(os.environ, "XDG_CACHE_HOME", str(home))
    yield home
  enable_compilation_cache("")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """Work directories of uninterrupted runs: {"full": ..., "stream": ...}."""
  from train_problems import harness

  folders = {}
  for variant in ("full", "stream"):
    folders[variant] = tmp_path_factory.mktemp("runs") / variant
    assert harness.train(folders[variant], variant=variant) == 0
  return folders
