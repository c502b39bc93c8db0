"""Reads untrusted yaml and JSON: plain values within limits, or a ``ValueError``."""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml  # type: ignore[import-untyped]

__all__ = ["parse_json", "read_bytes", "read_json", "read_yaml"]

_LARGEST = 4 * 2**20
"""The largest file that is read, in bytes."""

DEEPEST = 64
"""The deepest nesting of lists and mappings."""

MOST_VALUES = 200_000
"""The largest number of values in a yaml file."""

_LARGEST_INTEGER = 2**64
_LONGEST_NUMBER = 100

# The libyaml loader is 10x faster, but some builds of PyYAML lack it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_PREFIX = "tag:yaml.org,2002:"
_PATH = re.compile(_PREFIX + r"python/object/apply:pathlib(?:\._local)?\.(Posix|Windows|)Path")
"""The tag of a path, which OmegaConf writes for a ``pathlib.Path`` in a configuration."""


def read_json(path: Path | str, *, largest: int = _LARGEST) -> Any:
    """Returns the values in a JSON file: dict, list, str, int, float, bool and None.

    Arguments:
        path: The file.
        largest: The largest size that is read, in bytes.

    Raises:
        ValueError: If the file cannot be read, is not strict JSON, has a duplicate key, or exceeds
            a limit on size, depth or numbers.
    """
    content = read_bytes(path, largest=largest)
    try:
        return parse_json(content)
    except ValueError as error:
        raise _damaged_file_error(path, "JSON", error) from None


def parse_json(content: bytes | str, *, strict: bool = True) -> Any:
    """Returns the values of JSON: dict, list, str, int, float, bool and None.

    Arguments:
        content: The JSON, as bytes of UTF-8 or as text.
        strict: Whether NaN and infinity are refused.

    Raises:
        ValueError: If it is not JSON, has a duplicate key, or exceeds a limit on depth or numbers.
    """
    try:
        values = json.loads(
            _decode(content),
            object_pairs_hook=_build_object,
            parse_constant=_refuse_constant if strict else float,
            parse_int=_parse_integer,
            parse_float=_parse_float,
        )
    except RecursionError:
        raise ValueError(f"nesting deeper than {DEEPEST}") from None
    _check_depth(values)
    return values


def read_yaml(path: Path | str, *, largest: int = _LARGEST) -> Any:
    """Returns the values in a yaml file: dict, list, str, int, float, bool and None.

    Scalars are parsed as in OmegaConf. Anchors, aliases and tags are refused, except OmegaConf's
    tag for a path, which is read as a string.

    Arguments:
        path: The file.
        largest: The largest size that is read, in bytes.

    Raises:
        ValueError: If the file cannot be read, is not a single document of plain values, has a
            duplicate key, or exceeds a limit on size, depth, numbers or the count of values.
    """
    content = read_bytes(path, largest=largest)
    try:
        events = yaml.parse(_decode(content), Loader=_LOADER)
        return _Document(events).read_values()
    except (ValueError, yaml.YAMLError) as error:
        raise _damaged_file_error(path, "yaml", error) from None


def read_bytes(path: Path | str, *, largest: int | None = None) -> bytes:
    """Returns the content of a regular file.

    Arguments:
        path: The file.
        largest: The largest size that is read, in bytes; ``None``: any.

    Raises:
        ValueError: If the file is missing, not a regular file, or too large.
    """
    try:
        # Opening a pipe would otherwise block.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("something other than a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(-1 if largest is None else largest + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"Expected '{path}' to be a readable file, got {_one_line(reason)}"
        ) from None
    if largest is not None and len(content) > largest:
        raise ValueError(f"Expected '{path}' to have at most {largest} bytes, got more")
    return content


_BINARY = getattr(os, "O_BINARY", 0)


def _damaged_file_error(path: Path | str, kind: str, reason: object) -> ValueError:
    return ValueError(f"Expected '{path}' to hold {kind} of plain values, got {_one_line(reason)}")


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:500]


def _decode(content: bytes | str) -> str:
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("a NUL character")
    return text


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:30]!a} twice")
        values[key] = value
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is not JSON")


