"""Draws docs/priors.png and docs/posteriors.png: each prior and posterior in two dimensions.

python docs/make_parts.py
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, data, posteriors, priors
from pyro_vae.plots import BLUE, GREY, INK, LIGHT, ORANGE

DOCS = Path(__file__).parent
CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])


def draw_plane(ax: Axes, log_prob: Callable[[Tensor], Tensor], size: float = 3.0) -> None:
    """Shows a density of two numbers."""
    axis = torch.linspace(-size, size, 161)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    with torch.no_grad():
        density = log_prob(torch.stack([x, y], -1).flatten(0, 1)).exp().reshape(x.shape)
    ax.contourf(axis, axis, density, levels=12, cmap="Blues")
    ax.set(xticks=[], yticks=[], aspect="equal")


def draw_simplex(ax: Axes, log_prob: Callable[[Tensor], Tensor]) -> None:
    """Shows a density of three shares as a triangle."""
    weights = torch.linspace(0.004, 0.992, 120)
    a, b = (m.flatten() for m in torch.meshgrid(weights, weights, indexing="ij"))
    inside = a + b < 0.996
    z = torch.stack([a, b, 1 - a - b], -1)[inside]
    with torch.no_grad():
        density = log_prob(z).exp()
    points = z @ CORNERS
    ax.tricontourf(points[:, 0], points[:, 1], density.clamp(max=density.quantile(0.98)),
                   levels=12, cmap="Blues")  # fmt: skip
    ax.fill(*CORNERS.T, fill=False, edgecolor=GREY)
    ax.set(xticks=[], yticks=[], aspect="equal")


def draw_circle(ax: Axes, log_prob: Callable[[Tensor], Tensor]) -> None:
    """Shows a density on the circle, as the distance from it."""
    angle = torch.linspace(0, 2 * math.pi, 400)
    z = torch.stack([angle.cos(), angle.sin()], -1)
    with torch.no_grad():
        outer = z * (1 + log_prob(z).exp()).unsqueeze(-1)
    ax.fill(*outer.T, color=LIGHT)
    ax.plot(*outer.T, color=BLUE)
    ax.plot(*z.T, color=INK, linewidth=1)
    ax.set(xticks=[], yticks=[], aspect="equal")


def draw_masses(ax: Axes, probs: Tensor) -> None:
    """Shows the probabilities of the codes of two variables as a table."""
    ax.imshow(probs.detach(), cmap="Blues", vmin=0)
    ax.set(xticks=[], yticks=[], xlabel="second variable", ylabel="first variable")


def draw_paths(ax: Axes, paths: Tensor) -> None:
    """Shows functions of the position."""
    for path in paths:
        ax.plot(path, color=BLUE, linewidth=1)
    ax.set(xticks=[], yticks=[], xlabel="position")


def fit_prior(prior: torch.nn.Module, z: Tensor, steps: int = 1500) -> torch.nn.Module:
    """Fits a prior to draws by maximum likelihood."""
    optimizer = torch.optim.Adam(prior.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -prior().log_prob(z[torch.randint(len(z), (256,))]).mean()
        loss.backward()
        optimizer.step()
    return prior


class Copy(torch.nn.Module):
    """An encoder whose means are the data."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns features of a normal posterior."""
        return torch.stack([x, torch.full_like(x, -1.2)], -2)


def compute_joint_mass(prior: torch.nn.Module) -> Tensor:
    """Returns the probabilities of the nine codes of two variables."""
    d = prior()
    return d.log_prob(d.enumerate_support()).exp().reshape(3, 3)


def create_grid(names: list[str], columns: int) -> tuple[Figure, dict[str, Axes]]:
    """Returns a figure with a panel for each name."""
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns).flatten()
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for name, ax in zip(names, axes, strict=False):
        ax.set_title(name, fontsize=10, color=INK)
    return figure, dict(zip(names, axes, strict=False))


