"""The comparison of runs: what it finds, what it computes, and what it writes."""

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import pytest
import yaml
from filelock import FileLock

import pyro_vae.compare
from helpers.compare_runs import CONFIG, METRICS, big, configuration, png, write
from pyro_vae.cli.compare import main
from pyro_vae.compare import runs as found_runs
from pyro_vae.compare.comparison import compare
from pyro_vae.compare.configurations import Mean, mean_with_error, over_seeds
from pyro_vae.compare.csv_table import build_csv
from pyro_vae.compare.differences import verdict
from pyro_vae.compare.factors import find_factors, shorten_paths
from pyro_vae.compare.markdown import build_markdown, escape_markdown

ASSETS = Path(pyro_vae.compare.__file__).parent / "assets"
ATTACK = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
PRIOR = "vae.prior._target_"


def levels(*settings):
    """Returns the factors of runs with these settings, by name."""
    runs = [
        found_runs.RunRecord(Path(str(place)), str(place), "finished", configuration(one))
        for place, one in enumerate(settings)
    ]
    return {factor.name: factor.levels for factor in find_factors(runs)}


def figures(value):
    """Returns figures that go with a log evidence."""
    return {"log_evidence": value, "elbo": value - 1, "rate": 2.0, "distortion": -1 - value}


# ------------------------------------------------------------------------------------------- runs


def test_runs_are_found_at_any_depth_and_each_once(tmp_path):
    write(tmp_path / "a" / "0", {"seed": 0})
    write(tmp_path / "a" / "deep" / "1", {"seed": 1})
    write(tmp_path / "b", {"seed": 2})
    (tmp_path / "b" / ".hydra").mkdir()
    (tmp_path / "b" / ".hydra" / "config.yaml").write_text("vae: {}\ntrain: {}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("model: {}\n")
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    names = [
        run.name for run in found_runs.find_runs([tmp_path, tmp_path / "b", tmp_path / "link"])
    ]
    assert names == ["a/0", "a/deep/1", "b"]


def test_a_folder_that_is_a_run_works(tmp_path):
    (run,) = found_runs.find_runs([write(tmp_path / "mine")])
    assert (run.name, run.state, run.metrics["elbo"]) == ("mine", "finished", -18.5)


def test_runs_are_in_the_order_in_which_they_were_begun(tmp_path):
    write(tmp_path / "z", {PRIOR: "pyro_vae.priors.Vamp"})
    write(tmp_path / "a")
    found = compare([tmp_path])
    assert [run.name for run in found.runs] == ["z", "a"]
    assert found.factors[0].levels == ("Vamp", "Normal")


def test_states_of_an_unfinished_sweep(tmp_path):
    write(tmp_path / "0")
    write(tmp_path / "1", state="failed", reason="out of luck")
    write(tmp_path / "2", state="interrupted")
    write(tmp_path / "3", state="interrupted")
    with FileLock(tmp_path / "3" / ".lock"):
        runs = found_runs.find_runs([tmp_path])
    assert [run.state for run in runs] == ["finished", "failed", "interrupted", "running"]
    assert runs[1].failure.reason == "out of luck"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", '{"log_evidence": -1'),
        ("metrics.json", "[1, 2]"),
        ("failure.json", '{"other": 1}'),
        ("config.yaml", "vae: {\n"),
        ("config.yaml", ""),
    ],
)
def test_a_damaged_file_is_a_problem_of_its_run_alone(tmp_path, file, content):
    write(tmp_path / "good", {"seed": 1})
    (write(tmp_path / "bad") / file).write_text(content)
    found = compare([tmp_path])
    states = {run.name: run.state for run in found.runs}
    assert states == {"good": "finished", "bad": "unreadable"}
    assert file in build_markdown(found)
    assert main([str(tmp_path)]) == 0


def test_metrics_that_are_no_numbers_are_unknown(tmp_path):
    write(tmp_path / "0", {}, {"log_evidence": None})
    found = compare([tmp_path])
    assert found.headline() == "No run has a log evidence yet, so there is nothing to rank."
    assert "1 run ended with a metric that is not finite" in " ".join(found.caveats)
    assert main([str(tmp_path)]) == 0


def edited(**changes):
    """Returns the text of a metrics.json with changes."""
    return json.dumps(METRICS | changes)


def with_line(line):
    """Returns the text of a config.yaml with a line more."""
    return f"{yaml.safe_dump(CONFIG)}{line}\n"


