"""Input transforms, size factors, and the units of data."""

from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_vae import VAE, evaluate, fit, likelihoods, load, networks, priors, save, transforms
from pyro_vae.data import Rows

MLP = partial(networks.MLP, hidden=[8])


def make(likelihood, transform=transforms.Identity, event=(4,), **options):
    pyro.set_rng_seed(0)
    return VAE(
        event, 2, likelihood=likelihood, input_transform=transform, encoder=MLP, decoder=MLP,
        **options,
    )  # fmt: skip


@pytest.fixture
def positive():
    torch.manual_seed(1)
    return torch.rand(60, 4).double() + 0.5


REAL = {
    "normal": partial(likelihoods.Normal, standardize=True),
    "laplace": partial(likelihoods.Laplace, standardize=True),
    "student_t": partial(likelihoods.StudentT, standardize=True, scale="element"),
    "log_normal": likelihoods.LogNormal,
    "gamma": likelihoods.Gamma,
}


@pytest.mark.parametrize("name", REAL)
def test_a_change_of_units_changes_the_evidence_by_its_constant(name, positive):
    scale = torch.tensor([1e-3, 2.0, 700.0, 1e5]).double()
    values = []
    for x in (positive, positive * scale):
        vae = make(REAL[name], transforms.Standardize).double()
        vae.initialize(x)
        pyro.set_rng_seed(3)
        values.append(evaluate.log_evidence(vae, x, 20))
    difference = values[0] - values[1]
    expected = scale.log().sum().expand(len(positive))
    torch.testing.assert_close(difference, expected, rtol=1e-9, atol=1e-9)


def test_a_constant_element_does_not_divide_by_zero():
    x = torch.randn(20, 4)
    x[:, 1] = 7.0
    vae = make(REAL["normal"], transforms.Standardize)
    vae.initialize(x)
    assert vae.likelihood.unit_scale[1] == 1
    assert torch.isfinite(evaluate.log_evidence(vae, x, 5)).all()


def test_initialize_uses_observed_values_and_only_the_first_call(positive):
    x, mask = positive.clone(), torch.rand(60, 4) > 0.3
    x[~mask] = 1e6
    vae = make(REAL["normal"], transforms.Standardize).double()
    vae.initialize(x, mask)
    for j in range(4):
        own = positive[mask[:, j], j]
        assert vae.input_transform.loc[j].item() == pytest.approx(own.mean().item())
        assert vae.likelihood.unit_scale[j].item() == pytest.approx(own.std(correction=0).item())
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.initialize(positive * 3)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


def test_the_encoder_sees_zero_for_missing_values(positive):
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, in_shape, out_shape):
            super().__init__()
            self.net = networks.MLP(in_shape, out_shape, hidden=[4])

        def forward(self, x):
            seen.append(x)
            return self.net(x)

    mask = torch.rand(60, 4) > 0.5
    vae = VAE((4,), 2, likelihood=likelihoods.LogNormal, input_transform=transforms.Standardize,
              encoder=Spy, decoder=MLP).double()  # fmt: skip
    vae.initialize(positive, mask)
    x = torch.where(mask, positive, torch.nan)
    vae.guide(x, mask=mask)
    assert (seen[-1][~mask] == 0).all()
    expected = (positive - vae.input_transform.loc) / vae.input_transform.scale
    torch.testing.assert_close(seen[-1][mask], expected[mask])
    evaluate.elbo(vae, x, mask=mask)
    assert (seen[-1][~mask] == 0).all()


@pytest.mark.parametrize(
    "likelihood", [likelihoods.LogNormal, likelihoods.Gamma, likelihoods.Beta, likelihoods.Poisson]
)
def test_missing_values_change_nothing_and_leave_gradients_finite(likelihood):
    mask = torch.rand(30, 4) > 0.4
    mask[0] = False
    base = torch.full((30, 4), 0.5)
    if likelihood is likelihoods.Poisson:
        base = torch.poisson(4 * base)
    losses, gradients = [], []
    for filler in (torch.nan, -3.0, 1e9):
        vae = make(likelihood)
        x = torch.where(mask, base, filler)
        vae.initialize(x, mask)
        pyro.set_rng_seed(1)
        loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x, mask=mask)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    assert losses[0] == losses[1] == losses[2]
    assert all(torch.isfinite(g).all() and torch.equal(g, gradients[0]) for g in gradients)


def test_one_hot_is_one_channel_for_each_level():
    part = transforms.OneHot((2, 4, 4), levels=5)
    assert part.out_shape == (10, 4, 4)
    level = torch.randint(0, 5, (7, 2, 4, 4))
    expected = torch.nn.functional.one_hot(level, 5).movedim(-1, 1).flatten(1, 2).float()
    torch.testing.assert_close(part(level / 4), expected)
    mask = torch.rand(7, 2, 4, 4) > 0.5
    assert torch.equal(part.expand_mask(mask)[:, :2], mask)
    conv = partial(networks.ConvEncoder, channels=[4], hidden=8)
    likelihood = partial(likelihoods.Categorical, levels=5)
    vae = VAE((2, 4, 4), 2, likelihood=likelihood, encoder=conv,
              input_transform=partial(transforms.OneHot, levels=5))  # fmt: skip
    assert vae.encode(level / 4).mean.shape == (7, 2)


