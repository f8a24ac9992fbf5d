"""The JSON documents of answers, key by key: which tokens, heads, modules or neurons, and what a part goes on to do.

Types alone, of which the published JSON Schema is made; nothing that answers a question imports them. A key that is
``NotRequired`` is left out where it says nothing. Keys may be added without a new version, so that the schema lets
others pass. All values of a target are in units of its pre-activation.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


# ------------------------------------------------------------------------------------------------------------- heading


class DescribedSAE(TypedDict):
    """hook: where it reads, ``17.resid_post``. What is not known of it is null."""

    release: str | None
    id: str | None
    neuronpedia_id: str | None
    architecture: str
    d_in: Count
    d_sae: Count
    hook: str | None


class PromptKeys(TypedDict):
    """prompt: empty where it was given as ids alone. special: the positions of special tokens."""

    schema_version: Literal[1]
    model: str
    prompt: str
    tokens: list[str]
    token_ids: list[Count]
    special: list[Count]
    dtype: str


class RuleKeys(TypedDict):
    """first_token: what becomes of what heads move from position 0. qk_share, qk_slope: where the rule gives queries
    and keys a share."""

    rule: str
    temperature: float
    first_token: str
    qk_share: NotRequired[float]
    qk_slope: NotRequired[str]


class FitKeys(TypedDict):
    """How well the SAE fits the prompt. warning: a sentence, where it cannot belong there."""

    explained_variance: float | None
    l0: float
    warning: str | None


class DescribedFeature(TypedDict):
    """path: of a gated SAE, where its gate is asked about."""

    layer: Count
    index: Count
    hook: str
    path: NotRequired[str]


class DescribedToken(TypedDict):
    token: str
    id: Count


class DescribedLogit(TypedDict):
    """plus: further tokens, of a sum. against: what it is held to: tokens, ``mean``, ``rivals`` or ``softmax``."""

    token: str
    id: Count
    plus: NotRequired[list[DescribedToken]]
    against: DescribedToken | list[DescribedToken] | str | None


class DescribedDirection(TypedDict):
    layer: Count
    hook: str


class AnswerHead(PromptKeys, RuleKeys):
    """feature: null where a logit or a direction is asked about. note: what has to be said with the answer."""

    sae: DescribedSAE | None
    feature: DescribedFeature | None
    logit: NotRequired[DescribedLogit]
    direction: NotRequired[DescribedDirection]
    name: str
    fit: FitKeys | None
    note: str | None


class Value(TypedDict):
    """What a token, or the first of a word, contributes."""

    pos: Count
    token: str
    value: float


class Other(TypedDict):
    """What no source contributes: ``bias``, ``rest``, ``pattern``, ``other neurons``."""

    name: str
    value: float


class TargetKeys(TypedDict):
    """activation: null where the target is no feature."""

    pos: Count
    token: str
    activation: float | None
    pre_activation: float
    constant: float
    completeness_error: float


# -------------------------------------------------------------------------------------------------------------- tokens


class Lost(TypedDict):
    """What the target loses without a source: mean, standard deviation and standard error (null for one sample)."""

    mean: float
    std: float
    error: float | None


class Contribution(Value):
    """measured: where that was asked for; null for a source that was not taken out."""

    measured: NotRequired[Lost | None]


class MeasuredValue(Value):
    error: float | None


class RankAgreement(TypedDict):
    """Spearman's rank correlation of n things, its 95 % interval, and that of the measurement with a second one."""

    rank: float
    low: float
    high: float
    n: Count
    reliability: float | None


class Limit(TypedDict):
    """When a measurement is done: standard errors as a share of the pre-activation, or seconds."""

    error: float
    seconds: float


Stopped = Literal["error", "time", "samples", "exact"]


class MeasuredTokens(TypedDict):
    """What taking sources out really does. Of ``shapley`` Σ values + baseline = whole.

    asked: null where the number of replacements was given. replace_from: the file of text that tokens were drawn from.
    """

    kind: Literal["shapley", "replace"]
    whole: float
    baseline: float | None
    baseline_error: float | None
    values: list[MeasuredValue]
    removal: str
    replacements: Count
    enumerated: bool
    stopped: Stopped
    asked: Limit | None
    seed: int
    replace_from: str | None
    agreement: RankAgreement | None
    rank_correlation: float | None


class Depth(TypedDict):
    """The stream at one depth, along the target's direction: Σ values + Σ other + constant = total. layer: −1 is the
    embeddings. values: in the order of the contributions."""

    layer: Annotated[int, Field(ge=-1)]
    hook: str
    values: list[float]
    other: list[Other]
    total: float


