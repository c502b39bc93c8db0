"""Counts: formats, columns and rows by name, and what is refused."""

import gzip

import anndata
import numpy as np
import pandas
import pytest
import scipy.io
import scipy.sparse
import torch

from pyro_vae import data

rng = np.random.default_rng(0)
X = rng.poisson(rng.gamma(0.5, 2.0, (40, 6)))
GENES = [f"gene{i}" for i in range(6)]
OBS = pandas.DataFrame({
    "batch": ["a", "b"] * 20, "depth": np.linspace(1, 2, 40), "kind": ["x", "y", "z", "y"] * 10,
})  # fmt: skip
SPLIT = {"valid": 5, "test": 7, "seed": 3}


# AnnData of some versions uses options of pandas that others will remove.
pytestmark = pytest.mark.filterwarnings("ignore:.*option is deprecated")


def write_h5ad(folder, layer=None, form=scipy.sparse.csr_matrix, names=GENES):
    var = pandas.DataFrame(index=names)
    obs = OBS.set_index(pandas.Index([f"cell{i}" for i in range(40)]))
    adata = anndata.AnnData(form(X.astype(np.float32)), obs=obs, var=var)
    if layer is not None:
        adata.layers[layer] = adata.X.copy()
        adata.X = np.log1p(X).astype(np.float32)
    adata.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad", adata


def dense(part):
    return part.to_dense() if part.layout != torch.strided else part


def sources(folder):
    """Yields the same counts in each form, with the settings that read them."""
    path, adata = write_h5ad(folder)
    yield "h5ad", path, {}, True
    yield "anndata", adata, {}, True
    yield "csc", write_h5ad(folder, form=scipy.sparse.csc_matrix)[1], {}, True
    yield "dense anndata", write_h5ad(folder, form=np.asarray)[1], {}, False
    yield "layer", write_h5ad(folder, "raw")[0], {"layer": "raw"}, True
    scipy.sparse.save_npz(folder / "sparse.npz", scipy.sparse.coo_matrix(X))
    yield "sparse npz", folder / "sparse.npz", {"obs": OBS}, True
    np.savez(folder / "dense.npz", x=X, **{name: OBS[name].to_numpy(str) for name in OBS})
    yield "dense npz", folder / "dense.npz", {"key": "x"}, False
    scipy.io.mmwrite(folder / "cells.mtx", scipy.sparse.coo_matrix(X))
    OBS.to_csv(folder / "obs.csv", index=False)
    yield "mtx", folder / "cells.mtx", {"obs": folder / "obs.csv"}, True
    scipy.io.mmwrite(folder / "genes.mtx", scipy.sparse.coo_matrix(X.T))
    with gzip.open(folder / "genes.mtx.gz", "wb") as stream:
        stream.write((folder / "genes.mtx").read_bytes())
    yield "10x", folder / "genes.mtx.gz", {"obs": OBS.to_dict("list"), "transpose": True}, True
    table = pandas.concat([OBS, pandas.DataFrame(X, columns=GENES)], axis=1)
    table.to_csv(folder / "table.csv", index=False)
    yield "csv", folder / "table.csv", {"drop": ["depth"]}, False
    table.to_parquet(folder / "table.parquet")
    yield "parquet", folder / "table.parquet", {"drop": ["depth"]}, False
    yield "pandas", table, {"columns": GENES}, False
    yield "array", X, {"obs": OBS}, False
    yield "scipy", scipy.sparse.csr_array(X), {"obs": OBS}, True
    yield "tensor", torch.from_numpy(X), {"obs": OBS}, False
    yield "sparse tensor", torch.from_numpy(X).to_sparse(), {"obs": OBS}, True


def test_each_form_gives_the_same_rows(tmp_path):
    expected = data.Covariates.fit({"batch": ["a", "b"]}).encode(OBS)
    for form, source, options, is_sparse in sources(tmp_path):
        mine = data.counts(source, label="kind", covariates="batch", **options, **SPLIT)
        rows = torch.cat(mine.row_numbers)
        assert [len(part) for part in mine.x] == [28, 5, 7], form
        assert all((part.layout == torch.sparse_csr) == is_sparse for part in mine.x), form
        x = torch.cat([dense(part) for part in mine.x])
        assert x.dtype == torch.float32
        assert torch.equal(x, torch.from_numpy(X[rows]).float()), form
        assert torch.equal(torch.cat(mine.covariates), expected[rows]), form
        names = [mine.label_names[i] for i in torch.cat(mine.labels).tolist()]
        assert names == OBS["kind"].to_numpy()[rows].tolist(), form
        assert mine.columns in (tuple(GENES), None)


