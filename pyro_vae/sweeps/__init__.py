"""Sweeps: jobs that are named by what they compute, survive each other, and can be run again."""

from pyro_vae.sweeps.job_id import run_id

__all__ = ["run_id"]
