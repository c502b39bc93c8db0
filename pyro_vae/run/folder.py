"""The folder of a run: which run it holds, and how new results replace old ones.

A finished run stays as it is until the results that replace it are complete. They are computed in a
folder within, whose name then says that they are complete, and moved up; a move that is interrupted
is completed by the next run.
"""

import filecmp
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from pyro_vae.files.atomic import remove_partial, write_whole
from pyro_vae.sweeps.job_id import NAME, holds

__all__ = ["UNFINISHED", "RunFolder", "check_out"]

UNFINISHED = ".unfinished"
"""The folder within a finished run in which the results that will replace it are computed."""

_COMPLETE = ".complete"
"""The same folder once its results are complete."""

_CHECKPOINTS = ("resume.pt", "last.safetensors", "model.safetensors")
_CONTENT = (
    "report.html",
    "figures",
    "history.csv",
    "config.yaml",
    "data.json",
    "failure.json",
    ".hydra",
    NAME,
    *_CHECKPOINTS,
)
"""Everything that belongs to one run, besides ``metrics.json``."""


def check_out(cfg: Mapping[str, Any] | DictConfig) -> Path:
    """Returns the folder that a configuration names, or raises a ``ValueError``."""
    out = cfg["out"]
    if not isinstance(out, (str, Path)) or not str(out).strip():
        raise ValueError(f"Expected out to name a folder, as in out=FOLDER, got {out!r}")
    return Path(out)


class RunFolder:
    """The folder that a run is written to.

    Arguments:
        out: The folder; it need not exist.
        name: The name of the run's configuration.
        resume: Whether to continue the run in the folder.
        overwrite: Whether to replace the run in the folder.
    """

    def __init__(self, out: Path, name: str, *, resume: bool, overwrite: bool) -> None:
        self.out = out
        self.name = name
        self.resume = resume
        self.overwrite = overwrite

    @property
    def place(self) -> Path:
        """The folder to work in: within a finished run, or the folder itself."""
        return self.out / UNFINISHED if (self.out / "metrics.json").exists() else self.out

    @property
    def checkpoint(self) -> Path | None:
        """The state to continue from, if there is one and it is asked for."""
        path = self.place / "resume.pt"
        if not path.exists() and self.place != self.out and holds(self.place) != self.name:
            path = self.out / "resume.pt"
        return path if self.resume and path.exists() else None

    def check(self) -> None:
        """Raises a ``ValueError`` if the folder holds a run that was not meant; writes nothing."""
        if self.resume and self.overwrite:
            raise ValueError(
                "Expected resume=true, which continues a run, or overwrite=true, which replaces "
                "it, got both"
            )
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"Expected out to be a folder, got the file '{self.out}'")
        # Which run the folder holds is open until a replacement that was interrupted is completed.
        if self.resume or self.overwrite or (self.out / _COMPLETE).is_dir():
            return
        if any((self.place / file).exists() for file in _CHECKPOINTS):
            self._refuse("an unfinished run")
        if self.place != self.out and holds(self.out) != self.name:
            self._refuse("the finished run of another configuration")

    def _refuse(self, found: str) -> NoReturn:
        raise ValueError(
            f"Expected out to be a folder without another run, got '{self.out}' with {found}: "
            f"choose another folder (out=FOLDER), continue that run (resume=true), or replace it "
            f"(overwrite=true)"
        )

    def recover(self) -> None:
        """Completes a replacement that was interrupted."""
        if (self.out / _COMPLETE).is_dir():
            self._move_up()

    def open(self, files: Mapping[str, str]) -> Path:
        """Returns the folder to work in, with its first files and the state to continue from.

        Partial files, which killed processes left, are removed.

        Arguments:
            files: The texts of the first files, by their names.
        """
        place, checkpoint = self.place, self.checkpoint
        for folder in (self.out, place):
            remove_partial(folder)
            remove_partial(folder / "figures")
        if place != self.out and not self.resume:
            shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        if place == self.out:
            _remove(place, [] if self.resume else [*_CHECKPOINTS, "history.csv"])
            _remove(place, ["report.html"])
        elif checkpoint is not None and checkpoint.parent != place:
            write_whole(place / checkpoint.name, checkpoint.read_bytes())
        for file, text in {**files, NAME: self.name}.items():
            (place / file).parent.mkdir(exist_ok=True)
            write_whole(place / file, text.encode())
        return place

    def close(self, place: Path) -> None:
        """Lets complete results take the place of the old ones.

        Arguments:
            place: The folder that :meth:`open` returned.
        """
        if place == self.out:
            _remove(place, ["failure.json"])
            return
        os.replace(place, self.out / _COMPLETE)
        self._move_up()

    def abandon(self, place: Path) -> None:
        """Removes the files of :meth:`open` within a finished run if training made no progress."""
        if place == self.out or not place.is_dir():
            return
        new, old = place / "resume.pt", self.out / "resume.pt"
        progressed = new.exists() and not (old.exists() and filecmp.cmp(new, old, shallow=False))
        if not progressed:
            shutil.rmtree(place, ignore_errors=True)

    def _move_up(self) -> None:
        complete = self.out / _COMPLETE
        if (complete / "metrics.json").exists():
            new = [name for name in _CONTENT if (complete / name).exists()]
            if (self.out / "metrics.json").exists():
                _remove(self.out, [name for name in _CONTENT if name not in new])
            # Without it the folder counts as unfinished, and never as the old run with new weights.
            _remove(self.out, ["metrics.json"])
            for name in new:
                if (complete / name).is_dir():
                    _remove(self.out, [name])
                os.replace(complete / name, self.out / name)
            os.replace(complete / "metrics.json", self.out / "metrics.json")
        shutil.rmtree(complete)


def _remove(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
