"""A page with every kind of block, as a case study and a card have them, and texts that mean harm."""

from __future__ import annotations

import math
from typing import Any

from depass_sae.view.blocks import (
    Bars,
    Beside,
    Block,
    Column,
    Feature,
    Graph,
    HeatMap,
    Mark,
    Note,
    Page,
    Pairs,
    Row,
    Section,
    Spread,
    Strip,
    Table,
    Token,
)
from depass_sae.view.pointer import At

HARM = "</script><img src=x onerror=alert(1)>\u202e"
TOKENS = (
    "<bos>",
    "The",
    " gap",
    " between",
    " supply",
    " and",
    " demand",
    HARM,
    "\n",
    " widened",
    " as",
    " prices",
    ".",
)
VALUES = (0.0, 0.021, 1.207, 0.14, 2.891, -0.33, 1.764, 0.2, -0.01, 0.611, -0.08, 0.3, -0.0004)
DOCUMENT = {"a/b": list(VALUES), "total": sum(VALUES), "n": 1234}
AT = At(DOCUMENT)


def inner_page() -> str:
    """A graph's page, so far as the outer one knows of it."""
    from depass_sae.view.frame import policy

    css = "body { background: rgb(1, 2, 3) }"
    allowed = policy([css], []).replace("'", "&#39;")
    return (
        f'<!doctype html><html lang="en"><head><meta http-equiv="Content-Security-Policy" content="{allowed}">'
        f"<title>graph</title><style>{css}</style></head><body><p>the graph’s “page”</p></body></html>"
    )


def places(n: int = len(TOKENS)) -> tuple[Token, ...]:
    return tuple(Token(token, pos) for pos, token in enumerate(TOKENS[:n]))


def strip(numbers: bool = True) -> Strip:
    marks = tuple(
        Mark(token, pos, value, note=f"said of {pos}" if pos == 4 else "", aimed=pos == 6)
        for pos, (token, value) in enumerate(zip(TOKENS, AT["a/b"], strict=True))
    )
    return Strip(
        "What each token contributes", marks, "units of the pre-activation", "Underlined: the target.", numbers=numbers
    )


def tokens_table() -> Table:
    columns = (
        Column("source token"), Column("contribution", "signed", bar=True), Column("share", "percent"),
        Column("when replaced", "signed", 2),
    )  # fmt: skip
    rows: list[Row] = []
    for target in (Token(" demand", 6), Token(" widened", 9)):
        order = sorted(range(len(VALUES)), key=lambda i: -abs(VALUES[i]))[:5]
        rows += [
            Row((Token(TOKENS[i], i), AT["a/b"][i], VALUES[i] / 7, Spread(VALUES[i] * 1.1, 0.2)), "ranked", target, i)
            for i in order
        ]
        rows += [
            Row(("8 other tokens", 0.17, None, None), "aside", target),
            Row(("constant", -0.4, None, None), "aside", target),
            Row(("pre-activation", AT["total"], None, None), "total", target),
        ]
    return Table("feature 17/1208, by source token", columns, tuple(rows), "rule softmax, T = 0.1; error 3e−07")


def plain_table() -> Table:
    columns = (Column("feature"), Column("cosine", "signed", bar=True), Column("places", "count"))
    rows = (
        Row((Feature("17/1208", "economic <b>growth</b>", "https://example.org/17/1208"), 0.812, AT["n"]), "strong"),
        Row((Feature("17/77", "", "javascript:alert(1)"), -0.23, 3)),
        Row((Feature("17/9", "=1+1"), 0.1, 3)),
    )
    return Table("Nearest by decoder", columns, rows)


def heads() -> HeatMap:
    values = tuple(tuple(math.sin(3.1 * r * h + r) * (h + 1) / 14 for h in range(14)) for r in range(12))
    return HeatMap(
        "Heads", tuple(str(r) for r in reversed(range(12))), tuple(map(str, range(14))), values, "layer", "head",
        "units of the pre-activation", "Rows overlap.", tuple(map(sum, values)), "all heads",
    )  # fmt: skip


def ledger() -> HeatMap:
    columns = (*places(9), "bias", "rest")
    values = tuple(tuple(None if (r + h) % 7 == 6 else (r - h) / 9 for h in range(len(columns))) for r in range(6))
    return HeatMap(
        "The largest heads, by token", tuple(f"L{r}H3" for r in range(6)), columns, values, "head", "", "",
        notes=lambda r, c: f"head {r} from {c}",
    )  # fmt: skip


def drives() -> Table:
    """The card's widest table."""
    names = ("activation", "own token", "earlier tokens", "position 0", "other", "constant", "pre-activation")
    columns = (Column("fires on"), *(Column(name, "signed") for name in names), Column("largest earlier token"))
    cells = (12.345, 4.321, 6.789, -0.5, 0.123, -1.4, 12.345)
    rows = [
        Row((Token(" supply", 4, f"text {i}"), *cells, Pairs(((Token(" demand", 2), 1.2), ("bias", -0.3)), more=2)))
        for i in range(4)
    ]
    total = Row(("sum", *(4 * cell for cell in cells), None), "total")
    return Table("What drives it", columns, (*rows, total), "Completeness error at most 3e−07.")


def texts() -> tuple[Strip, ...]:
    marks = tuple(
        Mark(token, pos, abs(v) if v else None) for pos, (token, v) in enumerate(zip(TOKENS, VALUES, strict=True))
    )
    return tuple(Strip("Where it fires" if i == 1 else "", marks * 3, "activation", label=str(i)) for i in range(1, 5))


def graph() -> Graph:
    def none() -> Any:
        raise NotImplementedError

    return Graph("The graph", "graph", inner_page, none, tuple, "Click a node.")


def sample(*more: Block) -> Page:
    bars = Section("As bars", (Bars("By layer", places(5), VALUES[:5], "sum", strong=frozenset({4})),), "bars")
    blocks: tuple[Block, ...] = (
        Note(
            "Feature 17/1208 fires on “demand”, most of all for the token supply (4).", "answer",
            ("supply (4) alone gives 41 % of the pre-activation.", f"A hostile text: {HARM}", "Checked by replacing."),
        ),
        Note("The SAE does not fit: it explains 12 % of the variance.", "warning"),
        Section("Which tokens", (Note("What each source contributes.", "lead"), strip(), tokens_table()), "tokens"),
        Section(
            "Through which heads",
            (Beside((heads(), ledger())), bars),
            "heads",
        ),
        Section(
            "The feature",
            (*texts(), drives(), Beside((plain_table(), plain_table())), Note("on Neuronpedia", link="https://example.org")),
            "feature",
            Feature("17/1208", "growth", "https://www.neuronpedia.org/x"),
        ),
        Section("The graph", (graph(),), "graph"),
        Section("To make it again", (Note("depass-sae " + "x" * 90, "code"), Note("Quiet.", "quiet")), "again"),
        *more,
    )  # fmt: skip
    return Page(
        "The gap between supply and demand", blocks, "Case study", ("smollm2", "rule softmax, T = 0.1", HARM),
        ("depass-sae 0.1.0", "float32"), contents=True, feature=Feature("17/1208", f"growth {HARM}"),
    )  # fmt: skip
