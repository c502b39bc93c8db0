"""NumPy's numbers, wherever a number is expected; optimizers and schedules of all kinds in fit."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone

from pyro_vae import (
    VAE,
    VAETransformer,
    data,
    evaluate,
    fit,
    likelihoods,
    load,
    networks,
    objectives,
    posteriors,
    priors,
    save,
)
from pyro_vae.validation import check_device, check_number, check_size, to_plain_python

ONE, TWO, FIVE = np.int64(1), np.int32(2), np.uint8(5)
HALF = np.float32(0.5)
X = torch.bernoulli(torch.full((40, 1, 8, 8), 0.5), generator=torch.Generator().manual_seed(0))
SMALL = partial(networks.MLP, hidden=[4])


def small(**options):
    return VAE((1, 8, 8), 2, encoder=SMALL, decoder=SMALL, **options)


def test_parts_take_numpys_numbers_and_keep_pythons():
    vae = VAE(
        np.array([1, 8, 8]), TWO,
        prior=partial(priors.Mixture, components=FIVE, spread=HALF),
        posterior=partial(posteriors.Normal, min_scale=np.float32(1e-3)),
        likelihood=partial(likelihoods.Normal, scale=HALF),
        encoder=partial(networks.ConvEncoder, channels=[np.int64(4)], hidden=np.int16(6)),
        decoder=partial(networks.MLP, hidden=np.array([6]), batch_norm=np.True_),
    )  # fmt: skip
    assert (type(vae.latent_dim), type(vae.prior.components)) == (int, int)
    assert vae.likelihood.scale == 0.5
    json.dumps(vae.recipe)
    assert vae.recipe["parts"]["encoder"]["arguments"] == {"channels": [4], "hidden": 6}
    assert vae.sample(TWO).shape == (2, 1, 8, 8)


def test_a_vae_of_numpys_numbers_is_saved_and_loaded(tmp_path):
    vae = VAE((np.int64(4),), TWO, encoder=partial(networks.MLP, hidden=[np.int64(3)]))
    save(vae, tmp_path / "vae.safetensors")
    assert load(tmp_path / "vae.safetensors").encoder.layers[0].weight.shape == (3, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.ELBO(FIVE, beta=HALF),
        lambda: objectives.MIWAE(np.int64(4), groups=TWO),
        lambda: objectives.Jackknife(np.int64(4), order=ONE),
        lambda: objectives.Renyi(FIVE, alpha=HALF),
        lambda: objectives.GECO(target=np.float32(9), momentum=HALF),
    ],
)
def test_objectives_take_numpys_numbers(make):
    vae = small()
    assert torch.isfinite(make().differentiable_loss(vae.model, vae.guide, X[:3]))


def test_a_training_of_numpys_numbers_can_be_resumed(tmp_path):
    def train(epochs, numbers):
        kind = np.int64 if numbers else int
        real = np.float64 if numbers else float
        vae = torch.manual_seed(0) and small()
        lr = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=real(0.9))
        return fit(
            vae, X, valid=X[:9], out=tmp_path, resume=True, epochs=kind(epochs),
            batch_size=kind(20), seed=kind(1), clip_norm=real(5), patience=kind(3),
            optimizer=partial(torch.optim.Adam, lr=real(1e-3)), lr_schedule=lr, compile=False,
            schedules={"beta": objectives.Linear(real(0), real(1), steps=kind(2))},
            checkpoint_seconds=kind(0),
        )  # fmt: skip

    train(1, True)
    result = train(np.int64(2), True)
    assert [row["epoch"] for row in result.history] == [1, 2]
    # The same training in Python's numbers goes on from it.
    assert len(train(3, False).history) == 3


def test_evaluation_and_data_take_numpys_numbers():
    vae = small()
    assert evaluate.log_evidence(vae, X, FIVE, max_elements=np.int64(2**20)).shape == (40,)
    assert evaluate.active_units(vae, X, threshold=HALF).shape == (2,)
    moons = data.moons(np.int64(50), noise=HALF, valid=np.float64(0.2), test=TWO, seed=ONE)
    assert [len(part) for part in moons.x] == [38, 10, 2]


def test_booleans_and_tensors_are_not_numbers():
    for value in (True, np.True_, np.float64(2), torch.tensor(2), "2"):
        with pytest.raises(ValueError, match="Expected n to be an integer of at least 1"):
            check_size("n", value, least=1)
    for value in (True, np.True_, torch.tensor(2.0), "2", np.nan, 1j):
        with pytest.raises(ValueError, match="Expected n to be a number"):
            check_number("n", value)


def test_plain_values_stay_what_they_are():
    tensor = torch.ones(2)
    made = to_plain_python({"a": [np.float32(0.5), (np.int8(1), tensor)], "b": "c"})
    assert made == {"a": [0.5, (1, tensor)], "b": "c"}
    assert type(made["a"][0]) is float


def test_particles_may_stand_third():
    vae = small()
    torch.manual_seed(0)
    third = evaluate.elbo(vae, X, 20)
    torch.manual_seed(0)
    assert torch.equal(third.elbo, evaluate.elbo(vae, X, num_particles=20).elbo)
    assert evaluate.kl_per_dimension(vae, X, 20).shape == (2,)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("valid", [None, X[:9] ** 0])
def test_a_plateau_is_that_of_the_elbo(mode, valid):
    made = []

    def plateau(optimizer):
        found = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, patience=0, factor=0.5)
        made.append(found)
        return found

    torch.manual_seed(0)
    # Ones, of which each step learns.
    sgd = partial(torch.optim.SGD, lr=0.1)
    options = {"epochs": 3, "compile": False, "optimizer": sgd, "lr_schedule": plateau}
    result = fit(small(), X**0, valid=valid, **options)
    key = "train_objective" if valid is None else "valid_elbo"
    reached = [row[key] for row in result.history]
    assert made[0].best == pytest.approx(max(reached) if mode == "max" else -max(reached))
    # The training gets better, and the rate stays; the wrong sign would have halved it.
    assert reached == sorted(reached)
    assert made[0].optimizer.param_groups[0]["lr"] == 0.1


def test_a_refused_optimizer_leaves_the_weights():
    vae = small()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    for kind in (torch.optim.LBFGS, torch.optim.SparseAdam):
        with pytest.raises(ValueError, match=f"got {kind.__name__}, which needs"):
            fit(vae, X, optimizer=kind)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_layers_that_a_first_call_makes_have_weights_by_the_random_state():
    class Late(networks.MLP):
        def forward(self, x):
            if not hasattr(self, "extra"):
                self.extra = torch.nn.Linear(x.shape[-1], x.shape[-1])
            return super().forward(self.extra(x))

    found = []
    for seed in (1, 2):
        vae = VAE((6,), 2, encoder=partial(Late, hidden=[4]))
        still = partial(torch.optim.SGD, lr=0.0)
        fit(vae, torch.ones(8, 6), epochs=1, seed=seed, compile=False, optimizer=still)
        found.append(vae.encoder.extra.weight)
    assert not torch.equal(*found)


def test_the_trial_of_networks_changes_nothing():
    vae = small(prior=partial(priors.Vamp, components=3))
    networks_with_state = VAE(
        (1, 8, 8), 2, encoder=partial(networks.ConvEncoder, batch_norm=True, channels=[2])
    )
    for one in (vae, networks_with_state):
        state, mode = {k: v.clone() for k, v in one.state_dict().items()}, one.training
        noise = torch.get_rng_state()
        # Refused after the trial.
        with pytest.raises(ValueError, match="seed"):
            fit(one, X, seed="0", batch_size=1)
        assert torch.equal(noise, torch.get_rng_state())
        assert one.training is mode
        assert all(torch.equal(v, state[k]) for k, v in one.state_dict().items())


def test_batch_norm_of_images_takes_single_rows():
    encoder = partial(networks.ConvEncoder, batch_norm=True, channels=[2])
    vae = VAE((1, 8, 8), 2, encoder=encoder, decoder=SMALL)
    assert fit(vae, X[:3], batch_size=1, epochs=1, compile=False).steps == 2


def test_the_transformer_takes_an_objective_and_copies_it():
    x = np.random.default_rng(0).normal(size=(30, 3))
    geco = objectives.GECO(target=1.0, step_size=0.1)
    make = partial(VAETransformer, epochs=1, random_state=0)
    model = make(objective=geco).fit(x)
    assert torch.isnan(geco.average)
    assert model.objective is geco
    again = clone(model).fit(x)
    assert again.result_.history[0] == model.result_.history[0]
    by_class = make(objective=objectives.IWAE).fit(x).result_.history[0]
    assert make(objective=objectives.IWAE()).fit(x).result_.history[0] == by_class
    assert make(objective=objectives.ELBO()).fit(x).result_.history[0] != by_class


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps:3", "meta", None, 99, "cpu:x"])
def test_a_device_that_is_not_here_is_refused_in_a_line(device):
    with pytest.raises(ValueError, match="Expected device to be one of this machine") as caught:
        check_device(device)
    assert repr(device) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_device_that_is_here_is_taken():
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")


def test_numbers_beyond_floating_point_are_named():
    for value in (10**400, -(10**400), math.inf):
        with pytest.raises(ValueError, match=r"Expected clip_norm to be (finite|positive), got"):
            check_number("clip_norm", value, above=0.0)
    with pytest.raises(ValueError, match="Expected nats to be finite, got inf"):
        check_number("nats", math.inf, least=0.0)
