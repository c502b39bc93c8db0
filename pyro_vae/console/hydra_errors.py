"""Errors of Hydra, OmegaConf and yaml in one line that says how to mend a command line."""

import difflib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pyro_vae.config import folder, override, quote

__all__ = ["describe"]

_HELP = "--help lists all settings"
_MOST = 12
"""The largest number of settings that a message lists."""
_OWN = ("_target_", "_partial_")


def describe(error: BaseException) -> str | None:
    """Returns one line on an error of Hydra, OmegaConf or yaml, or ``None`` for another error."""
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, InstantiationException):
        return _not_built(str(error))
    if isinstance(error, ConfigCompositionException):
        return _not_composed(error)
    if isinstance(error, OmegaConfBaseException):
        return _not_resolved(error)
    if isinstance(error, yaml.YAMLError):
        return _not_yaml(error)
    return _joined(str(error)) if isinstance(error, HydraException) else None


def _joined(text: str) -> str:
    return " ".join(text.split())


def _missing(error: MissingConfigException) -> str:
    if error.options is None:
        return _joined(str(error).partition("\n")[0])
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    choices = ", ".join(error.options) or "nothing, as the group is empty"
    return f"Expected {group} to be one of {choices}, got {option!r}"


def _unreadable(error: OverrideParseException) -> str:
    key, equals, value = error.override.partition("=")
    if not equals:
        return (
            f"Expected settings as KEY=VALUE, got {error.override!r}: {_HELP}; put a value with "
            f"spaces in quotes, as in 'data.path=\"my file.csv\"'"
        )
    if found := re.search(r"Unknown function .*\n.*", error.message):
        return (
            f"Expected {key} to be a value that Hydra can read, got {value!r}: {_joined(found[0])}"
        )
    if not key.strip(" "):
        return f"Expected settings as KEY=VALUE, got {error.override!r}: {_HELP}"
    for other in (_quote_parts(value), quote(value)):
        if other is not None and other != value and _is_readable(key, other):
            return (
                f"Expected {key} to be a value that Hydra can read, got {value!r}: put it in "
                f"quotes, {shlex.quote(f'{key}={other}')}"
            )
    return (
        f"Expected a setting that Hydra can read, got {error.override!r}: names are ASCII, "
        f"values end, and brackets and quotes close"
    )


def _quote_parts(value: str) -> str | None:
    """Returns a flat list with each part in the quotes that it needs."""
    inside = re.fullmatch(r"\[([^\[\]{}'\"]*)\]", value)
    return None if inside is None else f"[{','.join(map(quote, inside[1].split(',')))}]"


def _is_readable(key: str, value: str) -> bool:
    # Quotes do not mend a value whose brackets are not closed, or a list that ends too early.
    if (
        value[1:2] in ("[", "{")
        or re.match(r"['\"]\w+\(", value)
        or "${" in value
        or value[-2:-1] == ","
    ):
        return False
    try:
        OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return False
    return True


def _not_built(text: str) -> str:
    """Returns one line on parts that cannot be built, with the place in the configuration."""
    named = re.search(r"full_key: (\S+)", text)
    place = named[1] if named else "it"
    text = text.partition("\nfull_key")[0]
    if found := re.match(r"Error locating target '(.*?)'", text):
        return (
            f"Expected {place}._target_ to be a class or function that can be imported, got "
            f"{found[1]!r}"
        )
    call = re.match(r"Error in call to target '(.*?)':\s*\w+\((['\"])(.*)\2\)$", text, re.DOTALL)
    if call:
        reason = re.sub(r"^\S*\(\) ", "", call[3])
        return f"Expected {place} to be settings of {call[1]}, {_joined(reason)}"
    return _joined(text)


