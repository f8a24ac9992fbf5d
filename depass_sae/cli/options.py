"""The options of the commands, and the groups of options that several commands share.

An option is a type that Typer reads. A group is a dataclass of options; a command that takes one has an option for each
of its fields (:func:`spelled_out`).
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..arguments import NUMBER, whole_in
from ..errors import UserError
from ..files import expanded
from ..passes import DEFAULT_RULE

if TYPE_CHECKING:
    from ..api import LM
    from ..index.index import Index
    from ..models.prompt import PromptLike
    from ..passes.forward import Allocation

Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="The text to look at.", show_default=False)]
Ids = Annotated[
    str | None, typer.Option("--ids", help="Token ids instead of a text, e.g. '0 12 7', taken exactly as they are.")
]
PromptsFile = Annotated[
    Path | None, typer.Option("--prompts", help="A file of texts, one a line, or .jsonl with a text each.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="smollm2, a hub id, or a local directory.", show_default="smollm2"),
]
Sae = Annotated[
    str | None,
    typer.Option(
        "--sae",
        help="A sae-lens release, or a directory or hub repository in one of --sae-format's formats. "
        "Default: those of smollm2.",
    ),
]
SaeFormat = Annotated[
    str | None,
    typer.Option(
        "--sae-format",
        help="Of the directory or hub repository: sae-lens, sparsify, dictionary-learning, lm-saes, qwen-scope or "
        "circuit-tracer.",
        show_default="by its files",
    ),
]
SaeId = Annotated[
    list[str] | None,
    typer.Option("--sae-id", help="Which SAE of the release, or folder of the repository; may be repeated."),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="The model's dtype. Default: the checkpoint's own.")]
TraceDtype = Annotated[
    str | None,
    typer.Option("--trace-dtype", help="Run the trace in a higher dtype, to take a bfloat16 model's rounding away."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ... Default: cuda where there is one.")
]
CacheDir = Annotated[
    str | None, typer.Option("--cache-dir", help="Where SmolLM2's converted copy is kept.", envvar="DEPASS_SAE_CACHE")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model's repository brings along.")]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="A branch, tag or commit of the model's repository.", show_default=False),
]
Subfolder = Annotated[
    str | None, typer.Option("--subfolder", help="Where in its repository the model is.", show_default=False)
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="auto: share a large model out over all devices, this machine's memory and the disk (needs accelerate).",
        show_default=False,
    ),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option("--max-memory", help="How much of a device it may take, e.g. cpu=6GiB or 0=20GiB; may be repeated."),
]
OffloadFolder = Annotated[
    str | None,
    typer.Option("--offload-folder", help="Where weights lie for which the memory is too small.", show_default=False),
]
Chat = Annotated[bool, typer.Option("--chat", help="The prompt is a user's message: use the model's chat template.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Feature = Annotated[
    str | None,
    typer.Option("--feature", "-f", help="LAYER/INDEX, e.g. 17/1208, or 17/1208@6 for position 6.", show_default=False),
]
Logit = Annotated[str | None, typer.Option("--logit", help="A token's logit instead of a feature, e.g. ' Paris'.")]
HeldAgainst = Annotated[
    str | None,
    typer.Option(
        "--against",
        help="What logits are held to: mean (the vocabulary's), rivals (the likeliest other tokens), or tokens, "
        "' Rome',' London'.",
        show_default=False,
    ),
]
LogitDiff = Annotated[
    tuple[str, str] | None,
    typer.Option("--logit-diff", help="The difference of two tokens' logits.", metavar="TOKEN TOKEN"),
]
Pos = Annotated[
    str | None,
    typer.Option(
        "--pos",
        help="max: where the feature is strongest (default); all: wherever it fires; N: position N. "
        "A logit is read at the last position unless this says otherwise.",
        show_default=False,
    ),
]
RULES = "half, softmax (the paper's), linear, linear-norm, relu, max or half-qk."
RuleName = Annotated[str | None, typer.Option("--rule", help=RULES, show_default=DEFAULT_RULE)]
ByToken = Annotated[
    bool,
    typer.Option(
        "--by-token", help="Also split each head by the token that it came from (rules half, linear, half-qk)."
    ),
]
Directions = Annotated[
    list[str] | None,
    typer.Option("--direction", help="A feature whose decoder direction is a subspace; may be repeated."),
]
Matrix = Annotated[
    Path | None, typer.Option("--matrix", help="A safetensors file: each tensor's rows [n, d_model] span a subspace.")
]
At = Annotated[
    str | None, typer.Option("--at", help="Where the subspaces lie, e.g. 17.resid_post. Default: the directions' SAE.")
]
Rank = Annotated[int | None, typer.Option("--rank", help="Keep so many dimensions of each subspace.", min=1)]
Temperature = Annotated[float, typer.Option("--temperature", help="Of the softmax rule.")]
QKShare = Annotated[
    float, typer.Option("--qk-share", help="Of half-qk: how much of a score its query and its key each have.")
]
QKSlope = Annotated[
    str, typer.Option("--qk-slope", help="Of half-qk: how attention follows a score, local or mean (from none to it).")
]
FirstToken = Annotated[
    str, typer.Option("--first-token", help="skip or compete: whether position 0 takes part at later positions.")
]
GatePath = Annotated[str, typer.Option("--path", help="Of a gated SAE: magnitude or gate.")]
Memory = Annotated[
    str | None, typer.Option("--memory", help="How much the pass may take, e.g. 4GiB. Default: half of what is free.")
]
By = Annotated[str, typer.Option("--by", help="token, word or sentence.")]
Ablate = Annotated[
    int, typer.Option("--ablate", help="--measure replace with exactly this many random tokens for every source.")
]
ReplaceFrom = Annotated[
    Path | None,
    typer.Option("--replace-from", help="A file of text whose tokens are the random ones. Default: text of our own."),
]
Seed = Annotated[int, typer.Option("--seed", help="Of the random replacements.")]
Generate = Annotated[int, typer.Option("--generate", help="Write so many tokens on, before and after.")]
DrawTemperature = Annotated[
    float, typer.Option("--temperature", help="Draw what is written at this temperature; 0: the likeliest each time.")
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw among so many of the likeliest tokens.")]
DrawSeed = Annotated[int, typer.Option("--seed", help="Of the draws, the same before and after.")]
MeasureName = Annotated[
    str | None,
    typer.Option(
        "--measure",
        help="Also measure what taking sources out really does: shapley (values that sum to the pre-activation) or "
        "replace (each alone).",
    ),
]
MeasureError = Annotated[
    float, typer.Option("--measure-error", help="Measure until standard errors are this share of the pre-activation.")
]
MeasureSeconds = Annotated[float, typer.Option("--measure-seconds", help="Or until so much time is up.")]
MeasureHeads = Annotated[int, typer.Option("--measure-heads", help="How many of the largest heads are measured.")]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="A text whose mean stands in for a head that is out. Default: the prompt."),
]
Removal = Annotated[
    str,
    typer.Option("--removal", help="How --measure takes sources out: text (random tokens), delete, or mask:TOKEN."),
]
ByDepth = Annotated[
    bool, typer.Option("--by-depth", help="Also how each source's share grows layer by layer, on the residual stream.")
]
Against = Annotated[str | None, typer.Option("--against", help="A second prompt, side by side: what differs.")]
Top = Annotated[int, typer.Option("--top", help="How many rows to name.", min=1)]
TopOfEach = Annotated[
    int | None,
    typer.Option("--top", help="How many rows to name; with --prompts no table without it.", min=1, show_default="12"),
]
Layer = Annotated[int | None, typer.Option("--layer", "-l", help="Only the SAE of this layer.")]
Sort = Annotated[
    str,
    typer.Option(
        "--sort", help="activation, or specific: activation minus the feature's own mean over the prompt's positions."
    ),
]
Effects = Annotated[
    bool,
    typer.Option(
        "--effects",
        help="Also what the target loses without each part, to first order, with attention, norms and MLPs live.",
    ),
]
PartSort = Annotated[
    str,
    typer.Option(
        "--sort",
        help="abs: by size of contribution; contribution: most positive first; effect: by size of effect.",
    ),
]
WRITTEN = (
    "17/1208@6, logit:' Paris', logit:' Paris' against rivals (mean, or tokens), logit:' Paris'+' France' (the sum), "
    "logit-diff:' Mary',' John', logprob:' Paris' or direction:17.resid_post:FILE.npy (.safetensors)"
)
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        help=f"{WRITTEN}; may be repeated. Default: the top predictions, over the vocabulary's mean.",
        show_default=False,
    ),
]
Target = Annotated[
    str | None, typer.Option("--target", "-t", help=f"The target as a text: {WRITTEN}.", show_default=False)
]
Outs = Annotated[
    list[Path] | None,
    typer.Option(
        "--out", "-o", help="FILE.html, .md, .json, .csv, .tsv, .parquet, .tex, .png, .svg or .pdf; may be repeated."
    ),
]
GraphOuts = Annotated[
    list[Path] | None,
    typer.Option("--out", "-o", help="FILE.json, .graphml, .html, .png, .svg or .pdf; may be repeated."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="json, graphml, html or neuronpedia, whatever the file is called; or circuit-tracer, with the folder that "
        "its viewer serves as --out.",
    ),
]
Layers = Annotated[
    list[int] | None, typer.Option("--layer", "-l", help="Only the SAEs of these layers; may be repeated.")
]
GraphLayers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "-l",
        help="Only the SAEs and transcoders of these layers, or one by its hook, such as 17.mlp_out; may be repeated.",
    ),
]
MaxNodes = Annotated[int, typer.Option("--max-nodes", help="How large the graph is grown.")]
MaxDrawn = Annotated[
    int | None,
    typer.Option(
        "--max-drawn",
        help="Nodes that a picture has at most; what is left out joins the remainders.",
        show_default="40",
        min=1,
    ),
]
Threshold = Annotated[float | None, typer.Option("--node-threshold", help="Keep this share of the nodes' influence.")]
EdgeThreshold = Annotated[float, typer.Option("--edge-threshold", help="Keep this share of the edges' influence.")]
GrowBy = Annotated[
    str,
    typer.Option("--grow", help="By what nodes join: weight (what flows), effect (and where heads looked), or both."),
]
ErrorsOption = Annotated[str, typer.Option("--errors", help="roots, or through: follow SAE errors further upstream.")]
WithHeads = Annotated[bool, typer.Option("--heads", help="Also through which heads each node got what it has.")]
Pairs = Annotated[
    int | None,
    typer.Option(
        "--pairs",
        show_default="10 with --format neuronpedia, else 0",
        help="Of so many nodes, the most influential: which queries and keys decided looks.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option("--labels", help="What features mean: a .csv or .json file, an index, or neuronpedia (its API)."),
]
LabelFile = Annotated[
    str | None, typer.Option("--labels", help="What features mean: a .csv or .json file, or an index.")
]
IndexOption = Annotated[
    Path | None, typer.Option("--index", help="The folder of an index, as scan makes it.", show_default=False)
]
ContextsOption = Annotated[
    Path | None,
    typer.Option(
        "--index",
        help="The folder of an index: graphs show where features fire most, and its labels.",
        show_default=False,
    ),
]
Cards = Annotated[
    str | None,
    typer.Option(
        "--cards",
        help="Where the index is being looked at (depass-sae browse): the page's nodes link to their cards there.",
        show_default=False,
    ),
]
Grouped = Annotated[bool, typer.Option("--group", help="Group features that say the same thing into supernodes.")]

# --------------------------------------------------------------------------------------- options that commands share


@dataclass(frozen=True)
class Loading:
    """Which model and SAEs, and how."""

    model: Model = None
    sae: Sae = None
    sae_id: SaeId = None
    sae_format: SaeFormat = None
    dtype: Dtype = None
    trace_dtype: TraceDtype = None
    device: Device = None
    cache_dir: CacheDir = None
    trust_remote_code: Trust = False
    revision: Revision = None
    subfolder: Subfolder = None
    device_map: DeviceMap = None
    max_memory: MaxMemory = None
    offload_folder: OffloadFolder = None
    chat: Chat = False

    @property
    def kept(self) -> Path | None:
        """The folder of what is kept between calls. Raises UserError for a path that is none."""
        return None if self.cache_dir is None else expanded(self.cache_dir)

    def load(self, status: Callable[[str], None], layers: list[int] | None) -> LM:
        """layers: of the SAEs; an empty list for none, None for whichever there are."""
        if self.sae_id and self.sae is None:
            raise UserError("--sae-id chooses from a release: name that with --sae")
        if self.sae_format and self.sae is None:
            raise UserError("--sae-format says how a directory is to be read: name that with --sae")
        model = "smollm2" if self.model is None else self.model
        status(f"loading {model}")
        from ..api import load

        lm = load(
            model,
            saes={} if layers == [] else self.sae,
            layers=None if self.sae_id else layers or None,
            sae_ids=self.sae_id or None,
            sae_format=self.sae_format,
            dtype=self.dtype,
            trace_dtype=self.trace_dtype,
            device=self.device,
            cache_dir=self.kept,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            subfolder=self.subfolder,
            device_map=self.device_map,
            max_memory=_memory(self.max_memory),
            offload_folder=self.offload_folder,
            chat=self.chat,
        )
        _collect_from_here_on()
        return lm


def _collect_from_here_on() -> None:
    """Where a command put garbage collection off: it begins now, and passes over what is there, which stays.

    Python's end would look through all that once more, too. In a process that goes on after a command nothing changes.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _memory(given: list[str] | None) -> dict[int | str, str] | None:
    """``cpu=6GiB``, ``0=20GiB``: how much of each device. Raises UserError for what says no device or no size."""
    pairs = [text.partition("=") for text in given or ()]
    if wrong := [f"{device}{sign}{size}" for device, sign, size in pairs if not (device and size)]:
        raise UserError(f"--max-memory is a device and how much of it, such as cpu=6GiB or 0=20GiB, not {wrong[0]!r}")
    return {int(device) if device.isdecimal() else device: size for device, _, size in pairs} or None