def test_rows_of_sparse_counts_are_dense(tmp_path):
    sparse = data.counts(scipy.sparse.csr_matrix(X), valid=0, test=0).train
    for index in (slice(3, 9), slice(None, None, 4), slice(38, 99), torch.tensor([7, 0, 7]),
                  torch.arange(40) % 3 == 0, torch.tensor([], dtype=torch.long)):  # fmt: skip
        batch = sparse.batch(index)
        assert torch.equal(batch.x, torch.from_numpy(X).float()[index])


def test_columns_are_chosen_and_dropped_by_name(tmp_path):
    path, _ = write_h5ad(tmp_path)
    chosen = data.counts(path, columns=["gene4", "gene1"], **SPLIT)
    assert chosen.columns == ("gene4", "gene1")
    assert torch.equal(
        dense(chosen.x.test), torch.from_numpy(X[chosen.row_numbers.test][:, [4, 1]]).float()
    )
    dropped = data.counts(path, drop=["gene0", "gene5"], **SPLIT)
    assert dropped.columns == tuple(GENES[1:5])
    like = data.counts(write_h5ad(tmp_path, names=GENES[::-1])[0], like=chosen.preparation)
    assert like.columns == ("gene4", "gene1")
    assert torch.equal(
        dense(like.x.test), torch.from_numpy(X[like.row_numbers.test][:, [1, 4]]).float()
    )


def test_covariates_of_other_counts_keep_their_encoding(tmp_path):
    path, adata = write_h5ad(tmp_path)
    train = data.counts(path, covariates=["batch", "depth"], size_factor=None, **SPLIT)
    adata.obs["depth"] *= 3
    other = data.counts(adata, like=train.preparation, valid=0, test=0)
    encoding = train.covariate_columns
    assert other.covariate_columns == encoding
    column = encoding.feature_names.index("depth")
    age = encoding.columns[1]
    expected = (3 * OBS["depth"].to_numpy() - age.loc) / age.scale
    np.testing.assert_allclose(other.covariates.train[:, column], expected, rtol=1e-5)


def test_a_column_is_the_size_factor():
    mine = data.counts(X, obs=OBS, covariates="batch", size_factor="depth", **SPLIT)
    assert mine.covariate_columns.has_size_factor
    depth = torch.from_numpy(OBS["depth"].to_numpy()[mine.row_numbers.test]).float()
    assert torch.equal(mine.covariates.test[:, -1], depth)


def float_at(row, column, value, form=np.asarray):
    x = X.astype(float)
    x[row, column] = value
    return form(x)


WIDE = pandas.DataFrame(np.ones((5, 3000), int), columns=[f"g{i}" for i in range(3000)])

