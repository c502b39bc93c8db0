"""Variational autoencoders as first-class citizens of Pyro.

Shapes follow one convention: data ``x`` is ``(*batch, *event)``, latents ``z`` are
``(*batch, latent_dim)``, and particles are leftmost, ``(particles, *batch, ...)``. All
information is in nats.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae import (
        compiled,
        data,
        distributions,
        evaluate,
        kl,
        likelihoods,
        networks,
        objectives,
        plots,
        posteriors,
        priors,
        report,
        reuse,
        sweeps,
        trackers,
        transforms,
    )
    from pyro_vae.compiled.step import compile
    from pyro_vae.sklearn import VAEDetector, VAEImputer, VAETransformer
    from pyro_vae.training.ensemble import fit_many
    from pyro_vae.training.single import FitResult, fit
    from pyro_vae.vae.autoguide import AutoVAEGuide
    from pyro_vae.vae.serialization import load, save
    from pyro_vae.vae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "AutoVAEGuide",
    "FitResult",
    "VAEDetector",
    "VAEImputer",
    "VAETransformer",
    "compile",
    "compiled",
    "data",
    "distributions",
    "evaluate",
    "fit",
    "fit_many",
    "kl",
    "likelihoods",
    "load",
    "networks",
    "objectives",
    "plots",
    "posteriors",
    "priors",
    "report",
    "reuse",
    "save",
    "sweeps",
    "trackers",
    "transforms",
]

HOMES = {
    "VAE": "pyro_vae.vae",
    "AutoVAEGuide": "pyro_vae.vae.autoguide",
    "FitResult": "pyro_vae.training",
    "VAEDetector": "pyro_vae.sklearn",
    "VAEImputer": "pyro_vae.sklearn",
    "VAETransformer": "pyro_vae.sklearn",
    "compile": "pyro_vae.compiled.step",
    "fit": "pyro_vae.training",
    "fit_many": "pyro_vae.training.ensemble",
    "load": "pyro_vae.vae.serialization",
    "save": "pyro_vae.vae.serialization",
}


def __getattr__(name: str) -> Any:
    # Hydra imports this package for shell completion, which must not wait for PyTorch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
