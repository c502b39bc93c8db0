"""scikit-learn's tools on tables of mixed columns: transformer, imputer and detector."""

import pickle
from functools import partial

import numpy as np
import pandas
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from helpers.truths import linear_data
from pyro_vae import (
    VAEDetector,
    VAEImputer,
    VAETransformer,
    evaluate,
    likelihoods,
    networks,
    objectives,
    priors,
)

MLP = partial(networks.MLP, hidden=[16])
NETS = {"encoder": MLP, "decoder": MLP}
MIXED = {"likelihood": likelihoods.Columns, "epochs": 5, "random_state": 0, **NETS}
SAMPLED = "results are estimated by samples, whose noise goes by the place of a row"
FAILS = {
    "check_methods_sample_order_invariance": SAMPLED, "check_methods_subset_invariance": SAMPLED,
}  # fmt: skip


def frame(n=120, seed=0, gaps=0.15):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    table = pandas.DataFrame({
        "height": rng.normal(165 + 8 * kind, 5).round(1),
        "income": np.exp(rng.normal(9 + kind, 0.5)),
        "visits": pandas.array(rng.poisson(3 * np.exp(kind)), dtype="Int64"),
        "smoker": rng.choice([True, False], n),
        "city": np.array(["Bern", "Köln", "Rome"])[kind],
    })  # fmt: skip
    table["smoker"] = table["smoker"].astype("boolean")
    for i, name in enumerate(table.columns):
        table.loc[rng.random(n) < gaps * (i != 3), name] = None
    return table, kind


def test_a_mixed_table_is_embedded_scored_and_decoded():
    x, kind = frame(200)
    made = VAETransformer(2, **{**MIXED, "epochs": 60}).fit(x)
    assert [c.kind for c in made.schema_.columns] == [
        "real", "positive", "count", "binary", "categorical",
    ]  # fmt: skip
    assert made.scaling_ is None
    assert list(made.feature_names_in_) == list(x.columns)
    assert made.n_features_in_ == 5
    back = made.inverse_transform(made.transform(x))
    assert list(back.columns) == list(x.columns)
    assert set(back["city"]) <= {"Bern", "Köln", "Rome"}
    assert back["visits"].dtype == "Int64"
    pipeline = make_pipeline(clone(made), LogisticRegression()).fit(x[:150], kind[:150])
    assert pipeline.score(x[150:], kind[150:]) > 0.5
    # The score is the log evidence in the units of the table.
    torch.manual_seed(made._seed)
    rows, mask = made._rows.prepare(x)
    expected = evaluate.log_evidence(made.vae_, rows, 100, mask=mask)
    assert made.score(x) == pytest.approx(expected.mean().item(), abs=0.1)
    assert pickle.loads(pickle.dumps(made)).score(x) == made.score(x)


def test_kinds_are_declared():
    x, _ = frame()
    kinds = {"visits": "real", "city": ["Rome", "Köln", "Bern"]}
    made = VAETransformer(1, kinds=kinds, **MIXED).fit(x)
    assert made.schema_.columns[2].kind == "real"
    assert made.schema_.columns[4][1:3] == ("ordinal", ("Rome", "Köln", "Bern"))
    for wrong, message in (
        ({"city": "word"}, "kinds to give one of .* for 'city'"),
        ({"town": "real"}, "the kinds of columns among 'height', .*'town'"),
    ):
        with pytest.raises(ValueError, match=f"Expected {message}"):
            VAETransformer(1, kinds=wrong, **MIXED).fit(x)


@pytest.mark.parametrize("change", [
    lambda x: x.drop(columns="city"), lambda x: x.assign(city="Paris"),
    lambda x: x.assign(visits=-1),
])  # fmt: skip
def test_other_columns_are_refused(change):
    x, _ = frame()
    made = VAETransformer(1, **MIXED).fit(x)
    with pytest.raises(ValueError, match=r"city|visits|feature"):
        made.transform(change(x))


def test_an_array_of_objects_gets_names():
    x, _ = frame(gaps=0)
    made = VAETransformer(1, **MIXED).fit(x.to_numpy(dtype=object))
    assert made.schema_.names == ("x0", "x1", "x2", "x3", "x4")
    assert made.transform(x.to_numpy(dtype=object)).shape == (120, 1)


def test_outputs_in_pandas_have_names():
    x, _ = frame()
    made = VAETransformer(2, **MIXED).set_output(transform="pandas").fit(x)
    assert list(made.transform(x).columns) == ["vaetransformer0", "vaetransformer1"]
    imputer = VAEImputer(VAETransformer(1, **MIXED), num_particles=20).set_output(
        transform="pandas"
    )
    assert list(imputer.fit_transform(x).columns) == list(x.columns)
    assert list(imputer.get_feature_names_out()) == list(x.columns)


def test_single_precision_stays_single():
    x = linear_data(100)[1].numpy().astype(np.float32)
    assert VAETransformer(2, epochs=1, **NETS).fit(x).transform(x).dtype == np.float32
    x[::3, 0] = np.nan
    imputer = VAEImputer(VAETransformer(2, epochs=1, **NETS), num_particles=5)
    assert imputer.fit_transform(x).dtype == np.float32


