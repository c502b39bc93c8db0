"""Covariates: their encoding, their files, and what is refused."""

import json
import math

import numpy as np
import pandas
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import Covariates, Preparation

TABLE = {
    "batch": ["b", "a", "b", "c"],
    "dose": [1, 2, 2, 3],
    "age": [20.0, 30.0, 40.0, 50.0],
    "treated": [True, False, True, True],
    "library": [10.0, 20.0, 5.0, 1.0],
}


def test_kinds_are_inferred_and_encoded():
    encoding = Covariates.fit(TABLE, {"batch": None, "dose": None, "age": None, "treated": None})
    assert encoding.feature_names == [
        "batch=a", "batch=b", "batch=c", "dose=1", "dose=2", "dose=3", "age", "treated=False",
        "treated=True",
    ]  # fmt: skip
    x = encoding.encode(TABLE)
    assert x.dtype == torch.get_default_dtype()
    assert x[:, :3].tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    age = np.array(TABLE["age"])
    torch.testing.assert_close(x[:, 6], torch.tensor((age - age.mean()) / age.std()).float())
    assert x.shape == (4, encoding.dim) == (4, 9)


def test_many_distinct_integers_are_a_number():
    encoding = Covariates.fit({"n": list(range(11)), "few": [0, 1] * 5 + [0]})
    assert [c.kind for c in encoding.columns] == ["continuous", "categorical"]


def test_kinds_can_be_given_and_the_size_factor_comes_last():
    kinds = {"library": "size_factor", "dose": "continuous"}
    encoding = Covariates.fit(TABLE, kinds)
    assert encoding.names == ["dose", "library"]
    assert encoding.has_size_factor
    assert encoding.encode(TABLE)[:, -1].tolist() == TABLE["library"]


@pytest.mark.parametrize(
    "values",
    [
        np.array(["x", "y", "x"]), np.array([1, 2, 1]), torch.tensor([1, 2, 1]),
        pandas.Series(["x", "y", "x"], dtype="category"), np.array([1.0, 2.0, 1.0]), [True, False],
        pandas.Series(["x", "y", "x"], dtype="string"), ("x", "y"),
    ],
)  # fmt: skip
def test_columns_of_any_library_are_categories(values):
    encoding = Covariates.fit({"c": values}, {"c": "categorical"})
    assert encoding.dim == 2
    assert encoding.encode({"c": values}).sum(1).tolist() == [1] * len(values)


def test_whole_numbers_have_the_same_name_as_floats_and_integers():
    encoding = Covariates.fit({"c": np.array([1, 2])}, {"c": "categorical"})
    assert encoding.encode({"c": np.array([2.0])}).tolist() == [[0, 1]]


def test_one_covariate_can_be_replaced():
    encoding = Covariates.fit({"batch": TABLE["batch"], "age": TABLE["age"]})
    x = encoding.encode(TABLE)
    y = encoding.replace(x, {"batch": "c"})
    assert y[:, :3].tolist() == [[0, 0, 1]] * 4
    assert torch.equal(y[:, 3], x[:, 3])
    z = encoding.replace(x, {"age": 35.0})
    assert z[:, 3].abs().max() == 0
    assert torch.equal(x, encoding.encode(TABLE))


LEVELS = [f"level {i}" for i in range(20)] * 3

