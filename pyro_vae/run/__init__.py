"""One run: builds, trains and evaluates what a configuration describes, and writes its folder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae.run.experiment import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    # The console commands import the modules on the folder of a run, which need no PyTorch.
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyro_vae.run.experiment import run

    return run
