"""The page of a comparison in a browser: what it shows, and that it asks for nothing."""

import importlib
import json
from pathlib import Path

import pytest
from filelock import FileLock

from helpers import compare_runs
from pyro_vae.cli.compare import main

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VALUES = [-20 + i % 2 + (2, 10)[i // 2 % 2] / 4 + i // 4 / 8 for i in range(16)]
ATTACK = "<img src=x onerror=window.attacked=1>"
LOG_EVIDENCE = (
    "document.querySelectorAll('#table .tabulator-cell[tabulator-field=\"log_evidence\"]')"
)
POINTS = """id => echarts.getInstanceByDom(document.getElementById(id)).getOption().series
    .flatMap(one => one.data).filter(point => point && point.id !== undefined).length"""
BRUSH = """([axis, low, high]) => {
  const chart = echarts.getInstanceByDom(document.getElementById("parallel"));
  const parallelAxisId = chart.getModel().getComponent("parallelAxis", axis).id;
  const intervals = low === null ? [] : [[low, high]];
  chart.dispatchAction({ type: "axisAreaSelect", parallelAxisId, intervals });
}"""


def sync_api():
    """Returns Playwright, which only the tests of this file need."""
    return importlib.import_module("playwright.sync_api")


def expect(locator):
    """Returns what waits until something is true of a part of the page."""
    return sync_api().expect(locator)


@pytest.fixture(scope="module")
def browser():
    with sync_api().sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The page of sixteen runs of two priors, two sizes and four seeds."""
    root = tmp_path_factory.mktemp("small")
    for index in range(16):
        prior, size, seed = ("Normal", "Vamp")[index % 2], (2, 10)[index // 2 % 2], index // 4
        settings = {"vae.prior._target_": f"pyro_vae.priors.{prior}", "vae.latent_dim": size}
        value = -20 + index % 2 + size / 4 + seed / 8
        metrics = {
            "log_evidence": value,
            "elbo": value - 0.5,
            "rate": 2.0 + seed,
            "distortion": 15.0,
        }
        compare_runs.write(root / f"r{index:02}", settings | {"seed": seed}, metrics, pictures=True)
    assert main([str(root)]) == 0
    return root / "comparison.html"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The page of five hundred runs of all states."""
    root = compare_runs.big(tmp_path_factory.mktemp("large"))
    (root / f"{12:012x}" / "metrics.json").write_text("{")
    running = root / f"{13:012x}"
    (running / "metrics.json").unlink()
    with FileLock(running / ".lock"):
        assert main([str(root)]) == 0
    return root / "comparison.html"


@pytest.fixture
def visit(browser):
    """Opens a page, and fails if it complains or asks for anything."""
    pages, complaints, requests = [], [], []

    def opened(path, width=1280, scheme="light", javascript=True, touch=False):
        page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=javascript,
            has_touch=touch,
            is_mobile=touch,
        )
        pages.append(page)
        page.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request))
        page.goto(path.as_uri())
        if javascript:
            page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
    asked = [request.url for request in requests if not request.is_navigation_request()]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == []


def evidences(page):
    """Returns the log evidences in the rows in sight."""
    texts = page.evaluate(f"[...{LOG_EVIDENCE}].map(cell => cell.textContent)")
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts if text != "–"]


def head(page, field):
    return page.locator(f'#table .tabulator-col[tabulator-field="{field}"]')


def choose(page, name, level):
    """Filters the table by the level of a factor."""
    page.get_by_label(f"Filter by {name}", exact=True).select_option(label=level)


