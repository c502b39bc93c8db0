"""The expected duration of a run, told after its first epochs."""

from types import SimpleNamespace

import pytest
import torch

from pyro_vae import VAE, data, evaluate
from pyro_vae.data import Rows
from pyro_vae.progress import show_always
from pyro_vae.run import cost
from pyro_vae.run.cost import CostTracker, time_evaluation

SETTINGS = SimpleNamespace(num_particles=1000, elbo_particles=100, evidence_rows=200)


@pytest.fixture
def x():
    return data.digits().x.test


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only if it is set."""
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now.time)
    return now


def track(clock, epochs, seconds, vae, x, tracker=None):
    made = CostTracker(epochs, vae, Rows(x), SETTINGS, [tracker] if tracker else [])
    for epoch, duration in enumerate(seconds, 1):
        clock.time += duration
        made.log({"epoch": epoch}, epoch)


def test_one_line_after_three_epochs_without_the_first(x, clock, monkeypatch, capsys):
    monkeypatch.setattr(cost, "time_evaluation", lambda *_: 7.4)
    logged = []
    tracker = SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    with show_always():
        track(clock, 103, [20.0, 1.0, 2.0, 3.0, 4.0], VAE(x.shape[1:], 2), x, tracker)
    assert capsys.readouterr().err == (
        "expected: 150 s more for 103 epochs, less if training stops early, then up to 7 s of "
        "evaluation\n"
    )
    assert logged == [({"epoch": n}, n) for n in range(1, 6)]


def test_short_runs_and_library_calls_are_silent(x, clock, monkeypatch, capsys):
    monkeypatch.setattr(cost, "time_evaluation", lambda *_: 0.5)
    with show_always():
        track(clock, 10, [9.0, 0.1, 0.1], VAE(x.shape[1:], 2), x)
    track(clock, 1000, [9.0, 10.0, 10.0], VAE(x.shape[1:], 2), x)
    assert capsys.readouterr().err == ""


def test_weights_that_give_no_value_do_not_stop_the_training(x, clock, capsys):
    vae = VAE(x.shape[1:], 2)
    vae.decoder.layers[0].weight.data.fill_(torch.nan)
    with show_always():
        track(clock, 1000, [9.0, 10.0, 10.0], vae, x)
    assert capsys.readouterr().err == ""


def test_the_duration_counts_the_samples_of_evidence_and_elbo(x, monkeypatch):
    """The clock moves by one second for each decoded sample."""
    vae, now = VAE(x.shape[1:], 2), SimpleNamespace(time=0.0)
    decode = vae.decode

    def slow(z, covariates):
        now.time += z[..., 0].numel()
        return decode(z, covariates)

    object.__setattr__(vae, "decode", slow)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now.time)
    expected = 200 * 1000 + 359 * 100
    assert time_evaluation(vae, Rows(x), SETTINGS) == pytest.approx(expected)
    assert time_evaluation(vae, Rows(x[:30]), SETTINGS) == pytest.approx(30 * 1100)


def test_nothing_changes_by_the_estimate(x):
    vae = VAE(x.shape[1:], 2)
    before, noise = evaluate.posterior_means(vae, x), torch.get_rng_state()
    time_evaluation(vae, Rows(x, torch.ones(len(x), dtype=torch.bool)), SETTINGS)
    assert vae.training
    assert torch.equal(torch.get_rng_state(), noise)
    assert torch.equal(evaluate.posterior_means(vae, x), before)
