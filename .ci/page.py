"""Runs the commands and the Python code of a page, in order and from nothing but an environment.

    python page.py PAGE ENVIRONMENT WHEEL [--section TITLE] [--skip TEXT] [--fresh] [--words ...]

``pip install 'pyro_vae[...]'`` installs the wheel instead. The words are added to each
``pyro-vae`` to make it quick. Commands that contain the text of ``--skip`` are left out. With
``--fresh``, the jobs of a block are removed before the next one.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path


def list_blocks(page: Path, section: str) -> list[tuple[str, str]]:
    """Returns language and code of each block of a page, or of one of its sections."""
    text = page.read_text()
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks, f"no code in {page}, {section}"
    return blocks


def main() -> None:
    """Runs the blocks; the first command that fails ends this one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("environment", type=Path)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--section", default="")
    parser.add_argument("--skip")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--words", nargs="*", default=[])
    given = parser.parse_args()
    programs = given.environment.absolute() / "bin"
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    for language, code in list_blocks(given.page, given.section):
        if language == "python":
            subprocess.run([programs / "python", "-c", code], check=True)
            continue
        if given.fresh:
            shutil.rmtree("multirun", ignore_errors=True)
        for line in code.replace("\\\n", " ").splitlines():
            if given.skip and given.skip in line:
                continue
            command = re.sub(r"\bpyro_vae(?=\[)", str(given.wheel.absolute()), line)
            command = command.replace("pip install", "pip install -q")
            if command.startswith("pyro-vae "):
                command = f"{command} {shlex.join(given.words)}"
            print(f"+ {command}", flush=True)
            subprocess.run(["bash", "-c", command], env=environment, check=True)


if __name__ == "__main__":
    main()
