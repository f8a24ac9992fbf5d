"""Why a head looked there: one attention score, split over what stands at the query and at the key.

Before its softmax a score is bilinear in the two normed streams,

    score(q, k) = ⟨R_q X̂[q] W_Q, R_k X̂[k] W_K⟩ · scale

so with the components of both positions (norm scales, QK-norms included, frozen) it splits exactly into a table

    table[m, m′] = ⟨R_q X̂[q, m] W_Q, R_k X̂[k, m′] W_K⟩ · scale

whose sum is the score; the biases of W_Q and W_K belong to the ``bias`` row and column. Softmax ignores what all keys
share, so "why *there*" is answered by the table relative to the head's average key, table(q, k) − Σ_k′ A[q, k′]
table(q, k′), or relative to one other key. Where nearly all of A is on the key, its average key is that very key and
nothing is left; the plain mean over the keys that the query sees, table(q, k) − mean_k′ table(q, k′), does not depend
on A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.forward import Allocation
from ..passes.mixers import mixer_of
from ..passes.record import Trace
from ..passes.rules import rule_named
from ..passes.settings import Settings
from ..passes.sources import tokens
from ..saes import feature_parts, reconstructs
from ..subject import Subject
from ..texts import together
from ..view.blocks import Block, Page
from ..view.shown import Shown
from ..view.words import place
from . import looks
from .answer import frame
from .document import Heading, allocation_dict

if TYPE_CHECKING:
    import pandas

QKBy = Literal["tokens", "features"]
Against = None | Literal["mean", "uniform"] | int

LARGEST = 15
"""So many pairs are named where nobody says how many."""
CERTAIN = 0.99
"""With so much of a head's attention on one key, the average key is that key for all that can be read."""


