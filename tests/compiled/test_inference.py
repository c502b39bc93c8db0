"""Compiled functions without gradients: what the eager function gives, or the eager function."""

import random
import warnings
from collections import Counter
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.compiled import inference
from pyro_vae.compiled.inference import CompiledFunction

ON_CPU = partial(CompiledFunction, backend="eager")


class Score(nn.Module):
    """Draws from a distribution, and scores a linear function of the draws."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.power = 1.0

    def forward(self, q, x, count):
        z = q.sample((count,))
        return (self.layer(z) ** self.power - x).square().sum(-1).sum(0), z.isfinite().all(0)


class Recorder:
    """A backend that counts graphs and calls."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*tensors):
            self.calls += 1
            return graph(*tensors)

        return run


def made(rows=4):
    q = dist.Normal(torch.randn(rows, 3), torch.rand(rows, 3) + 0.1).to_event(1)
    return q, torch.randn(rows, 3)


def draw(function, *args, seed=3):
    torch.manual_seed(seed)
    results = function(*args)
    return [*results, torch.rand(1)]


def compare(function, module, *args, seed=3):
    """Compares the results and the noise that follows with those of the module."""
    with torch.no_grad():
        expected = draw(module, *args, seed=seed)
    for ours, theirs in zip(draw(function, *args, seed=seed), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_call_is_that_of_the_function(dtype):
    torch.set_default_dtype(dtype)
    try:
        module, backend = Score(), Recorder()
        function = CompiledFunction(module, module, backend=backend)
        for seed in range(5):
            compare(function, module, *made(), 7, seed=seed)
        # One call finds shared memory, two are compared, and three run alone.
        assert (backend.graphs, backend.calls) == (1, 6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_are_read_at_each_call():
    module = Score()
    function = CompiledFunction(module, module, backend=Recorder(), strict=True)
    for scale in range(5):
        with torch.no_grad():
            module.layer.weight.fill_(scale)
        compare(function, module, *made(), 7)


def test_one_graph_for_each_kind_of_call():
    module, backend = Score(), Recorder()
    function = CompiledFunction(module, module, backend=backend, strict=True)
    for _ in range(4):
        compare(function, module, *made(), 7)
        compare(function, module, *made(5), 7)
        compare(function, module, *made(), 6)
    assert backend.graphs == 3
    module.power = 2.0
    compare(function, module, *made(), 7)
    assert backend.graphs == 4
    module.layer = nn.Linear(3, 3)
    compare(function, module, *made(), 7)
    assert backend.graphs == 5


def test_too_many_kinds_of_calls_are_eager(monkeypatch):
    monkeypatch.setattr(inference, "MAX_GRAPHS", 2)
    module, backend = Score(), Recorder()
    function = CompiledFunction(module, module, backend=backend)
    for count in (1, 2):
        compare(function, module, *made(), count)
    with pytest.warns(UserWarning, match="2 graphs for different calls exist already"):
        compare(function, module, *made(), 3)
    compare(function, module, *made(), 4)
    assert backend.graphs == 2


class Reads(Score):
    """Reads a number off its argument, which decides what it computes."""

    def forward(self, q, x, count):
        result, finite = super().forward(q, x, count)
        return (result if x.sum() > 0 else -result), finite


class Rolls(Score):
    def forward(self, q, x, count):
        result, finite = super().forward(q, x, count)
        return result * random.random(), finite


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Reads, "depends on the values of a tensor"), (Rolls, "by Python or NumPy")],
)
def test_what_cannot_be_captured_is_eager(kind, reason):
    module = kind()
    function = ON_CPU(module, module)

    def check(seed):
        q, x = made()
        random.seed(seed)
        expected = draw(module, q, x, 7, seed=seed)
        random.seed(seed)
        found = draw(function, q, x, 7, seed=seed)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)

    with pytest.warns(UserWarning, match=reason) as caught:
        check(0)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(1, 4):
            check(seed)
    with pytest.raises(RuntimeError, match=reason):
        CompiledFunction(module, module, backend="eager", strict=True)(*made(), 7)


class Box:
    """An object with a tensor, of a class that is not searched."""

    def __init__(self, x):
        self.x = x


def test_a_tensor_that_the_graph_fixes_is_found_at_the_second_call():
    module = Score()

    def score(q, box, count):
        return module(q, box.x, count)

    function = CompiledFunction(score, module, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q, x = made()
        compare(function, score, q, Box(x), 7)
    with pytest.warns(UserWarning, match="eager, not compiled: the result differs"):
        compare(function, score, made()[0], Box(torch.randn(4, 3)), 7)
    compare(function, score, made()[0], Box(torch.randn(4, 3)), 7)


def test_an_error_of_the_function_is_raised_as_it_is():
    module = Score()
    function = ON_CPU(module, module)
    with pytest.raises(RuntimeError, match="must match the size"):
        function(made()[0], torch.randn(4, 5), 7)


def test_the_state_of_the_module_is_left_as_the_function_leaves_it():
    class Counts(Score):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, q, x, count):
            self.calls += 1
            return super().forward(q, x, count)

    module = Counts()
    function = CompiledFunction(module, module, backend="eager", strict=True)
    for number in range(1, 6):
        function(*made(), 7)
        assert module.calls == number


def test_bfloat16_rounds_matmuls():
    module = Score()
    function = CompiledFunction(module, module, precision="bfloat16", backend="eager", strict=True)
    q, x = made()
    with torch.no_grad():
        expected = draw(module, q, x, 7)
    for _ in range(3):
        found = draw(function, q, x, 7)
    assert not torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[0], expected[0], rtol=0.05, atol=0.05)


def test_machine_code():
    module = Score()
    function = CompiledFunction(module, module, strict=True)
    for seed in range(4):
        compare(function, module, *made(), 7, seed=seed)
    # PyTorch's cache of compiled graphs serves another process, or here another function.
    from torch._dynamo.utils import counters

    before = Counter(counters["inductor"])
    other = CompiledFunction(module, module, strict=True)
    compare(other, module, *made(), 7)
    assert counters["inductor"]["fxgraph_cache_hit"] == before["fxgraph_cache_hit"] + 1
    assert counters["inductor"]["fxgraph_cache_bypass"] == before["fxgraph_cache_bypass"]