BOMB = "\n".join(
    ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11)]
)
DAMAGED = {
    "deep JSON": ("metrics.json", "[" * 100_000 + "]" * 100_000, "deeper than 64"),
    "no object": ("metrics.json", "[1, 2]", "to hold an object, got list"),
    "a list": ("metrics.json", edited(log_evidence=[1]), r"log_evidence .* a number .* got \[1\]"),
    "a word": ("metrics.json", edited(elbo="high"), "elbo .* a number .* got 'high'"),
    "a truth": ("metrics.json", edited(seconds=True), "seconds .* a number .* got True"),
    "a huge number": (
        "metrics.json",
        edited(rate=1e300),
        "rate .* a number between -1e100 and 1e100",
    ),
    "not finite": ("metrics.json", edited(elbo=math.inf), "Infinity, which is not JSON"),
    "1e400": ("metrics.json", edited().replace("-18.0", "1e400"), "1e400, too large"),
    "a huge integer": (
        "metrics.json",
        edited().replace("1258", "9" * 5000),
        "of more than 64 bits",
    ),
    "data a mapping": ("metrics.json", edited(data={"a": 1}), "data .* to be text, got"),
    "rows of words": ("metrics.json", edited(rows={"a": "b"}), "rows .* numbers by name, got"),
    "grey_scale a word": ("metrics.json", edited(grey_scale="no"), "true or false, got 'no'"),
    "many figures": (
        "metrics.json",
        edited(**{f"f{i}": 1 for i in range(501)}),
        "most 500 metrics",
    ),
    "long name": ("metrics.json", edited(**{"f" * 501: 1}), "at most 500 characters"),
    "large": ("metrics.json", " " * 5_000_000, "at most 4194304 bytes, got more"),
    "UTF-16": ("metrics.json", edited().encode("utf-16"), "codec can't decode"),
    "empty": ("metrics.json", "", "Expecting value"),
    "failure list": ("failure.json", "[]", "to hold an object, got list"),
    "failure of numbers": ("failure.json", '{"reason": 1}', "something else under reason"),
    "failure without reason": ("failure.json", '{"command": "x"}', "something else under reason"),
    "recursive yaml": ("config.yaml", with_line("loop: &a [*a]"), "anchor or alias"),
    "yaml bomb": ("config.yaml", with_line(BOMB), "anchor or alias"),
    "deep yaml": ("config.yaml", with_line("d: " + "[" * 20_000 + "]" * 20_000), "nesting d"),
    "yaml tag": ("config.yaml", with_line("x: !!python/object/apply:os.getcwd []"), "the tag"),
    "key not text": ("config.yaml", with_line("? [1, 2]\n: 3"), "not a string"),
    "seed a list": (
        "config.yaml",
        with_line("").replace("seed: 0\nstudy", "seed: [0]\nstudy"),
        "seed",
    ),
    "target a number": (
        "config.yaml",
        with_line("o: {_target_: 3}"),
        "o._target_ .* to be text, got 3",
    ),
    "many settings": (
        "config.yaml",
        with_line("m: {" + ", ".join(f"s{i}: {i}" for i in range(501)) + "}"),
        "at most 500 settings, got more",
    ),
    "long path": (
        "config.yaml",
        with_line(f"m: {{_target_: {'a.' * 300}b}}"),
        "most 500 characters",
    ),
    "NUL": ("config.yaml", b"seed: \0", "NUL"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_hostile_file_is_reported_and_the_others_are_compared(tmp_path, capsys, name):
    file, content, why = DAMAGED[name]
    write(tmp_path / "good", {"seed": 1})
    path = write(tmp_path / "bad") / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = compare([tmp_path])
    assert {run.name: run.state for run in found.runs} == {"good": "finished", "bad": "unreadable"}
    (problem,) = [run.problem for run in found.runs if run.problem]
    assert str(path) in problem
    assert re.search(why, problem)
    page = read_page(tmp_path)
    assert problem in capsys.readouterr().out
    assert any(problem in words for words in page.words)
    assert escape_markdown(problem) in (tmp_path / "comparison.md").read_text()


def test_settings_of_odd_kinds_are_levels(tmp_path):
    odd = "d: 2020-01-01\nn: ~\nf: .inf\nl: [{a: 1}, [2]]\ne: {}\nu: \u00e9"
    (write(tmp_path / "a") / "config.yaml").write_text(with_line(odd))
    write(tmp_path / "b", {"vae.latent_dim": [{"a": 1}], "data": None, "seed": None})
    write(tmp_path / "c", {"vae.likelihood": "x", "objective": 3})
    found = compare([tmp_path])
    assert [run.problem for run in found.runs] == [""] * 3
    assert main([str(tmp_path)]) == 0


def test_a_value_that_is_long_gets_a_short_level(tmp_path):
    names = [[f"column_{i}" for i in range(300)], [f"column_{i}" for i in range(301)]]
    for place, columns in enumerate(names):
        write(tmp_path / str(place), {"data.columns": columns})
    (factor,) = compare([tmp_path]).factors
    assert len(set(factor.levels)) == 2
    assert max(map(len, factor.levels)) <= 200


def test_a_failure_of_a_later_version_is_read(tmp_path):
    path = write(tmp_path / "0", state="failed", reason="no luck") / "failure.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "new"}))
    (run,) = compare([tmp_path]).runs
    assert (run.state, run.failure.reason) == ("failed", "no luck")


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("pyro-vae seed=1 'out=\"a b\"'", True),
        ("pyro-vae seed=1; curl x", False),
        ("curl x | sh", False),
        ("pyro-vae $(id)", False),
        ("pyro-vae seed=1\ncurl x", False),
        ("pyro-vae 'seed=1", False),
        ("pyro-vae " + "a" * 10_000, False),
    ],
)
def test_only_a_plain_command_is_shown_to_be_copied(tmp_path, command, kept):
    path = write(tmp_path / "0", state="failed", reason="no") / "failure.json"
    path.write_text(json.dumps({"reason": "r" * 5000, "command": command, "trace": "t" * 10**5}))
    (run,) = compare([tmp_path]).runs
    assert run.failure.command == (command if kept else "")
    assert (len(run.failure.reason), len(run.failure.trace)) == (1000, 20_000)


