"""A step's graph with the optimizer's update in it, and with Pyro's own objectives."""

import copy
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.optim import SGD, Adam, AdamW, RMSprop

import pyro_vae
from helpers.designs import cover
from pyro_vae import VAE, networks, objectives
from pyro_vae.compiled.optimizer_step import Update, is_capturable

ROWS = 12

compile_eagerly = partial(pyro_vae.compile, backend="eager")
"""Runs captured graphs as they are: what is tested does not depend on the machine code."""


def made(dtype=torch.float64):
    torch.manual_seed(0)
    return VAE((6,), 2, encoder=partial(networks.MLP, hidden=[5], batch_norm=True)).to(dtype)


def batches(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(count, ROWS, 6, generator=generator) > 0.5).to(dtype)


def by_hand(make, clip_norm, x):
    """Trains by the optimizer's own steps, with a schedule, and returns weights and state."""
    vae, objective = made(x.dtype), objectives.ELBO()
    optimizer = make(vae.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    torch.manual_seed(2)
    for rows in x:
        optimizer.zero_grad()
        (objective.differentiable_loss(vae.model, vae.guide, rows) / ROWS).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(vae.parameters(), clip_norm)
        optimizer.step()
        schedule.step()
    return vae, optimizer


def by_graph(make, clip_norm, x, backend="eager"):
    """Does the same by the compiled step."""
    vae = made(x.dtype)
    optimizer = make(vae.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    made_step = pyro_vae.compile(
        objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer, clip_norm=clip_norm,
        divide_by=ROWS, strict=True, backend=backend,
    )  # fmt: skip
    torch.manual_seed(2)
    for rows in x:
        made_step(rows)
        schedule.step()
    assert made_step.engine.startswith("compiled")
    return vae, optimizer


def assert_same(ours, theirs, tolerance):
    weights = ours[0].state_dict(), theirs[0].state_dict()
    torch.testing.assert_close(*weights, atol=tolerance, rtol=tolerance)
    one, other = ours[1].state_dict(), theirs[1].state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for key, state in other["state"].items():
        assert one["state"][key].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(one["state"][key][name], value, atol=1e-12, rtol=1e-9)


def grouped(parameters):
    """An optimizer of two groups."""
    first, *others = parameters
    return Adam([{"params": [first], "lr": 0.1}, {"params": others, "betas": (0.5, 0.9)}])


OPTIMIZERS = {
    "adam": Adam,
    "fused adam": partial(Adam, lr=0.02, fused=True),
    "adam with decay": partial(Adam, weight_decay=0.1, eps=1e-3),
    "groups": grouped,
    "adamw": partial(AdamW, lr=0.05, weight_decay=0.2),
    "sgd": partial(SGD, lr=0.1, weight_decay=0.05),
    "momentum": partial(SGD, lr=0.1, momentum=0.8),
    "nesterov": partial(SGD, lr=0.1, momentum=0.8, nesterov=True),
}
OTHERS = {
    "rmsprop": RMSprop,
    "amsgrad": partial(Adam, amsgrad=True),
    "maximize": partial(SGD, lr=1e-4, maximize=True),
    "dampening": partial(SGD, lr=0.1, momentum=0.9, dampening=0.5),
}


@pytest.mark.parametrize(("name", "clip_norm"), cover([*OPTIMIZERS, *OTHERS], [None, 0.3, 1e3]))
def test_an_update_is_the_optimizers_own(name, clip_norm):
    make = (OPTIMIZERS | OTHERS)[name]
    assert is_capturable(make(made().parameters())) == (name in OPTIMIZERS)
    x = batches(6)
    assert_same(by_graph(make, clip_norm, x), by_hand(make, clip_norm, x), 1e-10)


def test_machine_code_makes_the_update_too():
    x = batches(4)
    make = OPTIMIZERS["fused adam"]
    assert_same(by_graph(make, 0.3, x, "inductor"), by_hand(make, 0.3, x), 1e-10)


def test_an_optimizer_with_hooks_makes_its_own_step():
    vae, calls = made(), []
    optimizer = Adam(vae.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    made_step = compile_eagerly(objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer)
    for rows in batches(3):
        made_step(rows)
    assert len(calls) == 3


def test_steps_of_both_kinds_take_turns_and_a_state_can_be_put_back():
    x = batches(8)
    expected = by_hand(Adam, None, x)
    vae, objective = made(), objectives.ELBO()
    optimizer = Adam(vae.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    made_step = compile_eagerly(
        objective, vae.model, vae.guide, optimizer=optimizer, divide_by=ROWS, strict=True
    )
    torch.manual_seed(2)
    for number, rows in enumerate(x):
        if number % 3 == 2:
            optimizer.zero_grad()
            (objective.differentiable_loss(vae.model, vae.guide, rows) / ROWS).backward()
            optimizer.step()
        else:
            made_step(rows)
        if number == 4:
            optimizer.load_state_dict(optimizer.state_dict())
        schedule.step()
    assert_same((vae, optimizer), expected, 1e-10)


def test_an_update_of_something_else_is_not_used(monkeypatch):
    apply = Update.apply

    def wrong(self, parameters, gradients, valid):
        apply(self, parameters, [1.001 * gradient for gradient in gradients], valid)

    monkeypatch.setattr(Update, "apply", wrong)
    vae = made()
    made_step = compile_eagerly(
        objectives.ELBO(), vae.model, vae.guide, optimizer=SGD(vae.parameters(), 0.1)
    )
    with pytest.warns(UserWarning, match="the update differs from that of the eager step"):
        made_step(batches(1)[0])
    assert made_step.engine == "eager"


def test_the_first_call_makes_one_update():
    vae = made()
    optimizer = Adam(vae.parameters())
    made_step = compile_eagerly(objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer)
    made_step(batches(1)[0])
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_clip_norm_is_positive_and_comes_with_an_optimizer():
    vae = made()
    with pytest.raises(
        ValueError, match=r"Expected clip_norm to come with an optimizer, got 1\.0 alone"
    ):
        pyro_vae.compile(objectives.ELBO(), vae.model, vae.guide, clip_norm=1.0)
    optimizer = Adam(vae.parameters())
    with pytest.raises(ValueError, match=r"Expected clip_norm to be .*positive.*, got 0\.0"):
        pyro_vae.compile(
            objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer, clip_norm=0.0
        )


# Pyro's own objectives


@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(num_particles=2, vectorize_particles=True),
    ],
    ids=["trace", "mean field", "particles", "vectorized", "mean field, vectorized"],
)
def test_pyros_objectives_are_captured(objective):
    vae = made()
    made_step = compile_eagerly(objective, vae.model, vae.guide, strict=True)
    for seed in (3, 4):
        torch.manual_seed(seed)
        loss = made_step(batches(1)[0])
        ours = [p.grad.clone() for p in vae.parameters()]
        torch.manual_seed(seed)
        vae.zero_grad()
        expected = objective.differentiable_loss(vae.model, vae.guide, batches(1)[0])
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(ours, [p.grad for p in vae.parameters()])


def test_what_derives_from_pyros_objectives_is_not_taken_for_them():
    class Halved(Trace_ELBO):
        def differentiable_loss(self, *args, **kwargs):
            return super().differentiable_loss(*args, **kwargs) / 2

    vae = made()
    made_step = compile_eagerly(Halved(), vae.model, vae.guide)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="not compiled"):
        loss = made_step(batches(1)[0])
    torch.manual_seed(3)
    expected = Trace_ELBO().differentiable_loss(vae.model, vae.guide, batches(1)[0])
    torch.testing.assert_close(loss, expected.detach() / 2)


def test_a_score_function_under_trace_elbo_stays_eager():
    def model(x):
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3, dtype=x.dtype)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros((), dtype=x.dtype))
        with pyro.plate("rows", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=logits))

    x = torch.linspace(-1, 2, 5, dtype=torch.float64)
    made_step = compile_eagerly(Trace_ELBO(), model, guide)
    with pytest.warns(UserWarning, match="not compiled"):
        loss = made_step(x)
    assert loss.isfinite()
    assert made_step.engine == "eager"