class Texts(tuple[str, ...]):
    """The texts of a file of prompts."""


@dataclass(frozen=True)
class PromptOptions:
    """One prompt, or a file of them."""

    prompt: Prompt = None
    ids: Ids = None
    prompts: PromptsFile = None

    def read(self) -> PromptLike | Texts:
        """Raises UserError for a prompt beside a file, for neither, and for a file that has no texts."""
        if self.prompts is None:
            return prompt_of(self.prompt, self.ids, ", or a file of texts with --prompts")
        if self.prompt is not None or self.ids is not None:
            raise UserError("--prompts names a file of texts, and --prompt or --ids one of their own; give one of them")
        from ..report.prompts import read_prompts

        return Texts(read_prompts(self.prompts))


@dataclass(frozen=True)
class QuestionOptions:
    """What every attribution is asked about."""

    feature: Feature = None
    pos: Pos = None
    logit: Logit = None
    logit_diff: LogitDiff = None
    target: Target = None
    path: GatePath = "magnitude"

    @property
    def named_feature(self) -> str | None:
        """The feature that it is about, by whichever option."""
        from ..attribution.targets import WrittenTarget

        return self.feature if self.target is None else WrittenTarget.of(self.target).named.get("feature")

    @property
    def layers(self) -> list[int]:
        """Of the SAEs that it needs: only that which is asked for is loaded, and a logit needs none."""
        from ..attribution.targets import WrittenFeature

        return [] if self.named_feature is None else [WrittenFeature.of(self.named_feature).layer]

    def keywords(self, ids: str | None) -> dict[str, Any]:
        """As keywords of ``lm.attribute_...``, the feature left out. ids: of the prompt, where it is given so."""
        if sum(target is not None for target in (self.feature, self.logit, self.logit_diff, self.target)) != 1:
            raise UserError(
                "name one target: --feature LAYER/INDEX, --logit TOKEN, --logit-diff TOKEN TOKEN, or --target with any "
                "of these as a text, a log-probability or a direction"
            )
        from ..attribution.targets import check_path

        check_features([] if self.feature is None else [self.feature])
        check_path(self.path, self.named_feature)
        return {
            **logits_of(self.logit, self.logit_diff, ids),
            "target": self.target,
            "pos": position_of(self.pos),
            "path": self.path,
        }


