"""Finished runs put to use: judged on other data, and their codes written to a file."""

import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

import pyro_vae
from helpers.commands import call
from pyro_vae import VAE, config, data, evaluate, load, posteriors, reuse
from pyro_vae.data import vision
from pyro_vae.reuse import embedding, evaluate_run
from pyro_vae.run.experiment import run

QUICK = [
    "train.epochs=3",
    "vae.latent_dim=3",
    "evaluate.num_particles=20",
    "evaluate.elbo_particles=5",
    "evaluate.baseline_components=0",
    "threads=1",
]
COLUMNS = ["height", "weight", "age"]


def finished(out, *overrides):
    """Returns the folder of a quick run, made in this process."""
    threads = torch.get_num_threads()
    try:
        run(config.compose([*QUICK, *overrides, f"out={out}"]))
    finally:
        torch.set_num_threads(threads)
    return out


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def people(n, seed, *, shift=0.0, gaps=0):
    """A table of three numbers and a word, a gap in every so manieth row."""
    generator = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "height": generator.normal(170 + shift, 10, n),
            "weight": generator.normal(70 + shift, 5, n),
            "age": generator.normal(40, 9, n),
            "city": generator.choice(["Rome", "Bern", "Oslo"], n),
        }
    )
    if gaps:
        frame.loc[::gaps, "weight"] = np.nan
    return frame


def table(path, **options):
    """What the command makes of data=table."""
    return {"_target_": "pyro_vae.data.table", "path": str(path), "missing": "nan", **options}


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("digits") / "run", "data.seed=1", "seed=3")


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    people(300, 0, gaps=7).to_csv(folder / "people.csv", index=False)
    return finished(
        folder / "run", "data=table", f"data.path={folder}/people.csv", "data.label=city",
        "data.missing=nan", "vae/likelihood=normal", "vae/posterior=full",
    )  # fmt: skip


@pytest.fixture
def other(tmp_path):
    """A csv of other people, with its columns in another order."""
    frame = people(90, 1, shift=25.0, gaps=4)
    frame[["city", "age", "weight", "height"]].to_csv(tmp_path / "other.csv", index=False)
    return tmp_path / "other.csv"


def standardized(path, folder):
    """Rows and mask of a table under the scaling of a run's table, without this package."""
    train = pandas.read_csv(folder.parent / "people.csv")[COLUMNS].to_numpy()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).numpy()[:210]
    values = pandas.read_csv(path)[COLUMNS].to_numpy()
    values = (values - np.nanmean(train[order], 0)) / np.nanstd(train[order], 0)
    return torch.tensor(np.nan_to_num(values)).float(), ~torch.tensor(np.isnan(values))


def test_a_run_on_its_own_data_has_the_figures_that_it_has(digits_run):
    before = (digits_run / "metrics.json").read_bytes()
    state = torch.get_rng_state()
    found = reuse.judge_run(digits_run)
    assert torch.equal(torch.get_rng_state(), state)
    held = metrics(digits_run)
    shared = found.keys() & held.keys()
    assert {"log_evidence", "elbo", "rate", "kl_per_dimension", "rows", "seed"} <= shared
    assert {key: found[key] for key in shared} == {key: held[key] for key in shared}
    assert found.keys() - held.keys() == {"run", "part"}
    assert (digits_run / "metrics.json").read_bytes() == before
    assert reuse.judge_run(digits_run, seed=4)["log_evidence"] != held["log_evidence"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["vae/prior=vamp", "vae/posterior=full", "vae.prior.components=5"],
        pytest.param(
            ["data.binarize=none", "vae/likelihood=normal", "vae.likelihood.scale=optimal"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["data.binarize=dynamic", "evaluate.evidence_rows=10"], marks=pytest.mark.long
        ),
    ],
    ids=" ".join,
)
def test_other_runs_have_the_figures_that_they_have(tmp_path, overrides):
    folder = finished(tmp_path, *overrides)
    found, held = reuse.judge_run(folder), metrics(folder)
    assert {key: held[key] for key in found if key in held} == {
        key: value for key, value in found.items() if key in held
    }


