"""The command ``pyro-vae``. PyTorch is imported when a job starts, so help is quick."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pyro_vae.config import APP
from pyro_vae.console import commands
from pyro_vae.run.folder import check_out
from pyro_vae.sweeps import job_id, journal
from pyro_vae.sweeps.job import build_continuation, run_job, run_single
from pyro_vae.trackers.protocol import PrunedError

__all__ = ["main"]

# Every process that imports the command needs the resolver before Hydra composes.
job_id.register_resolver()

_CONTINUATION = [lambda: commands.AGAIN]
"""Returns how to continue after an interruption."""


@hydra.main(version_base="1.3", config_path=str(APP), config_name="pyro_vae")
def _application(cfg: DictConfig) -> float:
    """Runs one job, and returns its held-out log evidence in nats per datum."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(cfg)
    return _run_single(cfg)


@commands.pass_errors
def _run_single(cfg: DictConfig) -> float:
    check_out(cfg)
    _CONTINUATION[0] = build_continuation(cfg)
    try:
        return run_single(cfg)
    except PrunedError as error:
        raise ValueError(f"The tracker ended the run early: {error}") from error


def _run_application() -> int:
    commands.prepare_options("pyro-vae")
    try:
        _application()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _command() -> int:
    """Runs the command, and after a sweep prints the outcome of its jobs."""
    try:
        code = commands.show_errors(_run_application, continuation=lambda: _CONTINUATION[0]())
        return commands.show_errors(lambda: journal.close_journal(code))
    except KeyboardInterrupt:
        journal.discard_journal()
        raise
    finally:
        journal.remove_unused_folders()


def main() -> None:
    """Runs the command, and exits with its code."""
    sys.exit(
        commands.stop_at_signals(
            _command, program="pyro-vae", continuation=lambda: _CONTINUATION[0]()
        )
    )


if __name__ == "__main__":
    main()
