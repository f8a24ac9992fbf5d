"""``ds.load`` and the handle that it returns: each method is one call into an attribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from .arguments import typed
from .attribution.answer import Asked
from .attribution.attention import Against, AttentionAttribution, QKBy, attribute_attention
from .attribution.changes import Changes, changes_of, each_of
from .attribution.components import HEADS, KINDS, MODULES, NEURONS, ComponentAttribution, Grain, attribute_components
from .attribution.contrast import Contrast, contrast
from .attribution.decompose import Decomposition, decompose
from .attribution.features import FeatureReport, Sort, find_features
from .attribution.importance import Importance, Of, find_importance
from .attribution.live import SAEErrors
from .attribution.looks import Order
from .attribution.measure import Measure, Measures
from .attribution.measure_heads import HeadMeasure, HeadMeasures
from .attribution.positions import Pos
from .attribution.readoff import Target
from .attribution.steering import Steered, Steering, steer_each
from .attribution.subspace import SubspaceAttribution, Votes, attribute_subspace, decode_parts, decoder_directions
from .attribution.targets import Reference, WrittenTarget, make_target, parse_target
from .attribution.tokens import By, TokenAttribution, attribute_tokens_each
from .attribution.writing import Goes, Writing
from .errors import UserError, warn
from .evaluation.evaluate import SAMPLES, evaluate_into
from .evaluation.evaluate import Asked as AskedEvaluation
from .evaluation.figures import Statistic
from .evaluation.found import Evaluation
from .evaluation.methods import Method
from .evaluation.prompts import items_of
from .evaluation.sources import Evaluated
from .files import expanded
from .graph.average import average_graphs
from .graph.build import Errors, GraphSettings, build_graph
from .graph.circuit import Search, circuit_graph
from .graph.downstream import By as DrivenBy
from .graph.downstream import Downstream, find_downstream
from .graph.feature_game import Asked as AskedCircuit
from .graph.feature_game import Newcomers, Removal, predicted_logit
from .graph.forwards import FEATURES, downstream_graph
from .graph.prune import prune
from .graph.task import TaskCircuit, find_task_circuit
from .graph.verify import sufficiency, verify_graph
from .graph.ways import Grow
from .index.asking import Scanning
from .index.asking import asked as asked_scan
from .index.causes import Causes
from .index.corpus import corpus
from .index.index import Index, open_index
from .index.scan import scan, scan_shard
from .index.shards import parse_shard
from .index.why import CONTEXTS, find_causes
from .labels.neuronpedia import labels_from
from .loading import load_subject
from .models.place import Place
from .models.prompt import Prompt, PromptLike, encode, is_prompt, several
from .passes.forward import FirstToken, Progress
from .passes.rules import Slope
from .passes.settings import Settings
from .passes.sources import Source, Subspace
from .report.card.card import FeatureCard
from .report.card.making import STRONGEST, TOP, make_card
from .report.case.case import CaseSettings, CaseStudy
from .report.case.making import make_case_study
from .report.case.study import Study
from .subject import Subject

if TYPE_CHECKING:
    import networkx as nx
    from sae_lens import SAE
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Made = TypeVar("Made")
Function = TypeVar("Function", bound=Callable[..., Any])


class How(TypedDict, total=False):
    """How a question is worked on, in every method that asks one.

    rule: half (default), softmax (the paper's, temperature 0.1), linear, linear-norm, relu, max or half-qk, which has
    two settings: qk_share 0.5, or 1.0 as gradients count a score; qk_slope "local", or "mean" from no score to the
    score. first_token: "skip" or "compete" (see :class:`.Allocation`). memory: bytes that a pass may take, or a text
    like "4GiB" (default: half of what is free); it changes no result. progress: called with (what, steps done, steps in
    all).
    """

    rule: str | None
    temperature: float
    first_token: FirstToken
    qk_share: float
    qk_slope: Slope
    memory: float | str | None
    progress: Progress | None


Named = str | Float[Tensor, "d"] | tuple[Float[Tensor, "d"], str]
"""A target among several: as it is written, or a direction, where need be with the place that it is read at."""
NAMING = ("target", "logit", "logit_diff", "logprob", "direction")
"""The settings that name a target."""


class Question(How, total=False):
    """What may be said beside a prompt and a feature, in every ``lm.attribute_...``.

    Instead of a feature: ``logit`` a token, where that is said held ``against`` "mean" (the vocabulary's), "rivals"
    (the likeliest others) or tokens; ``logit_diff`` two; ``logprob`` a token's log-probability; ``direction`` [d], read
    at ``hook`` of ``layer``. Or ``target``, any of these as a text: ``'logit:" Paris" against rivals'``, the sum
    ``'logit:" Paris"+" France"'``, ``'logprob:" Paris"@7'``, ``"direction:17.resid_post:probe.npy"``.

    pos: "max" where the target is largest (default; a logit's is the last position), "all" wherever a feature fires,
    or a position. path: of a gated SAE, "magnitude" or "gate". And :class:`How` it is worked on.
    """

    target: str | None
    logit: str | int | None
    logit_diff: tuple[str | int, str | int] | None
    logprob: str | int | None
    against: Reference | None
    direction: Float[Tensor, "d"] | None
    layer: int | None
    hook: str
    path: str
    pos: Pos | None


class TokenQuestion(Question, Measures, total=False):
    """:class:`Question`, and what is measured of the tokens beside their contributions (:class:`.Measures`)."""


class HeadQuestion(Question, HeadMeasures, total=False):
    """:class:`Question`, and what is measured of heads beside their contributions (:class:`.HeadMeasures`)."""


def _without_inference_mode(function: Function) -> Function:
    """Whoever calls it: sweeps differentiate, and what is made in ``torch.inference_mode`` takes no part in that."""

    @wraps(function)
    def outside(*args: Any, **settings: Any) -> Any:
        with torch.inference_mode(False):
            return function(*args, **settings)

    return outside  # type: ignore[return-value]


def _one_at_a_time(method: Function) -> Function:
    """Of a model: a pass changes the model object while it runs, and threads share that.

    What a question records and encodes is kept until it is answered, in a handle of its own.
    """

    @wraps(method)
    def alone(self: LM, *args: Any, **settings: Any) -> Any:
        with self._subject.adapter.lock:
            return method(LM(self._subject.asked()), *args, **settings)

    return alone  # type: ignore[return-value]


def _questions(made: type[Made]) -> type[Made]:
    """A class whose public methods check their arguments; threads may call them at once, in inference mode or not."""
    for name, method in list(vars(made).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(made, name, typed(_without_inference_mode(_one_at_a_time(method))))
    return made


@_questions
class LM:
    """A language model with the SAEs on it, ready for questions. Made by :func:`load`; keeps no state between calls."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, as it is."""
        return self._subject.adapter.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self._subject.loaded.tokenizer

    @property
    def saes(self) -> dict[int | str, SAE]:
        """By layer, or by ``"layer.hook"`` where several SAEs share a layer."""
        layers = [hook.layer for hook in self._subject.saes]
        return {
            hook.layer if layers.count(hook.layer) == 1 else str(hook): sae
            for hook, sae in sorted(self._subject.saes.items())
        }

    def __repr__(self) -> str:
        saes = ", ".join(str(hook) for hook in sorted(self._subject.saes)) or "none"
        return f"LM({self._subject.loaded.name!r}, SAEs at {saes})"

    def encode(self, prompt: PromptLike) -> Prompt:
        """The prompt as the model sees it: ``.token_ids``, ``.tokens``, ``.special``. BOS is there where it belongs."""
        return encode(self._subject.loaded, self._subject.adapter, prompt)

    def features(
        self, prompt: PromptLike, layer: int | None = None, sort: Sort = "activation", index: Index | None = None
    ) -> FeatureReport:
        """Which features fire on the prompt, strongest first, per layer and position.

        sort: "specific" puts first what is most above the feature's own mean over the prompt, so that features which
        fire everywhere (marked with * in tables) head no position. index: of the same SAEs over a corpus
        (:func:`.open_index`); features have its names, and "specific" puts first what fires so strongly at the smallest
        share of the corpus's tokens.
        """
        return find_features(self._subject, self.encode(prompt), layer, sort, index)

    def attribute_tokens(
        self,
        prompt: PromptLike,
        feature: str | None = None,
        *,
        by: By = "token",
        by_depth: bool = False,
        **question: Unpack[TokenQuestion],
    ) -> TokenAttribution:
        """Which tokens make the target what it is (paper §4.1, appendix C.5).

        feature: "LAYER/INDEX" or "LAYER/INDEX@POS"; other targets and the settings are those of :class:`Question`, what
        may be measured beside the contributions those of :class:`.Measures`.
        by: "token", "word" (sub-tokens joined from the start) or "sentence".
        by_depth: also how each source's share grows layer by layer, where the target is read on the stream.

        Contributions are in units of the target's pre-activation and, with the other parts, sum to it.
        Raises UserError (a ValueError) with one line that says what would be right.
        """
        target, pos = self._target(feature, question)
        return self._tokens([Asked(self.encode(prompt), target, pos)], by, by_depth, question)[0]

    def attribute_tokens_batch(
        self,
        prompts: Sequence[PromptLike] | Mapping[str, Any],
        feature: str | None = None,
        *,
        targets: Sequence[Named] | None = None,
        by: By = "token",
        by_depth: bool = False,
        **question: Unpack[TokenQuestion],
    ) -> list[TokenAttribution]:
        """:meth:`attribute_tokens` on several prompts of any lengths, in shared passes: what each alone gives.

        targets: one for each prompt, instead of one for all, as in :meth:`attribute_tokens_each`.
        """
        given = [self.encode(prompt) for prompt in _several(prompts)]
        if targets is None:
            found = [self._target(feature, question)] * len(given)
        elif feature is not None:
            raise UserError("targets says what is asked for, and feature something else; leave feature out")
        else:
            found = self._named(targets, question)
            if len(found) != len(given):
                raise UserError(f"there are {len(given)} prompts and {len(found)} targets; name one for each prompt")
        asked = [Asked(prompt, target, pos) for prompt, (target, pos) in zip(given, found, strict=True)]
        return self._tokens(asked, by, by_depth, question)

    def attribute_tokens_each(
        self,
        prompt: PromptLike,
        targets: Sequence[Named],
        *,
        by: By = "token",
        by_depth: bool = False,
        **question: Unpack[TokenQuestion],
    ) -> list[TokenAttribution]:
        """:meth:`attribute_tokens` for several targets, of any layers, by one pass: what each alone gives.

        targets: ``"17/2601@6"``, ``"17/2601"``, ``'logit:" Paris"'``, ``'logit-diff:" Mary"," John"'`` and what else
        :class:`Question` has; or directions [d], read at ``hook`` of ``layer``, or each where a place beside it says,
        ``(w, "17.resid_post")``. pos, for those that name none, and the other settings are its own.
        """
        encoded = self.encode(prompt)
        asked = [Asked(encoded, target, pos) for target, pos in self._named(targets, question)]
        return self._tokens(asked, by, by_depth, question)

    def _named(self, targets: Sequence[Named], question: TokenQuestion) -> list[tuple[Target, Pos | None]]:
        """Several targets, and the position of each."""
        directed = any(not isinstance(one, str | tuple) for one in targets)
        if named := sorted({*NAMING, "path", *(() if directed else ("layer", "hook"))} & question.keys()):
            raise UserError(f"targets says what is asked for, and {named[0]} something else; leave {named[0]} out")
        found = []
        for number, one in enumerate(targets):
            if isinstance(one, str):
                target, at = parse_target(self._subject, one, question.get("against"))
            else:
                w, place = one if isinstance(one, tuple) else (one, None)
                where = (question.get("layer"), question.get("hook")) if place is None else Place.parse(place)
                called = f"direction {number}"
                target, at = make_target(self._subject, direction=w, layer=where[0], hook=where[1], called=called)
            found.append((target, question.get("pos") if at is None else at))
        return found

    def _tokens(
        self,
        asked: list[Asked],
        by: By,
        by_depth: bool,
        question: TokenQuestion,
    ) -> list[TokenAttribution]:
        measure = Measure(**{key: question[key] for key in Measures.__annotations__ if key in question})  # type: ignore[literal-required]
        return attribute_tokens_each(
            self._subject, asked, by=by, measure=measure, depth=by_depth, settings=_settings(question)
        )

    def attribute_heads(
        self,
        prompt: PromptLike,
        feature: str | None = None,
        *,
        by_token: bool = False,
        effects: bool = False,
        sort: Order = "abs",
        **question: Unpack[HeadQuestion],
    ) -> ComponentAttribution:
        """Through which attention heads of every layer (paper §4.2). Each layer's row sums to the pre-activation.

        What may be measured of the largest heads, by taking them out, is said by :class:`.HeadMeasures`.

        by_token: each head also split by the token that it came from: heads x source tokens, exact.
        effects: also each head's effect: what the target loses without it, to first order, with attention, norms and
        MLPs live (attribution patching); of a soft-capped logit, what the model's own logit does. One more sweep back
        finds them all. Effects sum to nothing.
        sort: what is named first: "abs" the largest contributions of either sign, "contribution" the most positive
        ones, "effect" the largest effects of either sign (these are then found, too).
        """
        given = {key: question[key] for key in HeadMeasures.__annotations__ if key in question}  # type: ignore[literal-required]
        return self._components(
            HEADS,
            prompt,
            feature,
            question,
            by_token=by_token,
            effects=effects,
            sort=sort,
            measure=HeadMeasure(**given),
        )

    def attribute_modules(
        self,
        prompt: PromptLike,
        feature: str | None = None,
        *,
        effects: bool = False,
        sort: Order = "abs",
        **question: Unpack[Question],
    ) -> ComponentAttribution:
        """Through which attention layers and MLPs. Each row sums to the pre-activation.

        effects, sort: as in :meth:`attribute_heads`.
        """
        return self._components(MODULES, prompt, feature, question, effects=effects, sort=sort)

    def attribute_neurons(
        self,
        prompt: PromptLike,
        feature: str | None = None,
        *,
        effects: bool = False,
        sort: Order = "abs",
        every: bool = False,
        **question: Unpack[Question],
    ) -> ComponentAttribution:
        """Through which MLP neurons of every layer (paper §4.2). Each layer's row sums to the pre-activation.

        effects, sort: as in :meth:`attribute_heads`. A document lists 50 neurons of each layer, the first by sort, and
        with ``every`` all of them.
        """
        found = self._components(NEURONS, prompt, feature, question, effects=effects, sort=sort)
        return replace(found, every=every)

    def importance(
        self,
        prompts: Sequence[PromptLike] | Mapping[str, Any],
        feature: str | None = None,
        *,
        of: Of = "heads",
        effects: bool = False,
        sort: Order = "abs",
        every: bool = False,
        **question: Unpack[Question],
    ) -> Importance:
        """Mean and spread of what heads, modules or neurons contribute over prompts (paper D.3.1).

        Each prompt is read where the target is strongest; those on which a feature does not fire are left out.
        effects, sort: as in :meth:`attribute_heads`, of the means. every: as in :meth:`attribute_neurons`.
        """
        if of not in KINDS:
            raise UserError(f"importance is of {', '.join(KINDS)}, not of {of!r}")
        target, pos = self._target(feature, question)
        encoded = [self.encode(prompt) for prompt in _several(prompts)]
        found = find_importance(
            self._subject,
            encoded,
            target,
            KINDS[of],
            pos=pos,
            effects=effects,
            sort=sort,
            settings=_settings(question),
        )
        return replace(found, every=every)

    def attribute_subspace(
        self,
        prompt: PromptLike,
        feature: str | None = None,
        *,
        subspace: Subspace,
        names: Sequence[str] | None = None,
        **question: Unpack[Question],
    ) -> SubspaceAttribution:
        """What the stream's part in a subspace, or in several, contributes to the target (paper §4.1.2).

        subspace: ``ds.Subspace(matrices, layer)``, of what the layer hands on unless its ``hook`` says otherwise.
        names: what to call them.
        """
        target, pos = self._target(feature, question)
        return attribute_subspace(
            self._subject,
            self.encode(prompt),
            target,
            subspace,
            names=None if names is None else tuple(names),
            pos=pos,
            settings=_settings(question),
        )

    def decoder_directions(
        self, features: Sequence[str], *, at: str | None = None, rank: int | None = None
    ) -> Subspace:
        """The decoder direction of each feature ("LAYER/INDEX") as a subspace, where their SAE reads or elsewhere."""
        return decoder_directions(self._subject, features, at, rank)

    def votes(
        self,
        prompt: PromptLike,
        source: Source,
        *,
        pos: int | None = None,
        top: int = 8,
        **how: Unpack[How],
    ) -> Votes:
        """Carry a source's parts to the end and list the tokens that each votes for (paper §4.3).

        source: for example ``ds.Subspace(matrices, layer)`` or ``ds.Heads(layer)``. pos: whose prediction (the last).
        """
        return decode_parts(
            self._subject,
            self.encode(prompt),
            source,
            pos=pos,
            top=top,
            settings=Settings.of(**how),
        )

    def decode(self, prompt: PromptLike, source: Source, **settings: Any) -> Votes:
        """:meth:`votes`, as it was called before."""
        warn("lm.decode is called lm.votes now", DeprecationWarning)
        return self.votes(prompt, source, **settings)

    def attribute_attention(
        self,
        prompt: PromptLike,
        layer: int,
        head: int,
        query: int,
        key: int,
        *,
        by: QKBy = "tokens",
        against: Against = None,
        **how: Unpack[How],
    ) -> AttentionAttribution:
        """Why the head looked there: its score for this query and key, split over the components of both.

        by: "tokens" (carried to the layer by ``rule``), or "features" of an SAE on the stream that the layer reads.
        against: "mean" takes the head's average key off (weighed by its attention), "uniform" the plain mean of the
        keys that the query sees, a position that key: what all keys share does not decide.
        """
        return attribute_attention(
            self._subject,
            self.encode(prompt),
            layer,
            head,
            query,
            key,
            by=by,
            against=against,
            settings=Settings.of(**how),
        )

    def contrast(
        self, prompt: PromptLike, against: PromptLike, feature: str | None = None, **settings: Any
    ) -> Contrast:
        """Two prompts side by side for one target: what differs in the sources.

        settings: those of :meth:`attribute_tokens`, where what a logit is held to is said in ``target`` alone; a
        position applies to the first prompt, and to the second where it is as long, else the second is read where the
        target is largest.
        """
        first = self.attribute_tokens(prompt, feature, **settings)
        elsewhere = dict(settings)
        if len(self.encode(prompt)) != len(self.encode(against)):
            elsewhere.pop("pos", None)
            feature = feature and feature.partition("@")[0]
        return contrast(first, self.attribute_tokens(against, feature, **elsewhere))

    def decompose(
        self,
        prompt: PromptLike,
        source: str | Source = "tokens",
        *,
        layer: int,
        read: str = "resid_post",
        start: int = 0,
        **how: Unpack[How],
    ) -> Decomposition:
        """The raw parts: any source, carried to a read point.

        source: "tokens", "words" or "sentences", from the residual stream before layer ``start`` (0: the embeddings);
        or a source object such as ``ds.Vectors(parts, labels, at)``.
        read: one of resid_pre, hook_z, attn_out, resid_mid, ln2_normalized, mlp_in, mlp_out, resid_post, of ``layer``.
        """
        return decompose(
            self._subject,
            self.encode(prompt),
            source,
            place=Place(layer, read),
            start=start,
            settings=Settings.of(**how),
        )

    def card(
        self,
        feature: str,
        prompts: PromptLike | Sequence[PromptLike] | None = None,
        *,
        top: int = TOP,
        strongest: int = STRONGEST,
        contexts: str | None = None,
        labels: str | Path | Mapping[str, str] | None = None,
        cache_dir: str | Path | None = None,
        downstream: bool = False,
        **how: Unpack[How],
    ) -> FeatureCard:
        """A feature's card: where it fires on some prompts, what drives it there, what it writes, and what is near it.

        feature: "LAYER/INDEX". prompts: one, or several; with contexts="neuronpedia", which asks Neuronpedia's API for
        this feature, None is its strongest contexts there. top: entries of each list. strongest: at how many firings it
        is taken apart by source token and followed to the SAE layers before and behind it. labels: what features mean,
        by "LAYER/INDEX", from a mapping, a .csv or .json file, or "neuronpedia" (asks its API; trouble is a warning).
        cache_dir: where Neuronpedia's answers are kept; None is the user's cache folder. downstream: also which
        features of every later dictionary it drives from these firings on, summed over them.
        """
        kept = None if cache_dir is None else expanded(cache_dir)
        if prompts is None and contexts is None:
            raise UserError('a card needs a prompt, or several; or contexts="neuronpedia" for the feature\'s own')
        card = make_card(
            self._subject, prompts, feature, top=top, strongest=strongest, contexts=contexts,
            cache_dir=kept, downstream=downstream, settings=Settings.of(**how),
        )  # fmt: skip
        return card if labels is None else card.with_labels(_labels(labels, card.pages, kept))

    def case_study(
        self,
        prompt: PromptLike,
        features: str | Sequence[str],
        *,
        title: str | None = None,
        ablate: int = CaseSettings.ablate,
        seed: int = CaseSettings.seed,
        replace_from: str | Path | None = None,
        max_nodes: int = CaseSettings.max_nodes,
        verify: int = CaseSettings.verify,
        top: int = CaseSettings.top,
        labels: str | Path | Mapping[str, str] | None = None,
        asked: Study | None = None,
        **how: Unpack[How],
    ) -> CaseStudy:
        """Everything about features of one prompt, for a paper's appendix; ``.write(folder)`` keeps page and numbers.

        features: ``"17/2601@7"``, or ``"17/2601"`` for where it is strongest; one or several. ablate: replace every
        source by this many random tokens and measure; replace_from: as in :meth:`attribute_tokens`, for the graphs'
        tokens, too. max_nodes: of each graph; verify: how many of them are taken
        out for real. top: rows that tables name. labels: as in :meth:`card`. asked: how the command line was asked
        for it, which the page repeats (default: worked out, where a command can make it again).
        """
        named = [features] if isinstance(features, str) else list(features)
        study = make_case_study(
            self._subject,
            self.encode(prompt),
            named,
            title=title,
            case=CaseSettings(
                ablate=ablate,
                seed=seed,
                max_nodes=max_nodes,
                verify=verify,
                top=top,
                replace_from=None if replace_from is None else str(replace_from),
            ),
            asked=asked,
            settings=Settings.of(**how),
        )
        return study if labels is None else study.with_labels(_labels(labels, study.pages))

    def graph(
        self,
        prompt: PromptLike,
        target: str | Sequence[str] | None = None,
        *,
        logit: str | int | None = None,
        logit_diff: tuple[str | int, str | int] | None = None,
        logprob: str | int | None = None,
        against: Reference | None = None,
        direction: Float[Tensor, "d"] | None = None,
        layer: int | None = None,
        hook: str | None = None,
        pos: Pos | None = None,
        layers: Sequence[int | str] | None = None,
        max_nodes: int = GraphSettings.max_nodes,
        grow: Grow = GraphSettings.grow,
        node_threshold: float | None = GraphSettings.node_threshold,
        edge_threshold: float | None = GraphSettings.edge_threshold,
        errors: Errors = GraphSettings.errors,
        heads: bool = GraphSettings.heads,
        pairs: int = GraphSettings.pairs,
        **how: Unpack[How],
    ) -> nx.DiGraph:
        """The feature-flow graph: from the tokens through the features of every SAE and transcoder to the target.

        target: ``"17/1208@6"``, ``'logit:" Paris"'`` and what else :class:`Question` has, or several; default: the top
        predicted tokens, each over the vocabulary's mean. logit, logit_diff, logprob: one more each, by a token's text
        or id. against: what logits are held to that do not say so. direction: one more, read at ``hook`` of ``layer``,
        the features that stand there among its sources. pos: of those that name no position
        (default: where a feature is strongest; a logit's is the last). layers: of the SAEs and transcoders that it
        stands on, a layer or one's hook such as ``"17.mlp_out"`` (default: all that can be). max_nodes: it is grown
        from the target until it has so many. grow: by what flows ("weight"), by first-order effects and by where heads
        looked ("effect"), or by whichever says most ("both"); unless by what flows alone, edges have ``query`` and
        ``key``, what their source did as part of heads' queries and keys, which is in no sum. node_threshold,
        edge_threshold: then keep the fewest that have this share of the influence. errors: "roots", or "through" to
        follow errors on the residual stream upstream. heads: also through which heads. pairs: of so many nodes, the
        most influential, ``.graph["pairs"]`` has which two nodes, one as part of queries and one as part of keys,
        decided most where heads looked (a sweep each, and a pass for each query). At every feature and logit
        Σ incoming weights + constant = pre-activation. ``.graph["sufficiency"]``: what is left of the target in the
        live model where only the graph's features are kept.
        """
        targets = self._graph_targets(target, logit, logit_diff, logprob, against, direction, layer, hook)
        g = build_graph(
            self._subject,
            self.encode(prompt),
            [(found, pos if at is None else at) for found, at in targets],
            layers=layers,
            size=GraphSettings(max_nodes, node_threshold, edge_threshold, errors, heads, grow, pairs),
            settings=Settings.of(**how),
        )
        if (left := sufficiency(self._subject, g)) is not None:
            g.graph["sufficiency"] = left
        return g

    def average_graph(
        self,
        prompts: Sequence[PromptLike] | Mapping[str, Any],
        target: str | Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
        **settings: Any,
    ) -> nx.DiGraph:
        """The same question on many prompts as one graph: means of nodes and edges, their spread, and what is stable.

        Features are the same wherever they fire, all tokens are one node. On how many prompts it is says ``prompts`` of
        a node or an edge (:func:`.average_graphs`). Prompts on which no target fires are left out. target, settings:
        those of :meth:`graph`, ``max_nodes`` of each prompt's graph and of the mean.
        """
        given = _several(prompts)
        found, tell = [], Settings.of(progress=progress).tell
        for done, prompt in enumerate(given, start=1):
            g = self.graph(prompt, target, **settings)
            if any(g.nodes[one["node"]]["activation"] for one in g.graph["target"]):
                found.append(g)
            tell("going through the prompts", done, len(given))
        if not found:
            raise UserError(f"no target fires on any of the {len(given)} prompts")
        mean = average_graphs(found)
        mean.graph["average"]["silent"] = len(given) - len(found)
        most = settings.get("max_nodes", GraphSettings.max_nodes)
        return prune(mean, max_nodes=most) if len(mean) > most else mean

    def downstream(
        self, prompt: PromptLike, source: str, *, sort: DrivenBy = "total", **how: Unpack[How]
    ) -> Downstream:
        """What a source goes on to do: later features and logits, by ``direct``, ``total`` and ``effect``.

        source: a feature ``"11/223@6"``, ``"token:6"``, ``"head:5.1@7"`` or ``"neuron:5/301@7"``, of an expert
        ``"neuron:5/12.817"``; without a position, wherever it is. direct: through the frozen network and no other
        dictionary, a graph's edge; total: whatever it passes; effect: what would be lost without it, to first order, in
        the unfrozen model. sort: which of them ranks.
        """
        return find_downstream(self._subject, self.encode(prompt), source, sort=sort, settings=Settings.of(**how))

    def downstream_graph(
        self, prompt: PromptLike, source: str, *, features: int = FEATURES, sort: DrivenBy = "total", **how: Unpack[How]
    ) -> nx.DiGraph:
        """The graph of what a source goes on to do: the later features that it drives most, and the likeliest tokens.

        source: ``"11/223@6"`` or ``"token:6"``. features: so many, the largest by ``sort`` (:meth:`downstream`). Its
        edges are those of :meth:`graph`, and so are its sums.
        """
        return downstream_graph(
            self._subject, self.encode(prompt), source, features=features, sort=sort, settings=Settings.of(**how)
        )

    def intervene(
        self,
        prompt: PromptLike,
        changes: Changes | None = None,
        *,
        scale: Changes | None = None,
        add: Changes | None = None,
        **goes: Unpack[Goes],
    ) -> Steered:
        """The live model with parts set, and what follows: the next token, features, and a continuation.

        changes: parts and what they are set to: ``{"17/2601@7": 0, "neuron:5/301@7": 1.5, "head:5.1": 0, "token:6":
        " growth"}``; scale, add: what others are multiplied by, or get. Without a position a part is changed at every
        position, those included that are generated; of an expert, ``"neuron:5/12.817"``, ``"neuron:5/shared.817"``, at
        those that are sent there. Of a feature what it writes is exchanged as its dictionary reads what arrives, in all
        layers into which it writes, and the dictionary's error stays; sets in later layers see the earlier ones.
        generate: so many tokens are written on, before and after, each the likeliest; temperature, top_k, seed: drawn
        (:class:`.Goes`).
        """
        asked = Steering(self.encode(prompt), changes_of(set=changes, scale=scale, add=add))
        return steer_each(self._subject, [asked], Writing(**goes))[0]

    def intervene_batch(
        self,
        prompts: Sequence[PromptLike] | Mapping[str, Any],
        changes: Changes | None = None,
        *,
        scale: Changes | None = None,
        add: Changes | None = None,
        **goes: Unpack[Goes],
    ) -> list[Steered]:
        """:meth:`intervene` on several prompts, those of equal length in shared passes: what each alone gives."""
        wanted = changes_of(set=changes, scale=scale, add=add)
        asked = [Steering(self.encode(prompt), wanted) for prompt in _several(prompts)]
        return steer_each(self._subject, asked, Writing(**goes))

    def intervene_each(
        self,
        prompt: PromptLike,
        changes: Sequence[Changes] | None = None,
        *,
        scale: Sequence[Changes] | None = None,
        add: Sequence[Changes] | None = None,
        **goes: Unpack[Goes],
    ) -> list[Steered]:
        """:meth:`intervene` with several sets of changes, in shared passes: what each alone gives.

        changes, scale, add: a list each, as long as each other, whose first entries are of the first set and so on:
        ``scale=[{"17/2601": factor} for factor in (0, 0.5, 2)]``.
        """
        encoded = self.encode(prompt)
        asked = [Steering(encoded, one) for one in each_of(set=changes, scale=scale, add=add)]
        return steer_each(self._subject, asked, Writing(**goes))

    def circuit(
        self,
        prompt: PromptLike,
        target: str | None = None,
        *,
        logit: str | int | None = None,
        logit_diff: tuple[str | int, str | int] | None = None,
        against: Reference | None = None,
        pos: Pos | None = None,
        contrast: PromptLike | None = None,
        layers: Sequence[int] | None = None,
        errors: SAEErrors = Removal.errors,
        recompute: bool = Removal.recompute,
        newcomers: Newcomers = Removal.newcomers,
        seconds: float = Search.seconds,
        draws: int = Search.draws,
        seed: int = Search.seed,
        stability: bool = Search.stability,
        **how: Unpack[How],
    ) -> nx.DiGraph:
        """The fewest features found that suffice for the target, as a graph with ``.graph["circuit"]``.

        target, logit, logit_diff, against, pos: one, as in :meth:`graph`; default: the predicted token.
        *Sufficient*: with all other active features removed the answer stays first and 80 % of the logit (over the mean
        logit), of the difference of logits or of the feature's activation is left. *Minimal*: no feature can be left
        out. *Necessary*: without the circuit half of the target is lost, more than in 95 % of ``draws`` random sets
        with as many features at every layer and position.

        contrast: a prompt of the same length: removed features take its values instead of 0, and shares are of how far
        the two prompts lie apart. layers: of the SAEs (all on the residual stream). errors: what SAEs miss is "keep":
        left in the stream, "hold": held at what it was, "zero": taken out. recompute: kept features are what the edited
        model makes of them, else held at what they were. newcomers: features that become active when others go "remove"
        or "keep". seconds: the most that the search takes; where it ends before the circuit is minimal, it is told.
        seed: of the search and the draws. stability: search from the next seed, too: how much is the same.
        """
        asked, at = self._circuit_target(target, logit, logit_diff, against, prompt)
        return circuit_graph(
            self._subject,
            AskedCircuit(
                self.encode(prompt), asked, pos if at is None else at,
                None if contrast is None else self.encode(contrast),
            ),
            layers=layers,
            removal=Removal(errors, recompute, newcomers),
            how=Search(seconds, draws, seed, stability),
            settings=Settings.of(**how),
        )  # fmt: skip

    def circuit_of(
        self,
        prompts: Sequence[PromptLike] | Mapping[str, Any],
        targets: Sequence[str] | None = None,
        *,
        contrasts: Sequence[PromptLike] | None = None,
        layers: Sequence[int] | None = None,
        errors: SAEErrors = Removal.errors,
        recompute: bool = Removal.recompute,
        newcomers: Newcomers = Removal.newcomers,
        seconds: float = Search.seconds,
        seed: int = Search.seed,
        progress: Progress | None = None,
    ) -> TaskCircuit:
        """The circuit of a task: one set of features for several prompts of equal structure, token by token.

        targets: one for each prompt, as they are written in :meth:`circuit` (default: each one's predicted token).
        contrasts: a prompt for each. It is learned on every second prompt from the first, and tested on the others
        beside as many features by their mean |effect|; ``.features`` says on how many prompts each is needed. See
        :mod:`depass_sae.graph.task`; the settings are those of :meth:`circuit`.
        """
        given = [self.encode(prompt) for prompt in _several(prompts)]
        others = [None] * len(given) if contrasts is None else [self.encode(one) for one in _several(contrasts)]
        if targets is None:
            named: list[tuple[Target, Pos | None]] = [(predicted_logit(self._subject, one), None) for one in given]
        else:
            named = [parse_target(self._subject, text) for text in targets]
        if not len(given) == len(named) == len(others):
            raise UserError(
                f"a task has a target, and a contrast, for each prompt: there are {len(given)} prompts, {len(named)} "
                f"targets and {len(others)} contrasts"
            )
        return find_task_circuit(
            self._subject,
            [AskedCircuit(one, *target, other) for one, target, other in zip(given, named, others, strict=True)],
            layers,
            Removal(errors, recompute, newcomers),
            Search(seconds, seed=seed),
            Settings.of(progress=progress),
        )

    def evaluate(
        self,
        data: Any = "facts",
        of: Evaluated = "tokens",
        *,
        methods: Sequence[str] | None = None,
        protocols: Sequence[str] | None = None,
        own: Mapping[str, Method] | None = None,
        target: str | None = None,
        removal: str | None = None,
        against: str | None = None,
        limit: int | None = None,
        every: bool = False,
        samples: int = SAMPLES,
        statistic: Statistic = "mean",
        seed: int = 0,
        out: str | Path | None = None,
        **how: Unpack[How],
    ) -> Evaluation:
        """Which method finds what matters: scores of sources held to what the live model does without them.

        data: "facts", "ioi", a file, or a list of prompts, each a text, token ids, or a mapping with a "prompt" and an
        "answer" (and a "foil"), or a "target"; see :mod:`depass_sae.evaluation.prompts`. target: of prompts that name
        none; else the predicted token's logit over the mean logit. Of answers those prompts count that the model
        answers so, with ``every`` all.
        of: which sources. methods, protocols: names (default: the usual ones of these sources; "all"); see
        :mod:`depass_sae.evaluation.sources`. own: methods of your own, each a function that gives the sources of a
        :class:`depass_sae.evaluation.question.Question` scores.
        removal: how sources are taken out: tokens "text" (random ones come in; "delete" and "keep" delete in any case),
        "delete" or "mask:TOKEN"; heads and neurons "zero", "mean" or "contrast"; features "zero" or "contrast".
        samples: of what chance has a part in. against: the method that all are compared with (the first). limit: of the
        prompts. statistic: of figures over prompts, "mean" or "median". out: a folder for records, document and page;
        an evaluation that was stopped goes on there.
        """
        if "rule" in how:
            raise UserError("an evaluation compares rules: name them among its methods, and leave rule out")
        asked = AskedEvaluation.of(
            of, methods, protocols, own, removal, against,
            target=target, every=every, samples=samples, statistic=statistic, seed=seed,
        )  # fmt: skip
        items = items_of(data)
        if limit is not None and limit < 1:
            raise UserError(f"limit is how many prompts are evaluated, 1 at least, not {limit}")
        folder = None if out is None else expanded(out)
        return evaluate_into(self._subject, items[:limit], asked, folder, _settings(how))

    def verify(
        self,
        graph: nx.DiGraph,
        *,
        max_nodes: int = 100,
        seed: int = 0,
        replace_from: str | Path | None = None,
        memory: float | str | None = None,
        progress: Progress | None = None,
    ) -> nx.DiGraph:
        """Take the graph's nodes out of the unfrozen model and measure; a copy with ``.graph["verification"]``.

        max_nodes: how many are taken out one at a time, the most influential. Predictions go along all paths, by
        weights and by effects. Together the graph's features are kept alone, and removed, beside 20 random sets of the
        same dictionaries and positions; see :mod:`depass_sae.graph.verify`. replace_from: as in
        :meth:`attribute_tokens`.
        """
        return verify_graph(
            self._subject, graph, max_nodes=max_nodes, seed=seed, replace_from=replace_from,
            settings=Settings.of(memory=memory, progress=progress),
        )  # fmt: skip

    def scan(self, source: Any, out: str | Path, **how: Unpack[Scanning]) -> Index:
        """What every feature of all SAEs does over a corpus, in a folder that :func:`depass_sae.open_index` opens.

        source: a path, ``"hf:OWNER/NAME/CONFIG:SPLIT"``, a list of ``Path``, or texts: an iterable of them, of token
        ids, or of mappings with the ``column``. how: :class:`.Scanning`.

        One pass of the model serves all features. What cannot be read is left out and listed in the index. A scan that
        was interrupted goes on when it is asked for with the same words, and the files become the same, byte by byte.
        Raises UserError for a source that is not there, and for a folder that holds other things.
        """
        asked, engine, settings = asked_scan(**how)
        return open_index(scan(self._subject, corpus(source, asked.reading), out, asked, settings, engine))

    def scan_shard(self, source: Any, out: str | Path, shard: tuple[int, int] | str, **how: Unpack[Scanning]) -> Path:
        """One of so many shards of a scan, ``(1, 8)`` or ``"1/8"``; :func:`depass_sae.merge_shards` puts them together.

        For the jobs of an array: all are asked for the same but for shard and folder, and each does its share of the
        units. Everything else is as in :meth:`scan`. Returns the shard's folder.
        """
        asked, engine, settings = asked_scan(**how)
        which = parse_shard(shard) if isinstance(shard, str) else shard
        return scan_shard(self._subject, corpus(source, asked.reading), out, asked, settings, which, engine)

    def why(self, index: Index, feature: str, *, contexts: int = CONTEXTS, **how: Unpack[How]) -> Causes:
        """Why a feature fires over an index's corpus: its strongest contexts taken apart.

        By source token, head and feature of the SAEs below, in shares of the pre-activation; see
        :mod:`depass_sae.index.causes`. contexts: how many. What was found is kept in the index, where the same question
        finds it, ``index.feature(...).causes`` has it without a model, and the feature may get its name from it.

        Raises UserError where model or SAEs are not those of the index.
        """
        return find_causes(self._subject, index, feature, contexts, _settings(how))

    def _target(self, feature: str | None, question: Question) -> tuple[Target, Pos | None]:
        text = question.get("target")
        if text is None:
            target, at = make_target(
                self._subject,
                feature=feature,
                logit=question.get("logit"),
                logit_diff=question.get("logit_diff"),
                logprob=question.get("logprob"),
                against=question.get("against"),
                direction=question.get("direction"),
                layer=question.get("layer"),
                hook=question.get("hook"),
                path=question.get("path", "magnitude"),
            )
        else:
            given = {"feature": feature} | {key: question.get(key) for key in (*NAMING, "layer", "hook")}
            if more := [key for key, value in given.items() if value is not None and key != "target"]:
                raise UserError(f"target says what is asked for, and {more[0]} something else; leave {more[0]} out")
            target, at = parse_target(self._subject, text, question.get("against"), question.get("path", "magnitude"))
        pos = question.get("pos")
        if at is not None and pos is not None and pos != at:
            raise UserError(f"{text or feature} names position {at}, and pos is {pos}; give one of them")
        return target, pos if at is None else at

    def _graph_targets(
        self,
        target: str | Sequence[str] | None,
        logit: str | int | None,
        logit_diff: tuple[str | int, str | int] | None,
        logprob: str | int | None,
        against: Reference | None,
        direction: Float[Tensor, "d"] | None,
        layer: int | None,
        hook: str | None,
    ) -> list[tuple[Target, Pos | None]]:
        """All that are named; against is for the logits that do not say themselves what they are held to."""
        texts = [] if target is None else [target] if isinstance(target, str) else list(target)
        plain = [WrittenTarget.of(text).is_plain_logit for text in texts]
        if against is not None and logit is None and not any(plain):
            raise UserError("against says what a logit is held to; name one that does not say so itself")
        found: list[tuple[Target, Pos | None]] = [
            parse_target(self._subject, text, against if own else None) for text, own in zip(texts, plain, strict=True)
        ]
        if logit is not None:
            found.append(make_target(self._subject, logit=logit, against=against))
        if logit_diff is not None:
            found.append(make_target(self._subject, logit_diff=logit_diff))
        if logprob is not None:
            found.append(make_target(self._subject, logprob=logprob))
        if direction is not None:
            found.append(make_target(self._subject, direction=direction, layer=layer, hook=hook))
        elif (layer, hook) != (None, None):
            raise UserError("layer and hook say where a direction is read; what a graph stands on is named by layers")
        return found

    def _circuit_target(
        self,
        target: str | None,
        logit: str | int | None,
        logit_diff: tuple[str | int, str | int] | None,
        against: Reference | None,
        prompt: PromptLike,
    ) -> tuple[Target, Pos | None]:
        """The one target of a circuit; the predicted token where none is named."""
        if target is None and logit is None and logit_diff is None and against is None:
            return predicted_logit(self._subject, self.encode(prompt)), None
        if target is None:
            return make_target(self._subject, logit=logit, logit_diff=logit_diff, against=against)
        if logit is not None or logit_diff is not None:
            raise UserError("a circuit is of one target: name it by target, logit or logit_diff")
        return parse_target(self._subject, target, against)

    def _components(
        self, kind: Grain, prompt: PromptLike, feature: str | None, question: Question, **asked: Any
    ) -> ComponentAttribution:
        target, pos = self._target(feature, question)
        return attribute_components(
            self._subject,
            self.encode(prompt),
            target,
            kind,
            pos=pos,
            **asked,
            settings=_settings(question),
        )


def _labels(
    named: str | Path | Mapping[str, str], pages: Mapping[str, tuple[str, int]], cache_dir: Path | None = None
) -> dict[str, str]:
    """Labels as they are named, with a warning where some could not be had."""
    found = labels_from(named, pages, cache_dir)
    if found.warning:
        warn(found.warning)
    return found.labels


def _several(prompts: Any) -> list[PromptLike]:
    given = [] if is_prompt(prompts) else several(prompts)
    if not given or not all(hasattr(prompt, "__len__") for prompt in given):
        raise UserError("name several prompts, as a list of texts or of lists of ids, or a tokenizer's batch")
    return given


def _settings(question: How) -> Settings:
    return Settings.of(**{key: question[key] for key in How.__annotations__ if key in question})  # type: ignore


@typed
@_without_inference_mode
def load(
    model: str | Path | PreTrainedModel = "smollm2",
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    saes: Any = None,
    layers: Sequence[int] | int | None = None,
    sae_ids: Sequence[str] | str | None = None,
    sae_format: str | None = None,
    dtype: str | torch.dtype | None = None,
    trace_dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    offload_folder: str | Path | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    chat: bool = False,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
) -> LM:
    """A model and the SAEs on it.

    model: ``"smollm2"`` (with the SAEs shipped for it, unless ``saes`` says otherwise), a hub id, a local directory, or
    the transformers model that is there already, with its tokenizer (None: prompts are token ids).
    saes: a sae-lens release (with ``layers`` or ``sae_ids``), a directory or a folder of several, in the format of
    sae-lens, sparsify, dictionary-learning, lm-saes, qwen-scope or circuit-tracer, an SAE object or a list, or ``{17:
    SAE or directory, "17.attn_out": ...}`` where a file does not name its hook.
    sae_format: which of these formats, where the files leave that open. A hub repository is known by its files, too;
    ``sae_ids`` names its folders where it has several.
    dtype: of the model; None is the checkpoint's own, float32 for SmolLM2. trace_dtype: run traces in a higher one;
    "float32" takes away the rounding of a bfloat16 model, a layer at a time.
    device_map, max_memory, offload_folder: share a model out that is bigger than one device, over several, the
    processor's memory and the disk, as transformers' ``from_pretrained`` does (``"auto"``; needs accelerate); a model
    object that accelerate has dispatched is taken as it is. Each layer's weights are fetched when it is passed.
    revision, subfolder: which of a repository's checkpoints. chat: a text is a user's message, written out by the
    tokenizer's chat template.

    The adapter is checked against the model before this returns. Raises UserError for what cannot be loaded.
    """
    return LM(
        load_subject(
            model, tokenizer, saes=saes, layers=layers, sae_ids=sae_ids, sae_format=sae_format, dtype=dtype,
            trace_dtype=trace_dtype, device=device, device_map=device_map, max_memory=max_memory,
            offload_folder=offload_folder, revision=revision, subfolder=subfolder, chat=chat, cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
        )
    )  # fmt: skip


@typed
def evaluate(
    model: LM | str | Path = "smollm2", data: Any = "facts", of: Evaluated = "tokens", **settings: Any
) -> Evaluation:
    """:meth:`LM.evaluate` of a model, or of the one that :func:`load` makes of this name or directory."""
    lm = model if isinstance(model, LM) else load(model)
    return lm.evaluate(data, of, **settings)
