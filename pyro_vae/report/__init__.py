"""The report of a run: one self-contained HTML page and its figures."""

from pyro_vae.report.page import Figure, Picture, Report, Table, write

__all__ = ["Figure", "Picture", "Report", "Table", "write"]
