"""Models by hub id, local directory, ``"smollm2"``, or as the object that a notebook already has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError, warn
from ..files import check_place, expanded
from .adapter import Adapter
from .families import FAMILIES
from .kinds import DEQUANTIZED, quantization, refuse_quantized, refuse_unreadable
from .sizes import check_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNREACHABLE = {  # what the hub's client raises, whichever HTTP library it is built on
    *("ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError"),
    *("OfflineModeIsEnabled", "LocalEntryNotFoundError"),
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
_LAYER = re.compile(r"(?:model\.|transformer\.)?(?:layers|h)\.(\d{1,9})\.")
_ADAPTER = "adapter_config.json"
_ONLY_ADAPTER = (
    "{} holds a PEFT adapter beside a model's weights; load it with AutoPeftModelForCausalLM.from_pretrained(...) and "
    "hand over what its merge_and_unload() returns"
)


@dataclass(frozen=True)
class Checkpoint:
    """Which of a repository's checkpoints, and where its weights go: transformers' own settings, by their names."""

    revision: str | None = None
    subfolder: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    max_memory: Mapping[Any, Any] | None = None
    offload_folder: str | Path | None = None

    @property
    def files(self) -> dict[str, str]:
        """Which files."""
        found = {"revision": self.revision, "subfolder": self.subfolder}
        return {name: value for name, value in found.items() if value is not None}

    def placed(self, device: torch.device, quantized: bool) -> dict[str, Any]:
        """Where the weights go. Packed ones are put there while they are loaded, and do not move afterwards.

        Raises UserError where accelerate, which places them, is not installed.
        """
        if self.device_map is None and not quantized:
            return {}
        if find_spec("accelerate") is None:
            what = "quantized weights need" if self.device_map is None else "device_map needs"
            raise UserError(f"{what} accelerate, which places weights on devices: pip install accelerate")
        found = {
            "device_map": {"": device} if self.device_map is None else self.device_map,
            "max_memory": None if self.max_memory is None else dict(self.max_memory),
            "offload_folder": None if self.offload_folder is None else str(expanded(self.offload_folder)),
        }
        return {name: value for name, value in found.items() if value is not None}

    def check(self, device: str | torch.device | None) -> None:
        """Raises UserError for settings that do not go together."""
        if self.device_map is not None and device is not None:
            raise UserError("device is one place for the whole model, and device_map shares it out: give one of them")
        if self.device_map is None and (self.max_memory is not None or self.offload_folder is not None):
            raise UserError('max_memory and offload_folder go with a device_map, such as device_map="auto"')
        if self.offload_folder is not None:
            check_place(expanded(self.offload_folder), folder=True)


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer (None: prompts are token ids) and the name that documents give it.

    bos_id: the token to put before a text where the tokenizer itself puts none. chat: whether a text is a user's
    message, and is written out by the tokenizer's chat template. trusted: whether code of its own was run to load it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    bos_id: int | None = None
    chat: bool = False
    checkpoint: Checkpoint = Checkpoint()
    trusted: bool = False


def adapter_for(model: Any) -> Adapter:
    """The model seen through its family's table. Raises UserError for a model that has none, or does not fit it."""
    refuse_unreadable(model)
    return _adapter(model)


def _adapter(model: Any) -> Adapter:
    name = type(model).__name__
    model_type = getattr(getattr(model, "config", None), "model_type", name)
    own_type = getattr(getattr(type(model), "config_class", None), "model_type", model_type)
    if own_type != model_type:
        raise UserError(
            f"the model's config is of type {model_type!r}, but a {name} is of type {own_type!r}; load it with "
            "AutoModelForCausalLM"
        )
    for family in FAMILIES:
        if model_type in family.model_types:
            if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
                raise UserError(f"{name} has no unembedding; load it as AutoModelForCausalLM")
            adapter = Adapter(model, family)
            _read_all(adapter)
            return adapter
    supported = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise UserError(f"models of type {model_type!r} are not supported; supported types are {supported}")


def _read_all(adapter: Adapter) -> None:
    """Raises UserError where a part that the family's table names is not there, or no plain weights."""
    try:
        _ = adapter.vocab_size, adapter.final_norm, adapter.unembed
        for index in range(adapter.n_layers):
            adapter.layer(index)
    except AttributeError as error:
        raise UserError(
            f"this {type(adapter.model).__name__} is not built as transformers builds a "
            f"{adapter.model.config.model_type}: {first_line(error)}"
        ) from error
    if adapter.n_layers < 1:
        raise UserError(f"this {type(adapter.model).__name__} has no layers")


