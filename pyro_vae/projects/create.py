"""Writes a new project from the template."""

import importlib.metadata
import keyword
import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

__all__ = ["create_project"]

_TEMPLATE = Path(__file__).parent / "template"
_NAME = "my_project"
"""The name of the project in the template."""


def create_project(folder: Path | str) -> Path:
    """Writes a project with a prior, an encoder, a data set and an experiment.

    The name of the folder is that of the project and of its package. The files are written all or
    not at all.

    Arguments:
        folder: A folder that is missing or empty.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder has files, or its name is not possible for a new package.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = create_project(f"{parent}/my_study")
        ...     sorted(path.name for path in folder.iterdir())
        ['README.md', 'my_study', 'pyproject.toml', 'tests']
    """
    target = Path(os.path.abspath(Path(folder).expanduser()))
    if not str(folder).strip() or target == Path.cwd():
        raise ValueError(f"Expected FOLDER to name a new folder, got '{folder}'")
    _check_name(target)
    if not target.parent.is_dir():
        raise ValueError(
            f"Expected FOLDER in a folder that exists, got '{folder}': create '{target.parent}' "
            f"first"
        )
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        kind = "a folder with files" if target.is_dir() else "a file"
        raise ValueError(f"Expected FOLDER to be a new folder, got '{folder}', which is {kind}")
    with tempfile.TemporaryDirectory(prefix=".pyro-vae-init-", dir=target.parent) as scratch:
        copy = Path(scratch, target.name)
        _fill_template(copy, target.name)
        # An empty folder is replaced.
        copy.rename(target)
    return target


def _check_name(target: Path) -> None:
    """Raises a ``ValueError`` unless a project and its package can have the name of a folder."""
    name = target.name
    expected = "Expected FOLDER to have the name of a new Python package, as in my_project"
    # The name of a distribution ends in a letter or digit.
    if not re.fullmatch(r"[A-Za-z](\w*[A-Za-z0-9])?", name, re.ASCII):
        other = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
        hint = f": use '{other}'" if other[:1].isalpha() else ""
        raise ValueError(f"{expected}, got '{name}'{hint}")
    if keyword.iskeyword(name) or name == "tests":
        kind = "the folder of the tests" if name == "tests" else "a keyword of Python"
        raise ValueError(f"{expected}, got '{name}', which is {kind}")
    spec = find_spec(name)
    if spec is not None and str(target) not in (spec.submodule_search_locations or []):
        raise ValueError(f"{expected}, got '{name}', which is an installed module")
    for distribution in importlib.metadata.distributions(name=name):
        is_project = bool(distribution.entry_points.select(group="pyro_vae.conf"))
        remedy = f", or pip uninstall {name} if it is gone" if is_project else ""
        raise ValueError(
            f"{expected}, got '{name}', which is an installed distribution: choose another "
            f"name{remedy}"
        )


def _fill_template(copy: Path, name: str) -> None:
    """Copies the template, with the name of the project in paths and texts."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_TEMPLATE, copy, ignore=ignored, copy_function=shutil.copyfile)
    for path in sorted(copy.rglob("*"), reverse=True):
        if path.is_file():
            path.write_text(path.read_text("utf-8").replace(_NAME, name), "utf-8")
        if _NAME in path.name:
            path.rename(path.with_name(path.name.replace(_NAME, name)))
