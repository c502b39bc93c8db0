"""Training and evaluation with covariates: every engine, resumption, and finished runs."""

import json
import math
from functools import partial

import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
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
    objectives,
    priors,
    reuse,
)
from pyro_vae.data import Rows
from pyro_vae.run.experiment import run

NARROW = partial(networks.MLP, hidden=[8])


@pytest.fixture
def rows():
    """Rows whose mean is that of their group, or shifted by it."""
    torch.manual_seed(0)
    group = torch.eye(3)[torch.arange(96) % 3]
    return Rows(torch.randn(96, 4) + 2 * group @ torch.randn(3, 4), covariates=group)


def make(seed=0, **options):
    torch.manual_seed(seed)
    parts = {"likelihood": likelihoods.Normal, "encoder": NARROW, "decoder": NARROW}
    return VAE((4,), 2, covariate_dim=3, **{**parts, **options})


def weights(vae):
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


@pytest.mark.parametrize("with_mask", [pytest.param(False, marks=pytest.mark.long), True])
def test_all_engines_train_to_the_same_weights(rows, with_mask):
    if with_mask:
        rows = rows._replace(mask=torch.rand(96, 4) > 0.2)
    trained = {}
    for engine in (False, "strict"):
        vae = make()
        result = fit(vae, rows, valid=rows, epochs=3, batch_size=20, compile=engine)
        trained[result.engine] = weights(vae)
    assert set(trained) == {"eager", "compiled"}
    torch.testing.assert_close(trained["eager"], trained["compiled"], rtol=1e-3, atol=1e-5)


