"""VAEs that hold unusual things: trained at once or one after another, each as `fit` does."""

import copy
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import SGD, Adam, RMSprop
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, OneCycleLR, SequentialLR
from torch.optim.optimizer import register_optimizer_step_post_hook

import pyro_vae
from pyro_vae import VAE, fit, likelihoods, networks, priors
from pyro_vae.objectives import ELBO, GECO, IWAE, Jackknife, Linear, Renyi

SIZE, ROWS, BATCH = 6, 23, 10
SEEDS = [3, 4, 5]
FAST = partial(SGD, lr=0.1, momentum=0.9)

narrow = partial(networks.MLP, hidden=[5])


fit_many = partial(pyro_vae.fit_many, backend="eager")


class Net(networks.MLP):
    """A network that has something, and does something with what it is given."""

    def __init__(self, in_shape, out_shape, made, done=None):
        super().__init__(in_shape, out_shape, hidden=[5])
        self.has = made(self)
        self.done = done

    def forward(self, x):
        if self.done is None:
            return super().forward(x)
        return self.done(self, super().forward(x))


def of(*made, done=None, size=3):
    """Returns a maker of VAEs whose decoders have what these make, the last for all others."""

    def vaes():
        found = []
        for i in range(size):
            torch.manual_seed(i)
            decoder = partial(Net, made=made[min(i, len(made) - 1)], done=done)
            found.append(VAE((SIZE,), 2, encoder=narrow, decoder=decoder).double())
        return found

    return vaes


def plain(size=3):
    vaes = []
    for i in range(size):
        torch.manual_seed(i)
        vaes.append(VAE((SIZE,), 2, encoder=narrow, decoder=narrow).double())
    return vaes


def changed(change, size=3):
    def vaes():
        found = plain(size)
        for i, vae in enumerate(found):
            change(i, vae)
        return found

    return vaes


def rows():
    generator = torch.Generator().manual_seed(9)
    return torch.rand(ROWS, SIZE, generator=generator, dtype=torch.float64).round()


def clamp(own, x):
    return x.clamp(-own.has, own.has)


def bound(i):
    return (9.0, 0.2, 0.2)[i]


def limit(value):
    return lambda own: np.float64(value)


def clamped_forward(i, vae):
    c = bound(i)
    vae.decoder.register_forward_hook(lambda module, inputs, out: out.clamp(-c, c))


def clamped_gradient(i, vae):
    for parameter in vae.decoder.parameters():
        parameter.register_hook(lambda g, c=1.0 / (1 + 20 * i): g.clamp(-c, c))


def clamped_after(i, vae):
    def clamp(parameter):
        parameter.grad.clamp_(-1.0, 1.0)

    for parameter in vae.decoder.parameters():
        parameter.register_post_accumulate_grad_hook(clamp)


def projected(parameters):
    parameters = list(parameters)
    optimizer = FAST(parameters)
    step = optimizer.step

    def then_project():
        step()
        with torch.no_grad():
            for parameter in parameters:
                parameter.clamp_(-0.2, 0.2)

    optimizer.step = then_project
    return optimizer


def viewing(i, vae):
    vae.decoder.has = [vae.decoder.layers[0].weight.detach()]


def frozen(i, vae):
    vae.decoder.layers[0].weight.grad = torch.ones_like(vae.decoder.layers[0].weight)
    vae.decoder.layers[0].weight.requires_grad_(False)


def normalized(i, vae):
    parametrizations.weight_norm(vae.decoder.layers[0])


class Recurrent(networks.MLP):
    """A network that reads its input number by number."""

    def __init__(self, in_shape, out_shape):
        super().__init__(in_shape, out_shape, hidden=[5])
        self.cell = nn.GRU(1, SIZE, batch_first=True)

    def forward(self, x):
        out, _ = self.cell(x[..., None])
        return super().forward(out[..., -1, :])


class Growing(networks.MLP):
    """A network that makes its last layer at its first call."""

    def forward(self, x):
        if not hasattr(self, "extra"):
            self.extra = nn.Linear(x.shape[-1], x.shape[-1]).to(x)
        return super().forward(self.extra(x))


def growing():
    vaes = []
    for i in range(3):
        torch.manual_seed(i)
        encoder = partial(Growing, hidden=[5])
        vaes.append(VAE((SIZE,), 2, encoder=encoder, decoder=narrow).double())
    return vaes


def recurrent():
    found = []
    for i in range(3):
        torch.manual_seed(i)
        found.append(VAE((SIZE,), 2, encoder=Recurrent, decoder=narrow).double())
    return found


def transposed(own, x):
    """Adds noise that is drawn in another order than it is numbered."""
    return x + 0.1 * torch.randn_like(x.transpose(0, -1)).transpose(0, -1)


