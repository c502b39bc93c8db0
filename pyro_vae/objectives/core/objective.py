"""The base class of all objectives."""

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

from pyro_vae.display.text import describe_arguments, describe_fields
from pyro_vae.guard import guard_process_state
from pyro_vae.objectives.core.fallback import describe_failure, is_captured, restore_on_error
from pyro_vae.objectives.core.sites import AnyTrace, Pair
from pyro_vae.objectives.core.tracing import (
    DetachSamples,
    Layout,
    ShareSites,
    compute_layout,
    run_pair,
    run_without_side_effects,
    vectorize,
)
from pyro_vae.objectives.core.user_lines import find_stacklevel
from pyro_vae.validation import check_choice, check_scalar

__all__ = ["Facts", "Objective", "RunOptions", "Values", "check_choice", "check_scalar"]


class RunOptions(TypedDict, total=False):
    """The keyword arguments that all objectives have in common; see :class:`Objective`."""

    max_plate_nesting: float
    vectorize_particles: bool
    retain_graph: bool | None
    strict_enumeration_warning: bool
    ignore_jit_warnings: bool


class Facts(NamedTuple):
    """One row of the table that compares the objectives.

    Attributes:
        optimizes: The quantity that is maximized.
        bound: The quantity that it bounds.
        unbiased: Whether the gradient is unbiased.
        closed_form: Whether it uses a KL in closed form.
        additive: Whether it is a sum over data, which allows batches of any size.
        source: The paper.
    """

    optimizes: str
    bound: str
    unbiased: str
    closed_form: str
    additive: str
    source: str


class Values(NamedTuple):
    """The value and the terms of an objective, in nats for each datum, without plate scales.

    Attributes:
        objective: The maximized quantity, of the shape of the data plates. ``None`` if no value
            per datum exists: a site lies outside of the data plates, or the objective depends on
            the means of a batch or on thresholds.
        log_likelihood: E_q[log p] of each observed site, the mean over particles.
        rate: The KL of guide to model at each latent site, closed form or sampled.
        log_weights: The log importance weights, ``(particles, *plates)``; ``None`` for an
            objective without them.
        rate_per_dimension: The rate of each dimension, ``(*plates, *event)``, for the latent sites
            at which both guide and model factorize over dimensions; they sum to the site's rate.
    """

    # Any, because a caller knows whether an objective has these, and need not check for None.
    objective: Tensor | Any
    log_likelihood: dict[str, Tensor]
    rate: dict[str, Tensor]
    log_weights: Tensor | Any
    rate_per_dimension: dict[str, Tensor]

    def __repr__(self) -> str:
        return describe_fields(self)


