"""The experiment ``seed_mnist`` beside a hand-written PyTorch loop, same network and loss.

    python benchmarks/seed_mnist.py --root FOLDER [--seeds 5] [--epochs 5] [--threads 1]

FOLDER is the one above ``MNIST/raw``. Both train on the 60,000 grey-scale training images under a
Bernoulli's cross-entropy; the loop as one finds it in tutorials, with a DataLoader and ToTensor,
ours with compiled steps and with eager ones. Printed are the average training losses of each epoch
over the seeds with standard errors, and the wall time of an epoch. They run in turn, so that a
machine that slows down slows all.
"""

import argparse
import math
import statistics
import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pyro_vae import config, fit
from pyro_vae.vae.vae import VAE


class HandWritten(nn.Module):
    """The tutorial's network, 784-200-10-200-784."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_encoder = nn.Linear(784, 200)
        self.mean = nn.Linear(200, 10)
        self.log_variance = nn.Linear(200, 10)
        self.hidden_decoder = nn.Linear(10, 200)
        self.out = nn.Linear(200, 784)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.hidden_encoder(x))
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        p = torch.sigmoid(self.out(torch.relu(self.hidden_decoder(z))))
        cross_entropy = nn.functional.binary_cross_entropy(p, x, reduction="sum")
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return cross_entropy + kl


def hand_written(root: str, seed: int, epochs: int) -> tuple[list[float], list[float]]:
    """Returns the average loss and the seconds of each epoch of the loop."""
    torch.manual_seed(seed)
    data = datasets.MNIST(root, transform=transforms.ToTensor())
    loader = DataLoader(data, 128, shuffle=True)
    model = HandWritten()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses, seconds = [], []
    for _ in range(epochs):
        began, total = time.perf_counter(), 0.0
        for x, _ in loader:
            optimizer.zero_grad()
            loss = model(x.view(-1, 784))
            loss.backward()
            optimizer.step()
            total += loss.item() / len(data)
        losses.append(total)
        seconds.append(time.perf_counter() - began)
    return losses, seconds


class Clock:
    """Notes when each epoch ends."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def log(self, values: dict[str, float], step: int) -> None:
        self.times.append(time.perf_counter())


def ours(cfg, data, seed: int, epochs: int, compile: bool) -> tuple[list[float], list[float]]:
    """Returns the same of the experiment, as its configuration has it but for the steps."""
    torch.manual_seed(seed)
    vae: VAE = config.build(cfg.vae, event_shape=tuple(data.event_shape))
    clock = Clock()
    result = fit(
        vae,
        data.train,
        objective=config.build(cfg.objective),
        optimizer=config.build(cfg.optimizer),
        batch_size=cfg.train.batch_size,
        epochs=epochs,
        compile="strict" if compile else False,
        seed=seed,
        tracker=clock,
    )
    seconds = [b - a for a, b in zip(clock.times[:-1], clock.times[1:], strict=True)]
    return [-row["train_objective"] for row in result.history], seconds


def main() -> None:
    """Runs both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cfg = config.compose(["experiment=seed_mnist", f"data.root={given.root}", "out=."])
    data = config.build(cfg.data)
    runs = {"hand-written": [], "compiled": [], "eager": []}
    for seed in range(given.seeds):
        runs["hand-written"].append(hand_written(given.root, seed, given.epochs))
        runs["compiled"].append(ours(cfg, data, seed, given.epochs, compile=True))
        runs["eager"].append(ours(cfg, data, seed, given.epochs, compile=False))
    print(f"torch {torch.__version__}, {given.threads} thread(s), {given.seeds} seeds")
    print("epoch  hand-written        compiled            difference, standard errors  eager")
    for epoch in range(given.epochs):
        columns = [[losses[epoch] for losses, _ in runs[name]] for name in runs]
        means = [statistics.mean(column) for column in columns]
        errors = [statistics.stdev(column) / math.sqrt(len(column)) for column in columns]
        difference = means[1] - means[0]
        figures = [f"{m:8.3f} +- {e:5.3f}" for m, e in zip(means, errors, strict=True)]
        print(
            f"{epoch + 1:5d}  {figures[0]}  {figures[1]}  {difference:+.3f}, "
            f"{difference / math.hypot(*errors[:2]):+.1f}                 {figures[2]}"
        )
    # The first epoch of each run pays for what is set up once, compiling included.
    times = {name: [s for _, seconds in runs[name] for s in seconds[1:]] for name in runs}
    first = {name: max(seconds[0] for _, seconds in runs[name]) for name in runs}
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"seconds an epoch, median: {medians}; of the first, the longest: {first}")
    for name in ("compiled", "eager"):
        print(f"{name}: {medians[name] / medians['hand-written']:.2f} of the hand-written loop's")


if __name__ == "__main__":
    main()
