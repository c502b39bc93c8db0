"""A study that several processes share, some of which are killed."""

import multiprocessing
import os
import random
import signal
import time

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState

from pyro_vae.search import storage as storage_module
from pyro_vae.search.space import build_space
from pyro_vae.search.storage import build_pruner, build_sampler, open_storage
from pyro_vae.search.study import SharedStudy

SPACE = build_space(OverridesParser.create().parse_overrides(["x=interval(0,1)"]), {})
STORAGES = ("journal", "sqlite")


def name_storage(kind, folder):
    return str(folder / "study.journal") if kind == "journal" else f"sqlite:///{folder}/study.db"


def open_study(kind, folder, **options):
    settings = {"name": "test", "directions": ["maximize"], **options}
    return SharedStudy(
        name_storage(kind, folder), settings["name"], settings["directions"], folder,
        optuna.samplers.RandomSampler(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def work(kind, folder, size, dies_at):
    """Runs trials until none is left; kills itself in the middle of one."""
    study, count = open_study(kind, folder), 0
    with study.work():
        while True:
            study.fail_dead_trials()
            reserved = study.ask(size, SPACE)
            if reserved is None:
                if not study.has_open_trials():
                    return
                time.sleep(0.05)
                continue
            count += 1
            time.sleep(random.random() / 50)
            if count == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            study.complete(reserved[0], [random.random()])


def run(kind, folder, size, *deaths):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(kind, folder, size, d)) for d in deaths]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert not process.is_alive()
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("kind", STORAGES)
def test_several_processes_run_exactly_as_many_trials_as_asked(kind, tmp_path):
    open_study(kind, tmp_path)
    assert run(kind, tmp_path, 13, None, None, None) == [0, 0, 0]
    trials = open_study(kind, tmp_path).list_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 13
    # The same command again does nothing, and a larger number adds to it.
    run(kind, tmp_path, 13, None, None)
    assert len(open_study(kind, tmp_path).list_trials()) == 13
    run(kind, tmp_path, 16, None, None)
    assert len(open_study(kind, tmp_path).list_trials()) == 16


def test_trials_of_killed_processes_are_repeated_once(tmp_path):
    open_study("journal", tmp_path)
    assert run("journal", tmp_path, 15, None, 3) == [0, -9]
    study = open_study("journal", tmp_path)
    trials = study.list_trials()
    failed = [t for t in trials if t.state == TrialState.FAIL]
    repeats = {t.user_attrs["retry_of"]: t for t in trials if "retry_of" in t.user_attrs}
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 15
    (trial,) = failed
    assert trial.user_attrs["failure"] == "its process ended before the trial"
    assert repeats[trial.number].params == trial.params
    assert study.list_failed() == []
    assert not (tmp_path / ".workers" / study.worker).exists()


def test_a_process_that_died_alone_is_noticed_by_the_next_command(tmp_path):
    open_study("journal", tmp_path)
    assert run("journal", tmp_path, 4, 2) == [-9]
    assert run("journal", tmp_path, 4, None) == [0]
    states = [t.state for t in open_study("journal", tmp_path).list_trials()]
    assert states.count(TrialState.COMPLETE) == 4
    assert states.count(TrialState.FAIL) == 1


@pytest.mark.long
def test_a_database_notices_a_death_by_missing_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_module, "HEARTBEAT", 1)
    study = open_study("sqlite", tmp_path)
    trial, _ = study.ask(2, SPACE)
    with study.keep_alive(trial):
        time.sleep(0.3)
    study.fail_dead_trials()
    assert [t.state for t in study.list_trials()] == [TrialState.RUNNING]
    time.sleep(4.5)
    study.fail_dead_trials()
    first, second = study.list_trials()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.WAITING)
    assert second.params == first.params


