"""Answers for people: tables and coloured text in the terminal, the same as HTML in a notebook.

Token text is not trusted: control characters are made visible before they reach a terminal or a page, and HTML is
escaped by the templates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..texts import visible, visible_on_page

if TYPE_CHECKING:
    import jinja2
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table

    from ..saes import Fit
    from .contrast import Contrast
    from .features import FeatureReport, LayerFeatures
    from .tokens import TokenAttribution, TokenTarget

PAGE_DIGITS = 4
"""The decimals of a contribution in HTML; tables of text have 3."""
POSITIVE, NEGATIVE = (31, 119, 180), (214, 96, 40)  # blue and orange: told apart with any colour vision


UNBOUNDED = 100_000
"""The width of what no window shows: a table is as wide as its cells, and no line is wrapped."""


class Text(str):
    """A text that shows itself as it is at the end of a notebook cell or on the prompt."""

    def __repr__(self) -> str:
        return str(self)


class Html(str):
    """A piece of HTML: notebooks show it, ``save`` writes it as a page."""

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | Path) -> None:
        """Write a page of its own, whole or not at all."""
        from ..files import write_text

        write_text(path, html("page.html", body=_safe(self)))


def shown(token: str) -> str:
    """A token's text on one line: its leading space dropped, line breaks and control characters made visible."""
    return visible(token.strip(" ") or token.replace(" ", "␣"))


def named(token: str) -> str:
    """A token without a place, such as a logit's: spaces at its ends are seen, which alone tell it from its twins."""
    inner = token.strip(" ")
    before, _, after = token.partition(inner) if inner else (token, "", "")
    return "␣" * len(before) + visible(inner) + "␣" * len(after)


def place(token: str, pos: int) -> str:
    """The paper's way to name a token: ``supply (4)``."""
    return f"{shown(token)} ({pos})"


def table_text(*parts: RenderableType) -> Text:
    """Rich renderables as plain text."""
    import io

    from rich.console import Console

    out = io.StringIO()
    # In a notebook a console would show by itself what it is asked to write.
    console = Console(
        file=out, width=100, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False
    )
    print_on(console, *parts)
    return Text(out.getvalue().rstrip("\n"))


def print_on(console: Console, *parts: RenderableType) -> None:
    """Print renderables; whatever texts they are made of, a terminal finds no orders in them, and no cell is cut."""
    from rich.table import Table

    for part in parts:
        for column in part.columns if isinstance(part, Table) else ():
            column.overflow = "fold"
        console.print(_Visible(part))


class _Visible:
    def __init__(self, part: RenderableType) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._part, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n"))


# ------------------------------------------------------------------------------------------------------------- tables


def tokens_table(att: TokenAttribution, top: int | None = None) -> list[RenderableType]:
    """A table per target position, and what has to be known to read it."""
    parts: list[RenderableType] = [_one_target(att, target, top) for target in att.targets]
    return [*parts, *footing(att.fit)]


def _one_target(att: TokenAttribution, target: TokenTarget, top: int | None) -> Table:
    from rich.table import Table
    from rich.text import Text as Line

    title = Line(f"{att.target_name} at {place(target.token, target.pos)}", style="table.title")
    table = Table(title=title, title_justify="left", caption=_settings(att, target), caption_justify="left", box=box())
    table.add_column(f"source {att.by}")
    table.add_column("contribution", justify="right")
    table.add_column("")
    if target.measured is not None:
        table.add_column("when replaced", justify="right")
    values = target.contributions.tolist()
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
    named = order if top is None else order[:top]
    largest = drawn_full(values)

    def row(name: str, value: float, drawn: bool = False, measured: str = "", style: str = "") -> None:
        cells: list[Any] = [Line(name), f"{value:+.3f}", bar(value / largest) if drawn else ""]
        table.add_row(*cells, *([measured] if target.measured is not None else []), style=style)

    for i in named:
        row(place(target.sources[i].text, target.sources[i].pos), values[i], True, _measured(target, i))
    if len(named) < len(values):
        row(f"{len(values) - len(named)} others", sum(values[i] for i in order[len(named) :]), style="dim")
    for name, value in target.other.items():
        if value:
            row(name, value, style="dim")
    row("constant", target.constant, style="dim")
    table.add_section()
    row("pre-activation" if target.activation is not None else "sum", target.pre_activation, style="bold")
    return table


