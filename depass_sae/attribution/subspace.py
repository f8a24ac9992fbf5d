"""From which subspaces a target gets what it has (paper §4.1.2 and §4.3), and what a part of the stream votes for.

The residual stream at one point is split into its projections on one or several subspaces and what is off them all.
The parts are carried to the target like any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt, token_text
from ..passes.rows import at
from ..passes.rules import rule_named
from ..passes.settings import Settings
from ..passes.sources import Source, Subspace
from ..saes import feature_index
from ..subject import Subject
from ..view.blocks import Block
from ..view.shown import Shown
from ..view.words import place
from . import looks
from .answer import Answer, TargetAt, addends, checked, frame, read
from .document import others_dict, others_of
from .positions import Pos
from .readoff import Target
from .targets import parse_feature

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class SubspaceTarget(TargetAt):
    """The answer at one position, in units of the target's pre-activation.

    values: one per subspace. rest: what the stream off all of them carries. bias: the bias vectors from there on.
    pattern: what heads move whatever stands in queries and keys; None under a rule by which these have no share.
    """

    values: Float[Tensor, "subspace"]
    rest: float
    bias: float
    pattern: float | None = None

    @property
    def other(self) -> dict[str, float]:
        """What is in no subspace."""
        shared = {} if self.pattern is None else {"pattern": self.pattern}
        return {"bias": self.bias, "rest": self.rest, **shared}

    @cached_property
    def completeness_error(self) -> float:
        return self.shortfall([*self.values.tolist(), *self.other.values()])


@dataclass(frozen=True, kw_only=True)
class SubspaceAttribution(Answer[SubspaceTarget]):
    """Subspaces of the stream at one point, and what each contributes to a target."""

    question = "From which subspaces comes"

    layer: int
    hook: str
    names: tuple[str, ...]
    ranks: tuple[int, ...]

    @property
    def contributions(self) -> Float[Tensor, "subspace"]:
        return self.target.values

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae subspace --json`` prints."""
        return {
            **self._head(),
            "at": {"layer": self.layer, "hook": self.hook},
            "targets": [
                {
                    "pos": target.pos,
                    "token": target.token,
                    "activation": target.activation,
                    "pre_activation": target.pre_activation,
                    "constant": target.constant,
                    "subspaces": [
                        {"name": name, "rank": rank, "value": value}
                        for name, rank, value in zip(self.names, self.ranks, target.values.tolist(), strict=True)
                    ],
                    "other": others_dict(target.other),
                    "completeness_error": target.completeness_error,
                }
                for target in self.targets
            ],
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per target position and subspace, and one each for what is in none of them.

        kind: "subspace"; "bias", "rest" (what is off all of them) and "constant". The contributions to each
        ``target_pos`` sum to the pre-activation there.
        """
        rows: list[dict[str, Any]] = []
        for target in self.targets:
            parts = (
                {"kind": "subspace", "subspace": name, "rank": rank, "contribution": value}
                for name, rank, value in zip(self.names, self.ranks, target.values.tolist(), strict=True)
            )
            rows += addends({"target_pos": target.pos}, parts, **target.other, constant=target.constant)
        return frame(rows, integers=["rank"])

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.subspace_blocks(self.to_dict(), top)


def attribute_subspace(
    subject: Subject,
    prompt: Prompt,
    target: Target,
    subspace: Subspace,
    *,
    names: tuple[str, ...] | None = None,
    pos: Pos | None = None,
    settings: Settings,
) -> SubspaceAttribution:
    """What the stream's parts in some subspaces contribute to a target.

    Raises UserError where the subspaces lie behind the target, or have another width than the stream.
    """
    if not 0 <= subspace.layer < subject.adapter.n_layers:
        raise UserError(f"there is no layer {subspace.layer}; there are layers 0 to {subject.adapter.n_layers - 1}")
    reading = read(subject, prompt, target, pos, settings, subspace.layer)
    seen, readoff = reading.seen, reading.readoff
    places = torch.tensor(reading.positions)
    start = subspace.start(seen)
    if names is not None and len(names) != len(start.labels) - 2:
        raise UserError(f"there are {len(start.labels) - 2} subspaces, and {len(names)} names for them")
    rows = settings.carry(seen, start, {readoff.place: places})[readoff.place]
    values = rows.project(at(readoff.direction.w, places)).double().cpu()
    allocation = settings.allocation
    targets = []
    for position, row in zip(reading.positions, values, strict=True):
        own: dict[str, Any] = {"values": row[: -len(allocation.aside)], **others_of(row, allocation)}
        targets.append(SubspaceTarget(**reading.at(position), **own))
    shares = [(target.pattern or 0.0) / target.pre_activation for target in targets if target.pre_activation > 0]
    answer = SubspaceAttribution(
        **reading.said(shares),
        targets=targets,
        layer=subspace.layer,
        hook=subspace.hook,
        names=start.labels[:-2] if names is None else names,
        ranks=tuple(len(basis) for basis in subspace.bases(seen.resid_post)),
    )
    return checked(subject, target, answer)


def decoder_directions(
    subject: Subject, features: Sequence[str], at: str | None = None, rank: int | None = None
) -> Subspace:
    """The decoder direction of each feature as a subspace, where their SAE reads or at another point ("20.resid_pre").

    Raises UserError where the features belong to several SAEs.
    """
    found = [parse_feature(subject, text, pos=False)[0] for text in features]
    if not found or any(feature.hook != found[0].hook for feature in found):
        raise UserError("directions of one question belong to one SAE")
    sae = subject.saes[found[0].hook]
    rows = [sae.W_dec[feature_index(sae, feature.index)].detach()[None] for feature in found]
    place = found[0].hook if at is None else Place.parse(at)
    return Subspace(rows, place.layer, place.name, rank)


@dataclass(frozen=True)
class Votes(Shown):
    """For every component of a decomposition, the tokens that it raises most in the prediction at one position.

    votes: (component, [(token, logit)]); logits are the component's share of the model's, centred over the vocabulary.
    """

    pos: int
    token: str
    votes: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "pos": self.pos,
            "token": self.token,
            "note": self.note,
            "components": [
                {"name": name, "tokens": [{"token": token, "logit": logit} for token, logit in tokens]}
                for name, tokens in self.votes
            ],
        }

    @property
    def title(self) -> str:
        return f"What each part votes for after {place(self.token, self.pos)}"

    def to_frame(self) -> pandas.DataFrame:
        """One row per component and token."""
        import pandas

        rows = [(name, token, logit) for name, tokens in self.votes for token, logit in tokens]
        return pandas.DataFrame(rows, columns=["component", "token", "logit"])

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.votes_blocks(self.to_dict(), top)


def decode_parts(
    subject: Subject,
    prompt: Prompt,
    source: Source,
    *,
    pos: int | None = None,
    top: int = 8,
    settings: Settings,
) -> Votes:
    """Carry a source's components to the end and read off, through the frozen final norm, what each votes for (§4.3).

    pos: the position whose prediction is split (default: the last).
    """
    n = len(prompt)
    if top < 1:
        raise UserError(f"top is the number of tokens to name, 1 or more, not {top}")
    if pos is not None and not 0 <= pos < n:
        raise UserError(f"position {pos} is outside the prompt; its {n} tokens have positions 0 to {n - 1}")
    seen = subject.trace(prompt, None)
    last = torch.tensor([n - 1 if pos is None else pos])
    start = source.start(seen).under(rule_named(settings.rule))
    point = Place(seen.n_layers - 1, "resid_post")
    rows = settings.carry(seen, start, {point: last})[point]
    norm = subject.adapter.final_norm.to(seen.resid_post)
    unembed = subject.adapter.unembed.weight.to(seen.resid_post)
    parts, whole = rows.dense()[0], at(seen.resid_post, last)
    missing = ((parts.sum(0) - whole[0]).abs().max() / parts.abs().max().maximum(whole.abs().max())).item()
    subject.warn_incomplete(f"the stream at position {int(last)}", missing)
    normed = norm.centre(parts) * norm.scale(whole) * norm.gain
    votes = []
    for component in range(len(start.labels)):
        if rows.present[0, component]:
            logits = normed[component] @ unembed
            best = (logits - logits.mean()).topk(min(top, len(logits)))
            tokens = [token_text(subject.loaded.tokenizer, i) for i in best.indices.tolist()]
            votes.append((start.labels[component], tuple(zip(tokens, best.values.tolist(), strict=True))))
    position = int(last)
    return Votes(position, prompt.tokens[position], tuple(votes), settings.allocation.note)
