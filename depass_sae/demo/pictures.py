"""The pictures of the README: ``python -m depass_sae.demo.pictures``, or ``make pictures``."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from rich.console import Console

from ..files import write_text
from .cases import CASES


def svg(title: str, *parts: Any) -> str:
    """What a terminal of 100 columns shows, as an SVG. The same parts give the same bytes."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for part in parts:
        console.print(part)
    return console.export_svg(title=title, unique_id="terminal")


def main() -> None:
    """The climate case: which tokens, and through which heads."""
    from ..api import load
    from ..attribution.heatmap import components_table
    from ..attribution.render import strip_line, tokens_table

    parser = argparse.ArgumentParser(description="Draw the README's pictures.")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    lm, case = load("smollm2"), CASES[0]
    feature = f"{case.feature}@{case.position}"
    tokens = lm.attribute_tokens(case.prompt, feature=feature)
    parts = [strip_line(tokens, tokens.target), "", *tokens_table(tokens, 6)]
    write_text(out / "tokens.svg", svg(f'depass-sae tokens --feature {feature} --prompt "..."', *parts))
    heads = lm.attribute_heads(case.prompt, feature=feature, by_token=True)
    write_text(out / "heads.svg", svg(f"depass-sae heads --feature {feature} --by-token", *components_table(heads, 6)))


if __name__ == "__main__":
    main()
