"""Evaluation of a trained VAE: functions from data to nats, one value per datum."""

from pyro_vae.evaluate.bound import Bound, elbo
from pyro_vae.evaluate.evidence import Evidence, log_evidence
from pyro_vae.evaluate.held_out import compute_p_values
from pyro_vae.evaluate.imputation import Imputation, impute
from pyro_vae.evaluate.latents import active_units, kl_per_dimension, posterior_means
from pyro_vae.evaluate.transfer import transfer

__all__ = [
    "Bound",
    "Evidence",
    "Imputation",
    "active_units",
    "compute_p_values",
    "elbo",
    "impute",
    "kl_per_dimension",
    "log_evidence",
    "posterior_means",
    "transfer",
]