@dataclass(frozen=True)
class HowOptions:
    """How a question is worked on."""

    rule: RuleName = None
    temperature: Temperature = 0.1
    first_token: FirstToken = "skip"
    qk_share: QKShare = 0.5
    qk_slope: QKSlope = "local"
    memory: Memory = None

    @property
    def allocation(self) -> Allocation:
        return allocation_of(self.rule, self.temperature, self.first_token, self.qk_share, self.qk_slope)

    def keywords(self) -> dict[str, Any]:
        """As keywords of every method that asks. Raises UserError for a rule or a memory that there is not."""
        allocation = self.allocation
        check_memory(self.memory)
        return {
            "rule": self.rule,
            "temperature": allocation.temperature,
            "first_token": allocation.first_token,
            "qk_share": allocation.qk_share,
            "qk_slope": allocation.qk_slope,
            "memory": self.memory,
        }


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured beside the contributions."""

    measure: MeasureName = None
    measure_error: MeasureError = 0.05
    measure_seconds: MeasureSeconds = 60.0
    removal: Removal = "text"
    ablate: Ablate = 0
    seed: Seed = 0
    replace_from: ReplaceFrom = None

    def keywords(self) -> dict[str, Any]:
        """As keywords. Raises UserError for what cannot be measured."""
        from ..attribution.measure import Measure

        found = asdict(self)
        Measure(**found)
        return found


@dataclass(frozen=True)
class WritingOptions:
    """How the live model goes on behind a prompt."""

    generate: Generate = 0
    temperature: DrawTemperature = 0.0
    top_k: TopK = None
    seed: DrawSeed = 0

    def keywords(self) -> dict[str, Any]:
        """As keywords. Raises UserError for what cannot be written."""
        from ..attribution.writing import Writing

        found = asdict(self)
        Writing(**found)
        return found


@dataclass(frozen=True)
class HeadMeasureOptions:
    """What is measured beside heads' contributions."""

    measure: MeasureName = None
    measure_error: MeasureError = 0.05
    measure_seconds: MeasureSeconds = 60.0
    measure_heads: MeasureHeads = 24
    reference: Reference = None
    seed: Seed = 0

    def keywords(self) -> dict[str, Any]:
        """As keywords. Raises UserError for what cannot be measured."""
        from ..attribution.measure_heads import HeadMeasure

        found = asdict(self)
        HeadMeasure(**found)
        return found


