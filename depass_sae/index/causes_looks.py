"""What the causes of a feature look like: documents as blocks."""

from __future__ import annotations

from typing import Any

from .._version import __version__
from ..attribution.looks import rule_of
from ..view import words
from ..view.blocks import Beside, Block, Column, Feature, Mark, Note, Page, Row, Section, Strip, Table
from ..view.pointer import At

TEXTS, PARTS = 20, 10
"""So many source tokens, and heads or features, are shown at most; the document has more."""
AROUND = 64
"""Tokens of a context that are shown before the one where it fires."""
SAID = 0.02
"""Of the pre-activation, what a cause that is not shown has at least if it is told."""

Document = Any


def causes_page(document: Document) -> Page:
    c: Any = At(document)
    found = c["feature"]
    return Page(
        f"Why {c['name']} fires",
        causes(document, None),
        kicker="Over a corpus",
        byline=(c["model"], f"{found['hook']} of layer {found['layer']}", rule_of(c["asked"])),
        colophon=(f"depass-sae {__version__}", c["asked"]["dtype"]),
        feature=Feature(c["name"], c["label"] or ""),
    )


def causes(document: Document, top: int | None) -> tuple[Block, ...]:
    """top: how many rows a table has at most."""
    c: Any = At(document)
    name = f"{c['name']} ({words.shown(c['label'])})" if c["label"] else c["name"]
    return (Note(f"{name}: {_answer(c)}", "answer"), *_parts(c, top), *_fires(c, top), *_caused(c, top))


def causes_sections(f: Document, top: int | None) -> tuple[Section, ...]:
    """On the card of a feature that has them."""
    if "causes" not in f:
        return ()
    c = f["causes"]
    lead = Note(words.capital(_answer(c)), "lead")
    return (Section("Why it fires", (lead, *_parts(c, top), *_caused(c, top))),)


def _answer(c: Document) -> str:
    s, texts = c["shares"], c["sources"]["texts"]
    said = (
        f"{words.percent(s['own'])} of its pre-activation come from its own token, {words.percent(s['earlier'])} from "
        f"earlier ones, {words.percent(s['constant'])} from none"
    )
    first = max(texts, key=lambda one: one["own"] + one["earlier"], default=None)
    if first is None or first["own"] + first["earlier"] <= 0:
        return said
    share = first["own"] + first["earlier"]
    return f"{said}; most from “{words.shown(first['text'])}” ({words.percent(share)})"


def _parts(c: Document, top: int | None) -> tuple[Block, ...]:
    return _shares(c), _texts(c, top), Beside((_heads(c, top), *(_below(one, top) for one in c["below"])))


def _shares(c: Document) -> Table:
    s = c["shares"]
    rows = [
        ("its own token", s["own"]),
        *((f"earlier, {_distance(one)}", one["share"]) for one in s["distances"]),
        ("position 0", s["start"]),
        ("bias vectors, and what the rule leaves over", s["other"]),
        ("the encoder’s constant", s["encoder"]),
    ]
    many = len(c["contexts"])
    over = f"Means over its {words.count(many)} strongest contexts" if many > 1 else "In its strongest context"
    return Table(
        "From where",
        (Column("from"), Column("share", "percent", bar=True)),
        (*(Row(row) for row in rows), Row(("pre-activation", 1.0), "total")),
        f"{over}, of the pre-activation as its parts sum to it ({rule_of(c['asked'])}); completeness error at most "
        f"{words.error(c['completeness_error'])}.",
    )


def _distance(one: Document) -> str:
    low, high = one["from"], one["to"]
    if high is None:
        return f"{low} or more tokens before"
    return "the token before" if low == high else f"{low} to {high} tokens before"


def _texts(c: Document, top: int | None) -> Table:
    listed = list(c["sources"]["texts"])
    shown, left = listed[: min(TEXTS, top or TEXTS)], listed[min(TEXTS, top or TEXTS) :]
    rows = [
        Row((words.shown(one["text"]), one["own"] + one["earlier"], one["own"], one["earlier"], one["contexts"]))
        for one in shown
    ]
    others = {key: c["sources"]["others"][key] + sum(one[key] for one in left) for key in ("own", "earlier")}
    if any(others.values()):
        rows.append(Row(("others", sum(others.values()), *others.values(), None), "aside"))
    columns = (
        Column("token"), Column("share", "percent", bar=True), Column("as its own", "percent"),
        Column("as an earlier one", "percent"), Column("contexts", "count"),
    )  # fmt: skip
    caption = "By what tokens read, but for case and spaces. Contexts: those in which it is among the five largest."
    return Table("Source tokens", columns, tuple(rows), caption)


def _heads(c: Document, top: int | None) -> Table:
    rows = tuple(
        Row((one["head"], one["share"], one["contexts"])) for one in list(c["heads"])[: min(PARTS, top or PARTS)]
    )
    columns = (Column("head"), Column("share", "percent", bar=True), Column("contexts", "count"))
    return Table(
        "Through which heads", columns, rows, "Heads of different layers overlap: they are not to be added up."
    )


def _below(below: Document, top: int | None) -> Table:
    listed = list(below["features"])[: min(PARTS, top or PARTS)]
    rows = [Row((Feature(one["feature"], one["label"] or ""), one["share"], one["contexts"])) for one in listed]
    ends = (
        ("other features", below["total"] - sum(one["share"] for one in listed)),
        ("SAE errors", below["errors"]),
        ("position 0, constants", below["other"]),
    )
    rows += [Row((*end, None), "aside") for end in ends]
    columns = (Column("feature"), Column("share", "percent", bar=True), Column("contexts", "count"))
    return Table(f"From which features at {below['hook']}", columns, tuple(rows))


def _fires(c: Document, top: int | None) -> tuple[Block, ...]:
    """Its contexts by where it fires."""
    title = "Where it fires in its strongest contexts"
    return (*_strips(c, "activations", "activation", title, top), Note("The same by what it fires for:", "quiet"))


def _caused(c: Document, top: int | None) -> tuple[Strip, ...]:
    """Its contexts by what each token gives it where it is strongest."""
    return _strips(c, "contributions", "contribution", "What each token gives it where it is strongest", top)


def _strips(c: Document, key: str, unit: str, title: str, top: int | None) -> tuple[Strip, ...]:
    found = []
    for number, context in enumerate(list(c["contexts"])[:top], start=1):
        pos = context["pos"]
        low = max(pos - AROUND, 0)
        marks = tuple(
            Mark(token, at, value, aimed=at == pos)
            for at, (token, value) in enumerate(zip(context["tokens"], context[key], strict=True))
            if at >= low
        )
        caption = _far(context, low) if key == "contributions" else ""
        label = f"{number} {words.number(context['activations'][pos], 1)}"
        found.append(Strip(title if number == 1 else "", marks, unit, caption, label))
    return tuple(found)


def _far(context: Document, low: int) -> str:
    """The causes that stand before what is shown."""
    least = SAID * abs(context["pre_activation"])
    far = [pos for pos in context["causes"] if pos < low and abs(context["contributions"][pos]) >= least]
    said = (
        f"{words.place(context['tokens'][pos], pos)} {words.signed(context['contributions'][pos], 2)}" for pos in far
    )
    return f"and, further before: {', '.join(said)}" if far else ""
