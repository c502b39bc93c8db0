"""Every objective as the command runs it, on real digits and on MNIST."""

import gzip
import json
import math
import shutil

import pytest
import torch

from helpers.paths import DATA
from pyro_vae import VAE, config, data, fit
from pyro_vae.objectives import GECO
from pyro_vae.run.experiment import run

OPTIONS = sorted(path.stem for path in (config.APP / "objective").glob("*.yaml"))
RAW = DATA / "MNIST" / "raw"

SHORT = [
    "threads=1",
    "train.epochs=2",
    "evaluate.num_particles=20",
    "evaluate.elbo_particles=5",
    "evaluate.baseline_components=0",
    "evaluate.evidence_rows=50",
]


def figures(overrides, out):
    """The figures of a short run in this process, whose threads are left as they were."""
    threads = torch.get_num_threads()
    try:
        run(config.compose([*SHORT, *overrides, f"out={out}"]))
    finally:
        torch.set_num_threads(threads)
    return json.loads((out / "metrics.json").read_text())


def check(metrics):
    assert all(math.isfinite(metrics[name]) for name in ("elbo", "log_evidence", "objective"))
    assert metrics["elbo"] < metrics["log_evidence"] < 0


def test_the_walk_finds_the_objectives():
    assert len(OPTIONS) >= 12


@pytest.mark.long
@pytest.mark.parametrize("option", OPTIONS)
def test_an_objective_runs_on_digits(option, tmp_path):
    check(figures([f"objective={option}"], tmp_path / "out"))


@pytest.fixture(scope="module")
def mnist_root(tmp_path_factory):
    """MNIST, unpacked as torchvision wants it."""
    if not RAW.exists():
        pytest.skip(f"no MNIST in {RAW}; PYRO_VAE_DATA names the folder above MNIST/raw")
    root = tmp_path_factory.mktemp("mnist")
    (root / "MNIST" / "raw").mkdir(parents=True)
    for packed in RAW.glob("*.gz"):
        with gzip.open(packed) as source, (root / "MNIST" / "raw" / packed.stem).open("wb") as out:
            shutil.copyfileobj(source, out)
    return root


@pytest.mark.long
@pytest.mark.parametrize("option", OPTIONS)
def test_an_objective_runs_on_mnist(option, mnist_root, tmp_path):
    given = [f"objective={option}", "data=mnist", f"data.root={mnist_root}", "data.limit=1000"]
    metrics = figures([*given, "data.valid=200"], tmp_path / "out")
    check(metrics)
    assert metrics["binarize"] == "dynamic"


def test_the_multiplier_of_geco_goes_on_where_it_was(tmp_path):
    digits = data.digits()

    def trained(epochs, out, resume=False):
        torch.manual_seed(0)
        vae, objective = VAE(digits.event_shape, latent_dim=2), GECO(target=20.0, step_size=0.01)
        fit(vae, digits.train, objective=objective, epochs=epochs, out=out, resume=resume)
        return vae, objective

    (whole, first), _ = trained(4, tmp_path / "whole"), trained(2, tmp_path / "parts")
    parts, second = trained(4, tmp_path / "parts", resume=True)
    assert first.multiplier > 1.5
    assert torch.equal(first.multiplier, second.multiplier)
    assert torch.equal(first.average, second.average)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
