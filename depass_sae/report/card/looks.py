"""A feature's card as blocks, made of its document alone (:meth:`.FeatureCard.to_dict`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ..._version import __version__
from ...view import words
from ...view.blocks import Beside, Block, Column, Feature, Note, Page, Row, Section, Strip, Table, Token
from ...view.pointer import At

TEXTS, SOURCES = 20, 20
"""So many texts, and source tokens, are shown at most; the document has all."""
PARTS = {"own": "own", "earlier": "earlier", "first": "position 0", "other": "other", "constant": "constant"}


def card_page(document: Mapping[str, Any]) -> Page:
    c = At(document)
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


def card_section(document: Mapping[str, Any], top: int | None = None) -> Section:
    """The whole card. top: how many rows a table has at most."""
    c = At(document)
    feature = Feature(c["name"], c["label"] or "", c["link"])
    fires = [Note(_summary(c), "lead")] if len(c["firings"]) else []
    said = [Note(_sentence(c[key]), "warning") for key in ("note", "warning") if c[key]]
    where = [Section("Where it fires", _texts(c, top))] if len(c["firings"]) else []
    return Section(f"Feature {c['name']}", (*fires, *said, *where, *card_parts(c, top)), feature=feature)


def card_parts(c: At, top: int | None = None) -> tuple[Section, ...]:
    """What is to be said of a feature beside where it fires."""
    drives = [Section("What drives it", (_drives(c), *_sources(c, top)))] if len(c["firings"]) else []
    return (*drives, Section("What it writes", (_votes(c, top),)), Section("What is near it", _near(c, top)))


def rule_of(c: At) -> str:
    return f"rule {c['rule']}" + (f", T = {words.number(c['temperature'], 2)}" if c["rule"] == "softmax" else "")


def _summary(c: At) -> str:
    first, many = c["firings"][0], [words.count(c[key]) for key in ("n_firings", "n_positions")]
    most = f"most at {words.formatted(_at(c, first))}: {words.number(first['activation'])}"
    return f"{c['name']} fires at {' of '.join(many)} positions ({words.percent(c['density'])}), {most}"


def _at(c: At, firing: At) -> Token:
    return Token(firing["token"], firing["pos"], f"text {firing['prompt'] + 1}" if len(c["prompts"]) > 1 else "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _explained(c: At) -> list[str]:
    found = [share for prompt in c["prompts"] if (share := prompt["fit"]["explained_variance"]) is not None]
    if not found:
        return []
    low, high = (words.percent(end(found)) for end in (min, max))
    what = "this text" if len(c["prompts"]) == 1 else "these texts"
    return [f"on {what} the SAE explains {low}{'' if low == high else f' to {high}'} of the variance"]


# ----------------------------------------------------------------------------------------------------- where it fires


def _texts(c: At, top: int | None) -> tuple[Strip, ...]:
    """The texts with the strongest firings."""
    numbers = list(dict.fromkeys(firing["prompt"] for firing in c["firings"]))
    listed = numbers[: min(TEXTS, top or TEXTS)]
    silent = len(c["prompts"]) - len(numbers)
    left = [(len(numbers) - len(listed), "with weaker firings"), (silent, "without a firing")]
    caption = "A token’s contributions, as the firing token and as an earlier one; position 0 is in none of them."
    return [Table("Source tokens over these firings", columns, tuple(rows), caption)] if found else []


# ----------------------------------------------------------------------------------------------------- what it writes


def _votes(c: At, top: int | None) -> Block:
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


def _vote(vote: At | None) -> tuple[Token | str | None, float | None]:
    return (
        (None, None) if vote is None else (Token(vote["token"]) if vote["token"] else f"#{vote['id']}", vote["logit"])
    )


# ---------------------------------------------------------------------------------------------------- what is near it


def _near(c: At, top: int | None) -> tuple[Block, ...]:
    before, behind = c["flow"]["previous"], c["flow"]["next"]
    many = c["flow"]["firings"]
    firings = "its strongest firing" if many == 1 else f"its {many} strongest firings"
    tables = [_features("By decoder cosine", "In the same SAE.", c["nearest"], "cosine", None, top)]
    notes = []
    if before is not None:
        title, of = f"Layer {before['layer']}, before it", f"What they contribute to its pre-activation at {firings}."
        tables.append(_features(title, of, before["features"], "contribution", "firings", top))
        whole = words.signed(c["sources"]["sums"]["pre_activation"])
        parts = [words.signed(before[key]) for key in ("total", "errors", "other")]
        notes.append(
            f"Of {whole} in all, {parts[0]} comes from the features of layer {before['layer']}, {parts[1]} from what "
            f"its SAE missed, {parts[2]} from position 0, biases and constants (rule {c['flow']['rule']})."
        )
    if behind is not None:
        title, of = f"Layer {behind['layer']}, behind it", f"What it contributes where they fire, from {firings}."
        tables.append(_features(title, of, behind["features"], "contribution", "places", top))
    if len(c["firings"]):
        missing = [where for where, flow in (("before", before), ("behind", behind)) if flow is None]
        notes += [f"No SAE on the residual stream is loaded {where} it." for where in missing]
    return (Beside(tuple(tables)), *(Note(text, "quiet") for text in notes))


def _features(title: str, of: str, listed: Sequence[At] | At, key: str, places: str | None, top: int | None) -> Table:
    rows = [
        Row(
            (
                Feature(entry["feature"], entry["label"] or "", entry["link"]),
                entry[key],
                *([entry["count"]] if places else []),
            )
        )
        for entry in list(listed)[:top]
    ]
    columns = (Column("feature"), Column(key, "signed"), *([Column(places, "count")] if places else []))
    return Table(title, columns, tuple(rows), of)