def test_pipes_devices_and_links_to_themselves_do_not_hang(tmp_path):
    write(tmp_path / "good")
    for name, file in (("a", "metrics.json"), ("b", "failure.json"), ("c", "config.yaml")):
        path = write(tmp_path / name) / file
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    path = write(tmp_path / "d") / "metrics.json"
    path.unlink()
    path.symlink_to(path)
    path = write(tmp_path / "e") / "config.yaml"
    path.unlink()
    path.symlink_to("/dev/zero")
    (write(tmp_path / "f", state="interrupted") / ".lock").symlink_to(tmp_path / "good/config.yaml")
    before = (tmp_path / "good/config.yaml").read_bytes()
    states = {run.name: run.state for run in compare([tmp_path]).runs}
    bad = dict.fromkeys("abcde", "unreadable")
    assert states == {"good": "finished", "f": "interrupted"} | bad
    # The lock of a run may be opened to be emptied.
    assert (tmp_path / "good/config.yaml").read_bytes() == before


def test_a_root_that_links_to_itself_is_one_line(tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert main([str(tmp_path / "loop")]) == 1
    assert "Expected FOLDER to be a folder that exists" in capsys.readouterr().err


def test_links_lead_to_a_limited_number_of_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(found_runs, "LINKED", 20)
    write(tmp_path / "runs" / "0")
    write(tmp_path / "far" / "near")
    for index in range(30):
        (tmp_path / "far" / "near" / "deep" / str(index)).mkdir(parents=True)
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "far")
    runs = {run.name: run for run in compare([tmp_path / "runs"]).runs}
    assert {name: run.state for name, run in runs.items()} == {
        "0": "finished", "../far/near": "finished", "../far": "unreadable",
    }  # fmt: skip
    assert "lead to more than 20 folders: pass it as FOLDER" in runs["../far"].problem


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path, monkeypatch):
    write(tmp_path / "good")
    closed = write(tmp_path / "closed")
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    states = {run.name: run.problem for run in found_runs.find_runs([tmp_path])}
    assert states["good"] == ""
    assert states["closed"].endswith("cannot be listed: Permission denied")


def test_many_files_and_folders_that_are_no_runs(tmp_path):
    write(tmp_path / "0")
    for index in range(2000):
        (tmp_path / f"note{index}").touch()
    for index in range(300):
        (tmp_path / "x" / str(index)).mkdir(parents=True)
        (tmp_path / "x" / str(index) / "config.yaml").write_text("model: {a: &b 1}")
    assert [run.name for run in found_runs.find_runs([tmp_path])] == ["0"]


def test_names_that_would_control_a_terminal_are_shown(tmp_path, capsys):
    odd = "a\x1b[31m\rb\nc\u202e\udcff"
    write(tmp_path / odd / odd, {"vae.latent_dim": 3})
    write(tmp_path / odd / "1", {"vae.latent_dim": "\x1b]0;x\x07"}, {"log_evidence": -1.0})
    (write(tmp_path / odd / f"bad{odd}") / "metrics.json").write_text("{")
    assert main([str(tmp_path / odd)]) == 0
    told = capsys.readouterr().out
    assert not set(told) & {"\x1b", "\r", "\x07", "\u202e", "\udcff"}
    assert "\\x1b[31m" in told
    text = (tmp_path / odd / "comparison.md").read_text()
    assert not set(text) & {"\x1b", "\r", "\x07", "\u202e"}
    assert len(text.splitlines()) == text.count("\n")