def check_tokenizer(tokenizer: Any, adapter: Adapter, name: str) -> None:
    """Raises UserError for what is no tokenizer; warns of one whose texts can have tokens that the model lacks."""
    if tokenizer is None:
        return
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(
            "a tokenizer is transformers' own, such as AutoTokenizer.from_pretrained(name), not a "
            f"{type(tokenizer).__name__}"
        )
    rows = adapter.vocab_size
    if len(tokenizer) <= rows:
        return
    # A padding token is often added without a row for it, and stands in no prompt.
    beyond = {i for i in tokenizer.get_vocab().values() if i >= rows}.difference(tokenizer.all_special_ids)
    if beyond:
        warn(
            f"the tokenizer has {len(beyond)} tokens that {name} has no embedding for ({rows} rows); does it belong to "
            "another model?"
        )


def dtype_named(name: str | torch.dtype | None) -> torch.dtype | None:
    if name is None:
        return None
    named = str(name).removeprefix("torch.") if isinstance(name, torch.dtype) else name
    if named not in DTYPES:
        raise UserError(f"unknown dtype {named!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[named]


def load_model(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    cache_dir: Path | None = None,
    trust_remote_code: bool = False,
    checkpoint: Checkpoint = Checkpoint(),
) -> Loaded:
    """Load by name: ``"smollm2"``, a GGUF copy of it, a local directory, or a hub id.

    dtype: None is float32 for SmolLM2, else the checkpoint's own. Weights come from safetensors only, never pickles.
    cache_dir: where SmolLM2's converted copy is kept.

    Raises UserError, in one line, for whatever cannot be loaded.
    """
    if not str(name):
        raise UserError("the model has no name: give a hub id or a directory")
    checkpoint.check(device)
    device = usable(device)
    wanted: torch.dtype | str | None = dtype_named(dtype)
    path = expanded(name)
    if str(name) == "smollm2" or (path.suffix == ".gguf"):
        from .smollm2 import BOS_ID, prepare

        if checkpoint.files:
            raise UserError(f"there is one checkpoint of {name}, without a revision or a subfolder")
        directory = prepare(None if str(name) == "smollm2" else path, cache_dir)
        model, tokenizer = _from_pretrained(directory, wanted or torch.float32, trust_remote_code, device, checkpoint)
        return Loaded(model, tokenizer, "smollm2", BOS_ID, checkpoint=checkpoint, trusted=trust_remote_code)
    if path.is_dir() and checkpoint.revision is not None:
        raise UserError(f"{name} is a directory, which has no revisions: those are a hub id's")
    source = _source(name, path)
    model, tokenizer = _from_pretrained(source, wanted or "auto", trust_remote_code, device, checkpoint)
    return Loaded(model, tokenizer, str(name), checkpoint=checkpoint, trusted=trust_remote_code)


def outline(model: Any, *, dtype: str | torch.dtype | None = None, trust_remote_code: bool = False) -> Adapter:
    """A model of which only the config is read: its weights are on the meta device, with shapes and no numbers.

    model: a name as of :func:`load_model`, or a config object. dtype: None is the config's own.

    Raises UserError, in one line, for whatever has no config or is of no supported family.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

    wanted, config = dtype_named(dtype), model
    trust = {"trust_remote_code": trust_remote_code}
    if isinstance(model, str | Path):
        if str(model) == "smollm2" or Path(model).suffix == ".gguf":
            from .smollm2 import SIZES

            config = LlamaConfig(**SIZES)
        else:
            source = _source(model, expanded(model))
            try:
                config = _read_config(source, trust)
                refuse_quantized(source, config)
            except UserError:
                raise
            except Exception as error:
                raise UserError(_explain(source, error)) from error
    if not isinstance(config, PreTrainedConfig):
        raise UserError(f"a model is a name, a directory or transformers' config of one, not a {type(config).__name__}")
    wanted = wanted or getattr(config.get_text_config(), "dtype", None) or config.dtype or torch.float32
    _check_family(config)
    try:
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, dtype=wanted, **trust)
    except Exception as error:
        raise UserError(f"no model can be made of this config: {first_line(error)}") from error
    return _adapter(made.eval())


def _source(name: str | Path, path: Path) -> str | Path:
    """A directory that is there, or else a hub id. Raises UserError for a file, and for a directory that is not."""
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{name} is a file; a model is a directory with config.json and safetensors, or SmolLM2's .gguf"
        )
    if not path.exists() and str(name).startswith((".", "/", "~")):
        raise UserError(f"there is no directory {name}")
    return path if path.is_dir() else str(name)


def usable(device: str | torch.device | None) -> torch.device:
    """None: cuda where there is one. Raises UserError for a device that this machine, or torch, has not."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
    except Exception as error:  # whatever torch raises for one of its many kinds that it was built without
        raise UserError(f"device {str(device)!r} cannot be used here: {first_line(error)}") from error
    if found.type == "meta":
        raise UserError("device 'meta' cannot be used here: it computes nothing")
    return found


def _from_pretrained(
    source: str | Path, dtype: torch.dtype | str, trust_remote_code: bool, device: torch.device, checkpoint: Checkpoint
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = source / (checkpoint.subfolder or "") if isinstance(source, Path) else None
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code, **checkpoint.files}
    try:
        config = _read_config(source, trust, checkpoint)
        _check_family(config)
        refuse_quantized(source, config)
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
            output_loading_info=True,
            **checkpoint.placed(device, quantization(config) not in (None, *DEQUANTIZED)),
            **trust,
        )
        has_tokenizer = directory is None or any((directory / name).is_file() for name in _TOKENIZER_FILES)
        tokenizer = AutoTokenizer.from_pretrained(source, **trust) if has_tokenizer else None
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explain(source, error)) from error
    # transformers fills what a checkpoint lacks with random numbers and only mentions it.
    wrong = sorted([*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])])
    if wrong:
        raise UserError(
            f"the checkpoint of {source} lacks weights or has them in another shape: {', '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        )
    layers = model.config.get_text_config().num_hidden_layers
    beyond = [key for key in info["unexpected_keys"] if (found := _LAYER.match(key)) and int(found[1]) >= layers]
    if beyond:
        raise UserError(f"{source} has {layers} layers by its config.json, and weights of more: {min(beyond)}")
    return model if hasattr(model, "hf_device_map") else model.to(device), tokenizer


def _read_config(source: str | Path, trust: dict[str, Any], checkpoint: Checkpoint = Checkpoint()) -> Any:
    """Of a directory or the hub. Raises UserError for a directory that holds no model, and what the hub raises."""
    from transformers import AutoConfig

    if isinstance(source, Path):
        directory = source / (checkpoint.subfolder or "")
        if (directory / _ADAPTER).is_file():
            raise UserError(_ONLY_ADAPTER.format(directory))
        if not (directory / "config.json").is_file():
            raise UserError(f"{directory} has no config.json, so it is no model directory in the Hugging Face format")
        check_config(directory)
    else:
        _ask_hub_once(source, **checkpoint.files)
    return AutoConfig.from_pretrained(source, **trust)


def _check_family(config: Any) -> None:
    """Raises UserError for a config of no family, and says which there are."""
    if not any(config.model_type in family.model_types for family in FAMILIES):
        _adapter(type("model", (), {"config": config}))


def _ask_hub_once(name: str, revision: str | None = None, subfolder: str | None = None) -> None:
    """Raises at once what keeps a model that is not in the cache from being fetched.

    Left to itself, huggingface_hub tries six times, with up to a minute each, to reach a hub that is not there.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    within = "" if subfolder is None else f"{subfolder}/"
    if isinstance(try_to_load_from_cache(name, f"{within}config.json", revision=revision), str):
        return

    def ask(file: str) -> None:
        get_hf_file_metadata(hf_hub_url(name, f"{within}{file}", revision=revision), timeout=10)

    try:
        ask("config.json")
    except RemoteEntryNotFoundError:
        with suppress(RemoteEntryNotFoundError):
            ask(_ADAPTER)
            raise UserError(_ONLY_ADAPTER.format(name)) from None
        where = "on the hub" if subfolder is None else f"in {subfolder} on the hub"
        raise UserError(f"{name} has no config.json {where}, so it is no model in the Hugging Face format") from None


def _explain(source: str | Path, error: BaseException) -> str:
    """One line for what went wrong while loading, found by walking the chain of causes."""
    from huggingface_hub import errors as hub

    causes = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    names = {type(cause).__name__ for cause in causes}
    text = " ".join(str(cause) for cause in causes)
    if any(isinstance(cause, hub.GatedRepoError) for cause in causes):
        return f"{source} is gated: accept its licence on its page, then log in with `hf auth login` or set HF_TOKEN"
    if any(isinstance(cause, hub.RevisionNotFoundError) for cause in causes):
        return f"{source} has no such revision on the hub; give a branch, a tag or a commit that it has"
    if any(isinstance(cause, hub.RepositoryNotFoundError) for cause in causes):
        return f"the hub has no model {source!r} that you may read; check its name, or log in with `hf auth login`"
    if any(isinstance(cause, hub.HFValidationError) for cause in causes):
        return f"{str(source)!r} is neither a directory nor a hub id (owner/name)"
    if names & _UNREACHABLE:
        return f"{source} is not on this machine and the hub cannot be reached; check the network, or give a directory"
    if "SafetensorError" in names or ("safetensor" in text.lower() and "header" in text.lower()):
        return f"the weights of {source} are damaged or cut short ({first_line(error)}); fetch them again"
    if "trust_remote_code" in text:
        return (
            f"{source} needs code of its own; if you trust it, say so with --trust-remote-code (trust_remote_code=True)"
        )
    if (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "not enough memory" in text
        or "can't allocate" in text
    ):
        return f"there is not enough memory for {source}; try --dtype bfloat16"
    if isinstance(error, KeyError):
        return f"{source} cannot be loaded: its config.json names {error}, which transformers does not know"
    return f"{source} cannot be loaded: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """An error's first line, and the next one where it leads to that."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__
