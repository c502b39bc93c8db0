"""The command ``pyro-vae``. PyTorch is imported where a job begins, so that help is quick."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pyro_vae.config import APP
from pyro_vae.sweeps import identity, journal
from pyro_vae.sweeps.job import alone, job

__all__ = ["main"]

# Before Hydra composes anything, in each process that imports the command.
identity.register()


@hydra.main(version_base="1.3", config_path=str(APP), config_name="pyro_vae")
def application(cfg: DictConfig) -> float:
    """Runs one job, and returns its held-out log evidence in nats per datum."""
    try:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return job(cfg)
        return alone(cfg)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # A user's mistake is told by its message; the way to it is ours, not theirs.
        raise error.with_traceback(None) from None


def main() -> None:
    """Runs the command, and after a sweep tells what became of its jobs."""
    code = 0
    try:
        application()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        code = 130
    sys.exit(journal.close(code))


if __name__ == "__main__":
    main()