MISTAKES = {
    "log": ({"path": float_at(3, 2, 0.5)}, r"counts \(non-negative integers\), got 0.5 in row 3, "
            r"column 2: normalized values and logarithms are not counts; .* another layer"),
    "log, sparse": ({"path": float_at(3, 2, 0.5, scipy.sparse.csc_matrix)}, "got 0.5 in row 3, "
                    "column 2"),
    "negative": ({"path": float_at(0, 0, -1)}, "got -1 in row 0, column 0"),
    "missing": ({"path": float_at(39, 5, np.nan)}, "got nan in row 39, column 5"),
    "infinite": ({"path": float_at(39, 5, np.inf)}, "got inf in row 39, column 5"),
    "named": ({"path": pandas.DataFrame(float_at(1, 1, 2.5), columns=GENES)},
              "got 2.5 in row 1, column 'gene1'"),
    "large": ({"path": float_at(0, 0, 2**30)}, "up to 16777216, .*, got 1073741824 in row 0"),
    "words": ({"path": OBS}, r"got other values in 'batch', 'kind', 'batch' \(as a\): leave them "
              r"out \('data.drop=\[batch,kind\]'\)"),
    "masked": ({"path": np.ma.masked_where(X == 1, X)}, "counts without masked values, got"),
    "complex": ({"path": pandas.DataFrame(X + 0j, columns=GENES)}, "got other values in 'gene0'"),
    "label": ({"path": X, "obs": OBS, "label": ["kind"]}, "label to be the name of a column, got"),
    "nothing left": ({"path": pandas.DataFrame(X, columns=GENES), "drop": GENES},
                     "besides label and covariates, got none of 'gene0'"),
    "chosen twice": ({"path": pandas.DataFrame(X, columns=GENES), "columns": ["gene1"] * 2},
                     "each column once, got duplicates of 'gene1'"),
    "missing word": ({"path": X, "obs": {"b": pandas.array([True, None] * 20, dtype="boolean")},
                      "covariates": "b"}, "covariate 'b' in each row, got .* missing values"),
    "tiny factor": ({"path": X, "obs": {"s": np.full(40, 1e-60)}, "size_factor": "s"},
                    "size factor 's' to be positive and finite in torch.float32, got 1e-60"),
    "vector": ({"path": X[0]}, r"a matrix of counts, rows by columns, got shape \(6,\)"),
    "empty": ({"path": X[:0]}, r"got shape \(0, 6\)"),
    "objects": ({"path": X.astype(object)}, "a matrix of numbers, got dtype object"),
    "no path": ({}, r"data.path to name a \.h5ad, \.mtx, .* or \.parquet file, as in "
                r"data.path=my\.h5ad, got None"),
    "no file": ({"path": "cells.h5ad"}, "which is not a file"),
    "suffix": ({"path": "cells.loom"}, "Expected data.path to name a .h5ad"),
    "layer": ({"path": X, "layer": "raw"}, "layer for an h5ad file or an AnnData only, got 'raw'"),
    "key": ({"path": X, "key": "x"}, "key for an npz file only"),
    "no rows": ({"path": X, "label": "batch"}, r"Expected obs, a table of the rows with 'batch', "
                r"got none \(data.obs=cells.csv\)"),
    "unknown": ({"path": X, "obs": OBS, "covariates": ["lot"]},
                "among 'batch', 'depth', 'kind', got 'lot'"),
    "short": ({"path": X, "obs": OBS[:6]}, r"one line for each of 40 rows, got 6: transpose=true"),
    "obs": ({"path": X, "obs": 3}, "Expected obs to be a csv or parquet file, a table, or columns"),
    "ragged": ({"path": X, "obs": {"a": [1], "b": [1, 2]}}, "columns of equal length"),
    "two tables": ({"path": pandas.DataFrame(X), "obs": OBS}, "obs only for a matrix without own"),
    "drop": ({"path": WIDE, "drop": ["h1"]},
             "drop to be some of 'g0', .* and 2,992 others, got 'h1'"),
    "columns": ({"path": WIDE, "columns": ["h1"]},
                "columns to be some of 'g0', .* 2,992 others, got 'h1'"),
    "both": ({"path": WIDE, "columns": ["g1"], "drop": ["g2"]}, "either columns or drop, got both"),
    "no names": ({"path": X, "drop": ["g2"]}, "columns and drop only for data with names"),
    "twice": ({"path": pandas.DataFrame(X, columns=["a", "b", "a", "c", "d", "e"])},
              r"duplicates of 'a': rename them, or leave it out \('data.drop=\[a\]'\)"),
    "transpose": ({"path": WIDE, "transpose": True}, "transpose=false for data with names"),
    "flag": ({"path": X, "transpose": 1}, "Expected transpose to be True or False"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_in_one_short_error(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message) as caught:
        data.counts(**options)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.mtx", "cells.mtx.gz", "cells.npz"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"no data")
    with pytest.raises(ValueError, match=rf"Expected '.*{name}' to be an intact"):
        data.counts(tmp_path / name)


def test_layers_and_arrays_are_listed(tmp_path):
    path, _ = write_h5ad(tmp_path, "raw")
    with pytest.raises(ValueError, match="Expected layer to be one of 'raw', got 'counts'"):
        data.counts(path, layer="counts")
    with pytest.raises(ValueError, match=r"got 1.09861 in row \d+, column 'gene\d': .*layer"):
        data.counts(path)
    np.savez(tmp_path / "two.npz", a=X, b=X)
    with pytest.raises(
        ValueError, match=r"key to be one of 'a', 'b', the matrices of .*, got None"
    ):
        data.counts(tmp_path / "two.npz")


def test_the_index_of_a_table_is_left_out(tmp_path):
    pandas.DataFrame(X, columns=GENES, index=[f"cell{i}" for i in range(40)]).to_csv(
        tmp_path / "cells.csv"
    )
    for options in ({}, {"drop": ["Unnamed: 0"]}):
        assert data.counts(tmp_path / "cells.csv", **options).columns == tuple(GENES)


def test_views_of_an_anndata_are_read(tmp_path):
    _, adata = write_h5ad(tmp_path, "raw")
    view = adata[adata.obs["batch"] == "b"]
    mine = data.counts(view, layer="raw", valid=0, test=0)
    assert torch.equal(dense(mine.x.train), torch.from_numpy(X[1::2]).float())


@pytest.mark.parametrize("form", ["coo", "csr", "npz", "torch"])
def test_small_integers_of_one_entry_add_up_without_wrapping(form, tmp_path):
    rows, columns = np.r_[0, 0, range(40)], np.r_[1, 1, [0] * 40]
    values = np.array([200, 200] + [1] * 40, dtype=np.uint8)
    matrix = scipy.sparse.coo_matrix((values, (rows, columns)), shape=(40, 3))
    if form == "csr":
        starts = np.r_[0, 3, np.arange(4, 43)]
        order = np.argsort(rows, kind="stable")
        matrix = scipy.sparse.csr_matrix((values[order], columns[order], starts), shape=(40, 3))
    elif form == "npz":
        scipy.sparse.save_npz(tmp_path / "m.npz", matrix)
        matrix = tmp_path / "m.npz"
    elif form == "torch":
        index = torch.from_numpy(np.stack([rows, columns]))
        matrix = torch.sparse_coo_tensor(index, torch.from_numpy(values), (40, 3),
                                         check_invariants=True)  # fmt: skip
    assert dense(data.counts(matrix, valid=0, test=0).x.train).max() == 400


def test_the_matrix_of_the_user_does_not_change():
    matrix = scipy.sparse.csr_matrix((np.array([2, 1, 3]), np.array([1, 0, 1]),
                                      np.array([0, 2, 3])), shape=(2, 2))  # fmt: skip
    data.counts(matrix, valid=0, test=0)
    assert matrix.indices.tolist() == [1, 0, 1]
    assert matrix.data.dtype == np.int64


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=True),
        lambda x: torch.tensor(x).bfloat16(), lambda x: x.astype("longdouble"),
        lambda x: x.astype(">f4"), lambda x: x.astype(np.float16), lambda x: np.asfortranarray(x),
        lambda x: pandas.DataFrame(x).astype(pandas.SparseDtype(int)),
    ],
)  # fmt: skip
def test_any_kind_of_number_is_read(convert):
    mine = data.counts(convert(X), valid=0, test=0)
    assert torch.equal(dense(mine.x.train), torch.from_numpy(X).float())


