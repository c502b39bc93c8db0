"""The transformer with scikit-learn's interface: its own checks, and outcomes on known data."""

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from helpers.truths import linear_data, maximum
from pyro_vae import VAETransformer, likelihoods, networks, objectives, priors

MLP = partial(networks.MLP, hidden=[16])
NETS = {"encoder": MLP, "decoder": MLP}
LINEAR = {
    "encoder": partial(networks.MLP, hidden=[]),
    "decoder": partial(networks.MLP, hidden=[]),
    "optimizer": partial(torch.optim.Adam, lr=0.01),
}
SAMPLED = "score_samples is estimated by samples, whose noise goes by the place of a row"
FAILS = {
    "check_methods_sample_order_invariance": SAMPLED,
    "check_methods_subset_invariance": SAMPLED,
}


def table() -> np.ndarray:
    """Rows of a linear normal model, in ten columns."""
    return linear_data(1000)[1].numpy()


def test_the_checks_of_scikit_learn():
    made = VAETransformer(epochs=2, **NETS)
    found = check_estimator(made, expected_failed_checks=FAILS, on_skip=None)
    assert {row["check_name"] for row in found if row["status"] == "xfail"} == set(FAILS)
    assert sum(row["status"] == "passed" for row in found) > 35


@pytest.mark.long
@pytest.mark.parametrize("missing", [False, True])
def test_scores_are_the_evidence_of_data_of_a_linear_model(missing):
    x = table()
    if missing:
        x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    made = VAETransformer(3, epochs=200, **LINEAR, random_state=0)
    score = made.fit(x).score(x)
    truth, exact = linear_data(1000)
    if not missing:
        # Columns are standardized, under which one noise for all is another model than before.
        scaled = torch.as_tensor((x - x.mean(0)) / x.std(0))
        best = maximum(scaled, 3) - np.log(x.std(0)).sum()
        assert best - 0.15 < score < best + 0.01
        return
    seen = torch.as_tensor(~np.isnan(x))
    covariance = truth.weight @ truth.weight.T + truth.scale**2 * torch.eye(10)
    evidence = torch.stack(
        [
            torch.distributions.MultivariateNormal(truth.loc[s], covariance[s][:, s]).log_prob(
                row[s]
            )
            for row, s in zip(exact, seen, strict=True)
        ]
    ).mean()
    assert abs(score - evidence.item()) < 0.4


def test_scores_are_in_the_units_of_the_data():
    x = table()[:200]
    made = VAETransformer(2, epochs=3, **NETS, random_state=0)
    score = made.fit(x).score_samples(x)
    codes = made.transform(x)
    units = np.logspace(-3, 3, 10)
    np.testing.assert_allclose(made.fit(x * units).score_samples(x * units), score, rtol=1e-6)
    np.testing.assert_allclose(made.transform(x * units), codes, rtol=1e-6)
    tenfold = made.fit(10 * x).score_samples(10 * x)
    np.testing.assert_allclose(tenfold, score - 10 * math.log(10), rtol=1e-6)


def test_codes_are_decoded_in_the_units_of_the_data():
    x = table() * 100 + 7
    made = VAETransformer(3, epochs=100, **LINEAR, random_state=0).fit(x)
    error = np.square(x - made.inverse_transform(made.transform(x))).mean()
    pca = PCA(3).fit(x)
    best = np.square(x - pca.inverse_transform(pca.transform(x))).mean()
    assert best < error < 1.5 * best


def test_pictures():
    digits = load_digits()
    x, y = (digits.data > 7).astype(float), digits.target
    codes = VAETransformer(
        10,
        event_shape=(1, 8, 8),
        standardize=False,
        likelihood=likelihoods.Bernoulli,
        encoder=partial(networks.ConvEncoder, channels=[8, 16], hidden=64),
        decoder=partial(networks.MLP, hidden=[64]),
        epochs=60,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        random_state=0,
    )
    pipeline = make_pipeline(codes, LogisticRegression(max_iter=1000)).fit(x[:1200], y[:1200])
    assert pipeline.score(x[1200:], y[1200:]) > 0.7
    back = codes.inverse_transform(codes.transform(x))
    assert back.shape == x.shape
    assert np.square(back - x)[1200:].mean() < 0.6 * np.square(x - x[:1200].mean(0))[1200:].mean()
    assert codes.score(x[1200:]) > -22


@pytest.mark.long
def test_a_grid_search_chooses_by_the_evidence():
    search = GridSearchCV(
        VAETransformer(epochs=60, **LINEAR, random_state=0), {"latent_dim": [1, 3]}, cv=2
    )
    assert search.fit(table()).best_params_ == {"latent_dim": 3}


def test_all_randomness_is_of_random_state():
    x = table()[:100]

    def run(state, **options):
        made = VAETransformer(2, epochs=2, **NETS, random_state=state, **options).fit(x)
        return made.transform(x), made.score_samples(x)

    before = torch.random.get_rng_state()
    first, again, other = run(0), run(0), run(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a, b)
        assert not np.allclose(a, c)
    state = np.random.RandomState(3)
    assert not np.allclose(run(state)[0], run(state)[0])


def test_it_is_cloned_pickled_and_named():
    x = table()[:100]
    made = VAETransformer(
        2, epochs=2, objective=objectives.ELBO, prior=partial(priors.Mixture, components=3), **NETS
    ).fit(x)
    copy = pickle.loads(pickle.dumps(made))
    assert np.array_equal(copy.transform(x), made.transform(x))
    assert np.array_equal(copy.score_samples(x), made.score_samples(x))
    assert clone(made).get_params()["objective"] is objectives.ELBO
    assert list(made.get_feature_names_out()) == ["vaetransformer0", "vaetransformer1"]


