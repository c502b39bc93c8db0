"""Describes errors of Hydra, OmegaConf and yaml in one line, with a remedy."""

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

from pyro_vae.config import find_folder, find_projects, format_override, quote_value

__all__ = ["describe_error"]

_HELP = "--help lists all settings"
_MOST = 12
"""The largest number of settings that a message lists."""
_EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""The extra of each launcher of another package."""
_INSTANTIATE_KEYS = ("_target_", "_partial_")


def describe_error(error: BaseException) -> str | None:
    """Describes an error of Hydra, OmegaConf or yaml in one line, or returns ``None``."""
    if isinstance(error, MissingConfigException):
        return _describe_missing(error)
    if isinstance(error, OverrideParseException):
        return _describe_unreadable(error)
    if isinstance(error, InstantiationException):
        return _describe_not_built(str(error), error.__cause__)
    if isinstance(error, TypeError):
        return _describe_wrong_call(error)
    if isinstance(error, ConfigCompositionException):
        return _describe_not_composed(error)
    if isinstance(error, OmegaConfBaseException):
        return _describe_not_resolved(error)
    if isinstance(error, yaml.YAMLError):
        return _describe_not_yaml(error)
    return _one_line(str(error)) if isinstance(error, HydraException) else None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _describe_missing(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if group == "hydra/launcher" and option in _EXTRAS:
        extra = _EXTRAS[option]
        return (
            f"Expected the extra {extra} for the launcher {option}, got none: pip install "
            f"'pyro_vae[{extra}]'"
        )
    if error.options is None:
        return _one_line(str(error).partition("\n")[0])
    choices = ", ".join(error.options) or "nothing, as the group is empty"
    return f"Expected {group} to be one of {choices}, got {option!r}"


def _describe_unreadable(error: OverrideParseException) -> str:
    key, equals, value = error.override.partition("=")
    if not equals:
        return (
            f"Expected settings as KEY=VALUE, got {error.override!r}: {_HELP}; put a value with "
            f"spaces in quotes, as in 'data.path=\"my file.csv\"'"
        )
    if match := re.search(r"Unknown function .*\n.*", error.message):
        reason = _one_line(match[0])
        return f"Expected {key} to be a value that Hydra can read, got {value!r}: {reason}"
    if not key.strip(" "):
        return f"Expected settings as KEY=VALUE, got {error.override!r}: {_HELP}"
    for other in (_quote_parts(value), quote_value(value)):
        if other is not None and other != value and _is_readable(key, other):
            return (
                f"Expected {key} to be a value that Hydra can read, got {value!r}: put it in "
                f"quotes, {shlex.quote(f'{key}={other}')}"
            )
    return (
        f"Expected a setting that Hydra can read, got {error.override!r}: write names in ASCII, "
        f"complete the value, and close brackets and quotes"
    )


def _quote_parts(value: str) -> str | None:
    """Returns a flat list with each item quoted as needed, or ``None`` for another value."""
    inside = re.fullmatch(r"\[([^\[\]{}'\"]*)\]", value)
    return None if inside is None else f"[{','.join(map(quote_value, inside[1].split(',')))}]"


def _is_readable(key: str, value: str) -> bool:
    # Quotes cannot repair a value with open brackets, or a list that ends too early.
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


def _describe_not_built(text: str, cause: BaseException | None = None) -> str:
    """Describes a part that cannot be built, with its path in the configuration.

    Arguments:
        text: The message of Hydra.
        cause: The error of an import, which the message does not name.
    """
    match = re.search(r"full_key: (\S+)", text)
    path = match[1] if match else "it"
    text = text.partition("\nfull_key")[0]
    if match := re.match(r"Error locating target '(.*?)'", text):
        return (
            f"Expected {path}._target_ to be a class or function that can be imported, got "
            f"{match[1]!r}{_describe_import_error(cause)}"
        )
    call = re.match(r"Error in call to target '(.*?)':\s*\w+\((['\"])(.*)\2\)$", text, re.DOTALL)
    if call:
        reason = re.sub(r"^\S*\(\) ", "", call[3])
        return f"Expected {path} to be settings of {call[1]}, {_one_line(reason)}"
    return _one_line(text)


def _describe_import_error(error: BaseException | None) -> str:
    """Returns the first error of an import, in parentheses."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    if error is None or isinstance(error, InstantiationException):
        return ""
    return f" ({type(error).__name__}: {_one_line(str(error))})"


def _describe_wrong_call(error: TypeError) -> str | None:
    """Describes a wrong call of a target, which Hydra 1.4 marks by a note."""
    note = "".join(getattr(error, "__notes__", ()))
    match = re.fullmatch(r"full_key: (\S+)", note)
    reason = re.sub(r"^\S*\(\) ", "", _one_line(str(error)))
    return None if match is None else f"Expected other settings of {match[1]}, {reason}"


