"""Text files and tables in memory as people have them: read right, or refused in one message."""

import bz2
import gzip
import lzma
import zipfile

import numpy as np
import pandas
import pytest
import torch

from pyro_vae import config, data, run
from pyro_vae.data import Column, Schema

UNSPLIT = {"valid": 0, "test": 0, "standardize": False}


def read(tmp_path, text, name="t.csv", **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return data.table(path, **{**UNSPLIT, **options})


def values(table):
    return table.x.train.tolist()


ROWS = "a,b\n1,2.5\n3,4.5\n5,7\n"
EXPECTED = [[1.0, 2.5], [3.0, 4.5], [5.0, 7.0]]

SAME = {
    "plain": ROWS,
    "byte order mark": "\ufeff" + ROWS,
    "utf-16": ROWS.encode("utf-16"),
    "utf-16 without mark": ROWS.encode("utf-16-le"),
    "semicolons": ROWS.replace(",", ";"),
    "tabs": ROWS.replace(",", "\t"),
    "bars": ROWS.replace(",", "|"),
    "spaces": "a  b\n1  2.5\n3  4.5\n5  7\n",
    "Excel": "sep=;\na;b\n1;2,5\n3;4,5\n5;7\n",
    "decimal commas": "a;b\n1;2,5\n3;4,5\n5;7\n",
    "quoted decimal commas": 'a,b\n1,"2,5"\n3,"4,5"\n5,7\n',
    "spaces after commas": "a, b\n1, 2.5\n3, 4.5\n5, 7\n",
    "trailing commas": "a,b,\n1,2.5,\n3,4.5,\n5,7,\n",
    "trailing commas of rows": "a,b\n1,2.5,\n3,4.5,\n5,7,\n",
    "Windows": ROWS.replace("\n", "\r\n"),
    "old Mac": ROWS.replace("\n", "\r"),
    "blank lines": "\n\na,b\n1,2.5\n\n3,4.5\n5,7\n\n",
    "comments": "# made, by hand\n# twice\na,b\n1,2.5\n3,4.5\n5,7\n",
    "comment and a blank line": "# made, by hand\n\na,b\n1,2.5\n3,4.5\n5,7\n",
    "comment as header": "#a,b\n1,2.5\n3,4.5\n5,7\n",
    "index": ",a,b\n0,1,2.5\n1,3,4.5\n2,5,7\n",
    "shuffled index": ",a,b\n7,1,2.5\n2,3,4.5\n5,5,7\n",
    "row names": '"","a","b"\n"x",1,2.5\n"y",3,4.5\n"z",5,7\n',
    "R": "a b\nx 1 2.5\ny 3 4.5\nz 5 7\n",
    "percent": "a,b\n1%,2.5\n3%,4.5\n5%,7\n",
    "currency": "a,b\n1,$2.50\n3,$4.50\n5,$7\n",
    "unit": "a,b\n1,2.5 kg\n3,4.5 kg\n5,7 kg\n",
    "exponents": "a,b\n1e0,25E-1\n3,4.5e+0\n5,7\n",
    "exponents with unit": "a,b\n1,2.5E+0 kg\n3,45e-1 kg\n5,7 kg\n",
    "quotes": '"a","b"\n"1","2.5"\n"3","4.5"\n"5","7"\n',
    "new line in a name": '"a","b\n(cm)"\n1,2.5\n3,4.5\n5,7\n',
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_numbers_are_read_from_each_form(tmp_path, name):
    table = read(tmp_path, SAME[name])
    assert values(table) == EXPECTED
    assert len(table.columns) == 2


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zip", "zip alone"])
def test_compressed_files(tmp_path, suffix):
    name = "t.zip" if suffix == "zip alone" else f"t.csv{suffix}"
    path = tmp_path / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner/", "")
            archive.writestr("inner/t.csv", ROWS)
            archive.writestr("__MACOSX/t.csv", "rubbish")
    else:
        compress = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress
        path.write_bytes(compress(ROWS.encode()))
    assert values(data.table(path, **UNSPLIT)) == EXPECTED


NUMBERS = {
    "thousands": ('"1,234.5"', '"12"', '"1,000,000"'),
    "points between thousands": ('"1.234,5"', '"12"', '"1.000.000"'),
    "apostrophes": ("1'234.5", "12", "1'000'000"),
    "narrow spaces": ("1\u202f234.5", "12", "1\u00a0000\u00a0000"),
    "euros": ('"€ 1.234,50"', '"€ 12,00"', '"€ 1.000.000,00"'),
    "euros behind": ('"1.234,50 €"', '"12,00 €"', '"1.000.000,00 €"'),
    "exponents with a sign": ("1.2345E+03 €", "1.2e1 €", "1e6 €"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_other_conventions(tmp_path, name):
    cells = NUMBERS[name]
    table = read(tmp_path, "a,b\n" + "".join(f"{cell},{i * i}\n" for i, cell in enumerate(cells)))
    assert [row[0] for row in values(table)] == [1234.5, 12.0, 1e6]


@pytest.mark.parametrize("cells", [
    ("-$5", "$6", "-$7"), ("$-5", "$6", "$-7"), ("-5 €", "6 €", "-7 €"),
    ("\u22125", "6", "\u22127"),
])  # fmt: skip
def test_signs_survive(tmp_path, cells):
    table = read(tmp_path, "a,b\n" + "".join(f"{cell},{i * i}\n" for i, cell in enumerate(cells)))
    assert [row[0] for row in values(table)] == [-5.0, 6.0, -7.0]


@pytest.mark.parametrize("mark", ["?", "-", ".", "..", "NA", "n.a.", "N/A", "NULL", "nan", "*", ""])
def test_marks_of_missing_values(tmp_path, mark):
    rows = "".join(
        f"{i},{mark if i == 3 else i * i},{mark if i == 4 else 'xyz'[i % 3]}\n" for i in range(12)
    )
    table = read(tmp_path, "a,b,c\n" + rows, missing="nan", mixed=True, real=["a"])
    missing = [
        (i, j) for i, row in enumerate(table.mask.train.tolist()) for j in range(3) if not row[j]
    ]
    assert missing == [(3, 1), (4, 2)]
    assert table.schema.columns[2].levels == ("x", "y", "z")
    with pytest.raises(ValueError, match=r"got 2 in 2 of 12 rows, in columns 'b', 'c'"):
        read(tmp_path, "a,b,c\n" + rows, mixed=True, real=["a"])


def test_declared_marks_are_numbers_too(tmp_path):
    for cells, mark in (
        (("1", "-999", "3.5"), -999),
        (("1,5", "-999,00", "3,5"), "-999"),
        (("1", "-999.0", "?"), -999),
        (("$1", "$-999", "$4"), -999),
    ):
        text = "a;b\n" + "".join(f"{cell};{i * i}\n" for i, cell in enumerate(cells))
        table = read(tmp_path, text, na=[mark], missing="nan")
        assert not table.mask.train[1, 0]
        assert table.mask.train[0, 0]


def test_a_minus_beside_a_plus_is_a_word(tmp_path):
    table = read(
        tmp_path, "a,b\n" + "".join(f"{i * i},{'+-'[i % 2]}\n" for i in range(12)), mixed=True
    )
    assert table.schema.columns[1] == Column("b", "binary", ("+", "-"))


def test_codes_keep_their_zeros(tmp_path):
    text = "zip,a\n" + "".join(f"{['01234', '1234', '90210'][i % 3]},{i * i}\n" for i in range(12))
    table = read(tmp_path, text, mixed=True)
    assert table.schema.columns[0].levels == ("01234", "1234", "90210")
    assert values(read(tmp_path, text, like=table.preparation)) == values(table)
    frame = pandas.DataFrame({"zip": ["01", "1", "10"] * 4, "a": np.arange(12.0) ** 2})
    own = data.table(frame, mixed=True, **UNSPLIT)
    assert own.schema.columns[0].levels == ("01", "1", "10")
    assert values(data.table(frame, like=own.preparation, **UNSPLIT)) == values(own)
    ordered = data.table(frame, ordinal={"zip": ["10", "01", "1"]}, **UNSPLIT)
    assert ordered.x.train[:3, 0].tolist() == [1, 2, 0]


KINDS = {
    "real": ([0.5, -1.25, 3, 8.5, 9.75, 1, 2, 4.5, 5, 6, 7, 11], "real"),
    "integers": ([-3, 5, 8, 2, 1, 9, 12, 15, 22, 30, 31, 7], "real"),
    "counts": ([0, 5, 8, 2, 1, 9, 12, 15, 22, 30, 31, 7], "count"),
    "few integers": ([1, 2, 3] * 4, "categorical"),
    "narrow integers": ([*range(200, 211), 205], "real"),
    "skewed": ([0.1, 0.2, 0.15, 0.3, 0.25, 0.4, 0.5, 0.35, 1.1, 3.0, 9.5, 40.2], "positive"),
    "two numbers": ([7, 9] * 6, "binary"),
    "booleans": ([True, False] * 6, "binary"),
    "words": (["x", "y", "z"] * 4, "categorical"),
    "ordered": (pandas.Categorical(["lo", "hi", "mid"] * 4, ["lo", "mid", "hi"], ordered=True),
                "ordinal"),
    "unordered": (pandas.Categorical(["lo", "hi", "mid"] * 4), "categorical"),
    "nullable": (pandas.array([0, None, 8, 2, 1, 9, 12, 15, 22, 30, 31, 7], "Int64"), "count"),
    "objects": ([0.5, 1.5, "2.5", 9, 8, 7, 6, 5, 4, 3, 2, 1], "real"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_inferred(name):
    column, kind = KINDS[name]
    frame = pandas.DataFrame({"a": column, "b": np.linspace(-1, 1, 12)})
    table = data.table(frame, mixed=True, missing="nan", **UNSPLIT)
    assert [c.kind for c in table.schema.columns] == [kind, "real"]


def test_few_numbers_that_repeat_are_categories():
    frame = pandas.DataFrame({"few": [17.5, 22, 27, 32.5] * 10, "rare": np.arange(40) // 5 + 0.5})
    table = data.table(frame, mixed=True, **UNSPLIT)
    assert [c.kind for c in table.schema.columns] == ["categorical", "real"]
    assert table.schema.columns[0].levels == ("17.5", "22", "27", "32.5")


def test_declared_kinds_win_and_take_any_name(tmp_path):
    text = "null;1.50;visits (n);on\n" + "".join(
        f"{i % 3};{i % 4};{i * i};{i % 2}\n" for i in range(24)
    )
    table = read(
        tmp_path,
        text,
        count=["visits (n)"],
        real=[None],
        ordinal=[1.5],
        categorical=["on"],
    )
    assert [c.kind for c in table.schema.columns] == ["real", "ordinal", "count", "categorical"]
    assert read(tmp_path, text, columns=[1.5, None], mixed=True).columns == ("1.50", "null")
    assert read(tmp_path, text, drop=[1.5, None], mixed=True).columns == ("visits (n)", "on")
    assert read(tmp_path, text, label=1.5, drop=[None]).columns == ("visits (n)", "on")


def test_labels_that_only_colour_may_have_gaps(tmp_path):
    table = read(tmp_path, "a,k\n1,x\n2,\n4,y\n8,x\n", label="k")
    assert table.label_names == ("x", "y", "missing")
    assert table.labels.train.tolist() == [0, 2, 1, 0]
    table = read(tmp_path, "a,k\n1,10\n2,\n4,9\n8,10\n", label="k")
    assert (table.label_names, table.labels.train.tolist()) == (
        ("9", "10", "missing"),
        [1, 2, 0, 1],
    )


def test_tables_without_a_header_and_with_totals(tmp_path):
    table = read(tmp_path, "1,2.5\n3,4.5\n5,7\n", header=False)
    assert (table.columns, values(table)) == (("column_0", "column_1"), EXPECTED)
    assert values(read(tmp_path, ROWS + "Total,14\n", skip_last=1)) == EXPECTED


def test_more_rows_to_leave_out_than_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"Expected .* to have rows, got none"):
        read(tmp_path, ROWS, skip_last=5)


def test_a_replacement_character_is_a_letter(tmp_path):
    words = ("K\ufffdln", "Zürich")
    text = "a,k\n" + "".join(f"{i * i},{words[i % 2]}\n" for i in range(12))
    table = read(tmp_path, text, mixed=True)
    assert table.schema.columns[1].levels == words
    assert "encoding" not in table.source


def test_windows_letters_and_the_note_of_what_was_found(tmp_path):
    text = "Größe;Stadt\n" + "".join(f"{i},5;{['Köln', 'Bern'][i % 2]}\n" for i in range(12))
    table = read(tmp_path, text.encode("cp1252"), mixed=True)
    assert table.columns == ("Größe", "Stadt")
    assert table.schema.columns[1].levels == ("Bern", "Köln")
    assert table.source.endswith(
        "2 columns, separated by semicolons, encoding cp1252, decimal commas"
    )


MANY = "".join(f"{i},{i * i},{'xyz'[i % 3]}\n" for i in range(30))
MIXED = {"mixed": True}
WRONG = {
    "ambiguous": ('a,b\n"1,234",2\n"2,345",3\n', {},
                  r"'1,234', which is ambiguous: set the decimal mark"),
    "contradictory": ('a;b\n1,5;2\n2.25;3\n', {}, "'2.25', which is ambiguous"),
    "points beside commas": ("a;b\n1.234;2,5\n2.777;3,5\n", {},
                             "decimals or thousands beside decimal commas"),
    "wrong decimal": ("a,b\n1.5,2\n2.5,3\n", {"decimal": ","},
                      "not a number with the decimal mark ','"),
    "euros": ("a;b\n1.234 €;1\n2.000 €;2\n7 €;5\n", {}, "'1.234 €', which is ambiguous"),
    "words among numbers": (ROWS + "much,3\n7,2\n", {},
                            r"such as 'much' in row 3: declare words .*na=\[much\]"),
    "brackets": (ROWS + "(5),3\n7,2\n", {}, r"such as '\(5\)' in row 3: write them as numbers"),
    "totals": (ROWS + "Total,14\n", {}, r"leave out the last rows \(data.skip_last=1\)"),
    "sums": ("a,b\n1,2\n3,4\n5,6\n9,12\n", {},
             r"the sums of the others in the last one.*skip_last=1"),
    "two last rows": (ROWS + "Mean,4\nSD,2\n", {}, r"data.skip_last=2"),
    "currencies": ("a,b\n$5,1\n€6,2\nx,5\n", {}, r"categorical values in 'a' \(as \$5\)"),
    "limits": ("a,b\n<1,1\n<2,2\n<3,5\n", {}, r"categorical values in 'a' \(as <1\)"),
    "dates": ("a,b\n2024-01-01,1\n2024-02-01,4\n", {},
              r"dates in 'a' \(as 2024-01-01\).*days since"),
    "dates, mixed": ("a,b\n01.02.2024,1\n03.02.2024,4\n", MIXED, r"no dates, got 'a'"),
    "times": ("a,b\n12:30,1\n13:30,4\n", MIXED, r"no dates, got 'a' \(as 12:30\)"),
    "constant, mixed": ("a,b\nx,1\nx,4\n", MIXED, r"'a' to vary, got only 'x'.*drop=\[a\]"),
    "empty, mixed": ("a,b\n,1\n,4\n", {**MIXED, "missing": "nan"}, "'a' to vary, got none"),
    "identifiers": ("a,b\n" + "".join(f"id{i},{i * i}\n" for i in range(30)), MIXED,
                    "'a' to repeat its words, got 30 different ones in 30 rows, such as 'id0'"),
    "row numbers": ("a,b\n" + "".join(f"{i},{i * i}\n" for i in range(30)), MIXED,
                    r"'a' to describe the rows, got their numbers from 0 to 29.*data.real=\[a\]"),
    "large integers": (f"a,b\n{2**53 + 1},1\n5,2\n7,9\n", MIXED, r"integers above 2\*\*53"),
    "large with gaps": (f"a,b\n{2**53 + 1},1\n,2\n7,9\n", {"missing": "nan"},
                        r"integers above 2\*\*53"),
    "large with marks": (f"a,b\n{2**53 + 1},1\n?,2\n7,9\n", {"missing": "nan"},
                         r"integers above 2\*\*53"),
    "close": ("a,b\n20200101,1\n20200102,2\n20200103,5\n", {},
              "differences torch.float32 represents"),
    "counts": (f"a,b\n{2**24 + 1},1\n5,2\n7,9\n", {"count": ["a"]},
               "'a' to be non-negative integers .* rounded"),
    "tiny": ("a,b\n1e-50,1\n2,2\n7,9\n", {"positive": ["a"]},
             "'a' to be positive in torch.float32"),
    "negative count": ("a,b\n-1,1\n5,2\n7,9\n", {"count": ["a"]},
                       "'a' to be non-negative .* got -1 in row 0"),
    "zero": ("a,b\n0,1\n5,2\n7,9\n", {"positive": ["a"]}, "'a' to be positive, got 0 in row 0"),
    "word as real": ("a,b\nx,1\ny,2\nz,9\n", {"real": ["a"]},
                     r"'a' to be numbers \(real\), got 'x'"),
    "three for binary": ("a,b\nx,1\ny,2\nz,9\n", {"binary": ["a"]},
                         "'a' to have two values .*, got 3"),
    "no order": ("a,b\nx,1\ny,2\nz,9\n", {"ordinal": ["a"]},
                 r"words in order.*data.ordinal=\{a: \[x,y,z\]\}"),
    "other level": ("a,b\nx,1\ny,2\nz,9\n", {"ordinal": {"a": ["x", "y"]}},
                    "the levels 'x', 'y', got 'z'"),
    "two kinds": (ROWS, {"real": ["a"], "count": ["a"]},
                  "one kind for each column, got real and count"),
    "unknown kind": (ROWS, {"real": ["c"]}, "the kinds of columns among 'a', 'b', got 'c'"),
    "not mixed": (ROWS, {"real": ["a"], "mixed": False},
                  "mixed=True .* got mixed=False and the kinds of 'a'"),
    "first row": ("1,5;2,5\n3,5;4\n5;7\n", {}, r"got the value '1,5': .*data.header=false"),
    "first row of words": ("x,2\ny,4\nx,7\n", MIXED,
                           "got 'x', which is a value of this column too"),
    "title": ("My report,\na,b\n1,2\n", {}, r"a name for each column .*'Unnamed: 1'"),
    "titles": ("My report,,\na,b,c\n1,2,3\n", {}, "got 'My report' alone, which may be a title"),
    "all left out": (ROWS, {"drop": ["a", "b"]},
                     "besides label and covariates, got none of 'a', 'b'"),
    "both": (ROWS, {"columns": ["a"], "drop": ["b"]}, "either columns or drop, got both"),
    "covariate": (ROWS, {"covariates": ["c"]}, "covariates among the columns 'a', 'b', got 'c'"),
    "ambiguous covariate": ('a;l\n1;1,234\n2;2,345\n3;3,456\n', {"covariates": ["l"]},
                            "covariate 'l', got '1,234', which is ambiguous"),
    "Excel file": (b"PK\x03\x04rubbish", {}, "to hold a table as text, got an Excel or zip file"),
    "gzip": (gzip.compress(ROWS.encode()), {}, "got a gzip file, whose name does not end in .gz"),
    "mixed encodings": ("größe,b\nä,1\nö,2\nü,3\n".encode() + b"\xe4,5\n", {},
                        r"text in one encoding, got 1 bytes that are not UTF-8"),
    "long rows": ("a,b\n1,2,3\n4,5,6\n", {}, "more values than names in each row"),
    "a long row": ("a,b\n1,2\n4,5,6\n", {}, "3 values in line 3 for 2 columns"),
    "nothing": ("", {}, "got a file without lines"),
    "names only": ("a,b\n", {}, "to have rows, got none"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tables_get_one_clear_error(tmp_path, name):
    text, options, message = WRONG[name]
    with pytest.raises(ValueError, match=f"Expected .*{message}") as caught:
        read(tmp_path, text, **options)
    assert len(str(caught.value)) < 600
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, Exception)


def test_there_are_forty_wrong_tables():
    assert len(WRONG) >= 40


def test_all_problems_are_in_one_message(tmp_path):
    rows = "".join(
        f"2024-01-{i + 1:02d},id{i},1,{2**60 + i},{i * i if i % 7 else ''},{'xy'[i % 2]},{i},{i}\n"
        for i in range(20)
    )
    with pytest.raises(ValueError, match="table without problems, got") as caught:
        read(tmp_path, "day,name,one,large,gap,word,double,double\n" + rows, mixed=True)
    message = str(caught.value)
    for part in (
        "Expected no dates, got 'day'",
        "column 'name' to repeat its words",
        "column 'one' to vary",
        "integers above 2**53 in columns 'large'",
        "got 3 in 3 of 20 rows, in columns 'gap'",
        "duplicates of 'double'",
    ):
        assert part in message
    line = message.splitlines()[-1]
    names = line.split("data.drop=[")[1].split("]")[0].split(",")
    assert set(names) == {"day", "name", "one", "large", "double"}
    # The line that is suggested is enough, besides the gaps.
    table = read(
        tmp_path, "day,name,one,large,gap,word,double,double\n" + rows, mixed=True,
        drop=names, missing="nan",
    )  # fmt: skip
    assert table.columns == ("gap", "word")


def test_the_remedies_of_messages_work_when_they_are_pasted(tmp_path, monkeypatch):
    """Each suggested setting is parsed by Hydra and accepted."""
    monkeypatch.chdir(tmp_path)
    for text, options in (
        ('x y,b\n"1,234",2\n"2,345",3\n"4,567",9\n', ["data.decimal=."]),
        ('x y,b\n"1,234",2\n"2,345",3\n"4,567",9\n', ['data.decimal=","']),
        (ROWS + "much,3\n7,2\n", ["data.na=[much]", "data.missing=nan"]),
        (ROWS + "Total,14\n", ["data.skip_last=1"]),
        ("1,2.5\n3,4.5\n5,7\n", ["data.header=false"]),
        ("a;b\n1;2\n3;4\n5;9\n", ['data.separator=";"']),
    ):
        (tmp_path / "t.csv").write_text(text)
        cfg = config.compose(["data=table", "data.path=t.csv", "data.valid=0", "data.test=0",
                              "out=.", *options])  # fmt: skip
        assert len(config.build(cfg.data).x.train)


def test_tables_of_other_libraries_and_of_none(tmp_path):
    class Foreign:
        def to_pandas(self):
            return pandas.DataFrame({"a": [1.0, 2.0, 4.0], "b": [1, 5, 9]})

    class Poor:
        def to_pandas(self):
            raise ImportError("pyarrow")

    assert values(data.table(Foreign(), **UNSPLIT)) == [[1, 1], [2, 5], [4, 9]]
    with pytest.raises(ValueError, match=r"a table that converts to pandas, .* another package"):
        data.table(Poor())
    with pytest.raises(ValueError, match="to have one name for each column"):
        data.table(
            pandas.DataFrame([[1, 2]], columns=pandas.MultiIndex.from_tuples([("a", 1), ("a", 2)]))
        )
    with pytest.raises(ValueError, match="to have columns, got none"):
        data.table(pandas.DataFrame())


def make_schema():
    return Schema((
        Column("a", "real", (), 1), Column("k", "categorical", ("x", "y", "z")),
        Column("n", "count"), Column("t", "binary", ("False", "True")),
        Column("p", "positive", (), 0),
    ))  # fmt: skip


def test_a_schema_encodes_and_decodes():
    schema = make_schema()
    table = {"a": [35.1, np.nan, 2.0], "k": ["z", None, "x"], "n": [3, 4, 0],
             "t": [True, False, True], "p": [1, 2, 3]}  # fmt: skip
    x = schema.encode(table)
    assert x.dtype == torch.float64
    # Through single precision too, in which the model computes.
    decoded = schema.decode(x.float())
    assert decoded["a"].tolist()[0] == 35.1
    assert decoded["k"].tolist() == ["z", None, "x"]
    assert decoded["n"].tolist() == [3, 4, 0]
    assert decoded["t"].tolist() == [True, False, True]
    assert schema.decode(torch.tensor([[1.0, 1.0, 2.0, 0.0, 0.3]]))["p"].tolist() == [1]
    assert Schema.from_list(schema.to_list()) == schema
    assert torch.equal(schema.encode(schema.decode(x)).nan_to_num(), x.nan_to_num())


@pytest.mark.parametrize(("change", "message"), [
    ({"k": ["w", "x", "y"]}, "column 'k' to have the levels 'x', .*, got 'w', first in row 0"),
    ({"n": [1.5, 2, 3]}, "column 'n' to be non-negative integers .* got 1.5 in row 0"),
    ({"a": ["x", "y", "z"]}, r"column 'a' to be numbers \(real\), got 'x'"),
    ({"a": None}, "columns 'a', 'k', 'n', 't', 'p', got none named 'a'"),
    ({"a": [1.0]}, "columns of equal length"),
])  # fmt: skip
def test_other_values_are_refused_by_a_schema(change, message):
    table = {"a": [1.0, 2.0, 3.0], "k": ["x"] * 3, "n": [1] * 3, "t": [True] * 3, "p": [1.0] * 3}
    table |= change
    table = {name: column for name, column in table.items() if column is not None}
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        make_schema().encode(table)


@pytest.mark.parametrize("code", [-1.0, 3.0])
def test_codes_of_no_level_are_refused(code):
    with pytest.raises(ValueError, match="Expected column 'k' to be codes of 3 levels, got"):
        make_schema().decode(torch.tensor([[0.0, code, 1.0, 0.0, 1.0]]))


def test_other_tables_are_read_like_the_first(tmp_path):
    rows = "".join(f"{i}.5,{'xyz'[i % 3]},{i * i}\n" for i in range(20))
    first = read(tmp_path, "a,k,n\n" + rows, mixed=True)
    other = read(tmp_path, "n;z;k;a\n7;1;z;1,5\n9;1;x;2,5\n", like=first.preparation)
    assert values(other) == [[1.5, 2, 7], [2.5, 0, 9]]
    assert other.schema == first.schema
    for text, options, message in (
        ("a,k\n1,x\n", {}, "without 'n'"),
        ("a,k,n\n1,w,3\n", {}, "'k' to have the levels .* got 'w'"),
        ("a,k,n\n1,x,-3\n", {}, "'n' to be non-negative"),
        ("a,k,n\n1,x,\n", {}, "no missing values"),
        (
            "a,k,n\n1,x,3\n",
            {"real": ["n"]},
            "the kinds of the training data, count for 'n', got real",
        ),
        ("a,k,n\n1,x,3\n", {"mixed": False}, "mixed=True as in like"),
        ("a,k,n\n1,x,3\n", {"drop": ["n"]}, "leave the columns of the training data"),
    ):
        with pytest.raises(ValueError, match=f"Expected .*{message}"):
            read(tmp_path, text, like=first.preparation, **options)


def test_a_run_chooses_mixed_columns_by_its_likelihood(tmp_path):
    (tmp_path / "t.csv").write_text("a,k\n" + "".join(f"{i}.5,{'xyz'[i % 3]}\n" for i in range(40)))
    quick = ["train.epochs=1", "evaluate.num_particles=5", "evaluate.elbo_particles=2",
             "vae.latent_dim=1", "evaluate.baseline_components=0"]  # fmt: skip
    table = ["data=table", f"data.path={tmp_path / 't.csv'}", *quick]

    def call(*overrides):
        return run.run(config.compose([*table, f"out={tmp_path / 'out'}", *overrides]))

    with pytest.raises(ValueError, match=r"model words too \(vae/likelihood=columns\)"):
        call("vae/likelihood=normal")
    with pytest.raises(ValueError, match=r"vae/likelihood=columns for a table of mixed columns"):
        call("vae/likelihood=normal", "data.categorical=[k]")
    with pytest.raises(
        ValueError, match=r"Expected a table \(data=table\) for vae/likelihood=columns"
    ):
        run.run(config.compose([*quick, "vae/likelihood=columns", f"out={tmp_path / 'out'}"]))
    assert not (tmp_path / "out").exists()
    call("vae/likelihood=columns", "data.ordinal=[a]")
    stored = data.Preparation.load(tmp_path / "out")
    assert [c.kind for c in stored.schema.columns] == ["ordinal", "categorical"]
