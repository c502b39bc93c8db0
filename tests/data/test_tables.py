"""Files of the user's own, and Frey Faces."""

import numpy as np
import pandas
import pytest
import torch

from helpers.paths import DATA
from pyro_vae import VAE, data, evaluate, fit, likelihoods


def permuted(size, valid, test, seed=0):
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order.split([size - valid - test, valid, test])


@pytest.fixture
def frame():
    """A table of two numbers, a whole number, a truth, a word and nothing at all."""
    generator = np.random.default_rng(0)
    n = 50
    return pandas.DataFrame(
        {
            "height": generator.normal(170, 10, n),
            "weight": generator.normal(70, 5, n),
            "age": generator.integers(20, 80, n),
            "member": generator.integers(0, 2, n).astype(bool),
            "city": generator.choice(["Rome", "Bern", "Oslo"], n),
        }
    )


NUMBERS = ["height", "weight", "age", "member"]


FORMATS = ["csv", "parquet"]


def write(frame, path):
    """Writes a table in the format that the name of the file says."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.fixture(params=FORMATS)
def written(request, frame, tmp_path):
    """The table in a file of each format."""
    return write(frame, tmp_path / f"people.{request.param}")


def test_whole_numbers_with_gaps_survive_parquet(tmp_path):
    """A csv makes reals of them; parquet keeps them whole, beside a mark of what is missing."""
    age = pandas.array([*range(19), None], dtype="Int64")
    frame = pandas.DataFrame({"age": age, "height": np.linspace(1.5, 2.0, 20)})
    path = write(frame, tmp_path / "ages.parquet")
    with pytest.raises(ValueError, match=r"got 1 in 1 of 20 rows, in columns 'age'"):
        data.table(path)
    made = data.table(path, columns=["height", "age"], missing="nan", standardize=False)
    values = torch.stack([torch.linspace(1.5, 2.0, 20), torch.arange(20.0)], 1)
    observed = torch.ones(20, 2, dtype=torch.bool)
    values[19, 1], observed[19, 1] = 0.0, False
    for rows, x, mask in zip(permuted(20, 2, 4), made.x, made.mask, strict=True):
        torch.testing.assert_close(x, values[rows])
        assert torch.equal(mask, observed[rows])


def test_a_missing_reader_of_parquet_is_told(tmp_path, monkeypatch):
    def missing(path):
        raise ImportError("Unable to find a usable engine")

    (tmp_path / "a.parquet").touch()
    monkeypatch.setattr(pandas, "read_parquet", missing)
    with pytest.raises(ValueError, match=r"extra parquet .* pip install 'pyro_vae\[parquet\]'"):
        data.table(tmp_path / "a.parquet")


def test_a_table_holds_the_rows_of_its_file(written, frame):
    made = data.table(written, columns=NUMBERS, label="city", standardize=False)
    values = torch.tensor(frame[NUMBERS].to_numpy(float), dtype=torch.float32)
    codes = torch.tensor([["Bern", "Oslo", "Rome"].index(city) for city in frame["city"]])
    for rows, x, labels in zip(permuted(50, 5, 10), made.x, made.labels, strict=True):
        assert torch.equal(x, values[rows])
        assert torch.equal(labels, codes[rows])
    assert (made.name, made.binarize, made.columns) == ("people", "none", tuple(NUMBERS))
    assert made.label_names == ("Bern", "Oslo", "Rome")
    assert made.mask is None
    assert made.scaling is None


def test_standardization_is_learned_on_the_training_rows_and_undone(written, frame):
    made = data.table(written, label="city", seed=4)
    values = frame[NUMBERS].to_numpy(float)
    rows = permuted(50, 5, 10, seed=4)
    train = values[rows[0].numpy()]
    np.testing.assert_allclose(made.scaling.loc, train.mean(0), rtol=1e-6)
    np.testing.assert_allclose(made.scaling.scale, train.std(0), rtol=1e-6)
    torch.testing.assert_close(made.x.train.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert abs(made.x.test.mean(0)).max() > 1e-3
    for part, own in zip(made.x, rows, strict=True):
        np.testing.assert_allclose(
            made.scaling.undo(part), values[own.numpy()], rtol=1e-5, atol=1e-6
        )
    assert made.to("cpu").scaling.loc.device.type == "cpu"


def test_columns_keep_the_order_that_was_asked_for(written):
    made = data.table(written, columns=["age", "height"])
    assert made.columns == ("age", "height")
    assert made.x.train.shape == (35, 2)
    assert made.scaling.loc[0] < 100 < made.scaling.loc[1]


@pytest.mark.parametrize("suffix", FORMATS)
def test_missing_values_are_masked(suffix, frame, tmp_path):
    generator = np.random.default_rng(1)
    gaps = generator.random((50, 2)) < 0.2
    frame.loc[gaps[:, 0], "height"] = np.nan
    frame.loc[gaps[:, 1], "weight"] = np.nan
    path = write(frame, tmp_path / f"gaps.{suffix}")
    columns = ["height", "weight"]
    with pytest.raises(
        ValueError,
        match=rf"got {gaps.sum()} in {gaps.any(1).sum()} of 50 rows, in columns 'height', 'wei",
    ):
        data.table(path, columns=columns)
    made = data.table(path, columns=columns, missing="nan")
    rows = permuted(50, 5, 10)
    train = frame[columns].to_numpy()[rows[0].numpy()]
    np.testing.assert_allclose(made.scaling.loc, np.nanmean(train, 0), rtol=1e-6)
    np.testing.assert_allclose(made.scaling.scale, np.nanstd(train, 0), rtol=1e-6)
    for own, x, mask in zip(rows, made.x, made.mask, strict=True):
        assert torch.equal(mask, ~torch.tensor(gaps)[own])
        assert bool((x[~mask] == 0).all())
        values = frame[columns].to_numpy()[own.numpy()][mask.numpy()]
        np.testing.assert_allclose(made.scaling.undo(x)[mask], values, rtol=1e-5)
    assert torch.equal(made.train.mask, made.mask.train)
    vae = VAE((2,), 1, likelihood=likelihoods.Normal)
    fit(vae, made.train, valid=made.valid, epochs=1)
    evidence = evaluate.log_evidence(vae, made.x.test, 100, mask=made.mask.test)
    assert bool(torch.isfinite(evidence).all())


def test_a_command_reads_nan_as_a_number_and_is_understood(frame, tmp_path):
    from pyro_vae import config

    frame.loc[3, "height"] = np.nan
    frame.to_csv(tmp_path / "gaps.csv", index=False)
    overrides = ["data=table", f"data.path={tmp_path}/gaps.csv", "data.missing=nan", "out=."]
    made = config.build(config.compose([*overrides, "data.columns=[height,age]"]).data)
    assert sum(int((~part).sum()) for part in made.mask) == 1


def test_evidence_in_the_units_of_the_source(tmp_path):
    """The evidence of values is that of standardized ones less the sum of the log scales."""
    generator = np.random.default_rng(2)
    pandas.DataFrame({"a": generator.normal(5, 3, 40)}).to_csv(tmp_path / "a.csv", index=False)
    made = data.table(tmp_path / "a.csv")
    standard = torch.distributions.Normal(0.3, 0.8)
    loc, scale = (t.squeeze() for t in made.scaling)
    own = torch.distributions.Normal(loc + 0.3 * scale, 0.8 * scale)
    torch.testing.assert_close(
        own.log_prob(made.scaling.undo(made.x.test)),
        standard.log_prob(made.x.test) - scale.log(),
        atol=1e-4, rtol=0,
    )  # fmt: skip


def test_a_csv_of_another_separator_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("\ufeffa; b\n" + "".join(f"{i};{i * i}\n" for i in range(20)))
    made = data.table(path, separator=";", standardize=False)
    assert made.columns == ("a", "b")
    assert torch.equal(torch.cat(made.x)[:, 0].square(), torch.cat(made.x)[:, 1])


def test_a_numbered_label_stays_as_it_is(tmp_path):
    pandas.DataFrame({"a": np.arange(20.0), "y": np.arange(20) + 7}).to_csv(
        tmp_path / "y.csv", index=False
    )
    made = data.table(tmp_path / "y.csv", label="y", standardize=False)
    assert torch.equal(made.labels.train, made.x.train.squeeze(1).long() + 7)
    assert made.label_names is None


GOOD = "a,b\n" + "".join(f"{i},{i % 3}\n" for i in range(20))
TABLES = {
    "text": ("a,b\n1,Rome\n2,\n", {}, r"'b' \(as Rome\): leave it out .'data.drop=\[b\]'"),
    "semicolons": (
        "a;b\n1;2\n",
        {"separator": ","},
        r"separated by ',', got one column 'a;b': .*separator=\";\"",
    ),
    "unknown": (GOOD, {"columns": ["c"]}, r"columns to be some of 'a', 'b', got 'c'"),
    "none": (GOOD, {"columns": []}, r"columns to be some of 'a', 'b', got none"),
    "word": (GOOD, {"columns": "a"}, "columns to be a list of names, got 'a'"),
    "twice": (GOOD, {"columns": ["a", "a"]}, r"each column once, got duplicates of 'a'"),
    "label": (GOOD, {"label": "c"}, r"label to be one of 'a', 'b', got 'c'"),
    "missing_word": (GOOD, {"missing": "drop"}, "missing to be 'raise' or 'nan', got 'drop'"),
    "constant": ("a,b\n" + "0.1,1\n" * 20, {}, r"columns that vary .* 'a', 'b': .*drop=\[a,b\]"),
    "empty_column": (
        "a,b\n" + "".join(f"{i},\n" for i in range(20)),
        {"missing": "nan"},
        r"columns that vary .* constant or empty 'b'",
    ),
    "infinite": ("a,b\n1,inf\n2,1\n3,1\n", {}, r"finite values, got infinite ones in columns 'b"),
    "long_row": ("a,b\n1,2,3\n4,5,6\n", {}, "to be a table, got more values than names"),
    "longer_row": ("a,b\n1,2\n4,5,6\n", {}, "to be a table, got 3 values in line 3 for 2 columns"),
    "empty": ("", {}, "to be a table, got a file without lines"),
    "no_rows": ("a,b\n", {}, "to have rows, got none"),
    "few_rows": ("a,b\n1,2\n2,1\n", {}, "leave rows for each part of 2, got valid=0.1, test=0.2"),
    "valid": (GOOD, {"valid": "a tenth"}, "valid to be a number of rows or a fraction of them"),
}


ROWS = "".join(f"{i},{i % 3},{i % 5}\n" for i in range(20))
TABLES |= {
    "unnamed": (
        "a,,b\n" + ROWS,
        {},
        r"name for each column .* 'Unnamed: 1', .*drop=\[\"Unnamed: 1\"\]'\), or",
    ),
    "trailing": ("a,b,\n" + ROWS, {}, "name for each column .* got 'Unnamed: 2'"),
    "no_header": (
        ROWS,
        {"standardize": False},
        "first line .* to name the columns, got the number 0",
    ),
    "no_header_reals": ("0.5,a,b\n" + ROWS, {}, "the number 0.5: write a line of names above it"),
    "no_header_negative": ("-1,a,b\n" + ROWS, {}, "the number -1"),
    "no_header_but_a_word": ("5.1,x,y\n" + ROWS, {"label": "y"}, "the number 5.1"),
    "double": ("a,a,b\n" + ROWS, {}, r"column once, got duplicates of 'a': rename .*drop=\[a\]"),
    "double_spaces": ("a, a,b\n" + ROWS, {}, r"each column once, got duplicates of 'a'"),
    "double_chosen": (
        "a,a,b\n" + ROWS,
        {"columns": ["a"]},
        r"each column once, got duplicates of 'a'",
    ),
    "double_label": ("a,a,b\n" + ROWS, {"label": "a"}, r"each column once, got dupl.* of 'a'"),
    "identifiers": (
        "a,b\n" + "".join(f"{2**60 + i},{i}\n" for i in range(20)),
        {},
        r"integers above 2\*\*53 in columns 'a', .*drop=\[a\]",
    ),
    "identifiers_with_gaps": (
        "a,b\n,1\n" + "".join(f"{-(2**60) - i},{i}\n" for i in range(20)),
        {"missing": "nan"},
        r"integers above 2\*\*53 in columns 'a'",
    ),
    "huge": (
        "a,b\n" + "".join(f"{i}e200,{i}\n" for i in range(20)),
        {},
        r"squares are finite, got larger ones in columns 'a'",
    ),
    "huge_as_they_are": (
        "a,b\n" + "".join(f"{i}e200,{i}\n" for i in range(20)),
        {"standardize": False},
        r"range of torch.float32, got larger ones in columns 'a'",
    ),
}


@pytest.mark.parametrize(
    ("text", "options", "columns"),
    [
        (",a,b\n" + ROWS, {"columns": ["b", "a"]}, ("b", "a")),
        (",a,b\n" + ROWS, {"columns": ["Unnamed: 0"]}, ("Unnamed: 0",)),
        ("0,1,2\n" + ROWS, {}, ("0", "1", "2")),
        ("2019,2020,2021\n" + ROWS, {"columns": [2019, 2021]}, ("2019", "2021")),
        ("name,2020,2021\n" + ROWS, {"label": "name"}, ("2020", "2021")),
        ("a,a,b\n" + ROWS, {"columns": ["b"]}, ("b",)),
        ("a,b,c\n" + ROWS + f"{2**53},1e300,3\n", {"columns": ["a", "c"]}, ("a", "c")),
        ("a,b\n" + "".join(f"{i}e20,{i}\n" for i in range(20)), {}, ("a", "b")),
        ("'=a,'+b,c\n" + ROWS, {}, ("=a", "+b", "c")),
        ("'=a,=a,c\n" + ROWS, {"columns": ["c"]}, ("c",)),
    ],
)
def test_what_resembles_a_mistake_can_be_read_by_naming_its_columns(
    tmp_path, text, options, columns
):
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert data.table(path, **options).columns == columns


def test_formulas_of_a_csv_are_read_as_they_were(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "a,'=b\n" + "".join(f"{i},{('=x', chr(39) + '=x', 'y')[i % 3]}\n" for i in range(30))
    )
    assert data.table(path, label="=b").label_names == ("=x", "y")
    kinds = ["''=x", "'s-Gravenhage", "y"]
    path.write_text("a,k\n" + "".join(f"{i},{kinds[i % 3]}\n" for i in range(30)))
    assert data.table(path, label="k").label_names == ("'=x", "'s-Gravenhage", "y")


def test_labels_of_64_bits_are_not_wrapped(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,k\n" + "".join(f"{i},{2**64 - 1 - i % 2}\n" for i in range(20)))
    assert data.table(path, label="k").label_names == (str(2**64 - 2), str(2**64 - 1))


def test_integers_of_64_bits_in_arrays_are_refused(tmp_path):
    ids = np.arange(20, dtype=np.uint64) + np.uint64(2**63)
    np.savez(tmp_path / "a.npz", rows=np.ones((20, 2)), ids=ids, wide=ids.reshape(10, 2))
    with pytest.raises(ValueError, match=r"Expected wide to be exact .* above 2\*\*53"):
        data.array(tmp_path / "a.npz", key="wide")
    with pytest.raises(ValueError, match="Expected ids to be signed 64-bit integers"):
        data.array(tmp_path / "a.npz", key="rows", labels_key="ids")


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_are_refused(name, tmp_path):
    text, options, message = TABLES[name]
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        data.table(path, **options)


@pytest.mark.parametrize("read", [data.table, data.array])
def test_paths_that_are_refused(read, tmp_path):
    suffix = ".csv" if read is data.table else ".npy"
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"bytes{suffix}").write_bytes(bytes(range(256)))
    for path, message in (
        (None, "Expected data.path to name a .* got None"),
        (tmp_path / f"none{suffix}", "Expected data.path to name a file.*is not a file"),
        (tmp_path / f"folder{suffix}", "Expected data.path to name a file.*is not a file"),
        (tmp_path / "rows.xlsx", "Expected data.path to name a .* file, got .*rows.xlsx"),
        (tmp_path / f"bytes{suffix}", f"Expected .*bytes{suffix}' to be a"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_an_array_of_pictures(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "p.npz", images=images, labels=np.arange(30))
    made = data.array(
        tmp_path / "p.npz", key="images", labels_key="labels", scale=255, valid=3, test=6
    )
    for rows, x, labels in zip(permuted(30, 3, 6), made.x, made.labels, strict=True):
        assert torch.equal(x, torch.tensor(images)[rows].unsqueeze(1) / 255)
        assert torch.equal(labels, rows)
    only = data.array(tmp_path / "p.npz", labels_key="labels", scale=255, binarize="threshold")
    assert torch.equal(torch.cat(only.x), (torch.cat(only.x) > 0).float())
    assert only.binarize == "threshold"


def test_values_that_no_protocol_takes_are_told_without_a_split_too(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(40.0).reshape(10, 4))
    with pytest.raises(ValueError, match="got values from 0 to 39"):
        data.array(tmp_path / "x.npy", binarize="fixed", valid=0, test=0)


def test_an_array_of_rows(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 7))
    np.save(tmp_path / "rows.npy", rows)
    made = data.array(tmp_path / "rows.npy", valid=3, test=6, seed=2)
    expected = torch.tensor(rows, dtype=torch.float32)
    for own, x in zip(permuted(30, 3, 6, seed=2), made.x, strict=True):
        assert torch.equal(x, expected[own])


ARRAYS = {
    "several": ({}, r"key to be one of \['gaps', 'rows', .* got None"),
    "unknown": ({"key": "pictures"}, "key to be one of .* got 'pictures'"),
    "labels": ({"key": "rows", "labels_key": "y"}, "labels_key to be one of .* got 'y'"),
    "label_rows": ({"key": "rows", "labels_key": "words"}, r"words to be integers of shape \(20,"),
    "gaps": ({"key": "gaps"}, "gaps to be finite, got 1 values that are not"),
    "words": ({"key": "words"}, "words to be an array of numbers, got dtype <U1"),
    "vector": ({"key": "vector"}, r"vector to be rows of values, got shape \(20,\)"),
    "scale": ({"key": "rows", "scale": 0}, "scale to be positive, got 0"),
    "range": ({"key": "rows", "binarize": "fixed"}, r"values in \[0, 1\] for .* from 0 to 59"),
    "protocol": ({"key": "rows", "binarize": "dither"}, "binarize to be 'none', .* got 'dither'"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_refused(name, tmp_path):
    options, message = ARRAYS[name]
    rows = np.arange(60.0).reshape(20, 3)
    gaps = rows.copy()
    gaps[4, 1] = np.nan
    np.savez(
        tmp_path / "a.npz", rows=rows, gaps=gaps, vector=np.arange(20), words=np.array(["a"] * 20)
    )
    with pytest.raises(ValueError, match=f"Expected {message}"):
        data.array(tmp_path / "a.npz", **options)


def test_pickled_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="intact file of arrays, got ValueError: Object arrays"):
        data.array(tmp_path / "o.npy")


@pytest.fixture
def faces(monkeypatch):
    """The file, which is found in the folder of the data by default."""
    if not (DATA / "frey_faces.npz").is_file():
        pytest.skip(f"no Frey Faces in {DATA}")
    monkeypatch.setenv("PYRO_VAE_DATA", str(DATA))
    return np.load(DATA / "frey_faces.npz")["images"]


def test_frey_faces_are_the_real_ones(faces):
    state = torch.get_rng_state()
    made = data.frey_faces()
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(part.shape) for part in made.x] == [
        (rows, 1, 28, 20) for rows in (1565, 200, 200)
    ]
    for rows, x in zip(permuted(1965, 200, 200), made.x, strict=True):
        assert torch.equal(x, (torch.tensor(faces)[rows].unsqueeze(1).float() + 0.5) / 256)
    closed = data.frey_faces(DATA / "frey_faces.npz", scale="closed")
    assert torch.equal((torch.cat(closed.x) * 255).round(), torch.cat(made.x) * 256 - 0.5)
    assert not torch.equal(data.frey_faces(seed=1).x.test, made.x.test)


def test_frey_faces_that_are_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "f.npz", images=np.zeros((10, 20, 28), np.uint8))
    np.savez(tmp_path / "g.npz", faces=np.zeros((10, 28, 20), np.uint8))
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    for options, message in (
        ({}, r"name a file, got '.*frey_faces\.npz', which is not a file"),
        ({"path": tmp_path / "f.npz"}, r"images, bytes of .* got uint8 of shape \(10, 20, 28\)"),
        ({"path": tmp_path / "g.npz"}, "images, bytes of shape .* got none"),
        ({"scale": "half"}, "scale to be 'open' or 'closed', got 'half'"),
    ):
        with pytest.raises(ValueError, match=message):
            data.frey_faces(**options)
