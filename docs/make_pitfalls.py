"""Makes the pictures and figures of docs/pitfalls.md: python docs/make_pitfalls.py."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_vae import VAE, data, evaluate, fit, likelihoods, networks, objectives, plots

EPOCHS = (25, 50, 100, 200, 400)
FLOORS = (1e-6, 0.1)
NOISE = 0.4
MLP = partial(networks.MLP, hidden=[32], activation="tanh")


def adam(lr: float) -> Callable[..., torch.optim.Optimizer]:
    """Returns Adam at a learning rate."""
    return partial(torch.optim.Adam, lr=lr)


def panels(titles: list[str]) -> tuple[Figure, list[Axes]]:
    """Returns a figure of three panels."""
    figure = Figure(figsize=(9.2, 3.1), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = list(figure.subplots(1, 3))
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, loc="left", fontsize=10)
    return figure, axes


def save(figure: Figure, name: str) -> None:
    """Writes a picture beside this file."""
    figure.savefig(Path(__file__).parent / f"pitfall_{name}.png", dpi=120)


def follow_curve(floor: float, epochs: int) -> tuple[VAE, float, float]:
    """Returns a VAE trained on the curve, its held-out log evidence and its scale."""
    rows = data.manifold()
    torch.manual_seed(0)
    small = partial(networks.MLP, hidden=[16], activation="tanh")
    likelihood = partial(likelihoods.Normal, scale="shared", min_scale=floor)
    vae = VAE((2,), 1, encoder=small, decoder=small, likelihood=likelihood)
    fit(vae, rows.x.train, optimizer=adam(2e-2), epochs=epochs, batch_size=100)
    torch.manual_seed(0)
    evidence = evaluate.log_evidence(vae, rows.x.test, 500).mean().item()
    with torch.no_grad():
        scale = vae.decode(torch.zeros(1, 1)).base_dist.scale.flatten()[0].item()
    return vae, evidence, scale


def manifold() -> None:
    """Draws evidence and scale against the length of the training, without a floor and with one."""
    runs = {floor: [follow_curve(floor, epochs) for epochs in EPOCHS] for floor in FLOORS}
    for floor, found in runs.items():
        for epochs, (_, evidence, scale) in zip(EPOCHS, found, strict=True):
            print(f"manifold   min_scale {floor:g}, {epochs:3d} epochs: "
                  f"log evidence {evidence:.2f}, scale {scale:.3f}")  # fmt: skip
    bound = -math.log(2 * math.pi * FLOORS[1] ** 2)
    print(f"manifold   bound at min_scale {FLOORS[1]:g}: {bound:.2f}")
    figure, (plane, *others) = panels(
        ["data, and draws of both", "what tells: it grows and grows", "what cures: a least scale"]
    )
    draw_plane(plane, {floor: found[-1][0] for floor, found in runs.items()})
    for ax, which in zip(others, (1, 2), strict=True):
        series = {label(floor): [run[which] for run in found] for floor, found in runs.items()}
        plots.lines(EPOCHS, series, ax=ax)
        ax.set(xscale="log", xticks=EPOCHS, xticklabels=EPOCHS, xlabel="epochs of training")
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=8)
    others[0].set_ylabel("log evidence, nats per datum")
    others[1].set(ylabel="scale, in units of the data", ylim=(0, None))
    save(figure, "manifold")


def label(floor: float) -> str:
    """Returns the name of a least scale."""
    return f"least scale {floor:g}"


def draw_plane(ax: Axes, vaes: dict[float, VAE]) -> None:
    """Draws held-out rows above as many draws of each model."""
    torch.manual_seed(1)
    rows = data.manifold().x.test
    for (floor, vae), colour in zip(vaes.items(), (plots.BLUE, plots.ORANGE), strict=True):
        ax.scatter(*vae.sample(len(rows)).T, s=10, color=colour, linewidths=0, label=label(floor))
    ax.scatter(*rows.T, s=4, color=plots.INK, linewidths=0, label="data")
    plots.tidy_axes(ax, xlabel="$x_1$", ylabel="$x_2$").legend(frameon=False, fontsize=8)


def find_places(**options: Any) -> tuple[VAE, evaluate.Bound]:
    """Returns a VAE trained on rows with a one in a random place, and its held-out ELBO."""
    rows = data.collapse()
    torch.manual_seed(0)
    vae = VAE(rows.event_shape, 2, encoder=MLP, decoder=MLP)
    fit(vae, rows.x.train, optimizer=adam(1e-2), epochs=80, batch_size=100, **options)
    return vae, evaluate.elbo(vae, rows.x.test, num_particles=50)


def collapse() -> None:
    """Draws what is reconstructed of each place, without a free start and with one."""
    x, eye = data.collapse().x.test, torch.eye(12)
    free = {"schedules": {"beta": objectives.Linear(0.0, 1.0, steps=400)}}
    shown = [x[:12]]
    for name, options in (("beta 1 throughout", {}), ("beta from 0 to 1", free)):
        vae, bound = find_places(**options)
        shown.append(vae.reconstruct(eye))
        active = int(evaluate.active_units(vae, x).sum())
        print(f"collapse   {name}: ELBO {bound.elbo.mean():.2f}, rate {bound.rate.mean():.2f}, "
              f"active units {active} of 2, spread "
              f"{vae.reconstruct(x).std(0).max():.3f}")  # fmt: skip
    independent = 11 * math.log(11 / 12) + math.log(1 / 12)
    print(f"collapse   independent values: {independent:.2f}, one of 12 places: "
          f"{-math.log(12):.2f}")  # fmt: skip
    draw_places(shown)


def draw_places(shown: list[Tensor]) -> None:
    """Draws rows, and what is reconstructed of a one in each place, twice."""
    figure, axes = panels(
        ["data: 12 rows", "what tells: all come back alike", "what cures: beta from 0 to 1"]
    )
    ticks = {"ticks": range(0, 12, 2), "labels": range(1, 13, 2)}
    for ax, values, name in zip(axes, shown, ["row", *2 * ["place of the one"]], strict=True):
        drawn = ax.imshow(values, cmap="Blues", vmin=0, vmax=1)
        ax.set_xticks(**ticks)
        ax.set_yticks(**ticks)
        ax.set(xlabel="place in the row", ylabel=name)
    figure.colorbar(drawn, ax=axes, label="value, or its probability")
    save(figure, "collapse")


class Square(nn.Module):
    """The decoder of the process itself."""

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Returns squares."""
        return z.square().unsqueeze(-1)


