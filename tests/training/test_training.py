"""Training: what it learns, what it leaves alone, what it refuses."""

import copy
import math
from functools import partial

import pyro.infer
import pytest
import torch

from pyro_vae import (
    VAE,
    data,
    evaluate,
    fit,
    fit_many,
    likelihoods,
    networks,
    objectives,
    priors,
)
from pyro_vae.training.batches import draw_batches


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def small(**parts):
    torch.manual_seed(3)
    return VAE((1, 8, 8), 4, **parts)


def weights(vae):
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


def test_learns_digits(digits):
    vae = small()
    before = evaluate.elbo(vae, digits.x.test).elbo.mean()
    result = fit(vae, digits.x.train, valid=digits.x.valid, epochs=30)
    after = evaluate.elbo(vae, digits.x.test).elbo.mean()
    # Independent pixels at their frequencies: what a decoder that ignores its code can reach.
    p = digits.x.train.mean(0).clamp(1e-3, 1 - 1e-3)
    blind = likelihoods.Bernoulli((1, 8, 8))(torch.logit(p).unsqueeze(0)).log_prob(digits.x.test)
    assert before < blind.mean() < after
    assert result.steps == 30 * 13
    assert [row["epoch"] for row in result.history] == list(range(1, 31))
    assert not vae.training


def test_same_seed_same_bits_and_the_callers_random_state_is_left_alone(digits):
    runs = []
    for noise in (1, 2):
        vae = small()
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        fit(vae, digits.x.train, valid=digits.x.valid, epochs=2, seed=5)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(weights(vae))
    assert torch.equal(*runs)
    other = small()
    fit(other, digits.x.train, epochs=2, seed=6)
    assert not torch.equal(weights(other), runs[0])


def test_best_epoch_is_kept(digits):
    vae = small()
    result = fit(
        vae, digits.x.train[:50], valid=digits.x.valid, epochs=60, patience=5, batch_size=25,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
    )  # fmt: skip
    elbos = [row["valid_elbo"] for row in result.history]
    assert len(elbos) == result.best_epoch + 5 < 60
    assert max(elbos) == elbos[result.best_epoch - 1]
    torch.manual_seed(0)
    kept = evaluate.elbo(vae, digits.x.valid).elbo.mean().item()
    assert kept == pytest.approx(max(elbos), abs=1e-6)


def test_train_objective_is_the_mean_over_rows_not_over_batches(digits):
    rows = digits.x.train[:130]
    vae = small()
    reference = copy.deepcopy(vae)
    result = fit(vae, rows, epochs=1, batch_size=100, optimizer=partial(torch.optim.SGD, lr=0.0))
    torch.manual_seed(0)
    order = torch.Generator().manual_seed(0)
    loss = sum(
        objectives.ELBO().loss(reference.model, reference.guide, rows[part])
        for part in draw_batches(130, 100, order)
    )
    assert result.history[0]["train_objective"] == pytest.approx(-float(loss) / 130, rel=1e-6)


def test_batches_cover_all_rows_and_leave_no_single_one():
    order = torch.Generator().manual_seed(0)
    parts = draw_batches(101, 25, order)
    assert [len(p) for p in parts] == [25, 25, 25, 26]
    assert sorted(torch.cat(parts).tolist()) == list(range(101))
    assert [len(p) for p in draw_batches(1, 25, order)] == [1]


@pytest.mark.parametrize(
    "objective",
    [
        pyro.infer.Trace_ELBO(),
        pyro.infer.TraceMeanField_ELBO(),
        objectives.ELBO(beta=torch.tensor(0.5)),
        objectives.IWAE(3),
    ],
    ids=lambda o: type(o).__name__,
)
def test_every_objective_trains(digits, objective):
    vae = small()
    result = fit(vae, digits.x.train[:400], objective=objective, epochs=4)
    rows = [row["train_objective"] for row in result.history]
    assert rows[-1] > rows[0]


def test_clip_schedule_and_tracker(digits):
    seen = []

    class Tracker:
        def log(self, values, step):
            seen.append((step, values["train_objective"]))

    vae = small()
    start = weights(vae)
    fit(
        vae, digits.x.train[:100], epochs=3, clip_norm=1e-3, tracker=Tracker(), batch_size=100,
        optimizer=partial(torch.optim.SGD, lr=1.0),
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1),
    )  # fmt: skip
    assert [step for step, _ in seen] == [1, 2, 3]
    # Each step moves the weights by the clipped norm times the rate: 1, then 0.1, then 0.01.
    assert 0.8e-3 < (weights(vae) - start).norm() <= 1.12e-3


def test_frozen_parts_stay(digits):
    vae = small()
    vae.decoder.requires_grad_(False)
    before = weights(vae.decoder)
    encoder = weights(vae.encoder)
    fit(vae, digits.x.train[:100], epochs=1)
    assert torch.equal(weights(vae.decoder), before)
    assert not torch.equal(weights(vae.encoder), encoder)


def test_vamp_prior_starts_from_training_rows_and_a_second_fit_goes_on(digits):
    vae = small(prior=partial(priors.Vamp, components=7))
    frozen = partial(torch.optim.SGD, lr=0.0)
    fit(vae, digits.x.train[:100], epochs=1, optimizer=frozen)
    rows = {tuple(row.flatten().tolist()) for row in digits.x.train[:100]}
    assert all(tuple(u.flatten().tolist()) in rows for u in vae.prior.pseudo_inputs)
    fit(vae, digits.x.train[:100], epochs=1)
    moved = vae.prior.pseudo_inputs.detach().clone()
    fit(vae, digits.x.train[:100], epochs=1, optimizer=frozen)
    assert torch.equal(vae.prior.pseudo_inputs, moved)


