"""A case study as a folder: the page, Markdown with pictures, the JSON of all numbers, graphs and labels.

The Markdown has the page's blocks in the page's order. The same study gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...attribution.looks import part_maps
from ...files import check_place, write_files
from ...graph.export import graph_bytes
from ...view.blocks import Block, Graph, Note
from ...view.figures import check_matplotlib, figure, has_picture, rendered
from ...view.markdown import escaped, markdown
from .looks import strip_title
from .study import LABELS_FILE

if TYPE_CHECKING:
    from .case import CaseStudy

DPI = 140.0


@dataclass
class _Pictures:
    """The pictures of a Markdown text, named by what they show; drawn when they are asked for.

    names: of blocks by their titles, where a name is to be of a feature instead.
    """

    names: Mapping[str, str]
    files: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, block: Block) -> str | None:
        if not has_picture(block):
            return None
        title = getattr(block, "title", "")
        name = block.name if isinstance(block, Graph) else self.names.get(title, _slug(title))
        taken = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?\.png", other) is not None for other in self.files)
        file = f"{name}-{taken + 1}.png" if taken else f"{name}.png"
        self.files[file] = rendered(figure(block), "png", DPI)
        return file


def write_case(study: CaseStudy, folder: str | os.PathLike[str]) -> list[Path]:
    """Everything of a case study: all of its files, or none."""
    check_folder(folder)
    names = {strip_title(feature.name): f"activations-{_slug(feature.name)}" for feature in study.features}
    for finding in study.findings:
        heads = finding.heads.to_dict()
        names |= {map_.title: f"heads-{finding.slug}" for map_ in part_maps(heads, heads["targets"][0])}
    pictures = _Pictures(names)
    text = case_markdown(study, pictures)
    graphs = {f"graph-{finding.slug}.json": finding.graph for finding in study.findings if finding.graph is not None}
    files = pictures.files | {name: graph_bytes(g, "json") for name, g in graphs.items()}
    texts = {  # last, so that a page that is there has its pictures
        "index.html": study.to_html(),
        "README.md": text,
        "case.json": json.dumps(study.to_dict(), indent=1, allow_nan=False) + "\n",
    }
    if study.labels:
        texts[LABELS_FILE] = json.dumps(study.labels, indent=1) + "\n"
    files |= {name: content.encode("utf-8") for name, content in texts.items()}
    contents = {Path(folder) / name: content for name, content in files.items()}
    write_files(contents)
    return list(contents)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raises UserError where the folder cannot be written, or where pictures cannot be drawn: before any work."""
    check_matplotlib()
    check_place(folder, folder=True)


def case_markdown(study: CaseStudy, picture: _Pictures | None = None) -> str:
    """The study as Markdown that GitHub shows."""
    graphs = [finding for finding in study.findings if finding.graph is not None]
    files = [
        Note("The page", link="index.html"),
        Note("All numbers, in full", link="case.json"),
        *(Note(f"The graph to {finding.name}", link=f"graph-{finding.slug}.json") for finding in graphs),
    ]
    return f"# {escaped(study.title)}\n\n{markdown((*study.blocks(), *files), picture=picture)}\n"


def _slug(text: str) -> str:
    """For file names."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "picture"
