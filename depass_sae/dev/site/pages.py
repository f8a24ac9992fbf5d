"""Which pages the site has beside those of docs/, and where files of the repository are on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...attribution import schema as answer
from ...graph import document as graph
from ...index import schema as index
from ...report.case import schema as case
from . import commands, notebooks, python
from .links import relinked

ROOT = Path(__file__).parents[3]

TEXTS = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/cpu.md": "benchmarks-cpu.md",
    "depass_sae/saes/shipped/README.md": "saes.md",
    "notebooks/README.md": "tutorials/index.md",
}
"""Files of the repository that are pages of the site."""


def _tutorials() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def places() -> dict[str, str]:
    """Where a link into the repository leads on the site."""
    return {
        **{source: page for source, page in TEXTS.items() if (ROOT / source).exists()},
        **{f"notebooks/{path.name}": f"tutorials/{path.stem}.md" for path in _tutorials()},
        "README.md": "index.md",
        "notebooks/": "tutorials/",
        "graphs/README.md": "gallery.md",
        "graphs": "gallery.md",
        "notebooks": "tutorials/index.md",
        **{f"graphs/{name}/README.md": f"graphs/{name}/index.html" for name in studies()},
        "graphs/": "graphs/",
        "docs/": "",
    }


def studies() -> list[str]:
    """The names of the case studies in graphs/."""
    return sorted(path.parent.name for path in (ROOT / "graphs").glob("*/case.json"))


def schemas() -> dict[str, str]:
    """The JSON Schemas of the documents that the package writes, by their paths on the site."""
    found = {
        "answer": answer.json_schema(),
        "graph": graph.json_schema(),
        "case": case.json_schema(),
        "index": index.json_schema(),
    }
    said = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {f"schemas/{name}.schema.json": json.dumps(said | one, indent=1) + "\n" for name, one in found.items()}


def generated() -> Iterator[tuple[str, str | bytes]]:
    """Every generated page and file of the site, by its path there."""
    where = places()
    for source, page in TEXTS.items():
        if (ROOT / source).exists():
            yield page, relinked((ROOT / source).read_text(encoding="utf-8"), source, page, where)
    for path in _tutorials():
        text, pictures = notebooks.page_of(path)
        page = f"tutorials/{path.stem}.md"
        yield page, relinked(text, f"notebooks/{path.name}", page, where)
        yield from ((f"tutorials/{name}", picture) for name, picture in pictures.items())
    yield "commands.md", commands.reference()
    yield from python.pages().items()
    yield from schemas().items()
    for path in sorted((ROOT / "graphs").rglob("*")):
        if path.is_file() and path.suffix in {".html", ".json", ".png", ".graphml"}:
            yield path.relative_to(ROOT).as_posix(), path.read_bytes()


def llms(pages: Mapping[str, tuple[str, str]], about: str) -> str:
    """``llms.txt``: what the site has, for programs that read. pages: path to title and first sentence."""
    listed = "".join(f"- [{title}]({path}): {first}\n" for path, (title, first) in pages.items())
    return f"# depass-sae\n\n> {about}\n\n## Pages\n\n{listed}"
