"""Checkpoints of a training as it goes on."""

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
from pyro_vae.training import resume_state
from pyro_vae.training.loop import Training
from pyro_vae.vae import serialization
from pyro_vae.vae.recipe import advice
from pyro_vae.vae.vae import VAE

__all__ = ["Keeper", "write_history"]


def write_history(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes a csv file of one row an epoch, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_whole(path, text.getvalue().encode())


class Keeper:
    """Writes checkpoints of a training to a folder, not more often than is worth it.

    A file that cannot be written does not end the training. It gives a warning, once, and the next
    checkpoint tries again. No reader needs two files of one checkpoint: ``resume.pt`` holds
    all that a resumed training reads, the best weights and the history included, and each file is
    whole.

    Arguments:
        folder: The folder, or ``None`` to write nothing.
        every: The least time between two checkpoints, in seconds.

    Attributes:
        failed: By name of a file, why it could not be written the last time.
    """

    def __init__(self, folder: Path | None, every: float) -> None:
        self.folder = folder
        self.every = every
        self.written = time.perf_counter()
        self.recipe: dict[str, Any] | None = None
        self.failed: dict[str, str] = {}
        self._warned = False

    def describe(self, vae: VAE) -> None:
        """Finds out once how files describe a VAE; warns if they cannot, as it was changed."""
        if self.folder is None:
            return
        self.recipe, found = serialization.recipe_to_write(vae)
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
            state = resume_state.load_state(path)
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
        last = run.vae.state_dict()
        self._write("resume.pt", partial(resume_state.save_state, run.state()))
        self._write_weights("last.safetensors", run, last)
        self._write_weights("model.safetensors", run, run.kept)
        if run.history:
            self._write("history.csv", partial(write_history, run.history))
        self.written = time.perf_counter()

    def keep_best(self, run: Training) -> None:
        """Writes the weights as the training leaves them."""
        if self.folder is not None:
            self._write_weights("model.safetensors", run, run.vae.state_dict())

    def report_missing(self) -> None:
        """Warns of files that lack the end of the training."""
        if not self.failed:
            return
        reasons = ", ".join(f"{name} ({reason})" for name, reason in self.failed.items())
        if "model.safetensors" in self.failed:
            remedy = "write the weights in memory to another place by pyro_vae.save(vae, path)"
        else:
            remedy = "model.safetensors is complete, but resume=True repeats the last epochs"
            if list(self.failed) == ["history.csv"]:
                remedy = "all else is complete, and the result of fit holds the history"
        warnings.warn(
            f"'{self.folder}' lacks the end of this training in {reasons}: {remedy}", stacklevel=6
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
