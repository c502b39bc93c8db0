"""Options of the commands: in any order beside settings, and the version."""

import sys

import pytest
from omegaconf import OmegaConf

from helpers.commands import MAINS, call
from pyro_vae.console.commands import prepare_options


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed=1 -m vae/prior=normal,vamp", "seed=1 vae/prior=normal,vamp -m"),
        ("-m --config-dir x seed=0", "seed=0 -m --config-dir x"),
        ("-cd=x a=1 --resolve -c job b=2", "a=1 b=2 -cd=x --resolve -c job"),
        ("a=1 --config-dir x a=1", "a=1 a=1 --config-dir x"),
        ("-sc query=bash", "query=bash -sc"),
        ("~a -m", "~a -m"),
        ("", ""),
    ],
)
def test_settings_are_moved_to_the_front(monkeypatch, line, expected):
    monkeypatch.setattr(sys, "argv", ["pyro-vae", *line.split()])
    prepare_options("pyro-vae")
    assert sys.argv == ["pyro-vae", *expected.split()]


def test_settings_and_options_come_in_any_order(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "a.yaml").write_text("# @package _global_\nstudy: b\n")
    words = ["seed=1", "--cfg", "job", "vae/prior=vamp", "--config-dir", "mine", "experiment=a"]
    done = call("pyro-vae", *words, cwd=tmp_path)
    cfg = OmegaConf.create(done.out)
    assert (cfg.seed, cfg.study, cfg.vae.prior.components) == (1, "b", 50)


@pytest.mark.parametrize("program", MAINS)
def test_every_command_prints_the_version(program, tmp_path):
    assert call(program, "--version", cwd=tmp_path) == (0, "pyro_vae 0.1.0\n", "")
