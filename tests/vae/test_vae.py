"""The contract of the VAE: a module, two Pyro functions over its parts, and tensors."""

import copy
import inspect
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from helpers.tables import EVENT, FEW_POSTERIORS, FEW_PRIORS, LIKELIHOODS, NETWORKS, data_for
from helpers.truths import SIGMAS, z_score
from pyro_vae import VAE, likelihoods, load, networks, objectives, posteriors, priors, save

ROLES = ("prior", "posterior", "likelihood", "encoder", "decoder", "input_transform")


def made(prior="vamp", posterior="full", likelihood="normal_optimal", network="conv_batch_norm"):
    encoder, decoder = NETWORKS[network]
    return VAE(
        EVENT,
        3,
        prior=FEW_PRIORS[prior],
        posterior=FEW_POSTERIORS[posterior],
        likelihood=LIKELIHOODS[likelihood],
        encoder=encoder,
        decoder=decoder,
    )


def small(**options) -> VAE:
    network = partial(networks.MLP, hidden=[8])
    return VAE(EVENT, 3, **{"encoder": network, "decoder": network, **options})


def losses(vae: VAE, x: torch.Tensor, **kwargs) -> float:
    """The loss under a fixed random state."""
    pyro.set_rng_seed(5)
    return Trace_ELBO().loss(vae.model, vae.guide, x, **kwargs)


def trained(vae: VAE, x: torch.Tensor, steps: int = 2) -> VAE:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(steps):
        svi.step(x)
    return vae


def test_the_state_dict_holds_everything_once():
    vae = made()
    keys = list(vae.state_dict())
    # The identity transform has neither parameters nor buffers.
    assert {key.split(".")[0] for key in keys} == set(ROLES) - {"input_transform"}
    tensors = [*vae.parameters(), *vae.buffers()]
    assert len({id(t) for t in tensors}) == len(tensors)
    assert {id(t) for t in tensors} >= {id(t) for t in vae.state_dict(keep_vars=True).values()}
    for side in (vae.model, vae.guide):
        assert {id(p) for p in side.parameters()} <= {id(p) for p in vae.parameters()}
    both = {id(p) for side in (vae.model, vae.guide) for p in side.parameters()}
    assert both == {id(p) for p in vae.parameters()}
    assert [name for name, _ in vae.named_children()] == list(ROLES)


def test_loading_needs_no_training_step():
    x = data_for("normal_optimal")
    vae, other = trained(made(), x).eval(), made().eval()
    other.load_state_dict(vae.state_dict())
    assert losses(other, x) == losses(vae, x)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda vae: pickle.loads(pickle.dumps(vae)),
    "pickle_after_training": lambda vae: pickle.loads(
        pickle.dumps(trained(vae, data_for("normal_optimal")))
    ),
    "deepcopy_after_training": lambda vae: copy.deepcopy(trained(vae, data_for("normal_optimal"))),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_equal_and_independent(how):
    x, vae = data_for("normal_optimal"), made()
    other = COPIES[how](vae)
    assert other.name == vae.name
    assert losses(other.eval(), x) == losses(vae.eval(), x)
    originals = {id(p) for p in [*vae.parameters(), *vae.buffers()]}
    assert not originals & {id(p) for p in [*other.parameters(), *other.buffers()]}
    for role in ROLES:
        for side in (other.model, other.guide):
            assert getattr(side, role, getattr(other, role)) is getattr(other, role)
    before = losses(vae, x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert losses(vae, x) == before
    assert losses(other, x) != before
    other.name = "other"
    assert vae.name == vae.model.scope.name == vae.guide.scope.name == "vae"
    assert other.model.scope.name == other.guide.scope.name == "other"
    trained(other.train(), x)
    assert losses(vae, x) == before


def test_a_copy_of_one_side_is_whole():
    vae, x = small(), data_for("bernoulli")
    model = copy.deepcopy(vae.model)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in vae.parameters()}
    z = torch.randn(4, 3)
    assert torch.equal(model.decode(z).mean, vae.decode(z).mean)
    assert poutine.trace(model).get_trace(x).nodes["vae.x"]["is_observed"]


