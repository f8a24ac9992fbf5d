"""A case study as one HTML file. It is made of the study's document alone, beside the graphs, which are pages already.

Every number on it is an element that says where in ``case.json`` it stands. Without JavaScript the tables, shades and
titles are there; with it, hovering shows and clicking keeps what a token or a head did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..attribution.render import fit_sentence, place
from ..graph.export.html import style_and_script, to_html
from ..pages import shared
from .html import At, asset, inert, render, written

if TYPE_CHECKING:
    from .case import CaseStudy, Finding

SOURCES_TOLD = 4
"""How many source tokens a head's line names."""


def case_page(study: CaseStudy) -> str:
    """The page. The same study gives the same text."""
    style, script = style_and_script()
    return render(
        "case.html",
        script=shared("theme.js") + asset("case.js"),
        styles=[style],
        scripts=[script],
        c=At(study.document),
        views=[_view(study, i) for i in range(len(study.features))],
        graphs={finding.name: _srcdoc(finding) for finding in study.findings if finding.graph is not None},
        versions=list(study.versions),
        names=[finding.name for finding in study.findings],
        files=["case.json", *(["labels.json"] if study.labels else [])],
    )


def in_notebook(study: CaseStudy) -> str:
    """The page in a frame of its own."""
    page = study.to_html().replace("&", "&amp;").replace('"', "&quot;")
    return f'<iframe title="case study" srcdoc="{page}" style="width:100%;height:900px;border:0"></iframe>'


def _srcdoc(finding: Finding) -> Any:
    """The graph's page as the value of an attribute in double quotes."""
    return inert(to_html(finding.graph).replace("&", "&amp;").replace('"', "&quot;"))


def _view(study: CaseStudy, i: int) -> dict[str, Any]:
    """What the page shows of a feature beside its numbers: scales of colour, and a line for every token and head."""
    feature = study.features[i]
    fires = [abs(a) for a in feature.activations if a is not None]
    tokens = [_token_line(study, i, pos) for pos in range(len(feature.activations))]
    aimed = {finding.target.pos for finding in feature.findings}
    strip = [
        {"line": line, "apart": text.startswith((" ", "\n")), "aimed": pos in aimed}
        for pos, (text, line) in enumerate(zip(study.heading.prompt.tokens, tokens, strict=True))
    ]
    return {
        "largest": max(fires, default=0.0),
        "strip": strip,
        "fit": None if feature.fit is None else fit_sentence(feature.fit),
        "warning": feature.fit.warning if feature.fit else None,
        "findings": [_finding_view(finding) for finding in feature.findings],
    }


def _finding_view(finding: Finding) -> dict[str, Any]:
    document = finding.layers()
    ledger = finding.ledger()
    table = finding.table()
    rows = [] if ledger is None else ledger["rows"]
    return {
        "table": max((abs(s["value"]) for s in table["sources"]), default=0.0),
        "heads": max((abs(v) for layer in document for v in layer["heads"]), default=0.0),
        "sums": max((abs(layer["sum"]) for layer in document), default=0.0),
        "ledger": max((abs(v) for row in rows for v in (*row["values"], row["others"])), default=0.0),
        "lines": head_lines(finding),
        "across": max((len(layer["heads"]) for layer in document), default=0),
    }


def head_lines(finding: Finding) -> dict[str, str]:
    """For every head, by its name, what it contributes and what most of that came from."""
    lines = {}
    for head in finding.all_heads():
        line = f"{head['name']}: {written(head['value'], '+')}"
        if head["by_token"] is not None:
            by_size = sorted(range(len(head["by_token"])), key=lambda pos: -abs(head["by_token"][pos]))
            told = [
                f"{place(finding.tokens.tokens[pos], pos)} {written(head['by_token'][pos], '+')}"
                for pos in by_size[:SOURCES_TOLD]
            ]
            line += f", of which from {', '.join(told)}"
        lines[head["name"]] = line
    return lines


def _token_line(study: CaseStudy, i: int, pos: int) -> str:
    """What a token does here: its activation, and its contribution to each position that is asked about."""
    feature = study.features[i]
    activation = feature.activations[pos]
    nothing = "a special token" if study.heading.prompt.special[pos] else "an attention sink"
    parts = [nothing if activation is None else f"activation {written(activation)}"]
    for finding in feature.findings:
        target = finding.target
        if pos > target.pos:
            continue
        part = f"contributes {written(target.contributions[pos].item(), '+')} to {place(target.token, target.pos)}"
        mean = None if target.measured is None else target.measured.mean[pos]
        parts.append(part if mean is None else f"{part}, which loses {written(mean)} when this one is replaced")
    return f"{place(study.heading.prompt.tokens[pos], pos)}: {'; '.join(parts)}"
