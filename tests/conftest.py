"""Shared fixtures, and guards that every test passes through."""

import importlib.util
import signal
import sys
from pathlib import Path

import pyro
import pytest
import torch

TESTS = Path(__file__).parent

# Tests are no package (the import mode is importlib), so what they share is loaded by its path.
for _name, _file in (
    ("tables", "tables.py"),
    ("truths", "truths.py"),
    ("sweeping", "sweeping.py"),
    ("compare_runs", "compare_runs.py"),
    ("scenarios", "scenarios/__init__.py"),
):
    _spec = importlib.util.spec_from_file_location(_name, TESTS / _file)
    if _spec is not None and _spec.loader is not None and _name not in sys.modules:
        sys.modules[_name] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_name])

torch.set_num_threads(1)
# A shell ignores it for what runs in the background, and so would the commands that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