class Objective(pyro.infer.ELBO):
    """A loss for Pyro models and guides of static structure with reparameterized latent sites.

    A site that is not fully reparameterized raises an error. So does a batch without a plate,
    at the first call and under every validation setting of Pyro.

    Arguments:
        num_particles: The number of samples drawn from the guide for each datum.
        max_plate_nesting: The depth of the plates of the model; inferred by one run by default.
        vectorize_particles: Whether all particles are drawn in one run, in a plate to the left of
            all others, or in one run each. A model that fails in a vectorized run is run once per
            particle from then on, after one warning.
        retain_graph: Passed to ``backward`` by ``loss_and_grads``.
        strict_enumeration_warning: Ignored; accepted for compatibility with Pyro's objectives. An
            enumerated site raises an error.
        ignore_jit_warnings: Ignored; accepted for compatibility with Pyro's objectives.

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
        is_integer = isinstance(num_particles, Integral) and not isinstance(num_particles, bool)
        if not is_integer or num_particles < 1:
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
        self._requested_nesting = max_plate_nesting
        self._layouts = WeakIdKeyDictionary()

    def __repr__(self) -> str:
        return describe_arguments(self, "num_particles")

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without the cached layouts, whose keys are models of the caller."""
        return {**vars(self), "_layouts": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the state with an empty cache of layouts."""
        vars(self).update(state, _layouts=WeakIdKeyDictionary())

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state that a resumed training needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the state that :meth:`state_dict` returned."""

    @abstractmethod
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns the loss as a scalar tensor, with the gradient of the objective."""

    @abstractmethod
    def values(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Values:
        """Returns the objective and its terms for each datum."""

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Returns the loss as a number, without gradients; warns of NaN, as Pyro does."""
        with torch.no_grad():
            return _to_number(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Returns the loss as a number, and accumulates the gradient of every parameter."""
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
        """Returns the traces of one run; Pyro's base class requires this method."""
        return run_pair(type(self).__name__, model, guide, args, kwargs)

    def _find_shared_sites(self, guide_trace: AnyTrace) -> frozenset[str]:
        """Returns the sites of a guide that are drawn once for all particles."""
        return frozenset()

    @guard_process_state
    def _run_particles(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        detach: bool = False,
        same_rows: bool = True,
    ) -> tuple[list[Pair], int | None]:
        """Returns the traces, and the dimension of the particles after a vectorized run.

        Arguments:
            model: The model.
            guide: The guide.
            args: The positional arguments of both.
            kwargs: The keyword arguments of both.
            detach: Whether samples are detached, except those that all particles share.
            same_rows: Whether a subsampling plate has the same rows in all sequential runs, as it
                has in a vectorized run.
        """
        program = _Program(type(self).__name__, model, guide, args, kwargs, detach, same_rows)
        if not self.vectorize_particles or self.num_particles == 1:
            return self._run_in_loop(program)
        layout = self._get_layout(program)
        if layout.in_loop:
            return self._run_in_loop(program)
        try:
            with restore_on_error():
                return self._run_with_layout(program, layout, self._run_vectorized)
        except Exception as error:
            # A lack of memory, or an operation that cannot be captured, is not a failure of the
            # model.
            if is_captured() or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            failure = describe_failure(error)
        # Outside of the handler, because the exception keeps the tensors of the failed run alive.
        result = self._run_in_loop(program)
        self._store_layout(program, layout._replace(in_loop=True))
        warnings.warn(
            f"The model and guide fail with all {self.num_particles} particles at once: {failure}. "
            f"{program.objective} runs them once per particle instead, which is slower: pass "
            f"vectorize_particles=False to silence this, or allow for a plate to the left of all "
            f"others in the model",
            stacklevel=find_stacklevel(),
        )
        return result

    def _run_in_loop(self, program: "_Program") -> tuple[list[Pair], int | None]:
        if program.detach and self._can_share_sites:
            return self._run_with_layout(program, self._get_layout(program), self._run_sequentially)
        return self._run_sequentially(program, Layout(0, frozenset()))

    def _run_with_layout(
        self, program: "_Program", layout: Layout, run: "_RunParticles"
    ) -> tuple[list[Pair], int | None]:
        """Draws the particles; repeats the run if the sites that they share have changed."""
        pairs, dim = run(program, layout)
        shared = self._find_shared_sites(pairs[0].guide)
        changed = shared != layout.shared
        layout = layout._replace(shared=shared)
        if changed:
            self._store_layout(program, layout)
            pairs, dim = run(program, layout)
        if dim is not None and layout.in_loop is None:
            self._store_layout(program, layout._replace(in_loop=False))
        return pairs, dim

    @property
    def _can_share_sites(self) -> bool:
        return type(self)._find_shared_sites is not Objective._find_shared_sites

    def _run_vectorized(self, program: "_Program", layout: Layout) -> tuple[list[Pair], int | None]:
        dim = -1 - layout.nesting
        guide = vectorize(program.guide, self.num_particles, dim)
        vectorized = program._replace(
            model=vectorize(program.model, self.num_particles, dim),
            guide=ShareSites(layout.shared, dim)(guide) if layout.shared else guide,
        )
        # The first run is checked under every validation setting, because a model that broadcasts
        # particles over data raises no error.
        return [vectorized.run_once(layout.shared, -dim, check=layout.in_loop is None)], dim

    def _run_sequentially(
        self, program: "_Program", layout: Layout
    ) -> tuple[list[Pair], int | None]:
        """Runs once per particle; replays the rows and the shared sites of the first run."""
        first = program.run_once(layout.shared)
        if self.num_particles == 1:
            return [first], None
        rows, shared = poutine.Trace(), poutine.Trace()
        if program.same_rows:
            rows.nodes.update(first.plate_sites)
            shared.nodes.update(first.plate_sites)
        shared.nodes.update(
            {name: first.guide.nodes[name] for name in self._find_shared_sites(first.guide)}
        )
        replayed = program
        if shared.nodes:
            replayed = program._replace(
                model=poutine.replay(program.model, trace=rows),
                guide=poutine.replay(program.guide, trace=shared),
            )
        further = [replayed.run_once(layout.shared) for _ in range(self.num_particles - 1)]
        return [first, *further], None

    def _get_layout(self, program: "_Program") -> Layout:
        model, model_function = _get_owner(program.model)
        guide, guide_function = _get_owner(program.guide)
        layout = None
        with suppress(KeyError, TypeError):
            layout = self._layouts[model][guide].get((model_function, guide_function))
        if layout is None:
            layout = self._find_layout(program)
            self._store_layout(program, layout)
        if self._requested_nesting == float("inf"):
            return layout
        if self._requested_nesting < layout.nesting:
            raise ValueError(
                f"Expected max_plate_nesting to be at least {layout.nesting}, the depth of the "
                f"plates of the model, got {self._requested_nesting}: omit it to infer the depth"
            )
        return layout._replace(nesting=int(self._requested_nesting))

    def _find_layout(self, program: "_Program") -> Layout:
        """Infers the layout by a run without particles.

        A model that needs particles fails here, which is ignored if ``max_plate_nesting`` is set.
        """
        try:
            traces = run_without_side_effects(*program[1:5])
        except Exception:
            if self._requested_nesting == float("inf"):
                raise
            return Layout(int(self._requested_nesting), frozenset())
        return compute_layout(traces, self._find_shared_sites)

    def _store_layout(self, program: "_Program", layout: Layout) -> None:
        """Caches a layout, unless model or guide do not support weak references."""
        model, model_function = _get_owner(program.model)
        guide, guide_function = _get_owner(program.guide)
        with suppress(TypeError):
            layouts_of_model = self._layouts.setdefault(model, WeakIdKeyDictionary())
            layouts_of_model.setdefault(guide, {})[model_function, guide_function] = layout


def _get_owner(function: Callable[..., Any]) -> tuple[Any, Any]:
    """Returns an object as long-lived as the function; each access makes a new bound method."""
    return getattr(function, "__self__", function), getattr(function, "__func__", None)


class _Program(NamedTuple):
    """A model and guide with their arguments and the options of a run."""

    objective: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    detach: bool
    same_rows: bool

    def run_once(
        self, shared: frozenset[str], nesting: float = float("inf"), *, check: bool = False
    ) -> Pair:
        """Runs guide and model once; if ``detach``, all but the shared samples are detached."""
        detach = DetachSamples(shared) if self.detach else None
        return run_pair(*self[:5], nesting, detach, check=check)


_RunParticles = Callable[[_Program, Layout], tuple[list[Pair], int | None]]


def _to_number(loss: Tensor) -> float:
    number = loss.item()
    warn_if_nan(number, "loss")  # type: ignore[call-overload]
    return number