# Kinds of calls, and parameters that are not reached


def trained(make, x, *, compiled, change=None, objective=None, parts=None, backend="eager"):
    """Trains by steps of either kind, with something that changes on the way."""
    torch.manual_seed(0)
    vae = VAE((6,), 2, **(parts or {})).double()
    optimizer = make(vae)
    objective = objective or objectives.ELBO()
    made_step = pyro_vae.compile(
        objective, vae.model, vae.guide, optimizer=optimizer, strict=True, divide_by=ROWS,
        backend=backend,
    )  # fmt: skip
    torch.manual_seed(2)
    for number, rows in enumerate(x):
        if change is not None:
            change(number, vae, optimizer)
        if compiled:
            made_step(rows)
        else:
            optimizer.zero_grad()
            loss = objective.differentiable_loss(vae.model, vae.guide, rows)
            (loss / ROWS).backward()
            optimizer.step()
    return vae, optimizer


def decay(number, vae, optimizer):
    """A schedule that has a value of its own at each step."""
    optimizer.param_groups[0]["lr"] = 0.05 / (1 + number)


def freeze(number, vae, optimizer):
    """Freezes the first parameters on the way, and lets them go later."""
    vae.encoder.requires_grad_(not 4 <= number < 8)
    if number == 4:
        optimizer.zero_grad()


def cycle(number, vae, optimizer):
    """Moves betas and momentum too, as one-cycle schedules do."""
    for group in optimizer.param_groups:
        group["lr"] = 0.01 + 0.002 * number
        if "momentum" in group:
            group["momentum"] = 0.9 - 0.02 * number
        else:
            group["betas"] = (0.9 - 0.02 * number, 0.99)


def restart(number, vae, optimizer):
    """Puts the state of before the first step back."""
    if number == 0:
        optimizer.initial = copy.deepcopy(optimizer.state_dict())
    if number in (3, 7):
        optimizer.load_state_dict(optimizer.initial)


