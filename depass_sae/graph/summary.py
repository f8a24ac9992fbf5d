"""A graph in the terminal: how much of it explains the target, and its most influential nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..attribution.render import bar, box, place, shown

if TYPE_CHECKING:
    import networkx as nx
    from rich.console import RenderableType


def name_of(g: nx.DiGraph, node: str) -> str:
    """A node as people write it: ``17/1208@6``, ``error 17@6``, ``' Paris'``."""
    attributes = g.nodes[node]
    match attributes["kind"]:
        case "feature":
            return f"{attributes['layer']}/{attributes['index']}@{attributes['pos']}"
        case "token" if attributes["layer"] < 0:
            return place(attributes["token"], attributes["pos"])
        case "logit":
            against = f" − {attributes['against_token']!r}" if "against_token" in attributes else ""
            return f"logit {attributes['token']!r}{against}"
        case "constant" | "bias" | "remainder" if attributes["layer"] < 0:
            return f"{attributes['kind']} of the embeddings"
        case kind:
            return f"{kind} {node.partition(':')[2]}"


def note_of(g: nx.DiGraph) -> str | None:
    """What has to be said of a graph, in words of its own; a file may have anything under that key."""
    note = g.graph.get("note")
    return note if isinstance(note, str) else None


def graph_table(g: nx.DiGraph, top: int) -> list[RenderableType]:
    """What the graph is, its scores, and its nodes, the most influential first."""
    from rich.table import Table
    from rich.text import Text as Line

    counts = _counts(g)
    targets = ", ".join(name_of(g, target["node"]) for target in g.graph["target"])
    table = Table(
        title=Line(f"flow to {targets}", style="table.title"), title_justify="left",
        caption=Line(f"{counts}; rule {g.graph['rule']}"), caption_justify="left", box=box(),
    )  # fmt: skip
    for column in ("node", "token", "activation", "influence", ""):
        table.add_column(column, justify="right" if column in ("activation", "influence") else "left")
    listed = [name for name in g if not g.nodes[name].get("target") and g.nodes[name]["kind"] != "head"]
    order = sorted(listed, key=lambda name: (-g.nodes[name]["influence"], name))
    for name in order[:top]:
        node: dict[str, Any] = g.nodes[name]
        token = place(node["token"], node["pos"]) if "pos" in node else ""
        activation = f"{node['activation']:.2f}" if "activation" in node else ""
        label = f" {shown(node['label'])}" if node["label"] else ""
        table.add_row(
            Line(name_of(g, name) + label), Line(token), activation, f"{node['influence']:.3f}", bar(node["influence"])
        )
    return [table, *(Line(line) for line in score_lines(g))]


def score_lines(g: nx.DiGraph) -> list[str]:
    """The scores and where the influence ends, in words."""
    lines = []
    for which, found in g.graph["scores"].items():
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found["shares"].items() if share >= 0.005)
        lines.append(
            f"{which} graph: completeness {found['completeness']:.2f}, replacement {found['replacement']:.2f}; "
            f"influence ends in {shares}"
        )
    return lines


def verification_table(g: nx.DiGraph, top: int) -> list[RenderableType]:
    """What taking nodes out really did, beside what the graph says."""
    from rich.table import Table
    from rich.text import Text as Line

    found = g.graph["verification"]
    title = Line("the target's loss when a node is taken out", style="table.title")
    table = Table(title=title, title_justify="left", box=box())
    table.add_column("node")
    for column in ("observed", "by weights", "by effects"):
        table.add_column(column, justify="right")
    for entry in found["nodes"][:top]:
        numbers = (f"{entry[key]:.3f}" for key in ("observed", "weight", "effect"))
        table.add_row(Line(name_of(g, entry["node"])), *numbers)
    lines = []
    for key, words in (("rank_correlation", "rank correlation"), ("sign_agreement", "same sign")):
        values = (f"{value} {n:.2f}" for value, n in found[key].items() if n is not None)
        lines.append(f"{words} over {len(found['nodes'])} nodes: {', '.join(values)}")
    together = found["together"]
    lines.append(
        f"target {found['target']:.2f}; with only the graph's {together['features']} of {together['active']} active "
        f"features {together['only_graph']:.2f} (as many random ones: {together['only_random']:.2f}); without them "
        f"{together['without_graph']:.2f} (random: {together['without_random']:.2f})"
    )
    return [table, *(Line(line) for line in lines)]


def _counts(g: nx.DiGraph) -> str:
    kinds = [node["kind"] for _, node in g.nodes(data=True)]
    many = {"feature": "features", "error": "errors", "token": "tokens", "logit": "logits", "head": "heads"}
    parts = [f"{kinds.count(kind)} {name}" for kind, name in many.items() if kind in kinds]
    return f"{len(g)} nodes ({', '.join(parts)}), {g.number_of_edges()} edges"