def _not_composed(error: ConfigCompositionException) -> str:
    text, cause = str(error), error.__cause__
    if found := re.match(r"Ambiguous value for argument '(.*?)=(.*)'\n1\. ", text, re.DOTALL):
        whole = override(found[1], found[2])
        as_list = shlex.quote(f"{found[1]}=[{found[2]}]")
        return (
            f"Expected one value for {found[1]}, got '{found[2]}': add -m for a job each, or write "
            f"a list as {as_list} and text as {whole}"
        )
    if found := re.match(r"Sweep parameters '(.*)' requires --multirun", text, re.DOTALL):
        return f"Expected one value, got '{found[1]}': add -m for a job each"
    if text.startswith("Could not override") and isinstance(cause, OmegaConfBaseException):
        return _unknown_setting(text, cause)
    if found := re.match(r"Error merging override (.*?)=(.*)", text, re.DOTALL):
        reason = "" if cause is None else f": {_joined(str(cause).partition(chr(10))[0])}"
        return f"Expected {found[1]} to be of another type, got {found[2]!r}{reason}"
    return _joined(text)


def _unknown_setting(text: str, cause: OmegaConfBaseException) -> str:
    """Returns one line on a setting that does not exist, with the settings of similar names."""
    named, advice = re.match(r"Could not override '(.*)'\.", text), re.search(r"use (\+.*)", text)
    key, added = named[1] if named else "", shlex.quote(advice[1] if advice else "")
    place, parent = key.rpartition(".")[0], cause.parent_node
    line = f"Expected a setting that exists, got {key!r}"
    root = None if parent is None else parent._get_root()
    if not isinstance(root, DictConfig) or not isinstance(parent, DictConfig):
        return f"{line}: {_HELP}"
    if place and not len(parent):
        if place in _groups():
            return f"{line}: choose an option of {place} first, as in {place}=NAME"
        return f"{line}: {added} adds it"
    if similar := _similar(key, _groups(), [*_settings(root)]):
        return f"{line}: is {' or '.join(similar)} meant? ({_HELP})"
    names = [str(name) for name in parent if name not in (*_OWN, "hydra")]
    target = parent.get("_target_")
    if not place or len(names) > _MOST:
        return f"{line}: {_HELP}"
    line = f"{line}: {place} has {', '.join(names) or 'none'}"
    if target is None or place.startswith("hydra"):
        return line
    return f"{line}; {added} adds an argument of {target}"


def _similar(key: str, groups: list[str], settings: list[str]) -> list[str]:
    """Returns at most three names that are similar to a mistyped one."""
    last = re.split(r"[./]", key)[-1]
    names = groups if "/" in key else settings if "." in key else [*groups, *settings]
    same = [name for name in [*groups, *settings] if re.split(r"[./]", name)[-1] == last]
    close = difflib.get_close_matches(key, names, n=2, cutoff=0.8)
    return ([name for name in same if name != key] or close)[:3]


def _settings(node: Any, place: str = "") -> Iterator[str]:
    """Yields the names of all settings below a node, without Hydra's own."""
    for name in node if isinstance(node, DictConfig) and not node._is_none() else ():
        path = f"{place}.{name!s}" if place else str(name)
        if path == "hydra" or name in _OWN:
            continue
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _settings(child, path)
        else:
            yield path


def _groups() -> list[str]:
    """Returns the names of the groups of which a command line chooses options."""
    roots = [folder() / "app", folder() / "share"]
    return sorted(
        str(path.relative_to(root).as_posix())
        for root in roots
        for path in root.rglob("*")
        if path.is_dir()
    )


def _not_resolved(error: OmegaConfBaseException) -> str:
    text = _joined(str(error).partition("\n")[0])
    key = None if error.full_key is None else str(error.full_key)
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and key:
        return f"Expected the configuration to have the setting {key!r}, which is missing"
    return (
        f"Expected {key} to have a value, got an error: {text}"
        if key
        else f"Expected references that can be resolved, got an error: {text}"
    )


def _not_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return _joined(str(error))
    problem = _joined(getattr(error, "problem", None) or "an error")
    return (
        f"Expected yaml in '{Path(mark.name)}', got an error in line {mark.line + 1}, column "
        f"{mark.column + 1}: {problem}"
    )
