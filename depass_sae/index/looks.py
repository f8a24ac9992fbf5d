"""What an index's answers look like: documents as blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from .._version import __version__
from ..view import words
from ..view.blocks import Beside, Block, Column, Feature, Mark, Note, Page, Pairs, Row, Section, Strip, Table, Token
from ..view.pointer import At
from . import causes_looks

CONTEXTS, TOKENS = 20, 20
"""So many are shown at most; the document has all."""
AROUND = 24
"""Tokens of a context that are shown before the one where it is strongest; and half as many behind it."""

Document = Any


def feature_page(document: Document) -> Page:
    f: Any = At(document)
    found = f["feature"]
    return Page(
        f"Feature {f['name']}",
        feature(document, None),
        kicker="Over a corpus",
        byline=(f["model"], f"{found['hook']} of layer {found['layer']}", f"{words.count(f['tokens'])} tokens"),
        colophon=(f"depass-sae {__version__}",),
        feature=Feature(f["name"], f["label"] or ""),
    )


def feature(document: Document, top: int | None) -> tuple[Block, ...]:
    """top: how many rows a table has at most."""
    f: Any = At(document)
    name = f"{f['name']} ({words.shown(f['label'])})" if f["label"] else f["name"]
    if not f["count"]:
        said = f"{name} does not fire on any of the {words.count(f['tokens'])} tokens of the corpus"
        return (Note(said, "answer"), *_written(f, top))
    on = ", ".join(f"“{words.named(token['token'])}”" for token in list(f["fires_on"])[:3])
    said = (
        f"{name} fires at {words.count(f['count'])} of {words.count(f['tokens'])} tokens ({_share(f['density'])}), "
        f"most often on {on}; {words.number(f['max'])} at most, {words.number(f['mean'])} on average"
    )
    return (
        Note(said, "answer"),
        Section("Where it fires most", _strips(f["contexts"], top)),
        *([Section("Samples, the strongest first", _strips(f["samples"], top))] if len(f["samples"]) else []),
        Section("What it fires on", _tokens(f, top)),
        Section("How strongly, and at which positions", (Beside((_histogram(f), _positions(f))),)),
        *causes_looks.causes_sections(f, top),
        *_partners(f, top),
        *_written(f, top),
    )


def _share(value: float) -> str:
    """A density, which is often far below a percent."""
    return words.percent(value) if value >= 0.01 else f"one in {words.count(1 / value)}"


def _strips(contexts: Sequence[Document], top: int | None) -> tuple[Strip, ...]:
    found = []
    for number, context in enumerate(list(contexts)[: min(CONTEXTS, top or CONTEXTS)], start=1):
        low, high = max(context["pos"] - AROUND, 0), context["pos"] + AROUND // 2
        marks = tuple(
            Mark(token, pos, value, aimed=pos == context["pos"])
            for pos, (token, value) in enumerate(zip(context["tokens"], context["activations"], strict=True))
            if low <= pos <= high
        )
        found.append(Strip("", marks, "activation", label=f"{number} {words.number(context['activation'], 1)}"))
    return tuple(found)


def _tokens(f: Document, top: int | None) -> tuple[Block, ...]:
    most = min(TOKENS, top or TOKENS)
    rows = tuple(
        Row((Token(token["token"]), token["count"], token["count"] / f["count"], token["mean"], token["max"]))
        for token in list(f["fires_on"])[:most]
    )
    columns = (
        Column("token"), Column("times", "count", bar=True), Column("of its firings", "percent"),
        Column("mean", "number"), Column("max", "number"),
    )  # fmt: skip
    beside = tuple(
        Table(title, (Column("token"), Column("times", "count")),
              tuple(Row((Token(token["token"]), token["count"])) for token in list(f[key])[: most // 2 or 1]))
        for title, key in (("The token before", "before"), ("The token after", "after"))
    )  # fmt: skip
    missed = max(f["missed"][name] for name in ("tokens", "before", "after"))
    caption = f"A count may be too low by {words.count(missed)} at most." if missed else ""
    return Table("Tokens", columns, rows, caption), Beside(beside)


def _histogram(f: Document) -> Table:
    rows = tuple(Row((words.number(one["activation"], 2), one["count"])) for one in f["histogram"])
    caption = "From each value up to the next, each √2 times as large as the one before."
    return Table("Activations", (Column("from"), Column("tokens", "count", bar=True)), rows, caption)


def _positions(f: Document) -> Table:
    rows = tuple(Row((words.count(one["pos"]), one["count"])) for one in f["positions"])
    caption = "From each position of the window up to the next."
    return Table("Positions", (Column("from"), Column("tokens", "count", bar=True)), rows, caption)


def _partners(f: Document, top: int | None) -> tuple[Block, ...]:
    partners = list(f["partners"]["features"])[: min(TOKENS, top or TOKENS)]
    if not partners:
        return ()
    drawn = f["partners"]["drawn"]
    rows = tuple(
        Row((Feature(one["feature"], one["label"] or ""), one["count"], one["count"] / drawn)) for one in partners
    )
    missed = f["missed"]["partners"]
    caption = f"On {words.count(drawn)} of its tokens, drawn by a hash of their place."
    caption += f" A count may be too low by {words.count(missed)} at most." if missed else ""
    columns = (Column("feature"), Column("together", "count", bar=True), Column("share", "percent"))
    return (Section("What fires with it", (Table("Features of the same SAE", columns, rows, caption),)),)


def _written(f: Document, top: int | None) -> tuple[Block, ...]:
    pairs = list(zip_longest(f["logits"]["top"], f["logits"]["bottom"]))[:top]
    if not pairs:
        return ()
    columns = (Column("raised most"), Column("logit", "signed"), Column("lowered most"), Column("logit", "signed"))
    rows = tuple(
        Row(tuple(cell for one in pair for cell in ((Token(one["token"]), one["logit"]) if one else (None, None))))
        for pair in pairs
    )
    return (Section("What it writes", (Table("Logits of its decoder direction", columns, rows),)),)


# ---------------------------------------------------------------------------------------------------------- the others


def overview(document: Document, top: int | None) -> tuple[Block, ...]:
    o: Any = At(document)
    corpus, left = o["corpus"], o["left_out"]
    said = (
        f"{words.count(o['tokens'])} tokens of {words.count(corpus['documents'])} documents, in windows of up to "
        f"{words.count(o['settings']['window'])} tokens, through {o['model']['name']}"
    )
    columns = (Column("SAE"), Column("features", "count"), Column("dead", "count"), Column("per token", "number", 1))
    rows = tuple(Row((sae["sae"], sae["features"], sae["dead"], sae["l0"])) for sae in o["saes"])
    blocks: list[Block] = [Note(said, "answer"), Table("SAEs", columns, rows)]
    if left["count"]:
        blocks.append(left_out(left, top))
    return tuple(blocks)


def left_out(left: Document, top: int | None = None) -> Table:
    """What of a corpus was not read."""
    listed = list(left["first"])[: top or TOKENS]
    rows = [Row((words.shown(one["where"]), words.shown(one["why"]))) for one in listed]
    if more := left["count"] - len(listed):
        rows.append(Row((f"{words.count(more)} more", ""), "aside"))
    title = f"Left out of the corpus: {words.count(left['count'])}"
    return Table(title, (Column("where"), Column("why")), tuple(rows))


def feature_list(document: Document, top: int | None) -> tuple[Block, ...]:
    d: Any = At(document)
    rows = tuple(
        Row((
            Feature(one["feature"], one["label"] or ""), one["count"], _share(one["density"]) if one["count"] else "",
            one["max"],
            Pairs(tuple((Token(token["token"]), float(token["count"])) for token in one["fires_on"]), "count"),
        ))
        for one in list(d["features"])[:top]
    )  # fmt: skip
    columns = (
        Column("feature"), Column("times", "count"), Column("density"), Column("max", "number"), Column("fires on"),
    )  # fmt: skip
    said = f"{words.count(d['count'])} {d['which']}"
    return Note(said, "answer"), Table(d["title"], columns, rows)


def found(document: Document, top: int | None) -> tuple[Block, ...]:
    d: Any = At(document)
    many = len(d["features"])
    if not many:
        return (Note(f"no feature has “{words.shown(d['query'])}” in its label, its tokens or its contexts", "answer"),)
    columns = (
        Column("feature"), Column("label has it"), Column("of its activation", "percent", bar=True),
        Column("contexts", "count"), Column("times", "count"),
    )  # fmt: skip
    rows = tuple(
        Row((
            Feature(one["feature"], one["label"] or ""), "yes" if one["in_label"] else "", one["token_share"],
            one["contexts"], one["count"],
        ))
        for one in list(d["features"])[:top]
    )  # fmt: skip
    caption = "Of its activation: the share on tokens that have it. Contexts: of its strongest, those with it near by."
    best = d["features"][0]
    said = (
        f"{best['feature']} is nearest to “{words.shown(d['query'])}”, of {words.count(many)} features that are listed"
    )
    return Note(said, "answer"), Table("Features", columns, rows, caption)


def comparison(document: Document, top: int | None) -> tuple[Block, ...]:
    d: Any = At(document)
    columns = (
        Column("feature"), Column("first", "count"), Column("second", "count"),
        Column("log₂ of the ratio", "signed", 2), Column("z", "signed", 1),
    )  # fmt: skip
    rows = tuple(
        Row((Feature(one["feature"], one["label"] or ""), *one["count"], one["log2_ratio"], one["z"]))
        for one in list(d["features"])[:top]
    )
    tokens = [words.count(n) for n in d["tokens"]]
    said = (
        f"{words.count(d['differ'])} of {words.count(d['compared'])} features fire at another share of the tokens "
        f"(|z| above {words.number(d['bound'], 1)}); {words.count(d['only'][0])} fire in the first alone, "
        f"{words.count(d['only'][1])} in the second alone"
    )
    caption = f"Times that it fires at {tokens[0]} and at {tokens[1]} tokens. z takes tokens as drawn independently."
    notes = [Note(text, "warning") for text in d["notes"]]
    return Note(said, "answer"), *notes, Table("What differs most", columns, rows, caption)


def similar(document: Document, top: int | None) -> tuple[Block, ...]:
    d: Any = At(document)
    name = f"{d['feature']} ({words.shown(d['label'])})" if d["label"] else d["feature"]
    if not len(d["features"]):
        return (Note(f"no feature fires on any token on which {name} fires", "answer"),)
    columns = (Column("feature"), Column("alike", "number", bar=True), Column("times", "count"))
    rows = tuple(
        Row((Feature(one["feature"], one["label"] or ""), one["alike"], one["count"]))
        for one in list(d["features"])[:top]
    )
    caption = "Alike: Σ √(p q) over the tokens, p and q being the shares of their activations on each; 1 at most."
    said = f"{d['features'][0]['feature']} fires on most nearly the same tokens as {name}"
    return Note(said, "answer"), Table("Features", columns, rows, caption)
