"""What a scenario is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Fails:
    """An inference that cannot work here: its error, and in a few words why."""

    error: type[Exception]
    match: str
    why: str


NO_GRADIENT_BY_PATH = {
    "TraceMeanField_ELBO": Fails(
        NotImplementedError,
        "must be fully reparameterized",
        "needs a gradient through every draw of the guide, which a discrete one does not have",
    ),
    **{
        ours: Fails(
            ValueError,
            "Expected reparameterized sites in the guide",
            "needs a gradient through every draw of the guide, which a discrete one does not have",
        )
        for ours in ("ELBO", "IWAE")
    },
}
"""What cannot work where a site of the guide is discrete."""


@dataclass(frozen=True)
class Scenario:
    """A model and guide, what they are called with, and what every inference has to reach.

    Attributes:
        model: The model.
        guide: The guide.
        args: What both are called with.
        modules: All networks, whose parameters every training step has to change.
        latent: The latent sites of the guide.
        max_plate_nesting: How deep the plates are.
        discrete: Whether a site is enumerated.
        initial: Makes starting values for Hamiltonian Monte Carlo of the continuous latent sites.
        fails: The inferences that cannot work, by their name in ``inferences.INFERENCES``.
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
