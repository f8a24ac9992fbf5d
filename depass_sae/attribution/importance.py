"""How much heads, modules or neurons contribute over a data set: mean and spread over its prompts (paper D.3.1).

Each prompt is asked where the target is strongest. Since every layer's parts sum to the pre-activation on each prompt,
so do their means:

    Σ mean + rest + bias (+ pattern) + constant = mean pre-activation          for every layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.prompt import Prompt
from ..passes.forward import Allocation
from ..passes.settings import Settings
from ..subject import Subject
from ..texts import together
from ..view.blocks import Block, Page
from ..view.shown import Shown
from . import looks
from .answer import pattern_note
from .components import (
    AT_MOST,
    LARGEST,
    MODULES,
    NEURONS,
    TOP_NEURONS,
    ComponentAttribution,
    Grain,
    LayerRow,
    attribute_components,
    how_many,
    listed_neurons,
    name_of_part,
)
from .document import Heading, allocation_dict
from .looks import Order
from .positions import Pos
from .readoff import Target

if TYPE_CHECKING:
    import pandas


Of = Literal["heads", "modules", "neurons"]


@dataclass(frozen=True)
class MeanRow:
    """One layer over the prompts, in units of the target's pre-activation. std: of the sample; None for one prompt.

    row: names the parts. rest, other: the means of the rest of it (:class:`.LayerRow`). effect: the parts' mean effect,
    where effects were asked for.
    """

    row: LayerRow
    mean: Float[Tensor, "part"]
    std: Float[Tensor, "part"] | None
    rest: float
    other: dict[str, float]
    effect: Float[Tensor, "part"] | None = None

    @property
    def bias(self) -> float:
        return self.other["bias"]


@dataclass(frozen=True)
class Importance(Shown):
    """Means over the prompts on which the target is there: where a feature does not fire it has no parts.

    answers: what each of these prompts gave, without its rows' tensors: position, token, pre-activation. silent: how
    many prompts were left out. sort: which parts are named first (:data:`.Order`). every: whether a document lists all
    neurons of a layer.
    """

    heading: Heading
    name: str
    described: dict[str, Any]
    allocation: Allocation
    kind: Grain
    prompts: tuple[dict[str, Any], ...]
    silent: int
    rows: tuple[MeanRow, ...]
    constant: float
    pre_activation: float
    completeness_error: float
    sort: Order = "abs"
    every: bool = False

    @property
    def title(self) -> str:
        return f"Which {self.kind.name} matter for {self.name}?"

    @property
    def note(self) -> str | None:
        n = len(self.prompts) + self.silent
        silent = f"it does not fire on {self.silent} of {n} prompts, which are left out" if self.silent else None
        largest = max((row.other.get("pattern", 0.0) for row in self.rows), default=0.0)
        shares = [largest / self.pre_activation] if self.pre_activation > 0 else []
        return together(silent, self.allocation.note, pattern_note(self.allocation, shares, AT_MOST))

    def to_dict(self, top: int | None = None) -> dict[str, Any]:
        """The document that ``--prompts`` prints with ``--json``. Of neurons the ``top`` (50; with ``every`` all) of
        each layer are listed.
        """
        top = how_many(top, self.every)
        heading = self.heading.to_dict()
        for key in ("prompt", "tokens", "token_ids", "special"):
            del heading[key]  # each prompt has its own
        parts, rest = [], []
        for row in self.rows:
            order = listed_neurons(row.mean, row.effect, self.sort, top) if self.kind is NEURONS else None
            for index in range(len(row.mean)) if order is None else order.tolist():
                name: Any = row.row.sublayer if self.kind is MODULES else row.row.name(index)
                std = None if row.std is None else row.std[index].item()
                number = {"mean": row.mean[index].item(), "std": std}
                number |= {} if row.effect is None else {"effect": row.effect[index].item()}
                parts.append({"layer": row.row.layer, self.kind.part: index if name == str(index) else name, **number})
            rest.append({"layer": row.row.layer, "sublayer": row.row.sublayer, "value": row.rest, **row.other})
        return {
            **heading,
            **allocation_dict(self.allocation),
            **self.described,
            "name": self.name,
            "note": self.note,
            "prompts": list(self.prompts),
            "silent": self.silent,
            "sort": self.sort,
            self.kind.name: parts,
            "rest": rest,
            "constant": self.constant,
            "pre_activation": self.pre_activation,
            "completeness_error": self.completeness_error,
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per layer and part: mean, std and n; and the mean effect, where effects were asked for."""
        import pandas

        rows = [
            (
                *(row.row.layer, row.row.sublayer, name_of_part(self.kind, row.row, i), mean),
                *(None if row.std is None else row.std[i].item(), len(self.prompts)),
                *([] if row.effect is None else [row.effect[i].item()]),
            )
            for row in self.rows
            for i, mean in enumerate(row.mean.tolist())
        ]
        effects = ["effect"] if any(row.effect is not None for row in self.rows) else []
        return pandas.DataFrame(rows, columns=["layer", "sublayer", "name", "mean", "std", "n", *effects])

    def page(self) -> Page:
        return self.heading.page(self.title, self.blocks(), self.allocation)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """The means as a heat map, and the largest with their spread."""
        return looks.importance_blocks(self.to_dict(max(TOP_NEURONS, top or 0)), LARGEST if top is None else top)