def fit_squares(objective: objectives.ELBO | objectives.IWAE) -> VAE:
    """Returns a VAE whose encoder alone is trained."""
    rows = data.two_modes(noise=NOISE)
    torch.manual_seed(0)
    likelihood = partial(likelihoods.Normal, scale=NOISE)
    vae = VAE((1,), 1, encoder=MLP, decoder=Square(), likelihood=likelihood)
    fit(vae, rows.x.train, objective=objective, optimizer=adam(5e-3), epochs=150, batch_size=100)
    return vae


def log_joint(z: Tensor, x: Tensor) -> Tensor:
    """Returns log p(x, z) of the process."""
    normal = torch.distributions.Normal
    return normal(0.0, 1.0).log_prob(z) + normal(z.square(), NOISE).log_prob(x)


def log_evidence(x: Tensor) -> Tensor:
    """Returns log p(x) of the process for each row, by the trapezoidal rule."""
    z = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    return log_joint(z, x.double()).logsumexp(1) + math.log(1e-3)


def two_modes() -> None:
    """Draws posteriors of one mode and the true one."""
    x = data.two_modes(noise=NOISE).x.test
    print(f"two_modes  exact log evidence: {log_evidence(x).mean():.2f}")
    titles = ["data", "what tells: ELBO takes one mode", "what cures: IWAE covers both"]
    figure, (left, *others) = panels(titles)
    left.hist(x.squeeze().numpy(), bins=40, color=plots.BLUE)
    plots.tidy_axes(left, xlabel="x", ylabel="held-out rows")
    kinds = {"ELBO": objectives.ELBO(), "IWAE(50)": objectives.IWAE(50)}
    for ax, (name, objective) in zip(others, kinds.items(), strict=True):
        vae = fit_squares(objective)
        torch.manual_seed(0)
        bound = evaluate.elbo(vae, x, num_particles=100).elbo.mean()
        by_guide = evaluate.log_evidence(vae, x, 2000).mean()
        by_prior = evaluate.log_evidence(vae, x, 5000, proposal="prior").mean()
        print(f"two_modes  {name}: ELBO {bound:.2f}, log evidence by the posterior "
              f"{by_guide:.2f}, by the prior {by_prior:.2f}")  # fmt: skip
        draw_posteriors(ax, vae)
    save(figure, "two_modes")


def draw_posteriors(ax: Axes, vae: VAE) -> None:
    """Draws the posterior of one datum, and what the encoder has for it."""
    z, x = torch.linspace(-3, 3, 601), torch.tensor([[2.0]])
    with torch.no_grad():
        q = vae.encode(x).log_prob(z.view(-1, 1, 1)).exp().squeeze()
    ax.plot(z, (log_joint(z, x) - log_evidence(x)).exp()[0], color=plots.INK, label="p(z given x)")
    ax.plot(z, q, color=plots.ORANGE, label="q(z given x)")
    plots.tidy_axes(ax, xlabel="z, at x = 2", ylabel="density").set_ylim(0, 3)
    ax.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    manifold()
    collapse()
    two_modes()