def test_a_terminal_without_the_characters_gets_others(tmp_path):
    write(tmp_path / "0")
    done = subprocess.run(
        [sys.executable, "-m", "pyro_vae.cli.compare", str(tmp_path)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"log evidence of ?18.00" in done.stdout


def test_pictures_that_are_no_pictures_are_left_out(tmp_path):
    for place, content in enumerate((png(20_000, 1), b"\x89PNG", png() + bytes(5_000_000), png())):
        folder = write(tmp_path / str(place), {"seed": place}, figures(-20 - place), pictures=True)
        for file in folder.glob("figures/*"):
            file.write_bytes(content)
    for place, shown in enumerate((0, 0, 0, 2)):
        assert len(read_page(tmp_path / str(place)).all("img")) == shown


# ---------------------------------------------------------------------------------------- factors


def test_factors_are_what_differs_by_its_shortest_name():
    vamp = "pyro_vae.priors.Vamp"
    known = levels(
        {"seed": 0, "vae.latent_dim": 10},
        {"seed": 1, PRIOR: vamp, "vae.prior.components": 50, "vae.latent_dim": 2},
    )
    assert known == {"seed": ("0", "1"), "latent_dim": ("2", "10"), "prior": ("Normal", "Vamp")}


def test_what_changes_no_result_is_no_factor():
    unrelated = {"out": "x", "threads": 2, "device": "cuda", "study": "s", "isolate": False}
    nested = {"train.checkpoint_seconds": 1.0, "data.root": "/x", "data.download": True}
    assert levels({}, unrelated | nested | {"resume": True, "hydra.verbose": True}) == {}


def test_an_argument_of_some_levels_is_a_factor_if_it_varies_within_one():
    vamp = {PRIOR: "pyro_vae.priors.Vamp"}
    known = levels({}, vamp | {"vae.prior.components": 5}, vamp | {"vae.prior.components": 50})
    assert known == {"prior": ("Normal", "Vamp"), "components": ("5", "50", "-")}


def test_names_are_long_where_short_ones_are_ambiguous():
    known = levels({}, {"vae.encoder.hidden": [8], "data.seed": 1, "objective.beta": 2.0})
    assert set(known) == {"encoder.hidden", "data.seed", "beta"}
    assert shorten_paths(["a.b", "b"]) == {"a.b": "a.b", "b": "b"}


def test_numbers_of_one_value_are_one_level():
    assert levels({"objective.beta": 1}, {"objective.beta": 1.0}) == {}


def test_classes_of_one_name_are_told_apart():
    known = levels({PRIOR: "pyro_vae.priors.Normal"}, {PRIOR: "mine.Normal"})
    assert known == {"prior": ("priors.Normal", "mine.Normal")}


def test_a_schedule_or_none_is_one_factor():
    cosine = "torch.optim.lr_scheduler.CosineAnnealingLR"
    schedule = {"train.lr_schedule._target_": cosine, "train.lr_schedule.T_max": 300}
    assert levels({}, schedule) == {"lr_schedule": ("null", "CosineAnnealingLR")}
    linear = {"train.schedules.beta._target_": "pyro_vae.objectives.Linear"}
    known = levels({}, linear | {"train.schedules.beta.steps": 5})
    assert known == {"schedules.beta": ("-", "Linear")}


# ------------------------------------------------------------------------------------- statistics


def test_the_mean_and_its_error_by_hand():
    # Deviations are -1, 0 and 1: the sample variance is 1, and the error is 1 / sqrt(3).
    assert mean_with_error([1.0, 2.0, 3.0]) == Mean(2.0, pytest.approx(1 / math.sqrt(3)), 3)
    assert mean_with_error([4.0]) == Mean(4.0, None, 1)


def test_the_error_is_that_of_the_library():
    draw = Random(1)
    values = [draw.gauss(-17, 2) for _ in range(30)]
    error = statistics.stdev(values) / math.sqrt(30)
    assert mean_with_error(values) == Mean(
        pytest.approx(statistics.fmean(values)), pytest.approx(error), 30
    )


def test_runs_of_one_seed_count_once():
    # Seeds have 2 and 4; all three values together would have 8 / 3.
    assert over_seeds([("0", 1.0), ("0", 3.0), ("1", 4.0)]) == Mean(3.0, pytest.approx(1.0), 2)


def test_configurations_are_ranked_by_their_mean(tmp_path):
    for size, seed, value in [(2, 0, -20), (2, 1, -10), (4, 0, -14), (4, 1, -14), (8, 0, -9)]:
        write(tmp_path / f"{size}_{seed}", {"vae.latent_dim": size, "seed": seed}, figures(value))
    write(tmp_path / "8_1", {"vae.latent_dim": 8, "seed": 1}, state="failed")
    (group,) = compare([tmp_path]).groups
    ranked = [(one.levels[0], one.means["log_evidence"]) for one in group.configurations]
    assert ranked == [
        ("8", Mean(-9.0, None, 1)),
        ("4", Mean(-14.0, 0.0, 2)),
        ("2", Mean(-15.0, pytest.approx(5.0), 2)),
    ]
    assert [(len(c.runs), c.planned) for c in group.configurations] == [(1, 2), (2, 2), (2, 2)]


def test_the_lead_is_over_the_seeds_of_both(tmp_path):
    values = {
        (2, 0): -10.0,
        (2, 1): -12.0,
        (2, 2): -20.0,
        (4, 0): -11.0,
        (4, 1): -15.0,
        (8, 5): -9.0,
    }
    for (size, seed), value in values.items():
        write(tmp_path / f"{size}_{seed}", {"vae.latent_dim": size, "seed": seed}, figures(value))
    assert compare([tmp_path]).groups[0].lead is None
    (tmp_path / "8_5" / "metrics.json").unlink()
    # Means are -14 of 2 and -13 of 4; on their two seeds 4 is behind by 1 and by 3.
    assert compare([tmp_path]).groups[0].lead == Mean(-2.0, pytest.approx(1.0), 2)


def test_the_best_of_each_level(tmp_path):
    vamp = {PRIOR: "pyro_vae.priors.Vamp"}
    write(tmp_path / "0", {"vae.latent_dim": 2}, figures(-20))
    write(tmp_path / "1", {"vae.latent_dim": 4}, figures(-18))
    write(tmp_path / "2", vamp | {"vae.latent_dim": 2}, figures(-17))
    write(tmp_path / "3", vamp | {"vae.latent_dim": 4}, figures(-19))
    found = compare([tmp_path])
    (group,) = found.groups
    assert [(name, lv, found.describe(c, group)) for name, lv, c in group.best_by_level] == [
        ("latent_dim", "2", "latent_dim=2, prior=Vamp"),
        ("latent_dim", "4", "latent_dim=4, prior=Normal"),
        ("prior", "Normal", "latent_dim=4, prior=Normal"),
        ("prior", "Vamp", "latent_dim=2, prior=Vamp"),
    ]


def sweep(root, value, seeds=range(3)):
    """Writes a run of each prior, size and seed, with log evidence ``value(prior, size, seed)``."""
    for prior, size, seed in itertools.product(("Normal", "Vamp"), (2, 4), seeds):
        settings = {PRIOR: f"pyro_vae.priors.{prior}", "vae.latent_dim": size, "seed": seed}
        write(root / f"{prior}_{size}_{seed}", settings, figures(value(prior, size, seed)))


def differences(root, against=()):
    """Returns the only set's differences by factor, level and reference."""
    (group,) = compare([root], against).groups
    return {(one.factor, one.level, one.reference): one for one in group.differences}


def test_paired_differences_recover_what_runs_are_made_of(tmp_path):
    noise = {seed: Random(seed).gauss(0, 50) for seed in range(3)}
    gain = {0: 1.0, 1: 2.0, 2: 6.0}

    def value(prior, size, seed):
        return noise[seed] + 10 * size + gain[seed] * (prior == "Vamp")

    sweep(tmp_path, value)
    found = differences(tmp_path)
    # What seeds share cancels: the gain's mean is 3, and its standard deviation sqrt(7).
    vamp = found["prior", "Vamp", "Normal"]
    assert vamp.means["log_evidence"] == Mean(
        pytest.approx(3.0), pytest.approx(math.sqrt(7 / 3)), 3
    )
    assert vamp.pairs == 6
    size = found["latent_dim", "4", "2"]
    assert size.means["log_evidence"] == Mean(pytest.approx(20.0), pytest.approx(0, abs=1e-9), 3)
    assert size.means["distortion"].value == pytest.approx(-20.0)
    assert set(found) == {("prior", "Vamp", "Normal"), ("latent_dim", "4", "2")}


def test_pairs_of_one_seed_are_averaged_before_seeds_are(tmp_path):
    gains = {(2, 0): 1.0, (4, 0): 3.0, (2, 1): 6.0}

    def value(prior, size, seed):
        return gains.get((size, seed), 0.0) if prior == "Vamp" else 0.0

    sweep(tmp_path, value, seeds=range(2))
    (tmp_path / "Vamp_4_1" / "metrics.json").unlink()
    one = differences(tmp_path)["prior", "Vamp", "Normal"]
    # Seed 0 has (1 + 3) / 2 = 2 and seed 1 has 6; all three pairs together would give 10 / 3.
    assert one.means["log_evidence"] == Mean(pytest.approx(4.0), pytest.approx(2.0), 2)
    assert one.pairs == 3


def test_a_run_without_its_like_makes_no_difference(tmp_path):
    write(tmp_path / "0", {"seed": 0}, figures(-20))
    write(tmp_path / "1", {"seed": 1, "vae.latent_dim": 4}, figures(-10))
    assert differences(tmp_path) == {}


def test_another_reference_turns_the_sign(tmp_path):
    sweep(tmp_path, lambda prior, size, seed: seed + (prior == "Vamp"))
    plain = differences(tmp_path)["prior", "Vamp", "Normal"].means["log_evidence"]
    turned = differences(tmp_path, ["prior=Vamp"])["prior", "Normal", "Vamp"]
    assert (plain.value, turned.means["log_evidence"].value) == (1.0, -1.0)
    assert ("prior", "Normal", "Vamp") in differences(tmp_path, ["vae.prior=Vamp"])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("prio=Vamp", "got 'prio=Vamp'; factors are: latent_dim, prior"),
        ("prior=vamp", "level of prior, got 'prior=vamp'; levels are: Normal, Vamp"),
        ("prior", "level of prior"),
        ("seed=1", "name a factor"),
    ],
)
def test_a_wrong_reference_is_told(tmp_path, capsys, choice, message):
    sweep(tmp_path, lambda prior, size, seed: 0.0, seeds=[0])
    assert main([str(tmp_path), "--against", choice]) == 1
    assert message in capsys.readouterr().err


