"""Checkpoints of a training as it goes on."""

import time
from pathlib import Path

from pyro_vae import checkpoint
from pyro_vae.epochs import Training

__all__ = ["Keeper"]


class Keeper:
    """Writes checkpoints of a training to a folder, not more often than is worth it.

    Arguments:
        folder: The folder, or ``None`` to write nothing.
        every: The least time between two checkpoints, in seconds.
    """

    def __init__(self, folder: Path | None, every: float) -> None:
        self.folder = folder
        self.every = every
        self.written = time.perf_counter()

    def restore(self, run: Training) -> None:
        """Goes on from what is in the folder, if there is anything."""
        if self.folder is not None and (self.folder / "resume.pt").exists():
            path = self.folder / "resume.pt"
            run.restore(checkpoint.load_state(path), path)

    def keep(self, run: Training, *, now: bool = False) -> None:
        """Writes the state to go on from, the last weights and the best, if it is time."""
        if self.folder is None or not (now or time.perf_counter() - self.written >= self.every):
            return
        checkpoint.save_state(run.state(), self.folder / "resume.pt")
        checkpoint.save_weights(run.vae, run.vae.state_dict(), self.folder / "last.safetensors")
        checkpoint.save_weights(run.vae, run.kept, self.folder / "model.safetensors")
        self.written = time.perf_counter()

    def keep_best(self, run: Training) -> None:
        """Writes the weights as the training leaves them."""
        if self.folder is not None:
            checkpoint.save_weights(
                run.vae, run.vae.state_dict(), self.folder / "model.safetensors"
            )
