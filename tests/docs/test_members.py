"""A member of a kind is complete: exported, configured, tested and documented."""

import importlib.util
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module

import pytest
import yaml
from torch import nn

from helpers import tables
from helpers.paths import ROOT
from pyro_vae import config
from pyro_vae.conditional import Likelihood, Posterior, Prior
from pyro_vae.objectives import Objective

CONF = config.find_folder()
ADD = ROOT / ".ci" / "add_members.py"

BASES = {
    "priors": Prior,
    "posteriors": Posterior,
    "likelihoods": Likelihood,
    "networks": nn.Module,
    "objectives": Objective,
}
ROWS = {
    "priors": tables.PRIORS.values(),
    "posteriors": tables.POSTERIORS.values(),
    "likelihoods": [*tables.LIKELIHOODS.values(), *tables.TABLE_LIKELIHOODS.values()],
    "networks": [part for pair in tables.NETWORKS.values() for part in pair],
    "objectives": [*tables.OBJECTIVES.values(), *tables.DISCRETE_OBJECTIVES.values()],
}
FOLDERS = {
    "priors": ["share/vae/prior"],
    "posteriors": ["share/vae/posterior"],
    "likelihoods": ["share/vae/likelihood"],
    "networks": ["share/vae/encoder", "share/vae/decoder"],
    "objectives": ["app/objective"],
    "data": ["app/data"],
}
PAGES = {
    "priors": ("parts.md", "## Priors"),
    "posteriors": ("parts.md", "## Posteriors"),
    "likelihoods": ("parts.md", "## Likelihoods"),
    "networks": ("parts.md", "## Networks"),
    "objectives": ("objectives.md", "# Objectives"),
    "data": ("data.md", "## The sets"),
}


def is_member(kind: str, value: object) -> bool:
    """Whether a public object of a package is a member, and not a base class or a helper."""
    if kind == "data":
        return inspect.isfunction(value)
    return (
        inspect.isclass(value) and issubclass(value, BASES[kind]) and not inspect.isabstract(value)
    )


def find_exported(kind: str) -> set[str]:
    package = import_module(f"pyro_vae.{kind}")
    return {name for name in package.__all__ if is_member(kind, getattr(package, name))}


def find_written(kind: str) -> set[str]:
    """Returns the classes that the modules of a package define, exported or not."""
    package = import_module(f"pyro_vae.{kind}")
    modules = [
        import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
        if not module.ispkg and module.name != "__main__"
    ]
    public = [(m, name) for m in modules for name in getattr(m, "__all__", ())]
    return {name for m, name in public if kind in BASES and is_member(kind, getattr(m, name))}


def read_targets(folder: str) -> set[str]:
    """Returns the dotted names that a folder of the configuration builds."""
    return {yaml.safe_load(p.read_text("utf-8"))["_target_"] for p in (CONF / folder).iterdir()}


def read_rows(kind: str) -> set[str]:
    """Returns the dotted names of the classes in the table of the tests."""
    classes = [row.func if isinstance(row, partial) else row for row in ROWS[kind]]
    return {f"{made.__module__}.{made.__name__}" for made in classes}


def ours(names: set[str]) -> set[str]:
    """Returns the last parts of dotted names, without those of Pyro."""
    return {name.rpartition(".")[2] for name in names if name.startswith("pyro_vae.")}


def read_table(kind: str) -> list[list[str]]:
    """Returns the cells of the first table of a section."""
    page, title = PAGES[kind]
    text = (ROOT / "docs" / page).read_text("utf-8").split(f"{title}\n")[1].split("\n## ")[0]
    lines = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return [line.split("|") for line in lines[2:]]


def find_documented(kind: str) -> set[str]:
    """Returns the names in the first column, such as `Normal` of `Normal(learned=True)`."""
    first = "".join(cells[1] for cells in read_table(kind))
    return set(re.findall(r"`(\w+)(?:\([^`]*\))?`", first))


def find_in_reference(kind: str) -> set[str]:
    page = (ROOT / "docs" / "api" / f"{kind}.md").read_text("utf-8")
    entries = re.findall(rf"^::: pyro_vae\.{kind}\.(\S+)$", page, re.MULTILINE)
    return {name for name in find_exported(kind) if {"*", name} & set(entries)}


def find_places(kind: str) -> dict[str, set[str]]:
    """Returns the members that are found in each place where a member has to be."""
    page, _ = PAGES[kind]
    places = {
        f"pyro_vae/{kind}/__init__.py": find_exported(kind),
        " or ".join(f"conf/{folder}/*.yaml" for folder in FOLDERS[kind]): ours(
            set().union(*map(read_targets, FOLDERS[kind]))
        ),
        f"docs/{page}": find_documented(kind),
        f"docs/api/{kind}.md": find_in_reference(kind),
    }
    if kind in ROWS:
        places["a row in tests/helpers/tables.py"] = ours(read_rows(kind))
    if kind == "objectives":
        package = import_module("pyro_vae.objectives")
        places["facts"] = {n for n in find_exported(kind) if "facts" in vars(getattr(package, n))}
    return places