def draw_priors() -> Figure:
    """Draws all priors."""
    pinwheel = 1.4 * data.pinwheel(4000).x.train
    figure, axes = create_grid(sorted({*priors.__all__}), 5)
    draw_plane(axes["Normal"], priors.Normal(2)().log_prob)
    draw_plane(axes["Laplace"], priors.Laplace(2)().log_prob)
    draw_plane(axes["StudentT"], priors.StudentT(2, df=2.0)().log_prob)
    draw_plane(axes["Mixture"], fit_prior(priors.Mixture(2, components=10), pinwheel)().log_prob)
    draw_plane(axes["Flow"], fit_prior(priors.Flow(2), pinwheel)().log_prob)
    vae = VAE((2,), 2, prior=partial(priors.Vamp, components=30), encoder=Copy())
    vae.initialize(pinwheel)
    draw_plane(axes["Vamp"], vae.prior_distribution().log_prob)
    draw_simplex(axes["Dirichlet"], priors.Dirichlet(3, concentration=2.0)().log_prob)
    draw_simplex(axes["LogisticNormal"], priors.LogisticNormal(3)().log_prob)
    draw_simplex(axes["RelaxedOneHot"], priors.RelaxedOneHot(3, temperature=0.9)().log_prob)
    draw_circle(axes["UniformSphere"], priors.UniformSphere(2)().log_prob)
    one_hot = priors.OneHot(6, variables=2, learned=True)
    chain = priors.Autoregressive(6, variables=2)
    with torch.no_grad():
        one_hot.logits.copy_(torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, -1.0]]))
    codes = priors.OneHot(6, variables=2)().enumerate_support()
    draws = codes[torch.multinomial(torch.tensor([6.0, 1, 1, 1, 6, 1, 1, 1, 6]), 2000, True)]
    fit_prior(chain, draws, steps=600)
    draw_masses(axes["OneHot"], compute_joint_mass(one_hot))
    draw_masses(axes["Autoregressive"], compute_joint_mass(chain))
    process = priors.GaussianProcess(60, length_scale=8.0)()
    draw_paths(axes["GaussianProcess"], process.sample(torch.Size([5])))
    return figure


def compute_target(z: Tensor) -> Tensor:
    """The log density of z and an observation of their product."""
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    product = z[..., 0] * z[..., 1]
    return prior + torch.distributions.Normal(product, 0.4).log_prob(torch.tensor(1.2))


def fit_posterior(part: torch.nn.Module, steps: int = 2500) -> Callable[[Tensor], Tensor]:
    """Fits a posterior to one datum by the ELBO."""
    torch.manual_seed(3)
    features = torch.nn.Parameter(0.3 * torch.randn(*part.feature_shape))
    optimizer = torch.optim.Adam([features, *part.parameters()], 1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        q = part(features)
        z = q.rsample(torch.Size([128]))
        # A warm-up, so that no posterior settles on a part of the target too early.
        heat = min(1.0, 0.1 + step / 1000)
        (q.log_prob(z) - heat * compute_target(z)).mean().backward()
        optimizer.step()
    return part(features).log_prob


def draw_posteriors() -> Figure:
    """Draws all posteriors."""
    names = [
        "exact", "Normal", "Laplace", "StudentT", "Full", "LowRank", "Flow", "LogisticNormal",
        "PowerSpherical", "RelaxedOneHot", "OneHot", "StraightThrough",
    ]  # fmt: skip
    figure, axes = create_grid(names, 4)
    draw_plane(axes["exact"], compute_target)
    for name in ("Normal", "Laplace", "StudentT", "Full", "LowRank"):
        draw_plane(axes[name], fit_posterior(getattr(posteriors, name)(2)))
    draw_plane(axes["Flow"], fit_posterior(posteriors.Flow(2, transforms=4, context=4)))
    shares = posteriors.LogisticNormal(3)(torch.tensor([[0.8, -0.5], [0.0, 0.0]]))
    draw_simplex(axes["LogisticNormal"], shares.log_prob)
    direction = posteriors.PowerSpherical(2)(torch.tensor([0.0, 1.0, 5.0]))
    draw_circle(axes["PowerSpherical"], direction.log_prob)
    relaxed = posteriors.RelaxedOneHot(3)(torch.tensor([[0.5, 0.0, -0.5]]))
    draw_simplex(axes["RelaxedOneHot"], relaxed.log_prob)
    probs = torch.tensor([0.2, 0.7, 0.1])
    for name, colour in (("OneHot", BLUE), ("StraightThrough", ORANGE)):
        axes[name].bar(np.arange(3), probs, color=colour)
        axes[name].set(xticks=range(3), yticks=[], xlabel="category")
    return figure


def main() -> None:
    """Writes both pictures."""
    torch.manual_seed(0)
    draw_priors().savefig(DOCS / "priors.png", dpi=110)
    draw_posteriors().savefig(DOCS / "posteriors.png", dpi=110)


if __name__ == "__main__":
    main()
