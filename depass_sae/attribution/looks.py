"""What answers look like: from their documents to blocks.

An answer opens with itself in one line. What a reader can change is ranked by size; special tokens, what is no source
and the constant stand apart below it. A document that knows its pointers (:class:`..view.pointer.At`) hands them on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from ..view.blocks import (
    Block,
    Cell,
    Column,
    Feature,
    HeatMap,
    Mark,
    Note,
    Pairs,
    Row,
    Spread,
    Strip,
    Table,
    Token,
)
from ..view.pointer import At
from ..view.words import capital, count, error, formatted, named, number, percent, place, shown, signed, written

Document = Mapping[str, Any] | At

PARTS = {"heads": "head", "modules": "module", "neurons": "neuron"}
Order = Literal["abs", "contribution", "effect"]
"""What parts come first: the largest contributions of either sign, the most positive ones, or the largest effects of
either sign."""
EFFECTS = (
    "an effect is what the target would lose without the part, to first order, with attention, norms and MLPs free to "
    "change; effects do not add up to anything"
)
SOURCES = 4
"""So many source tokens are named beside a head."""
WIDEST = 64
"""A heat map has so many rows and columns at most; layers with more parts (neurons) are shown as a table alone."""
MAPPED = 12
"""So many of a layer's features have a row in a heat map."""
TOLD = 5
"""So many targets are told of in an answer."""


# ----------------------------------------------------------------------------------------------------- in every answer


def by_size(values: Iterable[float]) -> list[int]:
    """The order in which numbers are ranked everywhere."""
    sizes = [abs(value) for value in values]
    return sorted(range(len(sizes)), key=lambda i: -sizes[i])


def at_target(document: Document, target: Document) -> str:
    """``feature 17/2601 at change (7)``"""
    return f"{document['name']} at {place(target['token'], target['pos'])}"


def rule_of(document: Document) -> str:
    temperature = f", T = {number(document['temperature'], 1)}" if document["rule"] == "softmax" else ""
    qk = ""
    if "qk_share" in document:
        qk = "" if document["qk_share"] == 0.5 else f", share {number(document['qk_share'], 2)}"
        qk += "" if document["qk_slope"] == "local" else f", {document['qk_slope']} slope"
    return f"rule {document['rule']}{temperature}{qk}"


def missed(document: Document, target: Document) -> str:
    """The completeness error, and where it comes from."""
    value = target["completeness_error"]
    half = document["dtype"] in ("bfloat16", "float16") and value > 1e-4
    cause = f" (the rounding of {document['dtype']}; a trace_dtype of float32 takes it away)" if half else ""
    return f"completeness error {error(value)}{cause}"


def fitting(document: Document) -> tuple[Note, ...]:
    """How well the SAE fits, and what must not be missed of that and of the answer."""
    fit, said = document["fit"], []
    if fit is not None:
        said.append(Note(fit_sentence(fit), "quiet"))
        said += [Note(fit["warning"], "warning")] if fit["warning"] else []
    return (*said, *noted(document))


def noted(document: Document) -> tuple[Note, ...]:
    return (Note(document["note"], "warning"),) if document["note"] else ()


def fit_sentence(fit: Document) -> str:
    explained, l0 = fit["explained_variance"], number(fit["l0"], 1)
    of_it = "" if explained is None else f"explains {percent(explained)} of the variance, "
    return f"On this prompt the SAE {of_it}has {l0} features active per token (position 0 left out)."


def strength(target: Document) -> float:
    """By which an answer's ``target`` is the strongest: a feature may fire with either sign."""
    activation = target["activation"]
    return float(target["pre_activation"] if activation is None else abs(activation))


def share_of(value: float, whole: float) -> float | None:
    """Of nothing, or of a negative number, a share says nothing."""
    return float(value) / whole if whole > 0 else None


def gives(name: str, value: float, whole: float) -> str:
    """``climate (6) gives 71 %``"""
    share = share_of(value, whole)
    return f"{name} contributes {signed(value)}" if share is None or share < 0 else f"{name} gives {percent(share)}"


def others_of(n: int) -> str:
    """``12 others``"""
    return f"{count(n)} other{'' if n == 1 else 's'}"


# --------------------------------------------------------------------------------------------------------------- tokens


def token_blocks(document: Document, top: int | None = None) -> tuple[Block, ...]:
    """Of each target the prompt, shaded, and its sources ranked; with the growth by depth, where that was asked for."""
    blocks: list[Block] = [token_answer(document)]
    for target in document["targets"]:
        blocks += [token_strip(document, target), token_table(document, target, top)]
        if "by_depth" in target:
            blocks.append(depth_map(document, target))
    return (*blocks, *fitting(document))


