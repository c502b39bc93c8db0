"""Runs one job of a sweep in a subprocess: skips, resumes or starts it."""

import logging
import os
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
from pyro_vae.files.atomic import FolderInUseError, hold_folder, strict_json, write_whole
from pyro_vae.run.folder import UNFINISHED, check_out
from pyro_vae.search.pruning import PrunedError, PruningTracker, TrialReference
from pyro_vae.sweeps import job_status, journal
from pyro_vae.sweeps.job_id import NAME, read_run_id, run_id
from pyro_vae.sweeps.job_status import Failure
from pyro_vae.sweeps.worker_process import call_in_process, exit_with_parent

__all__ = ["build_continuation", "run_job", "run_single"]

_log = logging.getLogger(__name__)

_IN_USE = 75
"""The exit code of a process whose job is in use: EX_TEMPFAIL of sysexits.h."""

_PRUNED = 76
"""The exit code of a process whose trial was pruned."""

_NOT_WRITTEN = 74
"""The exit code of a process that could not record its failure: EX_IOERR of sysexits.h."""

_NOT_WRITTEN_REASON = "files cannot be written to '{}': free space, or change its permissions"


class _JobFailed(CompactHydraException):
    """A job of a sweep failed; the others continue. Hydra shows the message alone."""


class _Task:
    """A job, with the command that runs it alone.

    Attributes:
        cfg: The configuration.
        folder: The folder.
        name: The run id.
        overrides: The overrides of the default configuration.
        command: The command that runs the job alone.
    """

    def __init__(self, cfg: DictConfig, overrides: list[str]) -> None:
        self.cfg = cfg
        self.folder = check_out(cfg)
        self.name = run_id(cfg)
        self.overrides = shlex.join(overrides)
        fixed = []
        if OmegaConf.select(cfg, "evaluate.tolerance") == "auto":
            # Jobs of a sweep are compared, which needs a fixed number of samples.
            cfg.evaluate.tolerance = None
            fixed = ["evaluate.tolerance=null"]
        words = [
            *overrides,
            *fixed,
            "hydra.mode=RUN",
            f"out={config.quote_value(str(self.folder))}",
            "resume=true",
        ]
        self.command = shlex.join(["pyro-vae", *_config_options(), *words])

    def add_to_journal(self, outcome: str, reason: str = "") -> None:
        """Adds the outcome of the job to the journal."""
        journal.add_entry(
            journal.Entry(str(self.folder), self.overrides, outcome, reason, self.command)
        )


def _config_options() -> list[str]:
    """Returns the options that select a user configuration and its folders."""
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


def run_job(cfg: DictConfig) -> float:
    """Runs a job of a sweep unless it is finished or in use.

    A finished job is skipped; an interrupted or failed one resumes from its last checkpoint; a
    job in use is left to its process.

    Returns:
        The held-out log evidence, in nats per datum; NaN for a job left to another process.

    Raises:
        _JobFailed: If the job failed. Its folder then has a ``failure.json``, unless it belongs to
            another job.
    """
    exit_with_parent(journal.find_owner())
    _enter_folder()
    task = _Task(cfg, list(HydraConfig.get().overrides.task))
    outcome, reason = try_task(task)
    task.add_to_journal(outcome, reason)
    name = task.folder.name
    if outcome == "failed":
        raise _JobFailed(reason)
    if outcome in ("elsewhere", "pruned"):
        _log.info("%s: %s", name, reason or "already running in another process")
        return float("nan")
    before = " (already finished)" if outcome == "skipped" else ""
    _log.info("%s: log evidence %.3f nats per datum%s", name, _read_evidence(task), before)
    return _read_evidence(task)


def _enter_folder() -> None:
    """Enters the working directory of the command, which a process on a cluster may not have.

    Raises:
        _JobFailed: If the job would be written to a folder that nobody looks at.
    """
    hydra = HydraConfig.get()
    if hydra.job.chdir or Path.cwd() == Path(hydra.runtime.cwd).resolve():
        return
    if not os.path.isabs(hydra.sweep.dir):
        raise _JobFailed(
            f"Expected hydra.sweep.dir to be an absolute path for a launcher that runs jobs in "
            f"another folder, got {hydra.sweep.dir!r}"
        )
    os.chdir(hydra.runtime.cwd)


def try_task(task: _Task) -> tuple[str, str]:
    """Runs a job; returns its outcome, and the reason if it failed."""
    try:
        return _run_task(task)
    except (OSError, ValueError) as error:
        # A full or damaged folder fails only this job.
        return "failed", f"{type(error).__name__}: {explain(error)}"


def _run_task(task: _Task) -> tuple[str, str]:
    if task.cfg.get("overwrite", False):
        return "failed", (
            "Expected overwrite=true for a single run only, got it for a sweep: delete the folder "
            "of a job to run it again"
        )
    if read_run_id(task.folder) not in (None, task.name):
        return "failed", (
            f"Expected a folder for this job only, got '{task.folder}' with the run of another "
            f"configuration: choose another hydra.sweep.dir or hydra.sweep.subdir"
        )
    if job_status.read_state(task.folder) == "finished":
        return "skipped", ""
    task.add_to_journal("started")
    return _start_task(task)


def run_single(cfg: DictConfig) -> float:
    """Runs one job outside of any sweep, in this process.

    Raises:
        ValueError: If another process is writing to its folder.
    """
    from pyro_vae.run.experiment import run

    return run(cfg, name=run_id(cfg), files=_compose_hydra_files(cfg))


