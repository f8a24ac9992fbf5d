"""What all of a graph's features do together in the live model, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..view import words
from ..view.pointer import At


def sufficiency_lines(graph: Mapping[str, Any]) -> list[str]:
    """What is left of the target where only the graph's features are kept, where that is known."""
    found = graph.get("sufficiency")
    if found is None:
        return []
    return [
        f"keeping only its {words.count(found['features'])} of {words.count(found['active'])} active features leaves "
        f"{words.number(found['share'], 2)} of the target in the model (none of them: "
        f"{words.number(found['no_features'], 2)})"
    ]


def together_lines(found: Mapping[str, Any] | At) -> list[str]:
    """What all of the graph's features do together, in shares of the target where those are known."""
    together = found["together"]
    features, active = (words.count(together[key]) for key in ("features", "active"))
    if together.get("shares") is None:  # an older graph, or a target of nothing
        only, alone, without, absent = (
            words.number(together[key], 2) for key in ("only_graph", "only_random", "without_graph", "without_random")
        )
        return [
            f"target {words.number(found['target'], 2)}; with only the graph's {features} of {active} active features "
            f"{only} (as many random ones: {alone}); without them {without} (random: {absent})"
        ]
    shares = together["shares"]
    ends = (("all active features", "all_features"), ("all without SAE errors", "all_without_errors"))
    told = [f"{name} {words.number(shares[key], 2)}" for name, key in (*ends, ("none", "no_features"))]
    return [
        removal_line(together),
        f"keeping only them of {active} active features leaves {words.number(shares['only_graph'], 2)} of it; as many "
        f"random ones: {_around(shares['only_random'])}; {', '.join(told)}",
        f"±: {together['interval']} over {words.count(together['draws'])} random sets; "
        f"{words.percent(together['random_own'])} of their features are the graph's own, for want of others",
    ]


def removal_line(together: Mapping[str, Any] | At) -> str:
    """What the target loses without the graph's features, beside random ones."""
    shares, count = together["shares"], words.count(together["features"])
    features = "feature" if together["features"] == 1 else "features"
    return (
        f"removing the graph's {count} {features} takes {words.number(1 - shares['without_graph'], 2)} of the target "
        f"away; {count} random {features} of the same layers and positions: "
        f"{_around(shares['without_random'], lost=True)}"
    )


def _around(random: Mapping[str, float] | At, *, lost: bool = False) -> str:
    """A mean over random sets with its interval. lost: what is gone, not what is left."""
    mean, half = random["mean"], (random["high"] - random["low"]) / 2
    return words.within(1 - mean if lost else mean, half, 2)
