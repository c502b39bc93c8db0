"""Tables in a report: distances with their null band, correlations, gaps and outliers."""

import math
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from omegaconf import OmegaConf

from pyro_vae import VAE, config, data, evaluate, likelihoods, transforms
from pyro_vae.data import Column
from pyro_vae.report import table_content
from pyro_vae.report.trained_run import TrainedRun
from pyro_vae.run.experiment import run

COLUMNS = [
    Column("height", "real"), Column("town", "categorical", ("Bern", "Oslo", "Rome")),
    Column("visits", "count"), Column("member", "binary", ("no", "yes")),
]  # fmt: skip


class Independent(torch.nn.Module):
    """A decoder that ignores the latents: columns are independent with known parameters."""

    def __init__(self, size):
        super().__init__()
        self.features = torch.nn.Parameter(torch.zeros(size))

    def forward(self, z, covariates=None):
        return self.features.expand(*z.shape[:-1], -1)


def make_run(n=600, shift=0.0, gaps=0.2, seed=0):
    """A run whose model is the truth, but for a shift of the first column of held-out rows."""
    torch.manual_seed(seed)
    part = likelihoods.Columns((4,), columns=COLUMNS)
    part.initialize(torch.tensor([[160.0, 0, 3, 0], [180.0, 1, 9, 1], [170.0, 2, 6, 1]]))
    vae = VAE(
        (4,), 1, likelihood=part, decoder=Independent(part.feature_shape[0]),
        input_transform=lambda event_shape: transforms.Columns(event_shape, columns=COLUMNS),
    )  # fmt: skip
    x = vae.sample(n)
    x[:, 0] += shift
    mask = torch.rand(n, 4) >= gaps
    rows = torch.arange(n)
    split = data.Split(x, x[:0], x)
    table = data.Data(
        "people", "none", split, None, "nowhere", mask=data.Split(mask, mask[:0], mask),
        columns=tuple(c.name for c in COLUMNS), schema=data.Schema(tuple(COLUMNS)),
        row_numbers=data.Split(rows, rows[:0], rows + 1000),
    )  # fmt: skip
    return TrainedRun(OmegaConf.create({}), table, vae, None, SimpleNamespace(history=[]))


def test_distances_of_the_true_model_stay_below_the_limit():
    """Four columns in 25 runs: 95 per cent are below, to three standard errors."""
    below = []
    for seed in range(25):
        for fit in table_content.fit_columns(make_run(n=300, seed=seed)):
            below.append(fit.distance <= fit.band)  # noqa: PERF401
    assert np.mean(below) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(below))


def test_a_column_that_differs_comes_first():
    fits = table_content.fit_columns(make_run(shift=8.0))
    assert fits[0].column.name == "height"
    assert fits[0].excess > 2
    assert all(fit.excess < 2 for fit in fits[1:])


def test_columns_beyond_their_limit_are_a_warning():
    fits = table_content.fit_columns(make_run(shift=8.0))
    (warning,) = table_content.warn_of_columns([fits[0], fits[0]])
    assert warning.startswith("Generated values differ from held-out ones in 2 of 2 columns")
    assert "'height'" in warning
    # One of twenty is chance.
    assert table_content.warn_of_columns([fits[0]] + [fits[-1]] * 19) == []


def test_the_limit_of_categories_is_the_quantile_of_the_total_variation():
    column = Column("k", "categorical", ("a", "b", "c"))
    rng = np.random.default_rng(1)
    distances, bands = [], []
    for _ in range(300):
        x, y = (rng.choice(3, n, p=[0.7, 0.2, 0.1]) for n in (100, 400))
        distance, band = table_content._measure(column, x, y)
        distances.append(distance)
        bands.append(band)
    share = np.mean(np.array(distances) <= bands)
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 300)


def test_the_table_of_columns_has_kinds_families_and_gaps():
    run_ = make_run()
    table = table_content.list_columns(run_, table_content.fit_columns(run_))
    rows = {row[0]: row[1:4] for row in table.rows}
    assert rows["town"][:2] == ("categorical", "categorical")
    assert rows["visits"][:2] == ("count", "negative_binomial")
    share = 1 - run_.data.mask.train.double().mean(0)[0].item()
    assert rows["height"] == ("real", "normal", f"{share:.1%}")


def test_a_planted_row_is_the_least_likely_with_its_value():
    run_ = make_run(gaps=0.0)
    run_.data.x.test[17, 0] = 900.0
    evidence = evaluate.log_evidence(run_.vae, run_.data.x.test, 50, diagnostics=True)
    table = table_content.list_outliers(run_, evidence)
    assert table.rows[0][0] == "1017"
    assert "height = 900 (\N{MINUS SIGN}" in table.rows[0][2]
    assert len(table.rows) == 10
    assert float(table.rows[0][1]) <= float(table.rows[1][1])


def test_rows_without_any_value_are_left_out_of_the_least_likely():
    run_ = make_run(gaps=0.3)
    run_.data.mask.test[:5] = False
    kept = run_.data.mask.test.any(1)
    x, mask = run_.data.x.test[kept], run_.data.mask.test[kept]
    evidence = evaluate.log_evidence(run_.vae, x, 20, mask=mask, diagnostics=True)
    numbers = (run_.data.row_numbers.test[kept][evidence.log_evidence.argsort()[:10]]).tolist()
    table = table_content.list_outliers(run_, evidence)
    assert [int(row[0]) for row in table.rows] == numbers


def test_correlations_of_pairs_of_columns_are_those_of_pandas():
    run_ = make_run(gaps=0.1)
    observed, _ = table_content._get_rows(run_)
    frame = pandas.DataFrame({
        "height": observed[:, 0], "visits": np.log1p(observed[:, 2]), "member": observed[:, 3],
    })  # fmt: skip
    for level in range(3):
        codes = observed[:, 1]
        frame[f"town {level}"] = np.where(np.isnan(codes), np.nan, codes == level)
    matrix = frame.corr().to_numpy()
    pairs = [matrix[i, j] for i in range(6) for j in range(i + 1, 6) if not i >= 3 <= j]
    np.testing.assert_allclose(table_content._correlate(run_, observed), pairs, atol=1e-9)


@pytest.mark.parametrize("likelihood", ["columns", "normal"])
def test_the_report_of_a_table_shows_all_of_it(tmp_path, likelihood):
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"a": rng.normal(50, 5, 200), "b": rng.exponential(3, 200)})
    frame["c"] = rng.choice(["x<y", "z&w"], 200) if likelihood == "columns" else frame["a"] * 2
    frame.loc[::7, "b"] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    threads = torch.get_num_threads()
    run(config.compose([
        "data=table", f"data.path={tmp_path / 't.csv'}", "data.missing=nan", "train.epochs=2",
        f"vae/likelihood={likelihood}", "vae.latent_dim=1", "evaluate.num_particles=10",
        "evaluate.elbo_particles=2", "evaluate.baseline_components=3", f"out={tmp_path / 'run'}",
    ]))  # fmt: skip
    torch.set_num_threads(threads)
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("Least likely rows", "Kolmogorov", "Missing values", "Correlations"):
        assert text in page
    for name in ("columns", "correlations", "missing"):
        assert (tmp_path / "run" / "figures" / f"{name}.png").stat().st_size > 1000
    if likelihood == "columns":
        # Words of the file are no markup.
        assert "x<y" not in page
        assert "log_normal" in page
