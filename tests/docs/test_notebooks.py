"""The notebooks among the documents run without errors, and are stored without outputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def read_cells(path):
    return [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]


def execute(path, folder):
    """Executes a copy of a notebook, and returns the outputs of all cells."""
    copy = Path(shutil.copy(path, folder))
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--ExecutePreprocessor.timeout=600", str(copy)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return copy, [output for cell in read_cells(copy) for output in cell["outputs"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_stored(path):
    assert not any(cell["outputs"] for cell in read_cells(path))


@pytest.mark.pages
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_runs_and_ends_with_a_picture(path, tmp_path):
    copy, outputs = execute(path, tmp_path)
    # An error while a figure is drawn does not stop a notebook.
    assert [o for o in outputs if o["output_type"] == "error"] == []
    assert "image/png" in outputs[-1]["data"]
    if folder := os.environ.get("PYRO_VAE_NOTEBOOKS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(copy, folder)
