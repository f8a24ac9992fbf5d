"""What a decomposition is read along: an SAE feature, any direction, or what is made of logits; and how they are asked
for, by keywords or as a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import NUMBER, whole_in
from ..errors import UserError
from ..models.place import Place
from ..models.prompt import token_id
from ..models.weights import without_gradient
from ..passes.record import Trace
from ..saes import PATHS, Direction, encoder_direction, live_pre_activation, pre_activations
from ..subject import Subject
from .logits import LogitTarget, Twin, logit_name
from .readoff import Readoff, Target, gradient
from .vectors import read_vector

Token = str | int
Reference = Literal["mean", "rivals"] | Token | Sequence[Token]
"""What a logit is held against: the vocabulary's mean, its rivals, or tokens by their texts or ids."""
KEYWORDS = ("mean", "rivals")


@dataclass(frozen=True)
class FeatureTarget:
    """An SAE feature. ``path``: of a gated SAE, the magnitude's pre-activation or the gate's."""

    hook: Place
    index: int
    path: str = "magnitude"
    name: str = "feature"

    @property
    def place(self) -> Place:
        return self.hook

    def check(self, subject: Subject) -> None:
        sae = subject.saes[self.hook]
        if self.hook.layer >= subject.adapter.n_layers:
            raise UserError(
                f"{subject.loaded.name} has {subject.adapter.n_layers} layers, so none numbered {self.hook.layer}"
            )
        # Everything that can be wrong with an index or a path shows on a single row.
        encoder_direction(sae, sae.W_enc.new_zeros(1, sae.cfg.d_in), self.index, self.path)

    def read(self, subject: Subject, trace: Trace) -> Readoff:
        found = subject.encoding(trace, self.hook)
        return Readoff(
            place=self.place,
            directed=lambda: encoder_direction(found.sae, found.x, self.index, self.path),
            pre=found.pre_activation(self.index, self.path),
            activation=found.activations[:, self.index],
            margin=found.margin(self.index),
            fit=found.fit,
        )

    def at(self, seen: Trace, pos: int) -> FeatureTarget:
        return self

    def live(self, subject: Subject, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        return pre_activations(subject.saes[self.hook], x, self.path)[:, self.index]

    def slope(self, subject: Subject, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return gradient(lambda x: live_pre_activation(subject.saes[self.hook], x, self.index, self.path), x)

    def describe(self, subject: Subject) -> dict[str, Any]:
        feature = {"layer": self.hook.layer, "index": self.index, "hook": self.hook.name}
        return {"feature": feature | ({"path": self.path} if self.path != "magnitude" else {})}


@dataclass(frozen=True)
class DirectionTarget:
    """Any direction at any read point, a probe's weights for example: ⟨w, x⟩."""

    w: Float[Tensor, "d"]
    place: Place
    name: str = "direction"

    def check(self, subject: Subject) -> None:
        layer, hook = self.place
        if not 0 <= layer < subject.adapter.n_layers:
            raise UserError(
                f"there is no layer {layer}; {subject.loaded.name} has layers 0 to {subject.adapter.n_layers - 1}"
            )
        width = subject.adapter.width(self.place)
        if self.w.shape != (width,):
            raise UserError(f"the direction has shape {list(self.w.shape)}; {hook} of this model needs [{width}]")
        if not self.w.isfinite().all():
            raise UserError("the direction has NaN or infinite entries")

    def read(self, subject: Subject, trace: Trace) -> Readoff:
        x = trace.at(self.place)
        w = self.w.to(x)
        return Readoff(self.place, lambda: Direction(w.expand(len(x), -1), x.new_zeros(len(x))), x @ w)

    def at(self, seen: Trace, pos: int) -> DirectionTarget:
        return self

    def live(self, subject: Subject, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        return x @ self.w.to(x)

    def slope(self, subject: Subject, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return self.w.to(x).expand(len(x), -1)

    def describe(self, subject: Subject) -> dict[str, Any]:
        return {"feature": None, "direction": {"layer": self.place[0], "hook": self.place[1]}}


_FEATURE = re.compile(rf"({NUMBER})(?:\.([a-z][a-z0-9_]*))?/({NUMBER})(?:@({NUMBER}))?")


@dataclass(frozen=True)
class WrittenFeature:
    """A feature as it is written: ``17/1208``, ``17.resid_post/1208``, ``17/1208@6``."""

    layer: int
    hook: str | None
    index: int
    pos: int | None

    @classmethod
    def of(cls, text: str, *, pos: bool = True) -> WrittenFeature:
        """Raises UserError for what is no feature. pos: whether a position may be named with it."""
        match = _FEATURE.fullmatch(text.strip())
        if match is None:
            raise UserError(
                f"{text!r} is no feature; write LAYER/INDEX, for example 17/1208"
                + (", or 17/1208@6 for position 6" if pos else "")
            )
        layer, hook, index, at = match.groups()
        if at is not None and not pos:
            raise UserError(
                f"this is about the feature wherever it fires, not at a position; write {text.partition('@')[0]}"
            )
        return cls(int(layer), hook, int(index), None if at is None else int(at))


def parse_feature(
    subject: Subject, text: str, path: str = "magnitude", *, pos: bool = True
) -> tuple[FeatureTarget, int | None]:
    """The feature that is written, and the position, if one is named with it."""
    written = WrittenFeature.of(text, pos=pos)
    hook = subject.hook(written.layer, written.hook)
    shared = sum(other.layer == hook.layer for other in subject.saes) > 1
    name = f"feature {hook if shared else hook.layer}/{written.index}"
    return FeatureTarget(hook, written.index, path, name), written.pos


def check_path(path: str, feature: str | None) -> None:
    """Raises UserError for a path that no SAE has, or that is asked for without a feature."""
    if path not in PATHS:
        raise UserError(f"an SAE has no path {path!r}; a gated one has {' and '.join(PATHS)}")
    if path != "magnitude" and feature is None:
        raise UserError(f"path {path!r} is for features of gated SAEs")


def make_target(
    subject: Subject,
    *,
    feature: str | None = None,
    logit: Token | Sequence[Token] | None = None,
    logit_diff: tuple[Token, Token] | None = None,
    logprob: Token | Sequence[Token] | None = None,
    against: Reference | None = None,
    direction: Float[Tensor, "d"] | None = None,
    layer: int | None = None,
    hook: str | None = None,
    path: str = "magnitude",
    called: str = "direction",
) -> tuple[Target, int | None]:
    """The one target that is asked for, and the position that came with it (``feature="17/1208@6"``).

    logit, logprob: of several tokens the sum. against: what a logit is held to. called: a direction's name.
    """
    given = [x is not None for x in (feature, logit, logit_diff, logprob, direction)]
    if sum(given) != 1:
        raise UserError(
            "ask for one target: a feature (LAYER/INDEX), a direction, a logit, a difference of two logits, or a "
            "log-probability"
        )
    if direction is None and (layer, hook) != (None, None):
        raise UserError(
            "layer and hook say where a direction is read; a feature names its layer itself, and a logit none"
        )
    if against is not None and logit is None:
        raise UserError("against says what a logit is held to; it goes with a logit alone")
    check_path(path, feature)
    pos = None
    target: Target
    if feature is not None:
        target, pos = parse_feature(subject, feature, path)
    elif logit is not None:
        target = _logits(subject, logit, against)
    elif logit_diff is not None:
        target = _logits(subject, logit_diff[0], [logit_diff[1]])
    elif logprob is not None:
        target = _logits(subject, logprob, None, chance=True)
    else:
        if layer is None:
            raise UserError("a direction needs the layer that it is read at")
        place = Place(layer, "resid_post" if hook is None else hook)
        target = DirectionTarget(without_gradient(torch.as_tensor(direction)), place, called)
    target.check(subject)
    return target, pos


def _logits(
    subject: Subject, logit: Token | Sequence[Token], against: Reference | None, *, chance: bool = False
) -> LogitTarget:
    tokens = _tokens(logit)
    own = [_token(subject, token) for token in tokens]
    if not own:
        raise UserError("a sum of logits needs one token at least")
    if against is None or (isinstance(against, str) and against in KEYWORDS):
        standard: Any = "softmax" if chance else against
        name = logit_name(tokens, standard)
        return LogitTarget(own[0], standard, name, twins=_twins(subject, *tokens), more=tuple(own[1:]))
    others = _tokens(against)
    ids = [_token(subject, token) for token in others]
    if not ids:
        raise UserError("name the tokens that the logit is held against, or say mean or rivals")
    if len(set(ids)) < len(ids):
        raise UserError("a token that the logit is held against is named twice")
    return LogitTarget(
        own[0], ids[0] if len(ids) == 1 else tuple(ids), logit_name(tokens, others),
        twins=_twins(subject, *tokens, *others), more=tuple(own[1:]),
    )  # fmt: skip


def _tokens(given: Token | Sequence[Token]) -> list[Token]:
    return [given] if isinstance(given, str | int) else list(given)


_WRITTEN = re.compile(rf"(logit|logit-diff|logprob|direction):(.*?)(?:@({NUMBER}))?", re.DOTALL)
_TWO = re.compile(r'\s*("[^"]*"|[^,"]*),("[^"]*"|[^,"]*)\s*')
_SURE = rf"(?:\"[^\"]*\"|'[^']*'|{NUMBER})"
"""A token that ends where it says so: in quotes, or an id."""
_SUM = re.compile(rf"({_SURE}(?:\s*\+\s*{_SURE})*)(?:\s+against\s+(.+?))?\s*", re.DOTALL)
_BARE = re.compile(r"([^\"'].*?)\s+against\s+(.+?)\s*", re.DOTALL)
_ANY = rf"(?:{_SURE}|[^\s,\"'][^,\"']*)"
_LIST = re.compile(rf"\s*{_ANY}(?:\s*,\s*{_ANY})*\s*")


@dataclass(frozen=True)
class WrittenTarget:
    """A target as it is written, and ``@pos`` behind it.

    A feature; ``logit:" Paris"``, of several tokens the sum, ``logit:" Paris"+" France"``, held to something by
    ``against mean``, ``against rivals`` or ``against " Rome"," Bonn"``; ``logit-diff:" Mary"," John"``;
    ``logprob:" Paris"``; ``direction:17.resid_post:FILE``.

    named: what :func:`make_target` is to be asked for; pos: of all but a feature.
    """

    named: dict[str, Any]
    pos: int | None = None

    @property
    def is_plain_logit(self) -> bool:
        """Whether it is a logit that is not said to be held against anything."""
        return "logit" in self.named and "against" not in self.named

    @property
    def is_placed(self) -> bool:
        """Whether a position is named with it."""
        return self.pos is not None or "@" in self.named.get("feature", "")

    @classmethod
    def of(cls, text: str) -> WrittenTarget:
        """Raises UserError for what is none."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            WrittenFeature.of(text)
            return cls({"feature": text})
        kind, rest, pos = match.groups()
        at = None if pos is None else int(pos)
        if kind == "direction":
            return cls(_written_direction(rest), at)
        if kind == "logit-diff":
            two = _TWO.fullmatch(rest)
            if two is None:
                raise UserError(f'write a difference of logits as logit-diff:" Mary"," John", not {text!r}')
            return cls({"logit_diff": (written_token(two[1]), written_token(two[2]))}, at)
        tokens, against = _written_logit(rest)
        if kind == "logit":
            return cls({"logit": tokens} | ({} if against is None else {"against": written_against(against)}), at)
        if against is not None:
            raise UserError("a log-probability is held to all tokens already; leave against out")
        return cls({"logprob": tokens}, at)


def parse_target(
    subject: Subject, text: str, against: Reference | None = None, path: str = "magnitude"
) -> tuple[Target, int | None]:
    """The target that is written, and the position, if one is named with it. against: as if it were written, too."""
    written = WrittenTarget.of(text)
    if against is not None and "against" in written.named:
        raise UserError(f"{text!r} says itself what it is held against; leave against out")
    target, pos = make_target(subject, path=path, **written.named | ({} if against is None else {"against": against}))
    return target, pos if written.pos is None else written.pos


def written_token(text: str) -> Token:
    """A token as it is written in a target: in quotes, bare, or by its id."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    number = whole_in(text)
    return text if number is None else number


def written_against(text: str) -> Reference:
    """What a logit is held to as it is written: ``mean``, ``rivals``, or tokens, ``" Rome"," London"``."""
    if text.strip() in KEYWORDS:
        return text.strip()
    if not _LIST.fullmatch(text):
        raise UserError(f"""a logit is held against mean, rivals, or tokens, like '" Rome"," London"', not {text!r}""")
    return [written_token(token.strip()) for token in re.findall(_ANY, text)]


def _written_logit(text: str) -> tuple[Token | list[Token], str | None]:
    """The tokens, and what they are held against. Bare texts are one token, with whatever is in them."""
    if (found := _SUM.fullmatch(text)) is not None:
        tokens = [written_token(token) for token in re.findall(_SURE, found[1])]
        return tokens[0] if len(tokens) == 1 else tokens, found[2]
    bare = _BARE.fullmatch(text)
    return (written_token(text), None) if bare is None else (written_token(bare[1]), bare[2])


def _written_direction(text: str) -> dict[str, Any]:
    where, colon, file = text.partition(":")
    number = whole_in(where)
    if not colon or not file:
        raise UserError(f"write a direction as direction:17.resid_post:FILE.npy, not {text!r}")
    place = Place.parse(where) if number is None else Place(number, "resid_post")
    vector, name = read_vector(file)
    return {"direction": vector, "layer": place.layer, "hook": place.hook, "called": f"direction {name}"}


def _token(subject: Subject, token: Token) -> int:
    return token_id(subject.loaded, token) if isinstance(token, str) else token


def _twins(subject: Subject, *texts: Token) -> tuple[Twin, ...]:
    return tuple(twin for text in texts if (twin := Twin.of(subject, text)) is not None)