def token_answer(document: Document) -> Note:
    """What gives most to the strongest target, in a line; and to the others, below it."""
    targets = sorted(document["targets"], key=strength, reverse=True)
    lines = [told for target in targets[:TOLD] if (told := _token_line(document, target))]
    more = len(document["targets"]) - TOLD
    return Note(
        lines[0] if lines else f"No source of {document['name']} can be changed",
        "answer",
        (*lines[1:], *([f"and {more} more positions"] if more > 0 else [])),
    )


def _token_line(document: Document, target: Document) -> str:
    sources = ranked_sources(document, target)
    silent = target["activation"] == 0
    if not sources:
        return ""
    first, whole = sources[0], target["pre_activation"]
    line = f"{gives(place(first['token'], first['pos']), first['value'], whole)} of {at_target(document, target)}"
    if silent:
        line += f", which does not fire (pre-activation {signed(whole)})"
    if not first.get("measured"):
        return line
    mean = first["measured"]["mean"]
    if target["measured"]["kind"] == "replace":
        return f"{line}; {REMOVED[_removal(target)]}: {signed(-mean, 1)}"
    return f"{line}; its Shapley value is {number(mean, 1)}"


def is_special(document: Document, source: Document) -> bool:
    """Whether a source is a special token: no reader can change it."""
    return source["pos"] in list(document["special"])


def ranked_sources(document: Document, target: Document) -> list[Document]:
    """What a reader can change, largest first: no special tokens."""
    sources = [source for source in target["contributions"] if not is_special(document, source)]
    return [sources[i] for i in by_size(source["value"] for source in sources)]


def token_strip(document: Document, target: Document) -> Strip:
    marks = [
        Mark(source["token"], source["pos"], source["value"], aimed=source["pos"] == target["pos"])
        for source in target["contributions"]
    ]
    return Strip(at_target(document, target), tuple(marks), unit="contribution")


def token_columns(document: Document, target: Document) -> tuple[Column, ...]:
    measured = {"replace": f"lost when {REMOVED[_removal(target)]}", "shapley": "Shapley value"}
    return (
        Column(f"source {document['by']}"),
        Column("contribution", "signed", bar=True),
        Column("share", "percent"),
        *([Column(measured[target["measured"]["kind"]], "signed", 2)] if "measured" in target else []),
    )


REMOVED = {"text": "replaced", "delete": "deleted", "mask": "masked"}


def _removal(target: Document) -> str:
    return str(target["measured"]["removal"]).partition(":")[0] if "measured" in target else "text"


def token_table(document: Document, target: Document, top: int | None) -> Table:
    columns = token_columns(document, target)
    return Table(
        at_target(document, target), columns, token_rows(document, target, top), token_caption(document, target)
    )


def token_rows(
    document: Document, target: Document, top: int | None, group: str | Token | None = None
) -> tuple[Row, ...]:
    """All of what sums to the pre-activation."""
    whole, measured = target["pre_activation"], "measured" in target
    alone = measured and target["measured"]["kind"] == "replace"

    def row(name: Cell, value: float, role: Any, source: Document = {}) -> Row:  # noqa: B006 (read alone)
        lost = source.get("measured")
        spread = None if lost is None else Spread(lost["mean"], lost["std" if alone else "error"])
        share = None if role == "total" else share_of(value, whole)
        return Row((name, value, share, *([spread] if measured else [])), role, group, source.get("pos"))

    def of_source(source: Document, role: str) -> Row:
        return row(Token(source["token"], source["pos"]), source["value"], role, source)

    ranked = ranked_sources(document, target)
    others = ranked[len(ranked[:top]) :]
    rows = [of_source(source, "ranked") for source in ranked[:top]]
    if others:
        rows.append(row(others_of(len(others)), sum(source["value"] for source in others), "aside"))
    rows += [of_source(source, "aside") for source in target["contributions"] if is_special(document, source)]
    rows += [row(other["name"], other["value"], "aside") for other in target["other"] if other["value"]]
    rows.append(row("constant", target["constant"], "aside"))
    if measured and not alone:
        found = target["measured"]
        spread = Spread(found["baseline"], found["baseline_error"])
        rows.append(Row(("baseline: none of them there", None, None, spread), "aside", group))
    return (*rows, row("sum" if target["activation"] is None else "pre-activation", whole, "total"))


