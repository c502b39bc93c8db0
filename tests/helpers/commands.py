"""Console commands called in this process, which saves the imports of a process of their own."""

import contextlib
import importlib
import io
import logging
import os
import sys
from typing import NamedTuple

__all__ = ["MAINS", "Outcome", "call"]

MAINS = {
    "pyro-vae": ("pyro_vae.cli.train", "main"),
    "pyro-vae-compare": ("pyro_vae.cli.compare", "main"),
    "pyro-vae-embed": ("pyro_vae.cli.reuse", "run_embed"),
    "pyro-vae-init": ("pyro_vae.cli.init", "main"),
    "pyro-vae-impute": ("pyro_vae.cli.reuse", "run_impute"),
    "pyro-vae-sample": ("pyro_vae.cli.reuse", "run_sample"),
    "pyro-vae-score": ("pyro_vae.cli.reuse", "run_score"),
    "pyro-vae-evaluate": ("pyro_vae.cli.reuse", "run_evaluate"),
}


class Outcome(NamedTuple):
    """The exit code of a command, and what it said."""

    code: int
    out: str
    err: str


def call(program, *words, cwd):
    """Runs a command in a folder, and returns its outcome."""
    module, name = MAINS[program]
    main = getattr(importlib.import_module(module), name)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _process_state(cwd):
        sys.argv = [program, *words]
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _process_state(cwd):
    """Works in a folder, and undoes what a command and Hydra change in the process."""
    root, before = logging.getLogger(), os.getcwd()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    argv, environment = sys.argv, dict(os.environ)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    os.chdir(cwd)
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        root.handlers[:], root.level = handlers, level
        logging.disable(disabled)
        # Workers kept for the next command would stay in this folder.
        if loky := sys.modules.get("joblib.externals.loky"):
            loky.get_reusable_executor().shutdown(wait=True)
