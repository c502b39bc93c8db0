"""What a step costs, counted without a clock: graphs, operations, waits for the device, memory."""

import ctypes
import os
import resource
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_vae
from pyro_vae import VAE, data, fit, networks, objectives, priors
from pyro_vae.training import loop


class Counted(TorchDispatchMode):
    """Counts operations, and those whose result a host has to wait for."""

    def __init__(self):
        super().__init__()
        self.operations, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations[func.name()] += 1
        if torch.Tag.data_dependent_output in func.tags:
            self.waits[func.name()] += 1
        return func(*args, **(kwargs or {}))


def made(**parts):
    torch.manual_seed(0)
    small = {"encoder": partial(networks.MLP, hidden=[20])} | parts
    return VAE((1, 8, 8), 2, **small)


OURS = [
    objectives.ELBO(),
    objectives.ELBO(3, beta=torch.tensor(0.5)),
    objectives.IWAE(5),
    objectives.MIWAE(4),
    objectives.Renyi(4, alpha=0.5),
    objectives.FreeBits(),
    objectives.GECO(target=20.0),
]


@pytest.mark.parametrize("objective", OURS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("prior", [priors.Normal, partial(priors.Vamp, components=3)])
def test_an_eager_step_waits_for_nothing(objective, prior):
    if isinstance(objective, objectives.FreeBits) and prior is not priors.Normal:
        objective = objectives.FreeBits(per="site")
    vae, x = made(prior=prior), torch.ones(10, 1, 8, 8)
    optimizer = torch.optim.Adam(vae.parameters(), fused=True)
    with pyro_vae_unchecked(), Counted() as counted:
        for _ in range(2):
            optimizer.zero_grad()
            (objective.differentiable_loss(vae.model, vae.guide, x) / 10).backward()
            optimizer.step()
    assert sum(counted.operations.values()) > 50
    assert not counted.waits


def pyro_vae_unchecked():
    import pyro

    return pyro.validation_enabled(False)


def test_the_count_sees_a_wait():
    with Counted() as counted:
        torch.ones(3).sum().item()
    assert sum(counted.waits.values()) == 1


def test_an_epoch_reads_its_loss_once(monkeypatch):
    digits = data.digits(binarize="dynamic")
    waits = []
    train_epoch = loop.Training.train_epoch

    def watched(self):
        before = self.step

        def step_counted(rows):
            with Counted() as counted:
                loss = before(rows)
            waits.append(sum(counted.waits.values()))
            return loss

        self.step = step_counted
        try:
            return train_epoch(self)
        finally:
            del self.step

    monkeypatch.setattr(loop.Training, "train_epoch", watched)
    fit(made(), digits.train, epochs=2, clip_norm=1.0, compile=False)
    assert len(waits) > 20
    # The first step is checked by Pyro, which reads values; no other is.
    assert sum(waits[1:]) == 0


class Keep:
    """A backend that keeps the graphs, and runs them as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph


def test_a_training_is_compiled_once(monkeypatch):
    keep = Keep()
    monkeypatch.setattr(loop, "compile", partial(pyro_vae.compile, backend=keep))
    digits = data.digits(binarize="dynamic")
    schedules = {"beta": objectives.Linear(0.0, 1.0, steps=30)}
    lr_schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=4)
    result = fit(
        made(), digits.train, valid=digits.valid, epochs=4, schedules=schedules,
        lr_schedule=lr_schedule, clip_norm=2.0, compile="strict",
    )  # fmt: skip
    assert result.engine == "compiled"
    assert len(keep.graphs) == 1


def test_the_graph_has_no_more_operations_than_the_arithmetic_needs():
    keep = Keep()
    vae = made(decoder=partial(networks.MLP, hidden=[20]))
    optimizer = torch.optim.Adam(vae.parameters(), fused=True)
    for update, validate in ((None, False), (optimizer, False), (optimizer, True)):
        pyro_vae.compile(
            objectives.ELBO(), vae.model, vae.guide, optimizer=update, strict=True,
            validate=validate, backend=keep,
        )(torch.ones(10, 1, 8, 8))  # fmt: skip
    without, whole, checked = (
        Counter(n.target.name() for n in graph.graph.nodes if hasattr(n.target, "name"))
        for graph in keep.graphs
    )
    # One product for each layer, one for the gradient of its weights, one for that of its input.
    layers = sum(p.dim() == 2 for p in vae.parameters())
    assert layers < without["aten::mm"] + without["aten::addmm"] <= 3 * layers
    # Counted when this was written, before the compiler fuses them.
    assert sum(without.values()) <= 170
    parameters = list(vae.parameters())
    assert sum((whole - without).values()) <= 18 * len(parameters)
    # A copy, a choice and its place, for each parameter, both moments and the count of steps.
    assert sum((checked - whole).values()) <= 20 + 16 * len(parameters)
    assert not any(name.startswith("aten::_local_scalar_dense") for name in whole)


@pytest.mark.long
def test_memory_does_not_grow_over_a_hundred_thousand_steps():
    vae = made()
    optimizer = torch.optim.Adam(vae.parameters(), fused=True)
    compiled = pyro_vae.compile(
        objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer, strict=True
    )
    x = torch.ones(10, 1, 8, 8)

    def most(steps):
        for _ in range(steps):
            compiled(x)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = most(1000)
    # In kB: less than 20 bytes a step.
    assert most(100_000) - before < 2000
    assert len(compiled._cache) == 1


BLOCKS = """
import ctypes, sys, torch
from pyro_vae.compiled.graph import keep_freed_memory

class Usage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "b", "c", "hblks", *"efghij")]

read = ctypes.CDLL(None).mallinfo2
read.restype = Usage
if sys.argv[1] == "keep":
    keep_freed_memory()
before = read().hblks
block = torch.empty(20 * 2**20, dtype=torch.uint8)
print(read().hblks - before)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc returns large blocks like this"
)
def test_large_blocks_of_freed_memory_are_kept():
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    apart = {
        kind: subprocess.run(
            [sys.executable, "-c", BLOCKS, kind],
            env=settings, capture_output=True, text=True, check=True,
        ).stdout.strip()
        for kind in ("keep", "return")
    }  # fmt: skip
    assert apart == {"keep": "0", "return": "1"}
