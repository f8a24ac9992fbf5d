"""Models that cannot be read as they are: what each is, and what to hand over instead.

Other libraries' classes are told by their names, so that none of these libraries is imported.
Whatever is not listed here is left to the net behind it: every weight that a family's table reads must be one that
:mod:`.weights` can fetch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..errors import UserError
from .weights import offloading

DEQUANTIZED = ("fp8",)
"""What transformers turns back into plain weights on machines that do not compute in it."""
_READABLE = (*DEQUANTIZED, "bitsandbytes", "gptq", "awq")
"""And what linear maps keep packed (:func:`.weights.of_linear`)."""


def unwrapped(model: Any) -> Any:
    """The model itself where ``torch.compile`` has wrapped it: the same weights, and its own name."""
    return model._orig_mod if _is(model, "OptimizedModule") else model


def refuse_unreadable(model: Any) -> None:
    """Raises UserError, in one line, for a model of a kind that is known to be unreadable."""
    for is_one, line in _KINDS:
        if is_one(model):
            raise UserError(line(model))


def refuse_quantized(source: Any, config: Any) -> None:
    """Raises UserError for a checkpoint of quantized weights, before they are fetched."""
    method = quantization(config)
    if method is not None and method not in _READABLE:
        raise UserError(
            f"the weights of {source} are quantized ({method}); load a checkpoint that is not, in bfloat16 or float32"
        )


def quantization(config: Any) -> str | None:
    """How a configuration says that the weights are quantized."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or "by a method that it does not name")


def several_dtypes(model: nn.Module) -> str | None:
    """What to say of a model that does not run, where its weights are in several dtypes."""
    there = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    if len(there) < 2:
        return None
    return f"the model does not run: its weights are in {' and '.join(there)}; put them in one: model.to(torch.float32)"


def _is(thing: Any, *names: str) -> bool:
    """Whether a thing's class is, or is derived from, one of these names."""
    return any(base.__name__ in names for base in type(thing).__mro__)


def _parts(model: Any) -> Iterator[Any]:
    if isinstance(model, nn.Module):
        yield from model.modules()


def _weights(model: Any) -> Iterator[Any]:
    if isinstance(model, nn.Module):
        yield from model.parameters()


def _is_wrapper(model: Any) -> bool:
    return isinstance(model, nn.Module) and not hasattr(model, "config") and hasattr(_inside(model), "config")


def _inside(model: Any) -> Any:
    return getattr(model, "module", None)


def _empty(part: Any) -> bool:
    """Whether weights of its own have no values here, nor accelerate has them."""
    own = part.parameters(recurse=False)
    return offloading(part) is None and any(p.is_meta and type(p) is nn.Parameter for p in own)


def _unmerged(part: Any) -> bool:
    return _is(part, "BaseTunerLayer") and not (part.merged or part.disable_adapters)


def _quantizer(weight: Any) -> str | None:
    """The library whose own kind of tensor a weight is."""
    library = type(weight).__module__.partition(".")[0]
    return library if library in ("torchao", "optimum", "hqq") else None


def _quantizers(model: Any) -> str:
    return ", ".join(sorted({library for weight in _weights(model) if (library := _quantizer(weight))}))


def _some(is_one: Callable[[Any], bool], of: Callable[[Any], Iterator[Any]]) -> Callable[[Any], bool]:
    return lambda model: any(is_one(one) for one in of(model))


def _name(model: Any) -> str:
    return type(model).__name__


_UNQUANTIZED = "load a checkpoint that is not quantized, in bfloat16 or float32"

_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Any], str]], ...] = (
    (
        lambda model: _is(model, "PeftModel", "PeftMixedModel") and not hasattr(model, "merge_and_unload"),
        lambda model: (
            f"this {_name(model)}'s adapter is no change of the weights, so it cannot be merged into them; "
            "for the model without it hand over model.get_base_model()"
        ),
    ),
    (
        lambda model: _is(model, "PeftModel", "PeftMixedModel"),
        lambda model: (
            f"a {_name(model)} keeps its adapter beside the weights: hand over what model.merge_and_unload() returns"
        ),
    ),
    (
        _some(_unmerged, _parts),
        lambda model: (
            "PEFT adapters (LoRA) stand in the model's layers, beside the weights: load them as a PeftModel, and hand "
            "over what its merge_and_unload() returns"
        ),
    ),
    (
        lambda model: _is(model, "Pipeline") and hasattr(model, "model"),
        lambda model: f"a {_name(model)} is a model with its tokenizer: hand over pipe.model and pipe.tokenizer",
    ),
    (
        lambda model: _is(model, "HookedRootModule"),
        lambda model: (
            f"a {_name(model)} is TransformerLens's own; hand over the transformers model, "
            "AutoModelForCausalLM.from_pretrained(...), or its name"
        ),
    ),
    (
        _some(lambda weight: _is(weight, "DTensor"), _weights),
        lambda model: "the model's weights are shared out over processes (DTensor); load it whole, on one device",
    ),
    (
        lambda model: _is(model, "FullyShardedDataParallel"),
        lambda model: f"a {_name(model)}'s weights are shared out over processes; load the model whole, on one device",
    ),
    (_is_wrapper, lambda model: f"a {_name(model)} is a wrapper; hand over model.module, the {_name(_inside(model))}"),
    (
        _some(_empty, _parts),
        lambda model: (
            "the model is on the meta device, where weights have shapes but no values; load them: "
            "AutoModelForCausalLM.from_pretrained(...)"
        ),
    ),
    (
        lambda model: bool(_quantizers(model)),
        lambda model: f"the model's weights are quantized ({_quantizers(model)}); {_UNQUANTIZED}",
    ),
)