def token_caption(document: Document, target: Document) -> str:
    said = [f"{rule_of(document)}, by {document['by']}"]
    if target["activation"] is not None:
        said.append(f"activation {number(target['activation'])}" if target["activation"] else "does not fire here")
    if target["margin"] is not None:
        beyond = "above" if target["margin"] >= 0 else "below"
        said.append(f"{number(abs(target['margin']))} {beyond} what it takes to fire")
    said.append(missed(document, target))
    if "measured" in target:
        said += measured_caption(target["measured"])
    return "; ".join(said)


def measured_caption(found: Document) -> list[str]:
    """How it was measured, why no longer, and how well contributions agree with it."""
    removal = str(found["removal"])
    n, by = found["replacements"], {"text": "random tokens", "delete": ""}.get(removal, f"{removal[5:]!r}")
    by += f" of {found['replace_from']}" if found["replace_from"] else ""
    if found["kind"] == "replace":
        many = f"{count(n)} {by}" if removal == "text" else by
        said = [f"each source {REMOVED[removal.partition(':')[0]]}" + (f" by {many}" if by else "")]
    else:
        orders = "all coalitions" if found["enumerated"] else f"{count(n)} pairs of orders"
        draws = f", {count(n)} draws" if found["enumerated"] and removal == "text" else ""
        how = f"{REMOVED[removal.partition(':')[0]]}{f' by {by}' if by else ''}"
        said = [f"Shapley values over {orders}{draws}, what is not there {how}; ± is the standard error"]
    asked = found["asked"]
    if asked is not None and found["stopped"] == "time":
        said.append(
            f"stopped after {number(asked['seconds'], 0)} s, before all errors were below {percent(asked['error'])}"
        )
    if asked is not None and found["stopped"] == "error":
        said.append(f"errors at most {percent(asked['error'])} of the pre-activation")
    return said + ([agreeing(found["agreement"])] if found["agreement"] is not None else [])


def agreeing(found: Document) -> str:
    """``rank correlation 0.64 (95 %: 0.39 to 0.80; 32 without the target’s own; the measurement with itself 0.81)``"""
    ceiling = found["reliability"]
    itself = "" if ceiling is None else f"; the measurement with itself {number(ceiling, 2)}"
    return (
        f"rank correlation {number(found['rank'], 2)} (95 %: {number(found['low'], 2)} to {number(found['high'], 2)}; "
        f"{count(found['n'])} sources without the target’s own{itself})"
    )


def depth_map(document: Document, target: Document) -> HeatMap:
    """How each source's share grows layer by layer, the last on top."""
    found = target["by_depth"]
    levels = list(found)[::-1]
    names = [Token(source["token"], source["pos"]) for source in target["contributions"]]
    others = [other["name"] for other in target["other"]]
    return HeatMap(
        title=f"{at_target(document, target)}, by depth",
        rows=tuple("embeddings" if level["layer"] < 0 else str(level["layer"]) for level in levels),
        columns=(*names, *others),
        values=tuple((*level["values"], *(other["value"] for other in level["other"])) for level in levels),
        down="layer",
        across="source",
        unit="contribution",
        caption="What each source has put along the target's direction behind each layer; the topmost row is the "
        "answer. A row and the constant sum to the number at its end.",
        totals=tuple(level["total"] for level in levels),
        total="all",
    )


def contrast_blocks(document: Document, top: int | None = None) -> tuple[Block, ...]:
    """The aligned sources of two prompts, largest difference first."""
    a, b, difference = document, document["against"], document["difference"]
    first, second = _at(a, difference["pos"]), _at(b, difference["against_pos"])
    changed: list[Document] = []
    kept: list[Document] = []
    for pair in difference["sources"]:
        ends = zip((a, b), (pair["source"], pair["against"]), strict=True)
        special = any(end is not None and is_special(of, end) for of, end in ends)
        (kept if special else changed).append(pair)
    pairs = [changed[i] for i in by_size(pair["value"] for pair in changed)]

    def end(source: Document | None) -> tuple[Cell, Cell]:
        return (None, None) if source is None else (Token(source["token"], source["pos"]), source["value"])

    def same(pair: Document) -> bool:
        ends = pair["source"], pair["against"]
        return None not in ends and ends[0]["token"] == ends[1]["token"]

    def row(name: str, x: float, y: float, role: Any = "aside") -> Row:
        return Row((name, x, None, y, x - y), role)

    def aligned(pair: Document, role: Any) -> Row:
        return Row((*end(pair["source"]), *end(pair["against"]), pair["value"]), role)

    rows = [aligned(pair, "ranked" if same(pair) else "strong") for pair in pairs[:top]]
    others = pairs[len(rows) :]
    if others:
        sums = (sum(p[key]["value"] for p in others if p[key] is not None) for key in ("source", "against"))
        rows.append(row(others_of(len(others)), *sums))
    rows += [aligned(pair, "aside") for pair in kept]
    for x, y in zip(first["other"], second["other"], strict=True):
        rows += [row(x["name"], x["value"], y["value"])] if x["value"] or y["value"] else []
    rows.append(row("constant", first["constant"], second["constant"]))
    rows.append(row("pre-activation", first["pre_activation"], second["pre_activation"], "total"))
    columns = (
        Column("source"), Column("contribution", "signed"), Column("against"), Column("its contribution", "signed"),
        Column("difference", "signed", bar=True),
    )  # fmt: skip
    title = f"{at_target(a, first)}, against {place(second['token'], second['pos'])}"
    return (
        _contrast_answer(document, pairs[0] if pairs else None),
        token_strip(a, first),
        token_strip(b, second),
        Table(title, columns, tuple(rows), token_caption(a, first)),
        *fitting(a),
        *fitting(b),
    )


