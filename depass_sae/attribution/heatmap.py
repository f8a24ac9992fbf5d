"""Heads, modules and neurons as pictures: the largest as a table, all of them as a heat map of layers and parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .render import NEGATIVE, POSITIVE, bar, box, fit_sentence, footing, html, place

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .components import ComponentAttribution, ComponentTarget

WIDEST = 64
"""A heat map has one column per part up to here; wider layers (neurons) are shown as a table alone."""


def components_table(att: ComponentAttribution, top: int | None = 10) -> list[RenderableType]:
    """For every target position the heat map, where it fits a terminal, and the largest parts."""
    parts: list[RenderableType] = []
    for target in att.targets:
        if _has_map(target):
            parts.append(_map(att, target))
        parts.append(_largest(att, target, top))
    return [*parts, *footing(att.fit, att.note)]


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
    largest = max((abs(value) for _, value in entries), default=0.0) or 1.0
    for name, value in entries:
        table.add_row(name, f"{value:+.3f}", bar(value / largest))
    return table


def _has_map(target: ComponentTarget) -> bool:
    return bool(target.rows) and 1 < len(target.rows[0].values) <= WIDEST


def _map(att: ComponentAttribution, target: ComponentTarget) -> RenderableType:
    """Two characters a cell: the colour says the sign, its strength the size."""
    from rich.text import Text as Line

    largest = max(row.values.abs().max().item() for row in target.rows) or 1.0
    across = len(target.rows[0].values)
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
        largest = max((row.values.abs().max().item() for row in target.rows if row.values.numel()), default=0.0) or 1.0
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
            }
        )
    fit = None if att.fit is None else fit_sentence(att.fit)
    warning = att.fit.warning if att.fit else None
    return html("components.html", pages=pages, fit=fit, warning=warning, note=att.note)
