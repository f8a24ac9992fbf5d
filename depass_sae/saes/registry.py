"""Every SAE of sae-lens's registry, and whether it can be used here. No network, and sae-lens is not imported.

The registry names releases and paths. What an SAE reads and how it encodes is what sae-lens's loader for its release
makes of them (``CONFIGURATIONS``, a function for each of its converters). Where that loader reads a file on the hub,
``assumed.yaml`` stands in for the file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..models.load import FAMILIES
from ..models.place import Place
from .direction import not_affine
from .hook import hook_in
from .model_types import model_type_of
from .release import close_to, layer_of_id
from .scale import not_normalised
from .stands import SUMMED, SUMMING, standing

ASSUMED = Path(__file__).with_name("assumed.yaml")
FOLDED_ONCE = "expected_average_only_in"
"""The normalisation that sae-lens folds into the weights where the registry has the factor."""


@dataclass(frozen=True)
class ListedSAE:
    """An SAE of the registry as sae-lens loads it, as far as that decides whether and how it is read.

    None for what only a file on the hub can tell. reshapes_hook_z: whether it takes heads apart by itself; centred:
    whether it was trained on a stream without its mean; summed: whether it is a layer of a cross-layer transcoder whose
    decoders are summed.
    """

    release: str
    sae_id: str
    model: str
    model_type: str | None
    architecture: str | None
    hook_name: str | None
    hf_hook_name: str | None = None
    normalize_activations: str = "none"
    apply_b_dec_to_input: bool = False
    reshapes_hook_z: bool = False
    centred: bool = False
    summed: bool = False

    @property
    def hook(self) -> Place:
        """Where it reads. Raises UserError for what is no read point."""
        return hook_in(self.metadata, str(self.architecture))

    @property
    def metadata(self) -> dict[str, Any]:
        named = {"model_name": self.model, "hook_name": self.hook_name, "hf_hook_name": self.hf_hook_name}
        return {**named, SUMMED: self.summed}


@dataclass(frozen=True)
class Release:
    """A release of the registry."""

    name: str
    model: str
    model_type: str | None
    repository: str
    saes: tuple[ListedSAE, ...]


@cache
def registry() -> dict[str, Release]:
    """The releases by their names, in the registry's order."""
    import yaml

    with (_sae_lens() / "pretrained_saes.yaml").open("rb") as listed, ASSUMED.open("rb") as assumed:
        releases = yaml.load(listed, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        rows = yaml.safe_load(assumed)
    return {name: _release(name, entry, rows.get(name, {})) for name, entry in releases.items()}


def release_named(name: str) -> Release:
    """Raises UserError for a name that the registry does not have."""
    if name not in registry():
        raise UserError(f"sae-lens's registry has no release {name!r}{close_to(name, registry())}")
    return registry()[name]


def why_not(sae: ListedSAE) -> str | None:
    """Why an SAE cannot be used, in a line; None if it can."""
    if sae.architecture is None or sae.hook_name is None:
        return "what it is stands only in its file on the hub: load it to see"
    if sae.model_type is None:
        return f"it is not known what kind of model {sae.model} is"
    if not any(sae.model_type in family.model_types for family in FAMILIES):
        return f"models of type {sae.model_type} are not supported"
    try:
        _ = sae.hook
    except UserError as error:
        return str(error)
    return not_affine(sae.architecture) or not_normalised(sae.normalize_activations)


def why_no_layer(sae: ListedSAE) -> str | None:
    """Why an SAE cannot be a layer of a feature-flow graph, in a line; None if it can."""
    if (why := why_not(sae)) is not None:
        return why
    try:
        standing(sae.hook, str(sae.architecture), sae.metadata)
    except UserError as error:
        return str(error)
    return None


def _sae_lens() -> Path:
    """Where sae-lens is installed: importing it takes seconds."""
    spec = find_spec("sae_lens")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("sae-lens is not installed, whose registry this is about: pip install sae-lens")
    return Path(spec.submodule_search_locations[0])


def _release(name: str, entry: Mapping[str, Any], assumed: Mapping[str, Any]) -> Release:
    model, repository = str(entry["model"]), str(entry["repo_id"])
    configure = CONFIGURATIONS.get(entry.get("conversion_func") or "sae_lens")
    overrides = entry.get("config_overrides") or {}
    saes = []
    for sae in entry["saes"]:
        listed = Entry(str(sae["id"]), str(sae["path"]), repository, assumed)
        config = {} if configure is None else {**configure(listed), **overrides}
        saes.append(_listed(name, model, listed, config, "norm_scaling_factor" in sae))
    return Release(name, model, model_type_of(model), repository, tuple(saes))


# --- what sae-lens's loaders make of an entry ---------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """An SAE as the registry has it, and what is assumed of its release's files."""

    sae_id: str
    path: str
    repository: str
    assumed: Mapping[str, Any]

    @property
    def layer(self) -> int:
        found = layer_of_id(self.sae_id)
        return 0 if found is None else found

    @property
    def assumed_hook(self) -> str | None:
        hook = self.assumed.get("hook")
        return None if hook is None else str(hook).format(layer=self.layer)


def _listed(release: str, model: str, entry: Entry, config: Mapping[str, Any], has_factor: bool) -> ListedSAE:
    """As sae-lens completes a configuration, and folds its normalisation."""
    hook_name, norm = config.get("hook_name"), config.get("normalize_activations") or "none"
    kwargs = config.get("model_from_pretrained_kwargs") or {}
    reshapes = config.get("reshape_activations", "hook_z" if "hook_z" in (hook_name or "") else "none")
    return ListedSAE(
        release,
        entry.sae_id,
        model,
        model_type_of(model),
        config.get("architecture"),
        hook_name,
        config.get("hf_hook_name"),
        "none" if norm == FOLDED_ONCE and has_factor else norm,
        config.get("apply_b_dec_to_input", True),
        reshapes == "hook_z",
        bool(kwargs.get("center_writing_weights")),
        bool(config.get(SUMMED)),
    )


def _own_format(entry: Entry) -> dict[str, Any]:
    """Ids are hooks, with a width behind them where a hook has several SAEs."""
    hook = re.match(r"blocks\.\d+\.hook_[a-z_]*[a-z]", entry.sae_id)
    return {"hook_name": None if hook is None else hook[0], **entry.assumed}


def _connor_rob_hook_z(entry: Entry) -> dict[str, Any]:
    return {
        "architecture": "standard",
        "hook_name": entry.assumed_hook,
        "apply_b_dec_to_input": True,
        "reshape_activations": "hook_z",
    }


def _gemma_2(entry: Entry) -> dict[str, Any]:
    if "res" in entry.repository:
        hook = "hook_embed" if "embedding" in entry.path else f"blocks.{entry.layer}.hook_resid_post"
    else:
        hook = f"blocks.{entry.layer}.{'hook_mlp_out' if 'mlp' in entry.repository else 'attn.hook_z'}"
    return {"architecture": "jumprelu", "hook_name": hook, "apply_b_dec_to_input": False}


def _gemma_2_transcoder(entry: Entry) -> dict[str, Any]:
    hook = f"blocks.{entry.layer}.ln2.hook_normalized"
    return {"architecture": "jumprelu_transcoder", "hook_name": hook, "apply_b_dec_to_input": False}


# part of a path: (TransformerLens's name as sae-lens writes it, transformers' name)
GEMMA_3_HOOKS = {
    "resid_post": ("hook_resid_post", "output"),
    "attn_out": ("attn.hook_z", "self_attn.o_proj.input"),
    "mlp_out": ("hook_mlp_out", "post_feedforward_layernorm.output"),
    "transcoder": ("hook_mlp_in", "pre_feedforward_layernorm.output"),
    "clt": ("hook_mlp_in", "pre_feedforward_layernorm.output"),
}


def _gemma_3(entry: Entry) -> dict[str, Any]:
    part = next(part for part in GEMMA_3_HOOKS if part in entry.path)
    lens, hugging_face = GEMMA_3_HOOKS[part]
    transcoder = "jumprelu_skip_transcoder" if "affine" in entry.path else "jumprelu_transcoder"
    return {
        "architecture": transcoder if part in ("transcoder", "clt") else "jumprelu",
        "hook_name": f"blocks.{entry.layer}.{lens}",
        "hf_hook_name": f"model.layers.{entry.layer}.{hugging_face}",
        "apply_b_dec_to_input": False,
        "reshape_activations": "none",
    }


def _llama_scope(entry: Entry) -> dict[str, Any]:
    return {
        "architecture": "jumprelu",
        "hook_name": entry.assumed_hook,
        "apply_b_dec_to_input": False,
        "normalize_activations": FOLDED_ONCE,
    }


def _dictionary_learning(entry: Entry) -> dict[str, Any]:
    """BatchTopK and its matryoshka arrive as jumprelu, and subtract b_dec like all that this release format has."""
    hook = f"blocks.{entry.layer}.hook_resid_post"
    return {"hook_name": hook, "apply_b_dec_to_input": True, **entry.assumed}


def _residual_stream(architecture: str, hf: str | None = None) -> Callable[[Entry], dict[str, Any]]:
    def configure(entry: Entry) -> dict[str, Any]:
        return {
            "architecture": architecture,
            "hook_name": f"blocks.{entry.layer}.hook_resid_post",
            "hf_hook_name": None if hf is None else hf.format(layer=entry.layer),
            "apply_b_dec_to_input": False,
        }

    return configure


def _mwhanna_transcoder(entry: Entry) -> dict[str, Any]:
    hook = f"blocks.{entry.layer}.mlp.hook_in"
    return {"architecture": "transcoder", "hook_name": hook, "apply_b_dec_to_input": False}


def _mntss_clt_layer(entry: Entry) -> dict[str, Any]:
    """A layer of a cross-layer transcoder, its decoders summed."""
    return {
        "architecture": "transcoder",
        "hook_name": entry.assumed_hook,
        "apply_b_dec_to_input": False,
        SUMMED: True,
    }


def _temporal(entry: Entry) -> dict[str, Any]:
    return _residual_stream("temporal")(entry) | {
        "apply_b_dec_to_input": True,
        "normalize_activations": "constant_scalar_rescale",
    }


CONFIGURATIONS: dict[str, Callable[[Entry], dict[str, Any]]] = {
    "sae_lens": _own_format,
    "connor_rob_hook_z": _connor_rob_hook_z,
    "gemma_2": _gemma_2,
    "gemma_2_transcoder": _gemma_2_transcoder,
    "gemma_3": _gemma_3,
    "llama_scope": _llama_scope,
    "llama_scope_r1_distill": _llama_scope,
    "dictionary_learning_1": _dictionary_learning,
    "deepseek_r1": _residual_stream("standard"),
    "goodfire": _residual_stream("standard"),
    "qwen_scope": _residual_stream("topk", "model.layers.{layer}"),
    "mwhanna_transcoder": _mwhanna_transcoder,
    SUMMING: _mntss_clt_layer,
    "temporal": _temporal,
}
