"""The command line: one command per question. Nothing heavy is imported before a command runs."""

from .main import app, main

__all__ = ["app", "main"]
