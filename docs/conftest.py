"""Lets the code of the pages run as doctests, each page in a folder and with noise of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyro
import pytest
import torch

collect_ignore = ["errors.md"]
"""That page shows errors without their traceback; tests/docs/test_error_messages.py runs it."""

MY_PACKAGE = """
from pyro_vae import priors

class Mine(priors.Normal):
    pass
"""
"""What a reader's own package holds on the pages."""


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves no file in the checkout, and does not depend on other pages or on the machine."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("my_package")
    exec(MY_PACKAGE, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_num_threads(threads)
