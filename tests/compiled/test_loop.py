"""Several steps in one call, against a loop over calls."""

import warnings
from contextlib import nullcontext

import pyro
import pytest
import torch

from pyro_vae import VAE, compile, objectives
from pyro_vae.training import batches as training_batches
from pyro_vae.training import loop as training_loop

STEPS, ROWS = 5, 12


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(steps, ROWS, 1, 4, 4, generator=generator) > 0.5).float()


def build(optimizer=torch.optim.Adam, objective=None, **settings):
    torch.manual_seed(0)
    vae = VAE((1, 4, 4), 2)
    made = None if optimizer is None else optimizer(vae.parameters(), lr=1e-2)
    settings = {"backend": "eager", "divide_by": ROWS, "validate": False} | settings
    loss = objective or objectives.ELBO()
    return compile(loss, vae.model, vae.guide, optimizer=made, **settings), vae, made


def state(vae, optimizer):
    """Returns weights, gradients, the optimizer's state and the position in the noise."""
    moments = [] if optimizer is None else optimizer.state_dict()["state"].values()
    return [
        *(p.detach().clone() for p in vae.parameters()),
        *(p.grad.clone() for p in vae.parameters()),
        *(torch.as_tensor(value).clone() for values in moments for value in values.values()),
        torch.get_rng_state(),
    ]


def assert_like_calls(many, single, x, **kwargs):
    """Compares a loop with calls of a second step of the same start, to the bit."""
    found = []
    for (step, vae, optimizer), looped in ((many, True), (single, False)):
        torch.manual_seed(3)
        if looped:
            losses = step.loop(x, **kwargs)
        else:
            each = {
                n: v if isinstance(v, torch.Tensor) else [v] * len(x) for n, v in kwargs.items()
            }
            losses = torch.stack(
                [step(b, **{n: v[i] for n, v in each.items()}) for i, b in enumerate(x)]
            )
        found.append([losses, *state(vae, optimizer)])
    assert many[0].engine == single[0].engine
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    return found[0][0]


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"backend": "inductor"}),
        (torch.optim.AdamW, {"clip_norm": 1.0}),
        (torch.optim.SGD, {}),
        (torch.optim.RMSprop, {}),
        (None, {}),
        (torch.optim.Adam, {"validate": True}),
        (torch.optim.Adam, {"objective": objectives.IWAE(num_particles=3)}),
    ],
    ids=["adam", "inductor", "adamw", "sgd", "rmsprop", "none", "validated", "iwae"],
)
def test_a_loop_has_the_bits_of_its_calls(optimizer, settings):
    many, single = build(optimizer, **settings), build(optimizer, **settings)
    losses = assert_like_calls(many, single, batches())
    assert losses.shape == (STEPS,)
    assert not losses.requires_grad
    # The second loop starts with a graph that exists.
    assert_like_calls(many, single, batches(3).flip(0))
    assert_like_calls(many, single, batches(1))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_gradients_are_clipped_whatever_the_engine(optimizer):
    norms = []
    for handler in (nullcontext(), pyro.poutine.block()):
        step, vae, _ = build(optimizer, clip_norm=0.5)
        with handler:
            step(batches(1)[0])
        norms.append(torch.stack([p.grad.norm() for p in vae.parameters()]).norm().item())
        assert step.engine == ("compiled" if isinstance(handler, nullcontext) else "eager")
    assert norms == pytest.approx([0.5, 0.5], rel=1e-5)


def test_a_mask_is_cut_too_and_other_arguments_are_those_of_every_step():
    mask = torch.rand(STEPS, ROWS, 1, 4, 4) > 0.3
    assert_like_calls(build(), build(), batches(), mask=mask)
    assert_like_calls(build(), build(), batches(), mask=None)


def test_all_steps_but_the_first_run_without_a_call(monkeypatch):
    step, *_ = build()
    step(batches(1)[0])
    called, original = [], type(step)._run_cached
    monkeypatch.setattr(type(step), "_run_cached", lambda *a: called.append(1) or original(*a))
    step.loop(batches(64))
    assert len(called) == 1


def test_a_graph_that_fails_in_between_goes_on_with_calls():
    many, single = build(), build()
    for step, *_ in (many, single):
        torch.manual_seed(0)
        step(batches(1)[0])
    ((key, (cached,)),) = many[0]._cache.items()
    calls, run = [], cached.run

    def fails_once(*tensors):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("index out of bounds")
        return run(*tensors)

    many[0]._cache = {key: [cached._replace(run=fails_once)]}
    assert_like_calls(many, single, batches())
    # The failed run is repeated by a call.
    assert len(calls) == STEPS + 1


def test_what_cannot_be_compiled_is_eager_in_a_loop_too():
    class Reads(objectives.ELBO):
        def differentiable_loss(self, *args, **kwargs):
            loss = super().differentiable_loss(*args, **kwargs)
            return loss if loss.item() > 0 else -loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        many, single = build(objective=Reads()), build(objective=Reads())
        assert_like_calls(many, single, batches())
    assert many[0].engine == "eager"
    assert len(caught) == 2
    many, single = build(), build()
    with pyro.poutine.block():
        assert_like_calls(many, single, batches())
    assert many[0].engine == "eager"


@pytest.mark.parametrize(
    ("args", "shapes"),
    [
        ((), "[]"),
        ((torch.zeros(0, 2, 1, 4, 4),), "[(0, 2, 1, 4, 4)]"),
        ((torch.tensor(1.0),), "[()]"),
        ((torch.zeros(2, 3), torch.zeros(3, 3)), "[(2, 3), (3, 3)]"),
    ],
)
def test_tensors_without_one_number_of_steps_are_refused(args, shapes):
    with pytest.raises(ValueError, match="the number of steps") as caught:
        build()[0].loop(*args)
    assert shapes in str(caught.value)


def test_an_epoch_makes_its_equal_batches_in_few_calls(monkeypatch):
    from pyro_vae import data, fit

    digits, calls = data.digits(), []
    for most in (1, 32):
        monkeypatch.setattr(training_batches, "_MAX_STEPS", most)
        torch.manual_seed(0)
        vae = VAE(digits.event_shape, 2)
        sizes = []
        original = training_loop.Training.compiled_steps
        monkeypatch.setattr(
            training_loop.Training,
            "compiled_steps",
            lambda self, parts, sizes=sizes, original=original: (
                sizes.append(len(parts)) or original(self, parts)
            ),
        )
        result = fit(vae, digits.x.train, valid=digits.x.valid, epochs=2, compile="strict")
        monkeypatch.setattr(training_loop.Training, "compiled_steps", original)
        calls.append((sizes, result.history, vae.state_dict()))
    # 1,258 rows are 12 batches of 100 and one of 58.
    assert [sizes for sizes, *_ in calls] == [[], [12, 12]]
    assert [row["valid_elbo"] for row in calls[0][1]] == [row["valid_elbo"] for row in calls[1][1]]
    for name, value in calls[0][2].items():
        assert torch.equal(value, calls[1][2][name])
