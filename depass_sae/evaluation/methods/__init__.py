"""Methods: each gives every source of a question a score, the larger the more the target is said to owe to it.

A method is a function of a :class:`..question.Question`. It knows nothing of how scores are judged; a new one is a
function and a line in the table of its sources (tokens.py, units.py, features.py).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from ..question import Question

Method = Callable[[Question], Float[Tensor, "source"]]
"""Of tokens a score for every position; of heads and neurons for all of the sublayers below the target, in order; of
features for the players of ``question.features``."""
