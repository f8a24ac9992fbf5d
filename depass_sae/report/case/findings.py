"""What a case study found, in plain words made of its numbers alone.

:class:`Facts` holds the numbers; :func:`sentence` says them and claims nothing that none of them carries: the largest
contribution and the feature's own token's, the heads and upstream features with the largest values, how much of the
graph's influence ends in SAE errors, whether replacing tokens for real points at the same source, and a source of which
it says the opposite.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ...attribution.render import place, shown
from .html import written

Verdict = Literal["agree", "disagree", "nothing lost", "not measured"]

REVERSED_SHARE = 0.1
"""A measured effect of the other sign than the contribution is told where it is this share of the pre-activation."""


@dataclass(frozen=True)
class SourceFact:
    """A source token. share: of the pre-activation.

    measured: what the target loses when it is replaced, on average; spread: the standard deviation of that.
    """

    pos: int
    token: str
    value: float
    share: float | None = None
    measured: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class HeadFact:
    """A head, and the source that most of it came from (None where heads are not split by token)."""

    name: str
    value: float
    source: SourceFact | None = None


@dataclass(frozen=True)
class UpstreamFact:
    """A feature of the SAE layer below, by its edge into the target."""

    name: str
    label: str
    value: float


@dataclass(frozen=True)
class Facts:
    """The numbers that a sentence is made of, in units of the pre-activation where nothing else is said.

    top: the source with the largest contribution. opposing: the most negative one, where it is larger in size.
    own: the target's own token, where it is among the sources. top_replaced: of the sources that were replaced, the one
    with the largest contribution; most_lost: the one without which most is lost; reversed: the one whose replacement
    plainly does the opposite of its contribution, where there is one. error_share, left_out_share: of the influence in
    the graph, what ends in SAE errors and in what the graph leaves out.
    """

    feature: str
    label: str
    pos: int
    token: str
    activation: float | None
    pre_activation: float
    top: SourceFact
    opposing: SourceFact | None
    own: SourceFact | None
    heads: tuple[HeadFact, ...]
    upstream: tuple[UpstreamFact, ...]
    error_share: float | None
    left_out_share: float | None
    replacements: int
    replaced: int
    top_replaced: SourceFact | None
    most_lost: SourceFact | None
    reversed: SourceFact | None
    rank_correlation: float | None
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        document = asdict(self)
        return document | {key: list(document[key]) for key in ("heads", "upstream")}


def gather(
    *,
    feature: str,
    label: str,
    pos: int,
    token: str,
    activation: float | None,
    pre_activation: float,
    sources: list[SourceFact],
    heads: tuple[HeadFact, ...] = (),
    upstream: tuple[UpstreamFact, ...] = (),
    error_share: float | None = None,
    left_out_share: float | None = None,
    replacements: int = 0,
    rank_correlation: float | None = None,
) -> Facts:
    """The facts of one feature at one position. ``sources``: one at least, their shares filled in here."""
    # A share of nothing, or of a negative number, says nothing.
    shared = [replace(s, share=s.value / pre_activation if pre_activation > 0 else None) for s in sources]
    top, least = max(shared, key=lambda s: s.value), min(shared, key=lambda s: s.value)
    replaced = [s for s in shared if s.measured is not None]
    top_replaced = max(replaced, key=lambda s: s.value, default=None)
    most_lost = max(replaced, key=lambda s: s.measured or 0.0, default=None)
    return Facts(
        feature=feature,
        label=label,
        pos=pos,
        token=token,
        activation=activation,
        pre_activation=pre_activation,
        top=top,
        opposing=least if least.value < 0 and abs(least.value) > abs(top.value) else None,
        own=next((s for s in shared if s.pos == pos), None),
        heads=heads,
        upstream=upstream,
        error_share=error_share,
        left_out_share=left_out_share,
        replacements=replacements,
        replaced=len(replaced),
        top_replaced=top_replaced,
        most_lost=most_lost,
        reversed=_reversed(replaced, pre_activation),
        rank_correlation=rank_correlation,
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


def sentence(facts: Facts) -> str:
    """One paragraph of plain text."""
    parts = [_fires(facts), *_sources(facts), _heads(facts), _upstream(facts), _errors(facts), _measured(facts)]
    return " ".join(part for part in parts if part)


def _fires(facts: Facts) -> str:
    where = f"Feature {facts.feature}{_labelled(facts.label)}"
    at = place(facts.token, facts.pos)
    if not facts.activation:
        return f"{where} does not fire on {at}: its pre-activation there is {_plain(facts.pre_activation)}."
    activation, pre = _plain(facts.activation), _plain(facts.pre_activation)
    before = "" if activation == pre else f" (pre-activation {pre})"
    return f"{where} fires on {at} with activation {activation}{before}."


def _sources(facts: Facts) -> list[str]:
    top, own = facts.top, facts.own
    lines = []
    if top.value <= 0:
        lines.append("No source token adds to it.")
    elif own is not None and own == top:
        lines.append(f"The largest contribution is its own token’s, {_value(top)}{_share(top)}.")
    else:
        lines.append(f"The largest contribution comes from {place(top.token, top.pos)}: {_value(top)}{_share(top)}.")
        if own is not None:
            lines.append(f"Its own token contributes {_value(own)}{_share(own)}.")
    if (against := facts.opposing) is not None:
        name = place(against.token, against.pos)
        if top.value > 0:
            lines.append(f"Larger in size is what {name} takes away: {_value(against)}.")
        else:
            lines.append(f"Most is taken away by {name}: {_value(against)}.")
    return lines


def _heads(facts: Facts) -> str:
    if not facts.heads:
        return ""
    named = []
    for head in facts.heads:
        of = head.source
        carried = "" if of is None else f", of which {_value(of)} from {place(of.token, of.pos)}"
        named.append(f"{head.name} ({_signed(head.value)}{carried})")
    many = "heads are" if len(named) > 1 else "head is"
    return f"By contribution the largest {many} {_listed(named)}."


def _upstream(facts: Facts) -> str:
    if not facts.upstream:
        return ""
    named = [f"{f.name}{_labelled(f.label)} ({_signed(f.value)})" for f in facts.upstream]
    many = "edges come" if len(named) > 1 else "edge comes"
    return f"From the features of the SAE below, the largest {many} from {_listed(named)}."


def _errors(facts: Facts) -> str:
    if facts.error_share is None:
        return ""
    errors = (
        f"Of the influence in the graph, {_percent(facts.error_share)} ends in SAE errors, which no feature explains"
    )
    if not facts.left_out_share:
        return f"{errors}."
    return f"{errors}, and {_percent(facts.left_out_share)} in what the graph leaves out."


def _measured(facts: Facts) -> str:
    top, lost = facts.top_replaced, facts.most_lost
    if facts.verdict == "not measured" or top is None or lost is None:
        return "What replacing tokens really does was not measured."
    kept = "" if top == facts.top else f" ({place(facts.top.token, facts.top.pos)}, a special token, was kept)"
    tried = f"Replacing each source by {_many(facts.replacements, 'random token')}{kept}"
    if facts.verdict == "nothing lost":
        said = f"{tried} disagrees with the contributions: on average none of them lowers the pre-activation."
        return f"{said}{_correlated(facts)}"
    if facts.verdict == "agree":
        said = f"{tried} agrees on the first: most is lost without {place(lost.token, lost.pos)}"
        return f"{said}, {_plain(lost.measured)} on average.{_correlated(facts)}"
    return (
        f"{tried} disagrees with the contributions: most is lost without {place(lost.token, lost.pos)}, "
        f"{_plain(lost.measured)} on average, and {_plain(top.measured)} without {place(top.token, top.pos)}"
        f"{_close(top, lost)}.{_correlated(facts)}"
    )


def _close(top: SourceFact, lost: SourceFact) -> str:
    """Whether the two differ by more than one set of random tokens differs from another."""
    if None in (top.measured, lost.measured, top.spread, lost.spread):
        return ""
    apart = (lost.measured or 0.0) - (top.measured or 0.0)
    spread = max(top.spread or 0.0, lost.spread or 0.0)
    return (
        f"; they lie {_plain(apart)} apart, less than the standard deviation of {_plain(spread)}"
        if apart < spread
        else ""
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _correlated(facts: Facts) -> str:
    rho, other = facts.rank_correlation, facts.reversed
    turned = ""
    if other is not None and other.measured is not None:
        does = "loses" if other.measured > 0 else "gains"
        turned = (
            f" The signs differ for {place(other.token, other.pos)}: it contributes {_value(other)}, and "
            f"without it the feature {does} {_plain(abs(other.measured))}."
        )
    if rho is None:
        return turned
    opposed = ": over all sources the two orders do not agree" if rho <= 0 else ""
    return f"{turned} The rank correlation over {facts.replaced} sources is {_plain(rho)}{opposed}."


def _labelled(label: str) -> str:
    return f" (“{shown(label)}”)" if label else ""


def _share(source: SourceFact) -> str:
    return "" if source.share is None else f" ({_percent(source.share)})"


def _value(source: SourceFact) -> str:
    return _signed(source.value)


def _signed(value: float) -> str:
    return written(value, "+", 2)


def _plain(value: float | None) -> str:
    return "" if value is None else written(value, "", 2)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-0 ", "0 ").replace("-", "\u2212")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
