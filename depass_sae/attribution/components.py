"""Through which heads, modules, neurons and subspaces a target gets what it has (paper §4.2, §4.3).

Every layer is asked the same question for itself: split the stream right after its attention (or MLP) into this layer's
heads (module, neurons) and what was there before, and carry the parts to the target. So each layer's row sums to the
whole pre-activation; rows of different layers overlap and are not to be added up.

For ``linear``, ``half`` and ``half-qk`` one backward sweep answers for all layers at once; other rules carry each
layer's parts forward on their own. Effects, under any rule, are one more sweep back with nothing frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.prompt import Prompt
from ..passes.backward import Level
from ..passes.choices import EFFECT, Choices
from ..passes.frozen import INSIDE, Frozen
from ..passes.many import Aim, Batch
from ..passes.record import Trace
from ..passes.rows import at
from ..passes.rules import RULES, rule_named
from ..passes.settings import Settings
from ..passes.sources import Heads, Modules, Neurons, Source
from ..subject import Subject
from ..view.blocks import Block
from . import looks
from .answer import Answer, Reading, TargetAt, addends, checked, frame, read
from .document import others_dict, others_of
from .ledger import heads_by_token
from .looks import Order
from .measure_heads import HeadMeasure, MeasuredHeads, measure_heads
from .positions import Pos
from .readoff import Readoff, Target

if TYPE_CHECKING:
    import pandas

TOP_NEURONS = 50
"""How many neurons of a layer a document lists."""
AT_MOST = "the pre-activation at most: each row has what heads behind it move"
"""What the largest share of ``pattern`` is a share of, where every layer has its own."""
LARGEST = 15
"""So many parts are named where nobody says how many."""


@dataclass(frozen=True)
class Grain:
    """A granularity: which sublayers have parts of it, how the forward engine splits there, how the sweep reads it.

    of: whether a sublayer has such parts. inside: whether they stand inside it, before its output map.
    source: (layer, ``attn`` or ``mlp``). read: (trace, level) -> each part's contribution [target, part], summed over
    positions.
    """

    name: str
    part: str
    inside: bool
    of: Callable[[Frozen], bool]
    source: Callable[[int, str], Source]
    read: Callable[[Trace, Level], Float[Tensor, "target part"]]

    def __reduce__(self) -> tuple[Callable[[str], Grain], tuple[str]]:
        """By its name: answers go to other processes, functions without a name do not."""
        return kind_named, (self.name,)


def kind_named(name: str) -> Grain:
    return KINDS[name]


def _read_modules(trace: Trace, level: Level) -> Float[Tensor, "target part"]:
    added = trace.streams[level.number + 1] - trace.streams[level.number]
    return (level.output * added).sum((1, 2))[:, None]


def _read_units(_trace: Trace, level: Level) -> Float[Tensor, "target part"]:
    return level.units()


def _units(name: str, unit: str, source: Callable[[int], Source]) -> Grain:
    return Grain(
        name, unit, True, lambda frozen: frozen.mixer.unit == unit, lambda layer, _: source(layer), _read_units
    )


HEADS = _units("heads", "head", Heads)
NEURONS = _units("neurons", "neuron", Neurons)
MODULES = Grain("modules", "module", False, lambda _: True, Modules, _read_modules)  # type: ignore[arg-type]
KINDS = {kind.name: kind for kind in (HEADS, MODULES, NEURONS)}


@dataclass(frozen=True)
class LayerRow:
    """One layer's split of the whole: Σ values + rest + bias + pattern + constant = pre-activation.

    rest: what the stream before this sublayer carries to the target. bias: the bias vectors from here on. pattern: what
    later heads move whatever stands in queries and keys; None under a rule by which these have no share.
    by_token: each part split by the prompt's tokens, what is none of them last; its rows sum to ``values``.
    name: of a part within its layer, by its index. effects: of each part, where asked for; they sum to nothing.
    """

    layer: int
    sublayer: str
    values: Float[Tensor, "part"]
    rest: float
    bias: float
    pattern: float | None = None
    by_token: Float[Tensor, "part source"] | None = None
    name: Callable[[int], str] = str
    effects: Float[Tensor, "part"] | None = None

    @property
    def total(self) -> float:
        return self.values.sum().item() + self.rest + sum(self.other.values())

    @property
    def other(self) -> dict[str, float]:
        """What neither the parts nor the stream before them has brought."""
        return {"bias": self.bias, **({} if self.pattern is None else {"pattern": self.pattern})}


@dataclass(frozen=True, kw_only=True)
class ComponentTarget(TargetAt):
    """The answer at one position, in units of the target's pre-activation: a row per sublayer, layers ascending.

    measured: of heads, where asked for, what taking them out really does.
    """

    rows: tuple[LayerRow, ...]
    measured: MeasuredHeads | None = None

    @cached_property
    def completeness_error(self) -> float:
        """The largest of the rows'."""
        return max(
            (self.shortfall([*row.values.tolist(), row.rest, *row.other.values()]) for row in self.rows), default=0.0
        )

    @property
    def matrix(self) -> Float[Tensor, "row part"]:
        """The parts' contributions as one matrix, a row per sublayer; NaN where a layer has fewer parts than others."""
        return torch.nn.utils.rnn.pad_sequence([row.values for row in self.rows], True, torch.nan)


