"""A notebook's kernel: each result and plot once, and bars instead of lines."""

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.paths import ROOT

CELLS = [
    f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    "from pyro_vae import VAE, config, plots\nfrom pyro_vae.run import run",
    "cfg = config.compose(['data=moons', 'data.n=60', 'vae/likelihood=normal', 'train.epochs=3',"
    " 'train.compile=false', 'evaluate.num_particles=10', 'evaluate.elbo_particles=2',"
    " 'evaluate.baseline_components=0'])\nevidence = run(cfg)",
    "import matplotlib.pyplot as plt\n"
    "before = plt.get_backend()\nrun(cfg)\n(plt.get_backend() == before, plt.get_fignums())",
    "sample = VAE((1, 8, 8), 2).sample(4)\nplots.samples(sample)",
    "plots.samples(sample).figure",
    "ax = plots.samples(sample)",
    "figure, ax = plt.subplots()\nplots.samples(sample, ax=ax);",
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert len(list((folder / "outputs").iterdir())) == 1
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.pages
def test_a_run_shows_bars_and_its_summary_once(cells):
    assert all(output.output_type == "stream" for output in cells[1])
    text = "".join(output.text for output in cells[1] if output.name == "stdout")
    assert "training:" in text
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    assert len(lines) <= 8
    assert sum("nats per datum, on held-out rows" in line for line in lines) == 1


@pytest.mark.pages
def test_a_run_leaves_backend_and_figures_alone(cells):
    assert cells[2][-1].data["text/plain"] == "(True, [])"


@pytest.mark.pages
@pytest.mark.parametrize(("cell", "pictures"), [(3, 1), (4, 1), (5, 0), (6, 1)])
def test_each_plot_is_shown_once(cells, cell, pictures):
    assert sum("image/png" in output.get("data", {}) for output in cells[cell]) == pictures
