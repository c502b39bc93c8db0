"""The commands ``pyro-vae-evaluate`` and ``pyro-vae-embed``.

PyTorch is imported late, so help is quick.
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

__all__ = ["run_embed", "run_evaluate"]

_MARGIN = " " * 19

_OUT_FILES: set[str | None] = set()
"""The output files of the runs of this command so far."""


def _list_options(group: str) -> str:
    """Returns the names of a group's options, wrapped for the second column of the help."""
    names = ", ".join(sorted(path.stem for path in (APP / group).glob("*.yaml")))
    return textwrap.fill(names, 95, initial_indent=_MARGIN, subsequent_indent=_MARGIN).lstrip()


def _make_scratch_folder() -> str:
    """Creates a folder for Hydra's files of several runs, removed at exit."""
    folder = tempfile.mkdtemp(prefix="pyro_vae_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


OmegaConf.register_new_resolver("pyro_vae.options", _list_options, replace=True)
OmegaConf.register_new_resolver(
    "pyro_vae.scratch", _make_scratch_folder, replace=True, use_cache=True
)


def run_evaluate() -> None:
    """Runs the command ``pyro-vae-evaluate``."""
    _run_application("pyro-vae-evaluate", _evaluate)


def run_embed() -> None:
    """Runs the command ``pyro-vae-embed``."""
    _run_application("pyro-vae-embed", _embed)


@hydra.main(version_base="1.3", config_path=str(APP), config_name="evaluate")
@pass_errors
def _evaluate(cfg: DictConfig) -> float:
    return _evaluate_and_print(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))


@hydra.main(version_base="1.3", config_path=str(APP), config_name="embed")
@pass_errors
def _embed(cfg: DictConfig) -> None:
    _embed_and_print(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))


def _run_application(program: str, application: Callable[[], Any]) -> NoReturn:
    def command() -> int:
        check_options(program)
        _OUT_FILES.clear()
        application()
        return 0

    # PyTorch raises a RuntimeError for a missing device.
    sys.exit(run_command(command, program=program, expected=(*EXPECTED, RuntimeError)))


def _evaluate_and_print(cfg: Any) -> float:
    from pyro_vae import reuse

    _check_out_file(cfg.out)
    with show_always():
        metrics = reuse.judge_run(cfg.run, **_common_arguments(cfg), **cfg.evaluate, seed=cfg.seed)
    print(reuse.summary(metrics, reuse.write_evaluation(metrics, cfg.out)))
    return metrics["log_evidence"]


def _embed_and_print(cfg: Any) -> None:
    from pyro_vae import reuse

    _check_out_file(cfg.out)
    with show_always():
        path = reuse.embed(
            cfg.run, out=cfg.out, rows_at_once=cfg.rows_at_once, **_common_arguments(cfg)
        )
    print(f"embedding  {path}")


def _check_out_file(out: str | None) -> None:
    """Raises a ``ValueError`` unless ``out`` is a file name that no other run uses."""
    if out is not None:
        check_new_file("out", out)
    if out is not None and out in _OUT_FILES:
        raise ValueError(
            f"Expected a different out for each run, got '{out}' again: omit out to write to the "
            f"folder of each run"
        )
    _OUT_FILES.add(out)


def _common_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Sets the number of threads, and returns the arguments that both commands share."""
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
