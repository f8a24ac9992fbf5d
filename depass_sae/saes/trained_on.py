"""Whether SAEs were trained on the model that they are put on, as far as names tell.

An SAE's file may name its model as TransformerLens does (``gpt2-small``), by a hub id or by a path; the model may be
known by a hub id or only by its directory. What is not surely the name of a model is not compared.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SAEFitWarning, UserError, warn
from ..files import expanded, parse_json, read_text
from ..models.place import Place

if TYPE_CHECKING:
    from sae_lens import SAE

# TransformerLens's names of models, and ours, where they differ by more than `_canonical` sees through.
ALIASES = {
    "smollm2": "smollm2135m",
    "gpt2small": "gpt2",
    "gpt2xs": "distilgpt2",
    "mistral7b": "mistral7bv0.1",
}
# SAEs are often put on the chat model that was made of theirs, and a model may be kept in another precision.
ASIDE = {"hf", "it", "pt", "instruct", "chat", "base", "meta", "bf16", "fp16", "fp8"}
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
FAMILY = re.compile(r"gpt|pythia|gemma|llama|mistral|mixtral|qwen|smollm|phi|olmo|deepseek")
SIZE = re.compile(r"\d[mb]|gpt2\b|^smollm2$")


def warn_of_others(saes: Mapping[Place, "SAE"], model: str) -> None:
    """Warn of the SAEs that name another model than the one they are put on."""
    ours = _model_name(model)
    if ours is None:
        return
    others: dict[str, list[str]] = {}
    for hook, sae in saes.items():
        theirs = _model_name(str(sae.cfg.metadata.model_name or ""))
        if theirs is not None and _canonical(theirs) != _canonical(ours):
            others.setdefault(theirs, []).append(str(hook))
    for theirs, hooks in others.items():
        which = f"the SAE at {hooks[0]} was" if len(hooks) == 1 else f"the SAEs at {', '.join(hooks)} were"
        warn(f"{which} trained on {theirs}, and this model is {ours}: their features may mean nothing", SAEFitWarning)


def _model_name(name: str) -> str | None:
    """What a model is called, where that can be told: a hub id, or a name of a known family and size."""
    try:
        path = expanded(name)
    except UserError:  # an SAE's file may name anything
        return _surely(name)
    if not path.is_dir():
        return _surely(name)
    cached = re.search(r"models--([^/\\]+)--([^/\\]+)", str(path))  # a directory of the hub's cache
    return _surely(_saved_under(path)) or ("/".join(cached.groups()) if cached else _surely(path.name))


def _surely(name: str) -> str | None:
    if HUB_ID.fullmatch(name):
        return name
    last = Path(name).name.lower()
    return Path(name).name if FAMILY.search(last) and SIZE.search(last) else None


def _saved_under(directory: Path) -> str:
    """The hub id that a model had when it was saved, as transformers noted it before its version 5."""
    try:
        return str(parse_json(read_text(directory / "config.json"), twice=True)["_name_or_path"])
    except (UserError, TypeError, KeyError):
        return ""


def _canonical(name: str) -> str:
    tokens = re.split(r"[^a-z0-9.]+", name.rsplit("/", 1)[-1].lower())
    joined = "".join(token for token in tokens if token not in ASIDE)
    return ALIASES.get(joined, joined)
