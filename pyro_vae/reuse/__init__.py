"""Finished runs: evaluate them on other data, and write embeddings, scores and rows to files."""

from pyro_vae.reuse.embedding import embed
from pyro_vae.reuse.evaluate_run import judge_run, summary, write_evaluation
from pyro_vae.reuse.finished_run import preparation
from pyro_vae.reuse.imputed_rows import impute
from pyro_vae.reuse.samples import sample
from pyro_vae.reuse.scores import score

__all__ = [
    "embed",
    "impute",
    "judge_run",
    "preparation",
    "sample",
    "score",
    "summary",
    "write_evaluation",
]
