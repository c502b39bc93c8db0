"""The folder of a run: which run it holds, and how new results replace old ones.

A finished run is unchanged until the results that replace it are complete. They are computed in a
subfolder, which is renamed once they are complete, and then moved up. The next run completes an
interrupted move.
"""

import filecmp
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from pyro_vae.files.atomic import remove_partial, write_whole
from pyro_vae.sweeps.job_id import NAME, read_run_id
from pyro_vae.trackers.tensorboard import FOLDER

__all__ = ["TRACKED", "UNFINISHED", "RunFolder", "check_out"]

UNFINISHED = ".unfinished"
"""The subfolder of a finished run for the results that will replace it."""

_COMPLETE = ".complete"
"""The same folder once its results are complete."""

TRACKED = "tracker.json"
"""The file with the key by which a tracker continues a run."""

_CHECKPOINTS = ("resume.pt", "last.safetensors", "model.safetensors")
_CONTENT = (
    "report.html",
    "figures",
    "history.csv",
    "held_out.csv",
    "config.yaml",
    "data.json",
    "failure.json",
    "pruned.json",
    ".hydra",
    TRACKED,
    FOLDER,
    "wandb",
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
    """The output folder of a run.

    Arguments:
        out: The path, which need not exist.
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
    def work_folder(self) -> Path:
        """The folder for new results: a subfolder of a finished run, or the folder itself."""
        return self.out / UNFINISHED if (self.out / "metrics.json").exists() else self.out

    @property
    def checkpoint(self) -> Path | None:
        """The resume state, if it exists and ``resume`` is true."""
        path = self.work_folder / "resume.pt"
        if (
            not path.exists()
            and self.work_folder != self.out
            and read_run_id(self.work_folder) != self.name
        ):
            path = self.out / "resume.pt"
        return path if self.resume and path.exists() else None

    def check(self) -> None:
        """Raises a ``ValueError`` if the folder holds another run; writes nothing."""
        if self.resume and self.overwrite:
            raise ValueError(
                "Expected resume=true, which continues a run, or overwrite=true, which replaces "
                "it, got both"
            )
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"Expected out to be a folder, got the file '{self.out}'")
        # The run in the folder is undetermined until an interrupted replacement is completed.
        if self.resume or self.overwrite or (self.out / _COMPLETE).is_dir():
            return
        if any((self.work_folder / file).exists() for file in _CHECKPOINTS):
            self._refuse("an unfinished run")
        if self.work_folder != self.out and read_run_id(self.out) != self.name:
            self._refuse("the finished run of another configuration")

    def _refuse(self, content: str) -> NoReturn:
        raise ValueError(
            f"Expected out to be a folder without another run, got '{self.out}' with {content}: "
            f"choose another folder (out=FOLDER), continue that run (resume=true), or replace it "
            f"(overwrite=true)"
        )

    def recover(self) -> None:
        """Completes an interrupted replacement."""
        if (self.out / _COMPLETE).is_dir():
            self._move_up()

    def open(self, files: Mapping[str, str]) -> Path:
        """Returns the work folder, with its first files and the resume state.

        Partial files of killed processes are removed.

        Arguments:
            files: The texts of the first files, by their names.
        """
        work_folder, checkpoint = self.work_folder, self.checkpoint
        for folder in (self.out, work_folder):
            remove_partial(folder)
            remove_partial(folder / "figures")
        if work_folder != self.out and not self.resume:
            shutil.rmtree(work_folder, ignore_errors=True)
        work_folder.mkdir(parents=True, exist_ok=True)
        if work_folder == self.out:
            _remove(work_folder, [] if self.resume else [*_CHECKPOINTS, "history.csv", TRACKED])
            _remove(work_folder, ["report.html"])
        elif checkpoint is not None and checkpoint.parent != work_folder:
            for path in (checkpoint, checkpoint.with_name(TRACKED)):
                if path.exists():
                    write_whole(work_folder / path.name, path.read_bytes())
        for file, text in {**files, NAME: self.name}.items():
            (work_folder / file).parent.mkdir(exist_ok=True)
            write_whole(work_folder / file, text.encode())
        return work_folder

    def close(self, work_folder: Path) -> None:
        """Replaces the old results with the complete new ones.

        Arguments:
            work_folder: The folder that :meth:`open` returned.
        """
        if work_folder == self.out:
            _remove(work_folder, ["failure.json", "pruned.json"])
            return
        os.replace(work_folder, self.out / _COMPLETE)
        self._move_up()

    def abandon(self, work_folder: Path) -> None:
        """Removes the files of :meth:`open` within a finished run if training made no progress."""
        if work_folder == self.out or not work_folder.is_dir():
            return
        new, old = work_folder / "resume.pt", self.out / "resume.pt"
        progressed = new.exists() and not (old.exists() and filecmp.cmp(new, old, shallow=False))
        if not progressed:
            shutil.rmtree(work_folder, ignore_errors=True)

    def _move_up(self) -> None:
        complete = self.out / _COMPLETE
        if (complete / "metrics.json").exists():
            new = [name for name in _CONTENT if (complete / name).exists()]
            if (self.out / "metrics.json").exists():
                _remove(self.out, [name for name in _CONTENT if name not in new])
            # Removed first, so an interruption leaves an unfinished run, never old metrics with
            # new weights.
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