@pytest.mark.parametrize("prior", FEW_PRIORS)
def test_double_precision_and_evaluation_mode_reach_both_sides(prior):
    vae = made(prior, network="mlp_batch_norm").double()
    x = data_for("normal_optimal").double()
    trace = poutine.trace(vae.model).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["vae.z"]["value"].dtype == torch.float64
    assert all(trace.nodes[f"vae.{s}"]["log_prob"].dtype == torch.float64 for s in "xz")
    assert vae.guide(x).dtype == vae.sample(2).dtype == vae.reconstruct(x).dtype == torch.float64
    vae.eval()
    assert not any(m.training for side in (vae.model, vae.guide) for m in list(side.modules())[1:])
    assert losses(vae, x) == losses(vae, x)


def test_repr_shows_the_parts():
    text = repr(small())
    assert text.startswith(f"VAE(\n  event_shape={EVENT}, latent_dim=3, name='vae'\n")
    assert all(f"({role})" in text for role in ROLES)


def test_model_and_guide_have_the_same_signature():
    vae = small()
    signature = inspect.signature(vae.model.forward)
    assert signature == inspect.signature(vae.guide.forward)
    names = ["x", "covariates", "mask", "data_size", "n", "suffix", "infer"]
    assert list(signature.parameters) == names


@pytest.mark.parametrize("name", ["vae", "first"])
def test_sites_plates_and_parameters_carry_the_name(name):
    vae, x = small(name=name, prior=FEW_PRIORS["normal_learned"]), data_for("bernoulli")
    for side, sites in ((vae.model, [f"{name}.z", f"{name}.x"]), (vae.guide, [f"{name}.z"])):
        trace = poutine.trace(side).get_trace(x)
        plated = [n for n in trace.stochastic_nodes + trace.observation_nodes if n in sites]
        assert sorted(plated) == sorted(sites)
        for site in sites:
            (frame,) = trace.nodes[site]["cond_indep_stack"]
            assert (frame.name, frame.dim, frame.size) == (f"{name}.data", -1, 12)
            assert trace.nodes[site]["scale"] == 1
        names = {f"{name}$$${n}" for n, _ in side.named_parameters()}
        assert names == set(trace.param_nodes)
        rest = set(trace.nodes) - names - {"_INPUT", "_RETURN"}
        assert all(node.startswith(f"{name}.") for node in rest)


def test_without_a_plate_the_caller_owns_the_batch():
    vae, x = small(plate=None), data_for("bernoulli")
    with pyro.plate("rows", 12):
        trace = poutine.trace(vae.model).get_trace(x)
    assert [f.name for f in trace.nodes["vae.x"]["cond_indep_stack"]] == ["rows"]
    assert "vae.data" not in trace.nodes
    free = poutine.trace(vae.model).get_trace(x[0])
    free.compute_log_prob()
    assert free.nodes["vae.x"]["cond_indep_stack"] == ()
    assert free.nodes["vae.x"]["log_prob"].shape == ()


@pytest.mark.parametrize("data_size", [12, 13, 60_000])
def test_data_size_scales_the_batch(data_size):
    vae, x = small(), data_for("bernoulli")
    for side, sites in ((vae.model, "xz"), (vae.guide, "z")):
        pyro.set_rng_seed(1)
        plain = poutine.trace(side).get_trace(x)
        pyro.set_rng_seed(1)
        scaled = poutine.trace(side).get_trace(x, data_size=data_size)
        for site in sites:
            a, b = plain.nodes[f"vae.{site}"], scaled.nodes[f"vae.{site}"]
            assert torch.equal(a["value"], b["value"])
            assert b["scale"] == pytest.approx(data_size / 12)
        torch.testing.assert_close(scaled.log_prob_sum(), plain.log_prob_sum() * data_size / 12)


def test_both_sides_return_the_latent():
    vae, x = small(), data_for("bernoulli")
    for side in (vae.model, vae.guide):
        trace = poutine.trace(side).get_trace(x)
        assert trace.nodes["_RETURN"]["value"] is trace.nodes["vae.z"]["value"]
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    torch.testing.assert_close(model.nodes["_RETURN"]["value"], guide.nodes["vae.z"]["value"])


@pytest.mark.parametrize("prior", FEW_PRIORS)
@pytest.mark.parametrize("n", [1, 5])
def test_without_data_both_sides_draw_n(n, prior):
    vae = small(prior=FEW_PRIORS[prior])
    model = poutine.trace(vae.model).get_trace(n=n)
    assert model.nodes["vae.z"]["value"].shape == (n, 3)
    assert model.nodes["vae.x"]["value"].shape == (n, *EVENT)
    assert not model.nodes["vae.x"]["is_observed"]
    assert poutine.trace(vae.guide).get_trace(n=n).nodes["vae.z"]["value"].shape == (n, 3)


