"""One job of a sweep: passed over, gone on with or begun, in a process of its own."""

import logging
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pyro_vae import config
from pyro_vae.console.commands import AGAIN, explain
from pyro_vae.files.atomic import FolderInUseError, hold_folder, write_whole
from pyro_vae.run.folder import UNFINISHED, check_out
from pyro_vae.sweeps import job_status, journal
from pyro_vae.sweeps.job_id import NAME, holds, run_id
from pyro_vae.sweeps.job_status import Failure
from pyro_vae.sweeps.worker_process import call, end_with

__all__ = ["alone", "continuation", "job"]

_log = logging.getLogger(__name__)

_IN_USE = 75
"""The exit code of a process that found its job in use: the temporary failure of sysexits.h."""

_NOT_WRITTEN = 74
"""The exit code of a process that could not note down why it failed: EX_IOERR of sysexits.h."""

_NOT_WRITTEN_REASON = "files cannot be written to '{}': free space, or change its permissions"


class _JobFailed(CompactHydraException):
    """A job of a sweep failed; the others go on. Hydra shows the message alone."""


class _Task:
    """A job as this command knows it.

    Attributes:
        cfg: Its configuration.
        folder: Its folder.
        overrides: What makes it differ from the default.
        command: What runs it alone.
    """

    def __init__(self, cfg: DictConfig, overrides: list[str]) -> None:
        self.cfg = cfg
        self.folder = check_out(cfg)
        self.name = run_id(cfg)
        self.overrides = shlex.join(overrides)
        alone = [
            *overrides,
            "hydra.mode=RUN",
            f"out={config.quote(str(self.folder))}",
            "resume=true",
        ]
        self.command = shlex.join(["pyro-vae", *_sources(), *alone])

    def note(self, outcome: str, reason: str = "") -> None:
        """Adds to the journal what the job came to."""
        journal.note(journal.Entry(str(self.folder), self.overrides, outcome, reason, self.command))


def _sources() -> list[str]:
    """Returns the options that name a configuration of the user's own and its folders."""
    hydra = HydraConfig.get()
    name = hydra.job.config_name
    return [
        *(["--config-name", name] if name not in (None, "pyro_vae") else []),
        *(
            word
            for source in hydra.runtime.config_sources
            if source.provider == "command-line"
            for word in ("--config-dir", str(source.path))
        ),
    ]


def job(cfg: DictConfig) -> float:
    """Sees to it that a job of a sweep is done.

    A finished job is passed over; one that was cut off or failed goes on from its last checkpoint;
    one that another process is at is left to it.

    Returns:
        The held-out log evidence, in nats per datum; NaN for a job left to another process.

    Raises:
        JobFailed: If the job failed. Its folder then has a ``failure.json``, unless it is that of
            another job.
    """
    end_with(journal.owner())
    task = _Task(cfg, list(HydraConfig.get().overrides.task))
    outcome, reason = done(task)
    task.note(outcome, reason)
    name = task.folder.name
    if outcome == "failed":
        raise _JobFailed(reason)
    if outcome == "elsewhere":
        _log.info("%s is left to the process that is at it", name)
        return float("nan")
    before = " (finished before)" if outcome == "passed over" else ""
    _log.info("%s: log evidence %.3f nats per datum%s", name, _evidence(task), before)
    return _evidence(task)


def done(task: _Task) -> tuple[str, str]:
    """Returns what a job came to, and why if it failed."""
    try:
        return _done(task)
    except (OSError, ValueError) as error:
        # A folder that is full or damaged fails this job alone.
        return "failed", f"{type(error).__name__}: {explain(error)}"


def _done(task: _Task) -> tuple[str, str]:
    if task.cfg.get("overwrite", False):
        return "failed", (
            "Expected overwrite=true for a single run only, got it for a sweep: delete the folder "
            "of a job to run it again"
        )
    if holds(task.folder) not in (None, task.name):
        return "failed", (
            f"Expected a folder of its own, got '{task.folder}', which holds the run of another "
            f"configuration: choose another hydra.sweep.dir or hydra.sweep.subdir"
        )
    if job_status.state(task.folder) == "finished":
        return "passed over", ""
    task.note("started")
    return _attempt(task)


def alone(cfg: DictConfig) -> float:
    """Runs one job outside of any sweep, in this process.

    Raises:
        ValueError: If another process is writing to its folder.
    """
    from pyro_vae.run.experiment import run

    return run(cfg, name=run_id(cfg), files=_composed(cfg))


