"""VAEs trained at once: each as `fit` trains it alone, step by step, in double precision."""

import copy
import math
import re
import threading
import warnings
from functools import partial
from itertools import cycle

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

import pyro_vae
from pyro_vae import VAE, fit, likelihoods, networks, posteriors, priors
from pyro_vae.data import Rows
from pyro_vae.objectives import ELBO, GECO, IWAE, PIWAE, Capacity, FreeBits, Linear, Renyi
from pyro_vae.training import loop

SIZE, BATCH = 6, 10
ROWS, UNEVEN = 20, 23
"""Two batches of ten rows, and with 23 rows another one of three."""

narrow = partial(networks.MLP, hidden=[5])
wider = partial(networks.MLP, hidden=[7])


fit_many = partial(pyro_vae.fit_many, backend="eager")
"""Runs captured graphs operation by operation: results do not depend on the machine code."""


def made(count=3, event_shape=(SIZE,), **parts):
    """Returns VAEs of different weights, in double precision."""
    parts = {"encoder": narrow, "decoder": narrow, **parts}
    vaes = []
    for seed in range(count):
        torch.manual_seed(seed)
        vaes.append(VAE(event_shape, 2, **parts).double())
    return vaes


def rows(event_shape=(SIZE,), count=ROWS):
    generator = torch.Generator().manual_seed(9)
    return torch.rand(count, *event_shape, generator=generator, dtype=torch.float64).round()


def alone(vaes, train, *, seed, **arguments):
    """Trains each by itself, operation by operation."""
    results = []
    for i, vae in enumerate(vaes):
        own = {
            name: copy.deepcopy(value[i]) if isinstance(value, list) else value
            for name, value in arguments.items()
        }
        own.pop("backend", None)
        results.append(fit(vae, train, seed=seed[i], compile=False, **own))
    return results


def assert_same(vaes, train, arguments, tolerance=1e-9):
    """Compares weights, buffers and histories of VAEs at once and alone; returns the results."""
    others = copy.deepcopy(vaes)
    arguments = {"epochs": 3, "batch_size": BATCH, "seed": [3, 4, 5], **arguments}
    expected = alone(others, train, **copy.deepcopy(arguments))
    found = fit_many(vaes, train, strict=True, **arguments)
    for vae, other, result, wanted in zip(vaes, others, found, expected, strict=True):
        assert not vae.training
        torch.testing.assert_close(
            vae.state_dict(), other.state_dict(), atol=tolerance, rtol=tolerance
        )
        assert (result.best_epoch, result.steps) == (wanted.best_epoch, wanted.steps)
        assert result.engine == "compiled-many"
        assert result.failure is None
        assert len(result.history) == len(wanted.history)
        for row, of_one in zip(result.history, wanted.history, strict=True):
            assert row == pytest.approx(of_one, rel=1e-7, abs=1e-7)
    # Different seeds and weights, or the comparison would be of one VAE with itself.
    assert len({result.history[-1]["train_objective"] for result in found}) == len(vaes)
    return found


OBJECTIVES = {
    "ELBO": [ELBO() for _ in range(3)],
    "sampled": [ELBO(analytic=False, num_particles=2) for _ in range(3)],
    "betas": [ELBO(beta=beta) for beta in (0.5, 1.0, 4.0)],
    "IWAE": [IWAE(num_particles=3) for _ in range(3)],
    "stl": [ELBO(num_particles=2, estimator="stl") for _ in range(3)],
    "dreg": [IWAE(num_particles=3, estimator="dreg") for _ in range(3)],
    "PIWAE": [PIWAE(num_particles=4, groups=2) for _ in range(3)],
    "alphas": [Renyi(num_particles=3, alpha=alpha) for alpha in (0.2, 0.5, 0.8)],
    "FreeBits": [FreeBits(nats=0.3) for _ in range(3)],
    "FreeBits per site": [FreeBits(nats=0.3, per="site") for _ in range(3)],
    "capacities": [Capacity(capacity=capacity) for capacity in (0.5, 1.0, 2.0)],
    "targets": [GECO(target=target, step_size=0.1) for target in (2.0, 3.0, 4.0)],
    # With a state of its own for each.
    "GECO": [GECO(target=3.0, step_size=0.1)] * 3,
}
OPTIMIZERS = {
    "rates": [partial(Adam, lr=lr, fused=True) for lr in (1e-3, 1e-2, 3e-2)],
    "Adam's betas": [partial(Adam, lr=1e-2, betas=(beta, 0.99)) for beta in (0.0, 0.5, 0.9)],
    "AdamW": partial(AdamW, lr=1e-2, weight_decay=0.1),
    "SGD": partial(SGD, lr=1e-3),
    "momenta": [partial(SGD, lr=1e-3, momentum=m, nesterov=True) for m in (0.3, 0.5, 0.9)],
}


