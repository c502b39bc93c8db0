"""From yaml to objects: where the configuration lies, and the one call of ``instantiate``."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

__all__ = ["APP", "build", "compose", "folder", "override", "quote", "resolved"]


def folder() -> Path:
    """Returns the folder of the configuration, in a checkout or installed."""
    package = Path(__file__).parent
    return next(p for p in (package / "conf", package.parent / "conf") if (p / "app").is_dir())


APP = folder() / "app"
"""The folder of the command's own configuration."""


def compose(overrides: list[str] | None = None) -> DictConfig:
    """Composes the configuration of a run, as the command does.

    A program that uses Hydra itself may call it: Hydra's global state stays as it is.

    Arguments:
        overrides: As on the command line. ``out`` has to be among them, because the command's
            default is known only while Hydra runs a job.

    Raises:
        ValueError: If it is not a list of strings.

    Example:
        >>> compose(["vae/prior=vamp", "out=."]).vae.prior.components
        50
    """
    import hydra

    listed = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if overrides is not None and not (listed and all(isinstance(o, str) for o in overrides)):
        raise ValueError(f"Expected overrides to be a list of strings, got {overrides!r}")
    with _own_hydra(), hydra.initialize_config_dir(str(APP), version_base="1.3"):
        return hydra.compose("pyro_vae", overrides=list(overrides or []))


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Sets Hydra's global state aside, so that a program that uses Hydra keeps its own."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobRuntime
    from hydra.version import VersionBase

    kept: dict[type, Any] = {
        kind: Singleton._instances.pop(kind, None)
        for kind in (GlobalHydra, JobRuntime, VersionBase)
    }
    try:
        yield
    finally:
        for kind, instance in kept.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance


def override(name: str, value: str | Sequence[str]) -> str:
    """Returns a setting of text, or of a list of texts, as it is typed in a shell.

    Example:
        >>> print(override("out", "run"), override("data.columns", ["height", "width (cm)"]))
        out=run 'data.columns=[height,"width (cm)"]'
    """
    text = quote(value) if isinstance(value, str) else f"[{','.join(map(quote, value))}]"
    return shlex.quote(f"{name}={text}")


def quote(value: str) -> str:
    """Returns text as Hydra reads it, in quotes if it needs them.

    Example:
        >>> quote("height"), quote("width (cm)")
        ('height', '"width (cm)"')
    """
    # A number may begin with a dot.
    plain = re.fullmatch(r"(?!\.\d)[A-Za-z_/.][\w./-]*", value, re.ASCII)
    if plain and value.lower().lstrip("+-") not in ("null", "true", "false", "nan", "inf"):
        return value
    mark = "'" if '"' in value and "'" not in value else '"'
    value = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value)
    # Hydra reads a backslash as such, unless it stands before a quote or at the end.
    text = re.sub(rf"(\\*)({mark}|$)", lambda m: m[1] * 2 + (f"\\{mark}" if m[2] else ""), value)
    return f"{mark}{text}{mark}"


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

    if not isinstance(node, (Mapping, DictConfig)):
        raise ValueError(f"Expected settings with a _target_, got {node!r}")
    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
