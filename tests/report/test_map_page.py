"""The map of a report in a browser: hovers, taps, drags and keys, beside tensors of the run."""

import importlib

import numpy as np
import pandas
import pytest
import torch

from pyro_vae import config, data, evaluate, load
from pyro_vae.run.experiment import run

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FAST = [
    "train.epochs=3", "train.compile=false", "evaluate.num_particles=10",
    "evaluate.elbo_particles=2", "evaluate.baseline_components=0",
]  # fmt: skip
ATTACK = "</script><b>x"
PIXELS = """title => {
  const box = [...document.querySelectorAll("#views > div")]
    .find(one => one.querySelector("h4").textContent === title);
  const canvas = box.querySelector("canvas");
  const copy = new OffscreenCanvas(canvas.width, canvas.height)
    .getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  return [...data].filter((_, index) => index % 4 === 0);
}"""
CIRCLE = """row => {
  const box = document.querySelectorAll("#map .points circle")[row].getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}"""


@pytest.fixture(scope="module")
def browser():
    with importlib.import_module("playwright.sync_api").sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


def train(out, *words):
    threads = torch.get_num_threads()
    run(config.compose([*FAST, f"out={out}", *words]))
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return train(tmp_path_factory.mktemp("digits"), "vae.latent_dim=2", "train.epochs=25")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({ATTACK: rng.normal(50, 5, 90), "b": rng.choice(["<i>u", "v"], 90)})
    frame.to_csv(folder / "t.csv", index=False)
    words = ["data=table", f"data.path={folder / 't.csv'}", "vae/likelihood=columns"]
    return train(folder / "run", "vae.latent_dim=2", *words), frame


@pytest.fixture
def visit(browser):
    """Opens a report, and fails if it complains or asks for anything."""
    pages, complaints, requests = [], [], []

    def opened(folder, width=1280, javascript=True, touch=False):
        page = browser.new_page(
            viewport={"width": width, "height": 900},
            java_script_enabled=javascript,
            has_touch=touch,
        )
        pages.append(page)
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request))
        page.goto((folder / "report.html").as_uri())
        if javascript:
            page.wait_for_selector("html[data-ready]", state="attached")
            page.locator("#map").scroll_into_view_if_needed()
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
    asked = [one.url for one in requests if not one.is_navigation_request()]
    assert [url for url in asked if not url.startswith("data:")] == []


def get_pixels(page, title):
    return np.array(page.evaluate(PIXELS, title)).reshape(8, 8)


def to_bytes(x):
    return x.detach().clamp(0, 1).reshape(8, 8).numpy() * 255


def find_isolated_row(z):
    """Returns the row with the farthest neighbour, which a pointer hits for certain."""
    return int(torch.cdist(z, z).fill_diagonal_(torch.inf).amin(1).argmax())


def interpolate(page, vae, place):
    """Returns the image at a point, by bilinear interpolation between points of the grid."""
    ranges = page.evaluate('JSON.parse(document.getElementById("map-data").textContent).ranges')
    nodes = [np.linspace(low, high, 21) for low, high in ranges]
    first = [int(np.searchsorted(n, value)) - 1 for n, value in zip(nodes, place, strict=True)]
    total = 0.0
    for i in (first[0], first[0] + 1):
        for j in (first[1], first[1] + 1):
            steps = [n[1] - n[0] for n in nodes]
            near = abs(nodes[0][i] - place[0]) / steps[0], abs(nodes[1][j] - place[1]) / steps[1]
            z = torch.tensor([[nodes[0][i], nodes[1][j]]], dtype=torch.float)
            total = total + (1 - near[0]) * (1 - near[1]) * to_bytes(vae.decode(z).mean)
    return total


def get_place(page, x, y):
    """Returns the point of the latent space at a position in the window."""
    return page.evaluate(
        """([x, y]) => {
      const { ranges } = JSON.parse(document.getElementById("map-data").textContent);
      const box = document.getElementById("map").getBoundingClientRect();
      const place = [(x - box.x) * 440 / box.width, (y - box.y) * 440 / box.height];
      const share = [(place[0] - 46) / (432 - 46), (398 - place[1]) / (398 - 8)];
      return ranges.map(([low, high], axis) => low + share[axis] * (high - low));
    }""",
        [x, y],
    )


