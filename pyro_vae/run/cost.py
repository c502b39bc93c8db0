"""The expected duration of a run, from its first epochs and a few samples."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pyro_vae import evaluate
from pyro_vae.data import Rows
from pyro_vae.progress import announce
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.vae.vae import VAE

__all__ = ["CostTracker", "time_evaluation"]

_ROWS, _SAMPLES = 100, 40
"""The rows and samples of each that are timed."""

_LEAST_SECONDS = 2.0
"""The shortest expected duration that is worth a line."""


class CostTracker:
    """A tracker of :func:`pyro_vae.fit` that prints the expected duration after three epochs.

    The first epoch is left out, because it compiles.

    Arguments:
        epochs: The largest number of epochs.
        vae: The VAE.
        test: The test rows.
        settings: The settings of the evaluation.
        trackers: Other trackers, which get the metrics too.
    """

    def __init__(
        self, epochs: int, vae: VAE, test: Rows, settings: Any, trackers: Sequence[Any]
    ) -> None:
        self.epochs, self.vae, self.test = epochs, vae, test
        self.settings, self.trackers = settings, trackers
        self.times: list[float] = []

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs the metrics of one epoch."""
        for tracker in self.trackers:
            tracker.log(values, step)
        if len(self.times) == 3:
            return
        self.times.append(time.perf_counter())
        if len(self.times) == 3:
            training = (self.epochs - step) * (self.times[2] - self.times[0]) / 2
            # Weights that give no finite value are the concern of the training.
            with suppress(FloatingPointError):
                evaluation = time_evaluation(self.vae, self.test, self.settings)
                if training + evaluation > _LEAST_SECONDS:
                    announce(
                        f"expected: {training:.0f} s more for {self.epochs} epochs, less if "
                        f"training stops early, then up to {evaluation:.0f} s of evaluation"
                    )


def time_evaluation(vae: VAE, test: Rows, settings: Any) -> float:
    """Returns the expected duration of an eager evaluation, in seconds; random states are kept."""
    size = len(test.x)
    rows = min(size, settings.evidence_rows or size)
    samples = rows * settings.num_particles + size * settings.elbo_particles
    x, mask, covariates = test.batch(slice(_ROWS))
    durations = []
    with fork_and_seed_rng(x.device, 0):
        for _ in range(2):
            start = time.perf_counter()
            evaluate.log_evidence(
                vae, x, _SAMPLES, covariates=covariates, mask=mask, compile=False, progress=False
            )
            durations.append(time.perf_counter() - start)
    return min(durations) * samples / (len(x) * _SAMPLES)