@pytest.mark.parametrize("transform", [transforms.Standardize, transforms.Log1p])
def test_pseudo_inputs_are_inputs_of_the_encoder(transform):
    x = torch.poisson(torch.full((50, 4), 100.0))
    vae = make(likelihoods.Poisson, transform, prior=partial(priors.Vamp, components=3))
    fit(vae, x, epochs=2)
    assert vae.prior.pseudo_inputs.abs().max() < 20
    assert torch.isfinite(evaluate.log_evidence(vae, x, 5)).all()


def test_svi_trains_with_given_or_initialized_units():
    x = 100 + torch.randn(40, 4)
    given = partial(transforms.Standardize, loc=100.0, scale=1.0)
    assert torch.equal(make(likelihoods.Normal, given).input_transform(x), x - 100)
    vae = make(partial(likelihoods.Normal, standardize=True), transforms.Standardize)
    vae.initialize(x)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO())
    first, *_, last = [svi.step(x) for _ in range(60)]
    assert last < first


def test_units_are_saved(tmp_path):
    x = 50 + 3 * torch.randn(40, 4)
    vae = make(REAL["normal"], transforms.Standardize)
    fit(vae, x, epochs=2)
    save(vae, tmp_path / "vae")
    other = load(tmp_path / "vae")
    assert isinstance(other.input_transform, transforms.Standardize)
    pyro.set_rng_seed(0)
    expected = evaluate.log_evidence(vae, x, 5)
    pyro.set_rng_seed(0)
    assert torch.equal(evaluate.log_evidence(other, x, 5), expected)


def test_mean_counts_start_at_those_of_the_training_rows():
    rates = torch.tensor([0.0, 1.0, 30.0, 1000.0])
    x = torch.poisson(rates.expand(200, 4))
    part = likelihoods.Poisson((4,))
    part.initialize(x)
    mean = part(torch.zeros(1, 1, 4)).mean[0]
    torch.testing.assert_close(mean, (x.sum(0) + 0.5) / 200.5)
    part = likelihoods.Multinomial((4,))
    part.initialize(x)
    assert part(torch.zeros(1, 1, 4)).mean.sum().item() == pytest.approx(x.sum(1).median().item())


def test_the_size_factor_is_the_last_covariate_which_networks_do_not_see():
    part = partial(likelihoods.NegativeBinomial, size_factor="covariate")
    vae = make(part, covariate_dim=3)
    assert vae.encoder.layers[0].in_features == 4 + 2
    z, covariates = torch.randn(5, 2), torch.rand(5, 3) + 1
    small, large = vae.decode(z, covariates), vae.decode(z, covariates * torch.tensor([1, 1, 9.0]))
    torch.testing.assert_close(large.mean, 9 * small.mean)
    torch.testing.assert_close(small.mean.sum(-1), covariates[:, -1])
    x = small.sample()
    q = vae.encode(x, covariates).mean
    assert torch.equal(vae.encode(x, covariates * torch.tensor([1, 1, 9.0])).mean, q)
    assert evaluate.log_evidence(vae, x, 5, covariates=covariates).shape == (5,)
    with pytest.raises(ValueError, match="size factor, the last covariate, to be positive, got -1"):
        vae.check(x, covariates=covariates * torch.tensor([1, 1, -1.0]) / covariates[:, -1:])
    with pytest.raises(ValueError, match="covariate_dim to be at least 1"):
        make(part)


def test_a_single_size_factor_leaves_networks_without_covariates():
    vae = make(partial(likelihoods.Poisson, size_factor="covariate"), covariate_dim=1)
    assert vae.encoder.layers[0].in_features == 4
    sizes = torch.rand(6, 1) + 1
    x = vae.sample(1, covariates=sizes)[0]
    fit(vae, Rows(x, covariates=sizes), epochs=1)


def test_evidence_given_the_row_sum_is_marked():
    for part, condition in (
        (likelihoods.Poisson((2,)), None),
        (likelihoods.Poisson((2,), size_factor="row_sum"), "row-sum size factor"),
        (likelihoods.Multinomial((2,)), "row sum"),
    ):
        assert part.condition == condition


@pytest.mark.parametrize("size_factor", ["row_sum", "multinomial"])
def test_single_values_cannot_be_missing_given_the_row_sum(size_factor):
    part = (
        likelihoods.Multinomial
        if size_factor == "multinomial"
        else partial(likelihoods.Poisson, size_factor="row_sum")
    )
    vae, x = make(part), torch.ones(5, 4)
    with pytest.raises(ValueError, match="likelihood of independent elements"):
        vae.model(x, mask=torch.rand(5, 4) > 0.5)
    rows = torch.tensor([True, False, True, True, True])
    fit(vae, Rows(x, rows), epochs=1)


