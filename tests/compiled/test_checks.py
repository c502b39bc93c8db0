"""A compiled step checks each call as Pyro does, and one that fails changes nothing."""

import contextlib
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib import gp
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

import pyro_vae
from pyro_vae import VAE, objectives
from pyro_vae.compiled import graph_builder
from pyro_vae.compiled.reasons import describe_capture_failure

GOOD = torch.tensor([0.0, 1.0, 1.0, 0.0])
OUTSIDE = torch.tensor([0.0, 255.0, 1.0, 0.0])
NAN = torch.tensor([0.0, torch.nan, 1.0, 0.0])

compile_eagerly = partial(pyro_vae.compile, backend="eager")
"""Runs captured graphs as they are: what is tested does not depend on the machine code."""


class Coins(torch.nn.Module):
    """A Bernoulli for each coin, its logit latent; the guide's scale may turn negative."""

    def __init__(self, validate_args=None):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(4))
        self.scale = torch.nn.Parameter(torch.ones(4))
        self.validate_args = validate_args

    def model(self, x):
        with pyro.plate("coins", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            coin = dist.Bernoulli(logits=z, validate_args=self.validate_args)
            pyro.sample("x", coin, obs=x)

    def guide(self, x):
        with pyro.plate("coins", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.scale))


def made(optimizer=None, objective=None, validate=None, backend="eager", **changes):
    coins = Coins(**changes)
    update = None if optimizer is None else optimizer(coins.parameters(), lr=0.01)
    made_step = pyro_vae.compile(
        objective or objectives.ELBO(), coins.model, coins.guide, optimizer=update,
        validate=validate, backend=backend,
    )  # fmt: skip
    return coins, update, made_step


def held(coins, update):
    states = update.state.values() if update is not None else ()
    tensors = [value for state in states for value in state.values()]
    return [torch.as_tensor(t).detach().clone() for t in (*coins.parameters(), *tensors)]


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam, momentum, torch.optim.RMSprop])
@pytest.mark.parametrize("objective", [objectives.ELBO(), Trace_ELBO()], ids=["ours", "Pyro's"])
@pytest.mark.parametrize("x", [OUTSIDE, NAN], ids=["outside", "nan"])
def test_a_call_outside_of_the_support_raises_as_svi_and_changes_nothing(x, objective, optimizer):
    coins, update, made_step = made(optimizer, objective)
    for _ in range(3):
        made_step(GOOD)
    assert made_step.engine == "compiled"
    before = held(coins, update)
    with pytest.raises(ValueError, match="site 'x'") as ours:
        made_step(x)
    with pytest.raises(ValueError, match="site 'x'") as theirs:
        SVI(coins.model, coins.guide, pyro.optim.Adam({}), Trace_ELBO()).step(x)
    assert str(ours.value).split("\n")[:2] == str(theirs.value).split("\n")[:2]
    assert all(map(torch.equal, held(coins, update), before))
    made_step(GOOD)
    assert made_step.engine == "compiled"


@pytest.mark.long
def test_machine_code_checks_too():
    coins, update, made_step = made(torch.optim.Adam, backend="inductor")
    made_step(GOOD)
    before = held(coins, update)
    with pytest.raises(ValueError, match="site 'x'"):
        made_step(OUTSIDE)
    assert all(map(torch.equal, held(coins, update), before))
    made_step(GOOD)
    assert made_step.engine == "compiled"
    assert not any(map(torch.equal, held(coins, None), before[:2]))


def test_a_parameter_outside_of_its_constraint():
    coins, _, made_step = made()
    made_step(GOOD)
    coins.scale.data.fill_(-1.0)
    with pytest.raises(ValueError, match="parameter scale"):
        made_step(GOOD)


def test_probabilities_above_one_which_have_a_finite_density():
    odds = torch.tensor(0.5, requires_grad=True)

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(odds), obs=x)

    made_step = compile_eagerly(objectives.ELBO(), model, lambda x: None)
    made_step(GOOD)
    with torch.no_grad():
        odds.fill_(1.5)
    with pytest.raises(ValueError, match="parameter probs"):
        made_step(GOOD)