@dataclass(frozen=True)
class AttentionAttribution(Shown):
    """One head's score for a query and a key, in the units of attention scores.

    values: [query component, key component]; their sum is ``score`` (or its difference to what it is held ``against``).
    pattern: how much of the head's attention went there. note: what has to be said of the rule, and where holding the
    key against others says nothing.
    """

    heading: Heading
    layer: int
    head: int
    query: int
    key: int
    by: QKBy
    against: Against
    allocation: Allocation
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float[Tensor, "query_component key_component"]
    score: float
    pattern: float
    note: str | None

    @property
    def completeness_error(self) -> float:
        """|Σ values − score| over the largest of them."""
        size = max([abs(self.score), *self.values.abs().flatten().tolist()])
        return abs(self.values.sum().item() - self.score) / size if size else 0.0

    def largest(self, top: int | None = None) -> list[tuple[str, str, float]]:
        """(query component, key component, value), largest first."""
        order = self.values.abs().flatten().argsort(descending=True)[:top].tolist()
        width = len(self.columns)
        return [
            (self.rows[i // width], self.columns[i % width], self.values.flatten()[i].item())
            for i in order
            if self.values.flatten()[i] != 0
        ]

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae attention --json`` prints: Σ of all values = score."""
        return {
            **self.heading.to_dict(),
            **allocation_dict(self.allocation),
            "layer": self.layer,
            "head": self.head,
            "query": {"pos": self.query, "token": self.heading.prompt.tokens[self.query]},
            "key": {"pos": self.key, "token": self.heading.prompt.tokens[self.key]},
            "by": self.by,
            "against": self.against,
            "score": self.score,
            "pattern": self.pattern,
            "note": self.note,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "values": self.values.tolist(),
            "completeness_error": self.completeness_error,
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per query component and key component, row by row of the table; the contributions sum to the score.

        query_kind, key_kind: "token" or "feature"; "error", "pattern", "bias", "rest" and "constant".
        """
        rows = (
            (at_query, self._kind(at_query), at_key, self._kind(at_key), value)
            for at_query, values in zip(self.rows, self.values.tolist(), strict=True)
            for at_key, value in zip(self.columns, values, strict=True)
        )
        return frame(rows, ["at_query", "query_kind", "at_key", "key_kind", "contribution"])

    def _kind(self, name: str) -> str:
        if name in ("pattern", "bias", "rest", "constant"):
            return name
        if self.by == "tokens":
            return "token"
        return "error" if name.startswith("error@") else "feature"

    @property
    def title(self) -> str:
        return f"Why does {looks.attention_title(self.to_dict())}?"

    def page(self) -> Page:
        return self.heading.page(self.title, self.blocks(), self.allocation if self.by == "tokens" else None)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """The largest pairs, and all of them as a heat map, the query's components down and the key's across."""
        return looks.attention_blocks(self.to_dict(), LARGEST if top is None else top)


def attribute_attention(
    subject: Subject,
    prompt: Prompt,
    layer: int,
    head: int,
    query: int,
    key: int,
    *,
    by: QKBy = "tokens",
    against: Against = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> AttentionAttribution:
    """Split a head's score for one query and key over tokens, or over the features of an SAE on the stream it reads.

    by: "tokens" carries the prompt's tokens to the layer by the allocation's rule; "features" splits the stream by the
    SAE at resid_pre of the layer, or at resid_post of the one before.
    against: "mean" takes the head's average key off, weighed by its attention; "uniform" the plain mean of the keys
    that the query sees; a position that key.

    Raises UserError for a layer, head or position that does not exist, or a key that the head cannot see.
    """
    check_split(by, against)
    _check(subject, prompt, layer, head, query, key, against)
    seen = subject.trace(prompt, layer).first(query + 1)
    frozen = seen.sublayer(Place(layer, "attn_out").depth)
    looks = frozen.mixer.look()
    assert frozen.record.pattern is not None
    pattern = frozen.record.pattern[head, query].to(seen.resid_post.dtype)
    weights = torch.zeros_like(pattern)  # of the keys: the table is Σ_k′ weights[k′] table(query, k′)
    weights[key] = 1
    first = max(0, query + 1 - (looks.window or query + 1))
    if against == "mean":
        weights -= pattern / pattern.sum()  # what a sink took belongs to no key
    elif against == "uniform":
        weights[first:] -= 1 / (query + 1 - first)
    elif against is not None:
        weights[against] -= 1
    if by == "tokens":
        parts, labels = _token_parts(seen, prompt, layer, settings)
    else:
        parts, labels = _feature_parts(subject, seen, prompt, layer)
    q, k = looks.split_queries_and_keys(frozen, head, parts)
    scale = looks.part.scores.scale
    values = scale * q[query] @ torch.einsum("k,kmd->md", weights, k).T
    whole_q, whole_k = looks.queries_and_keys(frozen.norm(frozen.resid))
    every = scale * torch.einsum("khd,hd->hk", whole_k, whole_q[query])
    scores = every[head]
    score = scores @ weights
    # Not of the table, whose sum is a score by construction: the pattern is what the model itself made of its scores.
    reached = torch.arange(len(scores), device=scores.device)[None] >= first
    missed = (looks.shares(every[:, None], reached)[head, 0] - pattern).abs().max().item()
    subject.warn_incomplete(f"the scores of head {head} in layer {layer}", missed)
    here = [i for i in range(len(labels)) if values[i].any()]
    there = [i for i in range(len(labels)) if values[:, i].any()]
    return AttentionAttribution(
        Heading.of(subject, prompt),
        layer,
        head,
        query,
        key,
        by,
        against,
        settings.allocation,
        tuple(labels[i] for i in here),
        tuple(labels[i] for i in there),
        values[here][:, there].double().cpu(),
        score.item(),
        pattern[key].item(),
        together(
            _note(query, against, pattern[key].item(), query + 1 - first),
            _cap_note(looks.cap_slope(scores[key].item())),
            settings.allocation.note if by == "tokens" else None,
        ),
    )


def _note(query: int, against: Against, pattern: float, seen: int) -> str | None:
    """What has to be said where the key is held against itself."""
    if against in ("mean", "uniform") and seen == 1:
        return f"query {query} sees this key alone, so that there is none to hold it against"
    if against == "mean" and pattern > CERTAIN:
        return (
            f"{pattern:.1%} of the head's attention is on this key, so that the average key is this very key; "
            'against="uniform" (--against uniform) holds it against the plain mean of the keys that the query sees'
        )
    return None


def _cap_note(slope: float | None) -> str | None:
    if slope is None:
        return None
    return f"scores are soft-capped: they are split before the cap, whose slope at this one is {slope:.2f}"


def check_split(by: str, against: str | int | None) -> None:
    """Raises UserError for what a score is not split by, or not held against."""
    if by not in ("tokens", "features"):
        raise UserError(f"an attention score is split by tokens or by features, not by {by!r}")
    if against is not None and against not in ("mean", "uniform") and not isinstance(against, int):
        raise UserError(f"against is mean, uniform or a position, not {against!r}")


def _check(subject: Subject, prompt: Prompt, layer: int, head: int, query: int, key: int, against: Against) -> None:
    n_layers, n = subject.adapter.n_layers, len(prompt)
    if not 0 <= layer < n_layers:
        raise UserError(f"there is no layer {layer}; {subject.loaded.name} has layers 0 to {n_layers - 1}")
    looks = mixer_of(subject.adapter.sublayer(Place(layer, "attn_out").depth).mixer).look()
    if not 0 <= head < looks.n_units:
        raise UserError(f"there is no head {head}; layer {layer} has heads 0 to {looks.n_units - 1}")
    for name, position in (("query", query), ("key", key), ("against", against)):
        if isinstance(position, int) and not 0 <= position < n:
            raise UserError(f"{name} {position} is outside the prompt; its {n} tokens have positions 0 to {n - 1}")
    for name, position in (("key", key), ("against", against)):
        if isinstance(position, int) and not 0 <= query - position < (looks.window or n + 1):
            raise UserError(f"{name} {position} cannot be seen from query {query} in layer {layer}")


def _token_parts(
    seen: Trace, prompt: Prompt, layer: int, settings: Settings
) -> tuple[Float[Tensor, "pos comp d_model"], list[str]]:
    """The prompt's tokens as components of the stream before the layer."""
    n = len(seen.token_ids)
    labels = [place(token, pos) for pos, token in enumerate(prompt.tokens[:n])]
    start = tokens(labels).start(seen).under(rule_named(settings.rule))
    point = Place(layer, "resid_pre")
    positions = torch.arange(n)
    rows = settings.carry(seen, start, {point: positions})[point]
    return rows.dense(), list(start.labels)


def _feature_parts(
    subject: Subject, seen: Trace, prompt: Prompt, layer: int
) -> tuple[Float[Tensor, "pos comp d_model"], list[str]]:
    """Each position's own active features, its SAE error, the SAE's constant, and a ``bias`` for what follows."""
    candidates = [Place(layer, "resid_pre"), *([Place(layer - 1, "resid_post")] if layer else [])]
    hook = next((candidate for candidate in candidates if candidate in subject.saes), None)
    if hook is None:
        there = ", ".join(map(str, sorted(subject.saes))) or "none"
        needed = " or ".join(map(str, candidates))
        raise UserError(
            f"scores of layer {layer} are split by features where there is an SAE at {needed}; there are {there}"
        )
    if not reconstructs(subject.saes[hook]):
        raise UserError(f"the SAE at {hook} is a transcoder, which does not split the stream that it reads")
    x = seen.resid_pre[layer]
    found = feature_parts(subject.saes[hook], x)
    assert found.error is not None
    n, m = len(x), len(found.index)
    parts = x.new_zeros(n, m + n + 3, x.shape[1])
    parts[found.pos, torch.arange(m, device=x.device)] = found.parts.to(x)
    parts[torch.arange(n), m + torch.arange(n)] = found.error.to(x)
    parts[:, -3] = found.constant.to(x)
    features = [
        f"{hook.layer}/{index}@{place(prompt.tokens[pos], pos)}"
        for pos, index in zip(found.pos.tolist(), found.index.tolist(), strict=True)
    ]
    errors = [f"error@{place(prompt.tokens[pos], pos)}" for pos in range(n)]
    return parts, [*features, *errors, "constant", "bias", "rest"]