def test_numbers_of_draws_and_rows_are_those_asked_for(digits_run):
    found = reuse.judge_run(
        digits_run, part="all", num_particles=7, elbo_particles=2, evidence_rows=12
    )
    assert (found["log_evidence_particles"], found["log_evidence_rows"]) == (7, 12)
    assert found["part"] == "all"
    # All rows in the order of the source.
    x = torch.tensor(load_digits().images[:12] > 8).float().unsqueeze(1)
    vae = load(digits_run)
    torch.default_generator.manual_seed(3)
    expected = evaluate.log_evidence(vae, x, 7).double().mean().item()
    assert found["log_evidence"] == expected


def test_another_table_is_judged_under_the_scaling_of_the_training_data(table_run, other):
    x, mask = standardized(other, table_run)
    # Far from the mean of the training rows, which its own scaling would hide.
    assert x[:, 0].mean() > 2
    found = reuse.judge_run(table_run, table(other), part="all")
    vae = load(table_run)
    torch.default_generator.manual_seed(0)
    evidence = evaluate.log_evidence(vae, x, 20, mask=mask)
    bound = evaluate.elbo(vae, x, num_particles=5, mask=mask)
    assert found["log_evidence"] == pytest.approx(evidence.double().mean().item(), rel=1e-6)
    assert found["elbo"] == pytest.approx(bound.elbo.double().mean().item(), rel=1e-6)
    assert found["rows"] == {"all": 90}
    own = data.table(other, columns=COLUMNS, missing="nan", valid=0, test=0)
    alone = evaluate.log_evidence(vae, own.x.train, 20, mask=own.mask.train).mean().item()
    assert alone > found["log_evidence"] + 2
    made = data.table(other, like=table_run, missing="nan", valid=0, test=0)
    assert reuse.judge_run(table_run, made, part="all") == found


def test_what_the_data_were_prepared_by_is_saved_exactly(table_run):
    held = reuse.preparation(table_run)
    train = pandas.read_csv(table_run.parent / "people.csv")[COLUMNS].to_numpy()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).numpy()[:210]
    assert held.columns == tuple(COLUMNS)
    np.testing.assert_allclose(held.scaling.loc, np.nanmean(train[order], 0), rtol=1e-14)
    np.testing.assert_allclose(held.scaling.scale, np.nanstd(train[order], 0), rtol=1e-14)
    assert held.scaling.loc.dtype == torch.float64
    again = data.Preparation.from_dict(json.loads(json.dumps(held.to_dict())))
    assert all(map(torch.equal, again.scaling, held.scaling))
    assert again._replace(scaling=None) == held._replace(scaling=None)


def test_an_older_run_has_its_data_made_again(table_run, other, tmp_path):
    old = shutil.copytree(table_run, tmp_path / "old")
    (old / "data.json").unlink()
    found = reuse.judge_run(old, table(other), part="all")
    assert found == reuse.judge_run(table_run, table(other), part="all") | {"run": str(old)}


def test_a_table_that_has_changed_since_is_another_one(table_run, tmp_path):
    folder = shutil.copytree(table_run.parent, tmp_path / "copy") / "run"
    source = folder.parent / "people.csv"
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.data.path = str(source)
    OmegaConf.save(cfg, folder / "config.yaml")
    assert reuse.judge_run(folder) == reuse.judge_run(table_run) | {"run": str(folder)}
    shutil.move(source, source.with_suffix(".old"))
    people(300, 0, shift=25.0, gaps=7).to_csv(source, index=False)
    # Its split differs, so that rows of the training would be test rows.
    for evaluation in (reuse.judge_run, reuse.embed, reuse.score):
        with pytest.raises(ValueError, match=r"Expected '.*people\.csv' to have the test rows"):
            evaluation(folder)
    evidence = reuse.judge_run(folder, table(source))["log_evidence"]
    assert evidence < metrics(folder)["log_evidence"] - 2