def find_importance(
    subject: Subject,
    prompts: Sequence[Prompt],
    target: Target,
    kind: Grain,
    *,
    pos: Pos | None = None,
    effects: bool = False,
    sort: Order = "abs",
    settings: Settings,
) -> Importance:
    """Contributions over prompts, each read where the target is strongest (a logit at its last position).

    effects, sort: as of :func:`.attribute_components`; a part's effect is the mean of its effects.

    Raises UserError where there is no prompt, or the feature fires on none.
    """
    if not prompts:
        raise UserError("name prompts to take the mean over")
    if pos not in (None, "max"):
        raise UserError("over several prompts a target is read where it is strongest; leave the position out")
    told: list[dict[str, Any]] = []
    first: ComponentAttribution | None = None
    sums: list[list[Tensor]] = []
    worst = constant = whole = 0.0
    quiet = settings.quiet()
    for done, prompt in enumerate(prompts, start=1):
        answer = attribute_components(
            subject, prompt, target, kind, pos=pos, effects=effects, sort=sort, settings=quiet
        )
        settings.tell("going through the prompts", done, len(prompts))
        found = answer.target
        if found.activation == 0:
            continue
        told.append(_told(answer))
        worst, constant, whole = (
            max(worst, found.completeness_error), constant + found.constant, whole + found.pre_activation
        )  # fmt: skip
        numbers = [_numbers(row) for row in found.rows]
        if first is None:
            first, sums = answer, [[torch.zeros_like(row), torch.zeros_like(row)] for row in numbers]
        before = len(told) - 1
        for (total, squares), row in zip(sums, numbers, strict=True):
            if before:  # Welford's: what a prompt adds to the spread about the mean so far
                squares += (row - total / before) ** 2 * before / len(told)
            total += row
    if first is None:
        raise UserError(f"{target.name} fires on none of the {len(prompts)} prompts")
    n = len(told)
    rows = []
    for layer, (total, squares) in zip(first.target.rows, sums, strict=True):
        aside = len(_aside(layer))
        (rest, *other), (mean, *effect) = (
            (total[:aside] / n).tolist(), (total[aside:] / n).split(len(layer.values))
        )  # fmt: skip
        std = (squares[aside : aside + len(mean)] / (n - 1)).sqrt() if n > 1 else None
        rows.append(MeanRow(layer, mean, std, rest, dict(zip(layer.other, other, strict=True)), *effect))
    return Importance(
        heading=first.heading,
        name=target.name,
        described=target.describe(subject),
        allocation=settings.allocation,
        kind=kind,
        prompts=tuple(told),
        silent=len(prompts) - n,
        rows=tuple(rows),
        constant=constant / n,
        pre_activation=whole / n,
        completeness_error=worst,
        sort=sort,
    )


def _numbers(row: LayerRow) -> Float[Tensor, "number"]:
    """All of which the mean is taken: the rest of a layer, its parts, and their effects."""
    parts = [row.values] if row.effects is None else [row.values, row.effects]
    return torch.cat([row.values.new_tensor(_aside(row)), *parts])


def _aside(row: LayerRow) -> list[float]:
    """What of a row is no part."""
    return [row.rest, *row.other.values()]


def _told(answer: ComponentAttribution) -> dict[str, Any]:
    prompt, target = answer.heading.prompt, answer.target
    return {
        "prompt": prompt.text,
        "token_ids": list(prompt.token_ids),
        "pos": target.pos,
        "token": target.token,
        "activation": target.activation,
        "pre_activation": target.pre_activation,
    }
