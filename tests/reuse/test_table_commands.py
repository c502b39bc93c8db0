"""A mixed table from a csv to imputed, synthetic and scored rows."""

import json
import math

import numpy as np
import pandas
import pytest
import torch
from scipy import stats

from helpers.commands import call
from pyro_vae import config, data, evaluate, load, reuse
from pyro_vae.run.experiment import run
from pyro_vae.seeding import fork_and_seed_rng

QUICK = [
    "train.epochs=3", "vae.latent_dim=1", "evaluate.num_particles=30", "evaluate.elbo_particles=5",
    "evaluate.baseline_components=0", "threads=1",
]  # fmt: skip

CSV = "height (cm);income;visits;smoker;city;name\n"


def people(n, seed, gaps=0.15):
    """A semicolon table of decimal commas, counts, words, gaps and a column of no use."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    frame = pandas.DataFrame({
        "height (cm)": [f"{v:.1f}".replace(".", ",") for v in rng.normal(165 + 8 * kind, 5)],
        "income": [f"{v:.2f}".replace(".", ",") for v in np.exp(rng.normal(9 + kind, 0.5))],
        "visits": [str(v) for v in rng.poisson(3 * np.exp(kind))],
        "smoker": rng.choice(["yes", "no"], n),
        "city": np.array(["Bern", "Köln", "Rome"])[kind],
    })  # fmt: skip
    frame = frame.mask(rng.random(frame.shape) < gaps, "")
    frame["name"] = [f"person {i}" for i in range(n)]
    return frame


def write(frame, path):
    frame.to_csv(path, sep=";", index=False, encoding="latin-1")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished run on a table with gaps."""
    folder = tmp_path_factory.mktemp("run")
    path = write(people(300, 0), folder / "people.csv")
    threads = torch.get_num_threads()
    run(config.compose([
        *QUICK, "data=table", f"data.path={path}", "data.missing=nan", "data.drop=[name]",
        "vae/likelihood=columns", f"out={folder / 'run'}",
    ]))  # fmt: skip
    torch.set_num_threads(threads)
    return folder / "run"


TABLE = {"_target_": "pyro_vae.data.table"}


def test_gaps_are_filled_and_everything_else_is_kept(folder, tmp_path):
    source = people(80, 1)
    path = write(source, tmp_path / "new.csv")
    out = reuse.impute(folder, {**TABLE, "path": str(path)}, tmp_path / "full.csv", rows_at_once=32)
    full = pandas.read_csv(out)
    assert list(full.columns) == [*source.columns, "effective_sample_size"]
    assert not full.isna().any().any()
    assert (full["name"] == source["name"]).all()
    for name in source.columns[:5]:
        known = source[name] != ""
        assert (~known).any()
        expected = source.loc[known, name]
        if name in ("height (cm)", "income"):
            expected = expected.str.replace(",", ".").astype(float)
        elif name == "visits":
            assert full[name].dtype == np.int64
            expected = expected.astype(int)
        assert full.loc[known, name].tolist() == expected.tolist()
    assert set(full["city"]) == {"Bern", "Köln", "Rome"}
    assert (full["effective_sample_size"] > 1).all()


def test_draws_are_complete_tables_one_after_another(folder, tmp_path):
    path = write(people(30, 2), tmp_path / "new.csv")
    out = reuse.impute(
        folder, {**TABLE, "path": str(path)}, tmp_path / "draws.parquet", draws=3, rows_at_once=8
    )
    table = pandas.read_parquet(out)
    assert table["draw"].tolist() == [1] * 30 + [2] * 30 + [3] * 30
    assert (table["name"].to_numpy().reshape(3, 30) == table["name"].to_numpy()[:30]).all()
    gaps = (people(30, 2)["income"] == "").to_numpy()
    income = table["income"].to_numpy().reshape(3, 30)
    assert (income[0][~gaps] == income[1][~gaps]).all()
    assert (income[0][gaps] != income[1][gaps]).all()


