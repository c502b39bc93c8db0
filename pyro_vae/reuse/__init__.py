"""Finished runs: evaluate them on other data, and write embeddings to a file."""

from pyro_vae.reuse.embedding import embed
from pyro_vae.reuse.evaluate_run import judge_run, summary, write_evaluation
from pyro_vae.reuse.finished_run import preparation

__all__ = ["embed", "judge_run", "preparation", "summary", "write_evaluation"]
