"""The documents: every page is reachable, every link leads somewhere, every example is run."""

import re
from importlib import import_module

import pytest

import pyro_vae
from helpers.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))

RUN_ELSEWHERE = {
    "renyi.md": "objectives/test_exactness.py",
    "errors.md": "docs/test_error_messages.py",
    "saving.md": "docs/test_saving.py",
    "search.md": "search/test_search.py",
}
"""Pages whose code is no doctest, and the test that runs them."""

MODULES = sorted(
    {name for name in pyro_vae.__all__ if name.islower()}
    - {"compile", "fit", "fit_many", "load", "save"}
)

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def prose_of(page):
    """A page without its code, where brackets and # mean something else."""
    return re.sub(r"`[^`\n]+`", "code", FENCE.sub("", text_of(page)))


def navigation():
    """The pages that the navigation of mkdocs.yml lists."""
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    return re.findall(r":\s*(\S+\.md)\s*$", listed, re.MULTILINE)


def anchors(page):
    """The addresses of a page's headings, made as Python-Markdown makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found


def broken_links(page):
    broken = []
    for target in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((DOCS / page).parent / path).resolve() if path else DOCS / page
        inside = file.is_relative_to(DOCS.resolve()) and file.is_file()
        if not inside or (anchor and anchor not in anchors(file.relative_to(DOCS.resolve()))):
            broken.append(target)
    return broken


def blocks_that_are_no_doctest(page):
    blocks = [code for language, code in FENCE.findall(text_of(page)) if language == "python"]
    # Without the empty line a doctest takes the fence for a part of what is expected.
    return [code for code in blocks if not code.startswith(">>> ") or code[-2:] != "\n\n"]


def public_names():
    top = [name for name in pyro_vae.__all__ if name not in MODULES]
    names = [f"pyro_vae.{name}" for name in top]
    for module in [*MODULES, "evaluate.baseline"]:
        names += [
            f"pyro_vae.{module}.{name}" for name in import_module(f"pyro_vae.{module}").__all__
        ]
    return names


def test_the_walk_finds_pages_links_and_names():
    assert len(PAGES) > 25
    assert sum(len(LINK.findall(prose_of(page))) for page in PAGES) > 60
    assert {"objectives", "data", "evaluate"} <= set(MODULES)
    assert {"pyro_vae.VAE", "pyro_vae.kl.closed_form"} <= set(public_names())


def test_every_page_is_in_the_navigation_once():
    notebooks = [f"tutorials/{path.stem}.md" for path in (DOCS / "tutorials").glob("*.ipynb")]
    assert len(notebooks) >= 3
    assert sorted(navigation()) == sorted([*PAGES, *notebooks])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_code_is_run(page):
    if page in RUN_ELSEWHERE:
        test = ROOT / "tests" / RUN_ELSEWHERE[page]
        assert page in test.read_text(encoding="utf-8")
    else:
        assert blocks_that_are_no_doctest(page) == []


def test_reference_lists_every_public_name_and_no_other():
    pages = [page for page in PAGES if page.startswith("api/")]
    listed = re.findall(r"^::: (\S+)$", "\n".join(map(text_of, pages)), re.MULTILINE)
    # The entry of a package stands for all that it exports.
    whole = [name.removesuffix(".*") for name in listed if name.endswith(".*")]
    assert len(whole) >= 6
    listed = [name for name in listed if not name.endswith(".*")]
    listed += [f"{package}.{name}" for package in whole for name in import_module(package).__all__]
    assert len(set(listed)) == len(listed)
    # A function that shares its name with its module is listed by the longer of its names.
    short = {re.sub(r"\.(\w+)\.\1$", r".\1", name) for name in listed}
    assert set(public_names()) - short == set()
    for name in listed:
        module, _, member = name.rpartition(".")
        assert member in import_module(module).__all__, name


def test_a_missing_anchor_and_an_open_block_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.DOCS", tmp_path)
    (tmp_path / "b.md").write_text("# A title, `code` - and more\n")
    (tmp_path / "a.md").write_text(
        "[yes](b.md#a-title-code-and-more) [no](b.md#other) [none](c.md) [out](../a.md)\n"
        "```python\n>>> 1\n1\n```\n"
    )
    assert broken_links("a.md") == ["b.md#other", "c.md", "../a.md"]
    assert len(blocks_that_are_no_doctest("a.md")) == 1


@pytest.mark.parametrize(
    ("page", "mark", "module", "function"),
    [
        ("objectives.md", "objectives", "pyro_vae.objectives.__main__", "render_table"),
        ("scenarios/index.md", "scenarios", "scenarios.table", "table"),
    ],
)
def test_a_generated_table_is_the_one_that_its_command_prints(page, mark, module, function):
    shown = text_of(page).split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0]
    assert shown.strip() == getattr(import_module(module), function)()
