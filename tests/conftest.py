"""Shared fixtures, and guards that every test passes through."""

import gc
import signal

import pyro
import pytest
import torch

torch.set_num_threads(1)
# A shell ignores it for what runs in the background, and so would the commands that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Spares the collector all objects of the imports and tests, which live to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def guest_manners():
    """Starts each test from a known state, and fails one that changes what its host relies on."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    validation = torch.distributions.Distribution._validate_args
    dtype = torch.get_default_dtype()
    yield
    assert torch.distributions.Distribution._validate_args is validation
    assert torch.get_default_dtype() is dtype
    pyro.clear_param_store()


@pytest.fixture
def binary():
    """A batch of binary images."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(12, 1, 8, 8, generator=generator) > 0.5).float()