def test_a_missing_value_says_nothing():
    x = table()
    made = VAETransformer(3, epochs=30, **LINEAR, random_state=0).fit(x)
    holes = x[:50].copy()
    holes[:, 4] = np.nan
    codes = made.transform(holes)
    middle = np.where(np.isnan(holes), made.scaling_.loc.numpy(), holes)
    np.testing.assert_allclose(codes, made.transform(middle))
    assert np.isfinite(made.score_samples(holes)).all()
    x[:, 2] = np.nan
    assert np.isfinite(made.fit(x).transform(x)).all()
    x[:, 3] = 0.1
    made.fit(x)
    assert made.scaling_.scale[2:4].tolist() == [1.0, 1.0]


def test_what_it_refuses():
    x = table()[:20]
    with pytest.raises(ValueError, match=r"X to have 12 columns for event_shape=\(3, 4\), got 10"):
        VAETransformer(event_shape=(3, 4)).fit(x)
    with pytest.raises(ValueError, match=r"Expected latent_dim .* got 0"):
        VAETransformer(0).fit(x)
    with pytest.raises(ValueError, match=r"Expected epochs .* got 0"):
        VAETransformer(epochs=0).fit(x)
    made = VAETransformer(epochs=1, **NETS).fit(x)
    with pytest.raises(ValueError, match=r"z to have shape \(\*batch, 2\)"):
        made.inverse_transform(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="9 features"):
        made.transform(x[:, :9])


def batches(x, shift=3.0):
    """Rows of which every other one is shifted, with the name of its batch."""
    batch = np.array(["a", "b"])[np.arange(len(x)) % 2]
    return x + shift * (batch == "b")[:, None], batch


def test_covariates_leave_the_embedding_and_return_with_the_decoder():
    x, batch = batches(table()[:300])
    made = VAETransformer(2, epochs=60, **LINEAR, random_state=0).fit(x, covariates=batch)
    assert made.covariates_.feature_names == ["covariate=a", "covariate=b"]
    codes = made.transform(x, covariates=batch)
    assert np.array_equal(made.fit_transform(x, covariates=batch), codes)
    as_b = made.inverse_transform(codes, covariates=["b"] * len(x))
    as_a = made.inverse_transform(codes, covariates=["a"] * len(x))
    # The embedding may keep a part of the shift.
    assert 2 < (as_b - as_a).mean() < 3.3
    without = VAETransformer(2, epochs=60, **LINEAR, random_state=0).fit(x)
    assert made.score(x, covariates=batch) > without.score(x)


@pytest.mark.parametrize("form", ["table", "series", "mapping", "matrix"])
def test_covariates_of_any_form_are_the_same(form):
    import pandas

    x, batch = batches(table()[:80])
    given = {
        "table": pandas.DataFrame({"batch": batch}), "series": pandas.Series(batch, name="batch"),
        "mapping": {"batch": list(batch)}, "matrix": batch[:, None],
    }[form]  # fmt: skip
    made = VAETransformer(2, epochs=2, **NETS, random_state=0)
    codes = made.fit_transform(x, covariates=given)
    assert made.covariates_.names == ["covariate_0" if form == "matrix" else "batch"]
    expected = VAETransformer(2, epochs=2, **NETS, random_state=0).fit(x, covariates=batch)
    assert np.array_equal(codes, expected.transform(x, covariates=batch))


def test_covariates_that_do_not_fit_are_refused():
    x, batch = batches(table()[:80])
    made = VAETransformer(2, epochs=1, **NETS, random_state=0)
    with pytest.raises(ValueError, match=r"Expected no covariates, because fit got none"):
        made.fit(x).transform(x, covariates=batch)
    made.fit(x, covariates={"batch": batch})
    with pytest.raises(ValueError, match=r"Expected the covariates \['batch'\] of fit, got none"):
        made.score_samples(x)
    with pytest.raises(ValueError, match="levels of the training rows, 'a', 'b', got 'c'"):
        made.transform(x, covariates={"batch": ["c"] * 80})
    with pytest.raises(ValueError, match="Expected covariates of 80 rows, got 3"):
        made.transform(x, covariates={"batch": ["a"] * 3})
    with pytest.raises(ValueError, match=r"of fit, got an array of 2 columns"):
        made.transform(x, covariates=np.stack([batch, batch], 1))
    with pytest.raises(ValueError, match="covariates to have columns, got none"):
        made.fit(x, covariates={})
    with pytest.raises(ValueError, match=r"an array of shape \(N,\) or \(N, covariates\)"):
        made.fit(x, covariates=np.zeros((80, 1, 1)))


def test_a_grid_search_passes_covariates_on():
    import pandas
    import sklearn

    x, batch = batches(table()[:120])
    table_of_rows = pandas.DataFrame({"batch": batch})
    with sklearn.config_context(enable_metadata_routing=True):
        made = VAETransformer(epochs=2, **NETS, random_state=0)
        made.set_fit_request(covariates=True).set_score_request(covariates=True)
        search = GridSearchCV(made, {"latent_dim": [1, 2]}, cv=2)
        search.fit(x, covariates=table_of_rows)
    assert search.best_estimator_.covariates_.names == ["batch"]
