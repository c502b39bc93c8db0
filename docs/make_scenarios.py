"""Prints the table of docs/scenarios/index.md: python docs/make_scenarios.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from scenarios.table import table

if __name__ == "__main__":
    print(table())
