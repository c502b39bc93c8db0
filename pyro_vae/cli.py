"""The command ``pyro-vae``. PyTorch is imported where a job begins, so that help is quick."""

import os

import hydra
from omegaconf import DictConfig

from pyro_vae.config import APP

__all__ = ["main"]


@hydra.main(version_base="1.3", config_path=str(APP), config_name="pyro_vae")
def main(cfg: DictConfig) -> float:
    """Runs one job, and returns its held-out log evidence in nats per datum."""
    from pyro_vae.run import run

    try:
        return run(cfg)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # A user's mistake is told by its message; the way to it is ours, not theirs.
        raise error.with_traceback(None) from None


if __name__ == "__main__":
    main()
