"""Encoders that return several tensors, for posteriors that demand them."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, evaluate, fit, objectives, posteriors
from pyro_vae.conditional import Posterior

EVENT = (3,)


class Triangular(Posterior):
    """A normal posterior of a mean and a Cholesky factor of other shapes."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.feature_shape = (torch.Size((latent_dim,)), torch.Size((latent_dim, latent_dim)))

    def forward(self, loc, raw):
        diagonal = raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
        return dist.MultivariateNormal(loc, scale_tril=raw.tril(-1) + diagonal)


class Pair(nn.Module):
    """An encoder in the usual style, with two heads."""

    def __init__(self, widths=(2, 4), kind=tuple) -> None:
        super().__init__()
        self.body = nn.Linear(3, 8)
        self.heads = nn.ModuleList(nn.Linear(8, width) for width in widths)
        self.kind = kind

    def forward(self, x):
        h = self.body(x).relu()
        outputs = [head(h) for head in self.heads]
        outputs[-1] = outputs[-1].unflatten(-1, (2, -1))
        return self.kind(outputs)


def made(**options) -> VAE:
    parts = {"posterior": Triangular, "encoder": Pair()} | options
    return VAE(EVENT, 2, **parts)


@pytest.mark.parametrize("kind", [tuple, list])
def test_an_encoder_returns_as_many_tensors_as_the_posterior_demands(kind):
    pyro.set_rng_seed(0)
    vae, x = made(encoder=Pair(kind=kind)), torch.rand(40, 3).round()
    before = evaluate.elbo(vae, x, 50).elbo.mean()
    fit(vae, x, epochs=30, batch_size=20, optimizer=lambda p: torch.optim.Adam(p, 1e-2))
    assert evaluate.elbo(vae, x, 50).elbo.mean() > before
    assert vae.encode(x).batch_shape == (40,)
    assert all(p.grad is not None for p in vae.encoder.parameters())


def test_particles_and_plates_broadcast_all_outputs():
    vae = made(plate=None)
    x = torch.rand(2, 5, 3).round()
    assert vae.encode(x).batch_shape == (2, 5)

    def program(side):
        with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 5, dim=-1):
            return side(x)

    loss = objectives.IWAE(3).differentiable_loss(
        lambda: program(vae.model), lambda: program(vae.guide)
    )
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoder": Pair((2,))},
            r"Expected Pair to return a tuple of 2 tensors, as the posterior demands, got a tuple "
            r"\[\(4, 2, 1\)\]",
        ),
        (
            {"encoder": Pair((3, 4))},
            r"the encoder's output to have shape \(\*batch, 2\), got \(4, 3\)",
        ),
        (
            {"encoder": nn.Linear(3, 2)},
            r"Expected Linear to return a tuple of 2 tensors, as the posterior demands, got one "
            r"tensor",
        ),
        (
            {"posterior": posteriors.Normal},
            r"Expected Pair to return one tensor, got a tuple \[\(4, 2\), \(4, 2, 2\)\]: stack",
        ),
    ],
)
def test_another_number_of_tensors_is_refused(options, message):
    vae = made(**options)
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.rand(4, 3).round())


def test_a_network_built_by_the_vae_returns_one_tensor_only():
    with pytest.raises(ValueError, match="out_shape"):
        VAE(EVENT, 2, posterior=Triangular)


def test_reconstructions_see_the_mask():
    vae, x = VAE(EVENT, 2), torch.rand(4, 3).round()
    mask = torch.tensor([True, False, True]).expand(4, 3)
    other = torch.where(mask, x, 1 - x)
    masked = [vae.reconstruct(value, mask=mask) for value in (x, other)]
    assert torch.equal(*masked)
    assert not torch.equal(vae.reconstruct(x), vae.reconstruct(other))
    assert partial(vae.reconstruct, x)().shape == x.shape
