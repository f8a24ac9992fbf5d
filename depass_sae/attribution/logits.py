"""Targets made of logits: a token's, or several tokens' sum, as they are or held against something.

Whatever a target is held to, it is a function of the logits z at one position. It changes with each of them by c, and
so with the normed stream x̂ along W_U c: that is what it is read along.

against            each token's part                       c
nothing            z_y                                     1 at y
tokens             z_y − their mean                        1 at y, −1/n at each
rivals             the same of the 9 likeliest others
mean               z_y − mean z, which no softmax sees     1 at y, −1/|V| everywhere
softmax            log p_y = z_y − log Σ exp z             1 at y, −p everywhere: p frozen at the model's own

All but the last are linear in z. A log-probability is read along its slope, log p_y = ⟨c, z⟩ − H(p), and what the slope
leaves over is its constant: minus the entropy H(p) = −Σ p log p.

Where the model soft-caps its logits they are read before that, and interventions and effects are the model's own. A
log-probability is the model's own throughout: the cap's slope multiplies c, and what that leaves over joins the
constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Adapter
from ..models.place import Place
from ..models.prompt import token_id, token_text
from ..passes.record import Trace
from ..saes import Direction
from ..subject import Subject
from ..view.words import named
from .readoff import Readoff, gradient
from .votes import AT_ONCE

RIVALS = 9
"""So many of the likeliest other tokens are a token's rivals."""
TWIN_LIKELIER = 10
"""So many times as likely, the token with a space is what was meant rather than the one without."""
NAMED = 3
"""So many tokens are named where several are told of."""

