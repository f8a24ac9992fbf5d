"""The document of a case study, ``case.json``, key by key.

Types alone, as of answers (attribution/schema.py): the published JSON Schema is made of them, and a study imports none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ...attribution.schema import (
    Count,
    DescribedFeature,
    DescribedSAE,
    DownstreamDocument,
    FitKeys,
    HeadDocument,
    Lost,
    PromptKeys,
    RankAgreement,
    RuleKeys,
    Share,
    TokenDocument,
    Value,
)
from ...graph.document import Interval, Scores, Verification

# --------------------------------------------------------------------------------------------------------------- facts


class Source(Value):
    """A source token. share: of the pre-activation, where that is positive. measured: what the target loses when it is
    replaced, on average; spread: the standard deviation of that."""

    share: float | None
    measured: float | None
    spread: float | None
    special: bool


class HeadFound(TypedDict):
    """source: the token that most of the head came from; null where heads are not split by token."""

    name: str
    value: float
    source: Source | None


class UpstreamFound(TypedDict):
    """A feature that flows into the target, by its edge."""

    name: str
    label: str
    value: float


class TogetherShares(TypedDict):
    without_graph: float
    without_random: Interval


class TogetherFound(TypedDict):
    """What is left of the target without all of the graph's features, and without as many random ones."""

    features: Count
    shares: TogetherShares


class FactsFound(TypedDict):
    """The numbers that the words of a finding are made of.

    top: of the sources that can be changed, the one with the largest contribution. opposing: the most negative one,
    where it is larger in size. own: the target's own token. special: special tokens, which stand apart. top_replaced:
    of those that were replaced, the one with the largest contribution; most_lost: the one without which most is lost;
    reversed: the one whose replacement does the opposite of its contribution. error_share, left_out_share: of the
    graph's influence, what ends in SAE errors and in what the graph leaves out.
    """

    feature: str
    label: str
    pos: Count
    token: str
    activation: float | None
    pre_activation: float
    top: Source | None
    opposing: Source | None
    own: Source | None
    special: list[Source]
    heads: list[HeadFound]
    upstream: list[UpstreamFound]
    error_share: float | None
    left_out_share: float | None
    replacements: Count
    replaced: Count
    top_replaced: Source | None
    most_lost: Source | None
    reversed: Source | None
    agreement: RankAgreement | None
    rank_correlation: float | None
    verdict: Literal["agree", "disagree", "nothing lost", "not measured"]
    together: TogetherFound | None


# ------------------------------------------------------------------------------------------------------------ findings


class TableRow(Value):
    share: float | None
    measured: Lost | None


class Remainder(TypedDict):
    """tokens: how many a row sums up."""

    name: str
    tokens: Count
    value: float


class SourceTable(TypedDict):
    """The largest sources, then what is left: all values sum to the pre-activation."""

    token: str
    pos: Count
    activation: float | None
    pre_activation: float
    completeness_error: float
    sources: list[TableRow]
    remainder: list[Remainder]
    rank_correlation: float | None


class Layer(TypedDict):
    """Of one layer its heads, their sum, and what the stream before it brought: with the constant, they are the
    pre-activation."""

    layer: Count
    heads: list[float]
    sum: float
    rest: float
    bias: float
    pattern: NotRequired[float]


class LedgerColumn(TypedDict):
    pos: Count
    token: str


class LedgerRow(TypedDict):
    """values + others + bias + rest (+ pattern) sum to value. others: the tokens that are no columns."""

    head: str
    value: float
    values: list[float]
    others: float
    bias: float
    rest: float
    pattern: NotRequired[float]


class Ledger(TypedDict):
    """The largest heads by source token."""

    columns: list[LedgerColumn]
    other_tokens: Count
    rows: list[LedgerRow]


class GraphFile(TypedDict):
    """file: beside this document. scores, verification: as in the graph."""

    file: str
    nodes: Count
    edges: Count
    scores: Scores
    verification: Verification | None


class FindingDocument(TypedDict):
    """What was found of a feature at one position. no_graph, no_downstream: why there is none."""

    name: str
    pos: Count
    token: str
    answer: str
    points: list[str]
    sentence: str
    facts: FactsFound
    table: SourceTable
    layers: list[Layer]
    ledger: Ledger | None
    graph: GraphFile | None
    no_graph: str | None
    downstream: DownstreamDocument | None
    no_downstream: str | None
    tokens: TokenDocument
    heads: HeadDocument