def test_what_changes_with_a_class_does_not_hide_its_difference(tmp_path):
    sgd = {"optimizer._target_": "torch.optim.SGD", "optimizer.lr": 0.1}
    write(tmp_path / "0", {}, figures(-20))
    write(tmp_path / "1", sgd, figures(-22))
    ((key, one),) = differences(tmp_path).items()
    assert (key, one.along) == (("optimizer", "SGD", "Adam"), ("lr=0.1 instead of 0.001",))
    assert one.means["log_evidence"].value == -2


def test_the_verdict_is_that_of_the_t_distribution():
    # Tables give 2.776 for four degrees of freedom at 5 %, and 4.604 at 1 %.
    assert verdict(Mean(2.77, 1.0, 5), 1) == "not clear"
    assert verdict(Mean(-2.78, 1.0, 5), 1) == "clear"
    assert verdict(Mean(4.60, 1.0, 5), 5) == "clear only without correction"
    assert verdict(Mean(4.61, 1.0, 5), 5) == "clear"
    assert verdict(Mean(9.0, None, 1), 1) == "unknown (one seed)"
    assert verdict(Mean(0.0, 0.0, 3), 1) == "no difference"


def test_of_differences_of_nothing_few_are_clear():
    draw = Random(3)
    found = [mean_with_error([draw.gauss(0, 1) for _ in range(4)]) for _ in range(2000)]
    share = Counter(verdict(one, 1) for one in found)["clear"] / len(found)
    # 5 %, within four standard errors of a share of 2000.
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


