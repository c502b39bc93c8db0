"""Tables that packages ship, each from csv to report by one line."""

import json
import warnings

import pandas
import pytest
import torch

from helpers.designs import keep
from pyro_vae import config, data, reuse
from pyro_vae.run import run

QUICK = ["evaluate.num_particles=20", "evaluate.elbo_particles=5", "evaluate.evidence_rows=100",
         "evaluate.baseline_components=5", "evaluate.baseline_rows=500"]  # fmt: skip


def load_penguins():
    from palmerpenguins import load_penguins

    return load_penguins()


def load_cars():
    from vega_datasets import data as vega

    cars = vega.cars()
    return cars.assign(Year=cars["Year"].dt.year)


def load_statsmodels(name):
    import statsmodels.api as sm

    return getattr(sm.datasets, name).load_pandas().data


def load_wine():
    from sklearn.datasets import load_wine

    wine = load_wine(as_frame=True).frame
    return wine.assign(target=[f"cultivar {i}" for i in wine["target"]])


TABLES = {
    "penguins": (load_penguins, ["data.missing=nan"], {
        "species": "categorical", "bill_length_mm": "real", "body_mass_g": "count", "sex": "binary",
        "flipper_length_mm": "real",
    }),
    "cars": (load_cars, ["data.missing=nan", "data.drop=[Name]"], {
        "Horsepower": "count", "Cylinders": "categorical", "Origin": "categorical",
        "Acceleration": "real",
    }),
    "fair": (lambda: load_statsmodels("fair"), [], {
        "affairs": "real", "rate_marriage": "categorical", "religious": "categorical",
    }),
    "randhie": (lambda: load_statsmodels("randhie").head(2000), [], {
        "mdvis": "count", "idp": "binary", "hlthp": "binary", "disea": "real",
    }),
    "wine": (load_wine, [], {"target": "categorical", "proline": "count", "alcohol": "real"}),
}  # fmt: skip


@pytest.fixture(params=keep(("penguins", "wine"), TABLES))
def table(request, tmp_path):
    """The name, the csv, the settings of the command and some kinds of a table."""
    load, settings, kinds = TABLES[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = load()
    path = tmp_path / f"{request.param}.csv"
    frame.to_csv(path)
    return request.param, path, settings, kinds


def train(path, settings, out, *overrides):
    threads = torch.get_num_threads()
    run(config.compose([
        "data=table", f"data.path={path}", "vae/likelihood=columns", *settings, *overrides,
        f"out={out}",
    ]))  # fmt: skip
    torch.set_num_threads(threads)
    return json.loads((out / "metrics.json").read_text())


def test_a_real_table_goes_from_csv_to_report_by_one_line(table, tmp_path):
    _, path, settings, kinds = table
    out = tmp_path / "run"
    # pandas' index column is in the file too.
    metrics = train(path, settings, out, *QUICK, "train.epochs=5", "train.compile=false")
    assert metrics["measure"] == "mixed"
    assert metrics["mixture_log_evidence"] is not None
    schema = data.Preparation.load(out).schema
    assert {c.name: c.kind for c in schema.columns if c.name in kinds} == kinds
    assert "Least likely rows" in (out / "report.html").read_text()
    rows = pandas.read_csv(reuse.sample(out, 50))
    assert list(rows.columns) == list(schema.names)
    full = pandas.read_csv(reuse.impute(out, num_particles=20))
    assert not full[list(schema.names)].isna().any().any()


@pytest.mark.long
@pytest.mark.parametrize("name", ["penguins", "cars", "wine"])
def test_the_evidence_is_near_that_of_the_mixture(name, tmp_path):
    """The mixture of fifty components is strong on few rows; a broken model is nats below it."""
    load, settings, _ = TABLES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load().to_csv(tmp_path / "t.csv", index=False)
    metrics = train(tmp_path / "t.csv", settings, tmp_path / "run")
    error = metrics["log_evidence_se"]
    assert metrics["log_evidence"] > metrics["mixture_log_evidence"] - 1.5 - 3 * error