def test_rows_of_booleans_are_counts():
    frame = pandas.DataFrame(X > 1, columns=GENES)
    assert data.counts(frame, valid=0, test=0).x.train.sum() == (X > 1).sum()


def test_a_first_line_that_is_no_header_is_refused(tmp_path):
    pandas.DataFrame(X, columns=GENES).to_csv(tmp_path / "index.csv")
    assert data.counts(tmp_path / "index.csv").columns == tuple(GENES)
    np.savetxt(tmp_path / "bare.csv", np.vstack([np.arange(6) + 5, X]), fmt="%d", delimiter=",")
    with pytest.raises(ValueError, match="to name the columns, got the number 5"):
        data.counts(tmp_path / "bare.csv")


def test_a_transposed_npz_keeps_its_columns(tmp_path):
    np.savez(tmp_path / "t.npz", counts=X.T, batch=OBS["batch"].to_numpy(str))
    mine = data.counts(tmp_path / "t.npz", transpose=True, covariates="batch", **SPLIT)
    assert mine.event_shape == (6,)
    assert mine.covariate_columns.names == ["batch"]


def test_columns_that_contradict_the_training_data_are_refused(tmp_path):
    path, adata = write_h5ad(tmp_path)
    like = data.counts(path, drop=["gene5"], **SPLIT).preparation
    assert data.counts(adata, like=like, drop=["gene5"]).columns == tuple(GENES[:5])
    for options in ({"columns": ["gene1"]}, {"drop": ["gene1"]}):
        with pytest.raises(
            ValueError, match=r"to leave the columns of the training data, 'gene0', .*, got"
        ):
            data.counts(adata, like=like, **options)
    with pytest.raises(ValueError, match="Expected 5 columns, as in like, got 6"):
        data.counts(X, like=like)


def test_the_label_may_be_one_of_the_columns():
    frame = pandas.DataFrame(X, columns=GENES)
    mine = data.counts(frame, columns=["gene0", "gene1"], label="gene1", **SPLIT)
    assert torch.equal(mine.x.test[:, 1].long(), mine.labels.test)


def test_indices_of_sparse_rows_are_checked_as_those_of_dense_ones():
    sparse = data.counts(scipy.sparse.csr_matrix(X), valid=0, test=0).train
    for index in (torch.tensor([-2]), torch.tensor([-3, 0]), torch.tensor([-40]), torch.tensor(3)):
        assert torch.equal(sparse.batch(index).x, torch.from_numpy(X).float()[index].reshape(-1, 6))
    for bad in (torch.tensor([40]), torch.tensor([-41])):
        with pytest.raises(IndexError, match=r"out of (range|bounds)"):
            sparse.batch(bad)
