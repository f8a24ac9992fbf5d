"""What a circuit is made of, as blocks: what it keeps, what it takes, and its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..view import words
from ..view.blocks import Block, Column, Note, Row, Table, Token
from .looks import feature_cell
from .names import name_of

if TYPE_CHECKING:
    import networkx as nx

NOT_FIRST = "the model itself puts another token first, so that only the share decides"


def circuit_blocks(g: nx.DiGraph, top: int | None = None) -> tuple[Block, ...]:
    """The answer in a line, what was measured, and the features, those that are needed most first."""
    found = g.graph["circuit"]
    return (Note(_answer(g, found), "answer", tuple(_points(found))), _measured(found), _features(g, found, top))


def _answer(g: nx.DiGraph, found: Mapping[str, Any]) -> str:
    target = name_of(g, g.graph["target"][0]["node"])
    return (
        f"{words.count(found['size'])} of {words.count(found['players'])} features suffice for {target}: they keep "
        f"{words.percent(found['kept']['share'])} of it" + (", and it stays first" if found["kept"]["first"] else "")
    )


def _points(found: Mapping[str, Any]) -> list[str]:
    settings, sizes = found["settings"], found["sizes"]
    removed = {"zero": "set to 0", "contrast": "set to their values on the contrast prompt"}[settings["others"]]
    kept = "what the edited model makes of them" if settings["recompute"] else "held at what they were"
    errors = {"keep": "left in", "hold": "held at what they were", "zero": "taken out"}[settings["errors"]]
    newcomers = {"remove": "removed", "keep": "left in"}[settings["newcomers"]]
    lines = [
        f"measured: {found['measure']}, {words.number(found['target'], 2)}"
        + (f" ({words.number(found['baseline'], 2)} on the contrast prompt)" if settings["contrast"] else ""),
        *([] if found["answer"] or found["measure"] == "activation" else [NOT_FIRST]),
        f"other features {removed}; kept ones {kept}; SAE errors {errors}; those that become active {newcomers}",
        "minimal: without any one of them it is not sufficient"
        if found["minimal"]
        else f"the time was over after {words.number(found['seconds'], 0)} s: perhaps some can still be left out",
        _necessity(found),
        f"for as much {words.count(sizes['effect'])} by effect are needed, {words.count(sizes['contribution'])} by "
        "contribution",
    ]
    if (again := found["stability"]) is not None:
        lines.append(
            f"from another seed {words.count(again['size'])} features; in both are "
            f"{words.percent(again['jaccard'])} of those in either"
        )
    return lines


def _necessity(found: Mapping[str, Any]) -> str:
    lost, less = 1 - found["removed"]["share"], found["random"]["loses_less"]
    return (
        f"{'necessary' if found['necessary'] else 'not necessary'}: without them {words.percent(lost)} is lost, more "
        f"than in {words.percent(less)} of {words.count(found['random']['draws'])} random sets of the same size at "
        "every layer and position"
    )


def _measured(found: Mapping[str, Any]) -> Table:
    """Every set that was played."""
    random = found["random"]
    rows = [
        ("the circuit alone", found["kept"]),
        ("all but the circuit", found["removed"]),
        ("all features", found["all_features"]),
        ("all features, SAE errors taken out", found["all_without_errors"]),
        ("no features", found["no_features"]),
    ]
    cells = [
        Row((name, one["share"], one["value"], None if one["first"] is None else "yes" if one["first"] else "no"))
        for name, one in rows
    ]
    for name, key in (("random sets alone", "kept"), ("all but random sets", "removed")):
        low, high = (words.percent(random[key][end]) for end in ("low", "high"))
        cells.append(Row((f"{name} (mean; {low} to {high})", random[key]["mean"], None, None)))
    columns = (Column("kept"), Column("left", "percent"), Column("value", "number", 2), Column("first"))
    return Table("what is left of the target", columns, tuple(cells))


def _features(g: nx.DiGraph, found: Mapping[str, Any], top: int | None) -> Table:
    members = [name for name, node in g.nodes(data=True) if node["kind"] == "feature" and "effect" in node]
    order = sorted(members, key=lambda name: (-g.nodes[name].get("needed", 0.0), -abs(g.nodes[name]["effect"]), name))
    columns = (
        Column("feature"), Column("token"), Column("activation", "number", 2),
        Column("needed", "signed", bar=True), Column("effect", "signed"), Column("contribution", "signed"),
    )  # fmt: skip
    rows = tuple(
        Row(
            (
                feature_cell(g, name),
                Token(node["token"], node["pos"]),
                node["activation"],
                node.get("needed"),
                node["effect"],
                node["contribution"],
            ),
            pos=node["pos"],
        )
        for name in order[:top]
        for node in [g.nodes[name]]
    )
    caption = "shares of the target: needed, what is lost when it alone is left out of the circuit"
    return Table(f"the circuit's {words.count(found['size'])} features", columns, rows, caption)


# ------------------------------------------------------------------------------------------------------------- a task


def task_blocks(document: Mapping[str, Any], top: int | None = None) -> tuple[Block, ...]:
    """A task's circuit: what it keeps on prompts that it was not learned on, and who is needed how often."""
    tested, size = document["tested"], words.count(document["size"])
    answer = (
        f"{size} of {words.count(document['players'])} features keep {words.percent(tested['share'])} of the target on "
        f"{words.count(tested['prompts'])} prompts that they were not learned on"
    )
    sets = (
        ("the circuit, where it was learned", document["learned"]),
        ("the circuit, on the other prompts", tested),
        (f"{size} features by effect, on the other prompts", document["by_effect"]),
        ("no features, on the other prompts", document["none"]),
    )
    rows = tuple(Row((name, one["share"], one["first"], one["sufficient"], one["prompts"])) for name, one in sets)
    columns = (
        Column("kept"), Column("left", "percent"), Column("answer first", "count"), Column("sufficient", "count"),
        Column("prompts", "count"),
    )  # fmt: skip
    features = tuple(
        Row((f"{one['layer']}/{one['index']}@{one['pos']}", one["needed"], one["active"]), pos=one["pos"])
        for one in document["features"][:top]
    )
    needed = Table(
        f"the circuit's {size} features",
        (Column("feature"), Column("needed", "count", bar=True), Column("active", "count")),
        features,
        "needed: on so many of the prompts where it is active and the circuit suffices",
    )
    return (Note(answer, "answer"), Table("what is left of the targets", columns, rows), needed)
