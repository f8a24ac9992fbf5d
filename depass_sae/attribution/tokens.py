"""Which tokens activate a feature (paper §4.1 and appendix C.5).

The embeddings are split into one component per token, or per word. The components are carried to where the target is
read and projected on its direction: contribution_m = ⟨w, X̃[p, m]⟩. Under the rules ``half`` and ``linear`` the same
numbers come from one sweep back from the target, at a small part of the price. With the bias and rest components and
the constant they sum to the target's pre-activation; how nearly is computed and reported with every answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.prompt import Prompt, sentences, words
from ..passes.memory import Budget
from ..passes.propagate import Allocation, Progress, propagate
from ..passes.sources import Spans
from ..passes.sublayers import CONTRIBUTION
from ..passes.sweep import batches, seeds_at, sweep
from ..passes.trace import Point, Trace
from .answer import Answer, TargetAt, read_all
from .render import Html, Text, remarks, table_text, token_strip, tokens_page, tokens_table
from .replace_tokens import Measured, measure
from .subject import Subject
from .targets import Pos, Readoff, Target

if TYPE_CHECKING:
    import pandas

By = Literal["token", "word", "sentence"]


@dataclass(frozen=True)
class Span:
    """A source: its positions in the prompt and its text."""

    positions: tuple[int, ...]
    text: str

    @property
    def pos(self) -> int:
        return self.positions[0]


def spans_of(prompt: Prompt, by: By) -> list[Span]:
    """The prompt's tokens, its words with their sub-tokens joined, or its sentences."""
    if by == "token":
        groups = [[position] for position in range(len(prompt))]
    elif by == "word":
        groups = words(prompt)
    elif by == "sentence":
        groups = sentences(prompt)
    else:
        raise UserError(f"sources are tokens, words or sentences, not {by!r}; choose token, word or sentence")
    return [Span(tuple(group), "".join(prompt.tokens[position] for position in group)) for group in groups]


@dataclass(frozen=True, kw_only=True)
class TokenTarget(TargetAt):
    """The answer at one position. All values are in units of the target's pre-activation.

    contributions: one per source that begins at or before ``pos``, in order.
    other: ``bias`` and ``rest``. Σ contributions + Σ other + constant = pre_activation, up to ``completeness_error``.
    margin: how far the pre-activation lies above what it takes to fire: the feature's threshold, or the smallest
    pre-activation that still fires there (topk).
    measured: with ``ablate``, what replacing each source really does.
    """

    contributions: Float[Tensor, "source"]
    other: dict[str, float]
    sources: tuple[Span, ...]
    margin: float | None = None
    measured: Measured | None = None

    @cached_property
    def completeness_error(self) -> float:
        return self.shortfall([*self.contributions.tolist(), *self.other.values()])

    def to_dict(self) -> dict[str, Any]:
        contributions: list[dict[str, Any]] = [
            {"pos": source.pos, "token": source.text, "value": value}
            for source, value in zip(self.sources, self.contributions.tolist(), strict=True)
        ]
        document: dict[str, Any] = {
            "pos": self.pos,
            "token": self.token,
            "activation": self.activation,
            "pre_activation": self.pre_activation,
            "margin": self.margin,
            "constant": self.constant,
            "contributions": contributions,
            "other": [{"name": name, "value": value} for name, value in self.other.items()],
            "completeness_error": self.completeness_error,
        }
        if self.measured is not None:
            for entry, mean, spread in zip(contributions, self.measured.mean, self.measured.spread, strict=True):
                entry["measured"] = None if mean is None else {"mean": mean, "std": spread}
            document["measured"] = {
                "replacements": self.measured.replacements,
                "seed": self.measured.seed,
                "rank_correlation": self.rank_correlation,
            }
        return document

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of the contributions with the measured effects (None without them, or with fewer than 3)."""
        return None if self.measured is None else self.measured.rank_correlation(self.contributions.tolist())


@dataclass(frozen=True, kw_only=True)
class TokenAttribution(Answer[TokenTarget]):
    """Which tokens make a target what it is. ``contributions`` and ``other`` are those of the strongest target."""

    by: By

    @property
    def contributions(self) -> Float[Tensor, "source"]:
        return self.target.contributions

    @property
    def other(self) -> dict[str, float]:
        return self.target.other

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae tokens --json`` prints."""
        return {**self._head(), "by": self.by, "targets": [target.to_dict() for target in self.targets]}

    def to_frame(self) -> pandas.DataFrame:
        """One row per target position and source."""
        import pandas

        return pandas.DataFrame(
            {
                "target_pos": target.pos,
                "target_token": target.token,
                "pos": source.pos,
                "token": source.text,
                "contribution": value,
            }
            | (
                {}
                if target.measured is None
                else {"measured": target.measured.mean[i], "spread": target.measured.spread[i]}
            )
            for target in self.targets
            for i, (source, value) in enumerate(zip(target.sources, target.contributions.tolist(), strict=True))
        )

    def table(self, top: int | None = None) -> Text:
        """The contributions as text, largest first: all of them, or the ``top`` and what the others sum to."""
        return table_text(*tokens_table(self, top), *remarks(self.fit, self.note))

    def plot(self) -> Html:
        """The prompt with each token coloured by its contribution, for notebooks; ``.save(path)`` keeps it."""
        return Html(token_strip(self))

    def _repr_html_(self) -> str:
        return tokens_page(self)

    def __repr__(self) -> str:
        return str(self.table(top=10))