@dataclass(frozen=True, kw_only=True)
class ComponentAttribution(Answer[ComponentTarget]):
    """Heads, modules or neurons of every layer up to the target; ``contributions`` are those of the strongest one.

    sort: which parts are named first (:data:`.Order`). every: whether a document lists all neurons of a layer.
    """

    kind: Grain
    sort: Order = "abs"
    every: bool = False

    @property
    def title(self) -> str:
        return f"Through which {self.kind.name} comes {self.target_name}?"

    @property
    def contributions(self) -> Float[Tensor, "row part"]:
        return self.target.matrix

    def part_name(self, row: LayerRow, index: int) -> str:
        """``L5H3``, ``attn 5``, ``mlp 5`` or ``L5N817``; of an expert's neuron ``L5N12.817``."""
        return name_of_part(self.kind, row, index)

    def to_dict(self, top: int | None = None) -> dict[str, Any]:
        """The document that the command line prints with ``--json``.

        For every row Σ parts + rest.value + Σ rest.other + constant = pre_activation. Of neurons the ``top`` (50; with
        ``every`` all) of each layer are listed, and the others' sum stands in ``other``; a neuron of an expert is a
        text, "12.817". A part's ``effect`` is in no sum.
        """
        return {
            **self._head(),
            "sort": self.sort,
            "targets": [self._target_dict(target, how_many(top, self.every)) for target in self.targets],
        }

    def _target_dict(self, target: ComponentTarget, top: int | None) -> dict[str, Any]:
        parts, rest = [], []
        for row in target.rows:
            order = listed_neurons(row.values, row.effects, self.sort, top) if self.kind is NEURONS else None
            listed = range(len(row.values)) if order is None else order.tolist()
            for index in listed:
                name: Any = row.sublayer if self.kind is MODULES else row.name(index)
                name = index if name == str(index) else name
                entry = {"layer": row.layer, self.kind.part: name, "value": row.values[index].item()}
                entry |= {} if row.effects is None else {"effect": row.effects[index].item()}
                parts.append(entry if row.by_token is None else entry | self._token_dict(row.by_token[index]))
            other = others_dict(row.other)
            if order is not None:
                missing = row.values.sum() - row.values[order].sum()
                other.append({"name": "other neurons", "value": missing.item()})
            module = {"module": row.sublayer} if self.kind is MODULES else {}
            rest.append({"layer": row.layer, **module, "value": row.rest, "other": other})
        measured = {} if target.measured is None else {"measured": target.measured.to_dict()}
        return {
            "pos": target.pos,
            "token": target.token,
            "activation": target.activation,
            "pre_activation": target.pre_activation,
            "constant": target.constant,
            self.kind.name: parts,
            "rest": rest,
            "completeness_error": target.completeness_error,
            **measured,
        }

    def _token_dict(self, shares: Float[Tensor, "source"]) -> dict[str, Any]:
        tokens = shares[: -len(self.allocation.aside)].tolist()
        return {
            "by_token": [
                {"pos": pos, "token": self.heading.prompt.tokens[pos], "value": value}
                for pos, value in enumerate(tokens)
            ],
            "other": others_dict(others_of(shares, self.allocation)),
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per target position, layer and part, and for every layer one each for what is no part of it.

        kind: "head", "module" or "neuron"; "bias", "rest" and "constant". The contributions with one ``target_pos``,
        ``layer`` and ``sublayer`` sum to the pre-activation; those of different layers overlap. effect: of the parts,
        where effects were asked for.
        """
        rows: list[dict[str, Any]] = []
        for target in self.targets:
            for row in target.rows:
                head = {"target_pos": target.pos, "layer": row.layer, "sublayer": row.sublayer}
                parts: list[dict[str, Any]] = [
                    {"kind": self.kind.part, "index": i, "name": self.part_name(row, i), "contribution": value}
                    for i, value in enumerate(row.values.tolist())
                ]
                for part, effect in zip(parts, () if row.effects is None else row.effects.tolist(), strict=False):
                    part["effect"] = effect
                rows += addends(head, parts, **row.other, rest=row.rest, constant=target.constant)
        columns = ["target_pos", "layer", "sublayer", "kind", "index", "name", "contribution"]
        return frame(rows, [*columns, *(["effect"] if self.with_effects else [])], integers=["index"])

    @property
    def with_effects(self) -> bool:
        return any(row.effects is not None for target in self.targets for row in target.rows)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """Of every target a heat map, layers upwards, where the parts fit into one, and the largest parts."""
        return looks.component_blocks(self.to_dict(max(TOP_NEURONS, top or 0)), LARGEST if top is None else top)


def name_of_part(kind: Grain, row: LayerRow, index: int) -> str:
    """See :meth:`ComponentAttribution.part_name`."""
    if kind is MODULES:
        return f"{row.sublayer} {row.layer}"
    return f"L{row.layer}{kind.part[0].upper()}{row.name(index)}"


def listed_neurons(
    values: Float[Tensor, "part"], effects: Float[Tensor, "part"] | None, sort: Order, top: int | None
) -> Int[Tensor, "listed"]:
    """Those of a layer's that a document lists: the first in this order, ascending; with top None all."""
    return looks.score(sort, values, effects).argsort(descending=True)[:top].sort().values


def how_many(top: int | None, every: bool) -> int | None:
    """Neurons of a layer that a document lists; None for all."""
    return top if top is not None else None if every else TOP_NEURONS


def attribute_components(
    subject: Subject,
    prompt: Prompt,
    target: Target,
    kind: Grain,
    *,
    pos: Pos | None = None,
    by_token: bool = False,
    effects: bool = False,
    sort: Order = "abs",
    measure: HeadMeasure = HeadMeasure(),  # noqa: B008 (frozen)
    settings: Settings,
) -> ComponentAttribution:
    """Contributions of the heads, modules or neurons of every layer to a target.

    by_token: split each head by the token that it came from, too (rules ``linear``, ``half`` and ``half-qk``). effects:
    also each part's effect, ⟨gradient of the target, part⟩ with nothing frozen; ``sort="effect"`` asks for them, too.
    """
    check_order(sort)
    if by_token:
        check_by_token(settings.rule)
    effects = effects or sort == "effect"
    reading = read(subject, prompt, target, pos, settings)
    # The second of two sweeps is told of as the second half of the work; beside what is carried it is nothing.
    first, second = (settings.part(i, 2) if settings.swept else (settings, settings.quiet())[i] for i in (0, 1))
    question = (reading.seen, reading.readoff, reading.positions, kind, first if effects else settings)
    rows = _swept(*question, by_token) if settings.swept else _carried(*question)
    if effects:
        found = _effects(subject, reading, target, kind, second)
        rows = [
            [replace(row, effects=own[row.layer, row.sublayer]) for row in mine]
            for mine, own in zip(rows, found, strict=True)
        ]
    targets = [
        ComponentTarget(**reading.at(position), rows=tuple(mine))
        for position, mine in zip(reading.positions, rows, strict=True)
    ]
    if measure.measure is not None:
        targets = [_measured(subject, reading, target, answer, measure, settings) for answer in targets]
    shares = [
        max((row.pattern or 0.0 for row in t.rows), default=0.0) / t.pre_activation
        for t in targets
        if t.pre_activation > 0
    ]
    common = reading.said(shares, AT_MOST)
    return checked(subject, target, ComponentAttribution(**common, targets=targets, kind=kind, sort=sort))


def _measured(
    subject: Subject,
    reading: Reading,
    target: Target,
    answer: ComponentTarget,
    measure: HeadMeasure,
    settings: Settings,
) -> ComponentTarget:
    said = {(row.layer, head): value for row in answer.rows for head, value in enumerate(row.values.tolist())}
    readoff, pos = reading.readoff, answer.pos
    found = measure_heads(
        subject, reading.prompt, reading.seen, target.at(reading.seen, pos), readoff.place, pos,
        readoff.now[pos].item(), said, measure, settings,
    )  # fmt: skip
    return replace(answer, measured=found)


def check_by_token(rule: str) -> None:
    """Raises UserError for a rule by which heads cannot be split by token."""
    if rule_named(rule).couples:
        *most, last = (name for name, other in RULES.items() if not other.couples)
        raise UserError(f"heads are split by token with the rules {', '.join(most)} and {last}, not with {rule}")


def check_order(sort: str) -> None:
    """Raises UserError for an order that there is not."""
    if sort not in get_args(Order):
        raise UserError(
            f"parts are sorted by {', '.join(get_args(Order)[:-1])} or {get_args(Order)[-1]}, not by {sort!r}"
        )


def _steps(seen: Trace, kind: Grain, last: int) -> list[int]:
    """The sublayers with parts of a kind among the first ``last``, all counted in turn."""
    return [number for number in range(last) if kind.of(seen.sublayer(number))]


def _swept(
    seen: Trace,
    readoff: Readoff,
    positions: Sequence[int],
    kind: Grain,
    settings: Settings,
    by_token: bool = False,
) -> list[list[LayerRow]]:
    """All layers by sweeping back from the targets; by_token: heads are split by the token that they came from, too."""
    aims = [Aim(readoff.place, readoff.direction.w[pos], pos) for pos in positions]
    rows = _swept_rows(seen, aims, kind, settings)
    if by_token:
        shares = heads_by_token(seen, readoff, positions, settings)
        rows = [[replace(row, by_token=shares[row.layer][i]) for row in mine] for i, mine in enumerate(rows)]
    return rows


def _effects(
    subject: Subject, reading: Reading, target: Target, kind: Grain, settings: Settings
) -> list[dict[tuple[int, str], Float[Tensor, "part"]]]:
    """Of every position the parts' effects by layer and sublayer; the target's own norm is live, too."""
    seen, place, positions = reading.seen, reading.readoff.place, reading.positions
    x = seen.at(place)
    aims = [Aim(place, target.at(seen, pos).slope(subject, x[pos : pos + 1])[0], pos) for pos in positions]
    found = _swept_rows(seen, aims, kind, settings, EFFECT)
    return [{(row.layer, row.sublayer): row.values for row in mine} for mine in found]


def _swept_rows(
    seen: Trace, aims: Sequence[Aim], kind: Grain, settings: Settings, choices: Choices | None = None
) -> list[list[LayerRow]]:
    """Of every aim, all of which are read at one place, a row for every layer."""
    # What is read inside a sublayer has the parts before it, but no more: heads reach hook_z, their output does not.
    place = aims[0].place
    reached = place.is_output or (kind.inside and INSIDE.get(place.hook) == "z")
    wanted = _steps(seen, kind, place.depth + reached)
    rows: list[list[LayerRow]] = [[] for _ in aims]

    def visit(batch: Batch, levels: Iterator[Level]) -> None:
        found: list[list[LayerRow]] = [[] for _ in batch.aims]
        for level in levels:
            if level.number in wanted:
                read = _layer_rows(batch.trace, level, kind, settings.allocation.qk is not None)
                for mine, row in zip(found, read, strict=True):
                    mine.append(row)
        for going in batch.aims:
            rows[going.which] = found[going.lane]

    settings.sweep([seen], aims, visit, choices)
    return [mine[::-1] for mine in rows]


def _layer_rows(seen: Trace, level: Level, kind: Grain, shares_scores: bool) -> list[LayerRow]:
    """What one level of the sweep says of each target. shares_scores: whether there is a component ``pattern``."""
    bias = level.bias_written if kind.inside else level.bias
    values, rest = kind.read(seen, level), (level.past * seen.streams[level.number]).sum((1, 2))
    aside = torch.stack([rest, bias.sum(1), level.pattern.sum(1)], dim=1).double().cpu().tolist()
    name = level.frozen.mixer.unit_name if kind.inside else str
    return [
        LayerRow(level.layer, level.sublayer, row, rest, bias, pattern if shares_scores else None, name=name)
        for row, (rest, bias, pattern) in zip(values.double().cpu(), aside, strict=True)
    ]


def _carried(
    seen: Trace,
    readoff: Readoff,
    positions: Sequence[int],
    kind: Grain,
    settings: Settings,
) -> list[list[LayerRow]]:
    """Each layer's parts carried forward on their own, for rules under which parts compete."""
    wanted = _steps(seen, kind, readoff.place.depth)
    places = torch.tensor(positions)
    w = at(readoff.direction.w, places)
    rows: list[list[LayerRow]] = [[] for _ in positions]
    quiet = settings.quiet()
    for done, number in enumerate(wanted, start=1):
        frozen = seen.sublayer(number)
        index, sublayer = frozen.sublayer.place.layer, frozen.sublayer.name
        name = frozen.mixer.unit_name if kind.inside else str
        start = kind.source(index, sublayer).start(seen)
        found = quiet.carry(seen, start, {readoff.place: places})[readoff.place]
        values = found.project(w).double().cpu()
        for i, mine in enumerate(rows):
            row = values[i]
            mine.append(LayerRow(index, sublayer, row[:-2], row[-1].item(), row[-2].item(), name=name))
        settings.tell(f"carrying the {kind.name} of each layer", done, len(wanted))
    return rows
