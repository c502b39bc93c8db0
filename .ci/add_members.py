"""Adds a member of each kind to a checkout, by the steps of its CONTRIBUTING.md.

    python .ci/add_members.py FOLDER

A fenced block is a new file, at the last path in backticks before it. A block of the language diff
changes a file; its context has to occur once there. The number of files in the text of a section
has to be the number that it changes.
"""

import re
import sys
from pathlib import Path

__all__ = ["add_member", "read_sections"]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SECTION = re.compile(r"^## Add an? (.+)\n((?:(?!## ).*\n)+)", re.MULTILINE)
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`([\w./-]+/[\w-]+\.\w+)`")


def read_sections(page: str) -> dict[str, str]:
    """Returns the text of each section that adds a member, by kind."""
    return dict(SECTION.findall(page))


def add_member(section: str, folder: Path) -> list[str]:
    """Carries out the steps of a section, and returns the paths of the changed files."""
    changed, last = [], 0
    for block in BLOCK.finditer(section):
        indent, language, body = block.groups()
        body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        if language == "diff":
            changed.append(change_file(body, folder))
        elif language not in ("bash", "console"):
            paths = PATH.findall(section[last : block.start()])
            check(bool(paths), f"a path in backticks before the block\n{body}", "none")
            write_file(folder / paths[-1], body)
            changed.append(paths[-1])
        last = block.end()
    number = re.search(rf"\b({'|'.join(NUMBERS)})\s+files\b", section)
    check(number is not None, "a number of files in the section", "none")
    count = NUMBERS[len(set(changed))]
    check(number[1] == count, f"{number[1]} files, as in the text", f"{count}: {changed}")
    return changed


def write_file(path: Path, text: str) -> None:
    """Writes a file that does not exist yet."""
    check(not path.exists(), f"{path} to be a new file", "one that exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def change_file(diff: str, folder: Path) -> str:
    """Applies a diff without line numbers, and returns the path of the file."""
    header = re.match(r"--- a/(\S+)\n\+\+\+ b/\1\n@@\n", diff)
    check(header is not None, "a diff to begin with --- a/PATH, +++ b/PATH and @@", diff[:80])
    path = folder / header[1]
    check(path.is_file(), f"{header[1]} to be a file", "none")
    text = "\n" + path.read_text("utf-8")
    for hunk in diff[header.end() :].split("@@\n"):
        lines = hunk.splitlines()
        old, new = ("".join(f"{x[1:]}\n" for x in lines if x[:1] != mark) for mark in "+-")
        # Unlike str.count, a lookahead counts matches that overlap.
        count = len(re.findall(f"(?=\n{re.escape(old)})", text))
        check(count == 1, f"these lines once in {header[1]}:\n{old}", f"them {count} times")
        text = text.replace("\n" + old, "\n" + new)
    path.write_text(text[1:], "utf-8")
    return header[1]


def check(fits: bool, expected: str, actual: str) -> None:
    """Raises a ``ValueError`` unless a condition holds."""
    if not fits:
        raise ValueError(f"Expected {expected}, got {actual}")


def main(folder: Path) -> None:
    """Adds the members of all sections."""
    kind = ""
    try:
        for kind, section in read_sections((folder / "CONTRIBUTING.md").read_text("utf-8")).items():
            print(f"{kind}: {len(add_member(section, folder))} files")
    except ValueError as error:
        sys.exit(f"CONTRIBUTING.md, {kind}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