def test_what_is_not_to_be_validated_is_not_checked():
    _, _, made_step = made(validate_args=False)
    grey = torch.tensor([0.1, 0.2, 0.7, 0.9])
    for x in (GOOD, grey, OUTSIDE):
        made_step(x)
        assert made_step.engine == "compiled"


def test_without_validation_there_are_no_checks():
    _, _, made_step = made(validate=False)
    made_step(GOOD)
    assert made_step(NAN).isnan()
    _, _, made_step = made()
    with pyro.validation_enabled(False):
        made_step(GOOD)
        assert made_step(OUTSIDE).isfinite()
    made_step(GOOD)
    with pytest.raises(ValueError, match="site 'x'"):
        made_step(OUTSIDE)


def test_a_loss_of_nan_is_warned_of():
    weight, x = torch.nn.Parameter(torch.ones(())), torch.tensor(1.0)

    def model():
        pyro.sample("x", dist.Normal(weight, 1.0, validate_args=False), obs=x)

    made_step = compile_eagerly(objectives.ELBO(), model, lambda: None)
    assert made_step().isfinite()
    assert made_step.engine == "compiled"
    x.fill_(torch.nan)
    with warnings.catch_warnings():
        # Pyro also warns of the site, before it computes the loss.
        warnings.filterwarnings("ignore", "Encountered NaN: log_prob_sum")
        with pytest.warns(UserWarning, match="Encountered NaN: loss"):
            assert made_step().isnan()


def test_the_first_call_of_grey_images_is_refused_as_by_pyro():
    _, _, made_step = made()
    with pytest.raises(ValueError, match="site 'x'"):
        made_step(OUTSIDE)


@pytest.mark.parametrize("objective", [objectives.ELBO(2), objectives.IWAE(3)])
def test_the_default_vae_is_checked(objective):
    torch.manual_seed(0)
    vae = VAE((4,), 2)
    made_step = compile_eagerly(objective, vae.model, vae.guide, strict=True)
    for _ in range(2):
        made_step(GOOD.repeat(5, 1))
    with pytest.raises(ValueError, match="Expected x to be zeros and ones"):
        made_step(OUTSIDE.repeat(5, 1))


def test_models_without_arguments_are_compiled():
    data = torch.tensor(2.0)

    def model():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide():
        loc = pyro.param("loc", torch.tensor(0.5))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale))

    made_step = pyro_vae.compile(objectives.ELBO(), model, guide, strict=True)
    for value in (2.0, -1.0):
        data.fill_(value)
        for _ in range(2):
            torch.manual_seed(1)
            loss = made_step()
        torch.manual_seed(1)
        torch.testing.assert_close(loss, objectives.ELBO().differentiable_loss(model, guide))
    assert made_step.engine == "compiled"


@pytest.mark.parametrize("sparse", [False, True])
def test_gaussian_processes_are_compiled(sparse):
    x = torch.linspace(0, 1, 7)
    y, kernel = torch.sin(6 * x), gp.kernels.RBF(input_dim=1)
    if sparse:
        process = gp.models.SparseGPRegression(x, y, kernel, Xu=x[::2].clone(), jitter=1e-4)
    else:
        process = gp.models.GPRegression(x, y, kernel, jitter=1e-4)
    optimizer = torch.optim.Adam(process.parameters(), lr=0.05)
    made_step = compile_eagerly(
        objectives.ELBO(), process.model, process.guide, optimizer=optimizer, strict=True
    )
    losses = [float(made_step()) for _ in range(30)]
    assert losses[-1] < losses[0] - 1
    assert made_step.engine == "compiled"
    expected = objectives.ELBO().differentiable_loss(process.model, process.guide).detach()
    torch.testing.assert_close(made_step(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_without_parameters_gives_its_loss(strict):
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.ones(3)
    made_step = pyro_vae.compile(objectives.ELBO(), model, lambda x: None, strict=strict)
    expected = SVI(model, lambda x: None, pyro.optim.Adam({}), Trace_ELBO()).step(x)
    for _ in range(2):
        assert float(made_step(x)) == pytest.approx(expected)
    assert made_step.parameters == []


def test_an_empty_model_has_no_loss():
    made_step = pyro_vae.compile(objectives.ELBO(), lambda: None, lambda: None)
    assert [float(made_step()), float(made_step())] == [0.0, 0.0]


def masked_by_handler(z, mask):
    with pyro.poutine.mask(mask=mask):
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))