def _describe_not_composed(error: ConfigCompositionException) -> str:
    text, cause = str(error), error.__cause__
    if match := re.match(r"Ambiguous value for argument '(.*?)=(.*)'\n1\. ", text, re.DOTALL):
        whole = format_override(match[1], match[2])
        as_list = shlex.quote(f"{match[1]}=[{match[2]}]")
        return (
            f"Expected one value for {match[1]}, got '{match[2]}': add -m for one job per value, "
            f"or write a list as {as_list} and text as {whole}"
        )
    if match := re.match(r"Sweep parameters '(.*)' requires --multirun", text, re.DOTALL):
        return f"Expected one value, got '{match[1]}': add -m for one job per value"
    if text.startswith("Could not override") and isinstance(cause, OmegaConfBaseException):
        return _describe_unknown_setting(text, cause)
    if match := re.match(r"Error merging override (.*?)=(.*)", text, re.DOTALL):
        reason = "" if cause is None else f": {_one_line(str(cause).partition(chr(10))[0])}"
        return f"Expected {match[1]} to be of a different type, got {match[2]!r}{reason}"
    return _one_line(text)


def _describe_unknown_setting(text: str, cause: OmegaConfBaseException) -> str:
    """Describes an unknown setting, with the settings of similar names."""
    match, advice = re.match(r"Could not override '(.*)'\.", text), re.search(r"use (\+.*)", text)
    key, addition = match[1] if match else "", shlex.quote(advice[1] if advice else "")
    parent_key, parent = key.rpartition(".")[0], cause.parent_node
    line = f"Expected a setting that exists, got {key!r}"
    root = None if parent is None else parent._get_root()
    if not isinstance(root, DictConfig) or not isinstance(parent, DictConfig):
        return f"{line}: {_HELP}"
    if parent_key and not len(parent):
        if parent_key in _list_groups():
            return f"{line}: choose an option of {parent_key} first, as in {parent_key}=NAME"
        return f"{line}: {addition} adds it"
    if similar := _find_similar(key, _list_groups(), [*_list_settings(root)]):
        return f"{line}: did you mean {' or '.join(similar)}? ({_HELP})"
    names = [str(name) for name in parent if name not in (*_INSTANTIATE_KEYS, "hydra")]
    target = parent.get("_target_")
    if not parent_key or len(names) > _MOST:
        return f"{line}: {_HELP}"
    line = f"{line}: {parent_key} has {', '.join(names) or 'none'}"
    if target is None or parent_key.startswith("hydra"):
        return line
    return f"{line}; {addition} adds an argument of {target}"


def _find_similar(key: str, groups: list[str], settings: list[str]) -> list[str]:
    """Returns at most three names that are similar to a mistyped one."""
    last = re.split(r"[./]", key)[-1]
    names = groups if "/" in key else settings if "." in key else [*groups, *settings]
    same = [name for name in [*groups, *settings] if re.split(r"[./]", name)[-1] == last]
    close = difflib.get_close_matches(key, names, n=2, cutoff=0.8)
    return ([name for name in same if name != key] or close)[:3]


def _list_settings(node: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings below a node, except those of Hydra."""
    for name in node if isinstance(node, DictConfig) and not node._is_none() else ():
        path = f"{prefix}.{name!s}" if prefix else str(name)
        if path == "hydra" or name in _INSTANTIATE_KEYS:
            continue
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _list_settings(child, path)
        else:
            yield path


def _list_groups() -> list[str]:
    """Returns the names of all config groups."""
    roots = [find_folder() / "app", find_folder() / "share", *find_projects().values()]
    return sorted(
        {
            str(path.relative_to(root).as_posix())
            for root in roots
            for path in root.rglob("*")
            if path.is_dir()
        }
    )


def _describe_not_resolved(error: OmegaConfBaseException) -> str:
    text = _one_line(str(error).partition("\n")[0])
    key = None if error.full_key is None else str(error.full_key)
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and key:
        return f"Expected the configuration to have the setting {key!r}, which is missing"
    return (
        f"Expected {key} to have a value, got an error: {text}"
        if key
        else f"Expected references that can be resolved, got an error: {text}"
    )


def _describe_not_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return _one_line(str(error))
    problem = _one_line(getattr(error, "problem", None) or "an error")
    return (
        f"Expected yaml in '{Path(mark.name)}', got an error in line {mark.line + 1}, column "
        f"{mark.column + 1}: {problem}"
    )