def _settings(att: TokenAttribution, target: TokenTarget) -> str:
    temperature = f", T = {att.allocation.temperature:g}" if att.rule == "softmax" else ""
    parts = [f"rule {att.rule}{temperature}, by {att.by}"]
    if target.activation is not None:
        parts.append(f"activation {target.activation:.3f}" if target.activation else "does not fire here")
    if target.margin is not None:
        parts.append(f"{abs(target.margin):.3f} {'above' if target.margin >= 0 else 'below'} what it takes to fire")
    rounding = att.heading.dtype in ("bfloat16", "float16") and target.completeness_error > 1e-4
    cause = f" (the rounding of {att.heading.dtype}; a trace_dtype of float32 takes it away)" if rounding else ""
    parts.append(f"completeness error {target.completeness_error:.0e}{cause}")
    if target.measured is not None:
        correlation = target.rank_correlation
        tried = f"each source replaced by {target.measured.replacements} random tokens"
        tried += f" of {target.measured.replace_from}" if target.measured.replace_from else ""
        parts.append(tried + ("" if correlation is None else f", rank correlation {correlation:.2f}"))
    return "; ".join(parts)


def _measured(target: TokenTarget, i: int) -> str:
    if target.measured is None or target.measured.mean[i] is None:
        return ""
    return f"{target.measured.mean[i]:+.2f} ± {target.measured.spread[i]:.2f}"


def contrast_table(found: Contrast, top: int | None = None) -> list[RenderableType]:
    """The aligned sources of two prompts, largest difference first."""
    from rich.table import Table
    from rich.text import Text as Line

    a, b = found.attribution, found.against
    where = f"{place(a.target.token, a.target.pos)}, against {place(b.target.token, b.target.pos)}"
    title = Line(f"{a.target_name} at {where}", style="table.title")
    table = Table(title=title, title_justify="left", caption=_settings(a, a.target), caption_justify="left", box=box())
    for name in ("source", "contribution", "against", "contribution", "difference"):
        table.add_column(name, justify="right" if name in ("contribution", "difference") else "left")
    table.add_column("")
    order = sorted(found.pairs, key=lambda pair: -abs(pair.difference))
    named = order if top is None else order[:top]
    largest = drawn_full(pair.difference for pair in order)
    for pair in named:
        cells = [Line("" if end is None else place(end.text, end.pos)) for end in (pair.source, pair.against)]
        values = [
            "" if end is None else f"{value:+.3f}"
            for end, value in ((pair.source, pair.value), (pair.against, pair.against_value))
        ]
        table.add_row(
            cells[0],
            values[0],
            cells[1],
            values[1],
            f"{pair.difference:+.3f}",
            bar(pair.difference / largest),
            style="" if pair.same else "bold",
        )

    def total(name: str, x: float, y: float, style: str = "dim") -> None:
        table.add_row(name, f"{x:+.3f}", "", f"{y:+.3f}", f"{x - y:+.3f}", "", style=style)

    if len(named) < len(order):
        others = order[len(named) :]
        total(f"{len(others)} others", sum(p.value for p in others), sum(p.against_value for p in others))
    for name, value in a.other.items():
        if value or b.other[name]:
            total(name, value, b.other[name])
    total("constant", a.constant, b.constant)
    table.add_section()
    total("pre-activation", a.pre_activation, b.pre_activation, style="bold")
    return [table, *footing(a.fit), *footing(b.fit)]


def features_table(report: FeatureReport, top: int) -> list[RenderableType]:
    """A table per layer: the first features of each position."""
    from rich.table import Table
    from rich.text import Text as Line

    parts: list[RenderableType] = []
    for layer in report.layers:
        table = Table(
            title=f"layer {layer.hook.layer}, {layer.hook.name}", title_justify="left",
            caption=Line(features_caption(report, layer), style="table.caption"), caption_justify="left", box=box(),
        )  # fmt: skip
        table.add_column("position")
        table.add_column(FEATURES_FIRST[report.sort])
        for at in layer.positions:
            line = Line("  ").join(
                Line.assemble((feature_marked(layer, index), "bold"), f" {activation:.2f}")
                for index, activation in list(zip(at.indices, at.activations, strict=True))[:top]
            )
            more = len(at.indices) - top
            table.add_row(Line(place(at.token, at.pos)), line + Line(f"  +{more}" if more > 0 else "", style="dim"))
        parts.append(table)
    return parts


FEATURES_FIRST = {
    "activation": "strongest features (activation)",
    "specific": "features most above their usual activation (activation)",
}


def feature_marked(layer: LayerFeatures, index: int) -> str:
    return f"{layer.name}/{index}{'*' if index in layer.always_on else ''}"


