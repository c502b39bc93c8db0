"""Sweeps of independent, resumable jobs, each named by a hash of its configuration."""

from pyro_vae.sweeps.job_id import run_id

__all__ = ["run_id"]
