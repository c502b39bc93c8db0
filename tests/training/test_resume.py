"""Resuming: a training that was cut off goes on to the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from pyro_vae import VAE, data, fit, load, networks, objectives, priors
from pyro_vae.data import Rows
from pyro_vae.training import resume_file


@pytest.fixture(scope="module")
def digits():
    return data.digits(binarize="dynamic")


def made():
    torch.manual_seed(3)
    return VAE(
        (1, 8, 8),
        4,
        prior=partial(priors.Vamp, components=5),
        encoder=partial(networks.MLP, hidden=[16], batch_norm=True),
    )


SETTINGS = {
    "batch_size": 64,
    "clip_norm": 5.0,
    "lr_schedule": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
    "schedules": {"beta": objectives.Linear(0.0, 1.0, steps=40)},
    "checkpoint_seconds": 0.0,
}


def trained(digits, vae=None, **changes):
    vae = made() if vae is None else vae
    beta = torch.tensor(1.0 if changes.get("schedules", True) is None else 0.0)
    settings = SETTINGS | {"objective": objectives.ELBO(beta=beta)} | changes
    result = fit(vae, digits.train, valid=digits.valid, **settings)
    return vae, result


def assert_same(one, other):
    (a, first), (b, second) = one, other
    assert first.history == second.history
    assert (first.best_epoch, first.steps) == (second.best_epoch, second.steps)
    for name, value in a.state_dict().items():
        assert torch.equal(b.state_dict()[name], value), name


def test_twice_as_many_epochs_or_a_break_between_give_the_same_bits(digits, tmp_path):
    whole = trained(digits, epochs=6)
    trained(digits, epochs=3, out=tmp_path)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    broken = trained(digits, epochs=6, out=tmp_path, resume=True)
    torch.set_rng_state(state)
    assert_same(whole, broken)
    copy = load(tmp_path)
    for name, value in whole[0].state_dict().items():
        assert torch.equal(copy.state_dict()[name], value)


@pytest.mark.parametrize("dies_after", [1, 2, 4])
def test_a_training_that_dies_goes_on(digits, tmp_path, dies_after):
    class Dies:
        def log(self, values, step):
            if step == dies_after + 1:
                raise KeyboardInterrupt

    whole = trained(digits, epochs=5)
    with pytest.raises(KeyboardInterrupt):
        trained(digits, epochs=5, out=tmp_path, tracker=Dies())
    assert_same(whole, trained(digits, epochs=5, out=tmp_path, resume=True))


def test_nothing_to_go_on_from_begins_anew(digits, tmp_path):
    assert_same(trained(digits, epochs=2), trained(digits, epochs=2, out=tmp_path, resume=True))


def test_a_finished_training_is_not_trained_again(digits, tmp_path):
    done = trained(digits, epochs=2, out=tmp_path)
    assert_same(done, trained(digits, epochs=2, out=tmp_path, resume=True))


def test_number_of_threads_is_that_of_the_beginning(digits, tmp_path):
    seen = []

    class Tracker:
        def log(self, values, step):
            seen.append(torch.get_num_threads())

    trained(digits, epochs=1, schedules=None, out=tmp_path)
    torch.set_num_threads(2)
    try:
        trained(digits, epochs=2, schedules=None, out=tmp_path, resume=True, tracker=Tracker())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 32}, "different value of batch_size: 64 there, 32 here"),
        ({"seed": 1}, "different value of seed"),
        (
            {"objective": objectives.IWAE(3), "schedules": None},
            "different value of objective: ELBO there, IWAE",
        ),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1)}, "different value of optimizer"),
        ({"vae": VAE((1, 8, 8), 3)}, "different value of recipe"),
        (
            {"optimizer": partial(torch.optim.Adam, lr=0.5, fused=True)},
            "different value of settings",
        ),
        (
            {"objective": objectives.ELBO(beta=7.0)},
            "different value of objective_settings: .*'beta': '1.0'.* there, .*'beta': '7.0'",
        ),
        (
            {"objective": objectives.ELBO(estimator="stl")},
            "different value of objective_settings: .*standard.* there, .*stl",
        ),
    ],
)
def test_another_training_is_refused(digits, tmp_path, change, message):
    trained(digits, epochs=1, schedules=None, out=tmp_path)
    with pytest.raises(ValueError, match=message):
        trained(
            digits, **{"schedules": None, "epochs": 2, "out": tmp_path, "resume": True} | change
        )


def test_scalars_end_where_their_schedules_do(digits):
    objective = objectives.ELBO(beta=0.0)
    trained(digits, epochs=3, objective=objective)
    assert objective.beta == 1.0


def test_a_weight_that_is_not_finite_after_the_last_step_is_noticed(digits):
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.nan

    vae = VAE((1, 8, 8), 2)
    vae.decoder.register_forward_hook(lambda module, inputs, output: Backward.apply(output))
    with pytest.raises(FloatingPointError):
        fit(vae, digits.x.valid, epochs=1, batch_size=len(digits.x.valid), optimizer=None)
    assert all(torch.isfinite(p).all() for p in vae.parameters())


def test_validation_rows_are_drawn_once(digits):
    with pytest.raises(ValueError, match="Expected valid to be rows drawn once"):
        fit(made(), digits.train, valid=digits.train, epochs=1)


def test_other_data_are_refused(digits, tmp_path):
    trained(digits, epochs=1, schedules=None, out=tmp_path)
    other = digits._replace(x=digits.x._replace(train=digits.x.train.flip(3)[1:]))
    with pytest.raises(ValueError, match="different value of rows"):
        trained(other, epochs=2, schedules=None, out=tmp_path, resume=True)


def test_damaged_state_is_refused(digits, tmp_path):
    trained(digits, epochs=1, schedules=None, out=tmp_path)
    (tmp_path / "resume.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"resume.pt, got a damaged or foreign file"):
        trained(digits, epochs=2, schedules=None, out=tmp_path, resume=True)


def test_schedule_is_followed_step_by_step_and_recorded(digits):
    seen = []

    class Watched(objectives.ELBO):
        def differentiable_loss(self, *args, **kwargs):
            seen.append(float(self.beta))
            return super().differentiable_loss(*args, **kwargs)

    _, result = trained(digits, epochs=3, objective=Watched())
    schedule = SETTINGS["schedules"]["beta"]
    assert seen == [schedule(step) for step in range(60)]
    assert [row["beta"] for row in result.history] == [schedule(19), schedule(39), schedule(59)]


def test_warm_up_longer_than_the_training_is_refused(digits):
    with pytest.raises(ValueError, match=r"beta to end within the training's 20 steps.*steps=40"):
        trained(digits, epochs=1)
    with pytest.raises(ValueError, match="scalars that ELBO has, got 'gamma'"):
        trained(digits, epochs=3, schedules={"gamma": objectives.Constant(1.0)})


def test_early_stopping_waits_for_the_warm_up(digits):
    still = partial(torch.optim.SGD, lr=0.0)
    arguments = {"optimizer": still, "patience": 2, "epochs": 20, "lr_schedule": None}
    _, waiting = trained(
        digits, schedules={"beta": objectives.Linear(0, 1, steps=100)}, **arguments
    )
    _, eager = trained(digits, schedules=None, **arguments)
    # 20 steps an epoch: the warm-up ends with epoch 5, and two epochs of patience follow. Batch
    # norm alone changes the model here, so that the best epoch may come a little later.
    assert len(waiting.history) == max(waiting.best_epoch, 5) + 2
    assert len(eager.history) == eager.best_epoch + 2


def test_not_finite_names_step_and_site_and_keeps_the_last_good_state(digits, tmp_path):
    class Breaks(objectives.ELBO):
        def differentiable_loss(self, model, guide, *args, **kwargs):
            if not hasattr(self, "calls"):
                self.calls = 0
            return super().differentiable_loss(model, guide, *args, **kwargs)

    vae, seen = made(), []
    hook = vae.decoder.register_forward_hook(
        lambda m, i, o: o * float("nan") if broken(vae) else None
    )

    def broken(vae):
        return vae.training and vae.encoder.layers[1].num_batches_tracked == 46

    class Tracker:
        def log(self, values, step):
            seen.append({k: v.clone() for k, v in vae.state_dict().items()})

    with (
        pytest.warns(UserWarning, match=r"changed after its creation, decoder\.forward_hooks: 1"),
        pytest.raises(FloatingPointError, match=r"at step 46 \(epoch 3\): .*'vae.x' in the model"),
    ):
        trained(
            digits, vae=vae, epochs=5, out=tmp_path, tracker=Tracker(), checkpoint_seconds=1e9
        )  # fmt: skip
    assert len(seen) == 2
    for name, value in seen[-1].items():
        assert torch.equal(vae.state_dict()[name], value)
    # The time to write it had not come, but nothing is lost.
    assert resume_file.load_state(tmp_path / "resume.pt")["epoch"] == 2
    hook.remove()
    assert_same(trained(digits, epochs=5), trained(digits, epochs=5, out=tmp_path, resume=True))


def test_mask_of_rows_is_used(digits):
    x = digits.x.valid
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    spoilt = torch.where(mask, x, torch.nan)
    vae = made()
    result = fit(vae, Rows(spoilt, mask), valid=Rows(spoilt, mask), epochs=3, batch_size=32)
    assert all(torch.isfinite(p).all() for p in vae.parameters())
    assert result.history[-1]["valid_elbo"] > result.history[0]["valid_elbo"]


def test_rows_with_missing_values_are_known_again(digits, tmp_path):
    x = digits.x.valid
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    rows = Rows(torch.where(mask, x, torch.nan), mask)
    vae = made()
    fit(vae, rows, valid=rows, epochs=1, out=tmp_path)
    assert len(fit(vae, rows, valid=rows, epochs=2, out=tmp_path, resume=True).history) == 2


COMMAND = [
    "train.epochs=40", "train.checkpoint_seconds=0", "threads=1", "vae/prior=vamp", "resume=true",
    "data.binarize=dynamic", "evaluate.num_particles=20", "evaluate.baseline_components=3",
]  # fmt: skip


def start(folder, *, before="pass"):
    code = f"import sys; sys.argv[0] = 'pyro-vae'; {before}; from pyro_vae.cli import train"
    code = f"{code}; train.main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *COMMAND, f"out={folder}", f"hydra.run.dir={folder}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip


KILL_IN_WRITE = """
import os, signal
real, calls = os.fsync, []
def fsync(fd):
    calls.append(fd)
    if len(calls) == {n}:
        os.ftruncate(fd, os.fstat(fd).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(fd)
os.fsync = fsync
"""


@pytest.mark.long
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(tmp_path):
    import json

    began = time.perf_counter()
    assert start(tmp_path / "whole").wait() == 0
    length = time.perf_counter() - began
    random.seed(0)
    for n in (20, 55):
        code = KILL_IN_WRITE.format(n=n)
        assert start(tmp_path / "killed", before=f"exec({code!r})").wait() == -signal.SIGKILL
    kills = 2
    while kills < 10:
        began = time.perf_counter()
        process = start(tmp_path / "killed")
        try:
            process.wait(timeout=random.uniform(0.4, 0.9) * length)
        except subprocess.TimeoutExpired:
            process.kill()
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            # A machine that is quicker than it was would end before every kill.
            length = min(length, time.perf_counter() - began)
            (tmp_path / "killed" / "resume.pt").unlink()
            (tmp_path / "killed" / "metrics.json").unlink()
    assert start(tmp_path / "killed").wait() == 0
    found = []
    for name in ("whole", "killed"):
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        metrics.pop("seconds")
        found.append((metrics, (tmp_path / name / "model.safetensors").read_bytes()))
        found[-1] += ((tmp_path / name / "history.csv").read_bytes(),)
    assert found[0] == found[1]
