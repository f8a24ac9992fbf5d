"""The graph of what one source goes on to do: the features that it drives most, and the likeliest tokens.

It is grown from the source on, where others are grown from a target back (build.py): of the later features those that
most comes to (downstream.py). Every node's sums hold all the same; what is not in the graph is in their remainders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..attribution.logits import LogitTarget
from ..attribution.targets import Target
from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.settings import Settings
from ..subject import Subject
from ..texts import together
from .build import no_graph_by
from .chosen import graph_of
from .downstream import By, find_downstream
from .standing import graph_hooks

if TYPE_CHECKING:
    import networkx as nx

FEATURES, MOST = 25, 500
"""So many features are in the graph where nobody says how many, and at most: each takes a sweep of its own."""


def downstream_graph(
    subject: Subject, prompt: Prompt, source: str, *, features: int = FEATURES, sort: By = "total", settings: Settings
) -> nx.DiGraph:
    """source: ``"11/223@6"`` or ``"token:6"``. features: so many, the largest by ``sort``, beside the source's own.

    Raises UserError for what is no single node of a graph, and as :func:`.find_downstream` does.
    """
    if (why := no_graph_by(settings.rule)) is not None:
        raise UserError(why)
    if not 1 <= features <= MOST:
        raise UserError(f"a graph has 1 to {MOST} features that a source drives, not {features:,}")
    found = find_downstream(subject, prompt, source, sort=sort, settings=settings.quiet())
    if found.source.described["kind"] not in ("feature", "token") or "pos" not in found.source.described:
        raise UserError(f"a graph is grown from one node, such as 11/223@6 or token:6; {found.source.name} is none")
    driven = [(Place(one.layer, str(one.hook)), one.index, one.pos) for one in found.ordered()[:features]]
    logits: list[tuple[Target, int]] = [(LogitTarget(one.index), one.pos) for one in found.logits]
    hook, described = found.source.hook, found.source.described
    own = [] if hook is None else [(hook, int(described["index"]), int(described["pos"]))]
    g, _ = graph_of(subject, prompt, logits, [*own, *driven], list(graph_hooks(subject, None)), settings)
    said = f"Grown from {found.source.name}: the {len(driven)} later features that most of it comes to, by {sort}."
    g.graph["note"] = together(said, g.graph.get("note"))
    return g