def _at(document: Document, pos: int) -> Document:
    return next(target for target in document["targets"] if target["pos"] == pos)


def _contrast_answer(document: Document, largest: Document | None) -> Note:
    whole = f"{document['name']}: {signed(document['difference']['pre_activation'])} between the prompts"
    if largest is None:
        return Note(whole, "answer")
    ends = [None if end is None else place(end["token"], end["pos"]) for end in (largest["source"], largest["against"])]
    names = " instead of ".join(dict.fromkeys(end for end in ends if end is not None))
    return Note(f"{whole}, {signed(largest['value'])} of it from {names}", "answer")


# ---------------------------------------------------------------------------------------------------------------- parts


def component_blocks(document: Document, top: int | None = None) -> tuple[Block, ...]:
    """Of each target all parts as a heat map, where they fit into one, and the largest as a table."""
    blocks: list[Block] = [part_answer(document)]
    for target in document["targets"]:
        blocks += [*part_maps(document, target), part_table(document, target, top)]
        if (ledger := ledger_map(document, target)) is not None:
            blocks.append(ledger)
    return (*blocks, *fitting(document))


def kind_of(document: Document) -> str:
    """heads, modules or neurons."""
    return next(kind for kind in PARTS if kind in document["targets"][0])


def part_name(entry: Document, kind: str) -> str:
    """``L5H3``, ``attn 5``, ``mlp 5`` or ``L5N817``; of an expert's neuron ``L5N12.817``."""
    index = entry[PARTS[kind]]
    return f"{index} {entry['layer']:d}" if kind == "modules" else f"L{entry['layer']:d}{kind[0].upper()}{index}"


Numbers = TypeVar("Numbers", bound=Any)


def score(sort: Order, contribution: Numbers, effect: Any) -> Numbers:
    """By what parts are ranked in an order, of one or of many at once."""
    return contribution if sort == "contribution" else abs(effect if sort == "effect" else contribution)


def ranked_parts(parts: Iterable[Document], sort: Order, value: str = "value") -> list[Document]:
    """The parts of all layers, in an order. They overlap: one of layer 3 reaches the target through later ones.

    value: the key of a part's contribution.
    """
    return sorted(parts, key=lambda part: -score(sort, part[value], part.get("effect")))


def part_answer(document: Document) -> Note:
    kind = kind_of(document)
    strongest = max(document["targets"], key=strength)
    first = ranked_parts(strongest[kind], document["sort"])[:1]
    if not first:
        return Note(f"No {PARTS[kind]} lies before {document['name']}", "answer")
    at = at_target(document, strongest)
    if document["sort"] == "effect":
        return Note(largest_effect(part_name(first[0], kind), first[0], at), "answer")
    line = gives(part_name(first[0], kind), first[0]["value"], strongest["pre_activation"])
    carried = [share for share in first[0].get("by_token", ()) if share["value"]]
    if carried:
        most = carried[by_size(share["value"] for share in carried)[0]]
        line += f", {signed(most['value'])} of it from {place(most['token'], most['pos'])}"
    return Note(f"{line}: the largest {PARTS[kind]} for {at}", "answer")


def largest_effect(name: str, part: Document, target: str) -> str:
    """``L5H3 has the largest effect on feature 17/2601 at change (7): +2.1``"""
    return f"{name} has the largest effect on {target}: {signed(part['effect'])}"


