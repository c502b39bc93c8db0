"""What all objectives share: particles, the three ways to be called, values for each datum."""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, TypedDict

import pyro.infer
import torch
from pyro import poutine
from pyro.util import warn_if_nan
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pyro_vae.guard import guard_process_state
from pyro_vae.objectives.core.fallback import describe_failure, is_captured, undone_on_error
from pyro_vae.objectives.core.sites import AnyTrace, Pair
from pyro_vae.objectives.core.tracing import (
    Cut,
    Layout,
    Shared,
    layout,
    run_pair,
    run_undisturbed,
    vectorized,
)
from pyro_vae.validation import check_choice, check_scalar

__all__ = ["Facts", "Objective", "RunOptions", "Values", "check_choice", "check_scalar"]


class RunOptions(TypedDict, total=False):
    """How particles are drawn, the same for all objectives; see :class:`Objective`."""

    max_plate_nesting: float
    vectorize_particles: bool
    retain_graph: bool | None
    strict_enumeration_warning: bool
    ignore_jit_warnings: bool


class Facts(NamedTuple):
    """One row of the table that compares the objectives.

    Attributes:
        optimizes: What is maximized.
        bound: What it is a bound on.
        unbiased: Of what its gradient is an unbiased estimate.
        closed_form: Where it needs a KL in closed form.
        additive: Whether it is a sum over data, so that batches may be of any size.
        source: The paper.
    """

    optimizes: str
    bound: str
    unbiased: str
    closed_form: str
    additive: str
    source: str


class Values(NamedTuple):
    """What an objective is made of, in nats for each datum, before any plate's scale.

    Attributes:
        objective: The bound, of the shape of the data plates; what training maximizes. ``None``
            where a site lies outside of the data plates, or the objective is a function of a
            batch's means or thresholds, and no such value exists.
        log_likelihood: For each observed site E_q[log p], the mean over particles.
        rate: For each latent site the KL of guide to model, closed form or sampled.
        log_weights: The log importance weights, ``(particles, *plates)``; ``None`` where the
            objective has none.
        rate_per_dimension: The rate of each dimension, ``(*plates, *event)``, for the latent sites
            at which both guide and model factorize over dimensions; they sum to the site's rate.
    """

    objective: Tensor | None
    log_likelihood: dict[str, Tensor]
    rate: dict[str, Tensor]
    log_weights: Tensor | None
    rate_per_dimension: dict[str, Tensor]


