"""Runs the jobs of a sweep at the same time, each on a device that it holds."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import (
    JobReturn,
    JobStatus,
    configure_log,
    filter_overrides,
    run_job,
    setup_globals,
)
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from pyro_vae.sweeps.slots import Slots
from pyro_vae.sweeps.workers import can_fork, run_tasks

__all__ = ["launch_jobs"]

_log = logging.getLogger(__name__)


def launch_jobs(
    job_overrides: Sequence[Sequence[str]],
    first: int,
    *,
    config: DictConfig,
    context: HydraContext,
    task: TaskFunction,
    devices: Any,
    jobs_per_device: Any,
    folder: Any,
) -> list[JobReturn]:
    """Runs jobs, as many at a time as there are slots.

    Arguments:
        job_overrides: The overrides of each job.
        first: The number of the first job.
        config: The configuration of the command.
        context: Hydra's loader of configurations.
        task: The function of a job.
        devices: As for :class:`pyro_vae.sweeps.slots.Slots`, like the following.
        jobs_per_device: The number of jobs on each device.
        folder: The folder of the locks.

    Raises:
        ValueError: If a setting is wrong, or an override sets the device.
    """
    slots = Slots(devices, jobs_per_device, folder, threads=config.get("threads"))
    for word in (word for overrides in job_overrides for word in overrides):
        if word.lstrip("+").startswith("device="):
            raise ValueError(
                f"Expected hydra.launcher.devices to choose the device for hydra/launcher=slots, "
                f"got {word}"
            )
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)

    def run(number: int) -> JobReturn:
        overrides = list(job_overrides[number])
        with slots.hold() as device:
            _log.info(
                "#%d on %s: %s", first + number, device, " ".join(filter_overrides(overrides))
            )
            job = context.config_loader.load_sweep_config(config, [*overrides, f"device={device}"])
            with open_dict(job):
                job.hydra.job.id, job.hydra.job.num = str(first + number), first + number
            result = run_job(
                hydra_context=context,
                task_function=task,
                config=job,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        return result

    workers = min(len(slots), len(job_overrides))
    if workers == 1:
        return [run(number) for number in range(len(job_overrides))]
    if not can_fork():
        raise ValueError(
            "Expected a system that forks processes for hydra/launcher=slots, got one that does "
            "not: use hydra/launcher=joblib"
        )
    _log.info("%d jobs, %d at a time", len(job_overrides), workers)
    return run_tasks(run, len(job_overrides), workers, _describe_loss)


def _describe_loss(number: int, code: int) -> JobReturn:
    """Returns the result of a job whose process was killed."""
    reason = f"the process of job {number} ended with code {code}"
    return JobReturn(status=JobStatus.FAILED, _return_value=RuntimeError(reason))
