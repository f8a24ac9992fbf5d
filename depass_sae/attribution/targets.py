"""What a decomposition is read along: an SAE feature, any direction, a logit, or the difference of two logits.

Each of them is affine in an activation that the pass reads, ⟨w, x⟩ + c with the norms on the way frozen, so that it
splits over the components of x and its constant. ``pre`` is the same number as its owner computes it: the SAE library
for a feature, the model for a logit. How far the two lie apart is the completeness error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import NUMBER, whole_in
from ..errors import UserError
from ..models.parts import Linear
from ..models.place import Place
from ..models.prompt import token_id, token_text
from ..models.weights import without_gradient
from ..passes.record import Trace
from ..saes import (
    PATHS,
    Direction,
    Fit,
    encoder_direction,
    live_pre_activation,
    pre_activations,
)
from ..subject import Subject

TWIN_LIKELIER = 10
"""So many times as likely, the token with a space is what was meant rather than the one without."""


@dataclass(frozen=True)
class Readoff:
    """A target on one prompt.

    pre, activation, margin: at every position; activation and margin (how far above what it takes to fire) only for
    features. fit: how well the feature's SAE fits the prompt. live: what the model itself makes of it at every
    position, where that is not ``pre``: a logit behind its soft-cap.
    """

    place: Place
    direction: Direction
    pre: Float[Tensor, "pos"]
    activation: Float[Tensor, "pos"] | None = None
    margin: Float[Tensor, "pos"] | None = None
    fit: Fit | None = None
    live: Float[Tensor, "pos"] | None = None

    @property
    def now(self) -> Float[Tensor, "pos"]:
        """What an intervention changes."""
        return self.pre if self.live is None else self.live


class Target(Protocol):
    """A question's object. ``point`` None stands for the logits."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> Place | None: ...

    def check(self, subject: Subject) -> None:
        """Raises UserError where the model or its SAEs have no such target."""

    def read(self, subject: Subject, trace: Trace) -> Readoff: ...

    def live(self, subject: Subject, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        """The target's value, nothing frozen, from what the model computes at ``point``."""

    def slope(self, subject: Subject, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The target's gradient, its own norm live, at rows of the activation that it is read from."""

    def describe(self, subject: Subject) -> dict[str, Any]:
        """Its keys in a document: feature, logit or direction."""


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
            direction=encoder_direction(found.sae, found.x, self.index, self.path),
            pre=found.pre_activation(self.index, self.path),
            activation=found.activations[:, self.index],
            margin=found.margin(self.index),
            fit=found.fit,
        )

    def live(self, subject: Subject, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        return pre_activations(subject.saes[self.hook], x, self.path)[:, self.index]

    def slope(self, subject: Subject, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return gradient(lambda x: live_pre_activation(subject.saes[self.hook], x, self.index, self.path), x)

    def describe(self, subject: Subject) -> dict[str, Any]:
        feature = {"layer": self.hook.layer, "index": self.index, "hook": self.hook.name}
        return {"feature": feature | ({"path": self.path} if self.path != "magnitude" else {})}


@dataclass(frozen=True)
class Twin:
    """A token that is named without its space, and the one that is the same with it."""

    text: str
    token: int
    spaced: int

    @classmethod
    def of(cls, subject: Subject, text: str | int) -> Twin | None:
        if not isinstance(text, str) or text[:1].isspace() or subject.loaded.tokenizer is None:
            return None
        try:
            token, spaced = (token_id(subject.loaded, written) for written in (text, f" {text}"))
        except UserError:  # it is several tokens with its space
            return None
        return None if token == spaced else cls(text, token, spaced)

    def note(self, logits: Float[Tensor, "vocab"]) -> str | None:
        """What has to be said where the model plainly thinks of the other one."""
        chances = logits.softmax(-1)
        given, other = chances[self.token].item(), chances[self.spaced].item()
        if other < TWIN_LIKELIER * given:
            return None
        return (
            f"{self.text!r} is another token than {' ' + self.text!r}, which the model gives a probability of "
            f"{other:.2g} here, and {self.text!r} {given:.2g}"
        )


@dataclass(frozen=True)
class LogitTarget:
    """A token's logit, the final norm frozen; with ``against``, its difference to another token's.

    Where the model soft-caps its logits they are read before that, and interventions and effects are the model's own.

    twins: of tokens that are named by a text without a space, those that have one.
    """

    token: int
    against: int | None = None
    name: str = "logit"
    place: Place | None = None
    twins: tuple[Twin, ...] = ()

    def check(self, subject: Subject) -> None:
        for token in (self.token, self.against):
            if token is not None and not 0 <= token < subject.adapter.unembed.d_out:
                raise UserError(f"token id {token} is not in the vocabulary of {subject.adapter.unembed.d_out}")

    def read(self, subject: Subject, trace: Trace) -> Readoff:
        dtype = trace.resid_post.dtype
        norm, (u, c) = subject.adapter.final_norm.to(subject.adapter.device, dtype), self.row(subject, dtype)
        if norm.bias is not None:
            c = c + norm.bias @ u
        w = norm.scale(trace.resid_post) * norm.centre(norm.gain * u)
        place = Place(trace.n_layers - 1, "resid_post")
        assert trace.logits is not None
        assert trace.uncapped is not None
        pre, own = (self.live(subject, logits) for logits in (trace.uncapped, trace.logits))
        return Readoff(place, Direction(w, c.expand(len(w))), pre, live=own)

    def live(self, subject: Subject, x: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        return x[:, self.token] - (0 if self.against is None else x[:, self.against])

    def slope(self, subject: Subject, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        norm, (read, signs) = subject.adapter.final_norm.to(x), self.logits(subject, x.dtype)
        return gradient(lambda x: subject.adapter.capped(read(norm(x))) @ signs, x)

    def row(self, subject: Subject, dtype: torch.dtype) -> tuple[Float[Tensor, "d"], Float[Tensor, ""]]:
        """What reads the target off the normed stream: a direction and a constant."""
        read, signs = self.logits(subject, dtype)
        return read.weight @ signs, signs.new_zeros(()) if read.bias is None else read.bias @ signs

    def logits(self, subject: Subject, dtype: torch.dtype) -> tuple[Linear, Float[Tensor, "token"]]:
        """What reads the tokens' logits off the normed stream, and by which signs they are the target."""
        unembed, tokens = subject.adapter.unembed, [self.token, *([] if self.against is None else [self.against])]
        signs = torch.tensor([1.0, -1.0][: len(tokens)], dtype=dtype, device=subject.adapter.device)
        bias = None if unembed.bias is None else unembed.bias[tokens]
        return Linear(unembed.weight[:, tokens], bias).to(subject.adapter.device, dtype), signs

    def describe(self, subject: Subject) -> dict[str, Any]:
        def named(token: int) -> dict[str, Any]:
            return {"token": token_text(subject.loaded.tokenizer, token), "id": token}

        return {
            "feature": None,
            "logit": named(self.token) | {"against": None if self.against is None else named(self.against)},
        }


@dataclass(frozen=True)
class CentredLogit(LogitTarget):
    """A logit over the mean of all logits, which no softmax sees."""

    def logits(self, subject: Subject, dtype: torch.dtype) -> tuple[Linear, Float[Tensor, "token"]]:
        own, signs = super().logits(subject, dtype)
        unembed = subject.adapter.unembed
        mean = None if unembed.bias is None or own.bias is None else own.bias - unembed.bias.to(own.bias).mean()
        return Linear(own.weight - unembed.weight.to(own.weight).mean(dim=1, keepdim=True), mean), signs

    def live(self, subject: Subject, x: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        return x[:, self.token] - x.mean(dim=1)


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
        return Readoff(self.place, Direction(w.expand(len(x), -1), x.new_zeros(len(x))), x @ w)

    def live(self, subject: Subject, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        return x @ self.w.to(x)

    def slope(self, subject: Subject, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return self.w.to(x).expand(len(x), -1)

    def describe(self, subject: Subject) -> dict[str, Any]:
        return {"feature": None, "direction": {"layer": self.place[0], "hook": self.place[1]}}


def gradient(f: Callable[[Tensor], Tensor], x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Of a function that takes rows to numbers, at every row."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(f(x).sum(), x)
    return found


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
    logit: str | int | None = None,
    logit_diff: tuple[str | int, str | int] | None = None,
    direction: Float[Tensor, "d"] | None = None,
    layer: int | None = None,
    hook: str | None = None,
    path: str = "magnitude",
) -> tuple[Target, int | None]:
    """The one target that is asked for, and the position that came with it (``feature="17/1208@6"``)."""
    given = [x is not None for x in (feature, logit, logit_diff, direction)]
    if sum(given) != 1:
        raise UserError(
            "ask for one target: a feature (LAYER/INDEX), a direction, a logit, or a difference of two logits"
        )
    if direction is None and (layer, hook) != (None, None):
        raise UserError(
            "layer and hook say where a direction is read; a feature names its layer itself, and a logit none"
        )
    check_path(path, feature)
    pos = None
    target: Target
    if feature is not None:
        target, pos = parse_feature(subject, feature, path)
    elif logit is not None:
        target = LogitTarget(_token(subject, logit), name=f"logit {logit!r}", twins=_twins(subject, logit))
    elif logit_diff is not None:
        token, against = logit_diff
        name = f"logit difference {token!r} − {against!r}"
        target = LogitTarget(
            _token(subject, token), _token(subject, against), name, twins=_twins(subject, token, against)
        )
    else:
        if layer is None:
            raise UserError("a direction needs the layer that it is read at")
        place = Place(layer, "resid_post" if hook is None else hook)
        target = DirectionTarget(without_gradient(torch.as_tensor(direction)), place)
    target.check(subject)
    return target, pos


_WRITTEN = re.compile(rf"(logit|logit-diff):(.*?)(?:@({NUMBER}))?", re.DOTALL)
_TWO = re.compile(r'\s*("[^"]*"|[^,"]*),("[^"]*"|[^,"]*)\s*')


@dataclass(frozen=True)
class WrittenTarget:
    """A target as it is written: a feature, ``logit:" Paris"`` or ``logit-diff:" Mary"," John"``, and ``@pos``.

    named: what :func:`make_target` is to be asked for; pos: of a logit.
    """

    named: dict[str, Any]
    pos: int | None = None

    @classmethod
    def of(cls, text: str) -> WrittenTarget:
        """Raises UserError for what is none."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            WrittenFeature.of(text)
            return cls({"feature": text})
        kind, rest, pos = match.groups()
        at = None if pos is None else int(pos)
        if kind == "logit":
            return cls({"logit": written_token(rest)}, at)
        two = _TWO.fullmatch(rest)
        if two is None:
            raise UserError(f'write a difference of logits as logit-diff:" Mary"," John", not {text!r}')
        return cls({"logit_diff": (written_token(two[1]), written_token(two[2]))}, at)


def parse_target(subject: Subject, text: str) -> tuple[Target, int | None]:
    """The target that is written, and the position, if one is named with it."""
    written = WrittenTarget.of(text)
    target, pos = make_target(subject, **written.named)
    return target, pos if written.pos is None else written.pos


def written_token(text: str) -> str | int:
    """A token as it is written in a target: in quotes, bare, or by its id."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    number = whole_in(text)
    return text if number is None else number


def _token(subject: Subject, token: str | int) -> int:
    return token_id(subject.loaded, token) if isinstance(token, str) else token


def _twins(subject: Subject, *texts: str | int) -> tuple[Twin, ...]:
    return tuple(twin for text in texts if (twin := Twin.of(subject, text)) is not None)
