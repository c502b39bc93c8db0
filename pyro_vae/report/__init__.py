"""The report of a run: one self-contained HTML page and its figures."""

from pyro_vae.report.page import Figure, LatentMap, Metric, Report, Table, write

__all__ = ["Figure", "LatentMap", "Metric", "Report", "Table", "write"]