def attribute_tokens(
    subject: Subject, prompt: Prompt, target: Target, *, pos: Pos | None = None, **settings: Any
) -> TokenAttribution:
    """Contributions of the prompt's tokens, or words, to a target; settings as of :func:`attribute_tokens_each`."""
    return attribute_tokens_each(subject, prompt, [(target, pos)], **settings)[0]


def attribute_tokens_each(
    subject: Subject,
    prompt: Prompt,
    targets: Sequence[tuple[Target, Pos | None]],
    *,
    by: By = "token",
    allocation: Allocation = Allocation(),  # noqa: B008 (frozen)
    ablate: int = 0,
    seed: int = 0,
    budget: Budget = Budget(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> list[TokenAttribution]:
    """Contributions of the prompt's tokens, or words, to each target: one trace and one pass for all of them.

    ablate: with how many random tokens each source is replaced to measure its effect (0: not measured).

    Raises UserError for a position outside the prompt, and where there is no target.
    """
    if not targets:
        raise UserError("name a target, or several")
    spans = spans_of(prompt, by)
    readings = read_all(subject, prompt, targets, allocation)
    source = Spans([span.positions for span in spans], [span.text for span in spans])
    contributions = _swept if allocation.rule in CONTRIBUTION else _carried
    asked = [(reading.readoff, reading.positions) for reading in readings]
    found = []
    for (target, _), reading, values in zip(
        targets, readings, contributions(readings[0].seen, asked, source, allocation, budget, progress), strict=True
    ):
        answers = []
        for position, row in zip(reading.positions, values.double().cpu(), strict=True):
            sources = tuple(span for span in spans if span.pos <= position)
            margin = reading.readoff.margin
            answer = TokenTarget(
                **reading.at(prompt, position),
                contributions=row[: len(sources)],
                other={"bias": row[-2].item(), "rest": row[-1].item()},
                sources=sources,
                margin=None if margin is None else margin[position].item(),
            )
            if ablate:
                value = answer.pre_activation
                measured = measure(subject, prompt, target, position, value, sources, ablate, seed, progress)
                answer = replace(answer, measured=measured)
            answers.append(answer)
        found.append(TokenAttribution(**reading.common, targets=answers, by=by))
    return found


Asked = Sequence[tuple[Readoff, Sequence[int]]]
"""Read-offs on one trace, and the positions that are asked about."""


def _swept(
    seen: Trace, asked: Asked, source: Spans, allocation: Allocation, budget: Budget, progress: Progress | None
) -> list[Float[Tensor, "target comp"]]:
    """All sources of all targets, by sweeping back to the embeddings."""
    device, dtype = seen.resid_post.device, seen.resid_post.dtype
    owner = torch.zeros(len(seen.token_ids), dtype=torch.long, device=device)
    for component, group in enumerate(source.groups):
        owner[list(group)] = component
    pos = torch.tensor([position for _, positions in asked for position in positions], device=device)
    whose = torch.tensor([i for i, (_, positions) in enumerate(asked) for _ in positions], device=device)
    values = torch.zeros(len(pos), len(source.groups) + 2, dtype=dtype, device=device)
    groups, steps = list(batches(seen, pos, budget)), 2 * (max(readoff.point[0] for readoff, _ in asked) + 1)
    for number, which in enumerate(groups):
        short = seen.first(int(pos[which].max()) + 1)
        seeds: dict[Point, Tensor] = {}
        for i, (readoff, _) in enumerate(asked):
            own = seeds_at(readoff.direction.w[pos[which]], pos[which], len(short.token_ids))
            own *= (whose[which] == i)[:, None, None]
            seeds[readoff.point] = own + seeds.get(readoff.point, 0)
        levels = sweep(short, seeds, CONTRIBUTION[allocation.rule])
        for done, level in enumerate(levels, start=1):
            lowest = level
            if progress is not None:
                progress("sweeping back through the layers", number * steps + done, len(groups) * steps)
        products = (lowest.before * short.resid_pre[0]).sum(-1)
        values[which] = values[which].index_add(1, owner[: len(short.token_ids)], products)
        values[which, -2] = lowest.bias_before
    return list(values.split([len(positions) for _, positions in asked]))


def _carried(
    seen: Trace, asked: Asked, source: Spans, allocation: Allocation, budget: Budget, progress: Progress | None
) -> list[Float[Tensor, "target comp"]]:
    """All sources carried forward from the embeddings to where the targets are read."""
    device = seen.resid_post.device
    wanted: defaultdict[Point, set[int]] = defaultdict(set)
    for readoff, positions in asked:
        wanted[readoff.point] |= set(positions)
    reads = {point: torch.tensor(sorted(positions), device=device) for point, positions in wanted.items()}
    found = propagate(seen, source.start(seen), reads, allocation, budget=budget, progress=progress)
    values = []
    for readoff, positions in asked:
        at = torch.tensor(positions, device=device)
        values.append(found[readoff.point].keep(at).project(readoff.direction.w[at]))
    return values
