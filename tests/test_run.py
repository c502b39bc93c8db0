"""The command, end to end: one run, a sweep, and what a user gets wrong."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pyro_vae import config, data
from pyro_vae.pictures import labels_of
from pyro_vae.run import run

QUICK = [
    "train.epochs=3",
    "evaluate.num_particles=20",
    "evaluate.elbo_particles=5",
    "evaluate.baseline_components=3",
]


def command(*arguments, cwd):
    """Runs the command as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pyro_vae", *arguments],
        cwd=cwd, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip


def figures(folder):
    """Returns a run's figures, less what the clock decides."""
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics.pop("seconds")
    return metrics


def quick(out, *overrides):
    """Runs a short job in this process, and leaves the number of threads as it was."""
    threads = torch.get_num_threads()
    try:
        return run(config.compose([*QUICK, "threads=1", *overrides, f"out={out}"]))
    finally:
        torch.set_num_threads(threads)


def test_a_run_leaves_what_it_promises(tmp_path):
    done = command(*QUICK, "hydra.run.dir=job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "log evidence" in done.stdout
    out = tmp_path / "job"
    metrics = figures(out)
    assert {
        "elbo", "objective", "log_evidence", "rate", "distortion", "active_units",
        "kl_closed_form", "parameters", "seed", "threads", "data", "binarize",
    } <= metrics.keys()  # fmt: skip
    assert metrics["kl_closed_form"] == {"vae.z": True}
    assert metrics["elbo"] == pytest.approx(-metrics["rate"] - metrics["distortion"], abs=1e-4)
    assert metrics["elbo"] < metrics["log_evidence"]
    assert metrics["binarize"] == "threshold"
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert "train_objective" in rows[0]
    pictures = {path.name for path in (out / "figures").iterdir()}
    names = "reconstructions samples traversals latent tsne rates curves proposals"
    assert pictures == {f"{name}.png" for name in names.split()}
    page = (out / "report.html").read_text()
    assert "digits, binarized: threshold" in page
    assert '<th scope="row">Engine</th><td>eager</td>' in page
    assert f"{metrics['log_evidence']:.2f}".lstrip("-") in page
    cfg = config.OmegaConf.load(out / "config.yaml")
    assert "${" not in (out / "config.yaml").read_text()
    vae = config.build(cfg.vae, event_shape=(1, 8, 8))
    vae.load_state_dict(load_file(out / "model.safetensors"))
    assert (out / ".hydra" / "overrides.yaml").is_file()


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=grey_digits"],
        ["experiment=vamp_digits"],
        ["data.binarize=none", "vae/likelihood=normal", "vae.likelihood.scale=optimal"],
        ["data.binarize=none", "vae/likelihood=categorical", "vae.likelihood.levels=17"],
        ["data.binarize=none", "vae.likelihood.grey_scale=true"],
        ["vae/encoder=conv", "vae/decoder=conv", "vae.latent_dim=2", "objective=trace_elbo"],
        ["objective=trace_mean_field_elbo", "optimizer=sgd", "train.clip_norm=1.0"],
    ],
    ids=" ".join,
)
def test_other_choices_run(tmp_path, overrides):
    evidence = quick(tmp_path, *overrides)
    metrics = figures(tmp_path)
    assert evidence == metrics["log_evidence"]
    assert (metrics["mixture_log_evidence"] is None) == (
        "vae.likelihood.grey_scale=true" in overrides
    )
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_a_report_tells_of_cross_entropies_and_of_a_sampled_kl(tmp_path):
    quick(
        tmp_path, "data.binarize=none", "vae.likelihood.grey_scale=true", "objective.analytic=false"
    )
    assert figures(tmp_path)["grey_scale"]
    page = (tmp_path / "report.html").read_text()
    assert "cross-entropy, which is no likelihood" in page
    assert "closed form for Normal and Normal; sampled in training" in page
    with (tmp_path / "history.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert f"{float(last['train_objective']):.2f}.".replace("-", "\N{MINUS SIGN}") in page


def test_a_report_of_a_table_names_its_columns_and_gaps(tmp_path):
    rows = [f"{i % 7},{i % 5 if i % 4 else ''}" for i in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["height,weight", *rows]))
    path = f"data.path={tmp_path}/t.csv"
    quick(tmp_path, "data=table", path, "data.missing=nan", "vae/likelihood=normal")
    page = (tmp_path / "report.html").read_text()
    assert "height, weight" in page
    assert "of the training values, left out of the likelihood" in page
    assert not figures(tmp_path)["grey_scale"]


@pytest.mark.parametrize(("kinds", "named"), [(3, True), (21, False)])
def test_pictures_are_coloured_by_the_names_of_labels(tmp_path, kinds, named):
    rows = [f"{i},{chr(97 + i % kinds)}" for i in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["height,kind", *rows]))
    made = data.table(tmp_path / "t.csv", label="kind")
    expected = [chr(97 + code) if named else code for code in made.labels.test.tolist()]
    assert labels_of(made).tolist() == expected
    assert labels_of(made._replace(labels=None)) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vae/prior=nonsense", "Could not find 'vae/prior/nonsense'"),
        ("vae.latent_dims=3", "Key 'latent_dims' is not in struct"),
        ("vae.latent_dim=0", "Expected latent_dim to be an integer of at least 1, got 0"),
        ("objective.num_particles=0", "Expected num_particles to be a positive integer, got 0"),
        ("data.binarize=none", "got grey-scale values: binarize the data"),
        ("vae/likelihood=categorical", "levels"),
        ("train.epochs=0", "Expected epochs to be an integer of at least 1, got 0"),
        ("objective.beta=-1", "Expected beta to be zero or more, got -1"),
        ("device=nowhere", "nowhere"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, override, message):
    overrides = [override]
    if override.startswith("vae/likelihood"):
        overrides.append("data.binarize=none")
    done = command(*QUICK, *overrides, "hydra.run.dir=job", cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "job" / "metrics.json").exists()
    assert not (tmp_path / "job" / "model.safetensors").exists()


def test_a_collapsed_model_and_a_prior_without_marginals_are_still_reported(tmp_path):
    quick(tmp_path, "objective.beta=1e6", "optimizer=sgd", "train.clip_norm=1.0")
    assert (tmp_path / "report.html").exists()


def test_the_gap_is_that_of_the_same_rows(tmp_path):
    quick(tmp_path, "evaluate.evidence_rows=20", "evaluate.num_particles=2000", "train.epochs=20")
    metrics = figures(tmp_path)
    assert metrics["log_evidence_rows"] == 20
    assert metrics["gap"] > 0


def test_a_run_that_fails_leaves_no_figures_of_the_one_before(tmp_path):
    quick(tmp_path)
    with pytest.raises(FloatingPointError):
        quick(tmp_path, "optimizer=sgd", "optimizer.lr=1e30")
    assert not (tmp_path / "metrics.json").exists()