# ------------------------------------------------------------------------------- comparable sets


@pytest.mark.parametrize(
    ("settings", "metrics"),
    [
        ({}, {"data": "mnist"}),
        ({}, {"binarize": "dynamic"}),
        ({}, {"grey_scale": True}),
        ({}, {"rows": {"train": 100, "valid": 180, "test": 359}}),
        ({}, {"log_evidence_rows": 10}),
        ({"data.seed": 1}, {}),
        ({"vae.likelihood._target_": "pyro_vae.likelihoods.Normal"}, {}),
    ],
)
def test_what_does_not_compare_is_not_compared(tmp_path, settings, metrics):
    write(tmp_path / "0", {}, figures(-20))
    write(tmp_path / "1", {"vae.latent_dim": 4}, figures(-19))
    write(tmp_path / "2", {"vae.latent_dim": 4} | settings, figures(-1) | metrics)
    found = compare([tmp_path])
    assert [group.runs for group in found.groups] == [(0, 1), (2,)]
    (difference,) = [one for group in found.groups for one in group.differences]
    assert difference.means["log_evidence"].value == 1
    assert found.groups[0].title != found.groups[1].title
    assert "2 sets that are not comparable" in found.caveats[0]
    assert found.headline().startswith("Each comparable set has its own best configuration")