def test_a_vae_within_a_program_has_the_loss_and_gradients_of_the_vae_alone(rows):
    vae = make()

    def within(side):
        def run(x, covariates):
            side(x, covariates=covariates)
            # A latent variable whose posterior is its prior adds nothing.
            pyro.sample("other", dist.Normal(0.0, 1.0))

        return run

    def measure(model, guide, *args, **kwargs):
        torch.manual_seed(3)
        vae.zero_grad()
        loss = objectives.ELBO().differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in vae.parameters()])

    alone = measure(vae.model, vae.guide, rows.x, covariates=rows.covariates)
    embedded = measure(within(vae.model), within(vae.guide), rows.x, rows.covariates)
    for one, other in zip(alone, embedded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_covariates_explain_the_groups(rows):
    conditional, plain = make(), VAE((4,), 2, likelihood=likelihoods.Normal, encoder=NARROW,
                                     decoder=NARROW)  # fmt: skip
    adam = partial(torch.optim.Adam, lr=1e-2)
    fit(conditional, rows, epochs=150, optimizer=adam, batch_size=32)
    fit(plain, rows.x, epochs=150, optimizer=adam, batch_size=32)
    given = evaluate.log_evidence(conditional, rows.x, 100, covariates=rows.covariates)
    assert given.mean() > evaluate.log_evidence(plain, rows.x, 100).mean() + 0.3
    shifted = rows.covariates.roll(1, 1)
    moved = evaluate.transfer(conditional, rows.x, rows.covariates, to=shifted)
    means = {g: rows.x[rows.covariates[:, g] == 1].mean(0) for g in range(3)}
    for g in range(3):
        error = moved[rows.covariates[:, g] == 1].mean(0) - means[(g + 1) % 3]
        assert error.abs().max() < 0.5


def test_a_resumed_training_has_the_same_bits(rows, tmp_path):
    whole, parts = make(), make()
    fit(whole, rows, valid=rows, epochs=4, out=tmp_path / "whole")
    fit(parts, rows, valid=rows, epochs=2, out=tmp_path / "parts")
    again = make()
    fit(again, rows, valid=rows, epochs=4, out=tmp_path / "parts", resume=True)
    assert torch.equal(weights(whole), weights(again))
    order = torch.randperm(96)
    others = [
        (rows._replace(covariates=rows.covariates[order]), rows),
        (rows._replace(x=rows.x[order]), rows),
        (rows._replace(mask=torch.ones(96, dtype=torch.bool)), rows),
        (rows, rows._replace(covariates=rows.covariates[order])),
        (rows, rows._replace(mask=torch.ones(96, 4, dtype=torch.bool))),
    ]
    for train, valid in others:
        with pytest.raises(ValueError, match="different value of content"):
            fit(make(), train, valid=valid, epochs=5, out=tmp_path / "parts", resume=True)


def test_many_train_as_each_alone(rows):
    vaes = [make(seed).double() for seed in range(2)]
    double = rows._replace(x=rows.x.double(), covariates=rows.covariates.double())
    results = fit_many(vaes, double, epochs=2, batch_size=32, seed=[0, 1], backend="eager",
                       strict=True)  # fmt: skip
    assert [result.engine for result in results] == ["compiled-many"] * 2
    for seed, vae in enumerate(vaes):
        alone = make(seed).double()
        fit(alone, double, epochs=2, batch_size=32, seed=seed, compile=False)
        torch.testing.assert_close(weights(vae), weights(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "prior", [partial(priors.Normal, learned=True), partial(priors.Vamp, components=3)]
)
def test_priors_get_covariates_too(rows, prior):
    vae = make(prior=prior)
    fit(vae, rows, valid=rows, epochs=2)
    assert math.isfinite(evaluate.elbo(vae, rows.x, covariates=rows.covariates).elbo.mean())


BAD = {
    "none": (lambda r: Rows(r.x), "covariates of shape .* got None"),
    "width": (lambda r: r._replace(covariates=r.covariates[:, :2]), "3 features .covariate_dim"),
    "rows": (lambda r: r._replace(covariates=r.covariates[:5]), r"shape \(96, 3\), got \(5, 3\)"),
    "nan": (lambda r: r._replace(covariates=r.covariates * torch.nan), "covariates to be finite"),
    "dtype": (lambda r: r._replace(covariates=r.covariates.double()), "covariates of the dtype"),
}


@pytest.mark.parametrize("name", BAD)
def test_covariates_that_do_not_fit_are_refused_before_training(rows, name):
    change, message = BAD[name]
    vae = make()
    before = weights(vae)
    with pytest.raises(ValueError, match=message):
        fit(vae, change(rows), epochs=1)
    assert torch.equal(weights(vae), before)
    plain = VAE((4,), 2, likelihood=likelihoods.Normal)
    with pytest.raises(ValueError, match="covariate_dim"):
        fit(plain, rows, epochs=1)


QUICK = ["train.epochs=2", "evaluate.num_particles=10", "evaluate.elbo_particles=3", "threads=1"]


def run_quick(out, *overrides):
    threads = torch.get_num_threads()
    try:
        run(config.compose([*QUICK, *overrides, f"out={out}"]))
    finally:
        torch.set_num_threads(threads)
    return json.loads((out / "metrics.json").read_text())


def test_a_run_given_the_label_is_reported_evaluated_and_embedded(tmp_path):
    metrics = run_quick(tmp_path / "run", "data.covariates=label")
    assert metrics["conditional_on"] == ["label"]
    assert metrics["mixture_log_evidence"] is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Log evidence given label" in page
    assert {"levels_label.png", "transfer_label.png"} <= {
        p.name for p in (tmp_path / "run" / "figures").iterdir()
    }
    judged = reuse.judge_run(tmp_path / "run")
    assert judged["log_evidence"] == metrics["log_evidence"]
    table = pandas.read_csv(reuse.embed(tmp_path / "run", out=tmp_path / "codes.csv"))
    assert len(table) == 1797
    with pytest.raises(ValueError, match=r"covariates of run .*, label .*, got 'digits' with none"):
        reuse.judge_run(tmp_path / "run", data.digits())


def test_a_run_given_the_label_takes_files_without_all_classes(tmp_path):
    generator = np.random.default_rng(0)
    for name, classes in (("one", [3, 4, 5]), ("two", [5])):
        x = generator.random((60, 2, 3))
        np.savez(tmp_path / f"{name}.npz", x=x, y=generator.choice(classes, 60))
    options = ["data=array", f"data.path={tmp_path / 'one.npz'}", "data.key=x",
               "data.labels_key=y", "data.covariates=label", "vae/likelihood=normal"]  # fmt: skip
    run_quick(tmp_path / "run", *options)
    other = {"_target_": "pyro_vae.data.array", "path": str(tmp_path / "two.npz"), "key": "x",
             "labels_key": "y", "covariates": "label"}  # fmt: skip
    judged = reuse.judge_run(tmp_path / "run", other, part="all", evidence_rows=60)
    assert judged["log_evidence_rows"] == 60
    assert judged["conditional_on"] == ["label"]


def test_a_table_with_covariates_runs_and_takes_other_files(tmp_path):
    torch.manual_seed(0)
    frame = pandas.DataFrame(torch.randn(120, 3).numpy(), columns=["u", "v", "w"])
    frame["batch"] = ["a", "b", "c"] * 40
    frame.to_csv(tmp_path / "one.csv", index=False)
    frame[:30].to_csv(tmp_path / "two.csv", index=False)
    options = ["data=table", f"data.path={tmp_path / 'one.csv'}", "data.covariates=[batch]",
               "vae/likelihood=student_t", "vae.latent_dim=2"]  # fmt: skip
    assert run_quick(tmp_path / "run", *options)["conditional_on"] == ["batch"]
    other = {"_target_": "pyro_vae.data.table", "path": str(tmp_path / "two.csv")}
    judged = reuse.judge_run(tmp_path / "run", other, part="all", evidence_rows=30)
    assert judged["log_evidence_rows"] == 30
    frame["batch"] = "d"
    frame.to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(ValueError, match="levels of the training rows, 'a', 'b', 'c', got 'd'"):
        reuse.judge_run(tmp_path / "run", {**other, "path": str(tmp_path / "new.csv")}, part="all")


def test_counts_with_a_size_factor_run(tmp_path):
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((120, 3), 5.0)).long()
    frame = pandas.DataFrame(counts.numpy(), columns=["u", "v", "w"])
    frame["depth"] = counts.sum(1).clamp(min=1).numpy()
    frame.to_csv(tmp_path / "counts.csv", index=False)
    options = ["data=table", f"data.path={tmp_path / 'counts.csv'}", "data.standardize=false",
               "vae/likelihood=negative_binomial", "vae/input_transform=log1p",
               "vae.latent_dim=2", "data.size_factor=depth"]  # fmt: skip
    with pytest.raises(ValueError, match=r"size_factor=covariate with data.size_factor, got a"):
        run_quick(tmp_path / "run", *options)
    run_quick(tmp_path / "run", *options, "vae.likelihood.size_factor=covariate")
    with pytest.raises(ValueError, match=r"data.size_factor to name a column"):
        run_quick(tmp_path / "b", *options[:-1], "vae.likelihood.size_factor=covariate",
                  "data.covariates=[depth]")  # fmt: skip
    metrics = run_quick(tmp_path / "c", *options[:-1], "vae.likelihood.size_factor=row_sum",
                        "data.columns=[u,v,w]")  # fmt: skip
    assert metrics["conditional_on"] == ["row-sum size factor"]


def test_a_folder_of_images_runs(tmp_path):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for label in ("cats", "dogs"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            pixels = torch.randint(0, 256, (9, 7 + i, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / label / f"{i}.png")
    metrics = run_quick(
        tmp_path / "run", "data=images", f"data.path={tmp_path / 'photos'}", "data.size=8",
        "vae/likelihood=normal", "data.covariates=label",
    )  # fmt: skip
    assert metrics["conditional_on"] == ["label"]