def test_optimal_scale_is_frozen_at_the_training_error():
    torch.manual_seed(0)
    z = torch.randn(2000, 2)
    x = z @ torch.randn(2, 6) + 0.3 * torch.randn(2000, 6)
    linear = partial(networks.MLP, hidden=[])
    vae = VAE(
        6,
        2,
        likelihood=partial(likelihoods.Normal, scale="optimal"),
        encoder=linear,
        decoder=linear,
    )
    fit(vae, x, epochs=60, optimizer=partial(torch.optim.Adam, lr=1e-2))
    with torch.no_grad():
        q, w = vae.encode(x), vae.decoder.layers[0].weight
        exact = (x - vae.decode(q.mean).mean) ** 2 + q.variance @ (w**2).T
        draws = (x - vae.decode(q.sample()).mean) ** 2
    variance = vae.likelihood.variance.item()
    # One draw of z for each row: four standard errors of the mean of what the draws differ by.
    error = 4 * (draws - exact).mean(1).std() / len(x) ** 0.5
    assert variance == pytest.approx(exact.mean().item(), abs=error.item())
    assert math.sqrt(variance) == pytest.approx(0.3, rel=0.1)
    sample = vae.decode(torch.zeros(1, 2)).variance.unique()
    assert sample.item() == pytest.approx(variance, rel=1e-5)


def test_a_run_that_leaves_the_finite_stops_and_keeps_the_last_good_weights(digits):
    vae = small(likelihood=partial(likelihoods.Normal, scale=1e-3))
    start = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"at step 2 .*vae\.z"):
        fit(vae, digits.x.train, epochs=20, optimizer=partial(torch.optim.SGD, lr=1e9))
    assert all(torch.isfinite(value).all() for value in vae.state_dict().values())
    assert start.keys() == vae.state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs to be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size to be an integer of at least 1, got 0"),
        ({"clip_norm": -1.0}, "clip_norm to be positive, got -1.0"),
        ({"patience": 3}, "Expected valid"),
        ({"objective": pyro.infer.RenyiELBO()}, "differentiable_loss, got RenyiELBO"),
        ({"objective": pyro.infer.Trace_ELBO(num_particles=0)}, "num_particles .* got 0"),
    ],
)
def test_bad_arguments(digits, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(small(), digits.x.train, **arguments)


def test_bad_data_is_refused_before_training(digits):
    grey = data.digits(binarize="none")
    with pytest.raises(ValueError, match="grey-scale"):
        fit(small(), grey.x.train)
    with pytest.raises(ValueError, match="grey-scale"):
        fit(small(), digits.x.train, valid=grey.x.valid)
    broken = digits.x.train.clone()
    broken[5, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match="no NaN, got 1"):
        fit(small(), broken)


CONV = {"channels": [2], "hidden": 4}


def images(shape, *, encoder=None, decoder=None):
    """Returns a VAE and two images."""
    small = partial(networks.MLP, hidden=[4])
    vae = VAE(shape, 1, likelihood=likelihoods.Normal, encoder=encoder or small,
              decoder=decoder or small)  # fmt: skip
    return vae, torch.zeros(2, *shape)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("shape", [(32, 24, 3), (28, 28, 1), (8, 16, 4)], ids=str)
def test_images_with_channels_last_are_refused(shape, side):
    kind = networks.ConvEncoder if side == "encoder" else networks.ConvDecoder
    vae, x = images(shape, **{side: partial(kind, **CONV)})
    height, width, channels = shape
    found = rf"of the {side}, got event_shape=\({height}, {width}, {channels}\), which looks like"
    fix = rf"x.permute\(0, 3, 1, 2\) .*event_shape=\({channels}, {height}, {width}\)"
    for train in (fit, lambda vae, x, epochs: fit_many([vae], x, epochs=epochs)):
        with pytest.raises(ValueError, match=f"{found}.*{fix}.*{kind.__name__}, channels_first"):
            train(vae, x, epochs=1)
    mine = partial(kind, channels_first=True, **CONV)
    vae, x = images(shape, **{side: mine})
    fit(vae, x, epochs=1)
    fit(images(tuple(x.permute(0, 3, 1, 2).shape[1:]), **{side: partial(kind, **CONV)})[0],
        x.permute(0, 3, 1, 2), epochs=1)  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [(3, 32, 32), (1, 28, 28), (4, 8, 8), (8, 8, 8), (3, 8, 3), (3, 3, 3), (1, 8, 1), (4, 4, 4),
     (6, 100, 1), (16, 128, 1), (64, 20, 3), (32, 32, 2), (28, 28), (3, 5)],
    ids=str,
)  # fmt: skip
def test_other_images_train(shape):
    conv = {
        "encoder": partial(networks.ConvEncoder, **CONV),
        "decoder": partial(networks.ConvDecoder, **CONV),
    }
    vae, x = images(shape, **conv)
    fit(vae, x, epochs=1)


@pytest.mark.parametrize("shape", [(16, 16, 3), (9, 9, 1), (2, 8, 8, 3)], ids=str)
def test_networks_without_our_convolutions_take_any_shape(shape):
    class Last(torch.nn.Sequential):
        def __init__(self, in_shape, out_shape):
            super().__init__(
                torch.nn.Flatten(),
                torch.nn.Linear(math.prod(in_shape), math.prod(out_shape)),
                torch.nn.Unflatten(1, tuple(out_shape)),
            )

    for encoder in (None, Last):
        vae, x = images(shape, encoder=encoder)
        fit(vae, x, epochs=1)
