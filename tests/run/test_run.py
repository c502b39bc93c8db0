"""The command, end to end: one run, a sweep, and what a user gets wrong."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyro_vae import config, data
from pyro_vae.report.latents import get_labels
from pyro_vae.run.experiment import run
from pyro_vae.run.folder import RunFolder

QUICK = [
    "train.epochs=3",
    "evaluate.num_particles=20",
    "evaluate.elbo_particles=5",
    "evaluate.baseline_components=3",
]

LONG = partial(pytest.param, marks=pytest.mark.long)
MOONS = ["data=moons", "data.n=60", "vae/likelihood=normal", "vae.latent_dim=1"]


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
    names = "interpolations reconstructions samples traversals latent tsne rates curves proposals"
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
        LONG(["experiment=vamp_digits"]),
        LONG(["data.binarize=none", "vae/likelihood=normal", "vae.likelihood.scale=optimal"]),
        ["data.binarize=none", "vae/likelihood=categorical", "vae.likelihood.levels=17"],
        LONG(["data.binarize=none", "vae.likelihood.grey_scale=true"]),
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
    assert "cross-entropy, which is not a likelihood" in page
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
    expected = [chr(97 + code) for code in made.labels.test.tolist()]
    # Colours of more names than a legend takes would suggest an order.
    labels = get_labels(made)
    assert (labels.tolist() == expected) if named else (labels is None)
    assert get_labels(made._replace(labels=None)) is None


def test_a_collapsed_model_and_a_prior_without_marginals_are_still_reported(tmp_path):
    quick(tmp_path, *MOONS, "objective.beta=1e6", "optimizer=sgd", "train.clip_norm=1.0")
    assert (tmp_path / "report.html").exists()


def test_the_gap_is_that_of_the_same_rows(tmp_path):
    quick(tmp_path, "evaluate.evidence_rows=20", "evaluate.num_particles=500", "train.epochs=20")
    metrics = figures(tmp_path)
    assert metrics["log_evidence_rows"] == 20
    assert metrics["gap"] > 0


def content(folder):
    """Returns all files of a folder with their content and their time."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """A finished run of three epochs."""
    folder = tmp_path_factory.mktemp("one_run")
    quick(folder, *MOONS)
    return folder


@pytest.fixture
def finished(one_run, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(one_run, tmp_path / "run"))


def test_a_run_that_fails_leaves_the_finished_one_as_it_was(finished):
    before = content(finished)
    for extra in ([], ["evaluate.num_particles=7"]):
        with pytest.raises(FloatingPointError):
            quick(finished, "optimizer=sgd", "optimizer.lr=1e30", "overwrite=true", *extra)
        left = content(finished)
        assert {name: left.pop(name) for name in before} == before
        assert all(name.startswith(".unfinished/") for name in left)


REFUSED = {
    "resume=true train.epochs=0": "Expected epochs to be an integer of at least 1, got 0",
    "resume=true seed=1": "got a different value of seed: 0 there, 1 here: choose another folder",
    "resume=true vae.encoder.hidden=[5]": "got a different value of recipe",
    "resume=true overwrite=true": "got both",
    "resume=maybe": "Expected resume to be true or false, got 'maybe'",
    "seed=1": "with the finished run of another configuration: choose another folder",
    "overwrite=true seed=-1": "Expected seed to be an integer of at least 0, got -1",
    "overwrite=true seed=4294967296": "Expected seed to be an integer below 2",
    "overwrite=true threads=0": "Expected threads to be an integer of at least 1, got 0",
    "overwrite=true device=cuda:99": "Expected device to be one of this machine",
    "overwrite=true device=meta": "Expected device to be one of this machine",
    "overwrite=true device=nowhere": "Expected device to be one of this machine",
    "overwrite=true evaluate.num_particles=0": "Expected evaluate.num_particles to be an integer",
    "overwrite=true evaluate.elbo_particles=1.5": "Expected evaluate.elbo_particles to be an",
    "overwrite=true evaluate.evidence_rows=-5": "Expected evaluate.evidence_rows to be an integer",
    "overwrite=true evaluate.baseline_components=-1": "Expected evaluate.baseline_components to",
    "overwrite=true evaluate.baseline_rows=null": "Expected evaluate.baseline_rows to be an",
    "overwrite=true train.batch_size=0": "Expected batch_size to be an integer of at least 1",
    "overwrite=true train.patience=-1": "Expected patience to be an integer of at least 1",
    "overwrite=true train.compile=maybe": "Expected compile to be true, false, auto or strict",
    "overwrite=true train.precision=half": "Expected precision to be 'float32' or 'bfloat16', got",
    "overwrite=true train.batch_size=1 vae.encoder.batch_norm=true": "at least 2 rows for the",
    "overwrite=true +train.tracker=3": "Expected tracker to have a method log",
    "overwrite=true +train.progress=3": "Expected progress to be True, False or None, got 3",
    "overwrite=true optimizer._target_=torch.optim.SparseAdam ~optimizer.fused": "gradients alone",
    "overwrite=true +train.epoch=3": "Expected train to be settings of pyro_vae.fit, got an",
    "overwrite=true +optimizer.rate=3": "Expected optimizer and train.lr_schedule to have settings",
    "overwrite=true optimizer.lr=-1": "Invalid learning rate",
    "overwrite=true data.n=nine": "n",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_is_refused_leaves_a_finished_run_as_it_was(overrides, finished):
    before = content(finished)
    with pytest.raises(ValueError, match=re.escape(REFUSED[overrides])):
        quick(finished, *MOONS, *overrides.split())
    assert content(finished) == before


def test_a_mistake_creates_no_folder(tmp_path):
    with pytest.raises(ValueError, match="Expected epochs"):
        quick(tmp_path / "run", *MOONS, "train.epochs=0")
    assert not (tmp_path / "run").exists()


def test_more_epochs_and_another_run_replace_a_finished_one(finished, tmp_path):
    (finished / "figures" / "old.png").write_bytes(b"old")
    (finished / "codes").mkdir()
    (finished / ".metrics.json.1.part").write_text("left by a kill")
    (finished / "figures" / ".latent.png.1.part").write_text("left by a kill")
    quick(finished, *MOONS, "train.epochs=5", "resume=true")
    quick(tmp_path / "whole", *MOONS, "train.epochs=5")
    assert figures(finished) == figures(tmp_path / "whole")
    weights = [(f / "model.safetensors").read_bytes() for f in (finished, tmp_path / "whole")]
    assert weights[0] == weights[1]
    expected = set(content(tmp_path / "whole"))
    assert set(content(finished)) == expected
    assert (finished / "codes").is_dir()
    quick(finished, *MOONS, "seed=3", "overwrite=true")
    assert figures(finished)["seed"] == 3
    assert set(content(finished)) == expected
    quick(finished, *MOONS, "seed=3", "threads=null")


def test_an_unfinished_run_is_continued_or_replaced_only_when_asked(finished):
    for name in ("metrics.json", "report.html"):
        (finished / name).unlink()
    before = content(finished)
    with pytest.raises(ValueError, match="with an unfinished run: choose another folder"):
        quick(finished, *MOONS)
    assert content(finished) == before
    quick(finished, *MOONS, "seed=2", "overwrite=true")
    assert figures(finished)["seed"] == 2


def test_what_replaces_a_run_is_continued_after_a_kill(finished, one_run, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    before = content(finished)
    monkeypatch.setattr("pyro_vae.run.experiment.evaluate_trained_run", kill)
    for expected in (Killed, ValueError):
        with pytest.raises(expected):
            quick(finished, *MOONS, "train.epochs=4", *["resume=true"] * (expected is Killed))
        assert content(finished).items() >= before.items()
    with pytest.raises(ValueError, match="with an unfinished run"):
        quick(finished, *MOONS)
    monkeypatch.undo()
    quick(finished, *MOONS, "train.epochs=4", "resume=true")
    assert figures(finished)["epochs"] == 4
    assert set(content(finished)) == set(content(one_run))


def test_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Expected out to be a folder, got the file '.*/file'"):
        quick(tmp_path / "file", *MOONS)
    with pytest.raises(ValueError, match=r"a folder that can be written to, got '.*/file/run'"):
        quick(tmp_path / "file" / "run", *MOONS)


RUNS = ("metrics.json", "report.html", "figures/latent.png", "history.csv", "resume.pt")


@pytest.mark.parametrize("moves", range(2 * len(RUNS) + 2))
def test_a_replacement_that_is_interrupted_is_completed(moves, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    count = []

    def counted(real):
        def call(*arguments, **options):
            count.append(arguments)
            if len(count) > moves:
                raise Killed
            real(*arguments, **options)

        return call

    def written(name):
        for file in RUNS:
            (place / file).parent.mkdir(exist_ok=True)
            (place / file).write_text(name)

    folder = RunFolder(tmp_path, "old", resume=False, overwrite=True)
    place = folder.open({})
    written("old")
    (place / "data.json").write_text("not of the new run")
    folder.close(place)
    folder = RunFolder(tmp_path, "new", resume=False, overwrite=True)
    place = folder.open({})
    assert place != tmp_path
    written("new")
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        folder.close(place)
    if (tmp_path / "metrics.json").exists():
        # Never the figures of one run beside the weights of the other.
        which = (tmp_path / "metrics.json").read_text()
        assert (tmp_path / "resume.pt").read_text() == which
    folder.recover()
    if (tmp_path / ".unfinished").exists():
        folder.close(place)
    assert {name: text for name, (text, _) in content(tmp_path).items()} == {
        **dict.fromkeys(RUNS, b"new"), ".job": b"new",
    }  # fmt: skip
