"""The one exception for what a user can put right, and warnings that point to the line of theirs that led to them."""

from __future__ import annotations

import sys
import warnings

from .texts import one_line, visible


class UserError(ValueError):
    """A mistake that the person at the keyboard can put right.

    Its message is a single line that says what was wrong and what would be right.
    The command line prints that line and exits with status 2; in Python it is an ordinary ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DepassWarning(UserWarning):
    """What this package warns of. The command line prints these, and none of the libraries'."""


class SAEFitWarning(DepassWarning):
    """An SAE explains so little of a prompt that it must belong to another model, layer, scale or hook point."""


class CompletenessWarning(DepassWarning):
    """An answer's parts miss more of the whole than rounding explains: the model is not what the parts were made of."""


class QuantizationWarning(DepassWarning):
    """A model rounds what goes into its packed maps, which no answer about their weights has in it."""


class PromptWarning(DepassWarning):
    """A prompt is taken as it is, and is hardly what was meant: two start tokens, or padding at its end."""


def warn(message: str, category: type[Warning] = DepassWarning) -> None:
    """A warning at the line outside of this package that led here."""
    own, level = __name__.partition(".")[0], 1
    while sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] == own:
        level += 1
    warnings.warn(visible(message), category, stacklevel=level + 1)