class TokenTargetDocument(TargetKeys):
    """Σ contributions + Σ other + constant = pre_activation, up to completeness_error.

    margin: how far the pre-activation lies above what it takes to fire; null where that says nothing.
    """

    margin: float | None
    contributions: list[Contribution]
    other: list[Other]
    measured: NotRequired[MeasuredTokens]
    by_depth: NotRequired[list[Depth]]


class TokenDocument(AnswerHead):
    """Which tokens, words or sentences drive a target."""

    by: Literal["token", "word", "sentence"]
    targets: list[TokenTargetDocument]


# ------------------------------------------------------------------------------------------- heads, modules and neurons


class Part(TypedDict):
    """effect: to first order, with nothing frozen; in no sum."""

    layer: Count
    value: float
    effect: NotRequired[float]


class HeadPart(Part):
    """by_token, other: the head split by the token that it came from, and what is none; they sum to its value."""

    head: Count
    by_token: NotRequired[list[Value]]
    other: NotRequired[list[Other]]


class ModulePart(Part):
    module: str


class NeuronPart(Part):
    """neuron: of an expert a text, ``12.817``."""

    neuron: Count | str


class LayerRest(TypedDict):
    """value: what the stream before a layer's parts brings; other: what neither does. module: of modules alone."""

    layer: Count
    module: NotRequired[str]
    value: float
    other: list[Other]


class MeasuredHead(TypedDict):
    layer: Count
    head: Count
    value: float
    error: float


class MeasuredHeadsDocument(TypedDict):
    """What taking heads out really does. reference: the text whose mean stands in for a head; null is the prompt."""

    kind: Literal["shapley", "replace"]
    whole: float
    baseline: float | None
    values: list[MeasuredHead]
    reference: str | None
    orders: Count
    enumerated: bool
    stopped: Stopped
    asked: Limit
    seed: int


class PartTarget(TargetKeys):
    """For every entry of rest: Σ parts of its layer + value + Σ other + constant = pre_activation."""

    rest: list[LayerRest]


class HeadTarget(PartTarget):
    heads: list[HeadPart]
    measured: NotRequired[MeasuredHeadsDocument]


class ModuleTarget(PartTarget):
    modules: list[ModulePart]


class NeuronTarget(PartTarget):
    neurons: list[NeuronPart]


class PartDocument(AnswerHead):
    """sort: which parts are named first."""

    sort: str


class HeadDocument(PartDocument):
    """Through which heads comes a target."""

    targets: list[HeadTarget]


class ModuleDocument(PartDocument):
    """Through which modules comes a target."""

    targets: list[ModuleTarget]


class NeuronDocument(PartDocument):
    """Through which neurons comes a target."""

    targets: list[NeuronTarget]


# ---------------------------------------------------------------------------------------------------------- downstream


class DescribedPart(TypedDict):
    """A part of the model as it is named. pos: left out for every position. expert: whose neuron."""

    name: str
    kind: Literal["feature", "token", "head", "neuron"]
    layer: NotRequired[Count]
    index: NotRequired[Count]
    expert: NotRequired[Count | Literal["shared"]]
    hook: NotRequired[str]
    pos: NotRequired[Count]


class DrivenKeys(TypedDict):
    """What a source does to a reading: through no dictionary, in all, and to first order with nothing frozen."""

    index: Count
    pos: Count
    token: str
    activation: float
    pre_activation: float
    direct: float
    total: float
    effect: float


class DrivenFeature(DrivenKeys):
    name: str
    label: NotRequired[str]
    layer: Count
    hook: str


class DrivenLogit(DrivenKeys):
    """index: the token's id."""


class RaisedToken(TypedDict):
    """total: what is added to its logit, over the mean of all tokens."""

    token: str
    index: Count
    total: float


class DownstreamDocument(PromptKeys, RuleKeys):
    """What a feature, a token, a head or a neuron goes on to do. driven: of how many features the list is the top."""

    sae: DescribedSAE | None
    source: DescribedPart
    sort: Literal["total", "direct", "effect"]
    features: list[DrivenFeature]
    driven: NotRequired[Count]
    logits: list[DrivenLogit]
    raised: list[RaisedToken]
    lowered: list[RaisedToken]


Answer = TokenDocument | HeadDocument | ModuleDocument | NeuronDocument | DownstreamDocument


def json_schema() -> dict[str, Any]:
    """Of the document that ``tokens``, ``heads``, ``modules``, ``neurons`` or ``downstream --json`` prints."""
    return {"title": "An answer of depass-sae", **TypeAdapter[Any](Answer).json_schema()}
