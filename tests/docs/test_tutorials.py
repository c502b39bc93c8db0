"""The commands of the tutorials run in the order of the page, on the files that it writes."""

import doctest
import json
import re
import shlex

import pytest

from helpers.commands import call
from helpers.paths import ROOT

QUICK = [
    "train.epochs=1",
    "evaluate.num_particles=5",
    "evaluate.elbo_particles=2",
    "evaluate.baseline_components=3",
]

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(page):
    """The blocks of a page, each with its language."""
    return BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))


def run_code(code, names):
    for example in doctest.DocTestParser().get_examples(code):
        if example.exc_msg is None:
            exec(compile(example.source, "page", "single"), names)


@pytest.mark.pages
@pytest.mark.parametrize(
    ("page", "runs", "conditions"),
    [
        ("cells.md", {"cells": ["row-sum size factor", "lab"]}, "given row-sum size factor, lab"),
        ("conditional.md", {"given": ["label"], "plain": []}, "given label"),
        ("image_folder.md", {"shapes": []}, ""),
        ("table.md", {"visitors": []}, ""),
        ("imputation.md", {"iris": []}, ""),
    ],
)
def test_each_command_of_a_tutorial_runs(page, runs, conditions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, code in steps(page):
        if language == "python":
            run_code(code, names)
            continue
        for line in code.replace("\\\n", "").splitlines():
            program, *words = shlex.split(line)
            quick = QUICK if program == "pyro-vae" else []
            outcome = call(program, *words, *quick, cwd=tmp_path)
            assert outcome.code in (0, None), outcome.err
    found = {
        folder: json.loads((tmp_path / folder / "metrics.json").read_text())["conditional_on"]
        for folder in runs
    }
    assert found == runs
    report = (tmp_path / next(iter(runs)) / "report.html").read_text()
    assert f"Log evidence {conditions}".strip() in report


def test_a_command_that_fails_is_found(tmp_path):
    assert call("pyro-vae", "data=images", "data.path=none", cwd=tmp_path).code == 1