def part_table(document: Document, target: Document, top: int | None) -> Table:
    kind = kind_of(document)
    listed = ranked_parts(target[kind], document["sort"])[:top]
    split, effects = (any(key in part for part in listed) for key in ("by_token", "effect"))

    def row(part: Document) -> Row:
        cells: tuple[Cell, ...] = (part_name(part, kind), part["value"], share_of(part["value"], whole))
        measured = [found.get((part["layer"], part.get("head")))] if found else []
        return Row((*cells, *([_carried(part)] if split else []), *([part["effect"]] if effects else []), *measured))

    whole = target["pre_activation"]
    measured = target.get("measured")
    found = {(v["layer"], v["head"]): Spread(v["value"], v["error"]) for v in (measured["values"] if measured else ())}
    name = {"shapley": "Shapley value", "replace": "lost without it"}
    columns = (
        Column(PARTS[kind]), Column("contribution", "signed", bar=True), Column("share", "percent"),
        *([Column("of which from")] if split else []), *([Column("effect", "signed", bar=True)] if effects else []),
        *([Column(name[measured["kind"]], "signed", 2)] if measured else []),
    )  # fmt: skip
    activation = "" if target["activation"] is None else f"activation {number(target['activation'])}; "
    caption = (
        f"{rule_of(document)}; {activation}pre-activation {signed(whole)}, to which every layer's row sums with the "
        f"constant {signed(target['constant'])}; rows of different layers overlap; {missed(document, target)}"
        + (f"; {EFFECTS}" if effects else "")
        + (f"; {measured_heads_caption(measured)}" if measured else "")
    )
    return Table(
        f"{at_target(document, target)}, by {kind}",
        columns,
        tuple(row(part) for part in listed),
        caption,
    )


def measured_heads_caption(found: Document) -> str:
    """How heads were measured, and why no longer."""
    mean = "the prompt" if found["reference"] is None else "the reference text"
    said = f"the {count(len(found['values']))} largest heads measured, a head that is out being its mean over {mean}"
    if found["kind"] == "replace":
        return said + ", one at a time"
    orders = "all coalitions" if found["enumerated"] else f"{count(found['orders'])} pairs of orders"
    said += f": Shapley values over {orders}, which sum with the baseline {signed(found['baseline'])} to the target"
    if found["stopped"] == "time":
        asked = found["asked"]
        said += (
            f"; stopped after {number(asked['seconds'], 0)} s, before all errors were below {percent(asked['error'])}"
        )
    return said


def _carried(part: Document) -> Pairs | None:
    """The tokens that most of a head came from."""
    sources: list[tuple[Token | str, float]] = [(Token(s["token"], s["pos"]), s["value"]) for s in part["by_token"]]
    order = by_size(value for _, value in sources)
    return Pairs(tuple(sources[i] for i in order[:SOURCES]))


def part_maps(document: Document, target: Document) -> list[HeatMap]:
    """All parts, layers upwards; none where a layer has too many."""
    kind = kind_of(document)
    title = f"{at_target(document, target)}, every {PARTS[kind]}"
    return _layer_map(title, list(target[kind]), kind, document["sort"])


def _layer_map(title: str, parts: Sequence[Document], kind: str, sort: Order) -> list[HeatMap]:
    """Of the contributions, or of the effects where these are what parts are ranked by."""
    key, unit = ("effect", "effect") if sort == "effect" else ("value", "contribution")
    layers: dict[int, dict[str, Document]] = {}
    for part in parts:
        layers.setdefault(int(part["layer"]), {})[str(part[PARTS[kind]])] = part
    columns = list(dict.fromkeys(name for parts in layers.values() for name in parts))
    if not 1 < len(columns) <= WIDEST or kind == "neurons":
        return []
    down = sorted(layers, reverse=True)
    summed = kind != "modules" and key == "value"
    sums = tuple(sum(part[key] for part in layers[layer].values()) for layer in down) if summed else ()
    return [
        HeatMap(
            title=title,
            rows=tuple(map(str, down)),
            columns=tuple(columns),
            values=tuple(
                tuple(layers[layer][name][key] if name in layers[layer] else None for name in columns) for layer in down
            ),
            down="layer",
            across=PARTS[kind] if kind != "modules" else "",
            unit=unit,
            caption="Each layer's parts and what the stream before them brings sum to the whole pre-activation, so "
            "that rows overlap and are not to be added up."
            if key == "value"
            else f"{capital(EFFECTS)}.",
            totals=sums,
            total=f"all {kind}" if sums else "",
            notes=partial(_part_note, [[layers[layer].get(name) for name in columns] for layer in down], kind),
        )
    ]


def _part_note(parts: Sequence[Sequence[Document | None]], kind: str, row: int, column: int) -> str:
    part = parts[row][column]
    return "" if part is None else part_line(part, kind)


