"""Searches by the command."""

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest

from helpers.commands import call
from helpers.paths import ROOT
from pyro_vae import config
from pyro_vae.search import sweeper
from pyro_vae.search.pruning import PrunedError, PruningTracker, TrialReference
from pyro_vae.search.storage import open_storage
from pyro_vae.sweeps import journal

QUICK = [
    "data=moons", "data.n=60", "vae/likelihood=normal", "train.epochs=3", "train.compile=false",
    "evaluate.num_particles=10", "evaluate.elbo_particles=2", "evaluate.baseline_components=0",
]  # fmt: skip
SEARCH = ["-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=random", *QUICK]
SPACE = ["vae.latent_dim=int(interval(1,6))", "optimizer.lr=tag(log,interval(1e-4,1e-1))"]
PRUNER = "hydra/sweeper/pruner=percentile"
AGGRESSIVE = [
    PRUNER, "hydra.sweeper.pruner.percentile=1.0", "hydra.sweeper.pruner.n_startup_trials=1",
    "hydra.sweeper.pruner.n_warmup_steps=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(before)


def search(*overrides, cwd, space=SPACE):
    """Runs a quick search, and returns its exit code, what it said, and its summary."""
    outcome = call("pyro-vae", *SEARCH, *space, *overrides, cwd=cwd)
    path = cwd / "multirun" / "sweep" / "study.json"
    summary = json.loads(path.read_text()) if path.exists() else None
    return outcome.code, outcome.out + outcome.err, summary


def states(summary):
    return [trial["state"] for trial in summary["trials"]]


def read_metrics(folder, trial):
    (name,) = trial["folders"]
    return json.loads((folder / "multirun" / "sweep" / name / "metrics.json").read_text())


def test_a_search_runs_its_trials_and_the_same_command_continues_it(tmp_path):
    code, said, summary = search("hydra.sweeper.trials=3", "isolate=false", cwd=tmp_path)
    assert code == 0, said
    assert states(summary) == ["finished"] * 3
    for trial in summary["trials"]:
        assert trial["values"] == [read_metrics(tmp_path, trial)["log_evidence"]]
        assert 1 <= trial["params"]["vae.latent_dim"] <= 6
    values = [trial["values"][0] for trial in summary["trials"]]
    assert summary["best"] == [values.index(max(values))]
    assert f"trial {summary['best'][0]}: log_evidence" in said

    code, said, again = search("hydra.sweeper.trials=3", "isolate=false", cwd=tmp_path)
    assert (code, states(again)) == (0, ["finished"] * 3)
    code, said, more = search("hydra.sweeper.trials=4", "isolate=false", cwd=tmp_path)
    assert (code, states(more)) == (0, ["finished"] * 4)
    assert more["trials"][:3] == summary["trials"]

    compared = call("pyro-vae-compare", "multirun/sweep", cwd=tmp_path)
    assert (compared.code, "4 runs: 4 finished" in compared.out) == (0, True)


@pytest.mark.long
def test_trials_are_pruned_by_their_epochs(tmp_path):
    code, said, summary = search("hydra.sweeper.trials=5", *AGGRESSIVE, cwd=tmp_path)
    assert code == 0, said
    assert states(summary)[0] == "finished"
    pruned = [trial for trial in summary["trials"] if trial["state"] == "pruned"]
    assert pruned
    assert f"{len(pruned)} pruned" in said
    journal = str(tmp_path / "multirun" / "sweep" / "study.journal")
    study = optuna.load_study(study_name="sweep", storage=open_storage(journal))
    for trial in study.trials:
        (name,) = trial.user_attrs["folders"]
        folder = tmp_path / "multirun" / "sweep" / name
        assert (folder / "pruned.json").exists() == (trial.state == optuna.trial.TrialState.PRUNED)
        history = (folder / "history.csv").read_text().splitlines()
        elbos = [float(dict(zip(history[0].split(","), row.split(","), strict=True))["valid_elbo"])
                 for row in history[1:]]  # fmt: skip
        reported = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        assert reported[: len(elbos)] == pytest.approx(elbos)
    compared = call("pyro-vae-compare", "multirun/sweep", cwd=tmp_path)
    assert f"{len(pruned)} pruned" in compared.out
    assert "Not all runs have finished" not in compared.out
    # A pruned job is not lost: its command trains it to the end.
    folder = tmp_path / "multirun" / "sweep" / pruned[0]["folders"][0]
    words = shlex.split(json.loads((folder / "pruned.json").read_text())["command"])
    outcome = call(*words, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert (folder / "metrics.json").exists()
    assert not (folder / "pruned.json").exists()
    assert len((folder / "history.csv").read_text().splitlines()) == 1 + 3


def test_a_search_whose_workers_end_early_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeper, "_work", lambda *arguments: None)
    code, said, _ = search("hydra.sweeper.trials=3", cwd=tmp_path)
    assert code == 1
    assert "the search ended after 0 of 3 trials" in said


def test_the_code_of_the_page_reads_the_journal(tmp_path, monkeypatch, capsys):
    words = ["hydra.sweeper.trials=1", "study=first", "isolate=false"]
    assert call("pyro-vae", *SEARCH, *SPACE, *words, cwd=tmp_path).code == 0
    page = (ROOT / "docs" / "search.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "search.md", "exec"), {})
    assert "vae.latent_dim" in capsys.readouterr().out


@pytest.mark.long
def test_a_seeded_sampler_goes_on_where_the_last_command_ended(tmp_path):
    seeded = ["hydra.sweeper.sampler.seed=1", "isolate=false"]
    for size in (1, 2):
        code, said, summary = search(f"hydra.sweeper.trials={size}", *seeded, cwd=tmp_path)
        assert code == 0, said
    first, second = (trial["params"] for trial in summary["trials"])
    assert first != second
    other = tmp_path / "other"
    other.mkdir()
    _, _, again = search("hydra.sweeper.trials=1", *seeded, cwd=other)
    assert again["trials"][0]["params"] == first


@pytest.mark.long
def test_the_mean_over_seeds_of_several_metrics(tmp_path):
    code, said, summary = search(
        "hydra.sweeper.trials=2", "hydra.sweeper.seeds=[0,1]", "isolate=false",
        "hydra.sweeper.objectives=[log_evidence,rate]", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, said
    for trial in summary["trials"]:
        folders = [tmp_path / "multirun" / "sweep" / name for name in trial["folders"]]
        metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        assert [m["seed"] for m in metrics] == [0, 1]
        means = [sum(m[name] for m in metrics) / 2 for name in ("log_evidence", "rate")]
        assert trial["values"] == pytest.approx(means)
    assert "rate" in said


@pytest.mark.long
def test_trials_of_several_seeds_are_pruned_between_them(tmp_path):
    code, said, summary = search(
        "hydra.sweeper.trials=4", "hydra.sweeper.seeds=[0,1]", "isolate=false", *AGGRESSIVE,
        cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, said
    counts = {trial["state"]: len(trial["folders"]) for trial in summary["trials"]}
    assert counts == {"finished": 2, "pruned": 1}


def test_failures_are_repeated_once_and_listed(tmp_path):
    code, said, summary = search(
        "hydra.sweeper.trials=2", "hydra.sweeper.max_failures=1", "isolate=false",
        "train.batch_size=-1", cwd=tmp_path,
    )  # fmt: skip
    assert code == 1
    assert states(summary) == ["failed"] * 4
    assert len(re.findall("failed trial . repeated by trial|failed trial ., repeated", said)) == 2
    assert "failed trials: 2, more than hydra.sweeper.max_failures=1" in said
    assert "Traceback" not in said
    assert "batch_size" in summary["trials"][1]["failure"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.sweeper.trials=0"], "hydra.sweeper.trials to be an integer of at least 1, got 0"),
        (["hydra.sweeper.workers=x"], "hydra.sweeper.workers to be an integer .* got 'x'"),
        (["hydra.sweeper.max_failures=-1"], "max_failures to be an integer of at least 0, got -1"),
        (["hydra.sweeper.objectives=[loss]"], r"objectives to be different .* got \['loss'\]"),
        (["hydra.sweeper.objectives=[]"], r"objectives to be different .* got \[\]"),
        (["hydra.sweeper.objectives=elbo"], "as a list, got 'elbo'"),
        (["hydra.sweeper.seeds=3"], "seeds to be a list of different integers, got 3"),
        (["hydra.sweeper.seeds=[0,0]"], r"seeds to be a list of different .* got \[0, 0\]"),
        (["hydra.sweeper.seeds=[0,1]", "seed=3"], "either seed or hydra.sweeper.seeds, got both"),
        (["hydra/launcher=joblib"], "Expected hydra.sweeper.workers for several trials"),
        (["study=../x"], "Expected study to be a name without slashes, got '../x'"),
        (["hydra.sweeper.storage=5"], "the URL of a database or the path of a journal, got 5"),
        (["vae/prior=normal,mixture", "vae.prior.components=5,9"], "used in hydra.sweeper.condit"),
        (["hydra.sweeper.objectives=[seconds]", PRUNER], "only objective for a pruner, got"),
        (["hydra.sweeper.objectives=[elbo,rate]", PRUNER], "only objective for a pruner, got"),
        ([PRUNER, "hydra.sweeper.pruner.percentile=200"], "settings of hydra/sweeper/pruner"),
        (["+hydra.sweeper.sampler.x=1"], "settings of hydra/sweeper/sampler that fit"),
        (["hydra.sweeper.storage=nodb://x"], "storage to be the URL of a database"),
        (["vae/prior=normal,norml"], "norml"),
        (["vae.nothing=1,2"], "nothing"),
        (["hydra.sweeper.conditions={x: {y: 1}}"], "settings that are searched, got one of 'x'"),
    ],
)
def test_wrong_settings_are_one_message_before_any_work(words, message, tmp_path):
    code, said, _ = search(*words, cwd=tmp_path)
    assert code == 1
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("metrics.json"))


def list_plugins():
    root = config.APP / "hydra" / "sweeper"
    return sorted((path.parent.name, path.stem) for path in root.glob("*/*.yaml"))


@pytest.mark.parametrize(("kind", "name"), list_plugins())
def test_each_sampler_and_pruner_is_built_and_used(kind, name, monkeypatch, tmp_path):
    def train(search, study, trial, overrides):
        journal.add_entry(journal.Entry("job", "", "finished"))
        reference = TrialReference(
            study.storage_name, study.name, trial._trial_id, search.settings["pruner"]
        )
        tracker = PruningTracker(reference)
        try:
            # Each trial is worse than the one before.
            for step in range(1, 41):
                tracker.log({"valid_elbo": step - 100.0 * trial.number}, step)
        except PrunedError:
            return "pruned", None
        return "finished", [-float(trial.number)]

    monkeypatch.setattr(sweeper, "_run_job", train)
    code, said, summary = search(
        f"hydra/sweeper/{kind}={name}", "hydra.sweeper.trials=15", "train.epochs=40", cwd=tmp_path
    )
    assert code == 0, said
    assert len(summary["trials"]) == 15
    assert ("pruned" in states(summary)) == (kind == "pruner" and name != "none")


def test_another_space_needs_another_study(tmp_path):
    quick = ["hydra.sweeper.trials=1", "isolate=false"]
    assert search(*quick, cwd=tmp_path)[0] == 0
    code, said, _ = search(*quick, cwd=tmp_path, space=SPACE[:1])
    assert code == 1
    assert "Expected the settings of the study 'sweep', optimizer.lr from 0.0001 to 0.1" in said
    assert "choose another name by study=NAME" in said
    code, said, _ = search(*quick, "data.n=70", cwd=tmp_path)
    assert (code, "Expected the" in said) == (1, True)


def test_a_pruner_needs_validation_rows(tmp_path):
    storage = str(tmp_path / "study.journal")
    study = optuna.create_study(storage=open_storage(storage), study_name="one")
    reference = TrialReference(
        storage, "one", study.ask()._trial_id, {"_target_": "optuna.pruners.NopPruner"}
    )
    tracker = PruningTracker(reference)
    tracker.log({"valid_elbo": -3.0}, 1)
    assert study.trials[0].intermediate_values == {1: -3.0}
    with pytest.raises(ValueError, match="Expected validation rows for a pruner"):
        tracker.log({"train_objective": -3.0}, 2)


def test_a_pruned_trial_ends_its_training(tmp_path):
    storage = str(tmp_path / "study.journal")
    study = optuna.create_study(storage=open_storage(storage), study_name="one")
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.0}
    tracker = PruningTracker(TrialReference(storage, "one", study.ask()._trial_id, pruner))
    with pytest.raises(PrunedError, match="pruned after epoch 4"):
        tracker.log({"valid_elbo": -1.0}, 4)


def start(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *SEARCH, *SPACE, *words],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_trials(folder, number):
    """Waits until a study has a number of finished trials."""
    path = folder / "multirun" / "sweep" / "study.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and states(json.loads(path.read_text())).count("finished") >= number:
            return
        time.sleep(0.1)
    raise AssertionError(f"no {number} trials in time")


@pytest.mark.long
def test_two_processes_one_of_which_is_killed_run_all_trials(tmp_path):
    words = ["hydra.sweeper.trials=8"]
    one, other = (start(*words, cwd=tmp_path) for _ in range(2))
    threading.Thread(
        target=lambda: (wait_for_trials(tmp_path, 2), other.send_signal(signal.SIGKILL))
    ).start()
    said, _ = one.communicate(timeout=300)
    other.communicate()
    assert (one.returncode, other.returncode) == (0, -9), said
    summary = json.loads((tmp_path / "multirun" / "sweep" / "study.json").read_text())
    assert states(summary).count("finished") == 8
    assert states(summary).count("failed") <= 1


@pytest.mark.long
def test_workers_and_an_interrupt(tmp_path):
    process = start("hydra.sweeper.trials=8", "hydra.sweeper.workers=2", cwd=tmp_path)
    wait_for_trials(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "stopped by SIGTERM" in said
    process = start("hydra.sweeper.trials=8", "hydra.sweeper.workers=2", cwd=tmp_path)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    summary = json.loads((tmp_path / "multirun" / "sweep" / "study.json").read_text())
    # An interrupted trial is continued, and is no failure.
    assert states(summary) == ["finished"] * 8
    assert not list((tmp_path / "multirun" / "sweep").glob(".workers/*"))
