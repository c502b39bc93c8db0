"""The command ``pyro-vae``. PyTorch is imported where a job begins, so that help is quick."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pyro_vae.config import APP
from pyro_vae.console import commands
from pyro_vae.run.folder import check_out
from pyro_vae.sweeps import job_id, journal
from pyro_vae.sweeps.job import alone, continuation, job

__all__ = ["main"]

# Before Hydra composes anything, in each process that imports the command.
job_id.register()

_SAY = [lambda: commands.AGAIN]
"""Says how to continue after an interruption."""


@hydra.main(version_base="1.3", config_path=str(APP), config_name="pyro_vae")
def _application(cfg: DictConfig) -> float:
    """Runs one job, and returns its held-out log evidence in nats per datum."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return job(cfg)
    return _alone(cfg)


@commands.pass_errors
def _alone(cfg: DictConfig) -> float:
    check_out(cfg)
    _SAY[0] = continuation(cfg)
    return alone(cfg)


def _run() -> int:
    commands.check_options("pyro-vae")
    try:
        _application()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _command() -> int:
    """Runs the command, and after a sweep shows the outcome of its jobs."""
    try:
        code = commands.show_errors(_run, continuation=lambda: _SAY[0]())
        return commands.show_errors(lambda: journal.close(code))
    except KeyboardInterrupt:
        journal.forget()
        raise
    finally:
        journal.remove_unused()


def main() -> None:
    """Runs the command, and exits with its code."""
    sys.exit(commands.stop_at_signals(_command, program="pyro-vae", continuation=lambda: _SAY[0]()))


if __name__ == "__main__":
    main()