def test_a_table_that_was_not_standardized_leaves_others_as_they_are(tmp_path, other):
    people(300, 0).to_csv(tmp_path / "people.csv", index=False)
    folder = finished(
        tmp_path / "run", "data=table", f"data.path={tmp_path}/people.csv", "data.label=city",
        "data.standardize=false", "vae/likelihood=normal", "vae.likelihood.scale=9.0",
    )  # fmt: skip
    found = reuse.judge_run(folder, table(other), part="all")
    values = torch.tensor(pandas.read_csv(other)[COLUMNS].to_numpy())
    mask = ~values.isnan()
    vae, x = load(folder), values.nan_to_num().float()
    torch.default_generator.manual_seed(0)
    evidence = evaluate.log_evidence(vae, x, 20, mask=mask)
    assert found["log_evidence"] == pytest.approx(evidence.double().mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"which is none, got 'other' with another scaling"):
        reuse.judge_run(folder, data.table(other, columns=COLUMNS, missing="nan"))


def test_columns_in_another_order_are_refused_without_a_scaling_too(tmp_path):
    people(200, 0)[["height", "age"]].to_csv(tmp_path / "a.csv", index=False)
    people(200, 1)[["age", "height"]].to_csv(tmp_path / "b.csv", index=False)
    folder = finished(
        tmp_path / "run", "data=table", f"data.path={tmp_path}/a.csv", "data.standardize=false",
        "vae/likelihood=normal",
    )  # fmt: skip
    turned = data.table(tmp_path / "b.csv", standardize=False)
    for use in (reuse.judge_run, lambda run, made: reuse.embed(run, made, tmp_path / "c.csv")):
        with pytest.raises(ValueError, match=r"columns 'height', 'age' of run .*, in this order"):
            use(folder, turned)
    right = data.table(tmp_path / "b.csv", like=folder)
    assert reuse.judge_run(folder, right)["rows"]["test"] == 40


def test_a_second_run_is_not_written_over_the_first(digits_run, tmp_path):
    done = command(
        "embed", "-m", f"run={digits_run},{digits_run}", "out=codes.csv", "part=test", cwd=tmp_path
    )
    assert done.code == 1
    assert "Expected a different out for each run, got 'codes.csv' again" in done.err
    assert len((tmp_path / "codes.csv").read_text().splitlines()) == 360


def test_few_rows_and_columns_that_do_not_vary_are_judged_all_the_same(table_run, tmp_path):
    people(1, 5).to_csv(tmp_path / "one.csv", index=False)
    found = reuse.judge_run(table_run, table(tmp_path / "one.csv"), part="all")
    assert (found["rows"], found["active_units"]) == ({"all": 1}, None)
    path = reuse.write_evaluation(found, tmp_path / "new" / "one.json")
    assert json.loads(path.read_text())["log_evidence_se"] is None
    assert "1 rows of one (all)" in reuse.summary(found, path)
    frame = people(40, 6)
    frame["age"] = 40.0
    frame.to_csv(tmp_path / "same.csv", index=False)
    assert (
        reuse.judge_run(table_run, table(tmp_path / "same.csv"), part="test")["rows"]["test"] == 8
    )


def test_an_evaluation_is_written_beside_the_run(digits_run):
    found = reuse.judge_run(digits_run, part="valid")
    path = reuse.write_evaluation(found)
    assert path == digits_run / "evaluations" / "digits-valid.json"
    assert json.loads(path.read_text()) == found


def read(path):
    """A table of codes, and the means and scales in it."""
    frame = pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path)
    z = [frame[[c for c in frame if c.startswith(f"z_{kind}_")]] for kind in ("mean", "scale")]
    return frame, *(torch.tensor(part.to_numpy(dtype="float32")) for part in z)


def test_codes_are_those_of_the_encoder_and_rows_those_of_the_source(digits_run, tmp_path):
    frame, mean, scale = read(reuse.embed(digits_run, out=tmp_path / "codes.parquet"))
    bunch = load_digits()
    x = torch.tensor(bunch.images > 8).float().unsqueeze(1)
    with torch.no_grad():
        q = load(digits_run).encode(x)
    assert frame["row"].tolist() == list(range(1797))
    assert torch.equal(mean, q.mean)
    assert torch.equal(scale, q.base_dist.scale)
    assert frame["label"].tolist() == bunch.target.tolist()
    names = [f"z_{kind}_{d}" for kind in ("mean", "scale") for d in range(3)]
    assert list(frame.columns) == ["part", "row", "label", *names]
    own = data.digits(seed=1)
    for part, rows in zip(("train", "valid", "test"), own.x, strict=True):
        here = torch.tensor((frame["part"] == part).to_numpy())
        assert sorted(map(bytes, x[here].numpy())) == sorted(map(bytes, rows.numpy()))


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_one_part_has_its_own_order_and_the_rows_of_the_source(digits_run, tmp_path, part):
    frame, mean, _ = read(reuse.embed(digits_run, out=tmp_path / "codes.csv", part=part))
    x = getattr(data.digits(seed=1).x, part)
    source = torch.tensor(load_digits().images > 8).float().unsqueeze(1)
    assert torch.equal(source[frame["row"].tolist()], x)
    assert set(frame["part"]) == {part}
    with torch.no_grad():
        assert torch.equal(mean, load(digits_run).encode(x).mean)