def test_arguments_of_parts_have_nested_names():
    made = VAETransformer(prior=priors.Mixture)
    made.set_params(prior__components=7, encoder__hidden=[8], epochs=3)
    assert made.prior.keywords == {"components": 7}
    assert made.epochs == 3
    assert clone(made).prior.keywords == {"components": 7}
    assert made.set_params(prior__components=2).prior.keywords == {"components": 2}
    for params, message in (
        ({"prior__parts": 3}, "an argument of Mixture in prior__parts, one of .*, got 'parts'"),
        ({"priors__components": 3}, "a part of VAETransformer before '__', got 'priors'"),
        (
            {"objective__beta": 0.5},
            "objective of VAETransformer to be a class or",
        ),
    ):
        with pytest.raises(ValueError, match=f"Expected {message}"):
            made.set_params(**params)
    x = linear_data(80)[1].numpy()
    search = GridSearchCV(
        VAETransformer(1, epochs=1, prior=priors.Mixture, objective=objectives.ELBO, **NETS),
        {"prior__components": [2, 3], "objective__beta": [0.5, 1.0]}, cv=2,
    ).fit(x)  # fmt: skip
    assert set(search.best_params_) == {"prior__components", "objective__beta"}
    nested = GridSearchCV(
        VAEImputer(VAETransformer(epochs=1, **NETS), num_particles=5), {"vae__latent_dim": [1, 2]},
        cv=2, scoring=lambda estimator, X: float(estimator.vae_.latent_dim),
    ).fit(x)  # fmt: skip
    assert nested.best_params_ == {"vae__latent_dim": 2}


def test_a_mixed_table_is_imputed():
    x, _ = frame(200)
    imputer = VAEImputer(VAETransformer(1, **{**MIXED, "epochs": 40}), random_state=0).fit(x)
    full = imputer.transform(x)
    assert not full.isna().any().any()
    for name in x.columns:
        known = x[name].notna()
        assert full.loc[known, name].tolist() == x.loc[known, name].tolist()
    assert full.equals(imputer.transform(x))
    drawn = VAEImputer(
        VAETransformer(1, **MIXED), sample_posterior=True, num_particles=50, random_state=0
    ).fit(x)
    assert not drawn.transform(x).equals(drawn.transform(x))


def test_imputations_of_linear_data_are_better_than_the_mean():
    x = linear_data(1000)[1].numpy()
    holes = x.copy()
    mask = np.random.default_rng(0).random(x.shape) < 0.2
    holes[mask] = np.nan
    linear = partial(networks.MLP, hidden=[])
    vae = VAETransformer(3, epochs=100, encoder=linear, decoder=linear,
                         optimizer=partial(torch.optim.Adam, lr=0.01))  # fmt: skip
    full = VAEImputer(vae, num_particles=200, random_state=0).fit_transform(holes)
    assert np.array_equal(full[~mask], x[~mask])
    error = np.square(full - x)[mask].mean()
    assert error < 0.6 * np.square(np.nanmean(holes, 0) - x)[mask].mean()


def test_outliers_get_small_p_values_and_others_uniform_ones():
    x, _ = frame(600, gaps=0)
    detector = VAEDetector(
        VAETransformer(1, **{**MIXED, "epochs": 30}),
        contamination=0.05,
        holdout=0.4,
        random_state=0,
    ).fit(x)
    assert (detector.predict(x) == -1).mean() == pytest.approx(0.05, abs=0.005)
    new, _ = frame(300, seed=1, gaps=0)
    p = detector.p_values(new)
    # Both are random: the reference has 240 rows.
    assert stats.ks_2samp(detector.score_samples(new), detector.reference_).pvalue > 0.01
    assert p.min() >= 1 / 241
    new["height"] = 20.0
    assert (detector.p_values(new) < 0.05).mean() > 0.9
    assert (detector.predict(new) == -1).mean() > 0.9


@pytest.mark.parametrize("estimator", [
    VAEImputer(VAETransformer(epochs=1, **NETS), num_particles=5),
    VAEDetector(VAETransformer(epochs=2, **NETS)),
])  # fmt: skip
def test_the_checks_of_scikit_learn(estimator):
    found = check_estimator(estimator, expected_failed_checks=FAILS, on_skip=None)
    assert sum(row["status"] == "passed" for row in found) > 30


def test_wrong_arguments_are_named():
    x, _ = frame(40, gaps=0)
    numbers = linear_data(40)[1].numpy()
    for estimator, rows, message in (
        (VAEImputer(vae=3), numbers, "vae to be a VAETransformer or None, got 3"),
        (VAEImputer(num_particles=0), numbers, "num_particles to be an integer of at least 1"),
        (VAEImputer(sample_posterior="yes"), numbers, "sample_posterior"),
        (VAEDetector(contamination=0.7), numbers, "contamination to be"),
        (VAEDetector(holdout=0.0), numbers, "holdout to be"),
        (VAEDetector(holdout=1.0), numbers, "holdout to leave rows for the training"),
    ):
        with pytest.raises(ValueError, match=f"Expected {message}"):
            estimator.fit(rows)
    with pytest.raises(ValueError, match="Expected X to have numbers, got words"):
        VAETransformer(epochs=1).fit(x)


def test_words_of_held_out_rows_are_known():
    x, _ = frame(100, gaps=0)
    x.loc[7, "city"] = "Oslo"
    for seed in range(4):
        detector = VAEDetector(VAETransformer(1, **{**MIXED, "epochs": 1}), random_state=seed).fit(
            x
        )
        assert "Oslo" in detector.vae_.schema_.columns[4].levels
        assert np.isfinite(detector.score(x))


def test_categories_of_pandas_are_levels_even_if_they_do_not_occur():
    x, _ = frame(100)
    x["city"] = pandas.Categorical(x["city"], categories=["Rome", "Oslo", "Köln", "Bern"])
    made = VAETransformer(1, **MIXED).fit(x)
    assert made.schema_.columns[4][1:3] == ("categorical", ("Rome", "Oslo", "Köln", "Bern"))
    x["city"] = "Oslo"
    assert np.isfinite(made.score(x))
