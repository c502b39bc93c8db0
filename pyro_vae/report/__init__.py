"""The report of a run: one self-contained HTML page and its figures."""

from pyro_vae.report.page import Figure, Picture, Report, write

__all__ = ["Figure", "Picture", "Report", "write"]
