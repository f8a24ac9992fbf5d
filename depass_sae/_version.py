"""The package's version, which imports nothing."""

__version__ = "0.1.0"

SCHEMA_VERSION = 1
"""Of every JSON document that the package writes. It rises when a key changes its meaning or goes."""