def masked_by_distribution(z, mask):
    pyro.sample("x", dist.Normal(z, 1.0).mask(mask), obs=torch.zeros(3))


def partly_observed(z, mask):
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3), obs_mask=mask)


@pytest.mark.parametrize("masked", [masked_by_handler, masked_by_distribution, partly_observed])
def test_nan_under_a_mask_is_refused_as_by_pyro(masked):
    loc, shift = torch.nn.Parameter(torch.ones(())), torch.zeros(3)
    mask = torch.tensor([True, True, False])

    def model():
        with pyro.plate("rows", 3):
            z = pyro.sample("z", dist.Normal(loc.expand(3), 1.0))
            masked(z + shift, mask)

    def guide():
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(loc.expand(3), 1.0))
            if masked is partly_observed:
                pyro.sample("x_unobserved", dist.Normal(torch.zeros(3), 1.0))

    optimizer = torch.optim.Adam([loc], lr=0.1)
    made_step = compile_eagerly(objectives.ELBO(), model, guide, optimizer=optimizer, strict=True)
    made_step()
    before = loc.detach().clone()
    shift[2] = torch.nan
    with pytest.raises(ValueError, match=r"site 'x|parameter loc"):
        made_step()
    assert torch.equal(loc, before)


def test_a_site_that_is_masked_as_a_whole_is_not_checked():
    loc = torch.nn.Parameter(torch.ones(()))

    def model(x):
        pyro.sample("a", dist.Bernoulli(0.3).mask(False), obs=x)
        with pyro.poutine.mask(mask=False):
            pyro.sample("b", dist.Bernoulli(0.3), obs=x)
        pyro.sample("c", dist.Normal(loc, 1.0), obs=torch.tensor(0.0))

    made_step = compile_eagerly(objectives.ELBO(), model, lambda x: None)
    for x in (torch.tensor(1.0), torch.tensor(0.5)):
        made_step(x)
        assert made_step.engine == "compiled"


def test_a_distribution_without_constraints_is_compiled():
    class Plain(dist.TorchDistribution):
        support = torch.distributions.constraints.real

        def __init__(self, loc):
            self.loc = loc
            super().__init__(validate_args=False)

        def log_prob(self, value):
            return -((value - self.loc) ** 2)

    loc = torch.nn.Parameter(torch.ones(()))
    made_step = compile_eagerly(
        objectives.ELBO(),
        lambda: pyro.sample("x", Plain(loc), obs=torch.tensor(0.0)),
        lambda: None,
        strict=True,
    )
    made_step()
    assert made_step() == 1.0