Standard = Literal["mean", "rivals", "softmax"]
Against = int | tuple[int, ...] | Standard
"""What a logit is held to: another token, the mean of several, or one of those that need no naming."""
STANDARD = get_args(Standard)
SPOKEN = {"mean": "the vocabulary's mean", "rivals": "its rivals", "softmax": "all tokens"}


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
    """A token's logit, the final norm frozen; with ``more`` the sum of several tokens', each held to ``against``.

    twins: of tokens that are named by a text without a space, those that have one.
    """

    token: int
    against: Against | None = None
    name: str = "logit"
    place: Place | None = None
    twins: tuple[Twin, ...] = ()
    more: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        return (self.token, *self.more)

    @property
    def others(self) -> tuple[int, ...]:
        """The tokens that it is held to, where these are named."""
        match self.against:
            case int():
                return (self.against,)
            case tuple():
                return self.against
        return ()

    @property
    def by_standard(self) -> bool:
        return isinstance(self.against, str)

    @property
    def is_chance(self) -> bool:
        """Whether it is a log-probability."""
        return self.against == "softmax"

    def over_mean(self) -> LogitTarget:
        """The same tokens over the mean of all logits, where the target itself has no zero that means nothing is there:
        a plain logit, and a log-probability.
        """
        return replace(self, against="mean") if self.against is None or self.is_chance else self

    def check(self, subject: Subject) -> None:
        for token in (*self.tokens, *self.others):
            if not 0 <= token < subject.adapter.unembed.d_out:
                raise UserError(f"token id {token} is not in the vocabulary of {subject.adapter.unembed.d_out}")
        for token in self.tokens:
            if self.tokens.count(token) > 1:
                text = token_text(subject.loaded.tokenizer, token)
                raise UserError(f"the token {text!r} stands in the sum twice; name it once")

    def at(self, seen: Trace, pos: int) -> LogitTarget:
        """Rivals are those of the untouched model, whatever an intervention makes of them."""
        if self.against != "rivals":
            return self
        assert seen.logits is not None
        return replace(self, against=tuple(self._rivals(seen.logits[pos : pos + 1])[0].tolist()))

    def read(self, subject: Subject, trace: Trace) -> Readoff:
        assert trace.logits is not None
        assert trace.uncapped is not None
        own = self.live(subject, trace.logits)
        pre = own if self.is_chance else self.live(subject, trace.uncapped)
        place = Place(trace.n_layers - 1, "resid_post")
        return Readoff(place, partial(self._direction, subject, trace, pre), pre, live=own)

    def _direction(self, subject: Subject, trace: Trace, pre: Float[Tensor, "pos"]) -> Direction:
        assert trace.uncapped is not None
        adapter, x, z = subject.adapter, trace.resid_post, trace.uncapped
        c = self._slope(subject, z if self.is_chance or self.against == "rivals" else z[:1], capped=self.is_chance)
        rows, constant = _unembedded(adapter, c)
        norm = adapter.final_norm.to(adapter.device, x.dtype)
        if norm.bias is not None:
            constant = constant + rows @ norm.bias
        if self.is_chance:
            constant = constant + pre - (c * z).sum(1)
        w = norm.scale(x) * norm.centre(norm.gain * rows)
        return Direction(w, constant.expand(len(w)))

    def live(self, subject: Subject, x: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        """x: the logits."""
        own, n = x[:, list(self.tokens)].sum(1), len(self.tokens)
        match self.against:
            case None:
                return own
            case "mean":
                return own - n * x.mean(dim=1)
            case "softmax":
                return own - n * x.logsumexp(dim=1)
            case "rivals":
                return own - n * x.gather(1, self._rivals(x)).mean(dim=1)
        return own - n * x[:, list(self.others)].mean(dim=1)

    def slope(self, subject: Subject, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        adapter = subject.adapter
        norm = adapter.final_norm.to(x)
        with torch.no_grad():
            rows, _ = _unembedded(adapter, self._slope(subject, self._logits(adapter, norm(x)), capped=True))
        return gradient(lambda x: (norm(x) * rows).sum(1), x)

    def describe(self, subject: Subject) -> dict[str, Any]:
        def told(token: int) -> dict[str, Any]:
            return {"token": token_text(subject.loaded.tokenizer, token), "id": token}

        against: Any = list(map(told, self.others))
        if not isinstance(self.against, tuple):
            against = self.against if self.by_standard else against[0] if against else None
        plus = {"plus": list(map(told, self.more))} if self.more else {}
        return {"feature": None, "logit": told(self.token) | plus | {"against": against}}

    def _slope(self, subject: Subject, z: Float[Tensor, "n vocab"], *, capped: bool) -> Float[Tensor, "n vocab"]:
        """By how much the target changes with each logit before the cap, the cap passed or not."""
        return gradient(lambda z: self.live(subject, subject.adapter.capped(z) if capped else z), z)

    def _logits(self, adapter: Adapter, normed: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
        """Before the cap, of all tokens that the target depends on; 0 of the others."""
        unembed, size = adapter.unembed, adapter.unembed.d_out
        needed = torch.arange(size) if self.by_standard else torch.tensor(sorted({*self.tokens, *self.others}))
        found = normed.new_zeros(len(normed), size)
        for some, columns, bias in _columns(unembed.weight, unembed.bias, needed, normed):
            found[:, some] = normed @ columns + bias
        return found

    def _rivals(self, logits: Float[Tensor, "n vocab"]) -> Int[Tensor, "n rival"]:
        """The likeliest tokens but for its own."""
        others = logits.detach().clone()
        others[:, list(self.tokens)] = -torch.inf
        return others.topk(min(RIVALS, others.shape[1] - len(self.tokens)), dim=1).indices


def _unembedded(adapter: Adapter, c: Float[Tensor, "n vocab"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
    """W_U c, and what the unembedding's biases make of it."""
    unembed, rows, constant = adapter.unembed, c.new_zeros(len(c), adapter.d_model), c.new_zeros(len(c))
    for some, columns, bias in _columns(unembed.weight, unembed.bias, c.any(0).nonzero()[:, 0], c):
        rows = rows + c[:, some] @ columns.T
        constant = constant + c[:, some] @ bias
    return rows, constant


def _columns(
    weight: Float[Tensor, "d vocab"], bias: Float[Tensor, "vocab"] | None, tokens: Int[Tensor, "some"], like: Tensor
) -> Iterator[tuple[Int[Tensor, "part"], Float[Tensor, "d part"], Float[Tensor, "part"]]]:
    """The unembedding of some tokens, ascending, a part at a time: in a higher dtype it may be larger than a model."""
    for some in tokens.to(weight.device).split(AT_ONCE) if len(tokens) else ():
        first, last = some[0].item(), some[-1].item()
        # Neighbours are looked at where they lie; others are copied as rows, which is how vocabularies are stored.
        columns = weight[:, first : last + 1] if last - first < len(some) else weight.T.index_select(0, some).T
        own = like.new_zeros(len(some)) if bias is None else bias[some].to(like)
        yield some.to(like.device), columns.to(like), own


# ------------------------------------------------------------------------------------------------------------- in words


def listed(texts: Sequence[str]) -> str:
    """``␣Rome``, ``the mean of ␣Rome, ␣London``, ``the mean of 9 tokens (␣Rome, ␣London, ␣Berlin, …)``"""
    told = ", ".join(named(text) for text in texts[:NAMED])
    if len(texts) == 1:
        return told
    return f"the mean of {told}" if len(texts) <= NAMED else f"the mean of {len(texts)} tokens ({told}, …)"


def logit_name(tokens: Sequence[str | int], against: Standard | Sequence[str | int] | None) -> str:
    """``logit ' Paris'``, ``logits ' Paris' + ' France' against its rivals``, ``log-probability ' Paris'``"""
    own = " + ".join(map(repr, tokens))
    if isinstance(against, str):
        if against == "softmax":
            return f"log-probability {own}"
        against = SPOKEN[against]
    elif against is not None:
        if len(tokens) == len(against) == 1:
            return f"logit difference {own} − {against[0]!r}"
        against = ", ".join(map(repr, against))
    return f"logit{'s' if len(tokens) > 1 else ''} {own}" + (f" against {against}" if against else "")
