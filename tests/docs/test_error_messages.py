"""The messages of ``docs/errors.md``, each from the call that is shown there."""

import doctest
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from sklearn.utils import check_array

from helpers.commands import call
from helpers.paths import ROOT
from pyro_vae import VAE, config, data, evaluate, fit, likelihoods, run
from pyro_vae.console.hydra_errors import describe_error
from pyro_vae.data import vision
from pyro_vae.objectives.core.user_lines import find_user_line

PAGE = ROOT / "docs" / "errors.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = dict(re.findall(r"```text (\S+)\n(.*?)```", TEXT, re.DOTALL))
CALLS = re.findall(r"```(console|python)\n(?:\$|>>>) (.*?)\n(.*?)\n```", TEXT, re.DOTALL)
NAMES = {
    "VAE": VAE, "data": data, "evaluate": evaluate, "fit": fit, "likelihoods": likelihoods,
    "torch": torch,
}  # fmt: skip


class Missing:
    """A set of torchvision's without its files."""

    def __init__(self, root, train, download):
        raise RuntimeError("Dataset not found. You can use download=True to download it")


def same(message, shown):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown + "\n", message + "\n", flags)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vision, "import_module", lambda name: SimpleNamespace(MNIST=Missing))
    return tmp_path


def test_the_page_has_twenty_mistakes_in_order():
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", TEXT, re.MULTILINE)]
    assert numbers == list(range(1, 21))
    assert len(CALLS) == 20
    assert set(FILES) == {"people.csv", "long.csv", "constant.csv", "totals.csv"}


def test_the_comparison_can_fail():
    assert same("Expected n to be 3, got 4", "Expected n to be ...")
    assert not same("Expected n to be 3, got 4", "Expected m to be ...")


@pytest.mark.parametrize(("kind", "call", "shown"), CALLS, ids=[call[:50] for _, call, _ in CALLS])
def test_the_message_is_the_one_shown(kind, call, shown, folder):
    if kind == "python":
        with pytest.raises(ValueError, match="Expected") as caught:
            eval(call, dict(NAMES))
    else:
        command, *overrides = shlex.split(call)
        assert command == "pyro-vae"
        with pytest.raises((ValueError, hydra.errors.HydraException)) as caught:
            run.run(config.compose([*overrides, "out=written", "threads=1"]))
        # What is refused is refused before anything is trained.
        assert not list(folder.rglob("*.safetensors"))
    message = describe_error(caught.value) or str(caught.value)
    assert same(message, shown), message
    # Only the problems of a table have a line each.
    assert "\n" not in message or "to be a table without problems" in message


def test_the_command_prints_the_line_and_fails(tmp_path):
    done = call("pyro-vae", "data=table", "data.path=persons.csv", cwd=tmp_path)
    assert done.code == 1
    line = "ValueError: Expected data.path to name a file, got 'persons.csv', which is not a file"
    assert line in done.err.splitlines()


def test_code_that_a_library_makes_is_no_line_of_the_program():
    with pytest.raises(ZeroDivisionError) as caught:
        exec("1 / 0", {})
    assert find_user_line(caught.value).line == 'exec("1 / 0", {})'


def test_the_line_of_the_program_is_preferred_to_that_of_a_package():
    def program():
        check_array(None)

    with pytest.raises(ValueError, match="Expected 2D array") as caught:
        program()
    line = find_user_line(caught.value)
    assert (Path(line.filename), line.line) == (Path(__file__), "check_array(None)")
