"""What a scan is asked for. It is written down with it: one that is resumed must be asked for the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError
from ..labels.files import FEATURE
from ..models.place import Place
from .contexts import Choosing
from .items import Reading

UNIT = 2**15
"""Tokens: two minutes of a small model on one core, a second or two of a large one on a GPU."""
RATE = 32
"""On one in so many tokens it is counted which features fire together."""
MOST = {"tokens": 1024, "before": 512, "after": 512, "partners": 512}
"""Of what there is no end of, a feature keeps so many while parts are merged."""


BOUNDS = {
    "window": (4, 2**20),
    "top": (1, 1000),
    "samples": (0, 100),
    "unit": (1, 2**24),
    "kept_tokens": (1, MOST["tokens"]),
    "kept_beside": (1, MOST["before"]),
}


@dataclass(frozen=True)
class ScanSettings:
    """window: tokens that the model sees at once, the start token among them; None: as the SAEs were trained.

    top, samples, repeats: of each feature's contexts (:mod:`.contexts`). kept_tokens, kept_beside: rows of a feature in
    the tables of the tokens that it fires on, and of those before and after them. full: of which features every
    activation is kept, as ``17/2601``; or ``all``. unit: tokens of a unit of work. limit: of the corpus; None: all of
    it. reading: how files are read.

    Raises UserError for what cannot be.
    """

    window: int | None = None
    top: int = 20
    samples: int = 4
    repeats: bool = False
    kept_tokens: int = MOST["tokens"]
    kept_beside: int = 64
    full: tuple[str, ...] = ()
    unit: int = UNIT
    limit: int | None = None
    reading: Reading = Reading()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{name} should be {least:,} to {most:,}, not {value:,}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"a corpus has 1 token or more, not {self.limit:,}")
        for one in self.full:
            if one != "all" and FEATURE.fullmatch(one) is None:
                raise UserError(f"full names features as LAYER/INDEX, such as 17/2601, or all, not {one!r}")

    @property
    def choosing(self) -> Choosing:
        return Choosing(self.top, self.samples, self.repeats)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "full": list(self.full), "rate": RATE, "kept": dict(MOST)}

    def full_of(self, saes: Mapping[Place, int]) -> dict[Place, tuple[int, ...] | None]:
        """Of which features every activation is kept, by SAE; None: of all. Raises UserError for one that is not there.

        saes: how many features each has.
        """
        if "all" in self.full:
            return dict.fromkeys(saes, None)
        found: dict[Place, set[int]] = {}
        for one in self.full:
            hook, index = named_feature(one, saes)
            found.setdefault(hook, set()).add(index)
        return {hook: tuple(sorted(some)) for hook, some in found.items()}


def named_feature(text: str, saes: Mapping[Place, int]) -> tuple[Place, int]:
    """The SAE and the feature that ``17/2601`` or ``17.mlp_out/2601`` names. saes: how many features each has.

    Raises UserError for a text that is no feature's name, and for a feature that is not there or could be several.
    """
    parts = FEATURE.fullmatch(text.strip())
    if parts is None:
        raise UserError(f"a feature is written LAYER/INDEX, such as 17/2601, not {text!r}")
    where, index = parts[1], int(parts[2])
    number, _, name = where.partition(".")
    found = [hook for hook in saes if int(number) == hook.layer and name in ("", hook.hook)]
    if not found:
        raise UserError(f"there is no SAE at {where}; there are SAEs at {_listed(saes)}")
    if len(found) > 1:
        named = " or ".join(f"{hook}/{index}" for hook in sorted(found))
        raise UserError(f"layer {where} has several SAEs; write the feature as {named}")
    if index >= saes[found[0]]:
        raise UserError(f"there is no feature {index}: the SAE's features are 0 to {saes[found[0]] - 1}")
    return found[0], index


def _listed(saes: Mapping[Place, int]) -> str:
    return ", ".join(str(hook) for hook in sorted(saes)) or "none"