def part_line(part: Document, kind: str) -> str:
    """What a part contributes, and what most of that came from."""
    line = f"{part_name(part, kind)}: {signed(part['value'])}"
    line += f", effect {signed(part['effect'])}" if "effect" in part else ""
    pairs = _carried(part) if "by_token" in part else None
    if pairs is None:
        return line
    return f"{line}, of which from {', '.join(f'{formatted(token)} {signed(value)}' for token, value in pairs.entries)}"


def ledger_map(document: Document, target: Document, heads: int = 10, columns: int = WIDEST) -> HeatMap | None:
    """The largest heads by the token that they carry; None where heads are not split by token."""
    kind = kind_of(document)
    listed = [part for part in ranked_parts(target[kind], document["sort"])[:heads] if "by_token" in part]
    if not listed:
        return None
    n = len(listed[0]["by_token"])
    weight = [sum(abs(part["by_token"][pos]["value"]) for part in listed) for pos in range(n)]
    shown = sorted(by_size(weight)[: columns - 3])
    first, left = listed[0]["by_token"], [pos for pos in range(n) if pos not in shown]
    others = [sum(part["by_token"][pos]["value"] for pos in left) for part in listed]
    return HeatMap(
        title="the largest heads, by the token that they carry",
        rows=tuple(part_name(part, kind) for part in listed),
        columns=(
            *(Token(first[pos]["token"], first[pos]["pos"]) for pos in shown),
            *([others_of(len(left))] if left else []),
            *(other["name"] for other in listed[0]["other"]),
        ),
        values=tuple(
            (
                *(part["by_token"][pos]["value"] for pos in shown),
                *([rest] if left else []),
                *(other["value"] for other in part["other"]),
            )
            for part, rest in zip(listed, others, strict=True)
        ),
        down="head",
        unit="contribution",
        caption="A row sums to its head.",
        totals=tuple(part["value"] for part in listed),
        total="contribution",
    )


def importance_blocks(document: Document, top: int | None = None) -> tuple[Block, ...]:
    """Means over prompts as a heat map, where they fit into one, and the largest with their spread."""
    kind = next(kind for kind in PARTS if kind in document)
    n, parts = len(document["prompts"]), list(document[kind])
    prompts = f"{count(n)} prompt{'' if n == 1 else 's'}"

    def spread(part: Document) -> Cell:
        return None if part["std"] is None else Spread(part["mean"], part["std"])

    whole, sort = document["pre_activation"], document["sort"]
    ranked = ranked_parts(parts, sort, "mean")
    effects = any("effect" in part for part in parts)

    def row(part: Document) -> Row:
        cells: tuple[Cell, ...] = (part_name(part, kind), part["mean"], spread(part), share_of(part["mean"], whole))
        return Row((*cells, *([part["effect"]] if effects else [])))

    columns = (
        Column(PARTS[kind]), Column("mean contribution", "signed", bar=True), Column("mean ± s.d.", "signed", 2),
        Column("share of the mean", "percent"), *([Column("mean effect", "signed", bar=True)] if effects else []),
    )  # fmt: skip
    caption = (
        f"{rule_of(document)}; {prompts}, each read where {document['name']} is strongest; mean "
        f"pre-activation {signed(whole)}; completeness error {error(document['completeness_error'])} at most"
        + (f"; {EFFECTS}" if effects else "")
    )
    if not ranked:
        line = f"No {PARTS[kind]} lies before it of {document['name']}"
    elif sort == "effect":
        line = largest_effect(part_name(ranked[0], kind), ranked[0], document["name"])
    else:
        line = f"{gives(part_name(ranked[0], kind), ranked[0]['mean'], whole)} of {document['name']}"
    valued = [{key: part[key] for key in part if key != "std"} | {"value": part["mean"]} for part in parts]
    unit = "effect" if sort == "effect" else "contribution"
    return (
        Note(f"{line}, the mean over {prompts}", "answer"),
        *_layer_map(f"mean {unit} of every {PARTS[kind]}", valued, kind, sort),
        Table(f"{document['name']}, by {kind}, over {prompts}", columns, tuple(map(row, ranked[:top])), caption),
        *noted(document),
    )


