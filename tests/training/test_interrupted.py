"""Trainings that are broken off, and checkpoints that cannot be written: nothing is lost."""

import contextlib
import errno
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from pyro_vae import (
    VAE,
    data,
    fit,
    fit_many,
    likelihoods,
    load,
    networks,
    objectives,
)
from pyro_vae.files import atomic
from pyro_vae.training import loop, resume_file, single
from pyro_vae.vae import serialization

SMALL = partial(networks.MLP, hidden=[8])
MISSING = ["resume.pt", "last.safetensors", "model.safetensors"]


@pytest.fixture(scope="module")
def digits():
    return data.digits()


class At:
    """A tracker that does something after an epoch."""

    def __init__(self, epoch, act):
        self.epoch, self.act = epoch, act

    def log(self, values, step):
        if step == self.epoch:
            self.act()


class Stops(objectives.ELBO):
    """An objective that raises an error in the middle of an epoch."""

    _calls = 0

    def __init__(self, error, after):
        super().__init__()
        self._error, self._after = error, after

    def differentiable_loss(self, *args, **kwargs):
        self._calls += 1
        if self._calls > self._after:
            raise self._error
        return super().differentiable_loss(*args, **kwargs)


def made():
    torch.manual_seed(3)
    return VAE(
        64, 2, likelihood=partial(likelihoods.Normal, scale="optimal"), encoder=SMALL, decoder=SMALL
    )


def trained(vae, digits, **options):
    # The third epoch goes uphill, so that the best is not the last.
    settings = {
        "epochs": 5, "checkpoint_seconds": 0, "batch_size": 40, "compile": False,
        "lr_schedule": partial(LambdaLR, lr_lambda=lambda epoch: [1, 1, -5][min(epoch, 2)]),
        "optimizer": partial(torch.optim.Adam, lr=5e-3),
    }  # fmt: skip
    rows = digits.x.train[:200].flatten(1)
    return fit(vae, rows, valid=digits.x.valid.flatten(1), **settings | options)


def raises(error):
    def act():
        raise error

    return act


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the tracker is gone")])
@pytest.mark.parametrize("where", ["tracker", "step"])
def test_an_exception_leaves_what_a_shorter_training_would(digits, tmp_path, error, where):
    vae, shorter = made(), made()
    expected = trained(shorter, digits, epochs=3)
    assert expected.best_epoch < 3
    stop = {"tracker": At(3, raises(error))} if where == "tracker" else {}
    if where == "step":
        # Five steps an epoch.
        stop = {"objective": Stops(error, after=17)}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(type(error)) as caught:
        trained(vae, digits, out=tmp_path, **stop)
    assert caught.value is error
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not any(module.training for module in vae.modules())
    result = error.fit_result
    assert result.history == expected.history
    assert (result.best_epoch, result.steps) == (expected.best_epoch, 15)
    # The scale of the likelihood is calibrated, too.
    assert_same_weights(vae, shorter)
    assert_same_weights(load(tmp_path), shorter)
    assert resume_file.load_state(tmp_path / "resume.pt")["epoch"] == 3


@pytest.mark.parametrize("after", [0, 3, 7, 14])
def test_an_interrupted_epoch_is_undone_and_resumed_to_the_same_bits(digits, tmp_path, after):
    whole, broken = made(), made()
    expected = trained(whole, digits, objective=Stops(None, after=1000))
    with pytest.raises(KeyboardInterrupt):
        trained(broken, digits, out=tmp_path, objective=Stops(KeyboardInterrupt(), after=after))
    again = made()
    result = trained(
        again, digits, out=tmp_path, resume=True, objective=Stops(None, after=1000)
    )  # fmt: skip
    assert result.history == expected.history
    assert_same_weights(whole, again)


