"""What a feature, a token, a head or a neuron goes on to do: later features and logits, and how much of each is its.

Three numbers for each, all in the unit of the reading's pre-activation:

    direct     through the frozen network and through no other dictionary: a graph's edge from the one to the other
    total      through the frozen network, dictionaries or not: ⟨w, J part⟩, what it contributes to the reading in all
    effect     what the reading would lose without it, to first order, with attention, norms and MLPs live

Neither is a sum over paths of a graph: total counts what passes by all dictionaries, in their errors, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.document import Heading, allocation_dict
from ..attribution.logits import LogitTarget
from ..attribution.named import NamedPart
from ..attribution.targets import FeatureTarget, parse_feature
from ..attribution.votes import unembedded
from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt, token_text
from ..passes.choices import CONTRIBUTION, EFFECT
from ..passes.forward import Allocation
from ..passes.onwards import Arrived, Given, onwards
from ..passes.record import Trace
from ..passes.settings import Settings
from ..subject import Subject
from ..view.blocks import Block, Page
from ..view.shown import Shown
from . import looks
from .build import TOP_LOGITS, crossed
from .cuts import Cut, Standing, standing_on
from .passing import ends, given_features
from .reads import Reads, feature_reads, target_read
from .standing import graph_hooks

if TYPE_CHECKING:
    import pandas

By = Literal["total", "direct", "effect"]
RAISED = 10
"""So many of the tokens whose logits are raised, and lowered, most."""


@dataclass(frozen=True)
class Source:
    """What goes on, and where it is put in. hook: of its own dictionary, whose features it does not feed."""

    name: str
    described: dict[str, Any]
    given: Given
    hook: Place | None = None


@dataclass(frozen=True)
class Driven:
    """A later feature that fires, or a logit at the last position."""

    kind: Literal["feature", "logit"]
    layer: int
    hook: str | None
    index: int
    pos: int
    token: str
    activation: float
    pre_activation: float
    direct: float
    total: float
    effect: float


@dataclass(frozen=True)
class Downstream(Shown):
    """The answer: everything that fires above the source. raised, lowered: (token, its id, total over the mean of all
    tokens), at the last position. most: so many of the features, the largest, are in the document; None: all.
    """

    heading: Heading
    source: Source
    allocation: Allocation
    features: tuple[Driven, ...]
    logits: tuple[Driven, ...]
    raised: tuple[tuple[str, int, float], ...]
    lowered: tuple[tuple[str, int, float], ...]
    sort: By = "total"
    most: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"What {self.source.name} goes on to do"

    def ordered(self) -> list[Driven]:
        """The features, the largest first."""
        return sorted(self.features, key=lambda one: -abs(getattr(one, self.sort)))

    @property
    def listed(self) -> list[Driven]:
        """Those of the document."""
        return self.ordered()[: self.most]

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae downstream --json`` prints."""
        hooks = {(one.layer, one.hook) for one in self.features}
        several = {layer for layer, count in Counter(layer for layer, _ in hooks).items() if count > 1}

        def named(one: Driven) -> dict[str, str]:
            name = f"{one.layer}{f'.{one.hook}' if one.layer in several else ''}/{one.index}"
            label = self.labels.get(name, self.labels.get(f"{one.layer}/{one.index}"))
            return {"name": name} | ({} if label is None else {"label": label})

        return {
            **self.heading.to_dict(),
            **allocation_dict(self.allocation),
            "source": {"name": self.source.name, **self.source.described},
            "sort": self.sort,
            "features": [
                {
                    **named(one),
                    **{key: getattr(one, key) for key in ("layer", "hook", "index", "pos", "token", *NUMBERS)},
                }
                for one in self.listed
            ],
            **({} if self.most is None else {"driven": len(self.features)}),
            "logits": [{key: getattr(one, key) for key in ("index", "pos", "token", *NUMBERS)} for one in self.logits],
            **{
                name: [{"token": text, "index": token, "total": total} for text, token, total in some]
                for name, some in (("raised", self.raised), ("lowered", self.lowered))
            },
        }

    def to_frame(self) -> pandas.DataFrame:
        """A row for every feature and logit."""
        import pandas

        columns = ["kind", "layer", "hook", "index", "pos", "token", *NUMBERS]
        rows = [tuple(getattr(one, key) for key in columns) for one in [*self.ordered(), *self.logits]]
        return pandas.DataFrame(rows, columns=columns)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """The features, those first that it drives most; the likeliest tokens; the tokens that it raises and lowers."""
        return looks.downstream_blocks(self.to_dict(), top)

    def page(self) -> Page:
        return self.heading.page(self.title, self.blocks(), self.allocation)


