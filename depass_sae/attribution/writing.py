"""What the live model goes on to write: the likeliest token each time, or one drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import token_text
from ..passes.forward import Progress
from ..passes.intervene import Edit, Inside, intervene_everywhere
from ..subject import Subject
from .measure import check_seed

MOST_TOKENS = 10_000


class Goes(TypedDict, total=False):
    """How the model goes on behind a prompt, with its parts changed and without.

    generate: so many tokens are written. temperature: 0 writes the likeliest each time (default), others draw from the
    softmax of the logits over it, top_k: among so many of the likeliest; with and without the changes, and for every
    prompt, by the same random numbers, the ``seed``'s. progress: called with (what, steps done, steps in all).
    """

    generate: int
    temperature: float
    top_k: int | None
    seed: int
    progress: Progress | None


@dataclass(frozen=True)
class Writing:
    """As people say it: the fields are those of :class:`Goes`. Raises UserError for what cannot be."""

    generate: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.generate <= MOST_TOKENS:
            raise UserError(f"generate is a number of tokens from 0 to {MOST_TOKENS}, not {self.generate}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is 0, for the likeliest token each time, or above, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is among how many of the likeliest tokens is drawn, 1 at least, not {self.top_k}")
        check_seed(self.seed)
        drawn = {"temperature": self.temperature, "top_k": self.top_k, "seed": self.seed}
        if not self.generate and any(drawn.values()):
            named = next(name for name in drawn if drawn[name])
            raise UserError(f"{named} is of what is written on; say by generate how many tokens, too")
        if not self.temperature and (self.top_k or self.seed):
            raise UserError(f"{'top_k' if self.top_k else 'seed'} is of drawing; give a temperature above 0, too")

    @property
    def steps(self) -> int:
        """How often the model runs on a prompt, to be read and to go on."""
        return max(1, self.generate)

    def to_dict(self) -> dict[str, Any]:
        """How it is drawn; nothing where it is not."""
        if not self.temperature:
            return {}
        return {"drawn": {"temperature": self.temperature, "top_k": self.top_k, "seed": self.seed}}

    def check_room(self, subject: Subject, n: int) -> None:
        """Raises UserError where a prompt of n tokens and what is written are more than the model takes."""
        most = subject.adapter.context_length
        if most is not None and n + self.generate > most:
            raise UserError(
                f"the prompt's {n} tokens and {self.generate} more are too many: {subject.loaded.name} takes {most}"
            )


def written_on(
    subject: Subject,
    ids: Int[Tensor, "batch pos"],
    edits: Mapping[Place | Inside, Edit],
    logits: Float[Tensor, "batch vocab"],
    how: Writing,
    ran: Callable[[], None],
) -> list[str]:
    """What follows prompts of equal length; every step runs the whole texts. logits: of the first of the tokens. ran:
    called whenever the model has run.
    """
    start = ids.shape[1]
    generators = [torch.Generator().manual_seed(how.seed) for _ in ids]
    for step in range(how.generate):
        if step:
            logits = intervene_everywhere(subject.adapter, ids, edits, {None}, subject.trace_dtype)[None]
            ran()
        check_finite(logits)
        chosen = [_next(row, how, generator) for row, generator in zip(logits, generators, strict=True)]
        ids = torch.cat([ids, torch.tensor(chosen).to(ids)[:, None]], dim=1)
    tokenizer = subject.loaded.tokenizer
    return ["".join(token_text(tokenizer, token) for token in row) for row in ids[:, start:].tolist()]


def check_finite(logits: Float[Tensor, "batch vocab"]) -> None:
    """Raises UserError where the model, as it is run, computes NaN or infinity."""
    if not logits.isfinite().all():
        raise UserError("the model computes NaN or infinity with these changes: they are too large for its dtype")


def _next(logits: Float[Tensor, "vocab"], how: Writing, generator: torch.Generator) -> int:
    if not how.temperature:
        return int(logits.argmax())
    logits = logits.cpu().double()
    if how.top_k is not None and how.top_k < len(logits):
        kept = logits.topk(how.top_k).indices
        logits = torch.full_like(logits, float("-inf")).index_copy(0, kept, logits[kept])
    chances = ((logits - logits.max()) / how.temperature).softmax(-1)
    return int(torch.multinomial(chances, 1, generator=generator))
