"""A feature card in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..attribution.render import bar, box, drawn_full, named, place, shown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TEXTS = 5
"""So many texts are shown with the feature's activation."""
BLUE = (31, 119, 180)


def card_table(card: Mapping[str, Any], top: int) -> list[RenderableType]:
    """The tables of a card's document (:meth:`.FeatureCard.to_dict`), of ``top`` rows each at most."""
    from rich.text import Text as Line

    label = f"  {shown(card['label'])}" if card["label"] else ""
    parts: list[RenderableType] = [Line.assemble((f"feature {card['name']}", "bold"), label)]
    if card["link"]:
        parts.append(Line(card["link"], style="dim"))
    if card["firings"]:
        parts += [_summary(card), "", *_texts(card), "", _drives(card), _sources(card, top)]
    parts += [_logits(card, top)] if card["logits"] is not None else []
    parts.append(_features("nearest by decoder", card["nearest"], "cosine", top))
    for key, words in (("previous", "before it"), ("next", "behind it")):
        flow = card["flow"][key]
        if flow is not None:
            parts.append(_features(f"layer {flow['layer']}, {words}", flow["features"], "contribution", top))
    parts += [Line(shown(card[key]), style="bold") for key in ("warning", "note") if card[key]]
    return parts


def _summary(card: Mapping[str, Any]) -> Any:
    from rich.text import Text as Line

    first = card["firings"][0]
    text = f" of text {first['prompt'] + 1}" if len(card["prompts"]) > 1 else ""
    return Line(
        f"fires at {card['n_firings']} of {card['n_positions']} positions ({100 * card['density']:.3g} %), most on "
        f"{place(first['token'], first['pos'])}{text}: {first['activation']:.3f}"
    )


def _texts(card: Mapping[str, Any]) -> list[Any]:
    """The texts with the strongest firings, firing tokens on a ground of their activation's strength."""
    from rich.text import Text as Line

    largest = abs(card["firings"][0]["activation"])
    lines = []
    for number in list(dict.fromkeys(firing["prompt"] for firing in card["firings"]))[:TEXTS]:
        text, line = card["prompts"][number], Line(f"{number + 1:>3}  ", style="")
        for pos, (token, value) in enumerate(zip(text["tokens"], text["activations"], strict=True)):
            if value is None and pos not in text.get("sinks", ()):
                continue
            strength = abs(value or 0) / largest
            red, green, blue = (int((0.35 + 0.65 * strength) * part) for part in BLUE)
            line.append(
                "".join(c if c == " " else shown(c) for c in token),
                style=f"white on rgb({red},{green},{blue})" if value else "",
            )
        lines.append(line)
    return lines


def _drives(card: Mapping[str, Any]) -> Table:
    from rich.text import Text as Line

    rule, sources = card["rule"], card["sources"]
    table = _table(
        f"what drives it (rule {rule}): own + earlier + position 0 + other + constant = pre-activation",
        ["fires on", "own", "earlier", "position 0", "other", "constant", "pre-activation"],
    )
    several = len(card["prompts"]) > 1
    parts = ("own", "earlier", "first", "other", "constant", "pre_activation")
    for firing in sources["firings"]:
        text = f" text {firing['prompt'] + 1}" if several else ""
        name = Line(place(firing["token"], firing["pos"]) + text)
        table.add_row(name, *(f"{firing[part]:+.3f}" for part in parts))
    if len(sources["firings"]) > 1:
        table.add_section()
        table.add_row("sum", *(f"{sources['sums'][part]:+.3f}" for part in parts), style="bold")
    worst = max(firing["completeness_error"] for firing in sources["firings"])
    table.caption = f"completeness error at most {worst:.0e}"
    return table


def _sources(card: Mapping[str, Any], top: int) -> Table:
    from rich.text import Text as Line

    found = card["sources"]["tokens"]
    table = _table("source tokens over these firings", ["source token", "sum", "as own", "as earlier", "places"])
    table.add_column("")
    largest = drawn_full(entry["total"] for entry in found)
    for entry in found[:top]:
        numbers = [f"{entry[key]:+.3f}" for key in ("total", "own", "earlier")]
        table.add_row(Line(named(entry["token"])), *numbers, str(entry["count"]), bar(entry["total"] / largest))
    return table


def _logits(card: Mapping[str, Any], top: int) -> Table:
    from itertools import zip_longest

    from rich.text import Text as Line

    table = _table("logits of its decoder direction", ["raised most", "logit", "lowered most", " logit"])
    table.columns[2].justify = "left"
    pairs = zip_longest(card["logits"]["top"][:top], card["logits"]["bottom"][:top])
    for up, down in pairs:
        row: list[Any] = []
        for vote in (up, down):
            name = "" if vote is None else named(vote["token"]) or f"#{vote['id']}"
            row += [Line(name), "" if vote is None else f"{vote['logit']:+.3f}"]
        table.add_row(*row)
    return table


def _features(title: str, listed: Sequence[Mapping[str, Any]], key: str, top: int) -> Table:
    from rich.text import Text as Line

    table = _table(title, ["feature", key])
    table.add_column("")
    for entry in listed[:top]:
        table.add_row(entry["feature"], f"{entry[key]:+.3f}", Line(shown(entry["label"] or "")))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    """The first column is a name, the others are numbers."""
    from rich.table import Table
    from rich.text import Text as Line

    table = Table(title=Line(title, style="table.title"), title_justify="left", caption_justify="left", box=box())
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table