class Normed(torch.nn.Module):
    """Coins whose logits pass batch norm."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.loc = torch.nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def guide(self, x):
        loc = self.norm(x[:, None] + torch.randn(len(x), 1))[:, 0]
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc + self.loc, 1.0))


def test_a_failed_call_is_as_if_the_eager_step_alone_had_failed():
    def after(compiled):
        torch.manual_seed(0)
        net, objective = Normed(), objectives.GECO(target=1.0)
        optimizer = torch.optim.Adam(net.parameters())
        made_step = compile_eagerly(objective, net.model, net.guide, optimizer=optimizer)
        for x in (GOOD, OUTSIDE, GOOD, NAN, GOOD):
            torch.manual_seed(3)
            with contextlib.suppress(ValueError):
                if compiled:
                    made_step(x)
                    assert made_step.engine == "compiled"
                else:
                    made_step.run_eagerly((x,), {})
            noise = torch.rand(1)
        states = [objective.state_dict(), net.state_dict()]
        return noise, {k: v for state in states for k, v in state.items()}

    (noise, found), (expected_noise, expected) = after(True), after(False)
    assert noise == expected_noise
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert expected["norm.num_batches_tracked"] == 5


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop])
def test_a_loss_of_nan_is_repeated_with_the_same_noise(optimizer):
    def after(compiled):
        weight, scale = torch.nn.Parameter(torch.ones(())), torch.ones(())

        def model():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            x = dist.Normal(z * weight + scale.log(), 1.0, validate_args=False)
            pyro.sample("x", x, obs=torch.zeros(()))

        def guide():
            pyro.sample("z", dist.Normal(0.0, 1.0))

        update = optimizer([weight], lr=0.1)
        made_step = compile_eagerly(objectives.ELBO(), model, guide, optimizer=update)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for value in (1.0, -1.0, 1.0):
                scale.fill_(value)
                made_step() if compiled else made_step.run_eagerly((), {})
        return weight.detach()

    torch.testing.assert_close(after(True), after(False), equal_nan=True)


def test_where_nothing_is_read_a_failed_call_has_no_gradient(monkeypatch):
    monkeypatch.setattr(graph_builder, "can_read_validity", lambda loss: False)
    coins, _, made_step = made()
    made_step(GOOD)
    assert all((p.grad != 0).any() for p in coins.parameters())
    assert made_step(OUTSIDE).isnan()
    assert all((p.grad == 0).all() for p in coins.parameters())


@pytest.mark.parametrize("y", [torch.tensor([0, 3]), torch.tensor([-1, 0])])
def test_an_index_out_of_bounds_raises_the_eager_error(y):
    logits = torch.nn.Parameter(torch.zeros(3))

    def model(y):
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    made_step = pyro_vae.compile(objectives.ELBO(), model, lambda y: None, strict=True)
    made_step(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="site 'y'"):
        made_step(y)


def test_a_gradient_of_zero_is_no_mismatch():
    loc = torch.nn.Parameter(torch.zeros(()))
    rows = torch.linspace(-1.0, 1.0, 101)

    def model():
        with pyro.plate("rows", 101):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=rows)

    made_step = compile_eagerly(objectives.ELBO(), model, lambda: None, strict=True)
    made_step()
    assert abs(loc.grad) < 1e-5


def test_an_error_without_a_message_has_a_name():
    assert (
        describe_capture_failure(NotImplementedError("\nTrace Shapes:\n x"))
        == "NotImplementedError"
    )
    assert describe_capture_failure(NotImplementedError()) == "NotImplementedError"


def test_a_generator_is_named_as_the_reason():
    generator, loc = torch.Generator(), torch.nn.Parameter(torch.zeros(()))

    def model():
        shift = torch.rand((), generator=generator)
        pyro.sample("x", dist.Normal(loc + shift, 1.0), obs=torch.tensor(0.0))

    made_step = pyro_vae.compile(objectives.ELBO(), model, lambda: None)
    with pytest.warns(UserWarning, match=r"drawn from a torch\.Generator"):
        made_step()


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("kind", [Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO])
def test_pyros_objectives_without_parameters_give_the_loss_of_svi(kind):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.5))

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    for pair in ((model, guide), (lambda: None, lambda: None)):
        made_step = pyro_vae.compile(kind(), *pair)
        svi = SVI(*pair, pyro.optim.Adam({}), kind())
        for seed in range(3):
            torch.manual_seed(seed)
            loss = made_step()
            torch.manual_seed(seed)
            expected = svi.step()
            # Pyro's first step also runs the model to find the depth of its plates.
            assert seed == 0 or float(loss) == pytest.approx(expected)
