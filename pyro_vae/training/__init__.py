"""Training of one VAE or an ensemble, with checkpoints from which it resumes bit for bit."""

from pyro_vae.training.ensemble import fit_many
from pyro_vae.training.single import FitResult, Tracker, fit

__all__ = ["FitResult", "Tracker", "fit", "fit_many"]
