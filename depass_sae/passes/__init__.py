"""Decomposed forward passes; they know no SAE."""

DEFAULT_RULE = "half"
"""For every source: ahead of the others where they were measured (docs/rules.md)."""
