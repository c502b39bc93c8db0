"""The functions of the page on saving, which readers copy, restore whole models elsewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from helpers import larger_models
from helpers.larger_models import BUILDERS, X, Y, build_two_vaes, describe
from helpers.paths import ROOT

PAGE = (ROOT / "docs" / "saving.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python (\w+)\.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))

RESTORE = """
import gc, json, sys
import pyro
from checkpoint import load_model
from helpers.larger_models import BUILDERS, X, Y, describe

for name in sys.argv[1:]:
    pyro.clear_param_store()
    built = BUILDERS[name]()
    built.evaluate(X, Y)
    built.set_state(load_model(f"{name}.pt", **built.modules))
    print(json.dumps(describe(built)))
    del built
    gc.collect()

pyro.clear_param_store()
import resume
"""

FURTHER = """
import json
import pyro
from my_model import svi, x, y

pyro.set_rng_seed(3)
print(json.dumps([svi.evaluate_loss(x, y), svi.step(x, y)]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of the page in the current folder, on the path, and an empty store."""
    for name, code in BLOCKS.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in BLOCKS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    pyro.clear_param_store()
    yield tmp_path
    pyro.clear_param_store()
    for name in BLOCKS:
        sys.modules.pop(name, None)


@pytest.fixture
def copied(folder):
    namespace = {}
    exec(BLOCKS["checkpoint"], namespace)
    return SimpleNamespace(**namespace)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_elsewhere(code, folder, *words):
    path = os.pathsep.join([str(folder), str(ROOT / "tests"), str(ROOT)])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_another_process_continues_to_the_same_bits(folder, copied, one_thread, capsys):
    expected = []
    for name, build in BUILDERS.items():
        pyro.clear_param_store()
        built = build()
        for _ in range(3):
            built.step(X, Y)
        copied.save_model(f"{name}.pt", **built.modules, optimizer=built.get_state())
        expected.append(describe(built))
    pyro.clear_param_store()
    exec(BLOCKS["train"], {})
    exec(FURTHER, {})
    expected.append(json.loads(capsys.readouterr().out))
    assert run_elsewhere(RESTORE + FURTHER, folder, *BUILDERS) == expected


def test_the_code_for_pytorch_optimizers_restores_the_state(folder, copied):
    built = larger_models.build_module()
    names = {"Trace_ELBO": Trace_ELBO, "torch": torch, "x": X, "y": Y, **vars(copied)}
    names |= {"model": built.model, "guide": built.guide}
    exec(BLOCKS["with_pytorch"], names)
    before = names["optimizer"].state_dict()["state"]
    weights = [p.detach().clone() for p in names["loss_module"].parameters()]
    for parameter in names["loss_module"].parameters():
        parameter.detach().zero_()
    exec(BLOCKS["resume_pytorch"], names)
    after = names["optimizer"].state_dict()["state"]
    assert all(torch.equal(before[i]["exp_avg"], after[i]["exp_avg"]) for i in before)
    assert all(map(torch.equal, names["loss_module"].parameters(), weights))


def test_a_damaged_file_is_refused_and_nothing_is_set(folder, copied):
    built = build_two_vaes()
    built.evaluate(X, Y)
    copied.save_model("model.pt", **built.modules)
    content = bytearray((folder / "model.pt").read_bytes())
    before = {name: t.clone() for name, t in copied.collect_tensors(**built.modules).items()}
    middle = len(content) // 2
    flipped = bytes([*content[:middle], content[middle] ^ 1, *content[middle + 1 :]])
    torch.save({"weights": 0}, "other.pt")
    for damaged in (flipped, content[:-100], b"no file", Path("other.pt").read_bytes()):
        (folder / "model.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Expected an intact file .*, got model\.pt"):
            copied.load_model("model.pt", **built.modules)
    after = copied.collect_tensors(**built.modules)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("saved", "loaded", "names"),
    [
        ({}, {"extra": True}, r"\['extra'\]"),
        ({"extra": True}, {}, r"\['extra'\]"),
        ({}, {"shape": (4,)}, r"\['weights'\]"),
    ],
)
def test_another_model_is_refused(saved, loaded, names, folder, copied):
    for arguments, function in ((saved, copied.save_model), (loaded, copied.load_model)):
        pyro.clear_param_store()
        built = build_two_vaes(**arguments)
        built.evaluate(X, Y)
        if function is copied.load_model:
            with pytest.raises(ValueError, match=f"to fit the model .*, got other {names}"):
                function("model.pt", **built.modules)
        else:
            function("model.pt", **built.modules)


def test_a_model_without_its_first_call_and_a_missing_module_are_refused(folder, copied):
    built = build_two_vaes()
    built.step(X, Y)
    copied.save_model("model.pt", **built.modules)
    with pytest.raises(ValueError, match=r"got other \['other"):
        copied.load_model("model.pt", one=built.modules["one"])
    pyro.clear_param_store()
    built = build_two_vaes()
    with pytest.raises(ValueError, match=r"got other \['scale', 'tril', 'weights'\]"):
        copied.load_model("model.pt", **built.modules)


def test_code_in_a_file_is_not_run(folder, copied):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, ("harm",)

    torch.save({"tensors": {}, "optimizer": Harmful()}, "model.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        copied.load_model("model.pt")
    assert not (folder / "harm").exists()
