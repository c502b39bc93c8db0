"""From yaml to objects: where the configuration lies, and the one call of ``instantiate``."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

__all__ = ["APP", "build", "compose", "folder", "resolved"]


def folder() -> Path:
    """Returns the folder of the configuration, in a checkout or installed."""
    package = Path(__file__).parent
    return next(p for p in (package / "conf", package.parent / "conf") if (p / "app").is_dir())


APP = folder() / "app"
"""The folder of the command's own configuration."""


def compose(overrides: list[str] | None = None) -> DictConfig:
    """Composes the configuration of a run, as the command does.

    Arguments:
        overrides: As on the command line. ``out`` has to be among them, because the command's
            default is known only while Hydra runs a job.

    Example:
        >>> compose(["vae/prior=vamp", "out=."]).vae.prior.components
        50
    """
    import hydra

    with hydra.initialize_config_dir(str(APP), version_base="1.3"):
        return hydra.compose("pyro_vae", overrides=overrides or [])


def resolved(cfg: DictConfig) -> DictConfig:
    """Returns a copy in which nothing refers to anything else any more."""
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[return-value]


def build(node: Any, **arguments: Any) -> Any:
    """Makes what a part of the configuration describes.

    Arguments:
        node: A part with a ``_target_``.
        arguments: What the program adds to it.

    Raises:
        ValueError: The one that the target raised, without Hydra's frame around it.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