class Own(ConstantLR):
    """A scheduler of another package."""


LONG = partial(pytest.param, marks=pytest.mark.long)
LATER = {"epochs": 4, "optimizer": FAST}
OPAQUE = "does not describe its decoder"


@pytest.mark.parametrize(
    ("vaes", "arguments", "reason"),
    [
        (of(limit(9.0), limit(1.2), done=clamp), LATER, OPAQUE),
        (changed(clamped_forward), LATER, r"decoder\.forward_hooks"),
        (changed(clamped_gradient), LATER, "hook on a parameter"),
        (changed(clamped_after), LATER, "hook on a parameter"),
        (of(lambda own: None, done=transposed), {}, OPAQUE),
        (plain, {"optimizer": projected, "epochs": 4}, "optimizer, SGD, whose"),
        (changed(viewing), LATER, r"decoder\.has"),
        (changed(normalized), {}, "differs from its recipe"),
        LONG(plain, {"objective": [Renyi(2, alpha=a) for a in (1.0, 0.5, 0.2)]}, None),
        LONG(plain, {"objective": [Jackknife(4, order=1) for _ in range(3)]}, None),
        LONG(recurrent, {}, None),
        (growing, {}, "adds or replaces a setting, module"),
        (changed(frozen), {}, None),
        (
            plain,
            {"optimizer": FAST, "lr_schedule": [
                partial(OneCycleLR, max_lr=lr, total_steps=9) for lr in (0.1, 0.01, 0.02)
            ]},
            None,
        ),
        (
            plain,
            {"optimizer": FAST, "lr_schedule": partial(
                OneCycleLR, max_lr=0.1, total_steps=9, base_momentum=0.0
            )},
            "a momentum that reaches 0",
        ),
        (
            plain,
            {"optimizer": FAST, "lr_schedule": lambda optimizer: SequentialLR(
                optimizer, [Own(optimizer), ExponentialLR(optimizer, 0.5)], [1]
            )},
            "Own, which is not of torch",
        ),
        LONG(
            plain, {"objective": [ELBO(beta=b) for b in torch.tensor([0.5, 1, 2]).double()]}, None
        ),
        (plain, {"objective": [IWAE(2), ELBO(), IWAE(2)]}, "from the first in objective: ELBO"),
    ],
)  # fmt: skip
def test_each_is_trained_as_alone(vaes, arguments, reason):
    # Copies would have no hooks.
    vaes, others, x = vaes(), vaes(), rows()
    arguments = {"epochs": 3, "batch_size": BATCH, **arguments}
    seeds = SEEDS[: len(vaes)]
    expected = [
        fit(
            other, x, seed=seeds[i], compile=False,
            **{k: copy.deepcopy(v[i]) if isinstance(v, list) else v for k, v in arguments.items()},
        )
        for i, other in enumerate(others)
    ]  # fmt: skip
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = fit_many(vaes, x, seed=seeds, **arguments)
    assert [result.engine for result in found] == ["eager" if reason else "compiled-many"] * len(
        vaes
    )
    assert len(told) == bool(reason), [str(warning.message) for warning in told]
    if reason:
        assert re.search(reason, str(told[0].message)), str(told[0].message)
    tolerance = 0 if reason else 1e-9
    for vae, other, result, of_one in zip(vaes, others, found, expected, strict=True):
        torch.testing.assert_close(
            vae.state_dict(), other.state_dict(), atol=tolerance, rtol=tolerance
        )
        assert (result.steps, result.best_epoch) == (of_one.steps, of_one.best_epoch)