def features_caption(report: FeatureReport, layer: LayerFeatures) -> str:
    from .features import ALWAYS

    said = [fit_sentence(layer.fit)]
    if layer.always_on:
        said.append(f"* fires at {100 * ALWAYS:.0f} % of the positions or more, so that it says little about any one.")
    if report.sort == "specific":
        said.append("Usual is a feature's mean over the prompt's positions, without position 0 and sinks.")
    return " ".join(said)


def footing(fit: Fit | None) -> list[RenderableType]:
    from rich.text import Text as Line

    return [] if fit is None else [Line(fit_sentence(fit), style="dim")]


def remarks(fit: Fit | None, note: str | None) -> list[RenderableType]:
    """What has to be said beside a table: an SAE that does not fit, a target that does not fire."""
    from rich.text import Text as Line

    return [Line(line, style="bold") for line in (fit.warning if fit else None, note) if line]


def fit_sentence(fit: Fit) -> str:
    explained = "" if fit.explained_variance is None else f"explains {fit.explained_variance:.1%} of the variance, "
    return f"On this prompt the SAE {explained}has {fit.l0:.1f} features active per token (position 0 left out)."


def drawn_full(values: Iterable[float], digits: int = 3) -> float:
    """What is drawn at full length: the largest by size. Infinite where so many decimals show even that as 0: a bar
    there would make much of what is only rounding."""
    largest = max(map(abs, values), default=0.0)
    return largest if round(largest, digits) else math.inf


def bar(share: float, width: int = 24) -> Any:
    from rich.text import Text as Line

    length = max(0.0, min(1.0, abs(share))) * width
    blocks = "█" * int(length) + ("▌" if length - int(length) >= 0.5 else "")
    return Line(blocks, style=_rgb(POSITIVE if share >= 0 else NEGATIVE), no_wrap=True, overflow="crop")


def _rgb(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]},{colour[1]},{colour[2]})"


def box() -> Any:
    from rich.box import SIMPLE_HEAD

    return SIMPLE_HEAD


def strip_line(att: TokenAttribution, target: TokenTarget) -> Any:
    """The prompt in the terminal, each source on a ground of its contribution's colour, the target underlined."""
    from rich.text import Text as Line

    line = Line()
    shades = _shades(target)
    for source in target.sources:
        colour, strength = shades[source.pos]
        red, green, blue = (int(strength * c) for c in colour)
        style = f"white on rgb({red},{green},{blue})" if strength > 0.15 else ""
        line.append(visible(source.text), style=style + (" underline bold" if target.pos in source.positions else ""))
    return line


def _shades(target: TokenTarget, digits: int = 3) -> dict[int, tuple[tuple[int, int, int], float]]:
    values = target.contributions.tolist()
    largest = drawn_full(values, digits)
    return {
        source.pos: (POSITIVE if value >= 0 else NEGATIVE, abs(value) / largest)
        for source, value in zip(target.sources, values, strict=True)
    }


# --------------------------------------------------------------------------------------------------------------- HTML


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("depass_sae.attribution"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=visible_on_page,
    )  # fmt: skip
    environment.filters["place"] = lambda source: place(source.text, source.pos)
    environment.filters["shown"] = shown
    return environment


def html(template: str, **values: Any) -> str:
    """A template filled in, everything in it escaped."""
    return _environment().get_template(template).render(**values)


def _safe(html: str) -> Any:
    from markupsafe import Markup

    return Markup(html)


def token_strip(att: TokenAttribution) -> str:
    """The prompt's tokens coloured by contribution, one line per target position."""
    strips = [
        {
            "target": target,
            "title": f"{att.target_name} at {place(target.token, target.pos)}",
            "tokens": [
                {"source": source, "value": value, "colour": colour, "strength": strength}
                for source, value, (colour, strength) in zip(
                    target.sources, target.contributions.tolist(), _shades(target, PAGE_DIGITS).values(), strict=True
                )
            ],
        }
        for target in att.targets
    ]
    return html("strip.html", strips=strips)


def tokens_page(att: TokenAttribution) -> str:
    """The strip and the tables, for notebooks."""
    return token_strip(att) + html(
        "tokens.html",
        att=att,
        settings=[_settings(att, target) for target in att.targets],
        measured=[[_measured(target, i) for i in range(len(target.sources))] for target in att.targets],
        fit=None if att.fit is None else fit_sentence(att.fit),
    )


def features_page(report: FeatureReport, top: int = 8) -> str:
    sentences = [features_caption(report, layer) for layer in report.layers]
    first = FEATURES_FIRST[report.sort]
    return html("features.html", report=report, top=top, sentences=sentences, first=first, marked=feature_marked)
