"""Fails unless the Python code of a document passes mypy, as a user's program would."""

import re
import sys
import tempfile
from pathlib import Path

from mypy import api

# Pyro makes its optimizers at run time, so that no type checker sees them.
PYRO = re.compile(r'error: Module has no attribute "Adam"')

blocks = re.findall(r"```python\n(.*?)```", Path(sys.argv[1]).read_text("utf-8"), re.DOTALL)
assert blocks, "no code"
imports: list[str] = []
with tempfile.TemporaryDirectory() as folder:
    for number, block in enumerate(blocks):
        lines = [line[4:] for line in block.splitlines() if line[:3] in (">>>", "...")]
        program = Path(folder) / f"program{number}.py"
        program.write_text("\n".join([*imports, *lines, ""]), "utf-8")
        # Only imports are carried on: the documents use a name for several things.
        imports += [line for line in lines if line.startswith(("import ", "from "))]
    # An empty configuration: a user has his own.
    said, _, _ = api.run(
        ["--config-file=", "--check-untyped-defs", *map(str, sorted(Path(folder).iterdir()))]
    )
errors = [line for line in said.splitlines() if "error:" in line and not PYRO.search(line)]
if errors:
    sys.exit("\n".join(errors))
print(f"{len(blocks)} programs of {sys.argv[1]} pass mypy")
