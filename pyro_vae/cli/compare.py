"""The command ``pyro-vae-compare``. Most modules are imported late, so that help is quick."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from pyro_vae.console.commands import VERSION, explain, stop_at_signals

__all__ = ["main"]

_LISTED = 10
"""The number of unreadable runs that the terminal lists; the page lists all."""

_EXAMPLES = """\
examples:
  pyro-vae-compare multirun/priors
  pyro-vae-compare multirun/priors outputs --out comparison
  pyro-vae-compare multirun/grid --against prior=Vamp latent_dim=8
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares runs, and returns an exit code: 0, or 1 with a message after an error.

    Arguments:
        arguments: The command line arguments; by default, those of this process.
    """
    options = _build_parser().parse_args(arguments)

    def command() -> int:
        try:
            lines = _compare(options.folder, options.out, options.against)
        except (OSError, ValueError) as error:
            _print_lines([f"pyro-vae-compare: {explain(error)}"], sys.stderr)
            return 1
        _print_lines(lines, sys.stdout)
        return 0

    return stop_at_signals(command, program="pyro-vae-compare")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyro-vae-compare",
        description="Compares runs of pyro-vae, and writes a page, a Markdown text and a table.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="+",
        help="a folder that contains runs, at any depth, finished or not",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="the folder for comparison.html, .md and .csv; by default the first FOLDER",
    )
    parser.add_argument(
        "--against",
        metavar="FACTOR=LEVEL",
        nargs="+",
        action="extend",
        default=[],
        help="the reference level of a factor; by default its first level",
    )
    parser.add_argument("--version", action="version", version=VERSION)
    return parser


def _print_lines(lines: Sequence[str], stream: TextIO) -> None:
    """Prints lines in the encoding of the terminal, without control characters."""
    from pyro_vae.compare.formatting import escape_control_characters

    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        visible = escape_control_characters(line)
        print(visible.encode(encoding, "replace").decode(encoding), file=stream)


def _compare(folders: Sequence[str], out: str | None, against: Sequence[str]) -> list[str]:
    """Writes the comparison of all runs in folders, and returns the lines for a terminal.

    Arguments:
        folders: The folders to search.
        out: The output folder; by default the first of the folders.
        against: The reference levels, as ``FACTOR=LEVEL``.
    """
    from pyro_vae.compare.comparison import compare
    from pyro_vae.compare.csv_table import build_csv
    from pyro_vae.compare.markdown import build_markdown
    from pyro_vae.compare.page import build_page
    from pyro_vae.files.atomic import write_whole

    for name, value in [*(("FOLDER", folder) for folder in folders), ("--out", out)]:
        if value is not None and not value.strip():
            raise ValueError(f"Expected {name} to name a folder, got {value!r}")
    comparison = compare(folders, against)
    target = Path(folders[0] if out is None else out).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"Expected --out to be a folder, got the file '{out}'")
    target.mkdir(parents=True, exist_ok=True)
    texts = {
        "comparison.html": build_page(comparison, target),
        "comparison.md": build_markdown(comparison),
        "comparison.csv": build_csv(comparison, target),
    }
    for name, text in texts.items():
        write_whole(target / name, text.encode("utf-8", errors="replace"))
    problems = [f"unreadable {run.name}: {run.problem}" for run in comparison.runs if run.problem]
    more = [f"and {len(problems) - _LISTED} more unreadable"] if len(problems) > _LISTED else []
    return [
        f"{comparison.count_states()}.",
        comparison.headline(),
        *(f"- {text}" for text in [*comparison.caveats, *problems[:_LISTED], *more]),
        *(f"{target / name}" for name in texts),
    ]


if __name__ == "__main__":
    sys.exit(main())
