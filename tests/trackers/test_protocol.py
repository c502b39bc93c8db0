"""Runs with a tracker: what it gets, and whose errors end a run."""

import csv
import json

import pytest

from helpers.commands import call
from helpers.recorder import Recorder
from pyro_vae import config
from pyro_vae.run import run
from pyro_vae.trackers import PrunedError, build, values

QUICK = [
    "data=moons", "data.n=60", "vae/likelihood=normal", "train.epochs=3", "train.compile=false",
    "evaluate.num_particles=10", "evaluate.elbo_particles=2", "evaluate.baseline_components=0",
    "train.checkpoint_seconds=0",
]  # fmt: skip
RECORDER = "+tracker._target_=helpers.recorder.Recorder"


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    """Leaves out the figures, which take longest; one stands for them."""

    def write(report, folder):
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / "curves.png").write_bytes(b"")

    monkeypatch.setattr("pyro_vae.report.content.build_report", lambda *run: None)
    monkeypatch.setattr("pyro_vae.report.page.write", write)
    monkeypatch.setattr(Recorder, "calls", [])


def train(out, *overrides, **arguments):
    """Runs a quick training, and returns the names of the calls of the tracker."""
    run(config.compose([*QUICK, f"out={out}", *overrides]), **arguments)
    return [name for name, _ in Recorder.calls]