REFUSED = {
    "unseen": (lambda e: e.encode({**TABLE, "batch": ["d", "a", "e", "d"]}),
               r"'batch' to have levels .*'a', 'b', 'c', got 'd', 'e'"),
    "absent": (lambda e: e.encode({"batch": ["a"]}), r"none of \['age'\]"),
    "missing": (lambda e: e.encode({**TABLE, "age": [1.0, math.nan, 1.0, 1.0]}),
                "'age' to be a column of numbers, got 1 that are missing"),
    "missing level": (lambda e: e.encode({**TABLE, "batch": ["a", None, "b", "c"]}),
                      "'batch' in each row, got 1 missing"),
    "words": (lambda e: e.encode({**TABLE, "age": ["old"] * 4}), "'age' to be numbers, got 'old'"),
    "length": (lambda e: e.encode({**TABLE, "age": [1.0]}), r"equal length, got \[1, 4\]"),
    "replace": (lambda e: e.replace(e.encode(TABLE), {"sex": "f"}), r"among .*, got \['sex'\]"),
    "constant": (lambda _: Covariates.fit({"c": ["a", "a"]}), "'c' to vary .* got only 'a'"),
    "constant number": (lambda _: Covariates.fit({"c": [1.5, 1.5]}), "'c' to vary .* a constant"),
    "identifier": (lambda _: Covariates.fit({"c": [f"row {i}" for i in range(90)]}),
                   "'c' to repeat its levels, got 90 levels in 90 training rows"),
    "unknown": (lambda _: Covariates.fit(TABLE, {"sex": None}), "got 'sex'"),
    "size": (lambda _: Covariates.fit(TABLE, {"library": "size_factor"}).encode({"library": [0]}),
             "'library' to be positive .*, got 0"),
    "nan beside words": (lambda _: Covariates.fit({"c": ["x", math.nan, "y"]}),
                         "'c' in each row, got 1 missing"),
    "two size factors": (lambda _: Covariates.fit(TABLE, {"age": "size_factor",
                                                          "library": "size_factor"}),
                         "one size factor, got 'age', 'library'"),
    "negative size": (lambda _: Covariates.fit({"s": [1.0, -2.0]}, {"s": "size_factor"}),
                      "'s' to be positive .*, got -2"),
    "overflow": (lambda _: Covariates.fit({"n": [1e300, 2e300, 5e300]}), "'n' to have finite"),
    "width": (lambda e: e.replace(torch.ones(2, 7), {"batch": "a"}), r"shape \(N, 4\), got"),
    "array": (lambda e: e.replace([[1.0]], {"batch": "a"}), "encoded to be a torch.Tensor"),
    "many unseen": (lambda _: Covariates.fit({"c": LEVELS}).encode({"c": [*"abcdefghijkl"]}),
                    "and 12 others, got 'a', .* and 4 others"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_each_fault_is_named(name):
    call, message = REFUSED[name]
    encoding = Covariates.fit({"batch": TABLE["batch"], "age": TABLE["age"]})
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        call(encoding)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    frame = pandas.DataFrame(torch.randn(200, 3).numpy(), columns=["u", "v", "w"])
    frame["batch"] = ["a", "b", "c", "d"] * 50
    frame["age"] = np.linspace(20, 80, 200)
    frame["size"] = np.linspace(1, 2, 200)
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    return path


def test_a_table_has_covariates_beside_its_columns(file):
    mine = data.table(file, covariates=["batch", "age"], size_factor="size")
    assert mine.columns == ("u", "v", "w")
    assert mine.covariate_columns.describe() == (
        "batch ('a', 'b', 'c', 'd'); age (continuous); size (size_factor)"
    )
    frame = pandas.read_csv(file)
    for part, numbers in zip(("train", "valid", "test"), mine.row_numbers, strict=True):
        rows = getattr(mine, part)
        assert len(rows.covariates) == len(rows.x)
        assert [*"abcd"] == sorted({*frame["batch"]})
        levels = rows.covariates[:, :4].argmax(1).tolist()
        assert ["abcd"[i] for i in levels] == frame["batch"][numbers.numpy()].tolist()
        np.testing.assert_allclose(rows.covariates[:, 5], frame["size"][numbers.numpy()], rtol=1e-6)
    assert mine.train.covariates[:, 4].mean().abs() < 1e-6


def test_the_preparation_has_covariates_and_its_file_keeps_them(file):
    mine = data.table(file, covariates={"batch": "categorical", "age": "continuous"})
    values = json.loads(json.dumps(mine.preparation.to_dict()))
    again = Preparation.from_dict(values)
    assert again.covariates == mine.covariate_columns
    like = data.table(file, like=again, valid=0, test=0)
    assert like.covariate_columns == mine.covariate_columns
    assert len(like.covariates.train) == 200
    with pytest.raises(ValueError, match=r"those of the training data, \['batch', 'age'\], got"):
        data.table(file, like=again, covariates=["batch"])
    plain = data.table(file, columns=["u"]).preparation.to_dict()
    assert "covariates" not in plain
    assert plain["format"] == "pyro_vae data 2"
    for change in ({"kind": "words"}, {"scale": 0.0}, {"levels": []}, {"name": 3}):
        columns = [{**values["covariates"][0], **change}]
        with pytest.raises(ValueError, match="covariate"):
            Covariates.from_list(columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariates": ["sex"]}, "covariates among the columns .*, got 'sex'"),
        ({"covariates": {"age": "number"}}, "covariates to be 'categorical', .*, got 'number'"),
        ({"covariates": 3}, "covariates to be names"),
        ({"size_factor": "u", "columns": ["v"]}, "'u' to be positive .*, got -"),
        ({"covariates": ["batch"], "columns": ["u"], "label": "gone"}, "label to be one of"),
        (
            {"covariates": ["v"], "columns": ["u", "v"]},
            "without the covariates .*, got 'v' in both",
        ),
        ({"size_factor": "size", "columns": ["u", "size"]}, "size factor, got 'size' in both"),
        ({"covariates": ["batch", "batch"]}, "different names, got 'batch', 'batch'"),
        (
            {"covariates": ["size"], "size_factor": "size"},
            "another column than covariates, got 'size'",
        ),
    ],
)
def test_wrong_covariates_of_a_table_are_named(file, options, message):
    with pytest.raises(ValueError, match=message):
        data.table(file, **options)


def test_the_label_is_a_covariate():
    digits = data.digits(covariates="label")
    assert digits.covariates.train.shape == (1258, 10)
    assert torch.equal(digits.covariates.test.argmax(1), digits.labels.test)
    assert digits.test.covariates is digits.covariates.test
    assert data.digits().test.covariates is None
    with pytest.raises(ValueError, match="covariates of 'digits' to be label or none, got"):
        data.digits(covariates="batch")


def test_a_batch_has_the_covariates_of_its_rows():
    rows = data.digits(covariates="label").train
    index = torch.tensor([5, 3, 700])
    x, mask, covariates = rows.batch(index)
    assert mask is None
    assert torch.equal(x, rows.x[index])
    assert torch.equal(covariates, rows.covariates[index])


def test_numbers_in_a_table_of_objects_are_numbers():
    dose = np.array([0.5, 1.0, 2.0] * 4, dtype=object)
    words = np.array(["a", "b", "a"] * 4, dtype=object)
    encoding = Covariates.fit(
        {"dose": dose, "word": words, "count": dose.astype(int).astype(object)}
    )
    assert [c.kind for c in encoding.columns] == ["continuous", "categorical", "categorical"]


def test_dates_are_levels_and_no_numbers():
    days = np.array(["2020-01-01", "2020-02-01"] * 3, dtype="datetime64[ns]")
    encoding = Covariates.fit({"day": days})
    assert encoding.columns[0].levels == ("2020-01-01", "2020-02-01")
    assert encoding.replace(encoding.encode({"day": days}), {"day": "2020-01-01"})[1].tolist() == [
        1,
        0,
    ]
    number = Covariates.fit({"day": np.linspace(0, 1, 6)})
    with pytest.raises(ValueError, match="covariate 'day' to be numbers"):
        number.encode({"day": days})
    with pytest.raises(ValueError, match="covariate 'day' to be numbers"):
        number.encode({"day": np.full(6, 1j)})


def test_the_first_row_of_an_unseen_level_is_named():
    encoding = Covariates.fit(TABLE, {"batch": None})
    with pytest.raises(ValueError, match="got 'x', 'y', first in row 1"):
        encoding.encode({"batch": ["a", "y", "x"]})


def test_no_columns_are_no_covariates():
    with pytest.raises(ValueError, match="covariates to have columns, got none"):
        Covariates.fit({})


def test_bytes_are_words():
    assert Covariates.fit({"c": np.array([b"x", b"y"])}).columns[0].levels == ("x", "y")