def shown(page, number, total):
    """Waits until so many runs are shown, and the plots have followed."""
    expect(page.locator("#count")).to_have_text(f"{number} of {total} runs shown")
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def points(page, plot):
    return page.evaluate(POINTS, plot)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_its_window(visit, small, width, scheme):
    page = visit(small, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert points(page, "plane") == points(page, "strip") == points(page, "parallel") == 16
    images = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert images == [4] * 4


MEASURE = """() => {
  const width = document.documentElement.clientWidth;
  const box = (one) => one.getBoundingClientRect();
  const seen = (one) => box(one).width > 0 && getComputedStyle(one).visibility !== "hidden";
  const all = (query) => [...document.querySelectorAll(query)].filter(seen);
  const name = (one) => one.outerHTML.slice(0, 80);
  const hasText = (one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const blocks = all("section > *, .pictures > *, section, header > *");
  const overlaps = blocks.filter((one) => {
    const next = one.nextElementSibling;
    if (!next || !seen(next)) return false;
    return box(next).top < box(one).bottom - 1 && box(next).left < box(one).right - 1;
  });
  return {
    page: document.documentElement.scrollWidth - width,
    beyond: all("main *").filter((one) => box(one).right > width + 1)
      .filter((one) => !one.closest(".scroll, #table, pre")).map(name),
    font: Math.min(
      ...all("main *").filter(hasText).map((one) => parseFloat(getComputedStyle(one).fontSize))),
    overlaps: overlaps.map(name),
    control: Math.min(...all("button, select, input, summary").map((one) => box(one).height)),
    cropped: all(".plot canvas")
      .filter((one) => box(one).width > box(one.closest(".plot")).width + 1).map(name),
  };
}"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The page of four factors with long levels, two sets, a failure and a study."""
    root = tmp_path_factory.mktemp("wide")
    for index in range(24):
        name = ("IWAE", "ELBO")[index // 12]
        settings = {
            "vae.prior._target_": f"pyro_vae.priors.{('Normal', 'Mixture', 'Vamp')[index % 3]}",
            "vae.encoder.hidden": [200, 200 + index % 2, 100, 100],
            "optimizer.lr": 0.0012345678901 * (1 + index // 3 % 4),
            "objective._target_": f"pyro_vae.objectives.{name}",
            "objective.num_particles": 5 if name == "IWAE" else 1,
            "data._target_": f"pyro_vae.data.{('digits', 'moons')[index % 7 == 0]}",
        }
        metrics = {"log_evidence": -20.0 - index, "data": ("digits", "moons")[index % 7 == 0]}
        compare_runs.write(root / f"{index:012x}", settings, metrics)
    compare_runs.write(root / "bad", settings, state="failed", reason="a word " * 60)
    trials = [
        {"number": n, "state": "finished", "values": [-20.0 - n], "folders": [],
         "params": {"optimizer.lr": 0.00123, "vae/prior": "normal"}}
        for n in range(3)
    ]  # fmt: skip
    study = {
        "study": "mine", "objectives": ["log_evidence"], "directions": ["maximize"], "best": [0],
        "trials": trials, "importances": {"log_evidence": {"optimizer.lr": 0.7, "vae/prior": 0.3}},
    }  # fmt: skip
    (root / "study.json").write_text(json.dumps(study))
    assert main([str(root)]) == 0
    return root / "comparison.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_readable_on_a_phone_and_on_a_desk(visit, wide, width):
    page = visit(wide, width, touch=width == 390)
    measured = page.evaluate(MEASURE)
    least = measured.pop("control")
    assert measured.pop("font") >= 12
    assert measured == {"page": 0, "beyond": [], "overlaps": [], "cropped": []}
    assert least >= (44 if width == 390 else 24)


def test_a_touch_shows_a_run_and_a_swipe_along_an_axis_selects(visit, small):
    page = visit(small, 390, touch=True)
    page.locator("#plane").scroll_into_view_if_needed()
    box = page.locator("#plane").bounding_box()
    where = page.evaluate(
        """() => {
      const chart = echarts.getInstanceByDom(document.getElementById("plane"));
      return chart.convertToPixel({ seriesIndex: 0 }, chart.getOption().series[0].data[0].value);
    }"""
    )
    page.touchscreen.tap(box["x"] + where[0], box["y"] + where[1])
    expect(page.locator("#detail")).to_be_in_viewport()
    page.locator("#parallel").scroll_into_view_if_needed()
    box = page.locator("#parallel").bounding_box()
    session = page.context.new_cdp_session(page)
    x, y = box["x"] + 52, box["y"] + 60
    for kind, move in [("Start", 0), *(("Move", 8 * n) for n in range(1, 8)), ("End", None)]:
        points = [] if move is None else [{"x": x, "y": y + move}]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    expect(page.locator("#count")).to_have_text("8 of 16 runs shown")


def test_a_click_sorts(visit, small):
    page = visit(small)
    assert evidences(page) == sorted(evidences(page), reverse=True)
    title = head(page, "log_evidence").locator(".tabulator-col-title").first
    title.click()
    expect(head(page, "log_evidence")).to_have_attribute("aria-sort", "ascending")
    assert evidences(page) == sorted(evidences(page))
    assert len(evidences(page)) == 16


def test_a_factor_that_is_a_number_sorts_by_size(visit, small):
    page = visit(small)
    place = page.evaluate(
        'JSON.parse(data.textContent).factors.findIndex(f => f.name == "latent_dim")'
    )
    head(page, f"f{place}").locator(".tabulator-col-title").first.click()
    cells = page.locator(f'#table .tabulator-cell[tabulator-field="f{place}"]')
    assert cells.all_text_contents() == ["2"] * 8 + ["10"] * 8


def test_a_filter_counts_and_the_plots_follow(visit, small):
    page = visit(small)
    choose(page, "prior", "Vamp")
    shown(page, 8, 16)
    assert points(page, "plane") == points(page, "strip") == 8
    choose(page, "latent_dim", "10")
    shown(page, 4, 16)
    page.get_by_role("button", name="Clear filters").click()
    shown(page, 16, 16)
    assert points(page, "plane") == 16


@pytest.mark.parametrize(
    ("written", "passes"),
    [
        (">-17.5", lambda value: value > -17.5),
        (">= -17.5", lambda value: value >= -17.5),
        ("-17.5", lambda value: value >= -17.5),
        ("< -18", lambda value: value < -18),
        ("-18.25 .. -17.5", lambda value: -18.25 <= value <= -17.5),
        ("\N{MINUS SIGN}17.5..-17", lambda value: -17.5 <= value <= -17),
        ("> ", lambda value: True),
        ("-", lambda value: True),
        (">100", lambda value: False),
    ],
)
def test_a_figure_is_filtered_by_its_size(visit, small, written, passes):
    page = visit(small)
    page.get_by_label("Filter by Log evidence", exact=True).fill(written)
    number = sum(map(passes, VALUES))
    shown(page, number, 16)
    assert points(page, "strip") == number
    assert len(evidences(page)) == number


def test_a_factor_groups_the_plots(visit, small):
    page = visit(small)
    names = """() => echarts.getInstanceByDom(document.getElementById("plane")).getOption()
        .series.map(one => one.name).slice(0, -1)"""
    for factor, levels in {"prior": ["Normal", "Vamp"], "latent_dim": ["2", "10"]}.items():
        page.get_by_label("Factor", exact=True).select_option(label=factor)
        assert page.evaluate(names) == levels


def test_a_mean_of_the_strip_is_over_seeds(visit, small):
    page = visit(small)
    page.get_by_label("Factor", exact=True).select_option(label="prior")
    found = page.evaluate(
        """() => echarts.getInstanceByDom(document.getElementById("strip")).getOption()
        .series[1].data"""
    )
    # Means of seeds are -18.5 + seed / 8: their mean is 3 / 16 more, and their error 0.0807.
    assert found[0] == [0, pytest.approx(-18.3125), pytest.approx(0.0806872)]
    assert found[1] == [1, pytest.approx(-17.3125), pytest.approx(0.0806872)]


def test_a_brush_filters_the_table(visit, small):
    page = visit(small)
    factors = page.evaluate("JSON.parse(data.textContent).factors.length")
    page.evaluate(BRUSH, [factors, -17.4, 0])
    shown(page, 7, 16)
    assert min(evidences(page)) > -17.4
    assert points(page, "plane") == 7
    choose(page, "prior", "Normal")
    shown(page, 3, 16)
    page.evaluate(BRUSH, [factors, None, None])
    shown(page, 8, 16)


def test_a_drag_along_an_axis_brushes(visit, small):
    page = visit(small)
    page.locator("#parallel").scroll_into_view_if_needed()
    box = page.locator("#parallel").bounding_box()
    where = page.evaluate(
        """() => {
      const chart = echarts.getInstanceByDom(document.getElementById("parallel"));
      const layout = chart.getModel().getComponent("parallel").coordinateSystem;
      return layout.dataToPoint(-17.0, layout.dimensions.at(-3));
    }"""
    )
    x, y = box["x"] + where[0], box["y"] + where[1]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 40, steps=4)
    page.mouse.move(x, box["y"] + 46, steps=8)
    page.mouse.up()
    expect(page.locator("#count")).not_to_have_text("16 of 16 runs shown")
    assert min(evidences(page)) >= -17.05


def test_a_click_on_a_point_shows_its_run(visit, small):
    page = visit(small)
    page.locator("#strip").scroll_into_view_if_needed()
    where = page.evaluate(
        """() => {
      const chart = echarts.getInstanceByDom(document.getElementById("strip"));
      const point = chart.getOption().series[0].data.find(one => one.id === 5);
      return chart.convertToPixel({ seriesIndex: 0 }, point.value);
    }"""
    )
    page.locator("#strip").click(position={"x": where[0], "y": where[1]})
    detail = page.locator("#detail")
    expect(detail).to_contain_text("r05")
    assert detail.get_by_role("link").get_attribute("href") == "r05/report.html"


def test_a_run_links_to_its_report(visit, small):
    page = visit(small)
    page.locator("#table").get_by_role("link", name="r15").click()
    page.wait_for_url("**/r15/report.html")


def test_the_table_is_saved(visit, small):
    page = visit(small)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download csv").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert len(lines) == 17
    assert '"prior"' in lines[0]


def test_it_says_all_but_the_table_without_javascript(visit, small):
    page = visit(small, javascript=False)
    expect(page.locator("noscript")).to_be_attached()
    assert "need JavaScript" in page.content()
    expect(page.get_by_role("heading", name="Paired differences")).to_be_visible()
    expect(page.locator("#table")).to_be_hidden()


@pytest.mark.parametrize("states", [["failed"], ["finished"], ["finished", "interrupted"]])
def test_few_runs_are_shown_too(visit, tmp_path, states):
    for index, state in enumerate(states):
        compare_runs.write(tmp_path / str(index), {"seed": index}, state=state)
    assert main([str(tmp_path)]) == 0
    page = visit(tmp_path / "comparison.html")
    shown(page, len(states), len(states))
    assert page.locator("#plots").is_visible() == ("finished" in states)


def test_hostile_text_does_nothing(visit, tmp_path):
    settings = {"vae.prior._target_": ATTACK, f"vae.{ATTACK}": ATTACK}
    compare_runs.write(tmp_path / ATTACK.replace("/", ""), settings)
    compare_runs.write(tmp_path / "1", {f"vae.{ATTACK}": "b"}, {"data": ATTACK})
    compare_runs.write(tmp_path / "2", settings | {"seed": 1})
    compare_runs.write(tmp_path / "3", {"seed": 1}, state="failed", reason=ATTACK)
    assert main([str(tmp_path)]) == 0
    page = visit(tmp_path / "comparison.html")
    where = page.evaluate(
        """() => {
      const chart = echarts.getInstanceByDom(document.getElementById("strip"));
      return chart.convertToPixel({ seriesIndex: 0 }, chart.getOption().series[0].data[0].value);
    }"""
    )
    page.locator("#strip").hover(position={"x": where[0], "y": where[1]})
    page.locator("#strip").click(position={"x": where[0], "y": where[1]})
    expect(page.locator("#detail")).to_contain_text(ATTACK)
    expect(page.locator("#table")).to_contain_text(ATTACK)
    assert page.evaluate("[window.attacked, document.images.length]") == [None, 0]


def test_five_hundred_runs(visit, large):
    page = visit(large)
    opening = page.evaluate("performance.now()")
    shown(page, 500, 500)
    assert page.locator("#table .tabulator-row").count() < 100
    states = page.get_by_label("Filter by State", exact=True).locator("option")
    assert set(states.all_text_contents()) == {
        "all", "finished", "failed", "running", "interrupted", "unreadable",
    }  # fmt: skip
    # The largest of the two sets only: the plots never mix them.
    assert points(page, "plane") < 450

    settle = "await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));"
    sorting = page.evaluate(
        f"""async () => {{ const start = performance.now();
        document.querySelector('[tabulator-field="log_evidence"] .tabulator-col-title').click();
        {settle} return performance.now() - start; }}"""
    )
    filtering = page.evaluate(
        f"""async () => {{ const start = performance.now();
        const select = document.querySelector('#table select[aria-label="Filter by prior"]');
        select.value = "=Vamp"; select.dispatchEvent(new Event("change"));
        {settle} return performance.now() - start; }}"""
    )
    number = int(page.locator("#count").text_content().split()[0])
    assert 0 < number < 500
    before = points(page, "strip")
    page.get_by_label("Comparable set", exact=True).select_option(index=1)
    assert 0 < points(page, "strip") < before
    size = large.stat().st_size / 1e6
    print(
        f"\n500 runs, {size:.2f} MB: opening {opening:.0f} ms, sorting {sorting:.0f} ms, "
        f"filtering {filtering:.0f} ms"
    )