BAD = {
    "size_factor": (lambda: likelihoods.Poisson((2,), size_factor="sum"), "size_factor to be"),
    "dispersion": (
        lambda: likelihoods.NegativeBinomial((2,), inverse_dispersion=0),
        "inverse_dispersion to be positive or one of .*, got 0",
    ),
    "gate": (
        lambda: likelihoods.ZeroInflatedNegativeBinomial((2,), zero_inflation=0.5),
        "zero_inflation to be .*, got 0.5",
    ),
    "df": (lambda: likelihoods.StudentT((2,), df=1.0), "df to be .*, got 1"),
    "scale": (lambda: likelihoods.Laplace((2,), scale="optimal"), "scale to be positive or one of"),
    "concentration": (lambda: likelihoods.Beta((2,), concentration=-1), "concentration to be"),
    "max_concentration": (
        lambda: likelihoods.Gamma((2,), max_concentration=0.5), "max_concentration to be"
    ),
    "standardize": (lambda: likelihoods.Laplace((2,), standardize=1), "standardize to be"),
    "optimal": (
        lambda: likelihoods.Normal((2,), scale="optimal", standardize=True),
        "standardize=False with scale='optimal'",
    ),
    "loc": (lambda: transforms.Standardize((2,), loc=1.0), "both loc and scale or none"),
    "loc_shape": (
        lambda: transforms.Standardize((2,), loc=[1.0] * 3, scale=1.0), "loc to be numbers that"
    ),
    "scale_sign": (lambda: transforms.Standardize((2,), loc=0, scale=-1), "scale to be positive"),
    "log1p": (lambda: transforms.Log1p((2,), loc=0.0, scale=1.0), "standardize=True with loc"),
    "levels": (lambda: transforms.OneHot((2,), levels=1), "levels to be"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=f"Expected {message}"):
        call()


def standardized(likelihood, transform=transforms.Identity):
    return make(likelihood, transform, event=(2,))


NAN, INF = float("nan"), float("inf")

MISFITS = {
    "zero": (likelihoods.LogNormal, [[0.0, 1.0], [2.0, 3.0]], None, "positive"),
    "negative": (likelihoods.Gamma, [[-1.0, 1.0]], None, "positive"),
    "not a count": (likelihoods.Poisson, [[-1.0, 1.0]], None, "counts"),
    "no rows": (likelihoods.Poisson, torch.ones(0, 2), None, "to have rows"),
    "infinite": (REAL["normal"], [[INF, 1.0]], None, "finite"),
    "shape": (REAL["normal"], torch.ones(3, 1), None, "shape"),
    "all missing": (REAL["normal"], [[1.0, 2.0]], [[False, False]], "mask to leave values in"),
    "row sum": (partial(likelihoods.Poisson, size_factor="row_sum"), [[3.0, 1.0], [1.0, 2.0]],
                [[True, True], [True, False]], "complete rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_rows_that_do_not_fit_never_initialize(name):
    likelihood, x, mask, message = MISFITS[name]
    vae = standardized(likelihood, transforms.Standardize)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    mask = None if mask is None else torch.tensor(mask)
    with pytest.raises(ValueError, match=message):
        vae.initialize(torch.as_tensor(x), mask)
    if name != "row sum":
        assert all(torch.equal(before[n], v) for n, v in vae.state_dict().items())
    assert not vae.likelihood.started


def test_missing_rows_do_not_count_for_the_size_of_draws():
    vae = make(partial(likelihoods.Poisson, size_factor="row_sum"))
    rows = torch.tensor([True] + [False] * 9)
    vae.initialize(torch.full((10, 4), 5.0), rows)
    assert vae.likelihood.reference_size == 20


@pytest.mark.parametrize("features", [-1e5, -40.0, 25.0, 1e5])
def test_a_gamma_of_wide_data_stays_finite(features):
    x = torch.exp(6 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0)))
    vae = standardized(likelihoods.Gamma)
    vae.initialize(x)
    h = torch.full((1, 1, 2), features, requires_grad=True)
    log_prob = vae.likelihood(h).log_prob(x[:1]).sum()
    assert torch.isfinite(log_prob)
    assert torch.isfinite(torch.autograd.grad(log_prob, h)[0]).all()


def test_a_size_factor_of_zero_is_named_wherever_it_enters():
    vae = make(partial(likelihoods.Poisson, size_factor="covariate"), covariate_dim=1)
    for size in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match="size factor, the last covariate, to be positive"):
            vae.decode(torch.zeros(3, 2), torch.full((3, 1), size))


def test_levels_of_likelihood_and_input_transform_are_the_same():
    with pytest.raises(ValueError, match="the levels of the likelihood, 256, got 5"):
        VAE((2, 4, 4), 2, likelihood=likelihoods.Categorical,
            input_transform=partial(transforms.OneHot, levels=5))  # fmt: skip