def test_metadata_and_groups_of_rows(digits_run, tmp_path):
    path = reuse.embed(
        digits_run, {"_target_": "pyro_vae.data.digits"}, tmp_path / "c.parquet", rows_at_once=600
    )
    file = pyarrow.parquet.ParquetFile(path)
    assert file.metadata.num_row_groups == 3
    told = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    assert told == {
        "run": str(digits_run), "data": "digits", "binarize": "threshold", "part": "all",
        "pyro_vae": pyro_vae.__version__,
    }  # fmt: skip


@pytest.mark.parametrize("rows_at_once", [1, 7, 256, 1796])
def test_the_number_of_rows_at_once_does_not_matter(digits_run, tmp_path, rows_at_once):
    whole, part = (
        read(reuse.embed(digits_run, out=tmp_path / f"{n}.parquet", rows_at_once=n))[0]
        for n in (4096, rows_at_once)
    )
    # But for rounding, which depends on the number of rows of a product.
    pandas.testing.assert_frame_equal(whole, part, rtol=1e-5, atol=1e-6)


def test_a_csv_holds_the_same_numbers(table_run, other, tmp_path):
    frames = [
        reuse.embed(table_run, table(other, label="city"), tmp_path / f"codes.{kind}")
        for kind in ("parquet", "csv")
    ]
    (a, mean, scale), (b, same_mean, same_scale) = map(read, frames)
    assert torch.equal(mean, same_mean)
    assert torch.equal(scale, same_scale)
    assert a["label"].tolist() == b["label"].tolist()
    assert len(frames[1].read_text().splitlines()) == 91


def test_a_table_with_gaps_has_names_for_labels_and_marginals_of_a_full_posterior(
    table_run, other, tmp_path
):
    out = reuse.embed(table_run, table(other, label="city"), tmp_path / "codes.parquet")
    frame, mean, scale = read(out)
    assert frame["row"].tolist() == list(range(90))
    assert set(frame["part"]) == {"all"}
    assert frame["label"].tolist() == pandas.read_csv(other)["city"].tolist()
    x, mask = standardized(other, table_run)
    with torch.no_grad():
        q = load(table_run).encode(x.where(mask, 0.0))
    torch.testing.assert_close(mean, q.mean, rtol=1e-5, atol=1e-6)
    deviations = q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(scale, deviations, rtol=1e-5, atol=1e-6)
    # Without the scaling of the training rows the codes are others.
    own = data.table(other, columns=COLUMNS, missing="nan", valid=0, test=0)
    with torch.no_grad():
        assert not torch.allclose(load(table_run).encode(own.x.train).mean, mean, atol=1e-2)


def test_the_runs_own_table_keeps_its_parts(table_run, tmp_path):
    frame, _, _ = read(reuse.embed(table_run, out=tmp_path / "codes.parquet"))
    assert frame["part"].value_counts().to_dict() == {"train": 210, "test": 60, "valid": 30}
    cities = pandas.read_csv(table_run.parent / "people.csv")["city"]
    assert frame["row"].tolist() == list(range(300))
    assert frame["label"].tolist() == cities.tolist()


def test_arrays_and_toys_have_the_rows_of_their_source(tmp_path):
    values = np.arange(120, dtype=np.float32).reshape(60, 2)
    np.savez(tmp_path / "a.npz", x=values)
    arrays = data.array(tmp_path / "a.npz")
    for rows, x in zip(arrays.row_numbers, arrays.x, strict=True):
        assert torch.equal(torch.from_numpy(values)[rows], x)
    together, parts = data.moons(50, valid=0, test=0), data.moons(50)
    for rows, x in zip(parts.row_numbers, parts.x, strict=True):
        assert torch.equal(together.x.train[rows], x)


