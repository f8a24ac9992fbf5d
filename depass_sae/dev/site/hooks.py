"""Where MkDocs comes in (``hooks`` of mkdocs.yml): generated pages, links, formulas, llms.txt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from depass_sae._version import __version__
from depass_sae.dev.site.formulas import with_mathml
from depass_sae.dev.site.links import relinked
from depass_sae.dev.site.pages import generated, llms, places

_read: dict[str, tuple[str, str]] = {}


def on_config(config: Any) -> Any:
    """The site is of this version, and starts with nothing read."""
    config.extra["version_of"] = __version__
    config.copyright = f"depass-sae {__version__}, Apache-2.0"
    _read.clear()
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for path, content in generated():
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page of docs/ with its links into the repository led to pages."""
    path = page.file.src_uri
    if page.file.generated_by is None:
        markdown = relinked(markdown, f"docs/{path}", path, places())
    _read[path] = _title(markdown), _first_sentence(markdown)
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    return with_mathml(html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The theme's search is a dialog without a name."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def on_post_build(config: Any) -> None:
    """Beside the pages a list of them for programs."""
    addresses = {re.sub(r"\.md$", ".html", path): said for path, said in _read.items()}
    text = llms(addresses, config.site_description)
    (Path(config.site_dir) / "llms.txt").write_text(text, encoding="utf-8")


def _title(markdown: str) -> str:
    found = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    return found[1].strip() if found else ""


def _first_sentence(markdown: str) -> str:
    """Of the first paragraph that is prose."""
    for paragraph in re.split(r"\n\s*\n", markdown):
        if re.match(r"[A-Za-z*`_\[]", paragraph) and not paragraph.startswith("[!"):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.?!]) (?=[A-Z`*])", plain)[0]
    return ""
