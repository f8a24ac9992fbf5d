"""The reference of the Python names: a page for ``ds.load`` and what it returns, and one for all others, by docstrings.

mkdocstrings fills in the ``:::`` lines; it reads the sources and imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import depass_sae

PAGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "python/load.md": ("ds.load and LM", ("load", "LM")),
    "python/answers.md": (
        "Answers",
        ("FeatureReport", "TokenAttribution", "ComponentAttribution", "Contrast", "Decomposition", "FeatureCard"),
    ),
    "python/sources.md": ("Sources", ("Heads", "Modules", "Neurons", "Spans", "Subspace", "Vectors")),
    "python/graphs.md": (
        "Graphs",
        (
            "read_graph",
            "write_graph",
            "prune",
            "diff_graphs",
            "average_graphs",
            "group_automatically",
            "with_groups",
            "with_labels",
            "with_contexts",
            "plot_graph",
            "plot_verification",
        ),
    ),
    "python/index.md": ("Indexes, labels, estimates", ()),  # whatever is named on no other page
}


def pages() -> dict[str, str]:
    """Every public name on one page."""
    named = {name for _, names in PAGES.values() for name in names}
    rest = tuple(name for name in depass_sae.__all__ if name not in named)
    return {path: _page(title, names or rest) for path, (title, names) in PAGES.items()}


def _page(title: str, names: tuple[str, ...]) -> str:
    listed = "\n\n".join(f"::: {home(name)}" for name in names)
    return f"# {title}\n\n`import depass_sae as ds`; whatever is not listed in this reference may change.\n\n{listed}\n"


def home(name: str) -> str:
    """The full name under which a public name is defined."""
    made = getattr(depass_sae, name)
    return f"{made.__module__}.{made.__qualname__}"
