"""Threads and forks: Pyro's handler stack and the random state are those of the whole process."""

import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.runtime import _PYRO_STACK

import pyro_vae
from pyro_vae import (
    VAE,
    VAETransformer,
    data,
    evaluate,
    fit,
    fit_many,
    networks,
    objectives,
    reuse,
    run,
)
from pyro_vae.guard import guard_process_state

SMALL = partial(networks.MLP, hidden=[8])


@pytest.fixture(scope="module")
def x():
    return data.digits().x.train[:120]


def small(name="vae"):
    return VAE((1, 8, 8), 2, encoder=SMALL, decoder=SMALL, name=name)


def in_threads(function, items, workers=4):
    """Returns results of calls in threads, which start together."""
    barrier = threading.Barrier(workers)

    def call(item):
        barrier.wait(timeout=30)
        return function(item)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(call, items))


@pytest.fixture(autouse=True)
def intact():
    """Fails a test that leaves handlers, or another random state, behind."""
    state = torch.get_rng_state()
    yield
    assert not _PYRO_STACK
    assert torch.equal(torch.get_rng_state(), state)


def test_trainings_in_threads_are_those_of_one_thread(x):
    rows = x.flatten(1).numpy()

    def trained(seed):
        model = VAETransformer(2, encoder=SMALL, decoder=SMALL, epochs=3, random_state=seed)
        model.fit(rows)
        return torch.tensor(model.transform(rows)), torch.tensor(model.score_samples(rows))

    alone = [trained(seed) for seed in range(4)]
    for one, other in zip(alone, in_threads(trained, range(4)), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("train", [fit, fit_many], ids=["fit", "fit_many"])
def test_a_training_beside_other_uses_of_pyro(x, train, recwarn):
    with torch.random.fork_rng():
        vaes = [small(), small(), small("beside")]
    vaes[1].load_state_dict(vaes[0].state_dict())
    if train is fit:
        trained = [partial(fit, vae, x, epochs=12) for vae in vaes[:2]]
    else:
        # SGD with dampening is trained one after another.
        optimizer = partial(torch.optim.SGD, lr=1e-3, momentum=0.9, dampening=0.1)
        trained = [partial(fit_many, [vae], x, epochs=12, optimizer=optimizer) for vae in vaes[:2]]
    trained[0]()
    ended = threading.Event()

    def beside(role):
        if role == "train":
            try:
                trained[1]()
            finally:
                ended.set()
            return
        count = 0
        while not ended.is_set() or not count:
            vae, count = vaes[2], count + 1
            with torch.no_grad():
                uses[role](vae)

    elbo = objectives.ELBO()
    uses = {
        "objective": lambda vae: elbo.differentiable_loss(vae.model, vae.guide, x),
        "parts": lambda vae: vae.decode(vae.encode(x).mean),
        "model": lambda vae: (vae.guide(x), vae.model(n=3), vae.sample(2), small("made")),
    }
    with torch.random.fork_rng():
        in_threads(beside, ["train", *uses])
    for one, other in zip(vaes[0].parameters(), vaes[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.long
def test_compiled_steps_in_threads(x):
    with torch.random.fork_rng():
        vaes = [small(f"vae{i}") for i in range(2)]
        optimizers = [torch.optim.Adam(vae.parameters(), lr=1e-2) for vae in vaes]
        steps = [
            pyro_vae.compile(objectives.ELBO(), v.model, v.guide, optimizer=o, strict=True)
            for v, o in zip(vaes, optimizers, strict=True)
        ]
        losses = in_threads(lambda i: [float(steps[i](x)) for _ in range(5)], range(2), workers=2)
    assert [step.engine.partition("-")[0] for step in steps] == ["compiled", "compiled"]
    assert all(loss[-1] < loss[0] for loss in losses)


def test_a_guarded_function_makes_pyro_programs_safe(x):
    with torch.random.fork_rng():
        vaes = [small(f"vae{i}") for i in range(4)]

    @guard_process_state
    def train(vae):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
            return [svi.step(x) for _ in range(10)]

    for losses in in_threads(train, vaes):
        assert losses[-1] < losses[0]


def test_an_error_frees_the_lock(x):
    def fails(_):
        with pytest.raises(ValueError, match="Expected x"):
            evaluate.elbo(small_vae, x[0])

    with torch.random.fork_rng():
        small_vae = small()
    in_threads(fails, range(4))


def is_guarded(function):
    code = guard_process_state(lambda: None).__code__
    while function.__code__ is not code and hasattr(function, "__wrapped__"):
        # Scikit-learn wraps some methods, too.
        function = function.__wrapped__
    return function.__code__ is code


def entries():
    """Returns the public functions and methods that use state of the process."""
    methods = {
        VAE: ["__init__", "encode", "decode", "prior_distribution", "sample", "reconstruct",
              "initialize", "calibrate"],
        VAETransformer: ["fit", "transform", "inverse_transform", "score_samples"],
        type(small().model): ["forward"], type(small().guide): ["forward"],
        objectives.ELBO: ["_run_particles"], pyro_vae.compiled.step.Step: ["__call__"],
    }  # fmt: skip
    functions = [getattr(evaluate, name) for name in evaluate.__all__]
    functions = [f for f in functions if inspect.isfunction(f)]
    functions += [fit, fit_many, run.run, reuse.judge_run, reuse.embed, objectives.kl_report]
    return functions + [getattr(kind, name) for kind, names in methods.items() for name in names]


def test_every_entry_point_is_guarded():
    with torch.random.fork_rng():
        found = entries()
    assert len(found) > 20
    assert [function for function in found if not is_guarded(function)] == []
    assert not is_guarded(in_threads)
    # As scikit-learn and Hydra ask for the signature.
    assert "epochs" in inspect.signature(fit).parameters


FORK = """
import os, sys, threading, traceback
import pyro, torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro_vae import VAE, fit
from pyro_vae.guard import guard_process_state

torch.set_num_threads(1)
x = (torch.rand(20, 6) > 0.5).float()
vae = VAE((6,), 2)
entered, leave = threading.Event(), threading.Event()

def fork_and_train():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert not _PYRO_STACK
            fit(vae, x, epochs=1)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@guard_process_state
def hold():
    with pyro.poutine.block():
        entered.set()
        assert leave.wait(timeout=30)

def fork_while_another_thread_holds_it():
    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(timeout=30)
    assert len(_PYRO_STACK) == 1
    code = fork_and_train()
    leave.set()
    thread.join()
    return code

for fork in (
    fork_and_train, guard_process_state(fork_and_train), fork_while_another_thread_holds_it
):
    # The parent goes on, whatever its child did.
    fit(vae, x, epochs=1)
    assert fork() == 0
    fit(vae, x, epochs=1)
"""
"""Trains in a forked process, in a Python of its own: forks inherit what other tests have done."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_free():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
