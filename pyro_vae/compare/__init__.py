"""Comparison of runs: differing settings, means over seeds, paired differences, uncertainty.

Nothing here needs PyTorch.
"""

from pyro_vae.compare.comparison import Comparison, Group, compare
from pyro_vae.compare.csv_table import build_csv
from pyro_vae.compare.latex import build_latex
from pyro_vae.compare.markdown import build_markdown
from pyro_vae.compare.page import build_page
from pyro_vae.compare.plane import draw_figure, render_figure

__all__ = [
    "Comparison",
    "Group",
    "build_csv",
    "build_latex",
    "build_markdown",
    "build_page",
    "compare",
    "draw_figure",
    "render_figure",
]
