"""The command ``pyro-vae-init``."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from pyro_vae.console.commands import VERSION, run_command

__all__ = ["main"]

_EXAMPLES = """\
example:
  pyro-vae-init my_project
  pip install -e my_project
  pyro-vae experiment=my_experiment
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a project, and returns an exit code: 0, or 1 with a message after an error.

    Arguments:
        arguments: The command line arguments; by default, those of this process.
    """
    folder = _build_parser().parse_args(arguments).folder

    def command() -> int:
        from pyro_vae.projects import create_project

        create_project(folder)
        print(f"project  {os.path.join(folder, 'README.md')} describes it")
        print(f"install  pip install -e {shlex.quote(folder)}")
        print("run      pyro-vae experiment=my_experiment")
        return 0

    return run_command(command, program="pyro-vae-init")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyro-vae-init",
        description="Writes a project with its own prior, encoder, data set and experiment.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="a new folder, whose name is that of the Python package"
    )
    parser.add_argument("--version", action="version", version=VERSION)
    return parser


if __name__ == "__main__":
    sys.exit(main())
