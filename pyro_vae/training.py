"""Training: one loop, read from top to bottom."""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor
from tqdm import tqdm

from pyro_vae import evaluate
from pyro_vae.conditional import check_size
from pyro_vae.objectives import ELBO
from pyro_vae.vae import VAE

__all__ = ["FitResult", "Tracker", "fit"]

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class Tracker(Protocol):
    """Anything that takes figures as training goes on."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Takes the figures of one epoch."""


class FitResult(NamedTuple):
    """What training did.

    Attributes:
        history: One row an epoch: ``epoch``, ``train_objective`` and, with validation rows,
            ``valid_elbo``, ``valid_rate``, ``valid_distortion``; nats per datum.
        best_epoch: The epoch whose weights were kept: that of the highest ``valid_elbo``, or the
            last.
        steps: The number of optimizer steps.
        seconds: The time taken.
    """

    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    seconds: float


def fit(
    vae: VAE,
    train: Tensor,
    *,
    valid: Tensor | None = None,
    objective: Any = None,
    optimizer: MakeOptimizer | None = None,
    epochs: int = 100,
    batch_size: int = 100,
    lr_schedule: MakeSchedule | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> FitResult:
    r"""Trains a VAE.

    Each step maximizes the objective per datum on a batch of rows, drawn without replacement by a
    generator of its own. With validation rows the ELBO at beta = 1 is computed on them after each
    epoch, under the same noise each time, and the weights of the best epoch are kept at the end.
    All noise comes from ``seed``; the random state of the caller is left as it was.

    Arguments:
        vae: The VAE; left in evaluation mode.
        train: Rows of shape ``(N, *event_shape)``, on the device of the VAE.
        valid: Rows to choose the best epoch by.
        objective: Any with a ``differentiable_loss``; by default :class:`ELBO`.
        optimizer: Makes a PyTorch optimizer from parameters; by default Adam at 1e-3.
        epochs: The number of passes over the data, at most.
        batch_size: The number of rows of a batch. A single row left over joins the batch before.
        lr_schedule: Makes a PyTorch scheduler from the optimizer; stepped once an epoch.
        clip_norm: The norm to which the gradient of all parameters together is clipped.
        patience: Stop after this many epochs without a better ``valid_elbo``.
        seed: The seed of order and noise.
        tracker: Takes each row of the history.

    Raises:
        ValueError: If an argument is out of range or the data cannot be scored.
        FloatingPointError: If the objective is no longer finite; the weights are then those of
            the last good epoch.

    Example:
        >>> from pyro_vae import data
        >>> digits = data.digits()
        >>> vae = VAE(digits.event_shape, latent_dim=2)
        >>> result = fit(vae, digits.x.train, valid=digits.x.valid, epochs=2)
        >>> [row["epoch"] for row in result.history]
        [1, 2]
    """
    objective = ELBO() if objective is None else objective
    check_arguments(vae, train, valid, objective, epochs, batch_size, clip_norm, patience)
    make = partial(torch.optim.Adam, lr=1e-3) if optimizer is None else optimizer
    validating = is_validation_enabled()
    began = time.perf_counter()
    with torch.random.fork_rng(devices_of(train)):
        torch.manual_seed(seed)
        vae.initialize(train)
        optim = make([p for p in vae.parameters() if p.requires_grad])
        schedule = None if lr_schedule is None else lr_schedule(optim)
        order = torch.Generator(device=train.device).manual_seed(seed)
        history: list[dict[str, float]] = []
        best, best_epoch, kept, steps = -math.inf, 0, snapshot(vae), 0
        for epoch in tqdm(range(1, epochs + 1), desc="epochs", disable=None, leave=False):
            vae.train()
            total = torch.zeros((), dtype=torch.float64, device=train.device)
            for rows in batches(len(train), batch_size, order):
                optim.zero_grad(set_to_none=True)
                # Pyro's checks of model, guide and shapes pay once; data are checked already.
                with pyro.validation_enabled(validating and steps == 0):
                    loss = objective.differentiable_loss(vae.model, vae.guide, train[rows])
                (loss / len(rows)).backward()
                if clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(vae.parameters(), clip_norm)
                optim.step()
                total -= loss.detach()
                steps += 1
            if schedule is not None:
                schedule.step()
            row = {"epoch": epoch, "train_objective": total.item() / len(train)}
            row |= {} if valid is None else validate(vae, valid, seed)
            if not all(math.isfinite(value) for value in row.values()):
                vae.load_state_dict(kept)
                raise FloatingPointError(
                    f"The objective is no longer finite in epoch {epoch}: {row}. The weights are "
                    f"those of epoch {best_epoch}; try a lower learning rate or clip_norm"
                )
            history.append(row)
            if tracker is not None:
                tracker.log(row, epoch)
            if valid is None or row["valid_elbo"] > best:
                best, best_epoch, kept = row.get("valid_elbo", best), epoch, snapshot(vae)
            if patience is not None and epoch - best_epoch >= patience:
                break
        vae.load_state_dict(kept)
        vae.calibrate(train)
        vae.eval()
    return FitResult(history, best_epoch, steps, time.perf_counter() - began)


def check_arguments(
    vae: VAE,
    train: Tensor,
    valid: Tensor | None,
    objective: Any,
    epochs: int,
    batch_size: int,
    clip_norm: float | None,
    patience: int | None,
) -> None:
    """Raises a ``ValueError`` for what would fail, or train nothing, later."""
    check_size("epochs", epochs, least=1)
    check_size("batch_size", batch_size, least=1)
    if not hasattr(objective, "differentiable_loss"):
        raise ValueError(
            f"Expected an objective with differentiable_loss, got {type(objective).__name__}"
        )
    check_size("num_particles", getattr(objective, "num_particles", 1), least=1)
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"Expected clip_norm to be positive, got {clip_norm}")
    if patience is not None:
        check_size("patience", patience, least=1)
        if valid is None:
            raise ValueError(f"Expected valid, without which {patience=} has nothing to wait for")
    for x in (train,) if valid is None else (train, valid):
        vae.check(x)


def batches(size: int, batch_size: int, order: torch.Generator) -> list[Tensor]:
    """Returns the rows of each batch of an epoch, none of a single row if that can be."""
    rows = torch.randperm(size, generator=order, device=order.device)
    parts = list(rows.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def validate(vae: VAE, valid: Tensor, seed: int) -> dict[str, float]:
    """Returns the bound on the validation rows, under the same noise at each call."""
    with torch.random.fork_rng(devices_of(valid)):
        torch.manual_seed(seed)
        bound = evaluate.elbo(vae, valid)
    return {
        "valid_elbo": bound.elbo.mean().item(),
        "valid_rate": bound.rate.mean().item(),
        "valid_distortion": bound.distortion.mean().item(),
    }


def snapshot(vae: VAE) -> dict[str, Tensor]:
    """Returns a copy of all weights and buffers."""
    return {name: value.detach().clone() for name, value in vae.state_dict().items()}


def devices_of(x: Tensor) -> list[torch.device]:
    """Returns the devices, other than the CPU, whose random state a run on ``x`` draws on."""
    return [x.device] if x.is_cuda else []