def subspace_blocks(document: Document, top: int | None = None) -> tuple[Block, ...]:
    where = f"{document['at']['hook']} of layer {document['at']['layer']:d}"
    columns = (Column("subspace"), Column("contribution", "signed", bar=True), Column("share", "percent"))
    strongest = max(document["targets"], key=strength)
    found = list(strongest["subspaces"])
    first = found[by_size(space["value"] for space in found)[0]]
    line = gives(first["name"], first["value"], strongest["pre_activation"])
    blocks: list[Block] = [Note(f"{line} of {at_target(document, strongest)}", "answer")]
    for target in document["targets"]:
        whole, spaces = target["pre_activation"], list(target["subspaces"])
        other = {entry["name"]: entry["value"] for entry in target["other"]}
        shared = [("pattern", other["pattern"])] if "pattern" in other else []
        aside = [("off all of them", other["rest"]), ("bias", other["bias"]), *shared, ("constant", target["constant"])]
        order = by_size(space["value"] for space in spaces)[:top]
        names = [(f"{spaces[i]['name']} (rank {spaces[i]['rank']:d})", spaces[i]["value"]) for i in order]
        rows = [Row((name, value, share_of(value, whole))) for name, value in names]
        rows += [Row((name, value, share_of(value, whole)), "aside") for name, value in aside]
        rows.append(Row(("pre-activation", whole, None), "total"))
        title = f"{at_target(document, target)}, by subspaces of {where}"
        blocks.append(Table(title, columns, tuple(rows), f"{rule_of(document)}; {missed(document, target)}"))
    return (*blocks, *fitting(document))


def votes_blocks(document: Document, top: int | None = None) -> tuple[Block, ...]:
    """A line for each component."""
    rows = [
        Row((part["name"], Pairs(tuple((Token(t["token"]), t["logit"]) for t in part["tokens"]), digits=1)))
        for part in document["components"][:top]
    ]
    title = f"what each part votes for after {place(document['token'], document['pos'])}"
    columns = (Column("component"), Column("tokens it raises most (logit)"))
    return (Table(title, columns, tuple(rows)), *noted(document))


# ---------------------------------------------------------------------------------------------------- attention scores


def attention_blocks(document: Document, top: int | None = None) -> tuple[Block, ...]:
    """The largest pairs of a query's and a key's component, and the components of largest total size as a map."""
    rows, columns, values = (list(document[key]) for key in ("rows", "columns", "values"))
    flat = [(i, j, value) for i, row in enumerate(values) for j, value in enumerate(row) if value]
    order = by_size(value for *_, value in flat)
    listed = [Row((rows[i], columns[j], value)) for i, j, value in (flat[k] for k in order[:top])]
    title = attention_title(document)
    by_rule = "" if document["by"] == "features" else f"{rule_of(document)}; "
    what = "score" if document["against"] is None else "difference of scores"
    caption = (
        f"{by_rule}{what} {signed(document['score'])}, to which the whole table sums; {percent(document['pattern'])} "
        f"of the head's attention; completeness error {error(document['completeness_error'])}"
    )
    down = _widest(sum(map(abs, row)) for row in values)
    across = _widest(sum(abs(row[j]) for row in values) for j in range(len(columns)))
    names, others = tuple(rows[i] for i in down), tuple(columns[j] for j in across)
    shown = tuple(tuple(values[i][j] for j in across) for i in down)
    answer = f"{title}: {what} {signed(document['score'])}"
    if order:
        i, j, value = flat[order[0]]
        answer += f", {signed(value)} of it from {rows[i]} at the query and {columns[j]} at the key"
    return (
        Note(answer, "answer"),
        HeatMap(
            title="every pair",
            rows=names,
            columns=others,
            values=shown,
            down="at the query",
            across="at the key",
            unit="score",
            notes=partial(_pair_note, names, others, shown),
        ),
        Table(
            title,
            (Column("at the query"), Column("at the key"), Column("score", "signed", bar=True)),
            tuple(listed),
            caption,
        ),
        *noted(document),
    )


def _pair_note(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], i: int, j: int) -> str:
    return f"{rows[i]} → {columns[j]}: {written(values[i][j], '+')}"


def _widest(sizes: Iterable[float]) -> list[int]:
    return sorted(by_size(sizes)[:WIDEST])


def attention_title(document: Document) -> str:
    tokens = document["tokens"]
    named = {
        None: "", "mean": ", against the average key", "uniform": ", against the plain mean of the keys that it sees"
    }  # fmt: skip
    against = document["against"]
    held = f", against {place(tokens[against], against)}" if isinstance(against, int) else named[against]
    ends = [place(end["token"], end["pos"]) for end in (document["query"], document["key"])]
    return f"layer {document['layer']:d} head {document['head']:d}: {' looking at '.join(ends)}{held}"


# ------------------------------------------------------------------------------------------------------------- features

FEATURES_FIRST = {
    "activation": "strongest features (activation)",
    "specific": "features most above their usual activation (activation)",
}
RAREST = "features whose activation is rarest over a corpus (activation)"