def test_a_hover_shows_a_row_with_its_reconstruction_label_and_evidence(visit, digits):
    page, vae, rows = visit(digits), load(digits), data.digits()
    x = rows.x.test
    row = find_isolated_row(evaluate.posterior_means(vae, x))
    page.mouse.move(*page.evaluate(CIRCLE, row))
    facts = page.locator("#facts").text_content()
    held_out = pandas.read_csv(digits / "held_out.csv")
    evidence = f"{held_out.log_evidence[row]:.4g}".replace("-", "\N{MINUS SIGN}")
    number, label = rows.row_numbers.test[row].item(), rows.labels.test[row].item()
    assert facts == f"Row {number}, label {label}, log evidence {evidence} nats"
    np.testing.assert_array_equal(get_pixels(page, "Datum"), to_bytes(x[row]))
    fitted = to_bytes(vae.reconstruct(x[row : row + 1]))
    np.testing.assert_allclose(get_pixels(page, "Reconstruction"), fitted, atol=1)


def test_a_drag_decodes_the_point_under_the_pointer(visit, digits):
    page, vae = visit(digits), load(digits)
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    shown = [get_pixels(page, "Decoded")]
    for share in ((0.3, 0.4), (0.75, 0.62), (0.52, 0.17)):
        x, y = box["x"] + share[0] * box["width"], box["y"] + share[1] * box["height"]
        page.mouse.move(x, y)
        place = get_place(page, x, y)
        shown.append(get_pixels(page, "Decoded"))
        # The canvas rounds each of the four parts to a byte.
        np.testing.assert_allclose(shown[-1], interpolate(page, vae, place), atol=5)
        decoded = to_bytes(vae.decode(torch.tensor([place])).mean)
        assert np.abs(shown[-1] - decoded).mean() < 4
        assert np.abs(shown[-1] - shown[-2]).mean() > 12
    page.mouse.up()
    before = shown[-1]
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
    np.testing.assert_array_equal(get_pixels(page, "Decoded"), before)


def test_a_tap_shows_the_row_and_decodes_its_place_at_the_width_of_a_phone(visit, digits):
    page, vae = visit(digits, width=390, touch=True), load(digits)
    x = data.digits().x.test
    row = find_isolated_row(evaluate.posterior_means(vae, x))
    place = page.evaluate(CIRCLE, row)
    page.touchscreen.tap(*place)
    np.testing.assert_array_equal(get_pixels(page, "Datum"), to_bytes(x[row]))
    expected = interpolate(page, vae, get_place(page, *place))
    np.testing.assert_allclose(get_pixels(page, "Decoded"), expected, atol=5)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_keys_choose_rows_and_move_the_decoded_point(visit, digits):
    page, vae = visit(digits), load(digits)
    page.locator("#map").focus()
    first = page.locator("#facts").text_content()
    center = """() => ["cx", "cy"].map(name =>
        Number(document.querySelector("#map .chosen").getAttribute(name)))"""
    x, y = page.evaluate(center)
    direction = "ArrowLeft" if x > 239 else "ArrowRight"
    page.keyboard.press(direction)
    moved = page.evaluate(center)
    assert (moved[0] < x) == (direction == "ArrowLeft")
    assert abs(moved[1] - y) <= abs(moved[0] - x)
    assert page.locator("#facts").text_content() != first
    for _ in range(30):
        page.keyboard.press("Shift+ArrowDown")
        page.keyboard.press("Shift+ArrowLeft")
    ranges = page.evaluate('JSON.parse(document.getElementById("map-data").textContent).ranges')
    corner = torch.tensor([[ranges[0][0], ranges[1][0]]])
    expected = to_bytes(vae.decode(corner).mean)
    np.testing.assert_allclose(get_pixels(page, "Decoded"), expected, atol=1)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_table_shows_its_words_which_are_no_markup(visit, table, width):
    folder, frame = table
    page = visit(folder, width)
    number = int(page.locator("#facts").text_content().split(",")[0].removeprefix("Row "))
    cells = page.locator("#views tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert [row[0] for row in cells] == [ATTACK, "b"]
    assert float(cells[0][1]) == pytest.approx(frame[ATTACK][number], rel=1e-5)
    assert cells[1][1] == frame["b"][number]
    assert page.locator("#map-section b, #map-section i").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    selected = data.table(folder.parent / "t.csv", mixed=True)
    row = selected.row_numbers.test.tolist().index(number)
    means = load(folder).reconstruct(selected.x.test[row : row + 1])[0]
    assert float(cells[0][2].replace("\N{MINUS SIGN}", "-")) == pytest.approx(
        means[0].item(), rel=1e-3
    )


def test_without_javascript_the_figures_remain(visit, digits):
    page = visit(digits, javascript=False)
    assert not page.locator("#map-section").is_visible()
    assert page.get_by_role("heading", name="Latent space").is_visible()