@pytest.mark.parametrize(("path", "sets"), [("my.csv", 2), (None, 1)])
def test_runs_on_a_file_that_changed_are_not_compared(tmp_path, path, sets):
    for number, checksum in enumerate(("ab" * 32, "cd" * 32)):
        settings = {"data.path": path, "vae.latent_dim": number + 1}
        write(tmp_path / str(number), settings, {"test_sha256": checksum})
    groups = compare([tmp_path]).groups
    assert len(groups) == sets
    # Generated data may differ in the last bits on another processor.
    assert ("abababab" in groups[0].title) == (sets == 2)


def test_likelihoods_of_one_measure_compare(tmp_path):
    for place, name in enumerate(("Bernoulli", "Categorical")):
        write(tmp_path / str(place), {"vae.likelihood._target_": f"pyro_vae.likelihoods.{name}"})
    (group,) = compare([tmp_path]).groups
    assert len(group.differences) == 1


# ----------------------------------------------------------------------------------------- caution


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"active_units": 0}, "in 1 run no latent dimension is active"),
        ({"rate": 0.05}, "or the rate is below 0.1 nats"),
        ({"grey_scale": True}, "1 run scored grey values by a Bernoulli's cross-entropy"),
        ({"effective_sample_size_min": 9.94}, "lowest: 9.9"),
        ({"log_evidence_particles": 500}, "different numbers of samples per row (50, 500)"),
        ({"mixture_log_evidence": -17.0}, "In 1 of 2 runs a mixture"),
    ],
)
def test_what_makes_figures_doubtful_is_said(tmp_path, metrics, said):
    write(tmp_path / "0", {"seed": 0})
    assert compare([tmp_path]).caveats == ()
    write(tmp_path / "1", {"seed": 1}, metrics)
    assert said in " ".join(compare([tmp_path]).caveats)


def test_dimensions_that_are_not_needed_are_no_fault(tmp_path):
    write(tmp_path / "0", {"seed": 0})
    write(tmp_path / "1", {"seed": 1}, {"active_units": 1, "latent_dim": 10})
    assert compare([tmp_path]).caveats == ()


def test_one_seed_is_said(tmp_path):
    write(tmp_path / "0")
    write(tmp_path / "1", {"vae.latent_dim": 4})
    assert "the same seed" in compare([tmp_path]).caveats[0]


# ------------------------------------------------------------------------------- what is written


