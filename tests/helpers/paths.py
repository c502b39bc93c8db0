"""Folders that tests read."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PYRO_VAE_DATA") or ROOT.parent / "shared" / "data")
"""Real MNIST and Frey Faces."""