def test_the_pieces_are_those_of_model_and_guide():
    vae, x = small(prior=FEW_PRIORS["mixture"]), data_for("bernoulli")
    guide = poutine.trace(vae.guide).get_trace(x)
    z = guide.nodes["vae.z"]["value"]
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    for trace in (guide, model):
        trace.compute_log_prob()
    torch.testing.assert_close(guide.nodes["vae.z"]["log_prob"], vae.encode(x).log_prob(z))
    torch.testing.assert_close(
        model.nodes["vae.z"]["log_prob"], vae.prior_distribution().log_prob(z)
    )
    torch.testing.assert_close(model.nodes["vae.x"]["log_prob"], vae.decode(z).log_prob(x))


def test_samples_have_the_moments_of_the_model():
    vae = small(prior=FEW_PRIORS["mixture"])
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(3)
    pixels = vae.sample(20_000)[:, 0, :, 0].double()
    means = vae.sample(20_000, mean=True)[:, 0, :, 0].double()
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    for pixel in range(8):
        # Independent draws of both: their difference has mean zero.
        assert abs(z_score(pixels[:, pixel] - means[:, pixel])) < SIGMAS
    assert vae.sample().shape == (1, *EVENT)
    assert not vae.sample(3, mean=True).requires_grad


@pytest.mark.parametrize(
    "prior", [priors.Normal, partial(priors.Normal, learned=True), priors.Vamp]
)
def test_covariates_of_one_dimension_are_those_of_all_rows(prior):
    vae, x = small(covariate_dim=2, prior=prior).eval(), torch.ones(3, *EVENT)
    shared = torch.tensor([0.3, -1.2])
    losses = []
    for covariates in (shared, shared[None], shared.expand(3, 2)):
        pyro.set_rng_seed(0)
        losses.append(objectives.ELBO().loss(vae.model, vae.guide, x, covariates=covariates))
    assert losses == pytest.approx([losses[2]] * 3, rel=1e-5)
    assert vae.model(covariates=shared, n=4).shape == (4, vae.latent_dim)
    assert vae.model(covariates=shared.expand(5, 2)).shape == (5, vae.latent_dim)
    for wrong in (shared.expand(2, 2), shared.expand(3, 1, 2), shared.expand(1, 3, 2)):
        with pytest.raises(ValueError, match="Expected covariates of 3 rows"):
            vae.model(x, covariates=wrong)