def build_continuation(cfg: DictConfig) -> Callable[[], str]:
    """Returns a function whose result describes how to continue a run after an interruption."""
    overrides = HydraConfig.get().overrides
    words = [
        word
        for word in [*overrides.hydra, *overrides.task]
        if word.lstrip("+").partition("=")[0] not in ("out", "resume", "overwrite")
    ]
    out, name = Path(cfg.out), run_id(cfg)
    words = [
        "pyro-vae",
        *_config_options(),
        *words,
        f"out={config.quote_value(str(out))}",
        "resume=true",
    ]

    def describe() -> str:
        unfinished = (out / UNFINISHED).exists() or not (out / "metrics.json").exists()
        return f"run: {shlex.join(words)}" if unfinished or read_run_id(out) == name else AGAIN

    return describe


def _compose_hydra_files(cfg: DictConfig) -> dict[str, str]:
    """Returns the files that Hydra itself would write for a job; empty outside Hydra."""
    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    texts = {"config": cfg, "hydra": {"hydra": hydra}, "overrides": hydra.overrides.task}
    return {f".hydra/{name}.yaml": OmegaConf.to_yaml(part) for name, part in texts.items()}


def _read_evidence(task: _Task) -> float:
    metrics = job_status.read_metrics(task.folder)
    value = None if metrics is None else metrics["log_evidence"]
    return float("nan") if value is None else value


def _start_task(task: _Task) -> tuple[str, str]:
    """Starts or resumes a job; returns its outcome, and the reason if it failed."""
    try:
        cfg = cast(dict[str, Any], OmegaConf.to_container(task.cfg, resolve=True))
    except OmegaConfBaseException as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        job_status.write_failure(task.folder, Failure(reason, task.command, _now()))
        return "failed", reason
    previous = job_status.read_failure(task.folder)
    for name, text in _compose_hydra_files(task.cfg).items():
        (task.folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(task.folder / name, text.encode())
    arguments = (cfg, task.name, task.command, TrialReference.find())
    if task.cfg.isolate:
        code = call_in_process(_run_worker, arguments, log=task.folder / "job.log")
    else:
        code = _run_worker(*arguments, show_trace=False)
    if code == _IN_USE:
        return "elsewhere", ""
    if code == _PRUNED:
        return "pruned", "pruned"
    if code == 0:
        return "finished", ""
    return diagnose_exit(task, code, previous)


def diagnose_exit(task: _Task, code: int, previous: Failure | None) -> tuple[str, str]:
    """Returns outcome and reason for a job whose process ended with a nonzero exit code.

    Arguments:
        task: The job.
        code: The exit code.
        previous: The failure of an earlier attempt.
    """
    failure = job_status.read_failure(task.folder)
    if code > 0 and failure is not None and failure != previous:
        return "failed", failure.reason
    reason = (
        _NOT_WRITTEN_REASON.format(task.folder) if code == _NOT_WRITTEN else describe_exit(code)
    )
    try:
        with hold_folder(task.folder):
            # Another command may have finished the job in the meantime.
            if job_status.read_state(task.folder) == "finished":
                return "finished", ""
            job_status.write_failure(task.folder, Failure(reason, task.command, _now()))
    except FolderInUseError:
        return "elsewhere", ""
    except (OSError, ValueError) as error:
        _log.warning("%s: the failure could not be recorded (%s)", task.folder.name, error)
    return "failed", reason


def _run_worker(
    cfg: dict[str, Any],
    name: str,
    command: str,
    trial: TrialReference | None,
    *,
    show_trace: bool = True,
) -> int:
    """Runs a job in this process, and returns an exit code.

    Arguments:
        cfg: Its resolved configuration.
        name: Its run id.
        command: The command that runs it alone.
        trial: The trial of a search that may be pruned.
        show_trace: Whether to print the traceback of an error.

    Returns:
        0, 1 if it failed, :data:`_IN_USE`, :data:`_PRUNED`, or :data:`_NOT_WRITTEN`.
    """
    from pyro_vae.run.experiment import run

    folder = Path(cfg["out"])
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_folder(folder))
            if job_status.read_state(folder) == "finished":
                return 0
            for ending in ("failure.json", job_status.PRUNED):
                (folder / ending).unlink(missing_ok=True)
            if job_status.read_metrics(folder) is None:
                # Written first, so a failed job can still be identified by its settings.
                write_whole(folder / "config.yaml", OmegaConf.to_yaml(cfg).encode())
                write_whole(folder / NAME, name.encode())
            tracker = None if trial is None else PruningTracker(trial)
            run(
                OmegaConf.create(cfg | {"resume": True}),
                name=name,
                tracker=tracker,
                group=str(cfg["study"]),
            )
        except FolderInUseError:
            return _IN_USE
        except PrunedError as error:
            pruned = {"reason": str(error), "command": command}
            write_whole(folder / job_status.PRUNED, strict_json(pruned).encode())
            return _PRUNED
        except Exception as error:
            return _record_failure(folder, error, command, show_trace)
    return 0


def _record_failure(folder: Path, error: Exception, command: str, show_trace: bool) -> int:
    """Records why a job failed, if files can be written, and returns its exit code."""
    reason = f"{type(error).__name__}: {explain(error)}"
    trace = traceback.format_exc()
    with suppress(OSError):
        if show_trace:
            print(trace, file=sys.stderr, flush=True)
    try:
        job_status.write_failure(folder, Failure(reason, command, _now(), trace))
    except OSError:
        return _NOT_WRITTEN
    return 1


def describe_exit(code: int) -> str:
    """Describes the end of a process that did not record a failure."""
    import signal

    if code >= 0:
        return f"the process exited with code {code}"
    name = signal.Signals(-code).name
    hint = " (possibly out of memory)" if name == "SIGKILL" else ""
    return f"the process was terminated by {name}{hint}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
