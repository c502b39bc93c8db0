"""Runs jobs by the launchers of submitit and Ray. A job that dies there ends no other."""

import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pyro_vae import config as configuration
from pyro_vae.sweeps import job_status, journal

__all__ = ["launch_jobs"]


class _JobLost(CompactHydraException):
    """A job ended without a result. Hydra shows the message alone."""


def launch_jobs(
    engine: str,
    settings: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
    *,
    config: DictConfig,
    context: HydraContext,
    task: TaskFunction,
) -> list[JobReturn]:
    """Runs jobs on a cluster, and waits for all of them.

    Arguments:
        engine: ``"slurm"`` or ``"ray"``.
        settings: The settings of ``hydra.launcher``.
        job_overrides: The overrides of each job.
        first: The number of the first job.
        config: The configuration of the command.
        context: Hydra's loader of configurations.
        task: The function of a job.

    Raises:
        ValueError: If the cluster refuses the jobs, or cannot be found.
    """
    launch = {"slurm": _launch_on_slurm, "ray": _launch_on_ray}[engine]
    parts = {"config": config, "hydra_context": context, "task_function": task}
    try:
        results = launch(settings, parts, job_overrides, first)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expected a cluster that takes the jobs of hydra.launcher, got an error: {reason}"
        ) from error
    for overrides, result in zip(job_overrides, results, strict=True):
        if isinstance(result._return_value, _JobLost):
            result.overrides = filter_overrides(overrides)
            _record_loss(list(overrides), str(result._return_value), config, context)
    return results


def _launch_on_slurm(
    settings: Mapping[str, Any],
    parts: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    import submitit
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    launcher = SlurmLauncher(**settings)
    launcher.setup(**parts)
    with _keep_losses(submitit.Job, "results", lambda lost: [lost]):
        return list(launcher.launch(job_overrides, first))


def _launch_on_ray(
    settings: Mapping[str, Any],
    parts: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    import ray
    from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray
    from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher

    launcher = RayLauncher(**settings)
    launcher.setup(**parts)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    start_ray(launcher.ray_cfg.init)
    # Ray sets its own.
    for number, handler in handlers.items():
        signal.signal(number, handler)
    with _keep_losses(ray, "get", lambda lost: lost):
        return list(launcher.launch(job_overrides, first))


@contextmanager
def _keep_losses(owner: Any, name: str, wrap: Callable[[JobReturn], Any]) -> Iterator[None]:
    """Lets a function return a failed result instead of raising.

    The launchers collect the results one after another, and an error would hide the later ones.
    """
    original = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return original(*arguments, **named)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return wrap(JobReturn(status=JobStatus.FAILED, _return_value=_JobLost(reason)))

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _record_loss(
    overrides: list[str], reason: str, config: DictConfig, context: HydraContext
) -> None:
    """Adds a job without a result to the journal."""
    job = context.config_loader.load_sweep_config(config, overrides)
    folder = Path(job.hydra.sweep.dir, str(job.hydra.sweep.subdir)).absolute()
    state = job_status.read_state(folder)
    if state == "finished":
        return
    words = filter_overrides(overrides)
    place = f"out={configuration.quote_value(str(folder))}"
    journal.add_entry(
        journal.Entry(
            str(folder),
            shlex.join(words),
            "elsewhere" if state == "running" else "failed",
            reason,
            shlex.join(["pyro-vae", *words, "hydra.mode=RUN", place, "resume=true"]),
        )
    )
