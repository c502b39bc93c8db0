"""The commands ``pyro-vae-evaluate`` and ``pyro-vae-embed``.

PyTorch is imported where the work begins, so that help is quick.
"""

import atexit
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from pyro_vae.config import APP
from pyro_vae.console.commands import EXPECTED, check_options, pass_errors, run_command
from pyro_vae.files.atomic import check_new_file
from pyro_vae.progress import show_always

__all__ = ["embed", "evaluate"]

_MARGIN = " " * 19

_WRITTEN: set[str | None] = set()
"""The files that this command was told to write."""


def _options(group: str) -> str:
    """Returns the names of a group's options, in the column of the help for what settings mean."""
    names = ", ".join(sorted(path.stem for path in (APP / group).glob("*.yaml")))
    return textwrap.fill(names, 95, initial_indent=_MARGIN, subsequent_indent=_MARGIN).lstrip()


def _scratch() -> str:
    """Returns a folder for what Hydra writes of several runs, which is removed at the end."""
    folder = tempfile.mkdtemp(prefix="pyro_vae_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


OmegaConf.register_new_resolver("pyro_vae.options", _options, replace=True)
OmegaConf.register_new_resolver("pyro_vae.scratch", _scratch, replace=True, use_cache=True)


def evaluate() -> None:
    """Runs the command ``pyro-vae-evaluate``."""
    _run("pyro-vae-evaluate", _evaluate)


def embed() -> None:
    """Runs the command ``pyro-vae-embed``."""
    _run("pyro-vae-embed", _embed)


@hydra.main(version_base="1.3", config_path=str(APP), config_name="evaluate")
@pass_errors
def _evaluate(cfg: DictConfig) -> float:
    return _judged(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))


@hydra.main(version_base="1.3", config_path=str(APP), config_name="embed")
@pass_errors
def _embed(cfg: DictConfig) -> None:
    _embedded(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))


def _run(program: str, application: Callable[[], Any]) -> NoReturn:
    def command() -> int:
        check_options(program)
        application()
        return 0

    # A device that does not exist is a RuntimeError of PyTorch.
    sys.exit(run_command(command, program=program, expected=(*EXPECTED, RuntimeError)))


def _judged(cfg: Any) -> float:
    """Judges a run, and writes and shows the figures."""
    from pyro_vae import reuse

    _check_once(cfg.out)
    with show_always():
        figures = reuse.judge_run(cfg.run, **_common(cfg), **cfg.evaluate, seed=cfg.seed)
    print(reuse.summary(figures, reuse.write_evaluation(figures, cfg.out)))
    return figures["log_evidence"]


def _embedded(cfg: Any) -> None:
    """Writes the codes, and shows where they are."""
    from pyro_vae import reuse

    _check_once(cfg.out)
    with show_always():
        path = reuse.embed(cfg.run, out=cfg.out, rows_at_once=cfg.rows_at_once, **_common(cfg))
    print(f"codes  {path}")


def _check_once(out: str | None) -> None:
    """Raises a ``ValueError`` unless ``out`` is a file name that no other run uses."""
    if out is not None:
        check_new_file("out", out)
    if out is not None and out in _WRITTEN:
        raise ValueError(
            f"Expected a file of its own for each run, got '{out}' again: without out each has one "
            f"in its folder"
        )
    _WRITTEN.add(out)


def _common(cfg: DictConfig) -> dict[str, Any]:
    """Sets the number of threads, and returns what both commands hand on."""
    import torch

    from pyro_vae.validation import check_size

    if cfg.threads is not None:
        torch.set_num_threads(check_size("threads", cfg.threads, least=1))
    if not isinstance(cfg.allow, ListConfig):
        raise ValueError(
            f"Expected allow to be a list of dotted names, as in 'allow=[my_package.MyPrior]', got "
            f"{cfg.allow!r}"
        )
    if not isinstance(cfg.data, DictConfig | None):
        raise ValueError(f"Expected data to be a data set, as in data=table, got {cfg.data!r}")
    data = None if cfg.data is None else OmegaConf.to_container(cfg.data)
    return {"data": data, "part": cfg.part, "device": cfg.device, "allow": list(cfg.allow)}
