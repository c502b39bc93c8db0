"""Finds and composes the configuration, and instantiates objects from it."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

__all__ = [
    "APP",
    "build",
    "compose",
    "find_folder",
    "find_projects",
    "format_override",
    "quote_value",
    "resolve_references",
]


def find_folder() -> Path:
    """Returns the folder of the configuration, in a checkout or an installed package."""
    package = Path(__file__).parent
    return next(p for p in (package / "conf", package.parent / "conf") if (p / "app").is_dir())


APP = find_folder() / "app"
"""The folder of the command's configuration."""


def find_projects() -> dict[str, Path]:
    """Returns the configuration folder of each installed project, by its dotted name.

    A project names its folder in the group ``pyro_vae.conf`` of its entry points, for example
    ``my_project.conf``. Its modules are not imported.

    Raises:
        ValueError: If a folder is missing, or one of its files has the path of a file of this
            package or of another project.
    """
    folders: dict[str, Path] = {}
    for point in sorted(entry_points(group="pyro_vae.conf"), key=lambda point: point.value):
        folder = _locate_project(point)
        if folder in folders.values():
            continue
        others = [("pyro_vae", APP), ("pyro_vae", APP.parent / "share"), *folders.items()]
        for file in sorted(folder.rglob("*.yaml")):
            path = file.relative_to(folder)
            for other, root in others:
                if (root / path).is_file():
                    raise ValueError(
                        f"Expected each option in one package only, got '{path}' in {other} and in "
                        f"{point.value}: rename '{file}'"
                    )
        folders[point.value] = folder
    return folders


def _locate_project(point: EntryPoint) -> Path:
    """Returns the folder that an entry point names as ``package.folder``."""
    package, _, path = point.value.partition(".")
    # A parent of the folder would be imported if it were looked up by its whole name.
    spec = find_spec(package) if package.isidentifier() else None
    for parent in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(parent, *path.split("."))
        if path and folder.is_dir():
            return folder
    name = point.dist.name if point.dist else point.name
    raise ValueError(
        f"Expected the project {name} to have the folder {point.value}, which its entry point "
        f"pyro_vae.conf names, got none: install the project again, or pip uninstall {name}"
    )


def compose(overrides: list[str] | None = None) -> DictConfig:
    """Composes the configuration of a run, like the command, with installed projects.

    A program that uses Hydra itself may call it, because Hydra's global state does not change.

    Arguments:
        overrides: As on the command line. Without ``out``, the run has a new folder,
            ``outputs/DATE``, as with the command.

    Raises:
        ValueError: If ``overrides`` is not a list of strings, or as of :func:`find_projects`.

    Example:
        >>> compose(["vae/prior=vamp", "out=."]).vae.prior.components
        50
        >>> compose().out.startswith("outputs/")
        True
    """
    import hydra

    listed = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if overrides is not None and not (listed and all(isinstance(o, str) for o in overrides)):
        raise ValueError(f"Expected overrides to be a list of strings, got {overrides!r}")
    with _isolate_hydra(), hydra.initialize_config_dir(str(APP), version_base="1.3"):
        cfg = hydra.compose("pyro_vae", list(overrides or []), return_hydra_config=True)
        stored: Any = OmegaConf.to_container(cfg)
        if stored["out"] == "${hydra:runtime.output_dir}":
            # Hydra defines that folder only while it runs a job.
            cfg.out = cfg.hydra.run.dir
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@contextmanager
def _isolate_hydra() -> Iterator[None]:
    """Clears Hydra's global state within the context, and restores it after it."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobRuntime
    from hydra.version import VersionBase

    saved: dict[type, Any] = {
        kind: Singleton._instances.pop(kind, None)
        for kind in (GlobalHydra, JobRuntime, VersionBase)
    }
    try:
        yield
    finally:
        for kind, instance in saved.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance


def format_override(name: str, value: str | Sequence[str]) -> str:
    """Returns an override with a string, or a list of strings, in the syntax of a shell.

    Example:
        >>> print(format_override("data.columns", ["height", "width (cm)"]))
        'data.columns=[height,"width (cm)"]'
    """
    text = (
        quote_value(value) if isinstance(value, str) else f"[{','.join(map(quote_value, value))}]"
    )
    return shlex.quote(f"{name}={text}")


def quote_value(value: str) -> str:
    """Returns a string in Hydra's syntax, in quotes if necessary.

    Example:
        >>> quote_value("height"), quote_value("width (cm)")
        ('height', '"width (cm)"')
    """
    # A text with a leading dot may be a number.
    unquoted = re.fullmatch(r"(?!\.\d)[A-Za-z_/.][\w./-]*", value, re.ASCII)
    if unquoted and value.lower().lstrip("+-") not in ("null", "true", "false", "nan", "inf"):
        return value
    mark = "'" if '"' in value and "'" not in value else '"'
    value = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value)
    # Hydra escapes by a backslash only before a quote or at the end.
    text = re.sub(rf"(\\*)({mark}|$)", lambda m: m[1] * 2 + (f"\\{mark}" if m[2] else ""), value)
    return f"{mark}{text}{mark}"


def resolve_references(cfg: DictConfig) -> DictConfig:
    """Returns a copy of a configuration without references."""
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[return-value]


def build(node: Any, **arguments: Any) -> Any:
    """Instantiates the object that a node of the configuration describes.

    Arguments:
        node: A node with a ``_target_``.
        arguments: Further arguments of the target.

    Raises:
        ValueError: The target's error, without Hydra's wrapper.
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