class Penalized(ELBO):
    """An objective that knows the VAE, and keeps what cannot be pickled."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae
        self.keeps = Unpickled()

    def differentiable_loss(self, model, guide, *args, **kwargs):
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        return loss + 0.1 * sum(p.square().sum() for p in self.vae.decoder.parameters())


class Unpickled:
    def __getstate__(self):
        raise TypeError("not to be pickled")


def test_an_objective_of_another_package_trains_one_after_another():
    vaes, others = plain(), plain()
    given = {"epochs": 4, "batch_size": BATCH}
    with pytest.warns(UserWarning, match="Penalized, which is not of pyro_vae"):
        fit_many(vaes, rows(), objective=list(map(Penalized, vaes)), seed=SEEDS, **given)
    for vae, seed in zip(others, SEEDS, strict=True):
        fit(vae, rows(), objective=Penalized(vae), seed=seed, compile=False, **given)
    for vae, other in zip(vaes, others, strict=True):
        torch.testing.assert_close(vae.state_dict(), other.state_dict(), atol=0, rtol=0)


def test_hooks_of_all_optimizers_are_called():
    calls = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: calls.append(optimizer))
    try:
        with pytest.warns(UserWarning, match="optimizer, Adam, whose update no graph can contain"):
            fit_many(plain(), rows(), batch_size=BATCH, epochs=2)
    finally:
        handle.remove()
    assert len(calls) == 3 * 2 * 3


def test_a_learning_rate_that_is_a_tensor_is_one_for_each():
    """Where schedules change it in place, each changes its own."""
    results = []
    for at_once in (True, False):
        make = partial(Adam, lr=torch.tensor(1e-2, dtype=torch.float64), fused=True)
        vaes, given = plain(), {"lr_schedule": partial(ExponentialLR, gamma=0.5), "epochs": 4}
        if at_once:
            found = fit_many(vaes, rows(), optimizer=make, seed=SEEDS, batch_size=BATCH, **given)
            assert found[0].engine == "compiled-many"
            assert make.keywords["lr"] == 1e-2
        else:
            for vae, seed in zip(vaes, SEEDS, strict=True):
                fit(
                    vae, rows(), optimizer=copy.deepcopy(make), seed=seed, batch_size=BATCH,
                    compile=False, **given,
                )  # fmt: skip
        results.append([vae.state_dict() for vae in vaes])
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-9)


def test_a_strict_refusal_leaves_the_vaes_as_they_were():
    """Also a prior that starts from the data."""
    vaes = [VAE((SIZE,), 2, prior=priors.Vamp).double() for _ in range(2)]
    before = copy.deepcopy([vae.state_dict() for vae in vaes])
    with pytest.raises(RuntimeError, match="optimizer, RMSprop, whose update"):
        fit_many(vaes, rows(), optimizer=RMSprop, strict=True)
    torch.testing.assert_close([vae.state_dict() for vae in vaes], before, atol=0, rtol=0)


def test_a_strict_refusal_leaves_settings_and_modes_too():
    vaes, objective = plain(2), ELBO(beta=4.0)
    vaes[0].train().decoder.eval()
    with pytest.raises(RuntimeError, match="optimizer, RMSprop, whose update"):
        fit_many(
            vaes, rows(), optimizer=RMSprop, strict=True, objective=objective,
            schedules={"beta": Linear(0.0, 1.0, 2)},
        )  # fmt: skip
    assert objective.beta == 4.0
    assert vaes[0].training
    assert not vaes[0].decoder.training


def test_single_precision_does_not_refuse_what_started_from_nothing():
    """GECO's average is not a number before the first step, and rounded after it."""
    vaes = [vae.float() for vae in plain()]
    objective = [GECO(target=40.0 + i) for i in range(3)]
    found = fit_many(
        vaes, rows().float(), objective=objective, batch_size=BATCH, epochs=2, strict=True
    )
    assert [result.engine for result in found] == ["compiled-many"] * 3


def test_an_error_of_the_network_is_no_failure():
    class Raises(networks.MLP):
        def forward(self, x):
            raise FloatingPointError("by itself")

    vaes = [VAE((SIZE,), 2, encoder=partial(Raises, hidden=[4])).double() for _ in range(2)]
    given = {"optimizer": RMSprop, "epochs": 1}
    with pytest.raises(FloatingPointError, match="by itself"):
        fit_many(vaes, rows(), **given)


def test_a_running_scale_is_mapped_without_a_word(capfd):
    likelihood = partial(likelihoods.Normal, scale="optimal")
    vaes = [VAE((SIZE,), 2, likelihood=likelihood).double() for _ in range(2)]
    fit_many(vaes, rows(), strict=True, epochs=1, batch_size=BATCH)
    assert "performance drop" not in capfd.readouterr().err


def test_an_optimizer_that_is_none_leaves_the_vaes_as_they_were():
    vaes = [VAE((SIZE,), 2, prior=priors.Vamp).double() for _ in range(2)]
    before = copy.deepcopy([vae.state_dict() for vae in vaes])
    with pytest.raises(
        ValueError, match=r"the result of optimizer to be a torch\.optim\.Optimizer, got None"
    ):
        fit_many(vaes, rows(), optimizer=lambda parameters: None)
    torch.testing.assert_close([vae.state_dict() for vae in vaes], before, atol=0, rtol=0)


@pytest.mark.parametrize("clip_norm", [np.float32(1.0), LONG(1), LONG(np.int64(1))])
def test_any_real_number_clips(clip_norm):
    fit_many(plain(2), rows()[:BATCH], clip_norm=clip_norm, epochs=1, strict=True)
    with pytest.raises(ValueError, match="Expected clip_norm to be positive"):
        fit_many(plain(), rows(), clip_norm=-clip_norm)
