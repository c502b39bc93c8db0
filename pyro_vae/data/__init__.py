"""Data: tensors with their split, labels and binarization protocol."""

from pyro_vae.data.arrays import array, frey_faces
from pyro_vae.data.base import Batch, Data, Rows, Split
from pyro_vae.data.counts import counts
from pyro_vae.data.covariates import Covariate, Covariates
from pyro_vae.data.digits import digits
from pyro_vae.data.images import images
from pyro_vae.data.incomplete import incomplete
from pyro_vae.data.pitfalls import collapse, manifold, two_modes
from pyro_vae.data.preparation import PROTOCOLS, Preparation, Scaling
from pyro_vae.data.tables import table
from pyro_vae.data.toys import checkerboard, moons, pinwheel, ring
from pyro_vae.data.vision import (
    cifar10,
    emnist,
    fashion_mnist,
    kmnist,
    mnist,
    omniglot,
    svhn,
)
from pyro_vae.data.waves import waves
from pyro_vae.tables.schema import Column, Schema

__all__ = [
    "PROTOCOLS",
    "Batch",
    "Column",
    "Covariate",
    "Covariates",
    "Data",
    "Preparation",
    "Rows",
    "Scaling",
    "Schema",
    "Split",
    "array",
    "checkerboard",
    "cifar10",
    "collapse",
    "counts",
    "digits",
    "emnist",
    "fashion_mnist",
    "frey_faces",
    "images",
    "incomplete",
    "kmnist",
    "manifold",
    "mnist",
    "moons",
    "omniglot",
    "pinwheel",
    "ring",
    "svhn",
    "table",
    "two_modes",
    "waves",
]