def with_idle(vae):
    """An optimizer whose first parameter the loss does not depend on, with an empty group."""
    idle = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    groups = [{"params": [idle, *vae.parameters()]}, {"params": []}]
    return Adam(groups, lr=0.02)


MAKERS = {
    "adam": lambda vae: Adam(vae.parameters(), lr=0.02),
    "decoupled": lambda vae: Adam(vae.parameters(), weight_decay=0.1, decoupled_weight_decay=True),
    "momentum": lambda vae: SGD(vae.parameters(), lr=0.05, momentum=0.8),
    "idle": with_idle,
}


@pytest.mark.parametrize(("change", "name"), cover([decay, freeze, cycle, restart], MAKERS))
def test_every_graph_makes_the_update_of_now(change, name):
    whole = batches(12)
    # Batches of two sizes, so that two graphs take turns.
    x = [rows if number % 2 else rows[:7] for number, rows in enumerate(whole)]
    ours = trained(MAKERS[name], x, compiled=True, change=change)
    theirs = trained(MAKERS[name], x, compiled=False, change=change)
    assert_same(ours, theirs, 1e-10)


def test_numbers_that_move_need_no_new_graph():
    made_graphs = []
    trained(
        lambda vae: Adam(vae.parameters()), batches(10), compiled=True, change=cycle,
        backend=lambda graph, _: made_graphs.append(1) or graph,
    )  # fmt: skip
    assert len(made_graphs) == 1


def test_a_changed_buffer_is_compared_too():
    def wrong(graph, inputs):
        def run(*tensors):
            results = graph(*tensors)
            for tensor in tensors:
                if tensor.shape == (5,) and not tensor.requires_grad:
                    tensor.add_(100)
            return results

        return run

    vae = made()
    made_step = pyro_vae.compile(
        objectives.ELBO(), vae.model, vae.guide, optimizer=SGD(vae.parameters(), 1e-5),
        strict=True, backend=wrong,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="the state of modules differs"):
        made_step(batches(1)[0])


def test_a_small_update_is_compared_by_its_change(monkeypatch):
    apply = Update.apply

    def wrong(self, parameters, gradients, valid):
        apply(self, parameters, [1.01 * gradient for gradient in gradients], valid)

    monkeypatch.setattr(Update, "apply", wrong)
    vae = made()
    made_step = compile_eagerly(
        objectives.ELBO(), vae.model, vae.guide, optimizer=SGD(vae.parameters(), 1e-6)
    )
    with pytest.warns(UserWarning, match="the update differs from that of the eager step"):
        made_step(batches(1)[0])


def weights(n):
    return [torch.nn.Parameter(torch.full((2,), float(i + 1))) for i in range(n)]


def squares(parameters):
    def model(x):
        for i, parameter in enumerate(parameters):
            pyro.factor(f"f{i}", -(x * parameter**2).sum())

    return model


def turn_around(parameter, *_):
    """Reverses a gradient in place."""
    parameter.grad.mul_(-1.0)


CHANGES = {
    "group": lambda optimizer, ps: optimizer.add_param_group({"params": [ps[1]], "lr": 0.05}),
    "maximize": lambda optimizer, ps: optimizer.param_groups[0].update(maximize=True),
    "hook": lambda optimizer, ps: optimizer.register_step_pre_hook(lambda *_: turn_around(ps[0])),
    "gradient hook": lambda optimizer, ps: ps[0].register_hook(lambda gradient: -gradient),
    "accumulated": lambda optimizer, ps: ps[0].register_post_accumulate_grad_hook(turn_around),
}


@pytest.mark.parametrize("kind", [Adam, partial(SGD, momentum=0.9), torch.optim.RMSprop])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_between_calls_has_its_effect(kind, change):
    def after(compiled):
        parameters = weights(2)
        optimizer = kind(parameters[:1], lr=0.1)
        made_step = compile_eagerly(
            objectives.ELBO(), squares(parameters), lambda x: None, optimizer=optimizer
        )
        for i in range(6):
            if i == 3:
                CHANGES[change](optimizer, parameters)
            x = torch.tensor([1.0, 2.0])
            made_step(x) if compiled else made_step.run_eagerly((x,), {})
        return parameters

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The step is eager")
        found = after(True)
    expected = after(False)
    torch.testing.assert_close(found, expected)
    assert change != "group" or not torch.equal(found[1], weights(2)[1])


@pytest.mark.parametrize("kind", [Adam, SGD])
def test_a_parameter_that_replaces_another_is_updated(kind):
    layer = torch.nn.Linear(2, 1, bias=False)
    optimizer = kind(layer.parameters(), lr=0.1)
    made_step = compile_eagerly(
        objectives.ELBO(), lambda x: pyro.factor("f", -layer(x).square().sum()), lambda x: None,
        optimizer=optimizer,
    )  # fmt: skip
    x = torch.tensor([1.0, 2.0])
    for _ in range(2):
        made_step(x)
    layer.weight = torch.nn.Parameter(torch.ones(1, 2))
    optimizer.param_groups[0]["params"] = [layer.weight]
    for _ in range(2):
        made_step(x)
        assert made_step.engine == "compiled"
    assert (layer.weight < 1.0).all()