def test_the_own_data_of_a_run_are_imputed_by_the_function(folder):
    out = reuse.impute(folder, num_particles=200, seed=3)
    assert out == folder / "imputed" / "people-all.csv"
    own = data.table(folder.parent / "people.csv", like=folder, missing="nan", valid=0, test=0)
    vae = load(folder)
    with fork_and_seed_rng(torch.device("cpu"), 3):
        expected = evaluate.impute(vae, own.x.train, own.mask.train, 200).x
    table = pandas.read_csv(out)
    gaps = ~own.mask.train[:, 4]
    cities = own.schema.decode(expected)["city"]
    assert table.loc[gaps.numpy(), "city"].tolist() == cities[gaps.numpy()].tolist()


def test_synthetic_rows_have_the_columns_of_the_file(folder, tmp_path):
    path = reuse.sample(folder, 500, tmp_path / "rows.csv", rows_at_once=128)
    rows = pandas.read_csv(path)
    assert list(rows.columns) == list(people(1, 0).columns[:5])
    assert len(rows) == 500
    assert rows["visits"].dtype == np.int64
    assert (rows["height (cm)"] * 10 % 1 < 1e-6).mean() + (
        rows["height (cm)"] * 10 % 1 > 1 - 1e-6
    ).mean() == 1
    assert set(rows["smoker"]) == {"no", "yes"}
    assert (rows["income"] > 0).all()
    # They are rows of the same table, which the run scores.
    found = data.table(path, like=folder, valid=0, test=0)
    assert found.x.train.shape == (500, 5)
    again = reuse.sample(folder, 500, tmp_path / "again.csv")
    assert again.read_text() == reuse.sample(folder, 500, tmp_path / "third.csv").read_text()
    assert (
        again.read_text() != reuse.sample(folder, 500, tmp_path / "other.csv", seed=1).read_text()
    )


def test_scores_are_the_log_evidence(folder, tmp_path):
    path = write(people(50, 4), tmp_path / "new.csv")
    node = {**TABLE, "path": str(path), "missing": "nan"}
    table = pandas.read_csv(reuse.score(folder, node, tmp_path / "scores.csv", seed=5))
    assert table.columns.tolist() == [
        "part", "row", "log_evidence", "standard_error", "effective_sample_size", "observed",
        "p_value",
    ]  # fmt: skip
    own = data.table(path, like=folder, missing="nan", valid=0, test=0)
    vae, stored = load(folder), json.loads((folder / "metrics.json").read_text())
    with fork_and_seed_rng(torch.device("cpu"), 5):
        result = evaluate.log_evidence(
            vae, own.x.train, stored["log_evidence_particles"], mask=own.mask.train,
            diagnostics=True,
        )  # fmt: skip
    assert np.allclose(table["log_evidence"], result.log_evidence, atol=1e-4)
    reference = pandas.read_csv(folder / "held_out.csv")
    assert reference["log_evidence"].mean() == pytest.approx(stored["log_evidence"], abs=1e-4)
    below = (reference["log_evidence"].to_numpy() <= table["log_evidence"].to_numpy()[:, None]).sum(
        1
    )
    assert np.allclose(table["p_value"], (1 + below) / (1 + len(reference)))
    tests = data.table(folder.parent / "people.csv", like=folder, missing="nan")
    assert reference["row"].tolist() == tests.row_numbers.test.tolist()


def test_p_values_are_uniform_on_new_rows_and_small_for_outliers():
    """The reference is one held-out set; another is tested at the level of 1 per cent."""
    torch.manual_seed(0)
    scores = torch.randn(4000)
    p = evaluate.compute_p_values(scores[2000:], scores[:2000])
    assert stats.ks_2samp(p.numpy(), np.random.default_rng(0).random(10**6)).pvalue > 0.01
    for level in (0.01, 0.05, 0.2):
        error = math.sqrt(level * (1 - level) * (1 / 2000 + 1 / 2000))
        assert (p <= level).double().mean() <= level + 3 * error
    outliers = evaluate.compute_p_values(torch.tensor([-6.0]), scores[:2000])
    assert outliers.item() == pytest.approx(1 / 2001)
    # Ties count, so a point mass does not give small p-values.
    assert evaluate.compute_p_values(torch.zeros(1), torch.zeros(10)).item() == 1


