"""What a case study found, in plain words made of its numbers alone.

:class:`Facts` holds the numbers; :func:`answer` and :func:`points` say them and claim nothing that none of them
carries. What a reader can change is ranked; special tokens stand apart and are never the largest contribution.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ...attribution.agreement import Agreement
from ...attribution.looks import agreeing, share_of
from ...graph.told import removal_line
from ...view.words import capital, count, number, percent, place, shown, signed

Verdict = Literal["agree", "disagree", "nothing lost", "not measured"]

REVERSED_SHARE = 0.1
"""A measured effect of the other sign than the contribution is told where it is this share of the pre-activation."""


@dataclass(frozen=True)
class SourceFact:
    """A source token. share: of the pre-activation. special: a special token, which nobody replaces.

    measured: what the target loses when it is replaced, on average; spread: the standard deviation of that.
    """

    pos: int
    token: str
    value: float
    share: float | None = None
    measured: float | None = None
    spread: float | None = None
    special: bool = False

    @property
    def place(self) -> str:
        return place(self.token, self.pos)

    @property
    def told(self) -> str:
        """``+2.00 (25 %)``"""
        return signed(self.value, 2) + ("" if self.share is None else f" ({percent(self.share)})")


@dataclass(frozen=True)
class HeadFact:
    """A head, and the source that most of it came from (None where heads are not split by token)."""

    name: str
    value: float
    source: SourceFact | None = None

    @property
    def told(self) -> str:
        of = "" if self.source is None else f", {signed(self.source.value, 2)} of it from {self.source.place}"
        return f"{self.name} {signed(self.value, 2)}{of}"


@dataclass(frozen=True)
class UpstreamFact:
    """A feature of the SAE layer below, by its edge into the target."""

    name: str
    label: str
    value: float

    @property
    def told(self) -> str:
        return f"{self.name}{f' “{shown(self.label)}”' if self.label else ''} {signed(self.value, 2)}"


@dataclass(frozen=True)
class Facts:
    """The numbers that words are made of, in units of the pre-activation where nothing else is said.

    top: of the sources that can be changed, the one with the largest contribution (None where there is none).
    opposing: the most negative one, where it is larger in size. special: the special tokens, such as position 0.
    own: the target's own token, where it is among the sources. top_replaced: of the sources that were replaced, the one
    with the largest contribution; most_lost: the one without which most is lost; reversed: the one whose replacement
    plainly does the opposite of its contribution, where there is one. together: what all of the graph's features do, of
    its verification (None where it has none, or no shares). error_share, left_out_share: of the influence in
    the graph, what ends in SAE errors and in what the graph leaves out.
    """

    feature: str
    label: str
    pos: int
    token: str
    activation: float | None
    pre_activation: float
    top: SourceFact | None
    opposing: SourceFact | None
    own: SourceFact | None
    special: tuple[SourceFact, ...]
    heads: tuple[HeadFact, ...]
    upstream: tuple[UpstreamFact, ...]
    error_share: float | None
    left_out_share: float | None
    replacements: int
    replaced: int
    top_replaced: SourceFact | None
    most_lost: SourceFact | None
    reversed: SourceFact | None
    agreement: Agreement | None
    verdict: Verdict
    together: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        document = asdict(self) | {"rank_correlation": None if self.agreement is None else self.agreement.rank}
        return document | {key: list(document[key]) for key in ("heads", "upstream", "special")}


def gather(*, sources: list[SourceFact], pre_activation: float, pos: int, **given: Any) -> Facts:
    """The facts of one feature at one position. ``sources``: their shares are filled in here. given: the other facts,
    but for what is found among the sources."""
    shared = [replace(source, share=share_of(source.value, pre_activation)) for source in sources]
    ranked = [source for source in shared if not source.special]
    top, least = (end(ranked, key=lambda s: s.value, default=None) for end in (max, min))
    replaced = [source for source in ranked if source.measured is not None]
    top_replaced = max(replaced, key=lambda s: s.value, default=None)
    most_lost = max(replaced, key=lambda s: s.measured or 0.0, default=None)
    opposes = top is not None and least is not None and least.value < 0 and abs(least.value) > abs(top.value)
    empty: dict[str, Any] = {
        "heads": (), "upstream": (), "error_share": None, "left_out_share": None, "replacements": 0,
        "agreement": None,
    }  # fmt: skip
    return Facts(
        **(empty | given),
        pos=pos,
        pre_activation=pre_activation,
        top=top,
        opposing=least if opposes else None,
        own=next((source for source in ranked if source.pos == pos), None),
        special=tuple(source for source in shared if source.special),
        replaced=len(replaced),
        top_replaced=top_replaced,
        most_lost=most_lost,
        reversed=_reversed(replaced, pre_activation),
        verdict=_verdict(top_replaced, most_lost),
    )


def _reversed(replaced: list[SourceFact], pre_activation: float) -> SourceFact | None:
    """The source with the largest measured effect of the other sign than its contribution, where that is plain to see:
    more than the replacements vary, and a tenth of the pre-activation at least.
    """
    least = REVERSED_SHARE * abs(pre_activation)
    opposite = [s for s in replaced if s.value * (s.measured or 0.0) < 0]
    plain = [s for s in opposite if abs(s.measured or 0.0) > max(least, s.spread or 0.0)]
    return max(plain, key=lambda s: abs(s.measured or 0.0), default=None)


def _verdict(top_replaced: SourceFact | None, most_lost: SourceFact | None) -> Verdict:
    if top_replaced is None or most_lost is None or most_lost.measured is None:
        return "not measured"
    if most_lost.measured <= 0:
        return "nothing lost"
    return "agree" if top_replaced == most_lost else "disagree"


# --------------------------------------------------------------------------------------------------------------- words


def answer(facts: Facts) -> str:
    """``climate (6) gives 71 % of 17/2601 at change (7); replaced: −22.6``"""
    top, least, at = facts.top, facts.opposing, place(facts.token, facts.pos)
    adds = top is not None and top.value > 0
    if not facts.activation:
        line = f"{facts.feature} does not fire at {at} (pre-activation {signed(facts.pre_activation, 2)})"
        line += f"; {top.place} adds most, {signed(top.value, 2)}" if top is not None and adds else ""
    elif top is None or not adds:
        line = f"No token that could be changed adds to {facts.feature} at {at}"
    elif top == facts.own:
        line = f"{top.place} itself gives {_part(top)} {facts.feature} there"
    else:
        line = f"{top.place} gives {_part(top)} {facts.feature} at {at}"
    if not adds:
        return line + (f"; {least.place} takes most away, {signed(least.value, 2)}" if least is not None else "")
    return line if top is None or top.measured is None else f"{line}; replaced: {signed(-top.measured, 1)}"


def _part(source: SourceFact) -> str:
    return f"{signed(source.value, 2)} to" if source.share is None else f"{percent(source.share)} of"


def points(facts: Facts) -> tuple[str, ...]:
    """What else was found, each in a line."""
    found = (_own(facts), _against(facts), _special(facts), _heads(facts), _upstream(facts), _errors(facts))
    return tuple(point for point in (*found, _measured(facts), _signs(facts), _together(facts)) if point)


def sentence(facts: Facts) -> str:
    """All of it as one paragraph."""
    return " ".join(f"{part}." for part in (answer(facts), *points(facts)))


def _own(facts: Facts) -> str:
    own = facts.own
    if own is None or own == facts.top:
        return ""
    return f"Its own token, {own.place}: {own.told}" + ", larger in size" * (own == facts.opposing)


def _against(facts: Facts) -> str:
    top, against = facts.top, facts.opposing
    if top is None or against is None or top.value <= 0 or against == facts.own:
        return ""
    return f"Larger in size is what {against.place} takes away: {signed(against.value, 2)}"


def _special(facts: Facts) -> str:
    told = ", ".join(f"{source.place} {source.told}" for source in facts.special)
    return f"Apart from the ranking, special tokens: {told}" if told else ""


def _heads(facts: Facts) -> str:
    return f"Largest heads: {'; '.join(head.told for head in facts.heads)}" if facts.heads else ""


def _upstream(facts: Facts) -> str:
    return f"Largest upstream features: {', '.join(f.told for f in facts.upstream)}" if facts.upstream else ""


def _errors(facts: Facts) -> str:
    if facts.error_share is None:
        return ""
    said = f"{percent(facts.error_share)} of the graph’s influence ends in SAE errors, which no feature explains"
    return said + (f", and {percent(facts.left_out_share)} in what the graph leaves out" * bool(facts.left_out_share))


def _measured(facts: Facts) -> str:
    top, lost = facts.top_replaced, facts.most_lost
    if facts.verdict == "not measured" or top is None or lost is None:
        return "What replacing tokens really does was not measured"
    many = "1 random token" if facts.replacements == 1 else f"{count(facts.replacements)} random tokens"
    said = f"Each source replaced by {many}: "
    if facts.verdict == "nothing lost":
        said += "this disagrees, on average none of them lowers the pre-activation"
    elif facts.verdict == "agree":
        said += f"this agrees, most is lost without {lost.place} ({number(lost.measured, 2)})"
    else:
        said += (
            f"this disagrees, most is lost without {lost.place} ({number(lost.measured, 2)}; without {top.place} "
            f"{number(top.measured, 2)}{_close(top, lost)})"
        )
    return said + _correlated(facts)


def _close(top: SourceFact, lost: SourceFact) -> str:
    """Whether the two differ by more than one set of random tokens differs from another."""
    apart = (lost.measured or 0.0) - (top.measured or 0.0)
    spread = max(top.spread or 0.0, lost.spread or 0.0)
    return f", less apart than the standard deviation of {number(spread, 2)}" if apart < spread else ""


def _correlated(facts: Facts) -> str:
    if facts.agreement is None:
        return ""
    opposed = ", the two orders do not agree" if facts.agreement.rank <= 0 else ""
    return f"; {agreeing(facts.agreement.to_dict())}{opposed}"


def _signs(facts: Facts) -> str:
    other = facts.reversed
    if other is None or other.measured is None:
        return ""
    does = f"{'loses' if other.measured > 0 else 'gains'} {number(abs(other.measured), 2)}"
    return f"Signs differ for {other.place}: it contributes {signed(other.value, 2)}, and without it the feature {does}"


def _together(facts: Facts) -> str:
    if facts.together is None:
        return ""
    return capital(removal_line(facts.together))