@dataclass(frozen=True)
class RankOptions:
    """What is told of a model's parts, and which of them first."""

    effects: Effects = False
    sort: PartSort = "abs"

    def keywords(self) -> dict[str, Any]:
        """As keywords of ``lm.attribute_heads`` and its like. Raises UserError for an order that there is not."""
        from ..attribution.components import check_order

        check_order(self.sort)
        return {"effects": self.effects, "sort": self.sort}


@dataclass(frozen=True)
class OutOptions:
    """Where an answer goes."""

    out: Outs = None
    as_json: AsJson = False

    @property
    def paths(self) -> list[Path]:
        return self.out or []

    def check(self, result: type) -> None:
        """Raises UserError, before the work, for a file that could not be written. result: what is to be written."""
        from ..view.shown import check_out

        for path in self.paths:
            check_out(path, result)


def spelled_out(command: Callable[..., None]) -> Callable[..., None]:
    """A command with one option for every field of the groups above that it takes, which is how Typer wants them."""
    types, parameters = get_type_hints(command, include_extras=True), []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in signature(command).parameters.items():
        group = types[name]
        if not is_dataclass(group):
            parameters.append(parameter.replace(annotation=group, kind=Parameter.KEYWORD_ONLY))
            continue
        options = get_type_hints(group, include_extras=True)
        groups[name] = (group, [field.name for field in fields(group)])
        parameters += [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=options[field.name])
            for field in fields(group)
        ]

    @wraps(command)
    def run(**given: Any) -> None:
        made = {name: group(**{key: given.pop(key) for key in keys}) for name, (group, keys) in groups.items()}
        command(**given, **made)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return run


