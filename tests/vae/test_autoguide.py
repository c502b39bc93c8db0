"""A VAE's guide in a list of automatic guides, against a guide by hand."""

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal

from helpers.truths import SIGMAS, z_score
from pyro_vae import VAE, AutoVAEGuide, likelihoods, networks, objectives, posteriors

ROWS, D, K = 40, 6, 2
MLP = partial(networks.MLP, hidden=[8])
GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(ROWS, D, generator=GENERATOR)
Y = torch.randn(ROWS, generator=GENERATOR)


def made(**options) -> VAE:
    parts = {"encoder": MLP, "decoder": MLP, "likelihood": likelihoods.Normal, "plate": None}
    return VAE(D, K, **{**parts, **options})


def regression(vae: VAE, size: int | None = None, seen: list | None = None):
    """y on z with global weights w, in a plate that subsamples if a size is given."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(K), 1.0).to_event(1))
        with pyro.plate("rows", len(x), subsample_size=size) as rows:
            if seen is not None:
                seen.append(x[rows])
            z = vae.model(x[rows])
            pyro.sample("y", dist.Normal((z * w).sum(-1), 1.0), obs=y[rows])

    return model


def weights_of(model):
    return poutine.block(model, expose=["w"])


def listed(model, *parts) -> AutoGuideList:
    guide = AutoGuideList(model)
    for part in parts:
        guide.append(part)
    return guide


def pair(vae: VAE, size: int | None = None):
    """The regression's guide as a list, and the same by hand: a point for w, no noise but of z."""
    model = regression(vae, size)
    guide = listed(model, AutoDelta(weights_of(model)), AutoVAEGuide(model, vae))
    guide(X, Y)
    point = guide.median(X, Y)["w"]

    def by_hand(x, y):
        rows = pyro.plate("rows", len(x), subsample_size=size)
        pyro.sample("w", dist.Delta(point, event_dim=1))
        with rows as index:
            vae.guide(x[index])

    return model, guide, by_hand


LOSSES = {
    "trace": Trace_ELBO,
    "mean_field": TraceMeanField_ELBO,
    "ours": objectives.ELBO,
    "ours_sampled": partial(objectives.ELBO, analytic=False),
    "iwae": objectives.IWAE,
}


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("size", [None, 10])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_a_guide_by_hand(name, size, vectorize, local):
    with pyro.settings.context(module_local_params=local):
        vae = made()
        model, guide, by_hand = pair(vae, size)
        found = []
        for side in (guide, by_hand):
            loss = LOSSES[name](num_particles=3, vectorize_particles=vectorize)
            vae.zero_grad()
            loss.differentiable_loss(model, side, X, Y)  # finds out about the plates
            pyro.set_rng_seed(3)
            value = loss.differentiable_loss(model, side, X, Y)
            value.backward()
            found.append((value.detach(), [p.grad.clone() for p in vae.parameters()]))
            vae.zero_grad()
    torch.testing.assert_close(found[0], found[1])
    assert all(gradient.any() for gradient in found[0][1])


@pytest.mark.parametrize("vectorize", [False, True])
def test_the_encoder_sees_the_rows_that_the_model_sees(vectorize):
    vae, of_model, of_encoder = made(), [], []
    model = regression(vae, 10, of_model)
    guide = listed(model, AutoNormal(weights_of(model)), AutoVAEGuide(model, vae))
    loss = Trace_ELBO(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1)
    guide(X, Y)
    of_model.clear()
    vae.encoder.register_forward_pre_hook(lambda _, inputs: of_encoder.append(inputs[0]))
    for _ in range(3):
        loss.loss(model, guide, X, Y)
    assert len(of_model) == len(of_encoder) == (3 if vectorize else 6)
    assert all(torch.equal(a, b) for a, b in zip(of_model, of_encoder, strict=True))
    assert not torch.equal(of_model[0], of_model[1])


def test_a_subsample_is_worth_all_rows():
    vae = made()
    found = []
    for size in (None, 10):
        model, guide, _ = pair(vae, size)
        with torch.no_grad():
            guide(X, Y)
            losses = [Trace_ELBO().loss(model, guide, X, Y) for _ in range(600)]
        found.append(torch.tensor(losses).double())
    assert abs(z_score(found[1] - found[0])) < SIGMAS


