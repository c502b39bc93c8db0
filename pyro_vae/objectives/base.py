"""What all objectives share: particles, the three ways to be called, values for each datum."""

import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.infer
import torch
from torch import Tensor

from pyro_vae.objectives.traces import Pair, plate_nesting, run_pair, vectorized

__all__ = ["Objective", "Values"]


class Values(NamedTuple):
    """What an objective is made of, in nats for each datum, before any plate's scale.

    Attributes:
        objective: The bound, of the shape of the data plates; what training maximizes. ``None``
            where a site lies outside of the data plates and no such value exists.
        log_likelihood: For each observed site E_q[log p], the mean over particles.
        rate: For each latent site the KL of guide to model, closed form or sampled.
        log_weights: The log importance weights, ``(particles, *plates)``; ``None`` where the
            objective has none.
    """

    objective: Tensor | None
    log_likelihood: dict[str, Tensor]
    rate: dict[str, Tensor]
    log_weights: Tensor | None


class Objective(pyro.infer.ELBO):
    """A loss for Pyro models and guides of static structure with reparameterized latent sites.

    Arguments:
        num_particles: The number of samples drawn from the guide for each datum.
        max_plate_nesting: How deep the plates of the model are; found by one run if not given.
        vectorize_particles: Whether particles are drawn at once, in a plate to the left of all
            others, or by one run each.
        retain_graph: Passed to ``backward`` by ``loss_and_grads``.

    Raises:
        ValueError: If ``num_particles`` is not a positive integer.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        whole = isinstance(num_particles, int) and not isinstance(num_particles, bool)
        if not whole or num_particles < 1:
            raise ValueError(
                f"Expected num_particles to be a positive integer, got {num_particles!r}"
            )
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self._given_nesting = max_plate_nesting
        self._nestings: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles without what was found out about models, which are not its own."""
        return {**vars(self), "_nestings": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Starts with nothing known about any model."""
        vars(self).update(state, _nestings=weakref.WeakKeyDictionary())

    @abstractmethod
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns the loss as a scalar tensor, whose gradient is that of the objective."""

    @abstractmethod
    def values(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Values:
        """Returns the objective and its terms for each datum."""

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns the loss without its gradient."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs)

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns the loss, and adds its gradient to that of every parameter."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.detach()

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Pair:
        """Returns the traces of one run, the method that Pyro's base class asks for."""
        return run_pair(type(self).__name__, model, guide, args, kwargs)

    def _run(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[list[Pair], int | None]:
        """Returns the traces, and the dimension of the particles if they stand in one trace."""
        if self.num_particles == 1 or not self.vectorize_particles:
            pairs = [self._get_trace(model, guide, args, kwargs) for _ in range(self.num_particles)]
            dim = None
        else:
            nesting = self._nesting(model, guide, args, kwargs)
            dim = -1 - nesting
            pairs = [
                run_pair(
                    type(self).__name__,
                    vectorized(model, self.num_particles, dim),
                    vectorized(guide, self.num_particles, dim),
                    args,
                    kwargs,
                    nesting + 1,
                )
            ]
        return pairs, dim

    def _nesting(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> int:
        """Returns the depth of the plates, found once for each model."""
        if self._given_nesting != float("inf"):
            return int(self._given_nesting)
        try:
            known = self._nestings.get(model)
        except TypeError:
            return plate_nesting(model, guide, args, kwargs)
        if known is None:
            known = self._nestings[model] = plate_nesting(model, guide, args, kwargs)
        return known
