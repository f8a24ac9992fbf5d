"""The one exception for what a user can put right."""


class UserError(ValueError):
    """A mistake that the person at the keyboard can put right.

    Its message is a single line that says what was wrong and what would be right.
    The command line prints that line and exits with status 2; in Python it is an ordinary ``ValueError``.
    """


class SAEFitWarning(UserWarning):
    """An SAE explains so little of a prompt that it must belong to another model, layer, scale or hook point."""
