"""Writes ``llms.txt``, the index of the pages for language models (https://llmstxt.org)."""

import re
from typing import Any
from urllib.parse import urljoin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

__all__ = ["build_index", "find_summary", "on_files"]

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OTHER_BLOCK = re.compile(r"#|!\[|\||[-*] |\d+\. |<|:::|\$\$")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
REFERENCE = re.compile(r" See \[[^\]]*\]\([^)]*\)\.")


def on_files(files: Files, *, config: MkDocsConfig, **kwargs: Any) -> Files:
    """Adds the index to the files of the site."""
    files.append(File.generated(config, "llms.txt", content=build_index(files, config)))
    return files


def build_index(files: Files, config: MkDocsConfig) -> str:
    """Returns the sections of the navigation, with a link and a summary for each page."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    for section in config.nav or []:
        for title, pages in section.items():
            lines += ["", f"## {title}", ""]
            named = [entry for page in pages for entry in page.items()]
            lines += [_describe_page(name, files.src_uris[path], config) for name, path in named]
    return "\n".join(lines) + "\n"


def _describe_page(name: str, file: File, config: MkDocsConfig) -> str:
    address = urljoin(config.site_url or "", file.url)
    return f"- [{name}]({address}): {find_summary(file.content_string)}"


def find_summary(markdown: str) -> str:
    """Returns the first paragraph of a page in one line, without links."""
    blocks = re.split(r"\n\s*\n", FENCE.sub("", markdown))
    paragraphs = [block for block in map(str.strip, blocks) if block]
    first = next(block for block in paragraphs if not OTHER_BLOCK.match(block))
    text = REFERENCE.sub("", " ".join(first.split()))
    return re.sub(r":$", ".", LINK.sub(r"\1", text))
