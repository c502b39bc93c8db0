"""Pyro's examples in benchmarks/pyro_examples: both versions run, one at a third of the lines."""

import importlib.util
from pathlib import Path

import pyro
import pytest
import torch

from helpers.paths import ROOT

FOLDER = ROOT / "benchmarks" / "pyro_examples"


def load(file: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = load(FOLDER / "__main__.py", "pyro_examples")


@pytest.mark.parametrize("name", BENCHMARK.EXAMPLES)
def test_parts_take_a_third_of_the_lines(name):
    by_hand, with_parts = (BENCHMARK.lines(FOLDER / how / f"{name}.py") for how in BENCHMARK.HOW)
    assert 3 * with_parts <= by_hand


def test_lines_are_those_with_code(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        '"""What it is."""\n\nimport math\n\n# Why.\nx = [\n    1,\n]\n', encoding="utf-8"
    )
    assert BENCHMARK.lines(file) == 3


@pytest.mark.parametrize("how", BENCHMARK.HOW)
@pytest.mark.parametrize("name", BENCHMARK.EXAMPLES)
def test_each_version_trains(name, how):
    model, guide = load(FOLDER / how / f"{name}.py", f"{how}_{name}").make()
    example = BENCHMARK.EXAMPLES[name]
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), example.objective())
    x = torch.rand(28, 28).round().expand(20, 1, 28, 28)
    y = torch.randint(0, 10, (20,))
    found = [sum(svi.step(*batch) for batch in example.train(x, y)) for _ in range(20)]
    assert found[-1] < 0.9 * found[0]
