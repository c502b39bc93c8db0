"""Progress of long work: bars in terminals and notebooks, lines elsewhere, a growing history."""

import csv
import io
import itertools
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from pyro_vae import VAE, config, data, evaluate, fit, fit_many, progress
from pyro_vae.console import commands
from pyro_vae.progress import Progress, read_progress, show_always
from pyro_vae.run.experiment import run
from pyro_vae.run.folder import RunFolder


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only if it is set."""
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.time)
    return now


@pytest.fixture
def lines_at_once(monkeypatch):
    monkeypatch.setattr(progress, "_FIRST_LINE", 0.0)
    monkeypatch.setattr(progress, "_line_interval", lambda seconds: 0.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def digits():
    return data.digits()


def made():
    torch.manual_seed(0)
    return VAE((1, 8, 8), latent_dim=2)


def test_lines_come_after_two_seconds_and_then_at_intervals(clock, capsys):
    with show_always(), Progress("training", 1000, "epochs") as shown:
        for second in range(1, 41):
            clock.time += 1
            shown.reach(second / 2, f"ELBO -{second}.000")
    seconds = [2, 12, 22, 32]
    assert capsys.readouterr().err.splitlines() == [
        f"training: {s // 2} of 1000 epochs, ELBO -{s}.000, {s} s" for s in seconds
    ]


def test_lines_become_rarer_up_to_one_a_minute(clock, capsys):
    with Progress("training", 10, "epochs", show=True) as shown:
        for _ in range(7200):
            clock.time += 1
            shown.reach(1)
    times = [int(line.split()[-2]) for line in capsys.readouterr().err.splitlines()]
    assert times[:3] == [2, 12, 22]
    assert max(b - a for a, b in itertools.pairwise(times)) == 60


def test_a_library_shows_nothing_without_a_terminal(clock, capsys):
    for show in (None, False):
        with Progress("training", 2, "epochs", show=show) as shown:
            clock.time += 100
            shown.advance()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_that_goes_away(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "0")
    with Progress("log evidence", 10, "rows") as shown:
        shown.advance(2.5)
        assert not terminal.getvalue()
        clock.time += 2
        shown.reach(5, "ELBO -3.000")
    assert "log evidence:  50%|" in terminal.getvalue()
    assert "5/10 rows" in terminal.getvalue()
    assert "ELBO -3.000" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_a_notebook_shows_a_bar(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    assert not progress._draws_bars()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress._draws_bars()


def test_a_closed_stream_does_not_end_the_work(lines_at_once, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    with Progress("training", 2, "epochs", show=True) as shown:
        shown.advance()


@pytest.mark.parametrize("wrong", ["yes", 1, 0.5])
def test_another_progress_is_refused(wrong, digits):
    vae, message = made(), f"Expected progress to be True, False or None, got {wrong!r}"
    for call in (fit, evaluate.elbo, evaluate.log_evidence):
        with pytest.raises(ValueError, match=message):
            call(vae, digits.x.test[:10], progress=wrong)
    with pytest.raises(ValueError, match=message):
        fit_many([vae], digits.x.test[:10], progress=wrong)


def test_training_and_evaluation_show_where_they_are(lines_at_once, digits, capsys):
    vae, x = made(), digits.x.valid
    fit(vae, x, valid=x, epochs=2, progress=True)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "training: 0 of 2 epochs, 0 s"
    assert said[-1].startswith("training: 2 of 2 epochs, ELBO -")
    assert any(line.startswith("training: 1 of 2 epochs, ELBO") for line in said)
    fit(vae, x, epochs=1, progress=True)
    assert "training: 1 of 1 epochs, objective -" in capsys.readouterr().err
    evaluate.log_evidence(vae, x, 50, progress=True, max_elements=20_000)
    evaluate.elbo(vae, x, num_particles=5, progress=True, max_elements=20_000)
    said = capsys.readouterr().err
    assert f"log evidence: 7 of {len(x)} rows" in said
    assert f"log evidence: {len(x)} of {len(x)} rows" in said
    assert f"ELBO: {len(x)} of {len(x)} rows" in said


def test_many_trainings_show_where_they_are(lines_at_once, digits, capsys):
    x = digits.x.valid
    fit_many([made(), made()], x, epochs=2, backend="eager", progress=True)
    assert "training: 2 of 2 epochs" in capsys.readouterr().err
    clipped, free = made(), made()
    clipped.encoder.register_forward_hook(lambda *_: None)
    for show, lines in ((True, 2), (False, 0)):
        with pytest.warns(UserWarning, match="one after another"):
            fit_many([clipped, free], x, epochs=1, progress=show)
        assert capsys.readouterr().err.count("training: 1 of 1 epochs") == lines


def test_every_stage_of_a_run_shows_progress(lines_at_once, tmp_path, capsys):
    quick = ["train.epochs=2", "evaluate.num_particles=5", "evaluate.baseline_components=3"]
    run(config.compose([*quick, "evaluate.baseline_rows=100", f"out={tmp_path}"]))
    said = capsys.readouterr().err
    stages = dict.fromkeys(line.partition(":")[0] for line in said.splitlines())
    for done in (0, 1, 2):
        assert f"latent dimensions: {done} of 2 measures" in said
    assert list(stages) == [
        "training", "log evidence", "ELBO", "latent dimensions", "objective", "mixture baseline",
        "drawing", "writing the report",
    ]  # fmt: skip


# Interruptions


def test_an_interrupt_says_where_it_came(capsys):
    def command():
        with Progress("log evidence", 10, "rows") as shown:
            shown.reach(3.7)
            signal.raise_signal(signal.SIGTERM)
        return 0

    assert commands.stop_at_signals(command, program="x") == 143
    said = "x: stopped by SIGTERM after 3 of 10 rows of log evidence; to continue, run the same"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python shows no notes on exceptions")
@pytest.mark.parametrize("folder", [None, "run"])
def test_an_interrupted_fit_says_how_to_continue(folder, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Stop:
        def log(self, values, step):
            if step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(made(), digits.x.valid, epochs=5, out=folder, tracker=Stop())
    (note,) = caught.value.__notes__
    assert note.startswith("fit stopped after epoch 2 of 5: ")
    assert ("out='run' and resume=True" in note) == (folder is not None)
    assert read_progress(caught.value) == "2 of 5 epochs of training"


# The history


def rows(path):
    with path.open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_the_history_grows(digits, tmp_path):
    path, seen = tmp_path / "history.csv", []

    class Reader:
        def log(self, values, step):
            seen.append(rows(path) if path.exists() else [])

    x = digits.x.valid
    result = fit(made(), x, epochs=3, out=tmp_path, checkpoint_seconds=0, tracker=Reader())
    assert seen == [[], [1], [1, 2]]
    with path.open() as file:
        found = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert found == result.history


@pytest.mark.parametrize("csv_of", ["before", "same", "none"])
def test_a_resumed_history_has_each_epoch_once(csv_of, digits, tmp_path):
    x, copies = digits.x.valid, {}

    class Copier:
        def log(self, values, step):
            if step > 1:
                copies[step - 1] = shutil.copytree(tmp_path / "a", tmp_path / f"{step - 1}")

    fit(made(), x, epochs=5, out=tmp_path / "a", checkpoint_seconds=0, tracker=Copier())
    # As if the process had been killed between the two files of a checkpoint.
    if csv_of == "before":
        shutil.copy(copies[2] / "history.csv", copies[3])
    elif csv_of == "none":
        (copies[3] / "history.csv").unlink()
    fit(made(), x, epochs=5, out=copies[3], resume=True)
    whole = (tmp_path / "a" / "history.csv").read_bytes()
    assert (copies[3] / "history.csv").read_bytes() == whole


def test_a_history_that_cannot_be_written_is_said(digits, tmp_path):
    (tmp_path / "history.csv").mkdir()
    with pytest.warns(UserWarning, match="history") as caught:
        fit(made(), digits.x.valid, epochs=1, out=tmp_path)
    said = [str(warning.message) for warning in caught]
    assert any("history.csv' cannot be written" in text for text in said)
    assert any("the result of fit has the history" in text for text in said)


def test_a_replaced_run_leaves_no_history(tmp_path):
    (tmp_path / "resume.pt").write_bytes(b"old")
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    RunFolder(tmp_path, "0" * 12, resume=False, overwrite=True).open({})
    assert not (tmp_path / "history.csv").exists()
