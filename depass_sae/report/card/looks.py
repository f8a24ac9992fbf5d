"""A feature's card as blocks, made of its document alone (:meth:`.FeatureCard.to_dict`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, zip_longest
from typing import Any

from ..._version import __version__
from ...attribution.looks import EFFECTS, Document, rule_of
from ...view import words
from ...view.blocks import (
    Bars,
    Beside,
    Block,
    Column,
    Feature,
    Mark,
    Note,
    Page,
    Pairs,
    Row,
    Section,
    Strip,
    Table,
    Token,
)
from ...view.pointer import At

FAR = 0.05
"""So much of a context's largest activation may be between Neuronpedia's and ours before that is said."""
TEXTS, SOURCES = 20, 20
"""So many texts, and source tokens, are shown at most; the document has all."""
PARTS = {"own": "own", "earlier": "earlier", "first": "position 0", "other": "other", "constant": "constant"}


def card_page(document: Document) -> Page:
    c: Any = At(document)
    section = card_section(document)
    release = [part for part in (c["sae"]["release"], c["sae"]["id"]) if part]
    return Page(
        section.title,
        section.blocks,
        kicker="Feature card",
        byline=(
            c["model"],
            f"{c['feature']['hook']} of layer {c['feature']['layer']}",
            f"{c['sae']['architecture']} SAE, {words.count(c['sae']['d_sae'])} features",
        ),
        colophon=(
            f"depass-sae {__version__}",
            rule_of(c),
            c["dtype"],
            *([f"SAE {', '.join(release)}"] if release else []),
            *_explained(c),
        ),
        feature=section.feature,
    )


def card_section(document: Document, top: int | None = None) -> Section:
    """The whole card. top: how many rows a table has at most."""
    c: Any = At(document)
    feature = Feature(c["name"], c["label"] or "", c["link"])
    fires = [Note(_summary(c), "lead")] if len(c["firings"]) else []
    said = [Note(_sentence(c[key]), "warning") for key in ("note", "warning") if c[key]]
    where = [Section("Where it fires", _texts(c, top))] if len(c["firings"]) else []
    return Section(f"Feature {c['name']}", (*fires, *said, *where, *card_parts(c, top)), feature=feature)


def card_parts(c: Document, top: int | None = None) -> tuple[Section, ...]:
    """What is to be said of a feature beside where it fires."""
    drives = [Section("What drives it", (_drives(c), *_sources(c, top)))] if len(c["firings"]) else []
    public = [Section("What Neuronpedia has", _public(c, top))] if "public" in c else []
    return (*drives, Section("What it writes", (_votes(c, top),)), Section("What is near it", _near(c, top)), *public)


def _summary(c: Document) -> str:
    first, many = c["firings"][0], [words.count(c[key]) for key in ("n_firings", "n_positions")]
    most = f"most at {words.formatted(_at(c, first))}: {words.number(first['activation'])}"
    return f"{c['name']} fires at {' of '.join(many)} positions ({words.percent(c['density'])}), {most}"


def _at(c: Document, firing: Document) -> Token:
    return Token(firing["token"], firing["pos"], f"text {firing['prompt'] + 1}" if len(c["prompts"]) > 1 else "")


def _sentence(text: str) -> str:
    return words.capital(text) + ("" if text.endswith(".") else ".")


def _explained(c: Document) -> list[str]:
    found = [share for prompt in c["prompts"] if (share := prompt["fit"]["explained_variance"]) is not None]
    if not found:
        return []
    low, high = (words.percent(end(found)) for end in (min, max))
    what = "this text" if len(c["prompts"]) == 1 else "these texts"
    return [f"on {what} the SAE explains {low}{'' if low == high else f' to {high}'} of the variance"]


# ----------------------------------------------------------------------------------------------------- where it fires


def _texts(c: Document, top: int | None) -> tuple[Strip, ...]:
    """The texts with the strongest firings."""
    numbers = list(dict.fromkeys(firing["prompt"] for firing in c["firings"]))
    listed = numbers[: min(TEXTS, top or TEXTS)]
    silent = len(c["prompts"]) - len(numbers)
    left = [(len(numbers) - len(listed), "with weaker firings"), (silent, "without a firing")]
    caption = "; ".join(f"{words.count(n)} {'text' if n == 1 else 'texts'} {what} not shown" for n, what in left if n)
    return tuple(
        _strip(c["prompts"][number], str(number + 1) if len(c["prompts"]) > 1 else "", caption * (number == listed[-1]))
        for number in listed
    )


def _strip(text: Document, label: str, caption: str) -> Strip:
    sunk = set(text.get("sinks") or ())
    marks = [
        Mark(token, pos, value)
        for pos, (token, value) in enumerate(zip(text["tokens"], text["activations"], strict=True))
        if value is not None or pos in sunk  # else it is a special token
    ]
    return Strip("", tuple(marks), "activation", caption, label)


# ----------------------------------------------------------------------------------------------------- what drives it


def _drives(c: Document) -> Table:
    firings, sums = c["sources"]["firings"], c["sources"]["sums"]
    apart = any(words.number(f["activation"]) != words.number(f["pre_activation"]) for f in firings)
    activation = ["activation"] * apart  # else it is the last number
    rows = [
        Row((_at(c, firing), *(firing[part] for part in (*activation, *PARTS, "pre_activation")), _largest(firing)))
        for firing in firings
    ]
    if len(rows) > 1:
        rows.append(
            Row(
                ("sum", *(None for _ in activation), *(sums[part] for part in (*PARTS, "pre_activation")), None),
                "total",
            )
        )
    which = "strongest firing" if len(firings) == 1 else f"{len(firings)} strongest firings"
    worst = max(firing["completeness_error"] for firing in firings)
    return Table(
        f"At its {which}, by source token ({rule_of(c)})",
        (
            Column("fires at"),
            *(Column(name, "number") for name in activation),
            *(Column(name, "signed") for name in PARTS.values()),
            Column("pre-activation", "signed"),
            Column("largest earlier"),
        ),
        tuple(rows),
        "The own token, earlier tokens, position 0, other (bias vectors, and what the rule leaves over) and the "
        f"constant sum to the pre-activation; completeness error at most {words.error(worst)}.",
    )


def _largest(firing: Document) -> Pairs | None:
    found = max(firing["tokens"], key=lambda token: abs(token["value"]), default=None)
    return None if found is None else Pairs(((Token(found["token"], found["pos"]), found["value"]),), digits=3)


def _sources(c: Document, top: int | None) -> list[Block]:
    found = list(c["sources"]["tokens"])
    listed, others = found[: min(SOURCES, top or SOURCES)], found[min(SOURCES, top or SOURCES) :]
    keys = ("total", "own", "earlier", "count")
    rows = [Row((Token(entry["token"]), *(entry[key] for key in keys))) for entry in listed]
    if others:
        rest = (sum(entry[key] for entry in others) for key in keys)
        rows.append(Row((f"{words.count(len(others))} others", *rest), "aside"))
    columns = (
        Column("source token"), Column("sum", "signed", bar=True), Column("as own", "signed"),
        Column("as earlier", "signed"), Column("places", "count"),
    )  # fmt: skip
    caption = "A token’s contributions, as the firing token and as an earlier one; position 0 is in none of them."
    return [Table("Source tokens over these firings", columns, tuple(rows), caption)] if found else []


# ----------------------------------------------------------------------------------------------------- what it writes


def _votes(c: Document, top: int | None) -> Block:
    if c["logits"] is None:
        return Note("Its decoder does not write into the residual stream, so it has no logits of its own.", "quiet")
    pairs = zip_longest(*(list(c["logits"][key])[:top] for key in ("top", "bottom")))
    rows = [Row(tuple(cell for vote in pair for cell in _vote(vote))) for pair in pairs]
    names = ("raised most", "logit", "lowered most", "logit")
    return Table(
        "Logits of its decoder direction",
        tuple(Column(name, "signed" if name == "logit" else "text") for name in names),
        tuple(rows),
        f"Straight to the output, past all layers in between: {c['logits']['direction']}.",
    )


def _vote(vote: Document | None) -> tuple[Token | str | None, float | None]:
    if vote is None:
        return None, None
    return Token(vote["token"]) if vote["token"] else f"#{vote['id']}", vote["logit"]


# ---------------------------------------------------------------------------------------------------- what is near it


def _near(c: Document, top: int | None) -> tuple[Block, ...]:
    before, behind = c["flow"]["previous"], c["flow"]["next"]
    many = c["flow"]["firings"]
    firings = "its strongest firing" if many == 1 else f"its {many} strongest firings"
    tables = [_features("By decoder cosine", list(c["nearest"])[:top], "cosine", caption="In the same SAE.")]
    if before is not None:
        listed = list(before["features"])[:top]
        others = before["total"] - sum(entry["contribution"] for entry in listed)
        whole = c["sources"]["sums"]["pre_activation"]
        rows = (
            ("other features", others),
            ("SAE errors", before["errors"]),
            ("position 0, constants", before["other"]),
        )
        ends = (
            *(Row((*row, None, None), "aside") for row in rows),
            Row(("pre-activation", whole, None, None), "total"),
        )
        said = words.capital(EFFECTS)
        caption = f"What they contribute at {firings}, summed (rule {c['flow']['rule']}). {said}."
        title = f"Layer {before['layer']}, before it"
        tables.append(_features(title, listed, "contribution", ("firings",), ends, caption, ("effect",)))
    if behind is not None:
        listed = list(behind["features"])[:top]
        ends = (Row(("all features", behind["total"], None), "aside"),)
        caption = f"What it contributes where they fire, from {firings}, summed."
        title = f"Layer {behind['layer']}, behind it"
        tables.append(_features(title, listed, "contribution", ("places",), ends, caption))
    if "downstream" in c:
        caption = f"What it does to them, from {firings}, summed: through no other feature, by all ways, as an effect."
        listed = list(c["downstream"])[:top]
        tables.append(
            _features("What it goes on to do", listed, "total", ("places",), (), caption, ("direct", "effect"))
        )
    missing = [where for where, flow in (("before", before), ("behind", behind)) if flow is None and len(c["firings"])]
    notes = (Note(f"No SAE on the residual stream is loaded {where} it.", "quiet") for where in missing)
    return (Beside(tuple(tables)), *notes)


def _features(
    title: str,
    listed: Sequence[Document],
    key: str,
    counted: tuple[str, ...] = (),
    ends: tuple[Row, ...] = (),
    caption: str = "",
    more: tuple[str, ...] = (),
) -> Table:
    rows = (
        Row(
            (
                Feature(f["feature"], f["label"] or "", f["link"]),
                *(f[name] for name in (key, *more)),
                *(f["count"] for _ in counted),
            )
        )
        for f in listed
    )
    numbers = (*(Column(name, "signed") for name in (key, *more)), *(Column(name, "count") for name in counted))
    columns = (Column("feature"), *numbers)
    return Table(title, columns, (*rows, *ends), caption)


# --------------------------------------------------------------------------------------------------- known elsewhere


def _public(c: Document, top: int | None) -> tuple[Block, ...]:
    """Neuronpedia's own contexts, numbers and logits, and where this model sees the contexts otherwise."""
    p = c["public"]
    said = [] if p["density"] is None else [f"fires at {words.percent(p['density'])} of all tokens"]
    said += [] if p["largest"] is None else [f"largest activation {words.number(p['largest'])}"]
    shown = list(p["contexts"])[: min(TEXTS, top or TEXTS)]
    strips = (
        Strip("", tuple(Mark(*mark) for mark in zip(context["tokens"], count(), context["values"], strict=False)),
              "activation", label=str(number))
        for number, context in enumerate(shown, start=1)
    )  # fmt: skip
    histogram = Bars(
        "How strongly it fires", tuple(words.number(bar["activation"], 1) for bar in p["histogram"]),
        tuple(bar["count"] for bar in p["histogram"]), "tokens",
    )  # fmt: skip
    pairs = zip_longest(list(p["top"])[:top], list(p["bottom"])[:top])
    logits = Table(
        "Logits, as Neuronpedia has them",
        (Column("raised most"), Column("logit", "signed"), Column("lowered most"), Column("logit", "signed")),
        tuple(
            Row(tuple(cell for one in pair for cell in ((Token(one["token"]), one["logit"]) if one else (None, None))))
            for pair in pairs
        ),
    )
    return (
        *([Note(_sentence(", ".join(said)))] if said else []),
        *_differences(p),
        *strips,
        *([histogram] if histogram.values else []),
        *([logits] if logits.rows else []),
    )


def _differences(p: Document) -> list[Block]:
    """What has to be said where a context is not here what it is there."""
    far = [one for one in p["compared"] if one["differs"] is not None and one["differs"] > FAR]
    other = [one for one in p["compared"] if one["differs"] is None]
    found: list[Block] = []
    if far:
        worst = max(far, key=lambda one: one["differs"])
        text = p["contexts"][worst["context"]]
        found.append(
            Note(
                f"In {words.count(len(far))} of {words.count(len(p['compared']))} contexts activations differ from "
                f"Neuronpedia's by more than {words.percent(FAR)} of the largest; most in context "
                f"{words.count(worst['context'] + 1)} at position {worst['pos']}, by "
                f"{words.percent(worst['differs'])} of {words.number(max(map(abs, text['values'])))}. A dashboard's "
                "texts may be cut out of longer ones, or be of another model, precision or version.",
                "warning",
            )
        )
    if other:
        which = ", ".join(words.count(one["context"] + 1) for one in other)
        found.append(Note(f"Not compared, since this tokenizer splits them otherwise: context {which}.", "quiet"))
    return found
