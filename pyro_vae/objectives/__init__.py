"""Objectives: subclasses of ``pyro.infer.ELBO`` for any Pyro model and guide.

Each has ``loss``, ``loss_and_grads`` and ``differentiable_loss``, in nats summed over the data, so
that it serves ``SVI``, ``objective(model, guide)`` with an optimizer of PyTorch's, and a direct
call. None reads a tensor back to the host.
"""

from pyro_vae.objectives.base import Objective, Values
from pyro_vae.objectives.closed import KLTerm, kl_report
from pyro_vae.objectives.elbo import ELBO
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.schedules import Constant, Cosine, Cyclical, Linear, Schedule, Sigmoid

__all__ = [
    "ELBO",
    "IWAE",
    "Constant",
    "Cosine",
    "Cyclical",
    "KLTerm",
    "Linear",
    "Objective",
    "Schedule",
    "Sigmoid",
    "Values",
    "kl_report",
]
