"""A case study as it is asked for: the options of the command line, or a small YAML file, and the command for both."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import UserError
from ...passes import DEFAULT_RULE
from ...texts import is_hidden, visible

if TYPE_CHECKING:
    from ...models.load import Loaded
    from ...subject import Subject

LABELS_FILE = "labels.json"
"""Where the labels that a study shows are kept, beside its page."""
LOADING = (
    *("model", "sae", "sae_id", "sae_format", "dtype", "trace_dtype", "revision", "subfolder", "trust_remote_code"),
    *("device_map", "max_memory", "offload_folder", "chat"),
)
"""Which of a study's keys say how model and SAEs are loaded."""


class Study(BaseModel):
    """What makes a case study. The keys are the command line's options; ``labels`` may also hold the labels."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    prompt: str | list[int]
    features: list[str] = Field(min_length=1)
    title: str | None = None
    labels: str | dict[str, str] | None = None
    index: str | None = None
    model: str = "smollm2"
    sae: str | None = None
    sae_id: list[str] | None = None
    sae_format: str | None = None
    layer: list[int] | None = None
    dtype: str | None = None
    trace_dtype: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    trust_remote_code: bool = False
    device_map: str | None = None
    max_memory: list[str] | None = None
    offload_folder: str | None = None
    chat: bool = False
    rule: str | None = None
    temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    first_token: str = "skip"
    qk_share: float = Field(default=0.5, gt=0, le=1)
    qk_slope: str = "local"
    ablate: int = Field(default=8, ge=0)
    seed: int = Field(default=0, ge=-(2**63), lt=2**64)
    replace_from: str | None = None
    max_nodes: int = Field(default=120, ge=2)
    verify: int = Field(default=50, ge=0)
    top: int = Field(default=8, ge=1)

    def command(self, *, labelled: bool) -> str:
        """The shell command that makes it again; what is the default is left out.

        labelled: whether there are labels: they are read from the file beside the page, so that they stay the same.
        """
        words = ["depass-sae case-study"]
        if isinstance(self.prompt, str):
            words += [_option("prompt", self.prompt)]
        else:
            words += [_option("ids", " ".join(map(str, self.prompt)))]
        words += [_option("feature", feature) for feature in self.features]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if (
                name in ("prompt", "features", "labels")
                or value == field.default
                or (name, value) == ("rule", DEFAULT_RULE)
            ):
                continue
            words += [_option(name, item) for item in (value if isinstance(value, list) else [value])]
        if labelled:
            words += [_option("labels", LABELS_FILE)]
        return " ".join(words) + " --out case-study"


def _option(name: str, value: Any) -> str:
    """An option with its value, as a shell reads it. One that begins with a dash is tied, or it would be an option."""
    option, word = f"--{name.replace('_', '-')}", str(value)
    if value is True:
        return option
    return f"{option}={_shell(word)}" if word.startswith("-") else f"{option} {_shell(word)}"


def _shell(word: str) -> str:
    """A word for a shell. Characters that are not seen are written as bash and zsh read them: the command is shown."""
    if visible(word, keep="\n\t") == word:
        return shlex.quote(word)
    marked = word.replace("\\", r"\\").replace("'", r"\'")
    return "$'" + "".join(f"\\U{ord(c):08x}" if is_hidden(c) and c not in "\n\t" else c for c in marked) + "'"


def read_study(path: Path) -> Study:
    """The study that a YAML file describes. Raises UserError with one line: where in the file, and what is wrong."""
    from ...plain_yaml import read_yaml

    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"cannot read {path}: a case study is a mapping with prompt and features")
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise UserError(f"cannot read {path}: {_mistake(error)}") from None


def study_of(**options: Any) -> Study:
    """From the command line's options. Raises UserError."""
    try:
        return Study.model_validate(options)
    except ValidationError as error:
        raise UserError(_mistake(error)) from None


def _mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where, known = first["loc"], ", ".join(Study.model_fields)
    if first["type"] == "extra_forbidden":
        return f"there is no key {where[0]!r}; there are {known}"
    if first["type"] == "missing":
        return f"{where[0]} is missing; a case study takes a prompt and features"
    of = {"prompt": "should be a text or a list of token ids", "labels": "should be a file, neuronpedia or a mapping"}
    message = of.get(str(where[0])) or first["msg"].removeprefix("Input ")
    return f"{where[0]} {message}"


def origin(subject: Subject) -> dict[str, Any] | None:
    """The options that load the subject, of :data:`LOADING`.

    None where that cannot be told: a model or SAEs that were made in Python.
    """
    from ...saes import describe

    name, adapter = subject.loaded.name, subject.adapter
    if name == type(adapter.model).__name__:
        return None
    described = [describe(sae) for sae in subject.saes.values()]
    releases = {about["release"] for about in described}
    options: dict[str, Any] = {"model": name, **_checkpoint(subject.loaded)}
    dtype = str(adapter.dtype).removeprefix("torch.")
    if (name, dtype) != ("smollm2", "float32"):
        options["dtype"] = dtype
    if subject.trace_dtype is not None:
        options["trace_dtype"] = str(subject.trace_dtype).removeprefix("torch.")
    if name == "smollm2" and _are_shipped(subject):
        return options
    if len(releases) != 1 or None in releases or any(about["id"] is None for about in described):
        return None
    for sae_format in {sae.cfg.metadata.sae_format for sae in subject.saes.values()} - {None}:
        options["sae_format"] = sae_format
    return options | {"sae": releases.pop(), "sae_id": list(dict.fromkeys(about["id"] for about in described))}


def _checkpoint(loaded: Loaded) -> dict[str, Any]:
    """Which checkpoint the model is of, where its weights went, and how texts are given to it."""
    given = loaded.checkpoint
    options: dict[str, Any] = {**given.files, "trust_remote_code": loaded.trusted, "chat": loaded.chat}
    if isinstance(given.device_map, str):
        options["device_map"] = given.device_map
        if given.max_memory is not None:
            sizes = {key: f"{n // 1000}KB" if isinstance(n, int) else n for key, n in given.max_memory.items()}
            options["max_memory"] = [f"{device}={size}" for device, size in sizes.items()]
        if given.offload_folder is not None:
            options["offload_folder"] = str(given.offload_folder)
    return options


def _are_shipped(subject: Subject) -> bool:
    """Whether every SAE is one of those that come with the package."""
    import torch
    from safetensors import safe_open

    from ...saes.shipped import shipped_saes

    shipped = shipped_saes()
    for hook, sae in subject.saes.items():
        if hook.name != "resid_post" or hook.layer not in shipped:
            return False
        with safe_open(shipped[hook.layer] / "sae_weights.safetensors", "pt") as file:
            bias = file.get_tensor("b_enc")
        if bias.shape != sae.b_enc.shape or not torch.equal(bias.to(sae.b_enc), sae.b_enc):
            return False
    return True