def features_blocks(document: Document, top: int | None = None) -> tuple[Block, ...]:
    """A table per SAE: the first features of each position."""
    blocks: list[Block] = []
    for layer in document["layers"]:
        title = f"layer {layer['layer']:d}, {layer['hook']}"
        rarest = document["sort"] == "specific" and "corpus" in document
        columns = (Column("position"), Column(RAREST if rarest else FEATURES_FIRST[document["sort"]]))
        rows = [
            Row((Token(at["token"], at["pos"]), _active(document, layer, at, top)), pos=at["pos"])
            for at in layer["positions"]
        ]
        blocks.append(Table(title, columns, tuple(rows), _features_caption(document, layer)))
        blocks += [Note(layer["warning"], "warning")] if layer["warning"] else []
    return tuple(blocks)


def feature_maps(document: Document) -> tuple[Block, ...]:
    """A heat map per SAE: its strongest features at every position."""
    return tuple(_feature_map(document, layer) for layer in document["layers"])


def _feature_map(document: Document, layer: Document) -> HeatMap:
    at = [{int(f["index"]): f["activation"] for f in place["features"]} for place in layer["positions"]]
    most: dict[int, float] = {}
    for here in at:
        for index, activation in here.items():
            most[index] = max(most.get(index, 0.0), abs(activation))
    shown = sorted(most, key=lambda index: -most[index])[:MAPPED]
    return HeatMap(
        title=f"layer {layer['layer']:d}, {layer['hook']}: the strongest features",
        rows=tuple(_feature_name(document, layer, index) for index in shown),
        columns=tuple(Token(place["token"], place["pos"]) for place in layer["positions"]),
        values=tuple(tuple(here.get(index) for here in at) for index in shown),
        down="feature",
        unit="activation",
    )


def _active(document: Document, layer: Document, at: Document, top: int | None) -> Pairs:
    features = list(at["features"])
    listed = features[:top]
    entries = tuple((_named(document, layer, f), f["activation"]) for f in listed)
    return Pairs(entries, "number", more=len(features) - len(listed))


def _named(document: Document, layer: Document, feature: Document) -> str | Feature:
    name = _feature_name(document, layer, feature["index"])
    label = feature["label"] if "corpus" in document else None
    return Feature(name, label) if label else name


def _feature_name(document: Document, layer: Document, index: int) -> str:
    shared = sum(other["layer"] == layer["layer"] for other in document["layers"]) > 1
    hook = f".{layer['hook']}" if shared else ""
    return f"{layer['layer']:d}{hook}/{index:d}{'*' if index in list(layer['always_on']) else ''}"


def _features_caption(document: Document, layer: Document) -> str:
    said = [fit_sentence(layer)]
    if len(layer["always_on"]):
        said.append("* fires at nearly every position, so that it says little about any one.")
    if "corpus" in document:
        tokens = count(document["corpus"]["tokens"])
        said.append(f"Names, and what is rare, are of a corpus of {tokens} tokens.")
    elif document["sort"] == "specific":
        said.append("Usual is a feature's mean over the prompt's positions, without position 0 and sinks.")
    return " ".join(said)


# ------------------------------------------------------------------------------------------------- what is set in it


def steered_blocks(found: Mapping[str, Any], top: int | None = None) -> tuple[Block, ...]:
    """The likeliest tokens before and after, the features that change most, and what is written."""
    tokens = sorted(found["tokens_likeliest"], key=lambda one: -one["probability_after"])
    rows = tuple(
        Row((named(one["token"]), *(one[f"{what}_{when}"] for what in ("probability", "logit") for when in WHEN)))
        for one in tokens[:top]
    )
    columns = (
        Column("next token"), Column("before", "percent"), Column("after", "percent", bar=True),
        Column("logit before", "number", 2), Column("logit after", "number", 2),
    )  # fmt: skip
    features = tuple(
        Row((f"{one['name']}@{one['pos']}", Token(one["token"], one["pos"]), one["before"], one["after"],
             one["after"] - one["before"]))
        for one in found["features"][:top]
    )  # fmt: skip
    numbers = (Column("before", "number", 2), Column("after", "number", 2), Column("change", "signed", bar=True))
    blocks: list[Block] = [
        Note(f"{change['part']}: {change['how']} {shown(str(change['amount']))}") for change in found["changes"]
    ]
    blocks.append(Table("the next token", columns, rows, f"KL(before, after) {number(found['divergence'], 3)} nats"))
    if features:
        blocks.append(Table("the features that change most", (Column("feature"), Column("token"), *numbers), features))
    if any(found["continuation"].values()):
        blocks += [Note(f"it goes on, {when}: {shown(found['continuation'][when])}") for when in WHEN]
    return tuple(blocks)


WHEN = ("before", "after")
