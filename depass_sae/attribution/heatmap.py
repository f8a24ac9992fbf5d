"""Heads, modules and neurons as pictures: the largest as a table, all of them as a heat map of layers and parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .render import NEGATIVE, PAGE_DIGITS, POSITIVE, bar, box, drawn_full, fit_sentence, footing, html, named, place

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .attention import AttentionAttribution
    from .components import ComponentAttribution, ComponentTarget
    from .subspace import SubspaceAttribution, SubspaceTarget, Votes

WIDEST = 64
"""A heat map has one column per part up to here; wider layers (neurons) are shown as a table alone."""


def components_table(att: ComponentAttribution, top: int | None = 10) -> list[RenderableType]:
    """For every target position the heat map, where it fits a terminal, and the largest parts."""
    parts: list[RenderableType] = []
    for target in att.targets:
        if _has_map(target):
            parts.append(_map(att, target))
        parts.append(_largest(att, target, top))
        if any(row.by_token is not None for row in target.rows):
            parts.append(_ledger(att, target, top))
    return [*parts, *footing(att.fit)]


def ranked(att: ComponentAttribution, target: ComponentTarget, top: int | None) -> list[tuple[str, float]]:
    """The parts of all layers, largest first. They overlap: a part of layer 3 reaches the target through later ones."""
    everything = [
        (att.part_name(row, index), value) for row in target.rows for index, value in enumerate(row.values.tolist())
    ]
    return sorted(everything, key=lambda entry: -abs(entry[1]))[:top]


def _title(att: ComponentAttribution, target: ComponentTarget) -> str:
    return f"{att.target_name} at {place(target.token, target.pos)}, by {att.kind.name}"


def _settings(att: ComponentAttribution, target: ComponentTarget) -> str:
    temperature = f", T = {att.allocation.temperature:g}" if att.rule == "softmax" else ""
    activation = "" if target.activation is None else f"activation {target.activation:.3f}; "
    return (
        f"rule {att.rule}{temperature}; {activation}pre-activation {target.pre_activation:.3f}, "
        f"to which every layer's row sums with the constant {target.constant:.3f}; "
        f"completeness error {target.completeness_error:.0e}"
    )


def _largest(att: ComponentAttribution, target: ComponentTarget, top: int | None) -> RenderableType:
    from rich.table import Table
    from rich.text import Text as Line

    table = Table(
        title=Line(_title(att, target), style="table.title"),
        title_justify="left",
        caption=Line(_settings(att, target), style="table.caption"),
        caption_justify="left",
        box=box(),
    )
    table.add_column(att.kind.part)
    table.add_column("contribution", justify="right")
    table.add_column("")
    entries = ranked(att, target, top)
    largest = drawn_full(value for _, value in entries)
    for name, value in entries:
        table.add_row(name, f"{value:+.3f}", bar(value / largest))
    return table


def ledger_rows(
    att: ComponentAttribution, target: ComponentTarget, top: int | None
) -> list[tuple[str, list[tuple[str, float]]]]:
    """The largest heads, each with its sources (tokens, then bias and rest) in order."""
    named = {
        att.part_name(row, i): row.by_token[i].tolist()
        for row in target.rows
        if row.by_token is not None
        for i in range(len(row.values))
    }
    tokens = att.heading.prompt.tokens
    rows = []
    for name, _ in ranked(att, target, top):
        *values, bias, rest = named[name]
        sources = [(place(tokens[pos], pos), value) for pos, value in enumerate(values)]
        rows.append((name, [*sources, ("bias", bias), ("rest", rest)]))
    return rows


def _ledger(att: ComponentAttribution, target: ComponentTarget, top: int | None) -> RenderableType:
    """For each of the largest heads, the tokens that most of it came from."""
    from rich.table import Table
    from rich.text import Text as Line

    table = Table(title="which tokens each head carries", title_justify="left", box=box())
    table.add_column(att.kind.part)
    table.add_column("contribution", justify="right")
    table.add_column("of which from")
    for name, sources in ledger_rows(att, target, top):
        largest = sorted(sources, key=lambda source: -abs(source[1]))[:5]
        listed = Line("  ").join(Line.assemble(source, (f" {value:+.2f}", "bold")) for source, value in largest)
        table.add_row(name, f"{sum(value for _, value in sources):+.3f}", listed)
    return table


def _has_map(target: ComponentTarget) -> bool:
    return 1 < max((len(row.values) for row in target.rows), default=0) <= WIDEST


def _cells(target: ComponentTarget) -> list[float]:
    return [value for row in target.rows for value in row.values.tolist()]


def _map(att: ComponentAttribution, target: ComponentTarget) -> RenderableType:
    """Two characters a cell: the colour says the sign, its strength the size."""
    from rich.text import Text as Line

    largest = drawn_full(_cells(target))
    across = max(len(row.values) for row in target.rows)
    lines = [Line(f"{'layer':>6}  " + "".join(f"{i:<2}" if i % 2 == 0 else "  " for i in range(across)), style="dim")]
    for row in target.rows:
        line = Line(f"{row.layer:>6}  ", style="dim")
        for value in row.values.tolist():
            strength = abs(value) / largest
            red, green, blue = (int(strength * c) for c in (POSITIVE if value >= 0 else NEGATIVE))
            line.append(
                "  " if strength > 0.02 else "· ", style=f"on rgb({red},{green},{blue})" if strength > 0.02 else "dim"
            )
        lines.append(line)
    return Line("\n").join(
        [Line(f"{att.kind.part}s across, layers down; blue adds, orange takes away"), *lines, Line("")]
    )


def components_page(att: ComponentAttribution, top: int = 15) -> str:
    """The same as HTML."""
    pages: list[dict[str, Any]] = []
    for target in att.targets:
        largest = drawn_full(_cells(target), PAGE_DIGITS)
        rows = [
            {
                "name": f"{row.sublayer} {row.layer}",
                "cells": [
                    {
                        "name": att.part_name(row, index),
                        "value": value,
                        "colour": POSITIVE if value >= 0 else NEGATIVE,
                        "strength": abs(value) / largest,
                    }
                    for index, value in enumerate(row.values.tolist())
                ],
                "rest": row.rest,
                "bias": row.bias,
            }
            for row in target.rows
        ]
        pages.append(
            {
                "title": _title(att, target),
                "settings": _settings(att, target),
                "rows": rows if _has_map(target) else [],
                "largest": ranked(att, target, top),
                "part": att.kind.part,
                "ledger": _ledger_cells(att, target, top),
            }
        )
    fit = None if att.fit is None else fit_sentence(att.fit)
    warning = att.fit.warning if att.fit else None
    return html("components.html", pages=pages, fit=fit, warning=warning, note=att.note)


def _ledger_cells(att: ComponentAttribution, target: ComponentTarget, top: int) -> list[dict[str, Any]]:
    if not any(row.by_token is not None for row in target.rows):
        return []
    rows = ledger_rows(att, target, top)
    largest = drawn_full((value for _, sources in rows for _, value in sources), PAGE_DIGITS)
    return [
        {
            "name": name,
            "cells": [
                {
                    "name": source,
                    "value": value,
                    "colour": POSITIVE if value >= 0 else NEGATIVE,
                    "strength": abs(value) / largest,
                }
                for source, value in sources
            ],
        }
        for name, sources in rows
    ]


# ---------------------------------------------------------------------------------------------------- attention scores


def _pairs_title(att: AttentionAttribution) -> str:
    tokens = att.heading.prompt.tokens
    named: dict[Any, str] = {
        None: "", "mean": ", against the average key", "uniform": ", against the plain mean of the keys that it sees"
    }  # fmt: skip
    against = named.get(att.against)
    if against is None:
        against = f", against {place(tokens[int(att.against or 0)], int(att.against or 0))}"
    ends = f"{place(tokens[att.query], att.query)} looking at {place(tokens[att.key], att.key)}"
    return f"layer {att.layer} head {att.head}: {ends}{against}"


def _pairs_settings(att: AttentionAttribution) -> str:
    rule = "" if att.by == "features" else f"rule {att.allocation.rule}; "
    what = "score" if att.against is None else "difference of scores"
    return (
        f"{rule}{what} {att.score:+.3f}, to which the whole table sums; {att.pattern:.1%} of the head's attention; "
        f"completeness error {att.completeness_error:.0e}"
    )


def pairs_table(att: AttentionAttribution, top: int) -> list[RenderableType]:
    """The largest pairs of a query's and a key's component."""
    from rich.table import Table
    from rich.text import Text as Line

    table = Table(
        title=Line(_pairs_title(att), style="table.title"),
        title_justify="left",
        caption=Line(_pairs_settings(att), style="table.caption"),
        caption_justify="left",
        box=box(),
    )
    table.add_column("at the query")
    table.add_column("at the key")
    table.add_column("score", justify="right")
    table.add_column("")
    entries = att.largest(top)
    largest = drawn_full(value for *_, value in entries)
    for row, column, value in entries:
        table.add_row(Line(row), Line(column), f"{value:+.3f}", bar(value / largest))
    return [table]


def pairs_page(att: AttentionAttribution, widest: int = WIDEST) -> str:
    """The table as a heat map: the components of largest total size, up to ``widest`` each way."""
    down = att.values.abs().sum(dim=1).argsort(descending=True)[:widest].sort().values.tolist()
    across = att.values.abs().sum(dim=0).argsort(descending=True)[:widest].sort().values.tolist()
    largest = drawn_full(att.values.flatten().tolist(), PAGE_DIGITS)
    rows = [
        {
            "name": att.rows[i],
            "cells": [
                {
                    "name": f"{att.rows[i]} → {att.columns[j]}",
                    "value": value,
                    "colour": POSITIVE if value >= 0 else NEGATIVE,
                    "strength": abs(value) / largest,
                }
                for j, value in zip(across, att.values[i, across].tolist(), strict=True)
            ],
        }
        for i in down
    ]
    return html(
        "pairs.html",
        title=_pairs_title(att),
        settings=_pairs_settings(att),
        columns=[att.columns[j] for j in across],
        rows=rows,
        largest=att.largest(15),
        note=att.note,
    )


# ----------------------------------------------------------------------------------------------------------- subspaces


def _subspace_title(att: SubspaceAttribution, target: SubspaceTarget) -> str:
    return f"{att.target_name} at {place(target.token, target.pos)}, by subspaces of {att.hook} of layer {att.layer}"


def _subspace_settings(att: SubspaceAttribution, target: SubspaceTarget) -> str:
    temperature = f", T = {att.allocation.temperature:g}" if att.rule == "softmax" else ""
    return f"rule {att.rule}{temperature}; completeness error {target.completeness_error:.0e}"


def _subspace_entries(att: SubspaceAttribution, target: SubspaceTarget) -> list[tuple[str, float]]:
    named = [
        (f"{name} (rank {rank})", value)
        for name, rank, value in zip(att.names, att.ranks, target.values.tolist(), strict=True)
    ]
    return [*named, ("off all of them", target.rest), ("bias", target.bias), ("constant", target.constant)]


def subspace_table(att: SubspaceAttribution) -> list[RenderableType]:
    """A table per target position."""
    from rich.table import Table
    from rich.text import Text as Line

    parts: list[RenderableType] = []
    for target in att.targets:
        table = Table(
            title=Line(_subspace_title(att, target), style="table.title"),
            title_justify="left",
            caption=_subspace_settings(att, target),
            caption_justify="left",
            box=box(),
        )
        table.add_column("subspace")
        table.add_column("contribution", justify="right")
        table.add_column("")
        entries = _subspace_entries(att, target)
        largest = drawn_full(value for _, value in entries)
        for name, value in entries:
            table.add_row(Line(name), f"{value:+.3f}", bar(value / largest))
        table.add_section()
        table.add_row("pre-activation", f"{target.pre_activation:+.3f}", "", style="bold")
        parts.append(table)
    return [*parts, *footing(att.fit)]


def subspace_page(att: SubspaceAttribution) -> str:
    """The same as HTML."""
    pages = [
        {
            "title": _subspace_title(att, target),
            "settings": _subspace_settings(att, target),
            "rows": [],
            "largest": [*_subspace_entries(att, target), ("pre-activation", target.pre_activation)],
            "part": "subspace",
            "ledger": [],
        }
        for target in att.targets
    ]
    fit = None if att.fit is None else fit_sentence(att.fit)
    warning = att.fit.warning if att.fit else None
    return html("components.html", pages=pages, fit=fit, warning=warning, note=att.note)


def votes_table(votes: Votes) -> list[RenderableType]:
    """What each component votes for, a line each."""
    from rich.table import Table
    from rich.text import Text as Line

    title = Line(f"what each part votes for after {place(votes.token, votes.pos)}", style="table.title")
    table = Table(title=title, title_justify="left", box=box())
    table.add_column("component")
    table.add_column("tokens it raises most (logit)")
    for name, tokens in votes.votes:
        listed = Line("  ").join(Line.assemble(named(token), (f" {logit:.1f}", "dim")) for token, logit in tokens)
        table.add_row(Line(name), listed)
    return [table]
