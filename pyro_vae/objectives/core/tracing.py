"""Runs of a guide, and of a model replayed against it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import is_validation_enabled, prune_subsample_sites
from pyro.util import check_model_guide_match
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.distributions import RelaxedOneHot
from pyro_vae.kl import unwrap_layers
from pyro_vae.objectives.core.sites import (
    PARTICLES,
    AnyTrace,
    Pair,
    compute_log_probs,
    dims_without_plate,
    is_point,
    is_sampled,
    iter_sites,
    remove_deterministic,
    subsample_sites,
)
from pyro_vae.objectives.core.support import check_fixed_support
from pyro_vae.param_store import remove_entry

__all__ = [
    "SAMPLE_MARK",
    "DetachSamples",
    "Layout",
    "ShareSites",
    "compute_layout",
    "find_nonfinite_site",
    "no_side_effects",
    "run_pair",
    "run_without_side_effects",
    "vectorize",
]


SAMPLE_MARK = "_pyro_vae_sample"
"""The attribute of the leaves that hold samples, which are not parameters."""

_UNQUANTIZED = "_unquantize"
"""The attribute of a straight-through sample in which Pyro keeps the relaxed sample."""


class DetachSamples(Messenger):
    """Replaces the samples of a guide by detached leaves.

    The rest of the guide, and the model after it, continue with the leaves. This allows the partial
    derivative by each sample, all others fixed.

    Arguments:
        excluded: The sites that are not detached.

    Attributes:
        samples: The samples before detachment, by site and in the order of sampling.
    """

    def __init__(self, excluded: frozenset[str]) -> None:
        super().__init__()
        self.excluded = excluded
        self.samples: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        # A point mass is a function of parameters and earlier samples, and has no score.
        if not is_sampled(msg) or msg["name"] in self.excluded or is_point(msg["fn"]):
            return
        value: Any = msg["value"]
        if hasattr(value, _UNQUANTIZED) or _is_relaxed(msg["fn"]):
            raise ValueError(
                f"Expected sites whose log density depends on their value alone for estimators "
                f"other than 'standard', got {msg['name']!r} from {type(msg['fn']).__name__}, "
                f"whose density is that of the relaxed sample: use estimator='standard'"
            )
        check_fixed_support(msg["name"], msg["fn"])
        # A discrete sample raises an error later, in a check that names the alternative.
        if value.is_floating_point():
            self.samples[msg["name"]] = value
            msg["value"] = value.detach().requires_grad_()
            setattr(msg["value"], SAMPLE_MARK, True)


def _is_relaxed(fn: Any) -> bool:
    """Whether a density needs the logarithm of a draw, which may underflow."""
    return isinstance(unwrap_layers(fn)[-1], RelaxedOneHot)


class _Traces(NamedTuple):
    model: AnyTrace
    guide: AnyTrace
    plate_sites: dict[str, Any]


class Layout(NamedTuple):
    """The structure of a model and guide.

    Attributes:
        nesting: The depth of the plates.
        shared: The sites that are drawn once for all particles.
        in_loop: Whether they are run once per particle because a vectorized run has failed;
            ``None`` before the first vectorized run.
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
    detach: DetachSamples | None = None,
    *,
    check: bool = False,
    with_gradient: bool = True,
) -> Pair:
    """Runs the guide, then the model against it, checks both, and computes all log densities.

    Pyro's own ``get_importance_trace`` only warns of mistakes that raise an error here. Shapes are
    checked if Pyro's validation is enabled, and more strictly if ``check``. Sites without a
    reparameterized gradient are refused unless ``with_gradient`` is false.

    Raises:
        ValueError: If the two do not suit the objective, which the message names.
    """
    traces = _run_guide_and_model(model, guide, args, kwargs, detach)
    model_trace, guide_trace = (
        remove_deterministic(traces.model),
        remove_deterministic(traces.guide),
    )
    pair = Pair(
        prune_subsample_sites(model_trace),
        prune_subsample_sites(guide_trace),
        {} if detach is None else detach.samples,
        traces.plate_sites,
    )
    pair.check(objective, with_gradient=with_gradient)
    validated = is_validation_enabled()
    if validated:
        check_model_guide_match(model_trace, guide_trace, nesting)
    try:
        for trace in (pair.model, pair.guide):
            compute_log_probs(trace, nesting, check or validated)
            if check:
                _check_plates(trace)
    except (KeyError, NotImplementedError):
        _check_invertible(pair)
        raise
    return pair


