"""The fixtures of all tests of the command line."""

from .calling import files, graphs, run

__all__ = ["files", "graphs", "run"]