NUMBERS = ("activation", "pre_activation", "direct", "total", "effect")


def check_by(sort: str) -> None:
    """Raises UserError for an order that there is not."""
    if sort not in get_args(By):
        raise UserError(
            f"what is driven is sorted by {', '.join(get_args(By)[:-1])} or {get_args(By)[-1]}, not {sort!r}"
        )


def check_rule(rule: str) -> None:
    """Raises UserError for a rule under which no part is carried on alone."""
    if rule not in CONTRIBUTION:
        raise UserError(f"what a source goes on to do takes the rules {' and '.join(CONTRIBUTION)}, not {rule}")


def find_downstream(
    subject: Subject, prompt: Prompt, source: str, *, sort: By = "total", settings: Settings
) -> Downstream:
    """Everything that one source goes on to do on a prompt.

    source: ``"11/223@6"``, ``"token:6"``, ``"head:5.1@7"``, ``"neuron:5/301@7"``; without a position, wherever it is.

    Raises UserError for a source that there is not or that does nothing on the prompt, and for a rule that no sweep
    takes.
    """
    check_by(sort)
    check_rule(settings.rule)
    seen, standing = _all_dictionaries(subject, prompt)
    found = _source(subject, seen, prompt, standing, source)
    features, arrived = _followed(seen, prompt, standing, found, settings)
    last = len(prompt) - 1
    logits = [_logit(subject, seen, token, last, arrived) for token in _likeliest(seen)]
    scale = subject.adapter.final_norm.to(seen.resid_post).scale(seen.resid_post[last:])
    (votes,) = unembedded(subject, arrived[1].above[last:], scale)
    order = votes.argsort(descending=True).tolist()
    raised, lowered = (
        tuple((token_text(subject.loaded.tokenizer, token), token, votes[token].item()) for token in some[:RAISED])
        for some in (order, order[::-1])
    )
    return Downstream(
        Heading.of(subject, prompt), found, settings.allocation, tuple(features), tuple(logits), raised, lowered, sort
    )


def features_driven(
    subject: Subject, prompt: Prompt, feature: FeatureTarget, positions: Sequence[int], settings: Settings
) -> list[Driven]:
    """The later features that fire, by what one feature at these positions together does to them.

    Raises UserError as :func:`.find_downstream` does.
    """
    check_rule(settings.rule)
    seen, standing = _all_dictionaries(subject, prompt)
    source = _feature(subject, standing, prompt, feature, positions)
    return _followed(seen, prompt, standing, source, settings)[0]


def _all_dictionaries(subject: Subject, prompt: Prompt) -> tuple[Trace, Standing]:
    """The whole pass, with all that a graph can stand on."""
    hooks = graph_hooks(subject, None)
    places = {place for hook, stands in hooks.items() for place in (hook, stands.place)}
    seen = subject.trace(prompt, None, places | crossed(subject, hooks, None))
    return seen, standing_on(subject, seen, prompt, hooks)


def _followed(
    seen: Trace, prompt: Prompt, standing: Standing, source: Source, settings: Settings
) -> tuple[list[Driven], Ways]:
    """The features that something comes to, and what has come to the stream behind the last layer."""
    frozen = CONTRIBUTION[settings.rule]
    features: list[Driven] = []
    # The same places in the same order; what is read at each is found once.
    ways = zip(
        onwards(seen, source.given, frozen, ends(standing)),
        onwards(seen, source.given, frozen),
        onwards(seen, source.given, EFFECT),
        strict=True,
    )
    for arrived in ways:
        for cut in standing.cuts[1:]:
            if cut.n_features and cut.hook != source.hook and _is_at(cut.hook, arrived[0]):
                features += _features(prompt, cut, arrived)
    return features, arrived


# ------------------------------------------------------------------------------------------------------------- sources


