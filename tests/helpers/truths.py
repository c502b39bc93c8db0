"""A model whose evidence and posterior are known in closed form, and how estimates are judged.

The rate of error is one for all tests: an estimate may lie ``SIGMAS`` standard errors off, which a
right one does once in 16,000 comparisons. Seeds are fixed, so that a test passes always or never.
"""

import math
import statistics
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae import VAE, likelihoods, networks, posteriors

SIGMAS = 4.0

FAMILY_RATE = 1e-4


def family_limit(comparisons: int) -> float:
    """How many standard errors each of several estimates may lie off, so that one of them does so
    by chance once in 10,000 runs of all (Bonferroni)."""
    return -statistics.NormalDist().inv_cdf(FAMILY_RATE / (2 * comparisons))


def z_score(estimates: Tensor, truth: float = 0.0) -> float:
    """How many standard errors the mean of independent estimates lies above the truth."""
    error = estimates.std() / math.sqrt(estimates.numel())
    return ((estimates.mean() - truth) / error).item()


class LinearGaussian(NamedTuple):
    """x = W z + mu + sigma epsilon, probabilistic PCA: W is (D, k), mu is (D,), sigma a scalar."""

    weight: Tensor
    loc: Tensor
    scale: Tensor

    def evidence(self, x: Tensor) -> Tensor:
        """log p(x), a value a row."""
        noise = self.scale**2 * torch.eye(len(self.loc), dtype=x.dtype)
        covariance = self.weight @ self.weight.T + noise
        return torch.distributions.MultivariateNormal(self.loc, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of z given x, a row for each, and the covariance, which is the same for all."""
        k = self.weight.shape[1]
        m = self.weight.T @ self.weight + self.scale**2 * torch.eye(k, dtype=x.dtype)
        mean = torch.linalg.solve(m, self.weight.T @ (x - self.loc).T).T
        return mean, self.scale**2 * torch.linalg.inv(m)

    def distortion(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """-E log p(x given z) under z ~ N(mean, covariance), a value a row."""
        error = (x - self.loc - mean @ self.weight.T).pow(2).sum(-1)
        spread = torch.einsum("di,...ij,dj->...", self.weight, covariance, self.weight)
        variance = self.scale**2
        return 0.5 * (x.shape[-1] * torch.log(2 * math.pi * variance) + (error + spread) / variance)

    def elbo(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """The ELBO of N(mean, covariance) as q(z given x), a value a row."""
        return -self.distortion(x, mean, covariance) - rate(mean, covariance)


def rate(mean: Tensor, covariance: Tensor) -> Tensor:
    """The KL of N(mean, covariance) to N(0, I)."""
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * (trace + mean.pow(2).sum(-1) - mean.shape[-1] - torch.logdet(covariance))


def maximum(x: Tensor, k: int) -> float:
    """The mean log evidence of the best model with k latent dimensions, from eigenvalues."""
    d = x.shape[1]
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    log_det = values[:k].log().sum() + (d - k) * values[k:].mean().log()
    return (-0.5 * (d * math.log(2 * math.pi) + log_det + d)).item()


def linear_data(rows: int = 1000, d: int = 10, k: int = 3) -> tuple[LinearGaussian, Tensor]:
    """A model and data drawn from it, the same at each call."""
    generator = torch.Generator().manual_seed(2)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    truth = LinearGaussian(normal(d, k), normal(d), torch.tensor(0.6, dtype=torch.float64))
    x = normal(rows, k) @ truth.weight.T + truth.loc + truth.scale * normal(rows, d)
    return truth, x


def linear_vae(d: int = 10, k: int = 3, posterior=posteriors.Full) -> VAE:
    """A VAE of just this family, its posterior of just the family of the exact one."""
    return VAE(
        (d,),
        k,
        posterior=posterior,
        likelihood=partial(likelihoods.Normal, scale="shared"),
        encoder=partial(networks.MLP, hidden=[]),
        decoder=partial(networks.MLP, hidden=[]),
    ).double()


def read_off(vae: VAE) -> LinearGaussian:
    """The model that a linear VAE stands for."""
    (layer,) = vae.decoder.layers
    scale = vae.decode(torch.zeros(vae.latent_dim, dtype=torch.float64)).base_dist.scale
    return LinearGaussian(layer.weight.detach(), layer.bias.detach(), scale.mean().detach())


@torch.no_grad()
def exact_vae(truth: LinearGaussian, *, shift=0.0, inflate=1.0, posterior=posteriors.Full) -> VAE:
    """A linear VAE that is this model, with the exact posterior or one spoilt by a known amount."""
    d, k = truth.weight.shape
    vae = linear_vae(d, k, posterior)
    (decoder,), (encoder,) = vae.decoder.layers, vae.encoder.layers
    decoder.weight.copy_(truth.weight)
    decoder.bias.copy_(truth.loc)
    vae.likelihood.raw_scale.copy_(unsoftplus(truth.scale - vae.likelihood.min_scale))
    # The mean is linear in x, so that its value at the unit vectors and at zero says all.
    offset, covariance = truth.posterior(torch.zeros(1, d, dtype=torch.float64))
    slope = truth.posterior(torch.eye(d, dtype=torch.float64))[0] - offset
    tril = torch.linalg.cholesky(inflate * covariance)
    encoder.weight.zero_()
    encoder.weight[:k] = slope.T
    encoder.bias[:k] = offset[0] + shift
    encoder.bias[k : 2 * k] = unsoftplus(tril.diagonal() - vae.posterior.min_scale)
    encoder.bias[2 * k :] = below_diagonal(tril)
    return vae


def below_diagonal(tril: Tensor) -> Tensor:
    """The features of ``posteriors.Full`` for what is below the diagonal of a Cholesky factor."""
    k = len(tril)
    unit = tril / tril.diagonal()[:, None] * k**0.5
    return unit[tuple(torch.tril_indices(k, k, -1))]


def unsoftplus(value: Tensor) -> Tensor:
    """The number whose softplus is this."""
    return value.expm1().log()
