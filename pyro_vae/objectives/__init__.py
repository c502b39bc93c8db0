"""Objectives: subclasses of ``pyro.infer.ELBO`` for any Pyro model and guide.

Each has ``loss``, ``loss_and_grads`` and ``differentiable_loss``, in nats summed over the data.
They work with ``SVI``, with ``objective(model, guide)`` and a PyTorch optimizer, and in a direct
call. The first two return numbers, as Pyro's do; the last returns a tensor without synchronizing
with the device.
"""

from pyro_vae.objectives.capacity import Capacity
from pyro_vae.objectives.ciwae import CIWAE
from pyro_vae.objectives.core.importance_weighted import ImportanceWeighted
from pyro_vae.objectives.core.kl_report import KLTerm, kl_report
from pyro_vae.objectives.core.objective import Facts, Objective, Values
from pyro_vae.objectives.elbo import ELBO
from pyro_vae.objectives.free_bits import FreeBits
from pyro_vae.objectives.geco import GECO
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.jackknife import Jackknife
from pyro_vae.objectives.miwae import MIWAE
from pyro_vae.objectives.piwae import PIWAE
from pyro_vae.objectives.renyi import Renyi
from pyro_vae.objectives.schedules import Constant, Cosine, Cyclical, Linear, Schedule, Sigmoid

__all__ = [
    "CIWAE",
    "ELBO",
    "GECO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "Capacity",
    "Constant",
    "Cosine",
    "Cyclical",
    "Facts",
    "FreeBits",
    "ImportanceWeighted",
    "Jackknife",
    "KLTerm",
    "Linear",
    "Objective",
    "Renyi",
    "Schedule",
    "Sigmoid",
    "Values",
    "kl_report",
]