def _run_guide_and_model(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    detach: DetachSamples | None = None,
) -> _Traces:
    messenger = poutine.unwrap(guide)
    # The handler is outermost, so that the traces hold the leaves and not the samples.
    with nullcontext() if detach is None else detach:
        if isinstance(messenger, GuideMessenger):
            # An effectful guide runs the model itself.
            guide(*args, **kwargs)
            # Pyro removes the sites of plates from its two traces.
            return _Traces(*messenger.get_traces(), subsample_sites(messenger.trace))
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    return _Traces(
        model_trace, guide_trace, subsample_sites(model_trace) | subsample_sites(guide_trace)
    )


def _check_invertible(pair: Pair) -> None:
    for name in pair.samples:
        site = pair.guide.nodes[name]
        try:
            site["fn"].log_prob(site["value"])
        except (KeyError, NotImplementedError) as error:
            raise ValueError(
                f"Expected sites whose log density is known at any value for estimators other "
                f"than 'standard', got {name!r} from {type(site['fn']).__name__}, whose transform "
                f"cannot be inverted: use estimator='standard'"
            ) from error


class ShareSites(Messenger):
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
        if hasattr(value, _UNQUANTIZED) or _is_relaxed(msg["fn"]):
            setattr(msg["value"], _UNQUANTIZED, _repeat_first(getattr(value, _UNQUANTIZED), axis))
        msg["done"] = True


def _repeat_first(value: Tensor, axis: int) -> Tensor:
    return value.narrow(axis, 0, 1).expand(value.shape)


def _check_plates(trace: AnyTrace) -> None:
    """Raises a ``ValueError`` for a batch without a plate, such as misplaced particles."""
    for name, site in iter_sites(trace):
        if bare := dims_without_plate(site):
            shape = tuple(site["unscaled_log_prob"].shape)
            raise ValueError(
                f"{name!r} has a log density of shape {shape}, whose dimension {bare[0]} has no "
                f"plate"
            )


def vectorize(fn: Callable[..., Any], num_particles: int, dim: int) -> Callable[..., Any]:
    """Returns a Pyro function that runs ``fn`` within a plate of particles."""
    # A plate as a decorator keeps an effectful guide recognizable.
    return pyro.plate(PARTICLES, num_particles, dim=dim)(fn)


def run_without_side_effects(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> _Traces:
    """Returns the traces of the guide, and of the model run against it."""
    with no_side_effects(), poutine.block():
        return _run_guide_and_model(model, guide, args, kwargs)


def compute_layout(runs: _Traces, shared: Callable[[AnyTrace], frozenset[str]]) -> Layout:
    """Returns the structure of a model and guide.

    Arguments:
        runs: The traces of a run without particles.
        shared: Maps the trace of the guide to the sites that are drawn once for all particles.

    Raises:
        ValueError: If a batch is outside of every plate.
    """
    traces: list[AnyTrace] = [prune_subsample_sites(trace) for trace in runs[:2]]
    with no_side_effects():
        # Checked even with validation disabled: with particles to its left, a batch without a plate
        # raises no error, and is confused with them if the sizes are equal.
        for trace in traces:
            compute_log_probs(trace, float("inf"), True)
    # Deterministic sites count too, because a plate may contain no others.
    dims = [
        frame.dim
        for trace in traces
        for _, site in iter_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return Layout(-min(dims, default=0), shared(traces[1]))


@contextmanager
def no_side_effects() -> Iterator[None]:
    """Protects gradients, random state, parameter store and running statistics in the block."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    store = pyro.get_param_store()
    known_params = set(store.keys())
    in_training: list[nn.Module] = []

    def to_eval(module: nn.Module, _: Any) -> None:
        if module.training:
            in_training.append(module)
            module.training = False

    # A global hook also reaches the networks in closures of a Pyro function.
    hook = register_module_forward_pre_hook(to_eval)
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        hook.remove()
        for module in in_training:
            module.training = True
        for name in set(store.keys()) - known_params:
            remove_entry(store, name)


@torch.no_grad()
def find_nonfinite_site(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> str:
    """Describes the first site of a run whose value or log density is not finite."""
    traces = _run_guide_and_model(model, guide, args, kwargs)
    for side, trace in (("guide", traces.guide), ("model", traces.model)):
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        for name, site in iter_sites(trace):
            for kind, value in (("value", site["value"]), ("log density", site["log_prob"])):
                if not bool(torch.isfinite(value).all()):
                    return f"the {kind} of site {name!r} in the {side} is not finite"
    return "every site is finite, but the gradient of the previous step was not"
