"""Stored yaml and JSON: plain values as they were written, or one error that names the file."""

import math
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from omegaconf import OmegaConf

from pyro_vae.files.untrusted import (
    DEEPEST,
    MOST_VALUES,
    parse_json,
    read_bytes,
    read_json,
    read_yaml,
)

VALUES = {
    "numbers": [1, -2, 0, 2.5, 1e-5, 1e22, float("inf"), -float("inf"), 2**63, True, False, None],
    "words": ["1e5", "yes", "null", "~", "", "0x1f", "1:30", "2020-01-01", "=", "<<", "1_000"],
    "marks": ["a: b #c", "*x", "&a b", "!t", "- a", "a\tb", "ü\n\nx", "é😀", "'\"", "{a: 1}", "%x"],
    "nested": {"on": {"y": [[], {}, [{"a": [1]}]]}, "1": "one", "a.b": "${a}"},
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "x"


def written(file, content):
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_what_omegaconf_writes_is_read_as_omegaconf_reads_it(file):
    cfg = OmegaConf.create({**VALUES, "missing": float("nan")})
    written(file, OmegaConf.to_yaml(cfg))
    held = read_yaml(file)
    assert math.isnan(held.pop("missing"))
    assert held == VALUES
    assert [type(v) for v in held["numbers"]] == [type(v) for v in VALUES["numbers"]]


@pytest.mark.parametrize(
    "text",
    ["1e-3", "1e3", "1.5e3", ".5", "-.5e-3", "+1", "017", "0b1", "0o17", "1_0", "1:30", "on", "y",
     "2020-01-01", "1e", "~", ".inf", "'1'"],
)  # fmt: skip
def test_scalars_written_by_hand_are_read_as_omegaconf_reads_them(file, text):
    written(file, f"a: {text}")
    assert read_yaml(file) == OmegaConf.to_container(OmegaConf.load(file))


def test_paths_are_read_as_text(file):
    written(file, OmegaConf.to_yaml(OmegaConf.create({"a": Path("/x y/z"), "b": Path("q")})))
    assert read_yaml(file) == {"a": str(Path("/x y/z")), "b": "q"}
    tag = "a: !!python/object/apply:pathlib._local.WindowsPath ['C:\\', b]"
    assert read_yaml(written(file, tag)) == {"a": str(PureWindowsPath("C:\\", "b"))}
    tag = "a: !!python/object/apply:pathlib.PosixPath [/, b]"
    assert read_yaml(written(file, tag)) == {"a": str(PurePosixPath("/b"))}


HOSTILE_YAML = {
    "deep": ("[" * 100_000, "nesting|depth"),
    "deep block": ("a:\n" + "".join(" " * i + "- \n" for i in range(1, 200)), "nesting"),
    "alias": ("a: &x [1]\nb: *x", "anchor or alias 'x' in line 1"),
    "billion laughs": ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "anchor or alias 'a'"),
    "unknown alias": ("a: *x", "anchor or alias 'x'"),
    "call": ("a: !!python/object/apply:os.system [ls]", "the tag '.*os.system' in line 1"),
    "path of no strings": (
        "a: !!python/object/apply:pathlib.Path [[1]]",
        "path with parts other than strings",
    ),
    "path of no list": ("a: !!python/object/apply:pathlib.Path x", "the tag"),
    "plain tag": ("a: !!str b", "the tag"),
    "own tag": ("a: ! b", "the tag '!'"),
    "twice": ("a: 1\n'a': 2", "the key 'a' twice, in line 2"),
    "number as key": ("1: 2", "the key 1 in line 1, not a string"),
    "list as key": ("? [a]\n: b", "the key"),
    "documents": ("a: 1\n---\nb: 2", "more than one document"),
    "digits": ("a: " + "9" * 100_000, "a number of 100000 digits"),
    "base 60": ("a: " + "1:1" * 100_000, "a number of 300000 digits"),
    "large": ("a: " + "9" * 30, "more than 64 bits"),
    "many": ("[" + "a," * (MOST_VALUES + 10) + "]", f"more than {MOST_VALUES} values"),
    "cut off": ("a: [1, 2", "flow sequence"),
    "no digits": ("a: 0x_", "invalid literal"),
    "bytes": (b"a: \xe9", "utf-8"),
    "utf-16": ("a: b".encode("utf-16"), "utf-8"),
    "nul": ("a: \0", "NUL"),
    "quoted nul": ('a: "\\0"', "NUL"),
    "control": ("a: \x01", "control characters"),
    "surrogate": ('a: "\\ud800"', "surrogate|invalid Unicode"),
    "size": ("a: " + "x" * 5_000_000, "at most 4194304 bytes"),
}

HOSTILE_JSON = {
    "deep": ("[" * 100_000, "nesting"),
    "deeper than ours": ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nesting"),
    "twice": ('{"a": 1, "a": 2}', "the key 'a' twice"),
    "nan": ("[NaN]", "NaN, which is not JSON"),
    "infinity": ("[1e999]", "too large"),
    "large": ("1" + "0" * 30, "more than 64 bits"),
    "digits": ("9" * 10_000, "more than 64 bits"),
    "surrogate": ('"\\ud800"', "surrogate"),
    "surrogate key": ('{"\\ud800": 1}', "surrogate"),
    "nul": ('"\\u0000"', "NUL"),
    "empty": ("", "Expecting value"),
    "cut off": ("[1, ", "Expecting value"),
    "more": ("[1] x", "Extra data"),
    "utf-16": ("[1]".encode("utf-16"), "utf-8"),
    "size": ('"' + "x" * 5_000_000 + '"', "at most 4194304 bytes"),
}


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        pytest.param(read, *case, id=f"{read.__name__} {name}")
        for read, cases in ((read_yaml, HOSTILE_YAML), (read_json, HOSTILE_JSON))
        for name, case in cases.items()
    ],
)
def test_what_is_not_plain_or_too_much_is_one_error(file, read, content, message):
    with pytest.raises(ValueError, match=message) as raised:
        read(written(file, content))
    assert type(raised.value) is ValueError
    assert str(file) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_marks_at_the_beginning_and_an_empty_file(file):
    assert read_yaml(written(file, b"\xef\xbb\xbfa: 1")) == {"a": 1}
    assert read_json(written(file, b"\xef\xbb\xbf[1, -5, 2.5]")) == [1, -5, 2.5]
    assert read_yaml(written(file, "# nothing")) is None
    assert math.isnan(parse_json("[NaN]", strict=False)[0])


@pytest.mark.parametrize("read", [read_yaml, read_json, read_bytes])
def test_what_is_no_file_is_one_error(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path, *map(tmp_path.joinpath, ("none", "pipe", "loop", "zero", "x" * 5000))):
        with pytest.raises(ValueError, match="to be a readable file, got") as raised:
            read(path)
        assert str(path) in str(raised.value)
    with pytest.raises(ValueError, match="null byte"):
        read("a\0b")
