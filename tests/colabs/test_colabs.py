"""Every notebook runs from its first cell to its last, offline: half a minute to minutes each."""

import os
from pathlib import Path
import warnings

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in sorted((ROOT / "colabs").glob("*.ipynb"))]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_runs(path, monkeypatch):
  nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra [dev] or [colab]")
  nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra [dev] or [colab]")
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
  monkeypatch.delenv("XLA_FLAGS")  # one device and all of XLA's passes, as whoever opens it has
  monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the kernel's client, not ours
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
      notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
  pictures = [
    output
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    if "image/png" in output.get("data", {})
  ]
  assert pictures, "a notebook shows at least one picture"