def test_planted_outliers_of_a_table_get_small_p_values(folder, tmp_path):
    frame = people(60, 6, gaps=0)
    frame.loc[:9, "height (cm)"] = "20,0"
    path = write(frame, tmp_path / "new.csv")
    scores = pandas.read_csv(
        reuse.score(folder, {**TABLE, "path": str(path)}, tmp_path / "scores.csv")
    )
    assert (scores["p_value"][:10] < 0.05).all()
    assert (scores["p_value"][10:] > 0.05).mean() > 0.8


def test_the_commands_write_the_same_as_the_functions(folder, tmp_path):
    path = write(people(20, 7), tmp_path / "new.csv")
    node = {**TABLE, "path": str(path)}
    table = ["data=table", f"data.path={path}"]
    for name, function, options, overrides in (
        ("impute", reuse.impute, {"num_particles": 50}, [*table, "num_particles=50"]),
        ("score", reuse.score, {}, [*table, "data.missing=nan"]),
        ("sample", reuse.sample, {"n": 20}, ["n=20"]),
    ):
        done = call(
            f"pyro-vae-{name}", f"run={folder}", "out=command.csv", *overrides, cwd=tmp_path
        )
        assert not done.code, done.err
        assert done.out.split()[-1] == "command.csv"
        own = {} if name == "sample" else {"data": node | {"missing": "nan"}}
        expected = function(folder, out=tmp_path / "function.csv", **own, **options)
        assert (tmp_path / "command.csv").read_text() == expected.read_text()


