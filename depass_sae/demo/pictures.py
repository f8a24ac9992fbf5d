"""The pictures of the README: ``python -m depass_sae.demo.pictures``, or ``make pictures``.

What a terminal shows is drawn as SVG; pages are photographed in a browser.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import UserError
from ..files import write_text
from ..view.terminal import print_on
from .browser import browser, opened, photograph
from .cases import CASES
from .gallery import case_study

if TYPE_CHECKING:
    from ..report.case.case import CaseStudy
    from ..view.blocks import Block

MARGIN = 28


def svg(title: str, blocks: Iterable[Block]) -> str:
    """What a terminal of 100 columns shows, as an SVG. The same blocks give the same bytes."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    print_on(console, blocks)
    return console.export_svg(title=title, unique_id="terminal")


def page_picture(started: Any, study: CaseStudy, pos: int, path: Path) -> None:
    """From the case study's strip to its heads, a source token picked."""
    with opened(started, study.to_html(), (1240, 2400)) as window:
        window.locator(f'#fires-1 .strip [data-pos="{pos}"]').click()
        first = window.locator("#fires-1").bounding_box()
        last = window.locator("#heads-1 .beside").bounding_box()
        clip = {
            "x": first["x"] - MARGIN,
            "y": first["y"] - MARGIN,
            "width": first["width"] + MARGIN,
            "height": last["y"] + last["height"] - first["y"] + 2 * MARGIN,
        }
        photograph(window, path, clip)


def graph_picture(started: Any, study: CaseStudy, path: Path) -> None:
    """The viewer, the second largest of the features below the target picked."""
    from ..graph.export.html import to_html

    (finding,) = study.findings
    picked = finding.facts.upstream[1].name
    with opened(started, to_html(finding.graph), (1440, 860)) as window:
        window.locator(f'#nodes [data-id="feature:{picked}"]').click()
        photograph(window, path)


def main() -> None:
    """The climate case: which tokens, through which heads, the case study's page and the graph."""
    parser = argparse.ArgumentParser(description="Draw the README's pictures.")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    try:
        draw(out)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def draw(out: Path) -> None:
    """Raises UserError where there is no browser; what needs none is drawn by then."""
    from ..api import load

    out.mkdir(parents=True, exist_ok=True)
    lm, case = load("smollm2"), CASES[0]
    feature = f"{case.feature}@{case.position}"
    tokens = lm.attribute_tokens(case.prompt, feature=feature)
    write_text(out / "tokens.svg", svg(f'depass-sae tokens --feature {feature} --prompt "..."', tokens.blocks(6)))
    heads = lm.attribute_heads(case.prompt, feature=feature, by_token=True)
    write_text(out / "heads.svg", svg(f"depass-sae heads --feature {feature} --by-token", heads.blocks(6)))
    with browser() as started:
        study = case_study(lm, case)
        page_picture(started, study, case.sources[0], out / "case-study.png")
        graph_picture(started, study, out / "graph.png")


if __name__ == "__main__":
    main()
