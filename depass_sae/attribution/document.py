"""What every answer carries: the model, the SAE, the prompt and the settings that it was computed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .._version import SCHEMA_VERSION, __version__
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.forward import Allocation
from ..passes.rows import BIAS, PATTERN, REST
from ..saes import Fit, describe
from ..subject import Subject
from ..view.blocks import Block, Page


@dataclass(frozen=True)
class Heading:
    """The keys that open every document."""

    model: str
    sae: dict[str, Any] | None
    prompt: Prompt
    dtype: str

    @classmethod
    def of(cls, subject: Subject, prompt: Prompt, hook: Place | None = None) -> Heading:
        sae = None if hook is None else describe(subject.saes[hook])
        return cls(subject.loaded.name, sae, prompt, subject.dtype_name)

    def page(self, title: str, blocks: tuple[Block, ...], allocation: Allocation | None = None) -> Page:
        """The page of an answer that has these blocks."""
        sae = self.sae and f"{self.sae['architecture']} SAE at {self.sae['hook']}"
        rule = allocation and f"rule {allocation.rule}"
        return Page(
            title,
            blocks,
            kicker=self.prompt.text or "ids alone",
            byline=tuple(said for said in (self.model, sae, rule) if said),
            colophon=(f"depass-sae {__version__}", self.dtype, f"{len(self.prompt)} tokens"),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "sae": self.sae,
            "prompt": self.prompt.text,
            "tokens": list(self.prompt.tokens),
            "token_ids": list(self.prompt.token_ids),
            "special": [pos for pos, special in enumerate(self.prompt.special) if special],
            "dtype": self.dtype,
        }


def allocation_dict(allocation: Allocation) -> dict[str, Any]:
    """The rule and its settings; those of queries and keys only where they have a share."""
    qk = allocation.qk
    return {
        "rule": allocation.rule,
        "temperature": allocation.temperature,
        "first_token": allocation.first_token,
        **({} if qk is None else {"qk_share": qk.share, "qk_slope": qk.slope}),
    }


def others_of(row: Float[Tensor, "comp"], allocation: Allocation) -> dict[str, float]:
    """What of a row of components is no source: ``bias`` and ``rest``, and ``pattern`` under a rule that has it."""
    places = {"bias": BIAS, "rest": REST, "pattern": PATTERN}
    return {name: row[at].item() for name, at in places.items() if name in allocation.aside}


def others_dict(other: Mapping[str, float]) -> list[dict[str, Any]]:
    """The same in a document."""
    return [{"name": name, "value": value} for name, value in other.items()]


def fit_dict(fit: Fit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {"explained_variance": fit.explained_variance, "l0": fit.l0, "warning": fit.warning}
