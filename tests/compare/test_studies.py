"""The studies of searches in a comparison."""

import json

import pytest

from helpers.commands import call
from pyro_vae.compare.studies import find_studies
from pyro_vae.compare.study_figures import draw_study

CONFIG = "vae: {latent_dim: 2}\ntrain: {epochs: 1}\nseed: 0\n"


def trial(number, state="finished", values=(-1.0,), **params):
    return {
        "number": number, "state": state, "params": params, "folders": [f"job{number}"],
        "values": list(values) if state == "finished" else None,
    }  # fmt: skip


def study(*trials, objectives=("log_evidence",), best=(), **more):
    directions = {"log_evidence": "maximize", "seconds": "minimize"}
    return {
        "study": "mine", "objectives": list(objectives), "trials": list(trials),
        "directions": [directions[name] for name in objectives], "best": list(best),
        "importances": {name: {"a": 0.75, "b": 0.25} for name in objectives}, **more,
    }  # fmt: skip


TWO = study(
    trial(0, values=(-3.0, 9.0), a=1, b=0.123456), trial(1, "pruned"), trial(2, "failed"),
    trial(3, values=(-2.0, 20.0), a="x", b=2.0), trial(4, values=(-4.0, 30.0)),
    objectives=("log_evidence", "seconds"), best=[0, 3],
)  # fmt: skip


def write(folder, content, name="search"):
    job = folder / name / "job0"
    job.mkdir(parents=True)
    (job / "config.yaml").write_text(CONFIG)
    (folder / name / "study.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder / name


def test_a_study_is_found_in_a_folder_and_below_it(tmp_path):
    folder = write(tmp_path, TWO)
    for start in (folder, tmp_path):
        (found,), problems = find_studies([start, start])
        assert problems == []
        assert found.count_states() == "3 finished, 1 pruned, 1 failed"
        assert [one.number for one in found.best] == [0, 3]
        assert found.best[0].params == {"a": "1", "b": "0.1235"}
        assert found.trials[1].values is None


def test_page_and_text_show_the_study(tmp_path):
    folder = write(tmp_path, TWO)
    outcome = call("pyro-vae-compare", str(folder), cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    page = (folder / "comparison.html").read_text()
    text = (folder / "comparison.md").read_text()
    for title in ("History of log evidence", "History of training time", "Pareto front",
                  "Importances for log evidence"):  # fmt: skip
        assert f"<h3>{title}</h3>" in page
    assert "## Study mine (3 finished, 1 pruned, 1 failed)" in text
    assert "| a=x b=2 | 3 | \N{MINUS SIGN}2 | 20 |" in text


@pytest.mark.parametrize("values", [[-3.0, -1.0, -2.0], [5.0, 5.0, 5.0]])
def test_figures_are_drawn(values, tmp_path):
    write(tmp_path, study(*(trial(n, values=[v]) for n, v in enumerate(values)), best=[1]))
    (found,), _ = find_studies([tmp_path])
    history, importances = draw_study(found)
    assert history.source.startswith("data:image/png;base64,")
    assert importances.height < history.height


def test_a_study_without_finished_trials_has_no_figures(tmp_path):
    write(tmp_path, study(trial(0, "running"), trial(1, "pruned"), importances={}))
    (found,), _ = find_studies([tmp_path])
    assert draw_study(found) == []
    assert found.count_states() == "1 pruned, 1 running"


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}", json.dumps(study(trial(0), best=[1])), json.dumps(study({"number": 0})),
        json.dumps(study(trial(0, values=(1.0, 2.0)))), json.dumps(study(trial(0, "unknown"))),
        json.dumps(study(trial(0, a="x" * 1000))), json.dumps(study(trial(0, values=["x"]))),
        json.dumps(study(trial(0), importances=3)), json.dumps(study(trial(0), study=["mine"])),
        json.dumps(study(trial(0)) | {"trials": [dict(trial(0), values=None)]}),
    ],
)  # fmt: skip
def test_a_damaged_study_is_a_caveat(content, tmp_path):
    folder = write(tmp_path, content)
    studies, (problem,) = find_studies([folder])
    assert studies == []
    assert problem.startswith("A study is not shown: Expected '")
    outcome = call("pyro-vae-compare", str(folder), cwd=tmp_path)
    assert (outcome.code, outcome.out.count("A study is not shown")) == (0, 1)
