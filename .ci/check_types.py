"""Fails unless the Python code of each document passes mypy, as a user's program would."""

import re
import sys
import tempfile
from pathlib import Path

from mypy import api

# Pyro makes its optimizers at run time, Matplotlib counts with figures inside of figures, and the
# attribute of an interrupt and the package of a reader are known when they run.
UNSEEN = re.compile(
    '"Adam"|"SubFigure" of "Figure|"KeyboardInterrupt" has no attribute "fit_result"|"my_package"'
)
# The documents use a name for several things, one after another, and modules that have no types.
OPTIONS = (
    "--config-file=",
    "--check-untyped-defs",
    "--allow-redefinition",
    "--disable-error-code=no-redef",
    "--disable-error-code=import-untyped",
)


def read_program(page: Path) -> str:
    """Returns the code of all blocks of a page."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert blocks, f"no code in {page}"
    lines = [line for block in blocks for line in block.splitlines()]
    return "\n".join([*(line[4:] for line in lines if line[:3] in (">>>", "...")), ""])


with tempfile.TemporaryDirectory() as folder:
    programs = {Path(folder) / f"{Path(page).stem}.py": page for page in sys.argv[1:]}
    for path, page in programs.items():
        path.write_text(read_program(Path(page)), "utf-8")
    said = "".join(api.run([*OPTIONS, str(path)])[0] for path in programs)
errors = [line for line in said.splitlines() if "error:" in line and not UNSEEN.search(line)]
if errors:
    sys.exit("\n".join(errors))
print(f"the code of {len(programs)} documents passes mypy")