def test_a_trial_that_fails_twice_is_not_repeated_again(tmp_path):
    study = open_study("journal", tmp_path)
    for _ in range(2):
        trial, _ = study.ask(1, SPACE)
        study.storage.set_trial_intermediate_value(trial._trial_id, 7, 1.5)
        study.fail(trial._trial_id, "no luck")
        study.fail(trial._trial_id, "noticed by another process")
    trials = study.list_trials()
    assert [t.state for t in trials] == [TrialState.FAIL] * 2
    assert trials[1].user_attrs["failure"] == "no luck"
    assert trials[1].intermediate_values == {7: 1.5}
    assert [t.number for t in study.list_failed()] == [1]
    # A new one takes its place.
    trial, _ = study.ask(1, SPACE)
    assert trial.number == 2
    assert study.ask(1, SPACE) is None


def test_an_interrupted_trial_is_continued_as_if_nothing_had_happened(tmp_path):
    study = open_study("journal", tmp_path)
    for _ in range(3):
        trial, overrides = study.ask(1, SPACE)
        study.release(trial)
    again, same = study.ask(1, SPACE)
    assert same == overrides
    study.complete(again, [1.0])
    study.release(again)
    assert [t.state for t in study.list_trials()] == [TrialState.COMPLETE]
    assert study.list_failed() == []
    assert study.ask(1, SPACE) is None


def test_a_trial_beyond_the_last_is_withdrawn(tmp_path, monkeypatch):
    one, other = open_study("journal", tmp_path), open_study("journal", tmp_path)
    ask = other.study.ask

    def ask_late():
        # Another process reserves the last one in the meantime.
        assert one.ask(1, SPACE) is not None
        return ask()

    monkeypatch.setattr(other.study, "ask", ask_late)
    assert other.ask(1, SPACE) is None
    assert [t.state for t in one.list_trials()] == [TrialState.RUNNING]


def test_other_settings_need_another_name(tmp_path):
    study = open_study("journal", tmp_path)
    study.claim({"space": ["a", "b"], "seeds": [0]})
    study.claim({"space": ["a", "b"], "seeds": [0]})
    message = "Expected the space of the study 'test', b; got c; d: choose another name by study="
    with pytest.raises(ValueError, match=message):
        open_study("journal", tmp_path).claim({"space": ["a", "c", "d"], "seeds": [0]})


@pytest.mark.parametrize("torn", ['{"op_code": 5, "worker', '{"op_code": 5\n', "3"])
def test_a_torn_last_line_of_a_journal_is_removed(torn, tmp_path):
    study = open_study("journal", tmp_path)
    trial, _ = study.ask(2, SPACE)
    study.complete(trial, [1.0])
    path = tmp_path / "study.journal"
    with path.open("a") as file:
        file.write(torn)
    again = open_study("journal", tmp_path)
    assert [t.state for t in again.list_trials()] == [TrialState.COMPLETE]
    assert again.ask(2, SPACE) is not None
    assert len(open_study("journal", tmp_path).list_trials()) == 2


@pytest.mark.parametrize("content", [b"nonsense\n{}\n", b"\xff\xfe\n{}\n", b"{}\n"])
def test_a_damaged_journal_is_named(content, tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"study.journal' to be the journal of a study, got somet"):
        open_storage(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("storage", ["nodb://x", "sqlite:////no/such/folder/x.db"])
def test_a_storage_that_cannot_be_opened(storage):
    with pytest.raises(ValueError, match=r"Expected hydra.sweeper.storage to be the URL"):
        open_storage(storage)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "os.getcwd"}, "sampler to name a class of Optuna, got os.getcwd"),
        ({"_target_": "optuna.samplers.RandomSampler", "sed": 1}, "settings of hydra.*sed"),
        ({"_target_": "optuna.pruners.NopPruner"}, "hydra/sweeper/sampler to be a sampler, got"),
        ({}, "sampler to name a class of Optuna, got {}"),
        (None, "sampler to name a class of Optuna, got None"),
    ],
)
def test_wrong_samplers_and_pruners_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_sampler(settings)
    with pytest.raises(ValueError, match="hydra/sweeper/pruner to be a pruner, got"):
        build_pruner({"_target_": "optuna.samplers.RandomSampler"})


def test_a_missing_package_of_a_sampler_is_told_at_once(monkeypatch):
    monkeypatch.setattr(storage_module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package cmaes for .*got none: pip install 'pyro_vae"):
        build_sampler({"_target_": "optuna.samplers.CmaEsSampler"})
