r"""What MkDocs needs to read this package's docstrings, and to show formulas without a script.

Docstrings keep to what Python's own tools read: roles such as ``:class:`` and ``:math:``, and
``.. math::``. Here they become Markdown, and formulas become MathML, which browsers show as it is.
"""

import html
import os
import posixpath
import re
import textwrap
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import griffe
import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from nbformat.v4 import new_output

__all__ = [
    "Docstrings",
    "drop_bars",
    "list_members",
    "on_files",
    "on_page_content",
    "on_page_markdown",
    "to_markdown",
    "to_mathml",
]

ROLE = re.compile(r":(class|func|meth|attr|mod|data|exc|obj):`~?([^`]+)`")
MATH_ROLE = re.compile(r":math:`([^`]+)`", re.DOTALL)
MATH_BLOCK = re.compile(
    r"^(?P<indent>[ ]*)\.\. math::[ ]*(?P<first>[^\n]*)\n(?P<rest>(?:(?P=indent)[ ]+\S[^\n]*\n?)*)",
    re.MULTILINE,
)
REFERENCES = re.compile(r"^References:\n((?:[ ]+[^\n]*\n?|\n)+)", re.MULTILINE)
LITERAL = re.compile(r"``([^`]+)``")
LITERAL_BLOCK = re.compile(r"^([ ]{4})``([^`]+)``$", re.MULTILINE)
MEMBERS = re.compile(r"^::: ([\w.]+)\.\*$", re.MULTILINE)
NAMED_FENCE = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
NOTEBOOK = re.compile(r"(tutorials/\w+)\.ipynb\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
UPRIGHT = re.compile(r'(?:<mi mathvariant="normal">\w</mi>){2,}')
CELL = re.compile(r"<(t[dh])[ >].*?</\1>", re.DOTALL)
CODE = re.compile(r"<code>([^<]*)</code>")
JOINT = re.compile(r"(?<=\w)[._(=,/]+(?=[\w'])|(?<=[a-z])(?=[A-Z])")
FUNCTION = re.compile(r"(<mi>(?:log|exp|cos|tanh|max|min)</mi>)(?!</mrow><m(?:row|i|n)|<mo)")


class Docstrings(griffe.Extension):
    """Turns the roles of docstrings into Markdown before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, obj)


def to_markdown(text: str, obj: griffe.Object | None = None) -> str:
    """Returns a docstring with Markdown in place of roles, formulas and lists of references."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = MATH_BLOCK.sub(block, text)
    text = MATH_ROLE.sub(lambda m: rf"\({' '.join(m[1].split())}\)", text)
    text = ROLE.sub(lambda m: link(m[2], obj), text)
    text = LITERAL_BLOCK.sub(r"\1\2", text)
    text = LITERAL.sub(r"`\1`", text)
    return REFERENCES.sub(references, text)


def block(match: re.Match[str]) -> str:
    """Returns a displayed formula."""
    tex = " ".join(f"{match['first']} {match['rest']}".split())
    indent = match["indent"]
    return f"{indent}\\[\n{indent}{tex}\n{indent}\\]\n"


def link(target: str, obj: griffe.Object | None) -> str:
    """Returns a reference to an object, a link where the object has a place in these pages."""
    name = target.rpartition(".")[2]
    if not target.startswith("pyro_vae."):
        if "." in target or obj is None:
            return f"`{target if '.' in target else name}`"
        try:
            target = obj.resolve(target)
        except griffe.NameResolutionError:
            return f"`{name}`"
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'


def references(match: re.Match[str]) -> str:
    """Returns the papers as a list, each with its address as a link."""
    entries = re.split(r"^\|[ ]", textwrap.dedent(match[1]).strip(), flags=re.MULTILINE)
    lines = [" ".join(entry.split()) for entry in entries if entry.strip()]
    linked = [re.sub(r"(https?://\S+)$", r"<\1>", line) for line in lines]
    return "**References**\n\n" + "\n".join(f"- {line}" for line in linked) + "\n\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook, with the outputs of PYRO_VAE_NOTEBOOKS if that is a folder."""
    executed = os.environ.get("PYRO_VAE_NOTEBOOKS")
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        folder, name = posixpath.split(file.src_uri)
        path = Path(executed, name) if executed else Path(config.docs_dir, file.src_uri)
        notebook = nbformat.read(path, as_version=4)
        drop_bars(notebook)
        exporter = MarkdownExporter(exclude_input_prompt=True)
        resources = {"unique_key": name.removesuffix(".ipynb")}
        text, resources = exporter.from_notebook_node(notebook, resources)
        text = f"{text.strip()}\n\n[Download this notebook]({name}).\n"
        pages = {f"{name.removesuffix('.ipynb')}.md": text, **resources["outputs"]}
        for page, content in pages.items():
            files.append(File.generated(config, f"{folder}/{page}", content=content))
    return files


def drop_bars(notebook: Any) -> None:
    """Removes the output of bars and warnings from an executed notebook."""
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
        # A bar overwrites its line after a carriage return.
        printed = re.sub(r"[^\n]*\r", "", printed)
        cell.outputs = [output for output in outputs if output.output_type != "stream"]
        if printed.strip():
            cell.outputs.insert(0, new_output("stream", name="stdout", text=printed))


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Fills in ``::: package.*``, and makes titles of file names, as in ``text people.csv``."""
    markdown = MEMBERS.sub(lambda m: list_members(m[1]), markdown)
    markdown = NOTEBOOK.sub(r"\1.md)", markdown)
    return NAMED_FENCE.sub(r'```\1 title="\2"', markdown)


def list_members(package: str) -> str:
    """Returns an entry for each public name of a package."""
    names = [f"{package}.{name}" for name in import_module(package).__all__]
    # A function that shares its name with its module is listed by the longer of its names.
    longer = [f"{name}.{name.rpartition('.')[2]}" if find_spec(name) else name for name in names]
    return "\n\n".join(f"::: {name}" for name in longer)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Turns the formulas of a page into MathML, and marks where names in tables can be broken."""
    content = FORMULA.sub(lambda m: to_mathml(html.unescape(m[2])), content)
    return CELL.sub(lambda cell: CODE.sub(mark_breaks, cell[0]), content)


def mark_breaks(code: re.Match[str]) -> str:
    """Returns code with a possible line break after each joint of its names."""
    return f"<code>{JOINT.sub(lambda joint: f'{joint[0]}<wbr>', code[1])}</code>"


def to_mathml(tex: str) -> str:
    r"""Returns MathML for ``\(...\)``, which stands in a line, or ``\[...\]``, on its own."""
    tex = tex.strip()
    display = "block" if tex.startswith(r"\[") else "inline"
    math = convert(tex[2:-2].strip(), display=display)
    # A word of upright letters is one name, and a function keeps its distance.
    math = UPRIGHT.sub(lambda m: f"<mi>{re.sub('<[^>]*>', '', m[0])}</mi>", math)
    math = FUNCTION.sub(r'\1<mspace width="0.17em" />', math)
    return f'<div class="formula">{math}</div>' if display == "block" else math