def test_an_interrupt_while_the_end_is_written_leaves_the_best_weights(
    digits, tmp_path, monkeypatch
):
    vae, whole, calls = made(), made(), []
    trained(whole, digits, epochs=3)
    real = resume_file.save_state

    def interrupted(state, path):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(state, path)

    monkeypatch.setattr(resume_file, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        trained(vae, digits, epochs=3, out=tmp_path, checkpoint_seconds=1e9)
    assert len(caught.value.fit_result.history) == 3
    assert_same_weights(vae, whole)
    assert len(calls) == 2


def test_scheduled_numbers_are_numbers_again_after_an_interrupt(digits):
    objective = objectives.ELBO(beta=0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(
            made(), digits, objective=objective, tracker=At(2, raises(KeyboardInterrupt())),
            schedules={"beta": objectives.Linear(0.0, 1.0, steps=20)},
        )  # fmt: skip
    assert objective.beta == 0.5


def test_an_error_that_cannot_be_settled_is_the_first_one(digits, monkeypatch):
    vae = made()
    monkeypatch.setattr(VAE, "calibrate", lambda *_, **__: raises(RuntimeError("no memory"))())
    with (
        pytest.warns(UserWarning, match="training cannot be set: RuntimeError: no memory"),
        pytest.raises(KeyError, match="first") as caught,
    ):
        trained(vae, digits, tracker=At(2, raises(KeyError("first"))))
    assert len(caught.value.fit_result.history) == 2
    assert not vae.training


def test_numbers_that_are_not_finite_leave_evaluation_mode_and_the_history(digits):
    vae = made()
    with pytest.raises(FloatingPointError) as caught:
        trained(vae, digits, lr_schedule=None, optimizer=partial(torch.optim.SGD, lr=1e20))
    assert not vae.training
    assert caught.value.fit_result.history == []


@pytest.mark.parametrize("sequential", [True, pytest.param(False, marks=pytest.mark.long)])
def test_fit_many_leaves_the_best_weights_of_each(digits, monkeypatch, sequential):
    vaes, shorter = [made() for _ in range(3)], [made() for _ in range(3)]
    # Dampening is trained one after another.
    rate = {"lr": 0.01, "momentum": 0.5, "dampening": 0.1 if sequential else 0.0}
    options = {
        "batch_size": 40, "optimizer": partial(torch.optim.SGD, **rate),
        "valid": digits.x.valid.flatten(1), "seed": [0, 1, 2],
    }  # fmt: skip
    rows = digits.x.train[:200].flatten(1)
    epochs, real = [], loop.Training.record_epoch

    def interrupted(run, total):
        row = real(run, total)
        epochs.append(run.epoch)
        # Alone: within the second VAE's training; together: after the second epoch of all.
        if len(epochs) == 6:
            raise KeyboardInterrupt
        return row

    expectation = (
        pytest.warns(UserWarning, match="one after another")
        if sequential
        else contextlib.nullcontext()
    )
    with expectation:
        expected = fit_many(shorter, rows, epochs=4 if sequential else 2, **options)
    monkeypatch.setattr(loop.Training, "record_epoch", interrupted)
    with (
        pytest.warns(UserWarning, match="one after") if sequential else contextlib.nullcontext(),
        pytest.raises(KeyboardInterrupt) as caught,
    ):
        fit_many(vaes, rows, epochs=4, **options)
    results = caught.value.fit_result
    assert [len(r.history) for r in results] == ([4, 1] if sequential else [2, 2, 2])
    # One that comes after the interrupt is as it was.
    assert not any(vae.training for vae in vaes[: len(results)])
    for vae, one, result, other in zip(vaes, shorter, results, expected, strict=False):
        if len(result.history) == len(other.history):
            assert result.history == other.history
            assert_same_weights(vae, one)


def test_a_deleted_folder_is_made_again(digits, tmp_path):
    out, vae, whole = tmp_path / "run", made(), made()
    result = trained(vae, digits, out=out, tracker=At(2, partial(shutil.rmtree, out)))
    assert result.history == trained(whole, digits).history
    assert_same_weights(vae, whole)
    assert_same_weights(load(out), whole)
    assert resume_file.load_state(out / "resume.pt")["epoch"] == 5


@pytest.fixture
def disk(monkeypatch):
    """A full disk, as long as ``disk["full"]`` holds the names of files."""
    held, real = {"full": ()}, serialization.write_whole

    def write(path, content):
        if path.name in held["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    for module in (serialization, resume_file):
        monkeypatch.setattr(module, "write_whole", write)
    return held


@pytest.mark.parametrize("full", [MISSING, MISSING[:1]])
def test_a_full_disk_gives_one_warning_and_a_last_one(digits, tmp_path, disk, full):
    vae, whole = made(), made()
    trained(whole, digits)
    fill = At(2, partial(disk.update, full=full))
    with pytest.warns(UserWarning, match=str(tmp_path)) as caught:
        result = trained(vae, digits, out=tmp_path, tracker=fill)
    assert len(result.history) == 5
    assert_same_weights(vae, whole)
    first, last = (str(warning.message) for warning in caught)
    assert first.startswith(f"'{tmp_path / 'resume.pt'}' cannot be written (No space left on dev")
    assert last.startswith(f"'{tmp_path}' lacks the end of this training, because files could not")
    assert "be written, resume.pt (No space left" in last
    assert ("pyro_vae.save(vae, path)" in last) == ("model.safetensors" in full)
    assert all(warning.filename == __file__ for warning in caught)
    # Files of several epochs: each is whole, and a resumed training has the same bits.
    disk.update(full=())
    assert resume_file.load_state(tmp_path / "resume.pt")["epoch"] == 1
    again = made()
    trained(again, digits, out=tmp_path, resume=True)
    assert_same_weights(again, whole)
    assert_same_weights(load(tmp_path), whole)


def test_a_disk_that_has_room_again_gives_no_last_warning(digits, tmp_path, disk):
    disk.update(full=MISSING)
    with pytest.warns(UserWarning, match=str(tmp_path)) as caught:
        trained(made(), digits, out=tmp_path, tracker=At(4, partial(disk.update, full=())))
    assert len(caught) == 1
    assert resume_file.load_state(tmp_path / "resume.pt")["epoch"] == 5


HOLD = """
import sys
from pathlib import Path
from pyro_vae.files.atomic import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_holds_is_refused(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(single, "hold_folder", partial(atomic.hold_folder, patience=0.1))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="that no other process writes to, got"):
            trained(made(), digits, out=tmp_path)
        assert not list(tmp_path.glob("*.safetensors"))
        process.communicate()
    trained(made(), digits, epochs=1, out=tmp_path)


def test_the_folder_is_held_within_and_free_after(digits, tmp_path):
    held = []

    def look():
        held.append(atomic.is_held(tmp_path))

    with atomic.hold_folder(tmp_path):
        # As the command does it.
        trained(made(), digits, epochs=1, out=tmp_path, tracker=At(1, look))
        look()
    with pytest.raises(KeyError):
        trained(made(), digits, epochs=1, out=tmp_path, tracker=At(1, raises(KeyError())))
    look()
    assert held == [True, True, False]


def test_partial_files_of_killed_processes_are_removed(digits, tmp_path):
    (tmp_path / ".resume.pt.12345.part").write_bytes(b"half")
    (tmp_path / "notes.part").write_bytes(b"mine")
    trained(made(), digits, epochs=1, out=tmp_path)
    assert [path.name for path in tmp_path.glob("*.part")] == ["notes.part"]


@pytest.mark.parametrize("step", ["mkdir", "lock"])
def test_a_folder_that_cannot_be_written_to_is_refused(digits, tmp_path, monkeypatch, step):
    out = tmp_path / "run"
    if step == "mkdir":
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "run"
    else:
        error = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(single, "hold_folder", lambda _: raises(error)())
    with pytest.raises(ValueError, match=r"Expected out to be a folder that can be written to"):
        trained(made(), digits, out=out)