@pytest.mark.parametrize("prior", ["normal", "normal_learned", "vamp"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_samples_given_covariates_are_n_for_each_row(n, prior):
    vae = small(covariate_dim=2, prior=FEW_PRIORS[prior])
    covariates = torch.randn(5, 2)
    assert vae.sample(n, covariates=covariates).shape == (n, 5, *EVENT)
    assert vae.sample(n, covariates=covariates[0]).shape == (n, *EVENT)
    assert vae.sample(n, covariates=torch.randn(4, 5, 2)).shape == (n, 4, 5, *EVENT)
    codes = vae.sample(200, covariates=covariates, mean=True)[:, :, 0, 0, 0]
    # Each row of covariates has draws of its own.
    # Correlations of 200 pairs have a standard deviation of 0.07.
    assert (torch.corrcoef(codes.T) - torch.eye(5)).abs().max() < 0.35


def test_reconstructions_are_of_the_mean_or_drawn():
    vae, x = small(), data_for("bernoulli")
    expected = vae.decode(vae.encode(x).mean).mean
    assert torch.equal(vae.reconstruct(x), expected)
    assert set(vae.reconstruct(x, mean=False).unique().tolist()) <= {0.0, 1.0}
    assert vae.reconstruct(x.expand(2, 12, *EVENT)).shape == (2, 12, *EVENT)
    assert vae.reconstruct(x[0]).shape == EVENT


def test_samples_and_reconstructions_are_made_in_evaluation_mode():
    vae = made("normal", "normal", "bernoulli", "mlp_batch_norm")
    before = copy.deepcopy(vae.state_dict())
    x = data_for("bernoulli")
    alone = vae.reconstruct(x[:1])
    torch.testing.assert_close(vae.reconstruct(x)[:1], alone)
    vae.sample(3)
    assert all(torch.equal(before[key], value) for key, value in vae.state_dict().items())
    assert all(module.training for module in vae.modules())


def test_ready_made_parts_are_taken_as_they_are():
    prior = priors.Mixture(3, components=2)
    likelihood = likelihoods.Normal(EVENT)
    encoder = networks.MLP(EVENT, (2, 3))
    vae = VAE(EVENT, 3, prior=prior, likelihood=likelihood, encoder=encoder)
    assert (vae.prior, vae.likelihood, vae.encoder) == (prior, likelihood, encoder)
    assert isinstance(vae.encode(torch.randn(2, *EVENT)).base_dist, dist.Normal)


@pytest.mark.parametrize("event_shape", [5, (5,), [5], torch.Size((5,)), (2, 3), (2, 3, 4, 5)])
def test_the_event_may_have_any_shape(event_shape):
    vae = VAE(event_shape, 2)
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    x = torch.ones(3, *shape)
    assert vae.event_shape == shape
    assert isinstance(losses(vae, x), float)
    assert vae.sample(2).shape == (2, *shape)


def test_weights_of_an_earlier_full_posterior_keep_their_meaning(tmp_path):
    kinds = {
        "posterior": partial(posteriors.Full, min_scale=0.01),
        "likelihood": likelihoods.Normal,
    }
    vae, x = VAE(4, 3, **kinds), torch.randn(5, 4)
    # Weights that say nothing of how the factor is read off the features, as before.
    weights = {name: w for name, w in vae.state_dict().items() if name != "posterior.relative"}
    assert len(weights) == len(vae.state_dict()) - 1
    old = VAE(4, 3, name="old", **kinds)
    old.load_state_dict(weights)
    features = vae.encoder(x)
    below = torch.zeros(5, 3, 3)
    below[:, [1, 2, 2], [0, 0, 1]] = features[:, 6:]
    scale = torch.nn.functional.softplus(features[:, 3:6]) + 0.01
    expected = scale.diag_embed() + below
    torch.testing.assert_close(old.encode(x).scale_tril, expected)
    assert not torch.allclose(vae.encode(x).scale_tril, expected)
    for source in (old, vae):
        save(source, tmp_path / "vae.safetensors")
        copied = load(tmp_path / "vae.safetensors")
        assert torch.equal(copied.encode(x).scale_tril, source.encode(x).scale_tril)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_any_batch_size_calibrates_on_all_rows(batch_size):
    vae = VAE(
        2,
        1,
        likelihood=partial(likelihoods.Normal, scale="optimal"),
        encoder=partial(networks.MLP, hidden=[]),
        decoder=partial(networks.MLP, hidden=[]),
    )
    with torch.no_grad():
        # The decoder gives a mean of zero whatever z is.
        for parameter in vae.decoder.parameters():
            parameter.zero_()
    x = torch.linspace(-1.0, 2.0, 10).reshape(5, 2)
    vae.calibrate(x, batch_size=batch_size)
    torch.testing.assert_close(vae.likelihood.variance, (x**2).mean())


def test_reconstructions_take_a_row_of_covariates_for_each_row():
    vae, x = VAE((6,), 2, covariate_dim=2), torch.ones(5, 6)
    covariates = torch.randn(5, 2)
    whole = vae.reconstruct(x, covariates=covariates)
    assert whole.shape == (5, 6)
    torch.testing.assert_close(vae.reconstruct(x[1], covariates=covariates[1]), whole[1])
    with pytest.raises(ValueError, match=r"covariates of shape \(5, 2\), got \(3, 5, 2\)"):
        vae.reconstruct(x, covariates=torch.randn(3, 5, 2))


def test_interpolation_decodes_the_line_between_embeddings():
    vae, x = made().eval(), data_for("normal_optimal")
    start, end = x[:4], x[4:8]
    line = vae.interpolate(start, end, 5)
    assert line.shape == (5, *start.shape)
    with torch.no_grad():
        z0, z1 = vae.encode(start).mean, vae.encode(end).mean
        for step in range(5):
            expected = vae.decode(z0 + step / 4 * (z1 - z0)).mean
            torch.testing.assert_close(line[step], expected)
    with pytest.raises(ValueError, match="steps to be an integer of at least 2, got 1"):
        vae.interpolate(start, end, 1)


def test_interpolation_takes_covariates_and_masks():
    vae, x = VAE(EVENT, 2, covariate_dim=2), data_for("normal_optimal")
    covariates, mask = torch.randn(4, 2), torch.rand(4, *EVENT) > 0.5
    hidden = torch.where(mask, x[:4], torch.nan)
    line = vae.interpolate(hidden, x[4:8], 3, covariates=covariates,
                           mask=(mask, torch.ones_like(mask)))  # fmt: skip
    assert torch.isfinite(line).all()
    assert vae.training