def test_pictures_have_the_rows_of_their_own_file(monkeypatch, tmp_path):
    pixels = torch.arange(30, dtype=torch.uint8).reshape(30, 1, 1, 1)
    train, test = vision.Images(pixels, torch.arange(30)), vision.Images(pixels[:5] + 100, None)
    monkeypatch.setattr(vision, "fetch_images", lambda *_: (train, test))
    made = data.mnist(valid=10, limit=15, binarize="none")
    for rows, x in zip(made.row_numbers, made.x, strict=True):
        assert (x * 255).round().flatten().tolist()[: len(rows)] == [
            value + 100 * (x is made.x.test) for value in rows.tolist()
        ]
    vae = VAE((1, 1, 1), 1, likelihood=pyro_vae.likelihoods.Normal)
    frame, _, _ = read(reuse.embed(vae, made, tmp_path / "codes.csv"))
    assert frame["part"].tolist() == ["train"] * 15 + ["valid"] * 10 + ["test"] * 5
    assert frame["row"].tolist() == torch.cat(made.row_numbers).tolist()


def test_rows_of_a_dynamic_set_are_drawn_once_by_its_seed(digits_run, tmp_path):
    def codes(protocol):
        node = {"_target_": "pyro_vae.data.digits", "binarize": protocol, "seed": 5}
        return read(reuse.embed(digits_run, node, tmp_path / f"{protocol}.parquet"))[0]

    pandas.testing.assert_frame_equal(codes("dynamic"), codes("fixed"), check_exact=True)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_command_cut_off_midway_leaves_nothing_new(digits_run, tmp_path, monkeypatch, kind):
    path = tmp_path / f"codes.{kind}"
    calls = []

    def cut_off(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return piece(*arguments)

    piece = embedding.encode_rows
    monkeypatch.setattr(embedding, "encode_rows", cut_off)
    with pytest.raises(KeyboardInterrupt):
        reuse.embed(digits_run, out=path, rows_at_once=100)
    assert list(tmp_path.iterdir()) == []
    reuse.embed(digits_run, out=path)
    before, calls = path.read_bytes(), calls[:0]
    with pytest.raises(KeyboardInterrupt):
        reuse.embed(digits_run, out=path, rows_at_once=100)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_vae_without_a_run_embeds_too(tmp_path):
    rings = data.ring(50)
    vae = VAE((2,), 2, posterior=posteriors.Full, likelihood=pyro_vae.likelihoods.Normal).double()
    frame, _, _ = read(reuse.embed(vae, rings, tmp_path / "codes.parquet"))
    x = data.ring(50, valid=0, test=0).x.train.double()
    with torch.no_grad():
        q = vae.encode(x)
    assert (frame[["z_mean_0", "z_mean_1"]].to_numpy() == q.mean.numpy()).all()
    assert (frame[["z_scale_0", "z_scale_1"]].to_numpy() == q.stddev.numpy()).all()
    assert "label" not in frame
    with pytest.raises(ValueError, match=r"Expected data to be a pyro_vae.data.Data .* NoneType"):
        reuse.embed(vae, out=tmp_path / "codes.csv")
    with pytest.raises(ValueError, match=r"Expected out to name .* for a VAE, got None"):
        reuse.embed(vae, rings)
    with pytest.raises(ValueError, match=r"of shape \(2,\), that of the VAE, got \(1, 8, 8\)"):
        reuse.embed(vae, data.digits(), tmp_path / "codes.csv")


def unfinished(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "unfinished")
    (copy / "metrics.json").unlink()
    return copy


def test_runs_that_are_none_are_refused(digits_run, tmp_path):
    with pytest.raises(ValueError, match=r"Expected run .* got 'nowhere', which is not a folder"):
        reuse.judge_run("nowhere")
    with pytest.raises(ValueError, match=r"Expected run .* which has no config.yaml"):
        reuse.embed(tmp_path)
    cut_off = unfinished(digits_run, tmp_path)
    with pytest.raises(ValueError, match=r"Expected run .* no metrics.json: run its .*resume"):
        reuse.judge_run(cut_off)
    assert load(cut_off).latent_dim == 3
    damaged = shutil.copytree(digits_run, tmp_path / "damaged")
    (damaged / "data.json").write_text('{"format": "pyro_vae data 1"')
    with pytest.raises(ValueError, match=r"Expected '.*data.json' to describe .* damaged file"):
        reuse.judge_run(damaged)
    (damaged / "data.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match=r"Expected the format 'pyro_vae data 2', got 'other'"):
        reuse.judge_run(damaged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "some"}, "Expected part to be 'train', 'valid', 'test' or 'all', got 'some'"),
        ({"num_particles": 0}, "Expected num_particles to be an integer of at least 1, got 0"),
        ({"evidence_rows": 0}, "Expected evidence_rows to be an integer of at least 1, got 0"),
        ({"data": data.ring(10)}, r"shape \(1, 8, 8\), that of run '.*', got \(2,\) of 'ring'"),
        (
            {"data": {"_target_": "pyro_vae.data.digits", "binarize": "none"}},
            r"with binarize='threshold', as those of run '.*', got 'none' of 'digits'",
        ),
    ],
    ids=["part", "particles", "rows", "shape", "grey"],
)
def test_what_does_not_fit_is_refused_before_any_work(digits_run, monkeypatch, options, message):
    monkeypatch.setattr(evaluate_run, "compute_metrics", None)
    with pytest.raises(ValueError, match=message):
        reuse.judge_run(digits_run, **options)


