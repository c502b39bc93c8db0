"""Checkpoints of a training as it goes on."""

import time
import warnings
from pathlib import Path
from typing import Any

from pyro_vae import checkpoint
from pyro_vae.epochs import Training
from pyro_vae.recipe import advice
from pyro_vae.vae import VAE

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
        self.recipe: dict[str, Any] | None = None

    def describe(self, vae: VAE) -> None:
        """Finds out once how files describe a VAE; warns if they cannot, as it was changed."""
        if self.folder is None:
            return
        self.recipe, found = checkpoint.recipe_to_write(vae)
        if found:
            place, text = next(iter(found.items()))
            warnings.warn(
                f"load cannot make a VAE of '{self.folder}/model.safetensors', because this one "
                f"was changed after it was made, {place}: {text}. {advice(place)}",
                stacklevel=3,
            )

    def restore(self, run: Training) -> None:
        """Goes on from what is in the folder, if there is anything."""
        if self.folder is not None and (self.folder / "resume.pt").exists():
            path = self.folder / "resume.pt"
            state = checkpoint.load_state(path)
            try:
                run.restore(state, path)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
                raise ValueError(
                    f"Expected the state of this training in {path}, got one that does not fit "
                    f"({type(error).__name__}: {error})"
                ) from error

    def keep(self, run: Training, *, now: bool = False) -> None:
        """Writes the state to go on from, the last weights and the best, if it is time."""
        if self.folder is None or not (now or time.perf_counter() - self.written >= self.every):
            return
        checkpoint.save_state(run.state(), self.folder / "resume.pt")
        last = self.folder / "last.safetensors"
        checkpoint.save_weights(run.vae, run.vae.state_dict(), last, self.recipe)
        best = self.folder / "model.safetensors"
        checkpoint.save_weights(run.vae, run.kept, best, self.recipe)
        self.written = time.perf_counter()

    def keep_best(self, run: Training) -> None:
        """Writes the weights as the training leaves them."""
        if self.folder is not None:
            best = self.folder / "model.safetensors"
            checkpoint.save_weights(run.vae, run.vae.state_dict(), best, self.recipe)
