"""One run: builds, trains and evaluates the VAE of a configuration, and writes its folder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae.run.experiment import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    # Imported late, because console commands import pyro_vae.run.folder without PyTorch.
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyro_vae.run.experiment import run

    return run
