"""A job's name: a hash of what decides its result."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pyro_vae.files.untrusted import read_bytes, read_yaml

__all__ = ["NAME", "UNRELATED", "holds", "register", "run_id"]

UNRELATED = (
    "hydra",
    "out",
    "resume",
    "overwrite",
    "study",
    "isolate",
    "threads",
    "device",
    "train.checkpoint_seconds",
    "data.root",
    "data.download",
)
"""Settings that do not change what a job computes, but for rounding."""


NAME = ".job"
"""The file in a job's folder that has its name, which a resolved configuration tells no more."""


def run_id(cfg: Mapping[str, Any] | DictConfig) -> str:
    """Returns the name of a job: 12 hexadecimal digits of the SHA-1 of its configuration.

    The configuration is resolved first, and :data:`UNRELATED` settings are left out: a setting
    written out that equals the default gives the same name.

    Arguments:
        cfg: A composed configuration, with or without Hydra's own part.

    Example:
        >>> from pyro_vae.config import compose
        >>> first = run_id(compose(["out=here"]))
        >>> first == run_id(compose(["out=there", "threads=2", "vae.latent_dim=10"]))
        True
        >>> first == run_id(compose(["out=here", "seed=1"]))
        False
    """
    text = json.dumps(_deciding(cfg), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]


def _deciding(cfg: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """Returns what decides a job's result, as plain values."""
    cfg = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    part = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    for path in UNRELATED:
        room, _, name = path.rpartition(".")
        inside = part.get(room) if room else part
        if isinstance(inside, DictConfig) and name in list(inside.keys()):
            # Not left out yet: what refers to it is a setting too.
            inside[name] = None
    try:
        values = OmegaConf.to_container(part, resolve=True)
    except OmegaConfBaseException:
        # What cannot be resolved fails in its job, with the folder that this name gives it.
        values = OmegaConf.to_container(part)
    assert isinstance(values, dict)
    for path in UNRELATED:
        room, _, name = path.rpartition(".")
        inside = values.get(room) if room else values
        if isinstance(inside, dict):
            inside.pop(name, None)
    return {str(key): value for key, value in values.items()}


def holds(folder: Path) -> str | None:
    """Returns the name of the job whose run a folder holds, or ``None`` if it holds none.

    Raises:
        ValueError: If the file with the name or, without it, the configuration is damaged.
    """
    if os.path.lexists(folder / NAME):
        name = read_bytes(folder / NAME, largest=100).strip()
        if re.fullmatch(rb"[0-9a-f]{12}", name) is None:
            raise ValueError(
                f"Expected '{folder / NAME}' to hold the name of a job, 12 hexadecimal digits, got "
                f"{name[:30]!r}: remove it, or take another folder"
            )
        return name.decode()
    path = folder / "config.yaml"
    if not os.path.lexists(path):
        return None
    values = read_yaml(path)
    if not isinstance(values, dict) or "${" in json.dumps(values):
        raise ValueError(f"Expected '{path}' to hold settings without references, got others")
    return run_id(values)


def register() -> None:
    """Lets a configuration say ``${pyro_vae.run_id:}``."""

    def resolver(*, _root_: DictConfig) -> str:
        return run_id(_root_)

    OmegaConf.register_new_resolver("pyro_vae.run_id", resolver, replace=True)
