"""Sparse counts: the same training and figures as dense ones, in less memory."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import scipy.sparse
import torch

from pyro_vae import (
    VAE,
    config,
    data,
    evaluate,
    fit,
    fit_many,
    likelihoods,
    networks,
    reuse,
    transforms,
)
from pyro_vae.data import Rows, sparse_rows
from pyro_vae.run.experiment import run

NARROW = partial(networks.MLP, hidden=[8])


def draw(size=300, columns=12, seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.3, 1.0, (4, columns)) + 0.01
    return rng.poisson(rate[rng.integers(4, size=size)])


def make_data(size=300, *, sparse):
    x = draw(size)
    obs = {"batch": np.array(["a", "b", "c"])[np.arange(size) % 3]}
    return data.counts(scipy.sparse.csr_array(x) if sparse else x, obs=obs, covariates="batch")


def make(**options):
    torch.manual_seed(0)
    parts = {
        "likelihood": partial(likelihoods.NegativeBinomial, size_factor="row_sum"),
        "encoder": NARROW, "decoder": NARROW, "input_transform": transforms.Standardize,
    }  # fmt: skip
    return VAE((12,), 2, covariate_dim=3, **{**parts, **options})


def weights(vae):
    return torch.cat([p.detach().flatten() for p in vae.state_dict().values()])


@pytest.mark.parametrize(
    ("likelihood", "engine"),
    [
        (likelihoods.NegativeBinomial, False),
        pytest.param(likelihoods.Normal, "strict", marks=pytest.mark.long),
        pytest.param(likelihoods.NegativeBinomial, "strict", marks=pytest.mark.long),
    ],
)
def test_training_and_evaluation_are_the_same_as_for_dense_counts(engine, likelihood):
    vaes = []
    for sparse in (False, True):
        mine, vae = make_data(sparse=sparse), make(likelihood=likelihood)
        result = fit(vae, mine.train, valid=mine.valid, epochs=3, batch_size=50, compile=engine)
        vaes.append((mine.test, vae, result.history))
    (dense, one, history), (sparse, other, sparse_history) = vaes
    assert torch.equal(weights(one), weights(other))
    assert history == sparse_history
    for estimate in (
        lambda x, c: evaluate.log_evidence(one, x, 50, covariates=c),
        lambda x, c: evaluate.log_evidence(one, x, 500, tolerance=0.5, covariates=c),
        lambda x, c: evaluate.elbo(one, x, covariates=c).elbo,
        lambda x, c: evaluate.posterior_means(one, x, covariates=c),
        lambda x, c: evaluate.active_units(one, x, covariates=c),
        lambda x, c: evaluate.kl_per_dimension(one, x, covariates=c),
        lambda x, c: evaluate.transfer(one, x, c, to=c[0]),
    ):
        found = []
        for rows in (dense, sparse):
            torch.manual_seed(1)
            found.append(estimate(rows.x, rows.covariates))
        assert torch.equal(*found)


def test_data_with_sparse_rows_can_be_copied():
    mine = make_data(sparse=True)
    twin, rows = copy.deepcopy((mine, mine.train))
    assert torch.equal(twin.x.train.to_dense(), mine.x.train.to_dense())
    assert rows.x is twin.x.train
    twin.x.train.values().zero_()
    twin.covariates.train.zero_()
    assert mine.x.train.values().all()
    assert mine.covariates.train.any()
    dense = make_data(sparse=False)
    assert torch.equal(copy.deepcopy(dense).x.train, dense.x.train)


@pytest.mark.long
def test_many_train_on_sparse_counts():
    mine = make_data(sparse=True)
    # The graph of a normal likelihood is compiled in a fraction of the time.
    alone, together, other = (make(likelihood=likelihoods.Normal) for _ in range(3))
    fit(alone, mine.train, epochs=2, batch_size=50, compile=False)
    fit_many([together, other], mine.train, epochs=2, batch_size=50)
    torch.testing.assert_close(weights(alone), weights(together), rtol=1e-3, atol=1e-4)


def test_rows_are_never_dense_all_at_once(monkeypatch):
    sizes = []
    take = sparse_rows._take_sparse

    def record(x, index):
        rows = take(x, index)
        sizes.append(len(rows))
        return rows

    def refuse(*args, **kwargs):
        raise AssertionError("made dense")

    mine, vae = make_data(12_000, sparse=True), make()
    monkeypatch.setattr(sparse_rows, "_take_sparse", record)
    monkeypatch.setattr(sparse_rows, "_MAX_ELEMENTS", 12 * 700)
    monkeypatch.setattr(torch.Tensor, "to_dense", refuse)
    fit(vae, mine.train, valid=mine.valid, epochs=1, batch_size=500)
    rows = mine.train
    evaluate.elbo(vae, rows.x, covariates=rows.covariates)
    evaluate.posterior_means(vae, rows.x, covariates=rows.covariates)
    assert vae.likelihood.started
    # An evaluation decodes at most so many rows at once.
    assert max(sizes) <= 4096 < len(mine.train.x) / 2


def test_rows_of_all_parts_stay_sparse_in_the_order_of_the_source():
    from pyro_vae.reuse.finished_run import select_rows

    dense, mine = make_data(sparse=False), make_data(sparse=True)
    for part in ("all", "valid"):
        expected = select_rows(make(), dense, part).get_rows(slice(None), torch.zeros(()))
        found = select_rows(make(), mine, part).get_rows(slice(None), torch.zeros(()))
        assert found.x.layout == torch.sparse_csr
        assert torch.equal(found.x.to_dense(), expected.x)
        assert torch.equal(found.covariates, expected.covariates)


def test_a_resumed_training_refuses_other_sparse_counts(tmp_path):
    mine = make_data(sparse=True)
    options = {"batch_size": 50, "out": tmp_path}
    fit(make(), mine.train, epochs=2, **options)
    whole = make()
    fit(whole, mine.train, epochs=4, batch_size=50)
    resumed = make()
    fit(resumed, mine.train, epochs=4, resume=True, **options)
    assert torch.equal(weights(whole), weights(resumed))
    x = mine.train.x
    columns = x.col_indices().clone()
    # Another value moves to another column, with the same sum.
    row = int((x.crow_indices().diff() == 1).nonzero()[0])
    columns[x.crow_indices()[row]] = (columns[x.crow_indices()[row]] + 1) % 12
    parts = x.crow_indices(), columns, x.values()
    moved = torch.sparse_csr_tensor(*parts, x.shape, check_invariants=False)
    with pytest.raises(ValueError, match="different value of content"):
        fit(make(), mine.train._replace(x=moved), epochs=4, resume=True, **options)


def test_a_mask_needs_dense_rows():
    mine = make_data(sparse=True)
    rows = mine.train._replace(mask=torch.ones(len(mine.train.x), 12, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Expected dense x with a mask, got sparse x.*to_dense"):
        fit(make(), rows)


@pytest.mark.parametrize("likelihood", [likelihoods.Poisson, likelihoods.Normal])
def test_parts_are_initialized_as_by_dense_rows(likelihood):
    x = make_data(sparse=True).train.x
    one, other = make(likelihood=likelihood), make(likelihood=likelihood)
    one.initialize(x)
    other.initialize(x.to_dense())
    assert torch.equal(weights(one), weights(other))


def test_no_rows_are_refused():
    empty, given = torch.zeros(0, 12).to_sparse_csr(), torch.zeros(0, 3)
    vae = make()
    for use in (
        lambda: evaluate.elbo(vae, empty, covariates=given),
        lambda: evaluate.log_evidence(vae, empty, covariates=given),
        lambda: evaluate.posterior_means(vae, empty, covariates=given),
        lambda: fit(vae, Rows(empty, covariates=given)),
        lambda: vae.check(empty, None, given),
        lambda: vae.initialize(empty),
    ):
        with pytest.raises(ValueError, match=r"x to have rows, got a tensor of shape \(0, 12\)"):
            use()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_rows_that_are_redrawn_have_to_be_dense():
    with pytest.raises(ValueError, match="Expected train to be dense, because rows are redrawn"):
        fit(make(), Rows(torch.eye(12).to_sparse_csr(), dynamic=True))


def test_other_matrices_are_refused_by_name():
    with pytest.raises(ValueError, match=r"Expected x to be a torch.Tensor, got csr_array"):
        evaluate.elbo(make(), scipy.sparse.csr_array(draw()))


def test_values_that_are_no_counts_are_refused():
    x = torch.eye(12).to_sparse_csr() * 0.5
    with pytest.raises(ValueError, match=r"to be counts .*, got 0.5"):
        fit(make(), Rows(x, covariates=torch.eye(3)[torch.arange(12) % 3]))


def test_the_command_runs_on_a_sparse_file(tmp_path):
    scipy.sparse.save_npz(tmp_path / "cells.npz", scipy.sparse.csr_matrix(draw()))
    (tmp_path / "cells.csv").write_text("batch\n" + "a\nb\nc\n" * 100)
    metrics = {}
    for name, likelihood in (("nb", "negative_binomial"), ("poisson", "poisson")):
        cfg = config.compose([
            "data=counts", f"data.path={tmp_path}/cells.npz", f"data.obs={tmp_path}/cells.csv",
            "data.covariates=[batch]", "data.label=batch", f"vae/likelihood={likelihood}",
            "vae/input_transform=log1p", "vae.latent_dim=2", "train.epochs=2",
            "evaluate.num_particles=20", f"out={tmp_path}/{name}",
        ])  # fmt: skip
        run(cfg)
        metrics[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert metrics["nb"]["conditional_on"] == ["batch"]
    page = (tmp_path / "nb" / "report.html").read_text()
    assert "Mean and variance" in page
    assert "Row sums" in page
    again = reuse.judge_run(tmp_path / "nb", part="test")
    assert again["log_evidence"] == pytest.approx(metrics["nb"]["log_evidence"], abs=1e-5)
    table = reuse.embed(tmp_path / "nb", out=tmp_path / "codes.csv")
    assert len(table.read_text().splitlines()) == 301
    other = data.counts(
        draw(50, seed=1), obs={"batch": ["b"] * 50}, like=reuse.preparation(tmp_path / "nb"),
        valid=0, test=0,
    )  # fmt: skip
    assert reuse.judge_run(tmp_path / "nb", other, part="all")["rows"] == {"all": 50}
