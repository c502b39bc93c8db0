"""The type of a scenario."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Fails:
    """An inference that does not work here: its error, and a short reason."""

    error: type[Exception]
    match: str
    why: str


NO_GRADIENT_BY_PATH = {
    "TraceMeanField_ELBO": Fails(
        NotImplementedError,
        "must be fully reparameterized",
        "needs a reparameterized guide; a discrete site has no pathwise gradient",
    ),
    **{
        ours: Fails(
            ValueError,
            "Expected reparameterized sites in the guide",
            "needs a reparameterized guide; a discrete site has no pathwise gradient",
        )
        for ours in ("ELBO", "IWAE")
    },
}
"""The inferences that do not work if a site of the guide is discrete."""


@dataclass(frozen=True)
class Scenario:
    """A model and guide, their arguments, and the sites and parameters for every inference.

    Attributes:
        model: The model.
        guide: The guide.
        args: The arguments of both.
        modules: All networks; every training step has to change all of their parameters.
        latent: The latent sites of the guide.
        max_plate_nesting: The depth of the plates.
        discrete: Whether a site is enumerated.
        initial: Returns initial values for Hamiltonian Monte Carlo of the continuous latent sites.
        fails: The inferences that do not work, by their name in ``inferences.INFERENCES``.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    modules: nn.ModuleList
    latent: tuple[str, ...]
    max_plate_nesting: int = 1
    discrete: bool = False
    initial: Callable[[], dict[str, Any]] | None = None
    fails: dict[str, Fails] = field(default_factory=dict)