def test_the_command_writes_three_files(tmp_path, capsys):
    sweep(tmp_path / "sweep", lambda prior, size, seed: -20.0 + size / 4 + seed / 10)
    write(tmp_path / "sweep" / "bad", {"vae.latent_dim": 8}, state="failed", reason="no luck")
    assert main([str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "13 runs: 12 finished, 1 failed." in told
    told = told.replace("\N{NO-BREAK SPACE}", " ")
    assert "with a log evidence of −18.90 ± 0.06 nats per datum (3 seeds; best of 4; 0.00" in told
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["comparison.csv", "comparison.html", "comparison.md"]
    text = (tmp_path / "out" / "comparison.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "| prior: Vamp minus Normal | 0.00 ± 0.00 |" in text
    assert "+0.50 ± 0.00" in text
    assert f"```bash\npyro-vae seed=0 out={tmp_path / 'sweep' / 'bad'}\n```" in text


def test_the_csv_has_a_row_a_run_and_no_name_twice(tmp_path):
    write(tmp_path / "s" / "0", {}, {"objective": -20.5, "log_evidence": None})
    settings = {"vae.latent_dim": 4, "objective._target_": "pyro_vae.objectives.IWAE", "seed": 1}
    write(tmp_path / "s" / "1", settings, state="interrupted")
    head, *rows = csv.reader(build_csv(compare([tmp_path / "s"]), tmp_path).splitlines())
    assert len(set(head)) == len(head)
    first, second = (dict(zip(head, row, strict=True)) for row in rows)
    assert (first["run"], first["state"], first["objective"]) == ("s/0", "finished", "ELBO")
    assert (first["metrics.objective"], first["log_evidence"]) == ("-20.5", "")
    assert (second["state"], second["objective"], second["latent_dim"]) == (
        "interrupted",
        "IWAE",
        "4",
    )
    assert "rows" not in head


def test_the_csv_holds_no_formula(tmp_path):
    from pyro_vae.files.csv_cells import restore

    names = ["=1+1", "+1+1", "-1+1", "@a", "\t=a", "x\r=b", "'=c", "-1.5", "a=1"]
    for place, name in enumerate(names):
        write(tmp_path / name, {"vae.latent_dim": name, f"vae.{name}": place}, {name: name})
    text = build_csv(compare([tmp_path]), tmp_path)
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    cells = [cell for row in (head, *rows) for cell in row]
    risky = [c for c in cells if c[:1] in set("=+-@\t\r\n")]
    assert set(risky) <= {"-1.5", str(METRICS["log_evidence"]), "-18.5", "-21.0"}
    # Within quotes a carriage return ends no row.
    assert '"x\r=b"' in text
    assert [restore(row[0]) for row in rows] == names
    place = head.index("latent_dim")
    assert [restore(row[place]) for row in rows] == names
    assert "" in rows[0]
    assert not {"-", "'-"} & set(cells)


@pytest.mark.parametrize(
    ("folders", "message"),
    [(["nowhere"], "to be a folder that exists, got 'nowhere'"), (["."], "got none in '.'")],
)
def test_a_folder_without_runs_is_one_line(tmp_path, monkeypatch, capsys, folders, message):
    monkeypatch.chdir(tmp_path)
    assert main(folders) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_place_to_write_to(tmp_path, capsys):
    write(tmp_path / "0")
    assert main([str(tmp_path), "--out", str(tmp_path / "0" / "config.yaml")]) == 1
    assert "Expected --out to be a folder" in capsys.readouterr().err


def test_a_name_that_is_no_unicode_is_linked(tmp_path):
    write(tmp_path / "sweep" / os.fsdecode(b"\xff"))
    page = read_page(tmp_path / "sweep")
    assert json.loads(page.scripts[0])["runs"][0]["report"] == "%FF/report.html"


def test_markdown_shows_text_as_it_is():
    assert escape_markdown("a|b_c<d>\n") == "a\\|b\\_c\\<d\\> "
    assert escape_markdown("&lt;\r\n# x") == "\\&lt; \\# x"
    assert escape_markdown("\u2028~$") == " \\~\\$"


class Page(HTMLParser):
    """A page taken apart: its tags, and what stands in its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.words, self.inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def read_page(folder):
    assert main([str(folder)]) == 0
    return Page((folder / "comparison.html").read_text("utf-8"))


def test_the_page_loads_nothing_and_links_to_reports(tmp_path):
    write(tmp_path / "a b#?%" / "0", {"seed": 0}, figures(-20), pictures=True)
    write(tmp_path / "1", {"seed": 1}, figures(-19), pictures=True)
    page = read_page(tmp_path)
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert len(page.all("img")) == 4
    assert {(one["width"], one["height"]) for one in page.all("img")} == {("4", "2")}
    runs = json.loads(page.scripts[0])["runs"]
    assert {run["report"] for run in runs} == {"a%20b%23%3F%25/0/report.html", "1/report.html"}
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; img-src data:;")
    # Each script that is run is allowed by its hash, and no other.
    assert policy.count("'sha256-") == len(page.scripts) - 1 == 3
    assert "sourceMappingURL" not in "".join(page.scripts)


def test_hostile_text_stays_text(tmp_path):
    write(tmp_path / "0", {PRIOR: ATTACK, f"vae.{ATTACK}": ATTACK}, figures(-20))
    write(tmp_path / "1", {f"vae.{ATTACK}": "b"}, figures(-19) | {"data": ATTACK})
    write(tmp_path / "<b>", {"seed": 1}, state="failed", reason=ATTACK)
    page = read_page(tmp_path)
    assert len(page.scripts) == 4
    assert page.all("img") == page.all("b") == []
    # Without the sign, nothing in the data can end its script, or open a comment in it.
    assert "<" not in page.scripts[0]
    known = json.loads(page.scripts[0])
    assert ATTACK in {level for factor in known["factors"] for level in factor["levels"]}
    assert any(ATTACK in words for words in page.words)
    assert "<img" not in re.sub(r"\\<", "", (tmp_path / "comparison.md").read_text())


def test_five_hundred_runs(tmp_path):
    big(tmp_path)
    found = compare([tmp_path])
    assert found.count_states() == "500 runs: 485 finished, 9 failed, 6 interrupted"
    assert len(found.groups) == 2
    assert build_markdown(found).count("**0") == 9
    assert len(build_csv(found, tmp_path).splitlines()) == 501


def test_the_command_needs_no_pytorch(tmp_path):
    write(tmp_path / "0")
    code = (
        "import sys; from pyro_vae.cli.compare import main; "
        f"assert main([{str(tmp_path)!r}]) == 0; "
        "assert not {'torch', 'pyro', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_assets_are_those_that_are_listed():
    listed = re.findall(
        r"^\| `([\w.]+)` .*`([0-9a-f]{64})` \|$", (ASSETS / "README.md").read_text(), re.M
    )
    assert {name for name, _ in listed} == {p.name for p in ASSETS.glob("*.min.*")}
    for name, checksum in listed:
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == checksum