# ------------------------------------------------------------------------------------------------------ reading them


def prompt_of(prompt: str | None, ids: str | None, or_else: str = "") -> PromptLike:
    """The prompt that --prompt or --ids gives. Raises UserError for both, for neither, and for ids that are none.

    or_else: what may be given instead of either.
    """
    if (prompt is None) == (ids is None):
        raise UserError(f"give the text to look at with --prompt, or its token ids with --ids{or_else}")
    if prompt == "":
        raise UserError("the prompt is empty")
    if prompt is not None:
        return prompt
    words = re.split(r"[\s,]+", (ids or "").strip("[], \t\n"))
    found = [number for word in words if (number := whole_in(word)) is not None]
    if len(found) < len(words):
        raise UserError(f"--ids takes numbers, e.g. '0 12 7', not {ids!r}")
    return found


def logits_of(logit: str | None, logit_diff: tuple[str, str] | None, ids: str | None) -> dict[str, Any]:
    """--logit and --logit-diff as keywords. A prompt of ids takes its logits as ids, too."""

    def token(text: str) -> int | str:
        return text if ids is None else number_or_text(text)

    return {
        "logit": None if logit is None else token(logit),
        "logit_diff": None if logit_diff is None else (token(logit_diff[0]), token(logit_diff[1])),
    }