WRONG_FILES = {
    "absent": (lambda f: f.drop(columns="city"), r"without 'city'"),
    "renamed": (lambda f: f.rename(columns={"income": "Income"}), r"without 'income'"),
    "level": (lambda f: f.replace({"city": {"Rome": "Paris"}}), r"'city' .*got 'Paris', first in"),
    "negative": (lambda f: f.replace({"visits": {f["visits"].max(): "-1"}}), r"'visits' .*got -1"),
    "words": (lambda f: f.assign(income="much"), r"'income' .*numbers"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
@pytest.mark.parametrize("function", [reuse.impute, reuse.score, reuse.embed])
def test_a_file_whose_columns_do_not_fit_is_refused_by_name(folder, tmp_path, name, function):
    change, message = WRONG_FILES[name]
    path = write(change(people(60, 8, gaps=0)), tmp_path / "new.csv")
    out = tmp_path / "out.csv"
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        function(folder, {**TABLE, "path": str(path), "missing": "nan"}, out)
    assert not out.exists()


def test_wrong_arguments_are_named(folder, tmp_path):
    for function, options, message in (
        (reuse.impute, {"draws": -1}, "draws to be an integer of at least 0"),
        (reuse.impute, {"num_particles": 0}, "num_particles to be an integer of at least 1"),
        (reuse.impute, {"out": "x.txt"}, "out to name a .parquet or .csv file"),
        (reuse.sample, {"n": 0}, "n to be an integer of at least 1"),
        (reuse.sample, {"covariates": {"a": 1}}, "no covariates for a run without them"),
        (reuse.sample, {"seed": 0.5}, "seed"),
        (reuse.score, {"rows_at_once": 0}, "rows_at_once to be an integer of at least 1"),
        (reuse.score, {"part": "some"}, "part to be"),
    ):
        with pytest.raises(ValueError, match=f"Expected {message}"):
            function(folder, **options)
        with pytest.raises(ValueError, match="Expected run to be the folder of a finished run"):
            function(tmp_path)


def test_a_run_without_its_reference_is_explained(folder, tmp_path):
    path = folder / "held_out.csv"
    text = path.read_text()
    try:
        path.unlink()
        with pytest.raises(ValueError, match=r"held_out.csv' to hold the log evidence .*overwrite"):
            reuse.score(folder)
        path.write_text("row,log_evidence,observed\n0,nan,5\n")
        with pytest.raises(ValueError, match="to hold finite numbers"):
            reuse.score(folder)
    finally:
        path.write_text(text)


def test_images_are_no_table(tmp_path):
    threads = torch.get_num_threads()
    run(config.compose([*QUICK, "train.epochs=1", f"out={tmp_path}"]))
    torch.set_num_threads(threads)
    for function in (reuse.sample, reuse.impute):
        with pytest.raises(ValueError, match=r"Expected a run on a table .*shape \(1, 8, 8\)"):
            function(tmp_path)
    scores = pandas.read_csv(reuse.score(tmp_path, part="test"))
    assert len(scores) == json.loads((tmp_path / "metrics.json").read_text())["rows"]["test"]


def test_a_standardized_table_with_covariates_is_sampled_in_its_units(tmp_path):
    rng = np.random.default_rng(0)
    group = rng.choice(["a", "b"], 200)
    frame = pandas.DataFrame(
        {"x": rng.normal(500, 3, 200), "y": rng.normal(-7, 1, 200), "g": group}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    threads = torch.get_num_threads()
    run(config.compose([
        *QUICK, "data=table", f"data.path={tmp_path / 't.csv'}", "data.covariates=[g]",
        "vae/likelihood=normal", f"out={tmp_path / 'run'}",
    ]))  # fmt: skip
    torch.set_num_threads(threads)
    rows = pandas.read_csv(reuse.sample(tmp_path / "run", 100, covariates={"g": "a"}))
    assert list(rows.columns) == ["g", "x", "y"]
    assert set(rows["g"]) == {"a"}
    assert abs(rows["x"].mean() - 500) < 3
    with pytest.raises(ValueError, match=r"covariates to give a value for each of \['g'\]"):
        reuse.sample(tmp_path / "run")


def test_new_rows_may_have_gaps_as_those_of_the_run_had(folder, tmp_path):
    path = write(people(40, 9), tmp_path / "new.csv")
    for function in (reuse.score, reuse.embed):
        rows = pandas.read_csv(function(folder, {**TABLE, "path": str(path)}, tmp_path / "o.csv"))
        assert len(rows) == 40


def test_other_gaps_and_few_effective_samples_are_announced(folder, tmp_path, capsys):
    path = write(people(300, 10, gaps=0), tmp_path / "new.csv")
    done = call("pyro-vae-score", f"run={folder}", "data=table", f"data.path={path}", "out=s.csv",
                cwd=tmp_path)  # fmt: skip
    assert "held-out rows of the run" in done.err
    assert "the p-values are not valid" in done.err
    own = call("pyro-vae-score", f"run={folder}", "part=test", "out=t.csv", cwd=tmp_path)
    assert "not valid" not in own.err
    done = call("pyro-vae-impute", f"run={folder}", "num_particles=2", "out=i.csv", cwd=tmp_path)
    assert "smallest effective sample size of a row is only" in done.err


def test_a_row_without_any_value_has_the_log_evidence_of_nothing(folder, tmp_path):
    frame = people(10, 11)
    frame.iloc[4, :5] = ""
    path = write(frame, tmp_path / "new.csv")
    rows = pandas.read_csv(reuse.score(folder, {**TABLE, "path": str(path)}, tmp_path / "o.csv"))
    assert rows["log_evidence"][4] == rows["standard_error"][4] == rows["observed"][4] == 0
    assert rows["p_value"][4] == 1


@pytest.mark.parametrize("function", [reuse.impute, reuse.score, reuse.embed])
def test_the_file_of_the_data_is_never_replaced(folder, tmp_path, function):
    path = write(people(10, 12), tmp_path / "new.csv")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Expected out to be another file than the data, got"):
        function(folder, {**TABLE, "path": str(path)}, path)
    with pytest.raises(ValueError, match="Expected out to be another file than the data, got"):
        function(folder, None, folder.parent / "people.csv")
    assert path.read_bytes() == before


def test_rows_that_are_both_training_and_test_rows_are_written_once(tmp_path):
    threads = torch.get_num_threads()
    run(config.compose([
        *QUICK, "experiment=miwae_iris", "train.epochs=1", f"out={tmp_path}",
    ]))  # fmt: skip
    torch.set_num_threads(threads)
    rows = pandas.read_csv(reuse.impute(tmp_path, num_particles=5))
    assert len(rows) == 150
    own = data.incomplete("iris")
    complete = data.incomplete("iris", share=0.0)
    known = own.mask.train.numpy()
    values = rows[list(own.columns)].to_numpy()
    expected = complete.scaling.undo(complete.x.train.double()).numpy()
    assert np.allclose(values[known], expected[known], rtol=1e-5)
