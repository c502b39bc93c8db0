"""The bound on the validation rows after each epoch."""

import pyro

from pyro_vae.data import Rows
from pyro_vae.evaluate.bound import estimate_elbo, make_bound_scorer
from pyro_vae.evaluate.chunks import MAX_ELEMENTS
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.vae.vae import VAE

__all__ = ["Validator"]

_USUAL_EPOCHS = 100
"""A number of epochs for the decision to compile, which a resumed training must not change."""


class Validator:
    """Computes the ELBO of the validation rows, with the same noise at each call.

    Arguments:
        vae: The VAE.
        valid: The rows.
        seed: The seed of the noise.
        compiled: Whether to use a compiled graph where that saves time.
    """

    def __init__(self, vae: VAE, valid: Rows, seed: int, *, compiled: bool) -> None:
        self.vae, self.valid, self.seed = vae, valid, seed
        with pyro.validation_enabled(False):
            self.scorer = make_bound_scorer(
                vae, valid.x, 1, MAX_ELEMENTS, "auto" if compiled else False, calls=_USUAL_EPOCHS
            )

    def __call__(self) -> dict[str, float]:
        """Returns the means of ELBO, rate and distortion."""
        x, mask, _, covariates = self.valid
        with fork_and_seed_rng(x.device, self.seed), pyro.validation_enabled(False):
            bound, _ = estimate_elbo(
                self.vae, x, covariates=covariates, mask=mask, scorer=self.scorer
            )
        return {
            "valid_elbo": bound.elbo.mean().item(),
            "valid_rate": bound.rate.mean().item(),
            "valid_distortion": bound.distortion.mean().item(),
        }