def test_values_of_another_protocol_are_refused_unless_they_are_the_same(tmp_path, digits_run):
    bits = (load_digits().images > 8)[:, None]
    np.savez(tmp_path / "bits.npz", x=bits)
    array = {"_target_": "pyro_vae.data.array", "path": str(tmp_path / "bits.npz")}
    assert reuse.judge_run(digits_run, array, part="all")["rows"] == {"all": 1797}
    grey = finished(tmp_path / "grey", "data.binarize=none", "vae/likelihood=normal")
    with pytest.raises(ValueError, match=r"with binarize='none', .*, got 'threshold' of 'digits'"):
        reuse.judge_run(grey, data.digits())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda f: f.drop(columns="age"), {},
            "have the columns of the training data, 'height', 'weight', 'age', got "
            "'height', 'weight', 'city', without 'age'",
        ),
        (
            lambda f: f, {"columns": ["height", "weight"]},
            r"Expected columns and drop to leave the columns of .*, got 'height', 'weight'",
        ),
        (lambda f: f.astype({"age": str}).assign(age="old"), {}, "categorical values in 'age'"),
    ],
    ids=["absent", "fewer", "words"],
)  # fmt: skip
def test_tables_of_other_columns_are_refused(table_run, tmp_path, change, options, message):
    change(people(60, 2, gaps=4)).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=message):
        reuse.embed(table_run, table(tmp_path / "t.csv", **options), tmp_path / "codes.csv")
    assert not (tmp_path / "codes.csv").exists()


def test_data_of_another_scaling_are_refused(table_run, other, tmp_path):
    with pytest.raises(ValueError, match=r"the scaling of .* run '.*', got 'other' with another"):
        reuse.judge_run(table_run, data.table(other, columns=COLUMNS, missing="nan"))
    np.save(tmp_path / "a.npy", np.ones((20, 3)))
    with pytest.raises(ValueError, match=r"the scaling of .* got 'a' without scaling"):
        reuse.judge_run(table_run, data.array(tmp_path / "a.npy"))


def test_names_of_files_and_a_missing_pyarrow_are_told_before_any_work(
    digits_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "open_run", None)
    with pytest.raises(ValueError, match=r"a .parquet or .csv file, got 'codes.txt'"):
        reuse.embed(digits_run, out="codes.txt")
    with pytest.raises(ValueError, match="Expected rows_at_once to be an integer of at least 1"):
        reuse.embed(digits_run, rows_at_once=0)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"extra parquet for .*pip install 'pyro_vae\[parquet\]'"):
        reuse.embed(digits_run, out=tmp_path / "codes.parquet")
    reuse.embed(digits_run, out=tmp_path / "codes.csv")


