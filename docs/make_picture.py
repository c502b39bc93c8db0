"""Makes the figure that opens README and the site, docs/overview.png, and prints its values.

PYRO_VAE_DATA=FOLDER python docs/make_picture.py

FOLDER holds MNIST/raw. The command takes nine minutes on one core of a busy machine.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MultipleLocator
from pyro.infer import RenyiELBO
from torch import Tensor

from pyro_vae import VAE, data, evaluate, fit, networks, plots
from pyro_vae.compare.comparison import compare
from pyro_vae.compare.configurations import Mean
from pyro_vae.objectives import IWAE

Draw = Callable[[Axes], None]

PARTICLES = (1, 2, 5, 10, 20, 50)
REPEATS = 20
SWEEP = (
    "vae/prior=normal,mixture,vamp vae.latent_dim=2,10 seed=0,1,2 "
    "train.epochs=150 optimizer.lr=0.002 "
    "evaluate.num_particles=1000 evaluate.baseline_components=0"
)
PRIORS = ("Normal", "Mixture", "Vamp")
FONT_SIZE = 15
"""In points for a figure of 10 inches, and so 17 pixels where the figure is 800 pixels wide."""


class Bound(NamedTuple):
    """A bound in nats per datum, with its standard error."""

    mean: float
    error: float


def compute_bounds() -> Draw:
    """Estimates both bounds by the number of particles; the model is that of renyi.md."""
    pyro.set_rng_seed(0)
    rows = 2**0.5 * torch.randn(1000)

    def model(batch: Tensor) -> None:
        with pyro.plate("data", len(rows), subsample=torch.arange(len(batch))):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch)

    def guide(batch: Tensor) -> None:
        with pyro.plate("data", len(rows), subsample=torch.arange(len(batch))):
            pyro.sample("z", dist.Normal(batch / 2 + 0.5, 0.9))

    def estimate(objective: IWAE | RenyiELBO) -> Bound:
        losses = [
            [objective.loss(model, guide, batch) for batch in rows.split(100)]
            for _ in range(REPEATS)
        ]
        bounds = -torch.tensor(losses).mean(1) / len(rows)
        return Bound(bounds.mean().item(), bounds.std().item() / REPEATS**0.5)

    evidence = dist.Normal(0.0, 2**0.5).log_prob(rows).mean().item()
    print(f"bounds    log evidence {evidence:.3f}")
    renyi = partial(RenyiELBO, alpha=0, vectorize_particles=True, max_plate_nesting=1)
    bounds = {
        "IWAE": [estimate(IWAE(k)) for k in PARTICLES],
        "RenyiELBO": [estimate(renyi(num_particles=k)) for k in PARTICLES],
    }
    for name, series in bounds.items():
        for k, bound in zip(PARTICLES, series, strict=True):
            print(f"bounds    {name:9} K={k:2d} {bound.mean:.3f} +- {bound.error:.4f}")
    return partial(draw_bounds, evidence=evidence, bounds=bounds)


def draw_bounds(ax: Axes, *, evidence: float, bounds: dict[str, list[Bound]]) -> None:
    """Draws both bounds and the evidence against the number of particles."""
    ax.axhline(evidence, color=plots.INK, linewidth=2)
    looks = {"IWAE": (plots.BLUE, "o"), "RenyiELBO": (plots.ORANGE, "s")}
    for name, (colour, marker) in looks.items():
        means, errors = zip(*bounds[name], strict=True)
        ax.errorbar(PARTICLES, means, errors, color=colour, marker=marker, ms=6, lw=2, capsize=4)
    plots.tidy_axes(ax, xlabel="particles K", ylabel="")
    ax.set(xscale="log", xticks=PARTICLES, xticklabels=PARTICLES, ylim=(-2.15, -1.22))
    ax.yaxis.set_major_locator(MultipleLocator(0.2))
    ax.minorticks_off()
    ax.text(55, evidence + 0.015, "log evidence", ha="right", va="bottom", color=plots.INK)
    ax.text(55, evidence - 0.05, "IWAE (here)", ha="right", va="top", color=plots.BLUE)
    ax.text(55, -1.325, "RenyiELBO (Pyro)", ha="right", va="bottom", color=plots.ORANGE)


def run_sweep() -> Draw:
    """Trains 18 VAEs of the digits by one command, and compares them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pyro_vae", "-m", *SWEEP.split()]
        sweep = [*command, f"hydra.sweep.dir={folder}"]
        done = subprocess.run(sweep, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return compare_runs(folder)


def compare_runs(folder: str) -> Draw:
    """Reads the means over seeds of a sweep, and the log evidence of each run."""
    comparison = compare([folder])
    (group,) = comparison.groups
    names = [factor.name for factor in comparison.factors]
    results = {}
    for one in group.configurations:
        levels = dict(zip(names, one.levels, strict=False))
        runs = [comparison.runs[index].metrics["log_evidence"] for index in one.runs]
        mean = one.means["log_evidence"]
        results[levels["prior"], levels["latent_dim"]] = (mean, runs)
        text = f"{mean.value:.2f} +- {mean.standard_error:.2f}, {mean.seeds} seeds"
        print(f"sweep     {comparison.describe(one, group):28} {text}")
    return partial(draw_sweep, results=results)


def draw_sweep(ax: Axes, *, results: dict[tuple[str, str], tuple[Mean, list[float]]]) -> None:
    """Draws a point per run, and the mean over seeds with its standard error beside them."""
    looks = {"10": (plots.BLUE, "o"), "2": (plots.ORANGE, "s")}
    for dim, (colour, marker) in looks.items():
        for x, prior in enumerate(PRIORS):
            mean, runs = results[prior, dim]
            ax.scatter([x - 0.15] * len(runs), runs, color=colour, alpha=0.4, s=30, linewidths=0)
            error = mean.standard_error
            ax.errorbar(
                x + 0.15, mean.value, error, color=colour, marker=marker, ms=8, lw=2, capsize=5
            )
        top = max(max(results[prior, dim][1]) for prior in PRIORS)
        ax.text(-0.4, top + 0.15, f"latent_dim={dim}", va="bottom", color=colour)
    plots.tidy_axes(ax, xlabel="prior", ylabel="")
    ax.set(xlim=(-0.5, 2.5), xticks=range(len(PRIORS)), xticklabels=map(str.lower, PRIORS))
    ax.yaxis.set_major_locator(MultipleLocator(1))
    ax.set_ylim(top=ax.get_ylim()[1] + 0.5)


def train_mnist(digits: data.Data) -> Draw:
    """Trains on MNIST, and reconstructs the first eight held-out images."""
    torch.manual_seed(0)
    mlp = partial(networks.MLP, hidden=[500])
    vae = VAE(digits.event_shape, latent_dim=20, encoder=mlp, decoder=mlp)
    result = fit(vae, digits.train, valid=digits.valid, epochs=10)
    rows = evaluate.log_evidence(vae, digits.x.test[:500], num_particles=500)
    error = rows.std() / len(rows) ** 0.5
    epochs = len(result.history)
    print(f"mnist     {epochs} epochs: log evidence {rows.mean():.2f} +- {error:.2f}")
    x = digits.x.test[:8]
    return partial(draw_mnist, x=x, reconstructed=vae.reconstruct(x))


def draw_mnist(ax: Axes, *, x: Tensor, reconstructed: Tensor) -> None:
    """Draws images above their reconstructions, in two blocks of four."""
    ax.set_axis_off()
    for rows, bottom in ((slice(0, 4), 0.52), (slice(4, 8), 0.0)):
        block = ax.inset_axes((0, bottom, 1, 0.48), anchor="NW")
        plots.reconstructions(x[rows].numpy(), reconstructed[rows].numpy(), ax=block)
        block.set(yticks=[], anchor="NW")
        block.images[0].set_interpolation("nearest")


def draw_figure(draws: list[Draw]) -> None:
    """Draws the three panels side by side, and writes docs/overview.png."""
    titles = [
        ("Bounds that are bounds", "nats per datum, mini-batches"),
        ("One command, 18 runs", "log evidence, nats per datum"),
        ("MNIST, held out", "data above reconstructions"),
    ]
    with rc_context({"font.size": FONT_SIZE}):
        figure = Figure(figsize=(10, 4.3), layout=ConstrainedLayoutEngine(wspace=0.06))
        panels = figure.subplots(1, 3)
        for ax, draw, (title, subtitle) in zip(panels, draws, titles, strict=True):
            draw(ax)
            left = 0 if ax is panels[-1] else -42
            place = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
            ax.annotate(title, xytext=(left, 34), weight="bold", **place)
            ax.annotate(subtitle, xytext=(left, 14), size=FONT_SIZE - 1, **place)
        figure.savefig(Path(__file__).parent / "overview.png", dpi=160)


def main() -> None:
    """Computes all values, then draws the three panels."""
    try:
        digits = data.mnist()
    except ValueError as error:
        message = "set the environment variable PYRO_VAE_DATA to the folder that holds MNIST/raw"
        raise SystemExit(f"make_picture.py: {message}. {error}") from None
    draw_figure([compute_bounds(), run_sweep(), train_mnist(digits)])


if __name__ == "__main__":
    main()
