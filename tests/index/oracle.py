"""The slow way: one document at a time through transformers and sae-lens, every firing in a list, counted by hand."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

import depass_sae as ds

from ..attribution.tiny import BOS


@dataclass(frozen=True)
class Fired:
    feature: int
    document: int
    window: int
    pos: int
    value: float


@dataclass
class Oracle:
    """Of the SAE on what one layer hands on. ids: of every window."""

    firings: list[Fired] = field(default_factory=list)
    ids: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    tokens: int = 0

    @classmethod
    def of(cls, lm: ds.LM, texts: Iterable[str], layer: int, window: int) -> Oracle:
        found = cls()
        for document, text in enumerate(texts):
            ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[misc]
            pieces = [ids[i : i + window - 1] for i in range(0, len(ids), window - 1)]
            for number, piece in enumerate(pieces):
                found._window(lm, document, number, [BOS, *piece], layer)
        return found

    def _window(self, lm: ds.LM, document: int, number: int, ids: list[int], layer: int) -> None:
        seen: list[torch.Tensor] = []
        hook = lm.model.model.layers[layer].register_forward_hook(  # type: ignore[attr-defined]
            lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad():
            lm.model(torch.tensor([ids]))
        hook.remove()
        acts: Any = lm.saes[layer].encode(seen[0].reshape(len(ids), -1))
        self.ids[document, number] = ids
        self.tokens += len(ids) - 1
        for pos in range(1, len(ids)):
            for feature in acts[pos].nonzero()[:, 0].tolist():
                self.firings.append(Fired(feature, document, number, pos, float(acts[pos, feature].float())))

    def of_feature(self, feature: int) -> list[Fired]:
        return [one for one in self.firings if one.feature == feature]

    def token(self, one: Fired, step: int = 0) -> int | None:
        ids, pos = self.ids[one.document, one.window], one.pos + step
        return ids[pos] if 0 <= pos < len(ids) else None

    def counted(self, feature: int, step: int = 0) -> dict[int, tuple[int, float]]:
        """How often, and the mean of the activation, by the token that it fires on, or by one beside it."""
        values = defaultdict(list)
        for one in self.of_feature(feature):
            if (token := self.token(one, step)) is not None:
                values[token].append(abs(one.value))
        return {token: (len(found), sum(found) / len(found)) for token, found in values.items()}

    def histogram(self, feature: int) -> dict[float, int]:
        """By where each bin begins."""
        bins = Counter(math.floor(2 * math.log2(abs(one.value))) for one in self.of_feature(feature))
        return {2 ** (b / 2): n for b, n in bins.items()}

    def strongest(self, feature: int, k: int) -> list[Fired]:
        """Of every document its strongest firing; the strongest of these."""
        best: dict[int, Fired] = {}
        for one in self.of_feature(feature):
            if one.document not in best or abs(one.value) > abs(best[one.document].value):
                best[one.document] = one
        return sorted(best.values(), key=lambda one: (-abs(one.value), one.document))[:k]

    def together(self, feature: int, drawn: set[tuple[int, int, int]]) -> Counter[int]:
        """On how many of the drawn places each feature fires with it."""
        at = defaultdict(set)
        for one in self.firings:
            at[one.document, one.window, one.pos].add(one.feature)
        return Counter(i for place in drawn if feature in at[place] for i in at[place])
