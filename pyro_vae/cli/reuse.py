"""The commands for finished runs, such as ``pyro-vae-evaluate`` and ``pyro-vae-embed``.

PyTorch is imported late, so help is quick.
"""

import atexit
import os
import shlex
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from pyro_vae.config import APP, find_projects, format_override
from pyro_vae.console.commands import EXPECTED, pass_errors, prepare_options, run_command
from pyro_vae.files.atomic import check_new_file
from pyro_vae.progress import show_always

__all__ = ["run_embed", "run_evaluate", "run_impute", "run_sample", "run_score"]

_MARGIN = " " * 19

_OUT_FILES: set[str | None] = set()
"""The output files of the runs of this command so far."""


def _list_options(group: str) -> str:
    """Returns the names of a group's options, wrapped for the second column of the help."""
    folders = [APP, *find_projects().values()]
    options = sorted(path.stem for folder in folders for path in (folder / group).glob("*.yaml"))
    names = ", ".join(options)
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


def run_impute() -> None:
    """Runs the command ``pyro-vae-impute``."""
    _run_application("pyro-vae-impute", _impute)


def run_sample() -> None:
    """Runs the command ``pyro-vae-sample``."""
    _run_application("pyro-vae-sample", _sample)


def run_score() -> None:
    """Runs the command ``pyro-vae-score``."""
    _run_application("pyro-vae-score", _score)


@hydra.main(version_base="1.3", config_path=str(APP), config_name="evaluate")
@pass_errors
def _evaluate(cfg: DictConfig) -> float:
    return _evaluate_and_print(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))


@hydra.main(version_base="1.3", config_path=str(APP), config_name="embed")
@pass_errors
def _embed(cfg: DictConfig) -> None:
    _write_table(cfg, "embed", "embedding", ("rows_at_once",))


@hydra.main(version_base="1.3", config_path=str(APP), config_name="impute")
@pass_errors
def _impute(cfg: DictConfig) -> None:
    _write_table(cfg, "impute", "imputed", ("draws", "num_particles", "seed", "rows_at_once"))


@hydra.main(version_base="1.3", config_path=str(APP), config_name="score")
@pass_errors
def _score(cfg: DictConfig) -> None:
    _write_table(cfg, "score", "scores", ("num_particles", "seed", "rows_at_once"))


@hydra.main(version_base="1.3", config_path=str(APP), config_name="sample")
@pass_errors
def _sample(cfg: DictConfig) -> None:
    _write_table(cfg, "sample", "samples", ("n", "covariates", "seed", "rows_at_once"))


def _run_application(program: str, application: Callable[[], Any]) -> NoReturn:
    def command() -> int:
        prepare_options(program)
        _OUT_FILES.clear()
        application()
        return 0

    # PyTorch raises a RuntimeError for a missing device.
    sys.exit(run_command(command, program=program, expected=(*EXPECTED, RuntimeError)))


def _evaluate_and_print(cfg: Any) -> float:
    from pyro_vae import reuse

    _check_out_file(cfg.out)
    with show_always(), _propose_command():
        metrics = reuse.judge_run(cfg.run, **_common_arguments(cfg), **cfg.evaluate, seed=cfg.seed)
    print(reuse.summary(metrics, reuse.write_evaluation(metrics, cfg.out)))
    return metrics["log_evidence"]


def _write_table(cfg: DictConfig, function: str, title: str, names: tuple[str, ...]) -> None:
    """Calls a function of :mod:`pyro_vae.reuse` that writes a table, and prints its path.

    Arguments:
        cfg: The settings of the command.
        function: The name of the function.
        title: The name of the result.
        names: The settings that are its arguments, besides the common ones.
    """
    from pyro_vae import reuse

    _check_out_file(cfg.out)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    arguments = {name: settings[name] for name in names} | _common_arguments(cfg)
    with show_always(), _propose_command():
        path = getattr(reuse, function)(cfg.run, out=cfg.out, **arguments)
    print(f"{title:<9}  {path}")


@contextmanager
def _propose_command() -> Iterator[None]:
    """Adds to an error about names that are not allowed the command line that allows them."""
    from pyro_vae.vae.allow import NotAllowedError

    try:
        yield
    except NotAllowedError as error:
        if not error.names:
            raise
        words = [word for word in sys.argv if word.lstrip("+").partition("=")[0] != "allow"]
        words[0] = os.path.basename(words[0])
        command = f"{shlex.join(words)} {format_override('allow', error.names)}"
        raise ValueError(f"{error.fault}: if you trust the run, type {command}") from None


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
    """Sets the number of threads, and returns the arguments that the commands share."""
    import torch

    from pyro_vae.validation import check_size

    if cfg.threads is not None:
        torch.set_num_threads(check_size("threads", cfg.threads, least=1))
    if not isinstance(cfg.allow, ListConfig):
        raise ValueError(
            f"Expected allow to be a list of dotted names, as in 'allow=[my_package.MyPrior]', got "
            f"{cfg.allow!r}"
        )
    common = {"device": cfg.device, "allow": list(cfg.allow)}
    if "data" not in cfg:
        return common
    if not isinstance(cfg.data, DictConfig | None):
        raise ValueError(f"Expected data to be a data set, as in data=table, got {cfg.data!r}")
    data = None if cfg.data is None else OmegaConf.to_container(cfg.data)
    return {"data": data, "part": cfg.part, **common}
