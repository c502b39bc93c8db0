"""A mixture of three linear VAEs, whose evidence and responsibilities are known."""

from functools import partial

import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, infer_discrete
from torch import Tensor

from helpers.truths import LinearGaussian, exact_vae, family_limit
from pyro_vae import VAE, likelihoods, networks, posteriors
from scenarios.mixture import Components, program

ROWS, D = 2000, 5
GENERATOR = torch.Generator().manual_seed(5)
WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


NOISE = torch.tensor(0.6, dtype=torch.float64)
TRUTHS = [LinearGaussian(normal(D, 1), normal(D), NOISE) for _ in WEIGHTS]


def drawn() -> Tensor:
    component = torch.multinomial(WEIGHTS, ROWS, replacement=True, generator=GENERATOR)
    rows = [t.loc + normal(ROWS, 1) @ t.weight.T + t.scale * normal(ROWS, D) for t in TRUTHS]
    return torch.stack(rows)[component, torch.arange(ROWS)]


X = drawn()
EVIDENCES = torch.stack([truth.evidence(X) for truth in TRUTHS], -1)


def exact(weights: Tensor = WEIGHTS) -> tuple[Components, list[VAE]]:
    components = Components(3).double()
    components.logits.data = weights.log()
    return components, [made(f"vae_{k}", truth) for k, truth in enumerate(TRUTHS)]


def made(name: str, truth: LinearGaussian) -> VAE:
    linear = partial(networks.MLP, hidden=[])
    likelihood = partial(likelihoods.Normal, scale="shared")
    parts = {"likelihood": likelihood, "encoder": linear, "decoder": linear}
    vae = VAE(D, 1, name=name, plate=None, **parts).double()
    vae.load_state_dict(exact_vae(truth, posterior=posteriors.Normal).state_dict())
    return vae


def test_exact_components_give_the_evidence_whatever_the_guide_draws():
    model, guide = program(*exact())
    evidence = (WEIGHTS.log() + EVIDENCES).logsumexp(-1).sum().item()
    for loss in (TraceEnum_ELBO(), TraceEnum_ELBO(num_particles=3, vectorize_particles=True)):
        assert -loss.loss(model, guide, X) == pytest.approx(evidence, rel=1e-9)


def test_rows_that_no_component_explains_have_their_evidence_too():
    """They lie off all components, where a code does not help, and each density is below e^-2000.

    The smallest number of double precision is e^-745.
    """
    weights = torch.stack([truth.weight[:, 0] for truth in TRUTHS])
    off = X + 50 * torch.linalg.svd(weights).Vh[-1]
    evidence = torch.stack([truth.evidence(off) for truth in TRUTHS], -1)
    assert evidence.max() < -2000
    found = -TraceEnum_ELBO().loss(*program(*exact()), off)
    assert found == pytest.approx((WEIGHTS.log() + evidence).logsumexp(-1).sum().item(), rel=1e-9)


def test_the_responsibilities_are_the_posterior_of_the_component():
    expected = (WEIGHTS.log() + EVIDENCES).softmax(-1)
    model, guide = program(*exact())
    found = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(model, guide, X)
    torch.testing.assert_close(found["component"].probs, expected)


def test_draws_of_the_component_are_as_frequent_as_the_posterior_says():
    expected = (WEIGHTS.log() + EVIDENCES).softmax(-1)
    model, guide = program(*exact())
    counts, draws = torch.zeros(3, dtype=torch.float64), 20
    for _ in range(draws):
        given = poutine.condition(model, poutine.trace(guide).get_trace(X))
        sampled = poutine.trace(infer_discrete(given, first_available_dim=-2)).get_trace(X)
        counts += torch.bincount(sampled.nodes["component"]["value"], minlength=3)
    error = (draws * (expected * (1 - expected)).sum(0)).sqrt()
    assert ((counts - draws * expected.sum(0)) / error).abs().max() < family_limit(3)


def test_the_weights_are_learned():
    """Trained, they are those of greatest likelihood, and as far from the truth as those may be."""
    components, vaes = exact(torch.full((3,), 1 / 3, dtype=torch.float64))
    loss = TraceEnum_ELBO()(*program(components, vaes))
    optimizer = torch.optim.LBFGS(components.parameters(), line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(X) / ROWS
        value.backward()
        return value

    optimizer.step(closure)
    found = components().probs.detach()
    best, covariance = most_likely_weights()
    torch.testing.assert_close(found, best, atol=1e-4, rtol=0)
    error = covariance.diagonal().sqrt()
    assert ((found - WEIGHTS) / error).abs().max() < family_limit(3)


def most_likely_weights() -> tuple[Tensor, Tensor]:
    """By expectation and maximization, with the inverse of the observed information."""
    weights = torch.full_like(WEIGHTS, 1 / 3)
    for _ in range(500):
        weights = (weights.log() + EVIDENCES).softmax(-1).mean(0)
    # The weights sum to one, so that two of them are free.
    densities = EVIDENCES.exp()
    score = (densities[:, :2] - densities[:, 2:]) / (densities @ weights)[:, None]
    covariance = torch.linalg.inv(score.T @ score)
    rows = torch.cat([torch.eye(2, dtype=torch.float64), -torch.ones(1, 2, dtype=torch.float64)])
    return weights, rows @ covariance @ rows.T
