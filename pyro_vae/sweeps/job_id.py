"""The name of a job: a hash of the settings that affect its result."""

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

__all__ = ["NAME", "UNRELATED", "read_run_id", "register_resolver", "run_id"]

UNRELATED = (
    "hydra",
    "out",
    "resume",
    "overwrite",
    "study",
    "isolate",
    "tracker",
    "threads",
    "device",
    "train.checkpoint_seconds",
    "evaluate.compile",
    "data.root",
    "data.download",
)
"""Settings that do not affect the result of a job, except for rounding."""


_IDENTITY = {"_target_": "pyro_vae.transforms.Identity", "_partial_": True}

NAME = ".job"
"""The file with the name of a job, which its resolved configuration no longer determines."""


def run_id(cfg: Mapping[str, Any] | DictConfig) -> str:
    """Returns the name of a job: 12 hexadecimal digits of the SHA-1 of its configuration.

    The configuration is resolved and :data:`UNRELATED` settings are left out, so an explicit
    default does not change the name.

    Arguments:
        cfg: A composed configuration, with or without its ``hydra`` section.

    Example:
        >>> from pyro_vae.config import compose
        >>> first = run_id(compose(["out=here"]))
        >>> first == run_id(compose(["out=there", "threads=2", "vae.latent_dim=10"]))
        True
        >>> first == run_id(compose(["out=here", "seed=1"]))
        False
    """
    text = json.dumps(_select_settings(cfg), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]


def _select_settings(cfg: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """Returns the settings that affect the result of a job, as plain values."""
    cfg = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    part = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    for path in UNRELATED:
        parent_path, _, name = path.rpartition(".")
        parent = part.get(parent_path) if parent_path else part
        if isinstance(parent, DictConfig) and name in list(parent.keys()):
            # Not removed yet, because other settings may refer to it.
            parent[name] = None
    try:
        values = OmegaConf.to_container(part, resolve=True)
    except OmegaConfBaseException:
        # An unresolvable configuration fails in its job, whose folder needs this name.
        values = OmegaConf.to_container(part)
    assert isinstance(values, dict)
    evaluate = values.get("evaluate")
    if isinstance(evaluate, dict) and evaluate.get("tolerance") in ("auto", None):
        # A job of a sweep has the name it had before this setting existed.
        evaluate.pop("tolerance", None)
    _restore_input_transform(values.get("vae"))
    for path in UNRELATED:
        parent_path, _, name = path.rpartition(".")
        parent = values.get(parent_path) if parent_path else values
        if isinstance(parent, dict):
            parent.pop(name, None)
    return {str(key): value for key, value in values.items()}


def _restore_input_transform(vae: Any) -> None:
    """Restores the form of a setting in earlier versions, so jobs keep their names."""
    if not isinstance(vae, dict):
        return
    if vae.get("input_transform", 0) is None:
        vae["input_transform"] = dict(_IDENTITY)
    transform = vae.get("input_transform")
    if isinstance(transform, dict) and transform.get("append_mask") is False:
        del transform["append_mask"]


def read_run_id(folder: Path) -> str | None:
    """Returns the name of the job in a folder, or ``None`` for a folder without a job.

    Raises:
        ValueError: If the file with the name, or in its absence the configuration, is damaged.
    """
    if os.path.lexists(folder / NAME):
        name = read_bytes(folder / NAME, largest=100).strip()
        if re.fullmatch(rb"[0-9a-f]{12}", name) is None:
            raise ValueError(
                f"Expected '{folder / NAME}' to hold the name of a job, 12 hexadecimal digits, got "
                f"{name[:30]!r}: remove it, or choose another folder"
            )
        return name.decode()
    path = folder / "config.yaml"
    if not os.path.lexists(path):
        return None
    values = read_yaml(path)
    if not isinstance(values, dict) or "${" in json.dumps(values):
        raise ValueError(
            f"Expected '{path}' to hold resolved settings, got references or no settings"
        )
    return run_id(values)


def register_resolver() -> None:
    """Registers the resolver ``${pyro_vae.run_id:}`` with OmegaConf."""

    def resolver(*, _root_: DictConfig) -> str:
        return run_id(_root_)

    OmegaConf.register_new_resolver("pyro_vae.run_id", resolver, replace=True)