def test_foreign_code_of_a_run_has_to_be_allowed(digits_run, tmp_path):
    folder = shutil.copytree(digits_run, tmp_path / "foreign")
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.data = {"_target_": "pyro_vae.data.digits.digits", "seed": 1}
    OmegaConf.save(cfg, folder / "config.yaml")
    name = "pyro_vae.data.digits.digits"
    with pytest.raises(ValueError, match=rf"built by pyro_vae.data, got '{name}': if you trust"):
        reuse.judge_run(folder)
    cfg.data = {"_target_": "pyro_vae.data.digits", "seed": {"_target_": "os.getpid"}}
    OmegaConf.save(cfg, folder / "config.yaml")
    with pytest.raises(ValueError, match=r"got 'os.getpid'"):
        reuse.embed(folder, out=tmp_path / "codes.csv")
    assert reuse.judge_run(folder, allow=["os.getpid"])["data"] == "digits"


def test_a_run_without_rows_for_the_test_is_refused(tmp_path):
    people(30, 0).to_csv(tmp_path / "t.csv", index=False)
    overrides = [f"data.path={tmp_path}/t.csv", "data.label=city", "data.valid=0", "data.test=0"]
    with pytest.raises(ValueError, match=r"Expected 't' to have test rows, got none"):
        finished(tmp_path / "run", "data=table", *overrides, "vae/likelihood=normal")


def command(name, *arguments, cwd):
    """Runs a command for a terminal of 100 columns."""
    with mock.patch.dict(os.environ, {"COLUMNS": "100"}):
        return call(f"pyro-vae-{name}", *arguments, cwd=cwd)


def test_the_commands_on_runs_and_tables(digits_run, table_run, other, tmp_path):
    runs = [shutil.copytree(r, tmp_path / n) for r, n in ((digits_run, "a"), (table_run, "b"))]
    done = command("evaluate", "-m", "run=a,b", "seed=3", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.count("log evidence") == 2
    one = json.loads((tmp_path / "a" / "evaluations" / "digits-test.json").read_text())
    assert one["log_evidence"] == metrics(runs[0])["log_evidence"]
    assert (tmp_path / "b" / "evaluations" / "people-test.json").is_file()
    asked = ["run=b", "data=table", f"data.path={other.name}", "data.missing=nan", "part=all"]
    done = command("evaluate", *asked, "evaluate.num_particles=30", "out=e.json", cwd=tmp_path)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "e.json").read_text())
    expected = reuse.judge_run(table_run, table(other), part="all", num_particles=30)
    assert found == expected | {"run": "b"}
    done = command("embed", *asked, "out=codes.csv", "data.label=city", cwd=tmp_path)
    assert done.code == 0, done.err
    assert len(pandas.read_csv(tmp_path / "codes.csv")) == 90
    assert {path.name for path in tmp_path.iterdir()} == {
        "a", "b", "codes.csv", "e.json", "other.csv",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["evaluate", "embed"])
def test_mistakes_and_help_of_the_commands(digits_run, tmp_path, name):
    done = command(name, cwd=tmp_path)
    assert done.code == 1
    assert "Expected run to be the folder of a finished run, as in run=outputs/" in done.err
    done = command(name, f"run={digits_run}", "data=ring", cwd=tmp_path)
    assert done.code == 1
    assert done.err.count("ValueError: Expected data of shape (1, 8, 8)") == 1
    assert "reuse.py" not in done.err
    done = command(name, "--help", cwd=tmp_path)
    assert done.code == 0
    assert all(option.stem in done.out for option in (config.APP / "data").glob("*.yaml"))
    assert "objective" not in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    settings = OmegaConf.load(config.APP / f"{name}.yaml")
    keys = set(settings) - {"defaults", "hydra", "evaluate"}
    keys |= {f"evaluate.{key}" for key in settings.get("evaluate", {})}
    assert all(f"{key}=" in done.out for key in keys)
    assert not any(tmp_path.iterdir())


def test_help_waits_for_no_pytorch(tmp_path):
    code = "import sys, pyro_vae.cli.reuse; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
