"""Input transforms: functions of the data in front of the encoder."""

from pyro_vae.transforms.base import InputTransform
from pyro_vae.transforms.columns import Columns
from pyro_vae.transforms.identity import Identity
from pyro_vae.transforms.log1p import Log1p
from pyro_vae.transforms.one_hot import OneHot
from pyro_vae.transforms.standardize import Standardize

__all__ = ["Columns", "Identity", "InputTransform", "Log1p", "OneHot", "Standardize"]