# ---------------------------------------------------------------------------------------------------------------- card


class CardPromptDocument(TypedDict):
    """The feature at every position; null where it is left out. sinks: positions that are left out as such."""

    prompt: str
    tokens: list[str]
    token_ids: list[Count]
    activations: list[float | None]
    pre_activations: list[float | None]
    fit: FitKeys
    sinks: NotRequired[list[Count]]


class FiringDocument(TypedDict):
    """prompt: its number, from 0."""

    prompt: Count
    pos: Count
    token: str
    activation: float
    pre_activation: float


class DriveDocument(FiringDocument):
    """own + earlier + first + other + constant = pre_activation. tokens: those that earlier sums up."""

    own: float
    earlier: float
    first: float
    other: float
    constant: float
    completeness_error: float
    tokens: list[Value]


class DriveSums(TypedDict):
    own: float
    earlier: float
    first: float
    other: float
    constant: float
    pre_activation: float


class SourceText(TypedDict):
    """A token by its text, as the firing one and as an earlier one; count: at how many places it stood as a source."""

    token: str
    own: float
    earlier: float
    total: float
    count: Count


class CardSources(TypedDict):
    """Of the strongest firings: their sums, each of them, and by what the tokens read."""

    sums: DriveSums
    firings: list[DriveDocument]
    tokens: list[SourceText]


class VoteDocument(TypedDict):
    token: str
    id: Count
    logit: float


class CardLogits(TypedDict):
    """What the decoder direction raises and lowers most. direction: how that is worked out, in words."""

    direction: str
    top: list[VoteDocument]
    bottom: list[VoteDocument]


class NamedFeature(TypedDict):
    """link: its page on Neuronpedia."""

    feature: str
    index: Count
    label: str | None
    link: str | None


class NearFeature(NamedFeature):
    """cosine: of the decoders' rows."""

    cosine: float


class FlowingFeature(NamedFeature):
    """contribution: summed over so many places. effect: of the previous layer's features alone."""

    contribution: float
    count: Count
    effect: NotRequired[float]


class FlowDocument(TypedDict):
    """The features of a neighbouring SAE. total: of all, listed or not. errors, other: of the previous one alone."""

    layer: Count
    hook: str
    total: float
    errors: float | None
    other: float | None
    features: list[FlowingFeature]


class CardFlow(TypedDict):
    """firings: over how many. previous, next: null where no SAE is loaded there, or where the feature is silent."""

    rule: str
    firings: Count
    previous: FlowDocument | None
    next: FlowDocument | None


class CardDocument(RuleKeys):
    """The feature's card over the prompt. density: the share of the positions at which it fires."""

    schema_version: Literal[1]
    model: str
    sae: DescribedSAE
    dtype: str
    feature: DescribedFeature
    name: str
    link: str | None
    label: str | None
    note: str | None
    warning: str | None
    density: Share
    n_positions: Count
    n_firings: Count
    prompts: list[CardPromptDocument]
    firings: list[FiringDocument]
    sources: CardSources
    logits: CardLogits | None
    nearest: list[NearFeature]
    flow: CardFlow


# --------------------------------------------------------------------------------------------------------------- study


class TokenActivation(TypedDict):
    """null at special tokens and attention sinks that are left out."""

    pos: Count
    token: str
    activation: float | None
    pre_activation: float | None


class FeatureDocument(TypedDict):
    """label: empty where there is none. note: what has to be said of the choice of a position."""

    name: str
    label: str
    feature: DescribedFeature
    sae: DescribedSAE
    fit: FitKeys | None
    note: str | None
    neuronpedia: str | None
    activations: list[TokenActivation]
    findings: list[FindingDocument]
    card: CardDocument


class SettingsDocument(TypedDict):
    """ablate: random tokens that each source is replaced by. verify: how many nodes of a graph are taken out. top: rows
    that a table names."""

    ablate: Count
    seed: int
    max_nodes: Count
    verify: Count
    top: Count
    replace_from: str | None


class CaseDocument(PromptKeys, RuleKeys):
    """A case study. labels: by ``layer/index``. command: makes it again; null where that cannot be said."""

    kind: Literal["case study"]
    title: str
    settings: SettingsDocument
    versions: dict[str, str]
    labels: dict[str, str]
    command: str | None
    features: Annotated[list[FeatureDocument], Field(min_length=1)]


def json_schema() -> dict[str, Any]:
    """Of ``case.json``."""
    return TypeAdapter(CaseDocument).json_schema()
