"""Checks that the data of a finished run are those of its training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.data import Data
from pyro_vae.data.checksum import hash_rows
from pyro_vae.files.untrusted import read_json

__all__ = ["USER_DATA", "check_unchanged"]

USER_DATA = tuple(f"pyro_vae.data.{name}" for name in ("table", "counts", "array", "images"))
"""Data sets from the user's files, which have no standard split and may change."""


def check_unchanged(folder: Path, node: Mapping[str, Any], dataset: Data) -> None:
    """Raises a ``ValueError`` if the user's files give other test rows than in training.

    The rows of a changed file are split in another way, so that rows of the training would become
    test rows.

    Arguments:
        folder: The folder of the run.
        node: The configuration of its data.
        dataset: The data, as they are built now.
    """
    target = node["_target_"]
    if target not in USER_DATA:
        # Generated data may differ in the last bits on another processor.
        return
    stored = read_json(folder / "metrics.json")
    expected = stored.get("test_sha256") if isinstance(stored, dict) else None
    if expected in (None, hash_rows(dataset.test)):
        return
    name = target.rpartition(".")[2]
    path = node.get("path")
    raise ValueError(
        f"Expected '{path}' to have the test rows with which '{folder}' was evaluated, got others: "
        f"restore the file, or pass new data by data={name} data.path=FILE"
    )
