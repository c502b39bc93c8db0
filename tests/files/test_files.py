"""Files that are whole or not there."""

import errno
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyro_vae.files.atomic import FolderInUseError, hold_folder, is_held, strict_json, write_whole


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_is_strict():
    text = strict_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_an_error_names_the_file_and_not_its_partial_one(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "missing" / "file", b"")
    assert caught.value.filename == str(tmp_path / "missing" / "file")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EIO, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_one_warning(code, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", broken)
    with (
        pytest.warns(UserWarning, match="cannot be locked") as said,
        hold_folder(tmp_path),
        hold_folder(tmp_path),
    ):
        assert not is_held(tmp_path)
    assert len(said) == 1
    with hold_folder(tmp_path):
        pass


def test_a_folder_is_held_by_one_thread_any_number_of_times(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_held(tmp_path)
    with hold_folder(tmp_path), hold_folder(Path()):
        assert is_held(tmp_path)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(enter, tmp_path)
            with pytest.raises(FolderInUseError, match="no other process writes to"):
                other.result()
        with hold_folder(tmp_path):
            pass
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter, tmp_path).result()


def enter(folder):
    with hold_folder(folder, patience=0.1):
        pass


def test_a_forked_process_keeps_no_lock(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from pyro_vae.files.atomic import *\n"
        "folder = Path(sys.argv[1])\n"
        "with hold_folder(folder):\n"
        "    if not (child := os.fork()): time.sleep(60)\n"
        "end = time.monotonic() + 30\n"
        "while is_held(folder) and time.monotonic() < end: time.sleep(0.05)\n"
        "os.kill(child, 9)\n"
        "sys.exit(time.monotonic() >= end)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    message = f"Expected a folder that can be written to, got '{tmp_path / 'file'}"
    with pytest.raises(ValueError, match=re.escape(message)), hold_folder(tmp_path / "file"):
        pass
