"""Running a guide, and a model against it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import is_validation_enabled, prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.objectives.core.sites import (
    PARTICLES,
    AnyTrace,
    Pair,
    bare_dims,
    is_drawn,
    is_point,
    sites,
)
from pyro_vae.objectives.core.support import check_fixed_support
from pyro_vae.param_store import remove

__all__ = [
    "OF_A_SAMPLE",
    "Cut",
    "Layout",
    "Shared",
    "first_not_finite",
    "layout",
    "run_pair",
    "run_undisturbed",
    "undisturbed",
    "vectorized",
]


OF_A_SAMPLE = "_pyro_vae_sample"
"""Marks the leaves that hold samples, which are no parameters."""

_UNQUANTIZED = "_unquantize"
"""The attribute of a straight-through sample in which Pyro keeps the relaxed sample."""


class Cut(Messenger):
    """Cuts the way of the gradient through the samples of a guide.

    The rest of the guide, and the model after it, go on with leaves that hold the samples, so that
    the derivative by each, all others fixed, can be had on its own.

    Arguments:
        kept: The sites that are not cut.

    Attributes:
        drawn: The samples by site, in the order in which they were drawn.
    """

    def __init__(self, kept: frozenset[str]) -> None:
        super().__init__()
        self.kept = kept
        self.drawn: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        # A point mass is a function of parameters and earlier samples, and has no score.
        if not is_drawn(msg) or msg["name"] in self.kept or is_point(msg["fn"]):
            return
        value: Any = msg["value"]
        if hasattr(value, _UNQUANTIZED):
            raise ValueError(
                f"Expected sites whose log density depends on their value alone for estimators "
                f"other than 'standard', got {msg['name']!r} from {type(msg['fn']).__name__}, "
                f"whose density is that of the relaxed sample: use estimator='standard'"
            )
        check_fixed_support(msg["name"], msg["fn"])
        # What has no derivative is refused later, by a check that names the way out.
        if value.is_floating_point():
            self.drawn[msg["name"]] = value
            msg["value"] = value.detach().requires_grad_()
            setattr(msg["value"], OF_A_SAMPLE, True)


class _Both(NamedTuple):
    """The traces of the model run against the guide and of the guide, and the sites of plates."""

    model: AnyTrace
    guide: AnyTrace
    subsampled: dict[str, Any]


class Layout(NamedTuple):
    """The structure of a model and guide.

    Attributes:
        nesting: The depth of the plates.
        shared: The sites that are drawn once for all particles.
        in_loop: Whether they are run once per particle, since a vectorized run has failed; ``None``
            before the first of them.
    """

    nesting: int
    shared: frozenset[str]
    in_loop: bool | None = None


def run_pair(
    objective: str,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    nesting: float = float("inf"),
    cut: Cut | None = None,
    *,
    check: bool = False,
) -> Pair:
    """Runs the guide, then the model against it, checks both, and computes all log densities.

    Pyro's own ``get_importance_trace`` warns of what is an error here, before it can be raised.
    Shapes are checked if Pyro's validation is enabled, and more strictly if ``check``.

    Raises:
        ValueError: If the two do not suit the objective, which is named.
    """
    both = _run_both(model, guide, args, kwargs, cut)
    model_trace, guide_trace = (
        _without_deterministic(both.model),
        _without_deterministic(both.guide),
    )
    pair = Pair(
        prune_subsample_sites(model_trace),
        prune_subsample_sites(guide_trace),
        {} if cut is None else cut.drawn,
        both.subsampled,
    )
    pair.check(objective)
    validated = is_validation_enabled()
    if validated:
        check_model_guide_match(model_trace, guide_trace, nesting)
    try:
        for trace in (pair.model, pair.guide):
            _compute(trace, nesting, check or validated)
            if check:
                _check_plates(trace)
    except (KeyError, NotImplementedError):
        _check_invertible(pair)
        raise
    return pair


def _run_both(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cut: Cut | None = None,
) -> _Both:
    """Runs the guide, and the model against it."""
    messenger = poutine.unwrap(guide)
    # Outermost, so that traces too hold what the program goes on with.
    with nullcontext() if cut is None else cut:
        if isinstance(messenger, GuideMessenger):
            # An effectful guide runs the model itself.
            guide(*args, **kwargs)
            # Pyro removes the sites of plates from the two traces.
            return _Both(*messenger.get_traces(), _subsampled(messenger.trace))
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    return _Both(model_trace, guide_trace, _subsampled(model_trace) | _subsampled(guide_trace))


def _subsampled(trace: AnyTrace) -> dict[str, Any]:
    """Returns the sites of the plates of a trace, which hold the rows of a batch."""
    return {name: site for name, site in sites(trace) if site_is_subsample(site)}


def _check_invertible(pair: Pair) -> None:
    """Raises a ``ValueError`` for a site whose log density needs an inverse that is unknown."""
    for name in pair.drawn:
        site = pair.guide.nodes[name]
        try:
            site["fn"].log_prob(site["value"])
        except (KeyError, NotImplementedError) as error:
            raise ValueError(
                f"Expected sites whose log density is known at any value for estimators other "
                f"than 'standard', got {name!r} from {type(site['fn']).__name__}, whose transform "
                f"cannot be inverted: use estimator='standard'"
            ) from error


def _without_deterministic(trace: AnyTrace) -> AnyTrace:
    """Returns a copy without the sites of ``pyro.deterministic``, which have no density."""
    trace = trace.copy()
    for name, site in list(sites(trace)):
        if site["infer"].get("_deterministic"):
            trace.remove_node(name)
    return trace


class Shared(Messenger):
    """Draws sites of a guide once for all particles of a plate to the left.

    Arguments:
        names: The sites.
        dim: The dimension of the particles.
    """

    def __init__(self, names: frozenset[str], dim: int) -> None:
        super().__init__()
        self.names, self.dim = names, dim

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.names or msg["done"] or msg["is_observed"]:
            return
        value = msg["fn"](*msg["args"], **msg["kwargs"])
        axis = self.dim - msg["fn"].event_dim
        msg["value"] = _repeat_first(value, axis)
        if hasattr(value, _UNQUANTIZED):
            setattr(msg["value"], _UNQUANTIZED, _repeat_first(getattr(value, _UNQUANTIZED), axis))
        msg["done"] = True


def _repeat_first(value: Tensor, axis: int) -> Tensor:
    return value.narrow(axis, 0, 1).expand(value.shape)


def _compute(trace: AnyTrace, nesting: Any, check: bool) -> None:
    """Computes the log densities of a trace, and checks their shapes."""
    trace.compute_log_prob()
    if check:
        for _, site in sites(trace):
            check_site_shape(site, nesting)


def _check_plates(trace: AnyTrace) -> None:
    """Raises a ``ValueError`` for a batch without a plate, such as particles in a wrong place."""
    for name, site in sites(trace):
        if bare := bare_dims(site):
            shape = tuple(site["unscaled_log_prob"].shape)
            raise ValueError(
                f"{name!r} has a log density of shape {shape}, whose dimension {bare[0]} is in no "
                f"plate"
            )


def vectorized(fn: Callable[..., Any], num_particles: int, dim: int) -> Callable[..., Any]:
    """Returns a Pyro function that runs ``fn`` within a plate of particles."""
    # By the plate itself, which leaves an effectful guide to be recognized.
    return pyro.plate(PARTICLES, num_particles, dim=dim)(fn)


def run_undisturbed(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> _Both:
    """Runs the guide, and the model against it, without side effects."""
    with undisturbed(), poutine.block():
        return _run_both(model, guide, args, kwargs)


def layout(both: _Both, shared: Callable[[AnyTrace], frozenset[str]]) -> Layout:
    """Returns the structure of a model and guide.

    Arguments:
        both: The traces of a run without particles.
        shared: From the trace of the guide to the sites that are drawn once for all particles.

    Raises:
        ValueError: If a batch is in no plate.
    """
    traces: list[AnyTrace] = [prune_subsample_sites(trace) for trace in both[:2]]
    with undisturbed():
        # A batch without a plate goes unnoticed once there are particles to its left, and is
        # confused with them where there are as many: checked even with validation disabled.
        for trace in traces:
            _compute(trace, float("inf"), True)
    # Deterministic sites included: a plate may hold nothing else.
    dims = [
        frame.dim
        for trace in traces
        for _, site in sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return Layout(-min(dims, default=0), shared(traces[1]))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Runs without a trace: no gradient, no draw, no new parameter, no running statistics."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    store = pyro.get_param_store()
    known = set(store.keys())
    training: list[nn.Module] = []

    def to_eval(module: nn.Module, _: Any) -> None:
        if module.training:
            training.append(module)
            module.training = False

    # Networks reach a Pyro function by any way, often a closure: a hook meets them all.
    hook = register_module_forward_pre_hook(to_eval)
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        hook.remove()
        for module in training:
            module.training = True
        for name in set(store.keys()) - known:
            remove(store, name)


@torch.no_grad()
def first_not_finite(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> str:
    """Says at which site of a run the first number that is not finite appears."""
    both = _run_both(model, guide, args, kwargs)
    for side, trace in (("guide", both.guide), ("model", both.model)):
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        for name, site in sites(trace):
            for what, value in (("value", site["value"]), ("log density", site["log_prob"])):
                if not bool(torch.isfinite(value).all()):
                    return f"the {what} of site {name!r} in the {side} is not"
    return "every site is, but the gradient of the step before was not"