def test_shared_weights_stand_before_the_rows_for_an_importance_weighted_bound():
    vae = made()
    model = regression(vae, 10)
    weights, codes = AutoNormal(weights_of(model)), AutoVAEGuide(model, vae)
    assert math.isfinite(objectives.IWAE(3).loss(model, listed(model, weights, codes), X, Y))
    turned = AutoVAEGuide(model, vae), AutoNormal(weights_of(model))
    with pytest.raises(ValueError, match=r"'w.*' after 'vae.z' in the guide"):
        objectives.IWAE(3).loss(model, listed(model, *turned), X, Y)


def changed(vae: VAE, before: list[torch.Tensor]) -> list[bool]:
    return [not torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True)]


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, objectives.ELBO])
def test_svi_trains_all_under_one_name(loss):
    vae = made()
    model = regression(vae, 10)
    guide = listed(model, AutoNormal(weights_of(model)), AutoVAEGuide(model, vae))
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss())
    svi.step(X, Y)
    assert all(changed(vae, before))
    assert set(pyro.get_param_store()) == {
        "AutoGuideList.0.locs.w",
        "AutoGuideList.0.scales.w",
        *(f"vae$$${name}" for name, _ in vae.named_parameters()),
    }


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, objectives.ELBO])
def test_an_optimizer_of_pytorchs_trains_all(loss, local):
    with pyro.settings.context(module_local_params=local):
        vae = made()
        model = regression(vae, 10)
        guide = listed(model, AutoNormal(weights_of(model)), AutoVAEGuide(model, vae))
        guide(X, Y)
        module = loss()(model, guide)
        names = dict(module.named_parameters())
        assert {id(p) for p in vae.parameters()} < {id(p) for p in names.values()}
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        before = [p.detach().clone() for p in module.parameters()]
        module(X, Y).backward()
        optimizer.step()
    after = list(module.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(name.startswith("vae") for name in pyro.get_param_store())


@pytest.mark.parametrize("plate", [True, None])
def test_alone_it_is_the_guide_of_a_vae(plate):
    vae = made(plate=plate)

    def model(x):
        if plate is None:
            with pyro.plate("rows", len(x)):
                return vae.model(x)
        return vae.model(x, data_size=1000)

    def by_hand(x):
        if plate is None:
            with pyro.plate("rows", len(x)):
                return vae.guide(x)
        return vae.guide(x, data_size=1000)

    guide = AutoVAEGuide(model, vae)
    assert guide(X)["vae.z"].shape == (ROWS, K)
    found = []
    for side in (guide, by_hand):
        with torch.no_grad():
            losses = [Trace_ELBO().loss(model, side, X) for _ in range(200)]
        found.append(torch.tensor(losses).double())
    assert abs(z_score(found[0] - found[1])) < SIGMAS


def test_nested_plates_that_both_subsample():
    vae, seen = made(), []
    x = torch.randn(6, 8, D)

    def model(x):
        with (
            pyro.plate("groups", 6, subsample_size=4, dim=-2) as groups,
            pyro.plate("rows", 8, subsample_size=3, dim=-1) as rows,
        ):
            seen.append(x[groups][:, rows])
            vae.model(seen[-1])

    guide = AutoVAEGuide(model, vae)
    guide(x)
    vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    Trace_ELBO(max_plate_nesting=2).loss(model, guide, x)
    assert torch.equal(seen[-2].reshape(4, 3, D), seen[-1])
    assert guide.median(x)["vae.z"].shape == (6, 8, K)


def test_covariates_and_masks_are_subsampled_with_x():
    vae = made(covariate_dim=3)
    covariates, holes = torch.randn(ROWS, 3), torch.rand(ROWS, D) > 0.3
    heard = torch.arange(ROWS) % 3 > 0
    for mask in (holes, heard):

        def model(x, c, mask):
            with pyro.plate("rows", ROWS, subsample_size=10) as rows:
                vae.model(x[rows], covariates=c[rows], mask=mask[rows])

        def by_hand(x, c, mask):
            with pyro.plate("rows", ROWS, subsample_size=10) as rows:
                vae.guide(x[rows], covariates=c[rows], mask=mask[rows])

        def inputs(x, c, mask):
            return {"x": x, "covariates": c, "mask": mask}

        guide = AutoVAEGuide(model, vae, inputs=inputs)
        x = torch.where(holes, X, torch.nan) if mask is holes else X
        guide(x, covariates, mask)
        found = []
        for side in (guide, by_hand):
            pyro.set_rng_seed(2)
            found.append(Trace_ELBO().loss(model, side, x, covariates, mask))
        assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_component_for_each_call():
    vae = made()

    def model(x):
        with pyro.plate("rows", ROWS):
            for step in range(2):
                vae.model(x[step], suffix=step)

    def part(step):
        return AutoVAEGuide(model, vae, inputs=lambda x: x[step], suffix=step)

    x = torch.stack([X, -X])
    guide = listed(model, part(0), part(1))
    assert set(guide(x)) == {"vae.z_0", "vae.z_1"}
    assert set(poutine.trace(guide).get_trace(x).stochastic_nodes) == {"rows", *guide(x)}
    for step, value in enumerate(guide.median(x).values()):
        torch.testing.assert_close(value, vae.encode(x[step]).mean.detach())
    with pytest.raises(ValueError, match="suffix="):
        poutine.trace(listed(model, part(1), part(1))).get_trace(x)


@pytest.mark.parametrize("posterior", [posteriors.Normal, posteriors.Full])
def test_medians_and_quantiles_are_those_of_draws(posterior):
    vae = made(posterior=posterior, encoder=partial(networks.MLP, hidden=[8], batch_norm=True))
    model = regression(vae, 10)
    guide = listed(model, AutoNormal(weights_of(model)), AutoVAEGuide(model, vae))
    guide(X, Y)
    buffers = copy.deepcopy(dict(vae.named_buffers()))
    median = guide.median(X, Y)
    assert set(median) == {"w", "vae.z"}
    found = guide.quantiles([0.1, 0.9], X, Y)["vae.z"]
    assert vae.training
    assert all(torch.equal(a, buffers[name]) for name, a in vae.named_buffers())
    vae.eval()
    draws = vae.encode(X).sample((20_000,))
    assert found.shape == (2, ROWS, K)
    for level, value in ((0.1, found[0]), (0.5, median["vae.z"]), (0.9, found[1])):
        share = (draws < value).double().mean(0)
        assert (share - level).abs().max() < 5 * (level * (1 - level) / 20_000) ** 0.5


class Skewed(posteriors.Normal):
    """A posterior by a map of all elements at once, whose marginals have no closed form."""

    def forward(self, features):
        tril = dist.transforms.LowerCholeskyAffine(torch.zeros(K), torch.eye(K) + 0.1)
        return dist.TransformedDistribution(super().forward(features), [tril])


def test_a_posterior_without_quantiles_says_so():
    vae = made(posterior=Skewed)
    guide = AutoVAEGuide(regression(vae), vae)
    assert guide(X, Y)["vae.z"].shape == (ROWS, K)
    for ask in (guide.median, partial(guide.quantiles, [0.1])):
        with pytest.raises(NotImplementedError, match=r"quantiles in closed form.*draw from"):
            ask(X, Y)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_takes_the_list(parallel):
    vae = made()
    model = regression(vae)
    guide = listed(model, AutoNormal(weights_of(model)), AutoVAEGuide(model, vae))
    guide(X, Y)
    draws = Predictive(model, guide=guide, num_samples=300, parallel=parallel)(X, Y)
    assert draws["vae.z"].shape == (300, ROWS, K)
    q = vae.encode(X)
    error = (draws["vae.z"].mean(0) - q.mean) / (q.stddev / 300**0.5)
    assert error.abs().max() < SIGMAS + 1


def test_batches_of_another_size():
    vae = made()
    model = regression(vae)
    guide = AutoVAEGuide(model, vae)
    guide(X, Y)
    with pytest.raises(
        ValueError, match=r"x to have the 40 rows of the plate 'rows'.*got .*\(7, 6"
    ):
        guide(X[:7], Y[:7])
    able = AutoVAEGuide(model, vae, create_plates=lambda x, y: pyro.plate("rows", len(x)))
    assert [len(able(X[:n], Y[:n])["vae.z"]) for n in (40, 7, 12)] == [40, 7, 12]


def test_what_it_refuses():
    vae, other = made(), made(name="other")
    model = regression(vae)
    with pytest.raises(ValueError, match="Expected vae to be a VAE, got function"):
        AutoVAEGuide(model, vae.guide.forward.__func__)
    absent = AutoVAEGuide(model, other)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the latent site 'other\.z'.*suffix=None"):
            absent(X, Y)
    observed = poutine.condition(model, {"vae.z": torch.zeros(ROWS, K)})
    with pytest.raises(ValueError, match=r"the latent site 'vae\.z'"):
        AutoVAEGuide(observed, vae)(X, Y)
    with pytest.raises(ValueError, match=r"only \['x', 'covariates', 'mask'\], got also \['y"):
        AutoVAEGuide(model, vae, inputs=lambda x, y: {"x": x, "y": y})(X, Y)
