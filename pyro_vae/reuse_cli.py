"""The commands ``pyro-vae-evaluate`` and ``pyro-vae-embed``.

PyTorch is imported where the work begins, so that help is quick.
"""

import atexit
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from pyro_vae.config import APP

__all__ = ["embed", "evaluate"]

MARGIN = " " * 19

WRITTEN: set[str | None] = set()
"""The files that this command was told to write."""


def options(group: str) -> str:
    """Returns the names of a group's options, in the column of the help for what settings mean."""
    names = ", ".join(sorted(path.stem for path in (APP / group).glob("*.yaml")))
    return textwrap.fill(names, 95, initial_indent=MARGIN, subsequent_indent=MARGIN).lstrip()


def scratch() -> str:
    """Returns a folder for what Hydra writes of several runs, which is removed at the end."""
    folder = tempfile.mkdtemp(prefix="pyro_vae_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


OmegaConf.register_new_resolver("pyro_vae.options", options, replace=True)
OmegaConf.register_new_resolver("pyro_vae.scratch", scratch, replace=True, use_cache=True)


@hydra.main(version_base="1.3", config_path=str(APP), config_name="evaluate")
def evaluate(cfg: DictConfig) -> float:
    """Judges a finished run, and returns the log evidence in nats per datum."""
    return told(judged, cfg)


@hydra.main(version_base="1.3", config_path=str(APP), config_name="embed")
def embed(cfg: DictConfig) -> None:
    """Writes the codes of data by a finished run."""
    told(embedded, cfg)


def told(task: Callable[[Any], Any], cfg: DictConfig) -> Any:
    """Does what is asked, and lets a mistake be told by its message alone."""
    try:
        return task(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))
    except (ValueError, RuntimeError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # The way to a user's mistake is ours, not theirs.
        raise error.with_traceback(None) from None


def judged(cfg: DictConfig) -> float:
    """Judges a run, and writes and shows the figures."""
    from pyro_vae import reuse

    check_once(cfg.out)
    figures = reuse.judge_run(cfg.run, **common(cfg), **cfg.evaluate, seed=cfg.seed)
    print(reuse.summary(figures, reuse.write_evaluation(figures, cfg.out)))
    return figures["log_evidence"]


def embedded(cfg: DictConfig) -> None:
    """Writes the codes, and shows where they are."""
    from pyro_vae import reuse

    check_once(cfg.out)
    path = reuse.embed(cfg.run, out=cfg.out, rows_at_once=cfg.rows_at_once, **common(cfg))
    print(f"codes  {path}")


def check_once(out: str | None) -> None:
    """Raises a ``ValueError`` if another run of this command was written to the same file."""
    if out is not None and out in WRITTEN:
        raise ValueError(
            f"Expected a file of its own for each run, got '{out}' again: without out each has one "
            f"in its folder"
        )
    WRITTEN.add(out)


def common(cfg: DictConfig) -> dict[str, Any]:
    """Sets the number of threads, and returns what both commands hand on."""
    import torch

    from pyro_vae.conditional import check_size

    if cfg.threads is not None:
        torch.set_num_threads(check_size("threads", cfg.threads, least=1))
    data = None if cfg.data is None else OmegaConf.to_container(cfg.data)
    return {"data": data, "part": cfg.part, "device": cfg.device, "allow": list(cfg.allow)}
