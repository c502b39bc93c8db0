"""How near posteriors come to evidence that is known: linear models and a model of two products."""

from functools import partial

import pytest
import torch
from torch import nn

from helpers.truths import linear_data
from pyro_vae import VAE, evaluate, fit, likelihoods, networks, posteriors

SIGMA = 0.25


class Product(nn.Module):
    """A decoder without parameters: the product and the difference of squares of two numbers."""

    def forward(self, z):
        a, b = z[:, 0], z[:, 1]
        return torch.stack([a * b, 0.5 * (a**2 - b**2)], -1)[:, None]


def product_vae(posterior) -> VAE:
    """Each datum has two explanations, z and -z, of curved densities."""
    return VAE(
        (2,), 2, posterior=posterior, likelihood=partial(likelihoods.Normal, scale=SIGMA),
        encoder=partial(networks.MLP, hidden=[64, 64]), decoder=Product(),
    )  # fmt: skip


def product_data(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(rows, 2, generator=generator)
    return Product()(z)[:, 0] + SIGMA * torch.randn(rows, 2, generator=generator)


def exact_evidence(x: torch.Tensor) -> torch.Tensor:
    """log p(x) by the rectangle rule, which converges exponentially for smooth densities."""
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    mean = Product()(z)[:, 0]
    logs = [
        torch.logsumexp(prior + torch.distributions.Normal(mean, SIGMA).log_prob(row).sum(-1), 0)
        for row in x.double()
    ]
    return torch.stack(logs) + 2 * (axis[1] - axis[0]).log()


def compute_gap(posterior) -> float:
    """Returns the KL from the trained posterior to the exact one, the mean over test rows."""
    torch.manual_seed(0)
    vae, train, test = product_vae(posterior), product_data(2000), product_data(2100)[2000:]
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    fit(
        vae, train, epochs=30, batch_size=50, compile=False, lr_schedule=decay,
        optimizer=lambda p: torch.optim.Adam(p, 3e-3),
    )  # fmt: skip
    bound = evaluate.elbo(vae, test, 1000).elbo.double()
    return (exact_evidence(test) - bound).mean().item()


@pytest.mark.long
def test_a_flow_comes_nearer_to_the_evidence_than_a_normal():
    gaps = {
        "normal": compute_gap(posteriors.Normal),
        "flow": compute_gap(partial(posteriors.Flow, transforms=3)),
    }
    # A normal describes one of the two explanations, which costs log 2 = 0.69 nats alone.
    assert gaps["normal"] > 0.69
    assert gaps["flow"] < gaps["normal"] - 0.5, gaps
    assert gaps["flow"] > 0


@pytest.mark.parametrize(
    "posterior",
    [posteriors.Full, posteriors.LowRank, partial(posteriors.LowRank, rank=3), posteriors.Normal],
    ids=["full", "low_rank", "low_rank_3", "normal"],
)
def test_joint_posteriors_reach_the_closed_form_and_the_diagonal_one_its_own(posterior):
    """The best features by the closed-form ELBO of a linear model."""
    torch.manual_seed(0)
    truth, x = linear_data(5, 6, 3)
    part = posterior(3).double()
    features = (0.1 * torch.randn(5, *part.feature_shape).double()).requires_grad_()
    optimizer = torch.optim.LBFGS([features], max_iter=2000, line_search_fn="strong_wolfe")

    def compute_gap():
        q = part(features)
        covariance = getattr(q, "covariance_matrix", None)
        covariance = q.variance.diag_embed() if covariance is None else covariance
        return (truth.evidence(x) - truth.elbo(x, q.mean, covariance)).mean()

    def closure():
        optimizer.zero_grad()
        gap = compute_gap()
        gap.backward()
        return gap.detach()

    optimizer.step(closure)
    precision = torch.linalg.inv(truth.posterior(x)[1])
    # The KL of the best independent normals to the exact posterior.
    least = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert least > 0.05
    expected = least if posterior is posteriors.Normal else 0.0
    assert compute_gap().item() == pytest.approx(expected, abs=1e-6)