def continuation(cfg: DictConfig) -> Callable[[], str]:
    """Returns a function that says how to continue a run once it is interrupted."""
    given = HydraConfig.get().overrides
    words = [
        word
        for word in [*given.hydra, *given.task]
        if word.lstrip("+").partition("=")[0] not in ("out", "resume", "overwrite")
    ]
    out, name = Path(cfg.out), run_id(cfg)
    words = ["pyro-vae", *_sources(), *words, f"out={config.quote(str(out))}", "resume=true"]

    def say() -> str:
        begun = (out / UNFINISHED).exists() or not (out / "metrics.json").exists()
        return f"run: {shlex.join(words)}" if begun or holds(out) == name else AGAIN

    return say


def _composed(cfg: DictConfig) -> dict[str, str]:
    """Returns the files that Hydra itself would write of a job, if Hydra runs it."""
    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    texts = {"config": cfg, "hydra": {"hydra": hydra}, "overrides": hydra.overrides.task}
    return {f".hydra/{name}.yaml": OmegaConf.to_yaml(part) for name, part in texts.items()}


def _evidence(task: _Task) -> float:
    """Returns the log evidence of a finished job."""
    found = job_status.metrics(task.folder)
    value = None if found is None else found["log_evidence"]
    return float("nan") if value is None else value


def _attempt(task: _Task) -> tuple[str, str]:
    """Returns what a job came to, and why if it failed."""
    try:
        cfg = cast(dict[str, Any], OmegaConf.to_container(task.cfg, resolve=True))
    except OmegaConfBaseException as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        job_status.write_failure(task.folder, Failure(reason, task.command, _now()))
        return "failed", reason
    before = job_status.failure(task.folder)
    for name, text in _composed(task.cfg).items():
        (task.folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(task.folder / name, text.encode())
    if task.cfg.isolate:
        code = call(_work, (cfg, task.name, task.command), log=task.folder / "job.log")
    else:
        code = _work(cfg, task.name, task.command, show_trace=False)
    if code == _IN_USE:
        return "elsewhere", ""
    if code == 0:
        return "finished", ""
    return judged(task, code, before)


def judged(task: _Task, code: int, before: Failure | None) -> tuple[str, str]:
    """Returns what a job came to whose process ended with a code that is not zero.

    Arguments:
        task: The job.
        code: The exit code.
        before: The failure of an attempt before this one.
    """
    failed = job_status.failure(task.folder)
    if code > 0 and failed is not None and failed != before:
        return "failed", failed.reason
    reason = _NOT_WRITTEN_REASON.format(task.folder) if code == _NOT_WRITTEN else ended_by(code)
    try:
        with hold_folder(task.folder):
            # Another command may have done the job by now.
            if job_status.state(task.folder) == "finished":
                return "finished", ""
            job_status.write_failure(task.folder, Failure(reason, task.command, _now()))
    except FolderInUseError:
        return "elsewhere", ""
    except (OSError, ValueError) as error:
        _log.warning("%s: the failure could not be noted down (%s)", task.folder.name, error)
    return "failed", reason


def _work(cfg: dict[str, Any], name: str, command: str, *, show_trace: bool = True) -> int:
    """Does the work of a job, and returns an exit code.

    Arguments:
        cfg: Its resolved configuration.
        name: Its name.
        command: What runs it alone.
        show_trace: Whether to print the traceback of an error.

    Returns:
        0, 1 if it failed, :data:`_IN_USE`, or :data:`_NOT_WRITTEN`.
    """
    from pyro_vae.run.experiment import run

    place = Path(cfg["out"])
    with ExitStack() as held:
        try:
            held.enter_context(hold_folder(place))
            if job_status.state(place) == "finished":
                return 0
            (place / "failure.json").unlink(missing_ok=True)
            if job_status.metrics(place) is None:
                # Before anything can fail, so that a failed job is still known by its settings.
                write_whole(place / "config.yaml", OmegaConf.to_yaml(cfg).encode())
                write_whole(place / NAME, name.encode())
            run(OmegaConf.create(cfg | {"resume": True}), name=name)
        except FolderInUseError:
            return _IN_USE
        except Exception as error:
            return _fail(place, error, command, show_trace)
    return 0


def _fail(place: Path, error: Exception, command: str, show_trace: bool) -> int:
    """Notes down why a job failed, as far as files can be written, and returns its exit code."""
    reason = f"{type(error).__name__}: {explain(error)}"
    trace = traceback.format_exc()
    with suppress(OSError):
        if show_trace:
            print(trace, file=sys.stderr, flush=True)
    try:
        job_status.write_failure(place, Failure(reason, command, _now(), trace))
    except OSError:
        return _NOT_WRITTEN
    return 1


def ended_by(code: int) -> str:
    """Returns the reason of a process that ended without a word."""
    import signal

    if code >= 0:
        return f"the process ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (was memory short?)" if name == "SIGKILL" else ""
    return f"the process was ended by {name}{hint}"


def _now() -> str:
    """Returns the time, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