def _parse_integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER or abs(value := int(text)) >= _LARGEST_INTEGER:
        raise ValueError(f"the integer {text[:30]}..., of more than 64 bits")
    return value


def _parse_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:30]}, too large for double precision")
    return value


def _check_string(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"half of a surrogate pair in {text[:30]!a}") from None
    if "\0" in text:
        raise ValueError("a NUL character")
    return text


def _check_depth(values: Any) -> None:
    """Checks the depth of JSON, and its strings for invalid characters."""
    level, depth = [values], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"nesting deeper than {DEEPEST}")
        below = []
        for value in level:
            if isinstance(value, str):
                _check_string(value)
            elif isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
        level, depth = below, depth + 1


_KINDS = ("bool", "float", "int", "null")


class _Resolver(yaml.resolver.Resolver):
    """Resolves plain scalars as OmegaConf does: without dates, and with 1e-3 as a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _KINDS]
        for first, resolvers in yaml.resolver.Resolver.yaml_implicit_resolvers.items()
    }


_Resolver.add_implicit_resolver(
    f"{_PREFIX}float",
    re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class _Document:
    """Builds the only document of an event stream within the limits."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.events = events
        self.resolver = _Resolver()
        self.constructor = yaml.constructor.SafeConstructor()
        self.count = 0

    def read_values(self) -> Any:
        """Returns the values of the document, or ``None`` for an empty file."""
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        values = self.read_node(next(self.events), 0)
        next(self.events)
        if not isinstance(next(self.events), yaml.StreamEndEvent):
            raise ValueError("more than one document")
        return values

    def read_node(self, event: Any, depth: int) -> Any:
        """Returns the value whose first event is given."""
        self.count += 1
        if self.count > MOST_VALUES or depth > DEEPEST:
            raise ValueError(f"more than {MOST_VALUES} values, or nesting deeper than {DEEPEST}")
        if event.anchor is not None:
            raise ValueError(f"the anchor or alias {event.anchor!r} in line {_line_number(event)}")
        if event.tag is not None:
            return self.read_path(event, depth)
        if isinstance(event, yaml.ScalarEvent):
            return self.read_scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.read_sequence(depth)
        return self.read_mapping(depth)

    def read_sequence(self, depth: int) -> list[Any]:
        """Returns the list whose start event was consumed."""
        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.read_node(event, depth + 1))
        return items

    def read_mapping(self, depth: int) -> dict[str, Any]:
        """Returns the mapping whose start event was consumed."""
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.read_node(event, depth + 1)
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r:.30} in line {_line_number(event)}, not a string")
            if key in items:
                raise ValueError(f"the key {key!r:.30} twice, in line {_line_number(event)}")
            items[key] = self.read_node(next(self.events), depth + 1)
        return items

    def read_path(self, event: Any, depth: int) -> str:
        """Returns the path behind a path tag; refuses other tags."""
        kind = _PATH.fullmatch(event.tag)
        if kind is None or not isinstance(event, yaml.SequenceStartEvent):
            raise ValueError(f"the tag {event.tag!r:.60} in line {_line_number(event)}")
        parts = self.read_sequence(depth)
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"a path with parts other than strings in line {_line_number(event)}")
        pure = PureWindowsPath if kind[1] == "Windows" else PurePosixPath
        return str(pure(*parts))

    def read_scalar(self, event: Any) -> Any:
        """Returns the value of a scalar event."""
        tag = self.resolver.resolve(yaml.ScalarNode, event.value, event.implicit)
        kind = tag.removeprefix(_PREFIX)
        if kind == "str":
            return _check_string(event.value)
        if len(event.value) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(event.value)} digits in line {_line_number(event)}")
        node = yaml.ScalarNode(tag, event.value)
        value = getattr(self.constructor, f"construct_yaml_{kind}")(node)
        if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
            raise ValueError(f"an integer of more than 64 bits in line {_line_number(event)}")
        return value


def _line_number(event: Any) -> int:
    return event.start_mark.line + 1
