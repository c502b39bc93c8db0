"""The report says all that it is told, in one page that needs nothing else."""

import base64
import math
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imread
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from pyro_vae import plots, report
from pyro_vae.files import atomic
from pyro_vae.report.page import Figure, Metric, Report

VOID = {"meta", "link", "img", "br"}
ATTACK = "<img src=x onerror=alert(1)>\"'&amp;</title></style><script>1</script>"


class Page(HTMLParser):
    """A page taken apart: its tags in order, its text, and whether each tag is closed."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.style, self.open = [], [], "", []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def pictures():
    digits = load_digits()
    x = digits.images[:300] / 16
    flat = x.reshape(len(x), -1)
    pca = PCA(6).fit(flat)
    z = pca.transform(flat)
    again = pca.inverse_transform(z).reshape(x.shape)
    wide = Canvas(figsize=(8, 2), layout="constrained")
    plots.reconstructions(x[:10], again[:10], ax=wide.add_subplot())
    return [
        Figure("reconstructions.png", "Reconstructions", "Data above, means below.", wide),
        Figure("latent.png", "Latent space", "Means.", plots.latent(z, digits.target[:300]).figure),
        Figure("rates.png", "Rates", "KL by dimension.", plots.rates(z.var(0)).figure),
    ]


@pytest.fixture
def told(pictures):
    return Report(
        title="digits · Bernoulli likelihood",
        settings={"Data": "digits, binarized", "Prior": "Normal(latent_dim=6)", "Seed": "0"},
        metrics=[
            Metric("Log evidence", -18.2149, "nats per datum", 0.2351, "How well it predicts."),
            Metric("ELBO", -19.0, "nats per datum", None, "A lower bound."),
            Metric("Active units", 5, "", None, "Dimensions in use."),
        ],
        warnings=["One dimension is not used.", "The posterior is loose."],
        figures=pictures,
        history=[{"epoch": 1, "train_objective": -20.0}, {"epoch": 2, "train_objective": -19.5}],
    )


def text(told, folder):
    return Page(report.write(told, folder)).text


def test_the_page_says_everything(told, tmp_path):
    path = report.write(told, tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "report.html"
    page = Page(path)
    said = [told.title, *told.warnings, *told.settings, *told.settings.values()]
    said += [part for f in told.metrics for part in (f.name, f.unit, f.meaning)]
    said += [part for p in told.figures for part in (p.title, p.caption)]
    assert [part for part in said if part not in page.text] == []
    for number in ("−18.21 ± 0.24 nats per datum", "−19.00 nats per datum", "in use. 5"):
        assert number in page.text
    assert "The log evidence is −18.21 ± 0.24 nats per datum after 2 epochs of" in page.text
    order = [page.text.index(heading) for heading in ("Before you", "Metrics", "Figures", "Sett")]
    assert order == sorted(order)


def test_pictures_are_in_the_page_and_beside_it(told, tmp_path):
    page = Page(report.write(told, tmp_path))
    images = page.all("img")
    assert len(images) == len(told.figures)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {p.file for p in told.figures}
    for image, picture in zip(images, told.figures, strict=True):
        head, content = image["src"].split(",")
        file = tmp_path / "figures" / picture.file
        assert head == "data:image/png;base64"
        assert base64.b64decode(content, validate=True) == file.read_bytes()
        pixels = imread(file)
        assert pixels[..., :3].std() > 0.05
        size = np.round(picture.figure.get_size_inches() * 150)
        np.testing.assert_allclose(pixels.shape[1::-1], size, atol=1)
        assert (int(image["height"]), int(image["width"])) == pixels.shape[:2]
        assert image["alt"] == f"{picture.title}: {picture.caption}"
    wide = [attrs.get("class") for attrs in page.all("figure")]
    assert wide == ["wide", None, None]


def test_the_page_needs_nothing_else(told, tmp_path):
    path = report.write(told, tmp_path)
    page = Page(path)
    assert page.all("script") == []
    links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "srcset")]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert "://" not in path.read_text("utf-8")
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_page_suits_phones_and_the_dark(told, tmp_path):
    page = Page(report.write(told, tmp_path))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert "prefers-color-scheme: dark" in page.style
    assert page.all("html") == [{"lang": "en"}]


def test_no_text_is_taken_for_markup(told, tmp_path):
    metrics = [Metric(ATTACK, 1.0, ATTACK, 0.1, ATTACK)]
    figures = [told.figures[2]._replace(title=ATTACK, caption=ATTACK)]
    attack = Report(ATTACK, {ATTACK: ATTACK}, metrics, [ATTACK], figures, [])
    page = Page(report.write(attack, tmp_path))
    # <title>, the heading, the sentence (name and unit), a warning, three of the metric, two of
    # the figure and two of the setting.
    assert page.text.count(ATTACK[1:]) == 12
    assert len(page.all("img")) == 1
    assert page.all("img")[0]["alt"] == f"{ATTACK}: {ATTACK}"
    assert page.all("script") == []


def test_a_box_warns_only_where_there_is_something_to_warn_of(told, tmp_path):
    assert "Before you trust" in text(told, tmp_path)
    page = Page(report.write(told._replace(warnings=[]), tmp_path))
    assert "Before you trust" not in page.text
    assert "warnings" not in {attrs.get("class") for attrs in page.all("section")}


def test_a_report_may_be_all_but_empty(tmp_path):
    page = Page(report.write(Report("nothing", {}, [], [], [], []), tmp_path))
    assert page.text.count("nothing") == 2
    assert "No metric was computed." in page.text
    assert page.all("table") == page.all("img") == page.all("section") == []


@pytest.mark.parametrize(
    ("value", "unit", "error", "expected"),
    [
        (-18.2149, "nats per datum", 0.2351, "−18.21 ± 0.24"),
        (-18.2149, "nats per datum", 0.00312, "−18.215 ± 0.003"),
        (-1234.5678, "nats", 12.0, "−1,234.57 ± 12.00"),
        (-0.0012, "nats", None, "0.00"),
        (6, "nats", None, "6.00"),
        (7, "", None, "7"),
        (np.float64(112484.0), "", None, "112,484"),
        (0.0012345, "bits per dimension", None, "0.00123"),
        (12345.678, "s", None, "12,346"),
        (0.0, "share", None, "0"),
        (-math.inf, "nats", None, "−∞"),
        (math.inf, "", None, "∞"),
        (None, "nats", 0.1, "not available"),
        (math.nan, "nats", None, "not available"),
        (math.nan, "", None, "not available"),
        (-1.5, "nats", math.nan, "−1.50 ± not available"),
        (-1.5, "nats", 0.0, "−1.50 ± 0.00"),
        (-1.5, "nats", 1e-12, "−1.500000 ± 0.000000"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value, unit, error, expected, tmp_path):
    told = Report("t", {}, [Metric("First", value, unit, error, "Its meaning.")], [], [], [])
    known = expected != "not available"
    unit = f" {unit}" if unit and known else ""
    said = text(told, tmp_path)
    assert f"The first is {expected}{unit}." in said
    assert f"Its meaning. {expected}{unit} Generated" in said
    assert "nan" not in said.lower()


def test_a_failure_leaves_the_report_before_it_whole(told, tmp_path, monkeypatch):
    path = report.write(told, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    changed = told._replace(title="changed", figures=told.figures[::-1])

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(OSError, match="disk full"):
            report.write(changed, tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before
    report.write(changed, tmp_path)
    assert "changed" in Page(path).text


def test_a_page_appears_only_when_it_is_whole(told, tmp_path, monkeypatch):
    moved = []

    def watched(source, target):
        assert not Path(target).exists()
        assert Path(source).parent == Path(target).parent
        moved.append(Path(target).name)
        os.rename(source, target)

    monkeypatch.setattr(atomic.os, "replace", watched)
    report.write(told, tmp_path)
    assert moved == [*(p.file for p in told.figures), "report.html"]


@pytest.mark.parametrize("file", ["../x.png", "a/b.png", "x.jpg", ".png", ".x.png", "", "x.png\n"])
def test_pictures_stay_in_their_folder(file, told, tmp_path):
    bad = told._replace(figures=[told.figures[0]._replace(file=file)])
    with pytest.raises(ValueError, match="Expected file to be a unique plain name"):
        report.write(bad, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pictures_do_not_overwrite_each_other(told, tmp_path):
    twice = told._replace(figures=[told.figures[0], told.figures[0]])
    with pytest.raises(ValueError, match=r"got 'reconstructions\.png'"):
        report.write(twice, tmp_path)


def test_pyplot_knows_none_of_the_figures(told, tmp_path):
    mine = plt.figure()
    report.write(told, tmp_path)
    assert plt.get_fignums() == [mine.number]
    plt.close(mine)


def test_a_figure_of_noise_is_embedded_as_jpeg(told, tmp_path):
    noise = Canvas(figsize=(6, 6))
    noise.add_axes((0, 0, 1, 1)).imshow(np.random.default_rng(0).random((900, 900, 3)))
    page = Page(
        report.write(told._replace(figures=[Figure("noise.png", "N", "C", noise)]), tmp_path)
    )
    assert page.all("img")[0]["src"].startswith("data:image/jpeg")
    size = (tmp_path / "figures" / "noise.png").stat().st_size
    assert len(page.all("img")[0]["src"]) < size / 2
