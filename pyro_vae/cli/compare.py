"""The command ``pyro-vae-compare``. What reads and writes is imported late: help is quick."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from pyro_vae.console.commands import explain, stop_at_signals

__all__ = ["main"]

_LISTED = 10
"""How many unreadable runs the terminal lists; the page lists all."""

_EXAMPLES = """\
examples:
  pyro-vae-compare multirun/priors
  pyro-vae-compare multirun/priors outputs --out comparison
  pyro-vae-compare multirun/grid --against prior=Vamp latent_dim=8
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares runs, and returns an exit code: 0, or 1 with a message if that cannot be done.

    Arguments:
        arguments: What stands on the command line; by default, that of this process.
    """
    given = _parser().parse_args(arguments)

    def command() -> int:
        try:
            lines = _compare(given.folder, given.out, given.against)
        except (OSError, ValueError) as error:
            _show([f"pyro-vae-compare: {explain(error)}"], sys.stderr)
            return 1
        _show(lines, sys.stdout)
        return 0

    return stop_at_signals(command, program="pyro-vae-compare")


def _parser() -> argparse.ArgumentParser:
    """Returns what reads the command line."""
    made = argparse.ArgumentParser(
        prog="pyro-vae-compare",
        description="Compares runs of pyro-vae: a page, a text, and a table.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="+",
        help="a folder with runs, at any depth; finished or not",
    )
    made.add_argument(
        "--out",
        metavar="FOLDER",
        help="where comparison.html, .md and .csv are written; by default the first FOLDER",
    )
    made.add_argument(
        "--against",
        metavar="FACTOR=LEVEL",
        nargs="+",
        action="extend",
        default=[],
        help="the level that the others of a factor are compared with; by default its first",
    )
    return made


def _show(lines: Sequence[str], stream: TextIO) -> None:
    """Prints lines without control characters, in the encoding of the terminal."""
    from pyro_vae.compare.formatting import visible

    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        print(visible(line).encode(encoding, "replace").decode(encoding), file=stream)


def _compare(folders: Sequence[str], out: str | None, against: Sequence[str]) -> list[str]:
    """Writes the comparison of all runs in folders, and returns the lines for a terminal.

    Arguments:
        folders: Where to look.
        out: Where to write; by default to the first of the folders.
        against: The levels that others are compared with, as ``FACTOR=LEVEL``.
    """
    from pyro_vae.compare import comparison
    from pyro_vae.compare.csv_table import table
    from pyro_vae.compare.markdown import markdown
    from pyro_vae.compare.page import page
    from pyro_vae.files.atomic import write_whole

    for name, value in [*(("FOLDER", folder) for folder in folders), ("--out", out)]:
        if value is not None and not value.strip():
            raise ValueError(f"Expected {name} to name a folder, got {value!r}")
    found = comparison.compare(folders, against)
    place = Path(folders[0] if out is None else out).resolve()
    if place.exists() and not place.is_dir():
        raise ValueError(f"Expected --out to be a folder, got the file '{out}'")
    place.mkdir(parents=True, exist_ok=True)
    texts = {
        "comparison.html": page(found, place),
        "comparison.md": markdown(found),
        "comparison.csv": table(found, place),
    }
    for name, text in texts.items():
        write_whole(place / name, text.encode("utf-8", errors="replace"))
    problems = [f"unreadable {run.name}: {run.problem}" for run in found.runs if run.problem]
    more = [f"and {len(problems) - _LISTED} more unreadable"] if len(problems) > _LISTED else []
    return [
        f"{found.states()}.",
        found.headline(),
        *(f"- {text}" for text in [*found.cautions, *problems[:_LISTED], *more]),
        *(f"{place / name}" for name in texts),
    ]


if __name__ == "__main__":
    sys.exit(main())
