"""The hooks of the site: docstrings and formulas in its pages, and its index for models."""

import importlib.util
import re

import pytest

from helpers.paths import ROOT
from pyro_vae import transforms

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")
griffe = pytest.importorskip("griffe")


def load_hooks(name):
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, llms_txt = load_hooks("hooks"), load_hooks("llms_txt")
LINKS = re.compile(r"^- \[([^\]]+)\]\(([^)]+)\): (\S.*)$", re.MULTILINE)


# Docstrings


def test_roles_and_literals_become_markdown():
    text = "Calls :func:`~pyro_vae.fit` with ``x``, or :class:`torch.nn.Module`."
    assert hooks.to_markdown(text) == (
        'Calls <autoref optional identifier="pyro_vae.fit"><code>fit</code></autoref> with `x`, '
        "or `torch.nn.Module`."
    )


def test_a_short_name_is_resolved_where_its_object_knows_it():
    package = griffe.Module("pyro_vae")
    package["fit"] = griffe.Function("fit", parent=package)
    assert 'identifier="pyro_vae.fit"' in hooks.to_markdown(":func:`fit`", package)
    assert hooks.to_markdown(":func:`gone`", package) == "`gone`"


def test_formulas_in_lines_and_on_their_own():
    text = "The sum :math:`a +\nb`.\n\n.. math::\n    x = \\alpha\n    + 1\n\nThe end.\n"
    assert hooks.to_markdown(text) == (
        "The sum \\(a + b\\).\n\n\\[\nx = \\alpha + 1\n\\]\n\nThe end.\n"
    )


def test_references_become_a_list_with_links():
    text = "References:\n    | One (A, 2001),\n      https://a.org/1\n    | Two (B, 2002)\n"
    assert hooks.to_markdown(text).splitlines() == [
        "**References**", "", "- One (A, 2001), <https://a.org/1>", "- Two (B, 2002)", "",
    ]  # fmt: skip


def test_an_example_is_a_section_of_the_google_style():
    assert hooks.to_markdown("Example:\n    >>> 1\n") == "Examples:\n    >>> 1\n"


# Pages


def test_an_entry_for_a_package_is_one_for_each_name():
    page = hooks.on_page_markdown("# A\n\n::: pyro_vae.transforms.*\n")
    names = [f"pyro_vae.transforms.{name}" for name in transforms.__all__]
    assert re.findall(r"::: (\S+)", page) == names
    assert "::: pyro_vae.data.images.images" in hooks.on_page_markdown("::: pyro_vae.data.*")


def test_a_file_name_becomes_the_title_of_its_code():
    page = "```text people.csv\na,b\n```\n```python\n1\n```\n"
    assert hooks.on_page_markdown(page).splitlines()[0] == '```text title="people.csv"'
    assert "```python\n1" in hooks.on_page_markdown(page)


def test_formulas_of_a_page_become_mathml():
    page = r'<p><span class="arithmatex">\(\mathrm{KL} &lt; \log x\)</span></p>'
    page = hooks.on_page_content(page)
    assert page.startswith("<p><math")
    assert "<mi>KL</mi>" in page
    assert "<mo>&#x0003C;</mo>" in page
    assert '<mi>log</mi><mspace width="0.17em" />' in page
    displayed = hooks.on_page_content(r'<div class="arithmatex">\[x^2\]</div>')
    assert re.fullmatch(r'<div class="formula"><math.*display="block".*</math></div>', displayed)


def test_names_in_tables_can_be_broken_and_others_cannot():
    page = "<p><code>a_b</code></p><table><td><code>max_plate.ofVAE</code></td></table>"
    assert hooks.on_page_content(page) == (
        "<p><code>a_b</code></p><table><td><code>max_<wbr>plate.<wbr>of<wbr>VAE</code></td></table>"
    )


# The index for language models


@pytest.fixture(scope="module")
def config():
    from mkdocs.config import load_config

    return load_config(str(ROOT / "mkdocs.yml"))


def test_the_index_has_each_page_of_the_navigation_once_and_its_links_resolve(config):
    from mkdocs.structure.files import get_files

    # As during a build.
    config.plugins._current_plugin = "hooks"
    files = hooks.on_files(get_files(config), config=config)
    index = llms_txt.build_index(files, config)
    head, *sections = re.split(r"^## ", index, flags=re.MULTILINE)
    assert head == f"# pyro_vae\n\n> {config.site_description}\n\n"
    assert [section.splitlines()[0] for section in sections] == [*map("".join, config.nav)]
    listed = [page for part in config.nav for pages in part.values() for page in pages]
    pages = [path for page in listed for path in page.values()]
    entries = LINKS.findall(index)
    assert len(entries) == index.count("\n- ") == len(pages) > 50
    targets = {file.url: file.src_uri for file in files.documentation_pages()}
    assert [targets[url] for _, url, _ in entries] == pages
    assert not [summary for *_, summary in entries if "](" in summary or len(summary) < 15]


def test_a_build_writes_the_index(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(
        "# A\n\n![b](b.png)\n\nA [new\npage](more.md). See [b](more.md). It has:\n\n- c\n"
    )
    (docs / "more.md").write_text(
        "# B\n\n```bash\nrun\n\nagain\n```\n\n| t |\n\nMore text.\n\nEnd."
    )
    (tmp_path / "mkdocs.yml").write_text(
        f"site_name: Mine\nsite_description: All of it\ntheme: {{name: null, custom_dir: theme}}\n"
        f"plugins: []\nhooks: [{ROOT / 'docs' / 'llms_txt.py'}]\n"
        f"nav:\n  - Start:\n      - First page: index.md\n      - Second: more.md\n"
    )
    (tmp_path / "theme").mkdir()
    (tmp_path / "theme" / "main.html").write_text("{{ page.content }}")
    for address, start in ((None, ""), ("https://a.org/b/", "https://a.org/b/")):
        build(load_config(str(tmp_path / "mkdocs.yml"), site_url=address))
        site = tmp_path / "site"
        assert (site / "llms.txt").read_text() == (
            "# Mine\n\n> All of it\n\n## Start\n\n"
            f"- [First page]({start or './'}): A new page. It has.\n"
            f"- [Second]({start}more/): More text.\n"
        )
        assert (site / "more" / "index.html").is_file()