def read(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    with (folder / "history.csv").open() as file:
        rows = [{key: float(x) for key, x in row.items()} for row in csv.DictReader(file)]
    return metrics, rows


def test_a_tracker_gets_settings_epochs_and_results_and_changes_no_bit(tmp_path):
    names = train(tmp_path / "a", RECORDER, group="study")
    assert names == ["start", "log 1", "log 2", "log 3", "finish"]
    (_, described), *rows, (_, (metrics, figures)) = Recorder.calls
    expected, history = read(tmp_path / "a")
    assert (metrics, [row for _, row in rows]) == (expected, history)
    assert figures == [tmp_path / "a" / "figures" / "curves.png"]
    assert (described.group, described.history) == ("study", [])
    assert described.settings["vae"]["latent_dim"] == 10
    assert not {"hydra", "tracker", "resume", "overwrite"} & set(described.settings)
    assert described.name == (tmp_path / "a" / ".job").read_text()
    train(tmp_path / "b")
    plain, plain_history = read(tmp_path / "b")
    assert (plain | {"seconds": 0}, plain_history) == (metrics | {"seconds": 0}, history)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_resumed_run_has_the_key_of_the_first_and_its_trained_epochs(tmp_path):
    train(tmp_path, RECORDER, group="study")
    # Without the results this is a run that was killed in its evaluation.
    (tmp_path / "metrics.json").unlink()
    names = train(tmp_path, RECORDER, "resume=true", "train.epochs=5")
    assert names[5:] == ["start", "log 4", "log 5", "finish"]
    first, second = (described for name, described in Recorder.calls if name == "start")
    assert first[:3] == second[:3]
    assert second.history == read(tmp_path)[1][:3]
    # More epochs of a finished run, in a folder of their own until they are complete.
    assert train(tmp_path, RECORDER, "resume=true", "train.epochs=6")[9:] == [
        "start", "log 6", "finish",
    ]  # fmt: skip
    third = Recorder.calls[9][1]
    assert (third.key, len(third.history)) == (first.key, 5)
    train(tmp_path, RECORDER, "overwrite=true")
    fourth = Recorder.calls[12][1]
    assert (fourth.key != first.key, fourth.history) == (True, [])


def test_a_store_that_fails_ends_no_training_and_gets_the_epochs_at_the_end(tmp_path):
    class Gone(Recorder):
        def log(self, values, step):
            if step == 2:
                self.fails = ["log 2"] * (not self.fails)
            super().log(values, step)

    Recorder.Gone = Gone
    try:
        with pytest.warns(UserWarning, match=r"Epoch 2 could not be logged .*the store is gone"):
            names = train(tmp_path / "a", "+tracker._target_=helpers.recorder.Recorder.Gone")
    finally:
        del Recorder.Gone
    assert names == ["start", "log 1", "log 2", "log 3", "finish"]
    with pytest.warns(UserWarning, match="tracker") as warned:
        train(tmp_path / "b", RECORDER, "+tracker.fails=[log 2]")
    said = [str(warning.message) for warning in warned]
    assert len(said) == 2
    assert "lacks the epochs from 2 on and the results of this run (ConnectionError" in said[1]
    assert len(read(tmp_path / "b")[1]) == 3


def test_a_pruned_run_and_a_failed_one_are_marked(tmp_path):
    class Pruner:
        def log(self, values, step):
            if step == 2:
                raise PrunedError("pruned after epoch 2")

    with pytest.raises(PrunedError):
        train(tmp_path / "a", RECORDER, tracker=Pruner())
    assert [name for name, _ in Recorder.calls] == ["start", "log 1", "log 2", "abort"]
    # The epoch after which it was pruned is one of the training.
    assert len((tmp_path / "a" / "history.csv").read_text().splitlines()) == 1 + 2
    assert Recorder.calls[-1][1] == ("pruned", "PrunedError: pruned after epoch 2")
    fails = "+train.tracker={_target_: helpers.recorder.Recorder, fails: [log 1]}"
    with pytest.raises(ConnectionError):
        train(tmp_path / "b", RECORDER, fails)
    assert Recorder.calls[-1] == ("abort", ("failed", "ConnectionError: the store is gone"))


MISTAKES = {
    "+tracker._target_=helpers.killer.Killer +tracker.folder=here": "a method start(run)",
    "+tracker._target_=no.such.Tracker": "got no.such.Tracker, which cannot be built",
    "+tracker._target_=helpers.recorder.Recorder +tracker.speed=1": "argument 'speed'",
    "+tracker.uri=here": "Expected tracker to have a _target_",
    "tracker=mlflow tracker.uri=3": "Expected tracker.uri to be the URI of a database",
    "tracker=mlflow tracker.experiment=''": "Expected tracker.experiment to be a name",
    "tracker=wandb tracker.library=aim": "Expected tracker.library to be wandb or trackio",
    "tracker=wandb tracker.project=null": "Expected tracker.project to be a name",
    "tracker=trackio tracker.init=3": "Expected tracker.init to be arguments by name",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_error_before_any_work(words, tmp_path):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        train(tmp_path / "out", *words.split())
    assert MISTAKES[words] in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_cannot_start_is_an_error_before_the_first_epoch(tmp_path):
    with pytest.raises(
        ValueError, match=r"Expected Recorder to start, got ConnectionError: the st"
    ):
        train(tmp_path, RECORDER, "+tracker.fails=[start]")
    assert not (tmp_path / "history.csv").exists()


@pytest.mark.parametrize("extra", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_missing_extra_is_named(extra, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "find_spec", lambda module: None)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        train(tmp_path, f"tracker={extra}")
    assert str(raised.value) == (
        f"Expected {extra} for tracker={extra}, got none: pip install 'pyro_vae[{extra}]'"
    )


def test_a_mistake_is_one_error_of_a_sweep_before_any_job(tmp_path):
    outcome = call(
        "pyro-vae", "-m", *QUICK, "seed=0,1", "tracker=mlflow", "tracker.uri=3", cwd=tmp_path
    )
    assert outcome.code == 1
    assert outcome.err.startswith("ValueError: Expected tracker.uri to be the URI of a database")
    assert not list(tmp_path.iterdir())


def test_metrics_and_settings_have_one_value_by_name():
    metrics = {"a": {"b": 1, "c": None, "d": True}, "e": [1.5, 2], "f": [], "g": ["x"], "h": "y"}
    assert values.split_metrics(metrics) == (
        {"a.b": 1, "e.0": 1.5, "e.1": 2}, {"a.d": "true", "g": '["x"]', "h": "y"}
    )  # fmt: skip
    assert values.flatten({"a": {"b": (1, 2), "c": None}}) == {"a.b": "[1, 2]", "a.c": None}
