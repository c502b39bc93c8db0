"""Every inference of Pyro's that applies to a model with a guide, and two objectives of ours."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import infer, poutine

from pyro_vae import objectives
from scenarios.scenario import Scenario


def svi(loss: Callable[..., Any], scenario: Scenario, **options: Any) -> None:
    """One step of SVI, which has to change every parameter."""
    before = [p.detach().clone() for p in scenario.modules.parameters()]
    objective = loss(max_plate_nesting=scenario.max_plate_nesting, **options)
    step = infer.SVI(scenario.model, scenario.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
    value = step.step(*scenario.args)
    assert torch.isfinite(torch.as_tensor(value)).all()
    assert_changed(before, scenario)


def enumerated(scenario: Scenario) -> None:
    """One step of SVI that sums over the discrete sites of the guide."""
    guide = infer.config_enumerate(scenario.guide) if scenario.discrete else scenario.guide
    summed = replace(scenario, guide=guide)
    svi(infer.TraceEnum_ELBO, summed, strict_enumeration_warning=False)


def jit(scenario: Scenario) -> None:
    """One step of SVI through PyTorch's old compiler, which warns that it is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        svi(infer.JitTrace_ELBO, scenario, ignore_jit_warnings=True)


def module(scenario: Scenario) -> None:
    """One step of an optimizer of PyTorch's on Pyro's ELBO as a function."""
    before = [p.detach().clone() for p in scenario.modules.parameters()]
    loss = infer.Trace_ELBO()(scenario.model, scenario.guide)(*scenario.args)
    optimizer = torch.optim.Adam(scenario.modules.parameters(), lr=1e-2)
    loss.backward()
    optimizer.step()
    assert_changed(before, scenario)


def assert_changed(before: list[torch.Tensor], scenario: Scenario) -> None:
    """Asserts that every parameter was trained, and that none became infinite."""
    names = [name for name, _ in scenario.modules.named_parameters()]
    after = list(scenario.modules.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    same = [n for n, a, b in zip(names, before, after, strict=True) if torch.equal(a, b)]
    assert not same, f"parameters that no step has changed: {same}"


def predictive(scenario: Scenario, *, parallel: bool) -> None:
    """Draws of all latent sites from the guide."""
    draw = infer.Predictive(scenario.model, guide=scenario.guide, num_samples=3, parallel=parallel)
    check_draws(draw(*scenario.args), scenario)


def weighed(scenario: Scenario) -> None:
    """Draws with importance weights."""
    draw = infer.WeighedPredictive(scenario.model, guide=scenario.guide, num_samples=3)
    found = draw(*scenario.args)
    assert found.log_weights.shape == (3,)
    assert found.log_weights.isfinite().all()
    check_draws(found.samples, scenario)


def check_draws(draws: dict[str, torch.Tensor], scenario: Scenario) -> None:
    """Asserts that there are three finite draws of each latent site, and that they differ."""
    for name in scenario.latent:
        assert draws[name].shape[0] == 3
        assert draws[name].isfinite().all()
        assert draws[name].is_floating_point() is False or not draws[name][0].equal(draws[name][1])


def importance(scenario: Scenario) -> None:
    """Importance sampling with the guide as proposal."""
    posterior = infer.Importance(scenario.model, scenario.guide, num_samples=5)
    assert posterior.run(*scenario.args).get_log_normalizer().isfinite()


def nuts(scenario: Scenario) -> None:
    """A few draws of the latent variables by the no-U-turn sampler."""
    scenario.modules.eval().requires_grad_(False)
    kernel = infer.NUTS(
        infer.config_enumerate(scenario.model) if scenario.discrete else scenario.model,
        max_tree_depth=3,
        max_plate_nesting=scenario.max_plate_nesting,
    )
    initial = None if scenario.initial is None else scenario.initial()
    chain = infer.MCMC(
        kernel, num_samples=3, warmup_steps=3, initial_params=initial, disable_progbar=True
    )
    chain.run(*scenario.args)
    draws = chain.get_samples()
    assert draws
    assert all(value.isfinite().all() for value in draws.values())


def discrete(scenario: Scenario) -> None:
    """Draws of the discrete sites given the others, summed out exactly."""
    guided = poutine.trace(scenario.guide).get_trace(*scenario.args)
    continuous = {
        name: guided.nodes[name]["value"]
        for name in scenario.latent
        if name in guided.nodes and guided.nodes[name]["fn"].has_rsample
    }
    model = poutine.condition(infer.config_enumerate(scenario.model), data=continuous)
    inferred = infer.infer_discrete(model, first_available_dim=-1 - scenario.max_plate_nesting)
    trace = poutine.trace(inferred).get_trace(*scenario.args)
    assert any(not site["fn"].has_rsample for _, site in latent_sites(trace))


def latent_sites(trace: Any) -> list[tuple[str, Any]]:
    """Returns the sites that were not observed from the start."""
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["infer"].get("_do_not_observe", True)
    ]


INFERENCES: dict[str, Callable[[Scenario], None]] = {
    "Trace_ELBO": partial(svi, infer.Trace_ELBO),
    "TraceMeanField_ELBO": partial(svi, infer.TraceMeanField_ELBO),
    "TraceGraph_ELBO": partial(svi, infer.TraceGraph_ELBO),
    "TraceEnum_ELBO": enumerated,
    "RenyiELBO": partial(svi, infer.RenyiELBO, num_particles=2, vectorize_particles=True),
    "JitTrace_ELBO": jit,
    "ReweightedWakeSleep": partial(svi, infer.ReweightedWakeSleep),
    "ELBO": partial(svi, objectives.ELBO),
    "IWAE": partial(svi, partial(objectives.IWAE, 2)),
    "ELBO as a function": module,
    "Predictive": partial(predictive, parallel=False),
    "Predictive, parallel": partial(predictive, parallel=True),
    "WeighedPredictive": weighed,
    "Importance": importance,
    "NUTS": nuts,
    "infer_discrete": discrete,
}
"""The columns of the table."""
