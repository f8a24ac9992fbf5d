"""depass-sae: which tokens, heads and features activate an SAE feature, by decomposed forward passes.

    import depass_sae as ds
    lm = ds.load("smollm2")
    lm.attribute_tokens("In economics, supply and demand ...", feature="17/1208")

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .errors import SAEFitWarning, UserError

if TYPE_CHECKING:
    from .api import LM, evaluate, load
    from .attribution.components import ComponentAttribution
    from .attribution.contrast import Contrast
    from .attribution.decompose import Decomposition
    from .attribution.features import FeatureReport
    from .attribution.tokens import TokenAttribution
    from .estimating import Estimate, estimate
    from .evaluation.found import Evaluation
    from .graph.average import average_graphs
    from .graph.contexts import with_contexts
    from .graph.diff import diff_graphs
    from .graph.export import read_graph, write_graph
    from .graph.group import group_automatically, with_groups
    from .graph.labels import with_labels
    from .graph.prune import prune
    from .index.index import Index, open_index
    from .index.shards import merge_shards
    from .labels.files import read_labels
    from .passes.sources import Heads, Modules, Neurons, Spans, Subspace, Vectors
    from .report.card.card import FeatureCard

_HOME = {
    "LM": ".api",
    "load": ".api",
    "evaluate": ".api",
    "Evaluation": ".evaluation.found",
    "Estimate": ".estimating",
    "estimate": ".estimating",
    "ComponentAttribution": ".attribution.components",
    "Contrast": ".attribution.contrast",
    "Decomposition": ".attribution.decompose",
    "FeatureCard": ".report.card.card",
    "FeatureReport": ".attribution.features",
    "Index": ".index.index",
    "TokenAttribution": ".attribution.tokens",
    "Heads": ".passes.sources",
    "Modules": ".passes.sources",
    "Neurons": ".passes.sources",
    "Spans": ".passes.sources",
    "Subspace": ".passes.sources",
    "Vectors": ".passes.sources",
    "average_graphs": ".graph.average",
    "diff_graphs": ".graph.diff",
    "group_automatically": ".graph.group",
    "plot_graph": ".graph.plot",
    "plot_verification": ".graph.plot",
    "open_index": ".index.index",
    "merge_shards": ".index.shards",
    "prune": ".graph.prune",
    "read_labels": ".labels.files",
    "with_contexts": ".graph.contexts",
    "with_groups": ".graph.group",
    "with_labels": ".graph.labels",
    "read_graph": ".graph.export",
    "write_graph": ".graph.export",
}

__all__ = [
    "LM",
    "ComponentAttribution",
    "Contrast",
    "Decomposition",
    "Estimate",
    "Evaluation",
    "FeatureCard",
    "FeatureReport",
    "Heads",
    "Index",
    "Modules",
    "Neurons",
    "SAEFitWarning",
    "Spans",
    "Subspace",
    "TokenAttribution",
    "UserError",
    "Vectors",
    "average_graphs",
    "diff_graphs",
    "estimate",
    "evaluate",
    "group_automatically",
    "load",
    "merge_shards",
    "open_index",
    "plot_graph",
    "plot_verification",
    "prune",
    "read_graph",
    "read_labels",
    "with_contexts",
    "with_groups",
    "with_labels",
    "write_graph",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