class Objective(pyro.infer.ELBO):
    """A loss for Pyro models and guides of static structure with reparameterized latent sites.

    A site that is not reparameterized, or only partly, is refused. So is a batch without a plate,
    at the first call and whatever Pyro's validation setting is.

    Arguments:
        num_particles: The number of samples drawn from the guide for each datum.
        max_plate_nesting: How deep the plates of the model are; found by one run if not given.
        vectorize_particles: Whether particles are drawn at once, in a plate to the left of all
            others, or by one run each. A model that fails with all at once is run once per
            particle from then on, with one warning.
        retain_graph: Passed to ``backward`` by ``loss_and_grads``.
        strict_enumeration_warning: Without effect, accepted as by Pyro's objectives: a site that
            is enumerated raises an error.
        ignore_jit_warnings: Without effect, accepted as by Pyro's objectives.

    Raises:
        ValueError: If ``num_particles`` is not a positive integer.
    """

    facts: ClassVar[Facts]

    def __init__(
        self,
        num_particles: int = 1,
        *,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
        strict_enumeration_warning: bool = True,
        ignore_jit_warnings: bool = False,
    ) -> None:
        whole = isinstance(num_particles, Integral) and not isinstance(num_particles, bool)
        if not whole or num_particles < 1:
            raise ValueError(
                f"Expected num_particles to be a positive integer, got {num_particles!r}"
            )
        super().__init__(
            num_particles=int(num_particles),
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
            strict_enumeration_warning=strict_enumeration_warning,
            ignore_jit_warnings=ignore_jit_warnings,
        )
        self._given_nesting = max_plate_nesting
        self._layouts = WeakIdKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles without what was found out about models, which are not its own."""
        return {**vars(self), "_layouts": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Starts with nothing known about any model."""
        vars(self).update(state, _layouts=WeakIdKeyDictionary())

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what the objective has learned, which a training that goes on needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state_dict` returned."""

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
    ) -> float:
        """Returns the loss as a number, without its gradient; warns of NaN, as Pyro does."""
        with torch.no_grad():
            return _to_number(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Returns the loss as a number, and adds its gradient to that of every parameter."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return _to_number(loss.detach())

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Pair:
        """Returns the traces of one run, the method that Pyro's base class asks for."""
        return run_pair(type(self).__name__, model, guide, args, kwargs)

    def _shared(self, guide_trace: AnyTrace) -> frozenset[str]:
        """Returns the sites of a guide that all particles have in common."""
        return frozenset()

    @guard_process_state
    def _run(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        cut: bool = False,
        same_rows: bool = True,
    ) -> tuple[list[Pair], int | None]:
        """Returns the traces, and the dimension of the particles if they stand in one trace.

        Arguments:
            model: The model.
            guide: The guide.
            args: What both are called with.
            kwargs: What both are called with.
            cut: Whether the way of the gradient through samples is cut, except through those that
                all particles have in common.
            same_rows: Whether a plate that subsamples has the same rows for particles that are
                drawn one by one, as it has for those drawn at once.
        """
        run = _Run(type(self).__name__, model, guide, args, kwargs, cut, same_rows)
        if not self.vectorize_particles or self.num_particles == 1:
            return self._in_loop(run)
        found = self._layout(run)
        if found.in_loop:
            return self._in_loop(run)
        try:
            with undone_on_error():
                return self._draw(run, found, self._at_once)
        except Exception as error:
            # A full memory, or an operation that a graph cannot hold, says nothing of the model.
            if is_captured() or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            failure = describe_failure(error)
        # Outside of the handler, which would keep the tensors of the failed run alive.
        result = self._in_loop(run)
        self._remember(run, found._replace(in_loop=True))
        warnings.warn(
            f"The model and guide fail with all {self.num_particles} particles at once: {failure}. "
            f"{run.objective} runs them once per particle instead, which is slower: pass "
            f"vectorize_particles=False to silence this, or allow for a plate to the left of all "
            f"others in the model",
            stacklevel=5,
        )
        return result

    def _in_loop(self, run: "_Run") -> tuple[list[Pair], int | None]:
        """Runs model and guide once per particle."""
        if run.cut and self._shares:
            return self._draw(run, self._layout(run), self._one_by_one)
        return self._one_by_one(run, Layout(0, frozenset()))

    def _draw(self, run: "_Run", found: Layout, draw: "_Draw") -> tuple[list[Pair], int | None]:
        """Draws the particles; a second time if the sites that they share are others."""
        pairs, dim = draw(run, found)
        shared = self._shared(pairs[0].guide)
        changed = shared != found.shared
        found = found._replace(shared=shared)
        if changed:
            self._remember(run, found)
            pairs, dim = draw(run, found)
        if dim is not None and found.in_loop is None:
            self._remember(run, found._replace(in_loop=False))
        return pairs, dim

    @property
    def _shares(self) -> bool:
        """Whether particles may have sites in common."""
        return type(self)._shared is not Objective._shared

    def _at_once(self, run: "_Run", found: Layout) -> tuple[list[Pair], int | None]:
        """Returns one run in a plate of particles."""
        dim = -1 - found.nesting
        guide = vectorized(run.guide, self.num_particles, dim)
        inside = run._replace(
            model=vectorized(run.model, self.num_particles, dim),
            guide=Shared(found.shared, dim)(guide) if found.shared else guide,
        )
        # The first time under every validation setting: a model that broadcasts particles
        # over data would go unnoticed.
        return [inside.pair(found.shared, -dim, check=found.in_loop is None)], dim

    def _one_by_one(self, run: "_Run", found: Layout) -> tuple[list[Pair], int | None]:
        """Returns a run for each particle, on the same rows, what is shared replayed."""
        first = run.pair(found.shared)
        if self.num_particles == 1:
            return [first], None
        rows, shared = poutine.Trace(), poutine.Trace()
        if run.same_rows:
            rows.nodes.update(first.subsampled)
            shared.nodes.update(first.subsampled)
        shared.nodes.update({name: first.guide.nodes[name] for name in self._shared(first.guide)})
        again = run
        if shared.nodes:
            again = run._replace(
                model=poutine.replay(run.model, trace=rows),
                guide=poutine.replay(run.guide, trace=shared),
            )
        others = [again.pair(found.shared) for _ in range(self.num_particles - 1)]
        return [first, *others], None

    def _layout(self, run: "_Run") -> Layout:
        """Returns the structure of a model and guide, found once for each pair."""
        (model, model_function), (guide, guide_function) = _owner(run.model), _owner(run.guide)
        found = None
        with suppress(KeyError, TypeError):
            found = self._layouts[model][guide].get((model_function, guide_function))
        if found is None:
            found = self._find_layout(run)
            self._remember(run, found)
        if self._given_nesting == float("inf"):
            return found
        if self._given_nesting < found.nesting:
            raise ValueError(
                f"Expected max_plate_nesting to be at least {found.nesting}, the depth of the "
                f"plates of the model, got {self._given_nesting}: leave it out to have it found"
            )
        return found._replace(nesting=int(self._given_nesting))

    def _find_layout(self, run: "_Run") -> Layout:
        """Runs a model without particles; one that needs them may fail if its depth is given."""
        try:
            both = run_undisturbed(*run[1:5])
        except Exception:
            if self._given_nesting == float("inf"):
                raise
            return Layout(int(self._given_nesting), frozenset())
        return layout(both, self._shared)

    def _remember(self, run: "_Run", found: Layout) -> None:
        """Keeps a structure for later calls, unless an object allows no weak reference."""
        (model, model_function), (guide, guide_function) = _owner(run.model), _owner(run.guide)
        with suppress(TypeError):
            of_guides = self._layouts.setdefault(model, WeakIdKeyDictionary())
            of_guides.setdefault(guide, {})[model_function, guide_function] = found


def _owner(function: Callable[..., Any]) -> tuple[Any, Any]:
    """Returns an object that lives as long as a function, which a bound method does not."""
    return getattr(function, "__self__", function), getattr(function, "__func__", None)


class _Run(NamedTuple):
    """A model and guide, and what they are called with."""

    objective: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cut: bool
    same_rows: bool

    def pair(
        self, shared: frozenset[str], nesting: float = float("inf"), *, check: bool = False
    ) -> Pair:
        """Runs both once, all but the shared sites cut if any are."""
        return run_pair(*self[:5], nesting, Cut(shared) if self.cut else None, check=check)


_Draw = Callable[[_Run, Layout], tuple[list[Pair], int | None]]


def _to_number(loss: Tensor) -> float:
    number = loss.item()
    warn_if_nan(number, "loss")  # type: ignore[call-overload]
    return number
