"""A part of a model on a prompt as it is written: ``11/223@6``, ``token:6``, ``head:5.1@7``, ``neuron:5/301@7``.

Neurons of experts are called as attributions call them: ``neuron:5/12.817``, ``neuron:5/shared.817``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..arguments import NUMBER
from ..errors import UserError
from ..models.place import Place
from ..passes.mixers import mixer_of
from ..passes.mixers.mixer import Whose
from ..subject import Subject
from .targets import WrittenFeature

Kind = Literal["feature", "token", "head", "neuron"]
_WRITTEN = re.compile(
    rf"(?P<token>token):(?P<at>{NUMBER})"
    rf"|(?:head:(?P<head>{NUMBER}\.{NUMBER})|neuron:(?P<neuron>{NUMBER}/(?:(?P<expert>{NUMBER}|shared)\.)?{NUMBER}))(?:@(?P<pos>{NUMBER}))?"
)
FORMS = "a feature 11/223@6, token:6, head:5.1@7 or neuron:5/301@7"


@dataclass(frozen=True)
class NamedPart:
    """layer, index: of a head, a neuron or a feature. hook: of a feature's dictionary, where one is named. pos: None
    stands for every position. expert: whose neuron, where there are experts.
    """

    kind: Kind
    layer: int
    hook: str | None
    index: int
    pos: int | None
    expert: Whose | None = None

    @classmethod
    def of(cls, text: str) -> NamedPart:
        """Raises UserError for what is none of the forms."""
        found = _WRITTEN.fullmatch(text.strip())
        if found is None:
            try:
                feature = WrittenFeature.of(text)
            except UserError:
                raise UserError(f"write {FORMS}, not {text!r}") from None
            return cls("feature", feature.layer, feature.hook, feature.index, feature.pos)
        if found["token"]:
            return cls("token", -1, None, -1, int(found["at"]))
        kind: Kind = "head" if found["head"] else "neuron"
        layer, *_, index = re.split(r"[./]", found[kind])
        pos, whose = None if found["pos"] is None else int(found["pos"]), found["expert"]
        expert: Whose | None = "shared" if whose == "shared" else None if whose is None else int(whose)
        return cls(kind, int(layer), None, int(index), pos, expert)

    @property
    def name(self) -> str:
        """As it is written."""
        at = "" if self.pos is None else f"@{self.pos}"
        match self.kind:
            case "token":
                return f"token:{self.pos}"
            case "feature":
                return f"{self.layer}{'' if self.hook is None else f'.{self.hook}'}/{self.index}{at}"
            case "head":
                return f"head:{self.layer}.{self.index}{at}"
        return f"neuron:{self.layer}/{'' if self.expert is None else f'{self.expert}.'}{self.index}{at}"

    def check(self, subject: Subject, n: int) -> None:
        """Raises UserError for what the model, or a prompt of n tokens, does not have."""
        if self.pos is not None and self.pos >= n:
            raise UserError(f"position {self.pos} is outside the prompt; its {n} tokens have positions 0 to {n - 1}")
        if self.kind not in ("head", "neuron"):
            return
        n_layers = subject.adapter.n_layers
        if self.layer >= n_layers:
            raise UserError(f"there is no layer {self.layer}; {subject.loaded.name} has layers 0 to {n_layers - 1}")
        self.unit(subject)

    def unit(self, subject: Subject) -> int:
        """Of a head or a neuron: which of all of its sublayer. Raises UserError where there is none."""
        mixer = mixer_of(subject.adapter.sublayer(self.place.depth).mixer)
        try:
            return mixer.number(self.index, self.expert)
        except UserError as error:
            raise UserError(f"layer {self.layer} {error}") from None

    @property
    def place(self) -> Place:
        """What the sublayer of a head or a neuron adds."""
        return Place(self.layer, "attn_out" if self.kind == "head" else "mlp_out")

    def to_dict(self) -> dict[str, Any]:
        own: dict[str, Any] = {} if self.kind == "token" else {"layer": self.layer, "index": self.index}
        own |= {} if self.expert is None else {"expert": self.expert}
        hook = {} if self.hook is None else {"hook": self.hook}
        return {"kind": self.kind, **own, **hook} | ({} if self.pos is None else {"pos": self.pos})
