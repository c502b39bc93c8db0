"""Checkpoints during training."""

import csv
import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.files.atomic import write_whole
from pyro_vae.training import resume_file
from pyro_vae.training.loop import Training
from pyro_vae.vae import serialization
from pyro_vae.vae.recipe import suggest_remedy
from pyro_vae.vae.vae import VAE

__all__ = ["Checkpointer", "write_history"]


def write_history(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes a csv file with one row per epoch, atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_whole(path, text.getvalue().encode())


class Checkpointer:
    """Writes checkpoints of a training to a folder, at most once per interval.

    A write error does not end the training. The first one causes a warning, and the next
    checkpoint tries again. Each file is written atomically, and no reader needs two files of the
    same checkpoint. ``resume.pt`` alone holds the full state of a resumed training, including the
    best weights and the history.

    Arguments:
        folder: The folder, or ``None`` to write nothing.
        every: The minimum time between two checkpoints, in seconds.

    Attributes:
        failed: Maps the name of each file whose last write failed to the reason.
    """

    def __init__(self, folder: Path | None, every: float) -> None:
        self.folder = folder
        self.every = every
        self.last_save = time.perf_counter()
        self.recipe: dict[str, Any] | None = None
        self.failed: dict[str, str] = {}
        self._warned = False

    def prepare_recipe(self, vae: VAE) -> None:
        """Stores the recipe of a VAE for the files; warns if the VAE changed since its creation."""
        if self.folder is None:
            return
        self.recipe, changes = serialization.prepare_recipe(vae)
        if changes:
            part, change = next(iter(changes.items()))
            warnings.warn(
                f"load cannot rebuild the VAE of '{self.folder}/model.safetensors', because the "
                f"VAE was changed after its creation, {part}: {change}. {suggest_remedy(part)}",
                stacklevel=3,
            )

    def restore(self, run: Training) -> None:
        """Restores the last checkpoint, if there is one."""
        if self.folder is not None and (self.folder / "resume.pt").exists():
            path = self.folder / "resume.pt"
            state = resume_file.load_state(path)
            try:
                run.resume_from(state, path)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
                raise ValueError(
                    f"Expected the state of this training in {path}, got one that does not fit "
                    f"({type(error).__name__}: {error})"
                ) from error

    def save(self, run: Training, *, now: bool = False) -> None:
        """Writes the resume state, the last weights and the best, if the interval has passed.

        Arguments:
            run: The training.
            now: Whether to write before the interval has passed.
        """
        if self.folder is None or not (now or time.perf_counter() - self.last_save >= self.every):
            return
        last = run.vae.state_dict()
        self._write("resume.pt", partial(resume_file.save_state, run.state_dict()))
        self._write_weights("last.safetensors", run, last)
        self._write_weights("model.safetensors", run, run.best_weights)
        if run.history:
            self._write("history.csv", partial(write_history, run.history))
        self.last_save = time.perf_counter()

    def save_best(self, run: Training) -> None:
        """Writes the final weights of the VAE, at the end of the training."""
        if self.folder is not None:
            self._write_weights("model.safetensors", run, run.vae.state_dict())

    def report_missing(self) -> None:
        """Warns about files that lack the end of the training."""
        if not self.failed:
            return
        reasons = ", ".join(f"{name} ({reason})" for name, reason in self.failed.items())
        if "model.safetensors" in self.failed:
            remedy = "save the weights in memory to another path, pyro_vae.save(vae, path)"
        else:
            remedy = "model.safetensors is complete, but resume=True repeats the last epochs"
            if list(self.failed) == ["history.csv"]:
                remedy = "the other files are complete, and the result of fit has the history"
        warnings.warn(
            f"'{self.folder}' lacks the end of this training, because files could not be written, "
            f"{reasons}: {remedy}",
            stacklevel=6,
        )

    def _write_weights(self, name: str, run: Training, weights: dict[str, Tensor]) -> None:
        save = partial(serialization.save_weights, run.vae, weights, recipe=self.recipe)
        self._write(name, save)

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(self.folder / name)
        except OSError as error:
            self.failed[name] = error.strerror or str(error)
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"'{self.folder / name}' cannot be written ({self.failed[name]}): the training "
                    f"continues, and the next checkpoint tries again",
                    stacklevel=6,
                )
        else:
            self.failed.pop(name, None)