def _source(subject: Subject, seen: Trace, prompt: Prompt, standing: Standing, text: str) -> Source:
    part, n = NamedPart.of(text), len(prompt)
    part.check(subject, n)
    if part.kind == "feature":
        target, pos = parse_feature(subject, text)
        return _feature(subject, standing, prompt, target, None if pos is None else [pos])
    where = slice(None) if part.pos is None else slice(part.pos, part.pos + 1)
    if part.kind == "token":
        name = f"token {prompt.tokens[where.start]!r} ({part.pos})"
        given = Given(above={Place(0, "resid_pre"): _only(seen.streams[0], where)})
        return Source(name, part.to_dict(), given)
    frozen, name = seen.sublayer(part.place.depth), part.name.replace(":", " ").replace("@", " at ")
    if part.kind == "neuron":
        given = Given(below={part.place: _only(frozen.written_by([[part.unit(subject)]])[:, 0], where)})
        return Source(name, part.to_dict(), given)
    z = frozen.recorded_z().unflatten(-1, (frozen.mixer.n_units, -1))
    own = torch.zeros_like(z)
    own[:, part.index] = z[:, part.index]
    given = Given(below={Place(part.layer, "hook_z"): _only(own.flatten(1), where)})
    return Source(name, part.to_dict(), given)


def _feature(
    subject: Subject, standing: Standing, prompt: Prompt, target: FeatureTarget, positions: Sequence[int] | None
) -> Source:
    """positions: None is wherever it fires."""
    cut = next((cut for cut in standing.cuts if cut.hook == target.hook and cut.n_features), None)
    if cut is None:
        graph_hooks(subject, [target.hook])  # which says why
        raise UserError(f"no feature of the dictionary at {target.hook} fires on this prompt")
    target.check(subject)
    at = ", ".join(map(str, positions or ()))
    name = f"{target.name} at {at}" if at else target.name
    here = True if positions is None else torch.isin(cut.active.pos, torch.tensor(positions, device=cut.roots.device))
    which = (cut.active.index == target.index) & here
    if not which.any():
        raise UserError(f"{name} does not fire there, so that it goes on to do nothing")
    some, n = which.nonzero()[:, 0], len(prompt)
    parts = {}
    for place in cut.written:
        written = cut.part(some, place)
        parts[place] = written.new_zeros(n, written.shape[1]).index_add_(0, cut.active.pos[some], written)
    described: dict[str, Any] = {"kind": "feature", "layer": target.hook.layer, "hook": target.hook.hook}
    described |= {"index": target.index} | ({} if positions is None else {"pos": positions[0]})
    return Source(name, described, given_features(cut, parts), target.hook)


def _only(x: Float[Tensor, "pos d"], where: slice) -> Float[Tensor, "pos d"]:
    part = torch.zeros_like(x)
    part[where] = x[where]
    return part


# ------------------------------------------------------------------------------------------------------------ readings


Ways = tuple[Arrived, Arrived, Arrived]
"""What has come to a place: directly, in total, and as an effect."""


def _is_at(hook: Place, arrived: Arrived) -> bool:
    return hook == arrived.place or (hook.is_stream and arrived.place.is_stream and hook.depth == arrived.place.depth)


def _features(prompt: Prompt, cut: Cut, arrived: Ways) -> Iterator[Driven]:
    """The features of a dictionary that fire, by position, then index; of those that nothing comes to none."""
    reads = feature_reads(cut, cut.active.pos, cut.active.index)
    # A cut's own features read what lies below it, a transcoder's what stands above where others end.
    parts = [(one.below if cut.place == cut.hook else one.above)[reads.pos] for one in arrived]
    numbers = zip(*((w * x).sum(1).tolist() for w, x in zip(_along(reads), parts, strict=True)), strict=True)
    columns = (x.tolist() for x in (reads.pos, cut.active.index, cut.active.activation, reads.pre))
    for pos, index, activation, pre, values in zip(*columns, numbers, strict=True):
        if any(values):
            yield Driven("feature", *cut.hook, index, pos, prompt.tokens[pos], activation, pre, *values)


def _along(reads: Reads) -> tuple[Float[Tensor, "read d"], ...]:
    """What each of the ways is read along."""
    return reads.w, reads.w, reads.slope


def _logit(subject: Subject, seen: Trace, token: int, pos: int, arrived: Ways) -> Driven:
    reads = target_read(subject, seen, LogitTarget(token), pos)
    values = ((w[0] @ one.above[pos]).item() for w, one in zip(_along(reads), arrived, strict=True))
    assert seen.logits is not None
    named = (subject.adapter.n_layers, None, token, pos, token_text(subject.loaded.tokenizer, token))
    return Driven("logit", *named, seen.logits[pos, token].item(), reads.pre.item(), *values)


def _likeliest(seen: Trace) -> list[int]:
    assert seen.logits is not None
    return seen.logits[-1].topk(min(TOP_LOGITS, seen.logits.shape[1])).indices.tolist()