class Dropout(networks.MLP):
    """A network with noise that is not of a site."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.3, self.training))


BATCH_NORM = partial(narrow, batch_norm=True)
PARTS = {
    "default": {},
    "batch norm": {"encoder": BATCH_NORM, "decoder": BATCH_NORM},
    "dropout": {"encoder": partial(Dropout, hidden=[4])},
    "full": {"posterior": posteriors.Full},
    "mixture": {"prior": priors.Mixture},
    "vamp": {"prior": priors.Vamp},
    "normal": {"likelihood": likelihoods.Normal},
    "continuous": {"likelihood": likelihoods.ContinuousBernoulli},
}


def compare(objective, optimizer, clip_norm, parts):
    train = rows()
    assert_same(made(**PARTS[parts]), train, {
        "objective": copy.deepcopy(OBJECTIVES[objective]),
        "optimizer": OPTIMIZERS[optimizer], "clip_norm": clip_norm, "epochs": 2,
    })  # fmt: skip


# Each objective with a part, an optimizer and a norm, which all differ from row to row.
CHOICES = list(zip(OBJECTIVES, cycle(OPTIMIZERS), cycle([None, 0.5]), cycle(PARTS), strict=False))


@pytest.mark.parametrize(
    ("objective", "optimizer", "clip_norm", "parts"),
    [pytest.param(*c, marks=[pytest.mark.long] if i % 3 else []) for i, c in enumerate(CHOICES)],
)
def test_objectives_optimizers_and_parts(objective, optimizer, clip_norm, parts):
    compare(objective, optimizer, clip_norm, parts)


@pytest.mark.long
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("parts", PARTS)
def test_every_part_with_every_optimizer(parts, optimizer, clip_norm):
    compare("ELBO", optimizer, clip_norm, parts)


# FreeBits per dimension refuses priors that do not factorize.
OTHER_PARTS = [(name, parts) for name in OBJECTIVES for parts in ("default", "batch norm")]
OTHER_PARTS += [
    (name, parts) for name in OBJECTIVES for parts in ("mixture", "vamp") if name != "FreeBits"
]


@pytest.mark.long
@pytest.mark.parametrize(("objective", "parts"), OTHER_PARTS)
def test_every_objective_with_other_parts(objective, parts):
    compare(objective, "rates", 0.5, parts)


def test_a_smaller_last_batch():
    """With running statistics, and noise that is not of a site."""
    parts = {
        "encoder": partial(Dropout, hidden=[4]), "decoder": partial(narrow, batch_norm=True),
    }  # fmt: skip
    assert_same(made(**parts), rows(count=UNEVEN), {})


@pytest.mark.long
def test_images_by_a_convolutional_network():
    parts = {"encoder": networks.ConvEncoder, "decoder": networks.ConvDecoder}
    assert_same(made(2, (1, 8, 8), **parts), rows((1, 8, 8)), {"epochs": 2, "seed": [1, 2]})


def test_rows_in_part_observed():
    x = rows()
    assert_same(made(), Rows(x, mask=torch.rand(x.shape) < 0.7), {})


def test_rows_drawn_anew():
    assert_same(made(), Rows(rows() * 0.6 + 0.2, dynamic=True), {})


def test_one_value_for_all():
    found = assert_same(made(), rows(), {
        "schedules": {"beta": Linear(0.0, 1.0, 5)},
        "lr_schedule": partial(ExponentialLR, gamma=0.5),
    })  # fmt: skip
    assert [row["beta"] for row in found[0].history] == [0.2, 0.6, 1.0]


def test_one_value_for_each():
    objectives = [ELBO(), ELBO(beta=0.25), ELBO()]
    assert_same(made(), rows(), {
        "objective": objectives,
        "schedules": [{"beta": Linear(0.0, 1.0, 5)}, {}, {"beta": Linear(2.0, 1.0, 6)}],
        "lr_schedule": [partial(ExponentialLR, gamma=gamma) for gamma in (0.5, 0.9, 1.0)],
    })  # fmt: skip
    # Numbers again, and those that they were.
    assert [objective.beta for objective in objectives] == [1.0, 0.25, 1.0]
    assert not any(isinstance(objective.beta, torch.Tensor) for objective in objectives)


@pytest.mark.long
def test_machine_code():
    """With clipping, whose norms the compiler alone cannot fuse."""
    parts = {"encoder": partial(narrow, batch_norm=True)}
    assert_same(
        made(**parts), rows(), {
            "clip_norm": 0.5, "objective": [ELBO(beta=b) for b in (1, 2, 3)], "backend": "inductor",
        },
    )  # fmt: skip


def test_each_stops_by_itself():
    x = rows()
    found = assert_same(made(), x[:15], {
        "valid": x[15:], "patience": 2, "epochs": 40, "batch_size": 5,
        "optimizer": [partial(Adam, lr=lr) for lr in (1e-1, 3e-2, 1e-4)],
    })  # fmt: skip
    lengths = [len(result.history) for result in found]
    assert len(set(lengths)) > 1, lengths
    assert lengths[-1] == 40


@pytest.mark.long
def test_one_that_stops_early_is_calibrated_on_rows_of_its_own():
    x = rows()
    found = assert_same(
        made(likelihood=partial(likelihoods.Normal, scale="optimal")),
        Rows(x[:15] * 0.6 + 0.2, dynamic=True),
        {
            "valid": x[15:], "patience": 2, "epochs": 30, "batch_size": 5,
            "optimizer": [partial(Adam, lr=lr) for lr in (2e-1, 3e-2, 1e-4)],
        },
    )  # fmt: skip
    assert len({len(result.history) for result in found}) > 1


def test_one_that_cannot_be_calibrated_harms_no_other():
    """Its weights are so large after a good epoch that the noise of its likelihood is infinite."""
    likelihood = partial(likelihoods.Normal, scale="optimal")
    vaes, train = made(likelihood=likelihood), rows()
    optimizer = [partial(SGD, lr=lr) for lr in (1e-3, 1e200, 2e-3)]
    given = {"epochs": 3, "batch_size": ROWS, "seed": [3, 4, 5]}
    found = fit_many(vaes, train, strict=True, optimizer=optimizer, **given)
    assert found[1].failure is not None
    assert [len(result.history) for result in found][::2] == [3, 3]
    assert not any(vae.training for vae in vaes)


def test_an_interrupt_while_the_cause_is_sought_finishes_all(monkeypatch):
    def interrupted(run, before):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "give_up", interrupted)
    vaes = made(likelihood=likelihoods.Normal)
    optimizer = [partial(SGD, lr=lr) for lr in (1e-3, 1e30, 2e-3)]
    given = {"optimizer": optimizer, "epochs": 3, "batch_size": BATCH, "strict": True}
    with pytest.raises(KeyboardInterrupt) as caught:
        fit_many(vaes, rows(), **given)
    assert len(caught.value.fit_result) == 3
    for vae in vaes:
        assert not vae.training
        for tensor in vae.state_dict().values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_one_that_fails_harms_no_other():
    vaes, train = made(likelihood=likelihoods.Normal), rows(count=UNEVEN)
    others = copy.deepcopy(vaes)
    optimizer = [partial(SGD, lr=lr) for lr in (1e-3, 1e30, 2e-3)]
    given = {"optimizer": optimizer, "epochs": 3, "batch_size": BATCH, "seed": [3, 4, 5]}
    found = fit_many(vaes, train, strict=True, **given)
    with pytest.raises(FloatingPointError) as error:
        fit(others[1], train, optimizer=optimizer[1], batch_size=BATCH, seed=4, compile=False)
    assert found[1].failure == str(error.value)
    assert found[1].history == []
    torch.testing.assert_close(vaes[1].state_dict(), others[1].state_dict())
    for i in (0, 2):
        assert found[i].failure is None
        fit(
            others[i], train, optimizer=optimizer[i], epochs=3, batch_size=BATCH, seed=3 + i,
            compile=False,
        )  # fmt: skip
        torch.testing.assert_close(vaes[i].state_dict(), others[i].state_dict())


def decaying(weight_decay):
    return partial(AdamW, weight_decay=weight_decay)


def vectorized():
    return Trace_ELBO(num_particles=2, vectorize_particles=True)


UNLIKE = (0.5, -math.inf, 0.5)
"""Orders of which one is of another formula."""


class OfModule(ELBO, nn.Module):
    """An objective that is a module, which may have weights of its own."""

    def __init__(self):
        nn.Module.__init__(self)
        ELBO.__init__(self)


class Counting(networks.MLP):
    """A network that counts its calls, and whose result depends on how many there were."""

    calls = 0

    def forward(self, x):
        self.calls = self.calls + 1
        return super().forward(x) * (1 + 0.1 * self.calls)


class Replacing(networks.MLP):
    """A network that puts a new tensor in the place of a buffer, which states do not hold."""

    def __init__(self, in_shape, out_shape, hidden):
        super().__init__(in_shape, out_shape, hidden=hidden)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.mean().detach()
        return super().forward(x - self.mean)


class EvalReplacing(Replacing):
    """A network that does so in evaluation mode alone."""

    def forward(self, x):
        return networks.MLP.forward(self, x) if self.training else super().forward(x)


class LastReplacing(Replacing):
    """A network that does so for the last batch of an epoch alone."""

    def forward(self, x):
        return super().forward(x) if len(x) < BATCH else networks.MLP.forward(self, x - self.mean)


class Locked(networks.MLP):
    """A network that cannot be copied."""

    def __init__(self, in_shape, out_shape, hidden):
        super().__init__(in_shape, out_shape, hidden=hidden)
        self._lock = threading.Lock()


class Small(Replacing):
    """A network that no graph can hold where the batch is the last of an epoch."""

    def forward(self, x):
        self.mean.mul_(0.5).add_(0.5 * x.mean().detach())
        if self.training and len(x) < BATCH and not x.sum().isfinite():
            raise FloatingPointError
        noisy = nn.functional.dropout(x - self.mean, 0.3, self.training)
        return networks.MLP.forward(self, noisy)


@pytest.mark.parametrize(
    ("reason", "vaes", "arguments"),
    [
        ("optimizer, RMSprop, whose", made, {"optimizer": RMSprop}),
        ("optimizer, Adam, whose", made, {"optimizer": partial(Adam, amsgrad=True)}),
        ("weight_decay", made, {"optimizer": [decaying(w) for w in (0.0, 1e-8, 1.0)]}),
        ("num_particles", made, {"objective": [ELBO(num_particles=n) for n in (1, 2, 1)]}),
        ("IWAE", made, {"objective": [ELBO(), IWAE(num_particles=2), ELBO()]}),
        ("from the first in encoder", lambda: [*made(2), *made(1, encoder=wider)], {}),
        ("vmap", lambda: made(encoder=partial(InPlace, hidden=[4])), {}),
        ("depends on the values", lambda: made(encoder=partial(Noisy, hidden=[4])), {}),
        ("VAE 0 adds or replaces", lambda: made(encoder=partial(Counting, hidden=[4])), {}),
        ("VAE 0 adds or replaces", lambda: made(encoder=partial(Replacing, hidden=[4])), {}),
        ("VAE 0 adds or replaces", lambda: made(encoder=partial(LastReplacing, hidden=[4])), {}),
        ("VAE 0 adds or replaces", lambda: made(encoder=partial(EvalReplacing, hidden=[4])), {}),
        ("VAE 0 cannot be copied", lambda: made(encoder=partial(Locked, hidden=[4])), {}),
        ("a number or a shape", lambda: made(encoder=partial(Small, hidden=[4])), {}),
        ("Trace_ELBO, which is not", made, {"objective": [vectorized() for _ in range(3)]}),
        ("alpha", made, {"objective": [Renyi(num_particles=2, alpha=a) for a in UNLIKE]}),
        ("OfModule, which is not", made, {"objective": [OfModule() for _ in range(3)]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_at_once_is_trained_one_after_another(reason, vaes, arguments):
    vaes, others, strict = vaes(), vaes(), vaes()
    arguments = {"epochs": 2, "batch_size": BATCH, "seed": [3, 4, 5], **arguments}
    with pytest.raises(RuntimeError, match=reason):
        fit_many(strict, rows(count=UNEVEN), strict=True, **copy.deepcopy(arguments))
    with pytest.warns(UserWarning, match=f"one after another: .*({reason})"):
        found = fit_many(vaes, rows(count=UNEVEN), **copy.deepcopy(arguments))
    alone(others, rows(count=UNEVEN), **copy.deepcopy(arguments))
    assert [result.engine for result in found] == ["eager"] * 3
    for vae, other in zip(vaes, others, strict=True):
        torch.testing.assert_close(vae.state_dict(), other.state_dict(), atol=0, rtol=0)


class Noisy(networks.MLP):
    """A network whose noise has a distribution that depends on what it is given."""

    def forward(self, x):
        return super().forward(x + torch.bernoulli(x.sigmoid().detach()))


class InPlace(networks.MLP):
    """A network that writes to a tensor of its own, which cannot be mapped."""

    def forward(self, x):
        own = torch.zeros(len(x), 6, dtype=x.dtype)
        own[:] = x.detach()
        return super().forward(own)


def test_without_a_compiler_they_are_trained_all_the_same():
    def fails(graph, inputs):
        raise OSError("no C++ compiler\nfound")

    # A prior that starts from rows drawn at random, and rows drawn anew: both are so once.
    vaes, train = made(prior=priors.Vamp), Rows(rows() * 0.6 + 0.2, dynamic=True)
    others = copy.deepcopy(vaes)
    given = {"epochs": 2, "batch_size": BATCH, "seed": [3, 4, 5]}
    with pytest.warns(UserWarning, match="one after another: no C.. compiler$"):
        fit_many(vaes, train, backend=fails, **given)
    alone(others, train, **given)
    for vae, other in zip(vaes, others, strict=True):
        torch.testing.assert_close(vae.state_dict(), other.state_dict(), atol=0, rtol=0)


def test_a_tensor_that_objectives_share_is_put_back():
    """The second follows a schedule, of which the first is to know nothing."""
    schedules, results = [{}, SLOW, {}], []
    for at_once in (True, False):
        beta = torch.tensor(1.0, dtype=torch.float64)
        vaes, objectives = made(), [ELBO(beta=beta) for _ in range(3)]
        given = {"epochs": 2, "batch_size": BATCH}
        if at_once:
            with pytest.warns(UserWarning, match="share memory"):
                fit_many(
                    vaes, rows(), objective=objectives, schedules=schedules, seed=range(3), **given
                )
        else:
            for i, vae in enumerate(vaes):
                fit(
                    vae, rows(), objective=objectives[i], schedules=schedules[i], seed=i,
                    compile=False, **given,
                )  # fmt: skip
        results.append([vae.state_dict() for vae in vaes])
    torch.testing.assert_close(*results, atol=0, rtol=0)


class Drifting(networks.MLP):
    """A network that reads the last batch of an epoch otherwise each time, where none can see."""

    def forward(self, x):
        if self.training and len(x) < BATCH:
            DRIFT.append(0)
        return super().forward(x * (1 + len(DRIFT)))


DRIFT = []


def test_the_last_batch_is_compared_too():
    vaes = made(encoder=partial(Drifting, hidden=[5]))
    with pytest.raises(RuntimeError, match="the loss of VAE 0 differs"):
        fit_many(vaes, rows(count=UNEVEN), batch_size=BATCH, epochs=1, strict=True)


@pytest.mark.parametrize("size", [1, BATCH])
def test_what_a_vae_raises_is_no_fault_of_the_graph(size):
    """With one row a batch norm has no variance; with ten, only the last batch fails."""
    parts = {"encoder": partial(narrow, batch_norm=True)} if size == 1 else {
        "encoder": partial(Refusing, hidden=[5])
    }  # fmt: skip
    vaes = made(**parts)
    with pytest.raises(ValueError, match=r"at least 2 rows for the batch norm|of 3 rows"):
        fit_many(vaes, rows(count=UNEVEN), batch_size=size, epochs=1)
    for tensor in vaes[0].state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


class Refusing(networks.MLP):
    """A network that refuses a batch."""

    def forward(self, x):
        if self.training and len(x) == 3:
            raise ValueError("no batch of 3 rows")
        return super().forward(x)


class Breaking(networks.MLP):
    """A network that is no longer finite at a step that the noise chooses."""

    def forward(self, x):
        out = super().forward(x)
        rare = nn.functional.dropout(torch.ones_like(x[:1, 0]), 0.8, self.training)
        return torch.where(rare > 0, math.nan, 1.0) * out


def test_one_that_fails_by_its_noise_is_told_as_alone():
    """The epoch is made again, from the noise that it began with, to find the step."""
    vaes = made(encoder=partial(Breaking, hidden=[5]))
    others, seeds = copy.deepcopy(vaes), [3, 4, 5]
    with pyro.validation_enabled(False):
        found = fit_many(vaes, rows(), batch_size=5, epochs=4, seed=seeds, strict=True)
        for vae, seed, result in zip(others, seeds, found, strict=True):
            with pytest.raises(FloatingPointError) as error:
                fit(vae, rows(), batch_size=5, epochs=4, seed=seed, compile=False)
            assert result.failure == str(error.value)
    assert len({result.failure for result in found}) > 1


def test_too_little_memory_for_stacks_moves_nothing(monkeypatch):
    vaes, made_so_far, stack = made(), [], torch.stack

    def fails(tensors, *args):
        made_so_far.append(len(tensors))
        if len(made_so_far) == 3:
            raise MemoryError("no more")
        return stack(tensors, *args)

    monkeypatch.setattr(torch, "stack", fails)
    before = [(id(p), p.data_ptr()) for vae in vaes for p in vae.parameters()]
    with pytest.raises(MemoryError, match="no more"):
        fit_many(vaes, rows(), batch_size=BATCH, epochs=1)
    assert [(id(p), p.data_ptr()) for vae in vaes for p in vae.parameters()] == before


def test_one_for_each_may_be_an_array_or_the_default():
    expected = made()
    results = fit_many(expected, rows(), epochs=1, batch_size=BATCH, seed=[0, 1, 2])
    for seed in (np.arange(3), torch.arange(3)):
        vaes = made()
        found = fit_many(
            nn.ModuleList(vaes), rows(), epochs=1, batch_size=BATCH, seed=seed,
            objective=[None] * 3, optimizer=[None] * 3, schedules=[None] * 3,
        )  # fmt: skip
        assert [result.history for result in found] == [result.history for result in results]


def of_shape(tensors, shape):
    return next(tensor for tensor in tensors if tensor.shape == shape)


def wrong_loss(given, results):
    results[0][2] += 1.0


def wrong_gradient(given, results):
    of_shape(results, (3, 5, SIZE))[1] += 1e-3


def wrong_buffer(given, results):
    # The number of batches that batch norm has seen.
    next(tensor for tensor in given if tensor.dtype == torch.int64)[0] += 1


def wrong_weight(given, results):
    of_shape(given, (3, 5, SIZE))[1] += 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (wrong_loss, "the loss of VAE 2 differs"),
        (wrong_gradient, "the gradient of VAE 1 differs"),
        (wrong_buffer, "the state of VAE 0 differs"),
        (wrong_weight, "the update of VAE 1 differs"),
    ],
)
def test_a_wrong_graph_is_found_out(wrong, message):
    """The first step is compared with that of each VAE."""

    def backend(graph, inputs):
        def run(*given):
            results = graph(*given)
            wrong(given, results)
            return results

        return run

    vaes = made(encoder=partial(narrow, batch_norm=True))
    with pytest.raises(RuntimeError, match=message):
        fit_many(vaes, rows(), batch_size=BATCH, epochs=1, strict=True, backend=backend)


def test_they_leave_nothing_behind():
    vaes = made()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fit_many(vaes, rows(), epochs=1, batch_size=BATCH, strict=True)
    assert torch.equal(torch.get_rng_state(), before)
    for vae in vaes:
        for tensor in vae.state_dict().values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    # Each is free of the others: one can be trained on.
    others = [copy.deepcopy(vae.state_dict()) for vae in vaes[1:]]
    fit(vaes[0], rows(), epochs=1, compile=False)
    for vae, state in zip(vaes[1:], others, strict=True):
        torch.testing.assert_close(vae.state_dict(), state, atol=0, rtol=0)


def test_one_vae_is_enough():
    assert_same(made(1), rows(), {"seed": [3]})


@pytest.mark.parametrize(
    ("vaes", "arguments", "message"),
    [
        (list, {}, "Expected vaes to be one or more VAEs, got []"),
        (lambda: made(1) * 2, {}, "Expected vaes without a common parameter, got 0 and 1"),
        (made, {"seed": [1, 2]}, "Expected one value of seed for each of 3 VAEs, got 2"),
        (made, {"objective": [ELBO()] * 4}, "Expected one value of objective for each of 3 VAEs"),
        (made, {"schedules": [{}]}, "Expected one value of schedules for each of 3 VAEs, got 1"),
        (made, {"optimizer": [Adam]}, "Expected one value of optimizer for each of 3 VAEs, got 1"),
        (made, {"lr_schedule": []}, "Expected one value of lr_schedule for each of 3 VAEs, got 0"),
        (made, {"epochs": 0}, "Expected epochs to be"),
        (made, {"batch_size": 0}, "Expected batch_size to be"),
        (made, {"clip_norm": 0.0}, "Expected clip_norm to be positive, got 0.0"),
        (made, {"patience": 3}, "Expected valid, which patience=3 needs, got None"),
        (made, {"objective": 3}, "Expected an objective with differentiable_loss, got int"),
        (made, {"schedules": {"gamma": Linear(0, 1, 1)}}, "Expected schedules of scalars"),
        (made, {"schedules": 3}, "Expected schedules to map names, such as beta, to schedules"),
        (made, {"schedules": {"beta": 0.5}}, "Expected schedules of beta to be a Schedule"),
        (made, {"optimizer": "adam"}, "Expected optimizer to build one from parameters, got"),
        (made, {"optimizer": [Adam, 3, Adam]}, "Expected optimizer to build one from parameters"),
        (made, {"lr_schedule": 0.1}, "Expected lr_schedule to build a scheduler from an optimizer"),
        (made, {"seed": [1, 2, None]}, "Expected seed to be an integer of 64 bits, got None"),
        (made, {"seed": 0.5}, "Expected seed to be an integer of 64 bits, got 0.5"),
        (made, {"seed": 2**64}, "Expected seed to be an integer of 64 bits, got 18446744073709551"),
        (made, {"clip_norm": "1"}, "Expected clip_norm to be positive, got '1'"),
        (lambda: [*made(1), None], {}, "Expected vaes to be VAEs, got NoneType at 1"),
    ],
    ids=lambda value: next(iter(value), "none") if isinstance(value, dict) else "",
)  # fmt: skip
def test_errors(vaes, arguments, message):
    vaes = vaes()
    before = [copy.deepcopy(vae.state_dict()) for vae in vaes if vae is not None]
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_many(vaes, rows(), **arguments)
    for vae, state in zip(vaes, before, strict=False):
        torch.testing.assert_close(vae.state_dict(), state, atol=0, rtol=0)


@pytest.mark.parametrize("vaes", [made(1)[0], {"a": 1}, None], ids=["one", "mapping", "None"])
def test_vaes_that_are_no_sequence(vaes):
    with pytest.raises(ValueError, match="Expected vaes to be one or more VAEs, got"):
        fit_many(vaes, rows())


def test_data_that_are_none():
    with pytest.raises(ValueError, match=r"Expected train to be a torch\.Tensor, got NoneType"):
        fit_many(made(), None)


def test_data_of_another_shape():
    with pytest.raises(ValueError, match="shape"):
        fit_many(made(), torch.ones(20, SIZE + 1, dtype=torch.float64))


def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = fit_many(made(), rows(), epochs=1, batch_size=BATCH)
    assert [result.engine for result in results] == ["compiled-many"] * 3


class Bounded(networks.MLP):
    """A network with settings that are no single number."""

    bounds = (-9.0, 9.0)

    def forward(self, x):
        return super().forward(x).clamp(*self.bounds)


def bounded_otherwise(vaes):
    vaes[1].encoder.bounds = (-0.5, 0.5)
    for vae in (vaes[0], vaes[2]):
        vae.encoder.bounds = (-9.0, 9.0)


def tied_memory(vaes):
    vaes[0].decoder.layers[0].bias.data = vaes[0].encoder.layers[0].bias.data


def aliased(vaes):
    for vae in vaes:
        vae.alias = vae.encoder.layers[0].weight.detach()


def nothing(vaes):
    pass


def some(parameters):
    return SGD(list(parameters)[:3], lr=0.1)


SHARED = torch.tensor(1.0, dtype=torch.float64)
SLOW, FAST = {"beta": Linear(0.0, 1.0, 4)}, {"beta": Linear(4.0, 1.0, 3)}


@pytest.mark.parametrize(
    ("change", "arguments", "reason"),
    [
        (bounded_otherwise, {}, "bounds"),
        (tied_memory, {}, "share memory"),
        (aliased, {}, "a tensor outside of its parameters and buffers"),
        (
            nothing,
            {"optimizer": some, "clip_norm": 0.5},
            "an optimizer of other parameters",
        ),
        (
            nothing,
            {"objective": [ELBO(beta=SHARED) for _ in range(3)], "schedules": [SLOW, FAST, {}]},
            "share memory",
        ),
    ],
    ids=["tuples", "tied", "aliased", "subset", "shared beta"],
)
def test_what_stacks_would_spoil_is_refused(change, arguments, reason):
    vaes = made(encoder=partial(Bounded, hidden=[5]))
    change(vaes)
    before = [(id(p), p.data_ptr()) for vae in vaes for p in vae.parameters()]
    given = {"batch_size": BATCH, "epochs": 2, "strict": True, **arguments}
    with pytest.raises(RuntimeError, match=reason):
        fit_many(vaes, rows(), **given)
    assert [(id(p), p.data_ptr()) for vae in vaes for p in vae.parameters()] == before


class Decay(LambdaLR):
    """A scheduler of the weight decay, which a graph fixes."""

    def step(self, *args):
        super().step(*args)
        self.optimizer.param_groups[0]["weight_decay"] = 0.1 * self.last_epoch


def test_a_scheduler_of_another_package_may_change_anything():
    vaes = made()
    others = copy.deepcopy(vaes)
    given = {
        "optimizer": AdamW, "lr_schedule": partial(Decay, lr_lambda=lambda _: 1.0),
        "batch_size": BATCH, "epochs": 5, "seed": [3, 4, 5],
    }  # fmt: skip
    with pytest.warns(UserWarning, match="VAE 0 has Decay, which is not of torch"):
        found = fit_many(vaes, rows(), **given)
    expected = alone(others, rows(), **given)
    for vae, other in zip(vaes, others, strict=True):
        torch.testing.assert_close(vae.state_dict(), other.state_dict(), atol=0, rtol=0)
    assert [r.history for r in found] == [r.history for r in expected]
