"""The command ``pyro-vae-compare``. Most modules are imported late, so that help is quick."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pyro_vae.console.commands import VERSION, explain, stop_at_signals

if TYPE_CHECKING:
    from pyro_vae.compare import Comparison

__all__ = ["main"]

_LISTED = 10
"""The number of unreadable runs that the terminal lists; the page lists all."""

_EXAMPLES = """\
examples:
  pyro-vae-compare multirun/priors
  pyro-vae-compare multirun/priors outputs --out comparison
  pyro-vae-compare multirun/grid --against prior=Vamp latent_dim=8
  pyro-vae-compare multirun/grid --latex table.tex --figure plane.pdf --factor prior
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares runs, and returns an exit code: 0, or 1 with a message after an error.

    Arguments:
        arguments: The command line arguments; by default, those of this process.
    """

    def command() -> int:
        options = _build_parser().parse_args(arguments)
        try:
            lines = _compare(options)
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
    parser.add_argument(
        "--factor",
        metavar="FACTOR",
        help="the factor that groups the plots at first; by default that with the most levels",
    )
    parser.add_argument("--latex", metavar="FILE", help="write a table for papers: FILE.tex")
    parser.add_argument(
        "--figure",
        metavar="FILE",
        help="write the rate-distortion plane for papers: FILE.pdf or FILE.svg",
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


def _compare(options: argparse.Namespace) -> list[str]:
    """Writes the comparison of all runs in folders, and returns the lines for a terminal."""
    from pyro_vae.compare import build_csv, build_markdown, build_page, compare
    from pyro_vae.files.atomic import write_whole

    folders, out = options.folder, options.out
    for name, value in [*(("FOLDER", folder) for folder in folders), ("--out", out)]:
        if value is not None and not value.strip():
            raise ValueError(f"Expected {name} to name a folder, got {value!r}")
    table = _check_file("--latex", options.latex, (".tex",))
    figure = _check_file("--figure", options.figure, (".pdf", ".svg"))
    comparison = compare(folders, options.against)
    target = Path(folders[0] if out is None else out).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"Expected --out to be a folder, got the file '{out}'")
    texts = {
        target / "comparison.html": build_page(comparison, target, options.factor),
        target / "comparison.md": build_markdown(comparison),
        target / "comparison.csv": build_csv(comparison, target),
    }
    files = {path: text.encode("utf-8", errors="replace") for path, text in texts.items()}
    files |= _build_paper_files(comparison, table, figure, options.factor)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    return [*_summarize(comparison), *map(str, files)]


def _check_file(name: str, value: str | None, endings: tuple[str, ...]) -> Path | None:
    """Returns the path of a file for papers, which may replace only a file of this command."""
    from pyro_vae.compare.formatting import MARK
    from pyro_vae.files.atomic import check_new_file

    if value is None:
        return None
    path = check_new_file(name, value).resolve()
    if path.suffix not in endings:
        raise ValueError(f"Expected {name} to end in {' or '.join(endings)}, got '{value}'")
    if path.exists() and MARK.encode() not in path.read_bytes():
        raise ValueError(
            f"Expected {name} to name a new file or one that this command wrote, got '{value}'"
        )
    return path


def _build_paper_files(
    comparison: "Comparison", table: Path | None, figure: Path | None, factor: str | None
) -> dict[Path, bytes]:
    from pyro_vae.compare import build_latex, draw_figure, render_figure

    files = {}
    if table is not None:
        files[table] = build_latex(comparison).encode("utf-8", errors="replace")
    if figure is not None:
        drawn = draw_figure(comparison, factor=factor)
        files[figure] = render_figure(drawn, figure.suffix.removeprefix("."))
    return files


def _summarize(comparison: "Comparison") -> list[str]:
    problems = [f"unreadable {run.name}: {run.problem}" for run in comparison.runs if run.problem]
    more = [f"and {len(problems) - _LISTED} more unreadable"] if len(problems) > _LISTED else []
    return [
        f"{comparison.count_states()}.",
        comparison.headline(),
        *(f"- {text}" for text in [*comparison.caveats, *problems[:_LISTED], *more]),
    ]


if __name__ == "__main__":
    sys.exit(main())