def find_gaps(kind: str, places: dict[str, set[str]], written: set[str]) -> list[str]:
    """Returns a line for each member that is missing in a place."""
    lines = []
    for name in sorted(written.union(*places.values())):
        missing = [place for place, names in places.items() if name not in names]
        if missing:
            lines.append(f"{kind}.{name} lacks: {', '.join(missing)}")
    return lines


@pytest.mark.parametrize("kind", PAGES)
def test_every_member_is_complete(kind):
    gaps = find_gaps(kind, find_places(kind), find_written(kind))
    assert not gaps, "\n".join(gaps)


def test_the_members_are_found():
    assert {"Normal", "Vamp"} <= find_exported("priors") & find_written("priors")
    assert {"MLP", "ConvDecoder"} <= find_exported("networks") & find_written("networks")
    assert {"ELBO", "IWAE"} <= find_exported("objectives") & find_written("objectives")
    assert not {"Objective", "ImportanceWeighted", "Linear"} & find_exported("objectives")
    assert {"digits", "ring", "table", "mnist"} <= find_exported("data") & find_documented("data")


@pytest.mark.parametrize("kind", PAGES)
def test_a_made_up_member_lacks_every_place(kind):
    places = find_places(kind)
    assert len(places) == 4 + (kind in ROWS) + (kind == "objectives")
    assert find_gaps(kind, places, {"Made"}) == [f"{kind}.Made lacks: {', '.join(places)}"]


def test_the_place_that_a_member_lacks_is_named():
    places = find_places("priors")
    for place, names in places.items():
        gaps = find_gaps("priors", {**places, place: names - {"Vamp"}}, set())
        assert gaps == [f"priors.Vamp lacks: {place}"]


@pytest.mark.parametrize("kind", [kind for kind in PAGES if kind != "objectives"])
def test_every_option_is_on_its_page(kind):
    # A data set has the option of its name.
    column = 1 if kind == "data" else 2
    shown = "".join(cells[column] for cells in read_table(kind))
    options = {path.stem for folder in FOLDERS[kind] for path in (CONF / folder).iterdir()}
    missing = options - set(re.findall(r"`(\w+)`", shown))
    assert not missing, f"docs/{PAGES[kind][0]} lacks the options {sorted(missing)}"


ENCODERS = {"embedding.yaml"}
"""Networks for data, which latents are not."""


def test_encoder_and_decoder_have_the_same_options():
    encoders, decoders = ({p.name for p in (CONF / f).iterdir()} for f in FOLDERS["networks"])
    assert encoders >= ENCODERS
    lonely = (encoders - ENCODERS) ^ decoders
    assert not lonely, f"{sorted(lonely)} in only one of {FOLDERS['networks']}"


def test_objectives_of_pyro_in_the_configuration_have_a_row():
    targets = {name for name in read_targets("app/objective") if not name.startswith("pyro_vae.")}
    assert len(targets) >= 2
    rows = {name.rpartition(".")[2] for name in read_rows("objectives") if "pyro_vae" not in name}
    assert {name.rpartition(".")[2] for name in targets} <= rows


# The steps of CONTRIBUTING.md


@pytest.fixture
def steps():
    """The module that carries out the steps of CONTRIBUTING.md."""
    if not ADD.is_file():
        pytest.skip("needs a checkout")
    spec = importlib.util.spec_from_file_location("add_members", ADD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contributing_adds_a_member_of_each_kind(steps, tmp_path):
    for name in ("pyro_vae", "conf", "docs", "tests/helpers"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png", "__pycache__")
        )
    sections = steps.read_sections((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert set(sections) == {
        "prior", "posterior", "likelihood", "network", "objective", "data set"
    }  # fmt: skip
    for section in sections.values():
        assert 4 <= len(steps.add_member(section, tmp_path)) <= 6
    code = f"from pyro_vae import {', '.join(PAGES)}; print(priors.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


DIFF = "```diff\n--- a/x.txt\n+++ b/x.txt\n@@\n a\n+b\n```\n"
FILE = "In `new/y.txt`:\n\n```text\nnew\n```\n"


def test_a_step_that_does_not_fit_is_refused(steps, tmp_path):
    path = tmp_path / "x.txt"
    for text, number in (("b\n", "them 0 times"), ("a\na\n", "them 2 times")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"once in x.txt:\na\n, got {number}"):
            steps.add_member(f"one files\n{DIFF}", tmp_path)
    path.write_text("a\nc\n")
    with pytest.raises(ValueError, match=r"Expected three files.*got two: "):
        steps.add_member(f"three files\n{DIFF}{FILE}", tmp_path)
    assert path.read_text() == "a\nb\nc\n"
    assert (tmp_path / "new" / "y.txt").read_text() == "new\n"
    for section, message in (
        (f"two files\n{FILE}", "to be a new file, got one that exists"),
        ("one files\n```text\nx\n```\n", "a path in backticks before the block"),
        ("one files\n```diff\n a\n```\n", "a diff to begin with"),
        (DIFF.replace("x.txt", "z.txt"), "z.txt to be a file"),
        (DIFF, "a number of files in the section"),
    ):
        with pytest.raises(ValueError, match=message):
            steps.add_member(section, tmp_path)