def against_of(text: str | None, given: bool) -> Any:
    """What --against says. given: whether there is a logit that it could go with."""
    from ..attribution.targets import written_against

    if text is not None and not given:
        raise UserError("--against says what a logit is held to: name one, by --logit or --target")
    return None if text is None else written_against(text)


def position_of(text: str | None) -> Any:
    """What --pos says. Raises UserError for what is no position."""
    if text is None or text in ("max", "all"):
        return text
    number = number_or_text(text)
    if not isinstance(number, int):
        raise UserError(f"--pos takes max, all or a position, not {text!r}")
    return number


def check_pos_of_several(question: QuestionOptions, known: Sequence[str]) -> None:
    """Raises UserError for a position of one prompt, where several are asked."""
    from ..attribution.targets import WrittenTarget

    placed = question.target is not None and WrittenTarget.of(question.target).is_placed
    written = "@" in (question.feature or "") or placed
    if question.pos not in (None, *known) or written:
        named = "no LAYER/INDEX@POS" if written else f"not --pos {question.pos}"
        raise UserError(f"with --prompts a target is read at --pos {' or '.join(known)} of each prompt, {named}")


def number_or_text(text: str) -> int | str:
    return int(text) if re.fullmatch(f"-?{NUMBER}", text) else text


# --------------------------------------------------------------- what is wrong whatever the model, before it is loaded


def check_features(features: Sequence[str], *, pos: bool = True) -> None:
    """Raises UserError for a text that is no feature; pos: whether it may name a position."""
    from ..attribution.targets import WrittenFeature

    for text in features:
        WrittenFeature.of(text, pos=pos)


def allocation_of(
    rule: str | None, temperature: float, first_token: str, qk_share: float = 0.5, qk_slope: str = "local"
) -> Allocation:
    """Raises UserError for a rule that there is not, or for settings that cannot be."""
    from ..passes.forward import Allocation

    name = DEFAULT_RULE if rule is None else rule
    return Allocation(name, temperature, first_token, qk_share, qk_slope)  # type: ignore[arg-type]


def check_memory(memory: str | None) -> None:
    """Raises UserError for what is no amount of memory."""
    from ..passes.memory import Budget

    Budget.of(memory)


def meanings_of(labels: Any) -> Any:
    """Labels from a file are read before the work, not after it; Neuronpedia is asked when it is known what for."""
    from ..labels.files import read_labels

    return labels if labels in (None, "neuronpedia") or not isinstance(labels, str) else read_labels(labels)


def opened_index(folder: Path | None) -> Index | None:
    """The index that is asked for. Raises UserError, before the work, where there is none."""
    from ..index.index import open_index

    return None if folder is None else open_index(folder)
