"""What people may write or hand over: numbers in texts, and the arguments of public calls, told from their annotations.

:func:`typed` makes a wrong type one line that names the argument and says what would be right. The annotations are
read as the texts that they are, so that nothing is imported for them. Whether a value of the right type makes sense is
for those to say who use it.
"""

from __future__ import annotations

import operator
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature, unwrap
from numbers import Real
from typing import Any, TypeVar

from .errors import UserError

Made = TypeVar("Made", bound=Callable[..., Any])

NUMBER = r"\d{1,18}"
"""A whole number in a text, for regular expressions. Any longer one counts nothing, and Python converts none of 5,000
digits."""


def whole_in(text: str) -> int | None:
    """The whole number, from 0, that a text is; None where it is none."""
    return int(text) if re.fullmatch(NUMBER, text) else None


@dataclass(frozen=True)
class Expected:
    """What an annotation stands for. take: gives the value as it is used from there on, or raises TypeError."""

    name: str
    take: Callable[[Any], Any]


def typed(made: Made) -> Made:
    """A function, or a dataclass, that raises UserError for an argument of another type than its annotation says.

    Whoever is given numbers of numpy or torch gets Python's. Arguments that do not fit the signature at all are a
    TypeError, as ever.
    """
    if isinstance(made, type):
        made.__init__ = typed(made.__init__)  # type: ignore[misc]
        return made
    what = signature(made)
    more = next((p for p in what.parameters.values() if p.kind is Parameter.VAR_KEYWORD), None)
    kinds = {name: _kinds(parameter.annotation) for name, parameter in what.parameters.items() if parameter != more}
    options = {} if more is None else _options(made, more)

    @wraps(made)
    def call(*args: Any, **given: Any) -> Any:
        bound = what.bind(*args, **given)
        for name, value in bound.arguments.items():
            if more is None or name != more.name:
                bound.arguments[name] = _taken(name, value, kinds[name])
            elif options:
                bound.arguments[name] = {key: _taken(key, each, _known(key, options)) for key, each in value.items()}
        return made(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def _taken(name: str, value: Any, kinds: tuple[Expected, ...]) -> Any:
    for kind in kinds:
        try:
            return kind.take(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            continue
    right = " or ".join(dict.fromkeys(kind.name for kind in kinds if kind.name != "None"))
    raise UserError(f"{name} should be {right}, not {told(value)}")


def told(value: Any) -> str:
    """A value in a message: short, and of an object no more than its type."""
    plain = value is None or isinstance(value, str | bytes | int | float | complex | list | tuple | dict | set)
    return _SHORT.repr(value) if plain else f"a {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


# --------------------------------------------------------------------------------------------------------- annotations


def _kinds(annotation: Any) -> tuple[Expected, ...]:
    """Of a parameter without an annotation, such as self, anything is right."""
    if annotation is Signature.empty:
        return (ANYTHING,)
    parts = re.split(r" \| (?![^\[]*\])", annotation)
    return tuple(EXPECTED["Float" if part.startswith(("Float[", "Bool[")) else part] for part in parts)


def _options(made: Callable[..., Any], more: Parameter) -> dict[str, tuple[Expected, ...]]:
    """The names and kinds of ``**question: Unpack[Question]``; none for other keyword arguments."""
    named = re.fullmatch(r"Unpack\[(\w+)\]", str(more.annotation))
    if named is None:
        return {}
    described = unwrap(made).__globals__[named[1]].__annotations__
    return {name: _kinds(getattr(kind, "__forward_arg__", kind)) for name, kind in described.items()}


def _known(name: str, options: Mapping[str, tuple[Expected, ...]]) -> tuple[Expected, ...]:
    if name not in options:
        raise TypeError(f"there is no setting {name!r}; there are {', '.join(options)}")
    return options[name]


def _whole(value: Any) -> int:
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise TypeError
    return int(operator.index(value))


def _number(value: Any) -> float:
    scalar = isinstance(value, Real) or (hasattr(value, "dtype") and getattr(value, "ndim", None) == 0)
    if not scalar or isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        raise TypeError
    return float(value)


def _changes(value: Any) -> dict[str, float | str]:
    """Numbers, or a token's text, by text."""
    if not isinstance(value, Mapping):
        raise TypeError
    return {_text(key): each if isinstance(each, str) else _number(each) for key, each in value.items()}


def _bool(value: Any) -> bool:
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise TypeError
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return str.__str__(value)


def _path(value: Any) -> Any:
    if not isinstance(os.fspath(value), str):
        raise TypeError
    return value


def _none(value: Any) -> None:
    if value is not None:
        raise TypeError


def _several(take: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def each(values: Any) -> list[Any]:
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise TypeError
        return [take(value) for value in values]

    return each


def _pair(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Any]]:
    def both(values: Any) -> tuple[Any, Any]:
        if isinstance(values, str) or len(values) != 2:
            raise TypeError
        return first(values[0]), second(values[1])

    return both


def _either(*takes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def one(value: Any) -> Any:
        for take in takes[:-1]:
            try:
                return take(value)
            except TypeError:
                continue
        return takes[-1](value)

    return one


def _is(*types: Any) -> Callable[[Any], Any]:
    def same(value: Any) -> Any:
        if not isinstance(value, types):
            raise TypeError
        return value

    return same


def _of(module: str, name: str) -> Callable[[Any], Any]:
    """A class's objects. What was not imported yet, nobody can have an object of."""

    def made(value: Any) -> Any:
        return _is(getattr(sys.modules.get(module), name, ()))(value)

    return made


def _called(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


def _source(value: Any) -> Any:
    if isinstance(value, type) or not callable(getattr(value, "start", None)):
        raise TypeError
    return value


def _tensor(value: Any) -> Any:
    """Also what numpy has, and a row of numbers."""
    import torch

    row = isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Real)
    if not (row or isinstance(value, torch.Tensor) or hasattr(value, "__array__")):
        raise TypeError
    found = torch.as_tensor(value)
    if found.is_complex():
        raise TypeError
    return found


ANYTHING = Expected("anything", lambda value: value)
EXPECTED = {
    "None": Expected("None", _none),
    "int": Expected("a whole number", _whole),
    "float": Expected("a number", _number),
    "bool": Expected("True or False", _bool),
    "str": Expected("a text", _text),
    "Path": Expected("a path", _path),
    "os.PathLike[str]": Expected("a path", _path),
    "Sequence[int]": Expected("a list of whole numbers", _several(_whole)),
    "Sequence[str]": Expected("a list of texts", _several(_text)),
    "Sequence[int | str]": Expected(
        'a list of layers, or of hooks such as "17.mlp_out"', _several(_either(_whole, _text))
    ),
    "Sequence[Named]": Expected(
        "a list of targets, as texts or as directions", _several(_either(_text, _tensor, _pair(_tensor, _text)))
    ),
    "Sequence[Sequence[int]]": Expected("a list of lists of whole numbers", _several(_several(_whole))),
    "Sequence[str | Path]": Expected("a list of paths", _several(_path)),
    "tuple[int, int]": Expected("two whole numbers", _pair(_whole, _whole)),
    "tuple[str | int, str | int]": Expected("two tokens, by their texts or ids", _pair(*[_either(_whole, _text)] * 2)),
    "Reference": Expected(
        '"mean", "rivals", a token by its text or id, or a list of tokens',
        _either(_text, _whole, _several(_either(_text, _whole))),
    ),
    "Pos": Expected('"max", "all" or a position', _either(_whole, _text)),
    "By": Expected('"token", "word" or "sentence"', _text),
    "Of": Expected('"heads", "modules" or "neurons"', _text),
    "Evaluated": Expected('"tokens", "heads", "neurons" or "features"', _text),
    "Statistic": Expected('"mean" or "median"', _text),
    "Sort": Expected('"activation" or "specific"', _text),
    "Order": Expected('"abs", "contribution" or "effect"', _text),
    "QKBy": Expected('"tokens" or "features"', _text),
    "Against": Expected('"mean", "uniform" or a position', _either(_none, _whole, _text)),
    "FirstToken": Expected('"skip" or "compete"', _text),
    "Slope": Expected('"local" or "mean"', _text),
    "SAEErrors": Expected('"keep", "hold" or "zero"', _text),
    "Newcomers": Expected('"remove" or "keep"', _text),
    "Changes": Expected("numbers by the parts that they are for, such as {'17/2601@7': 0}", _changes),
    "Sequence[Changes]": Expected(
        "a list of changes, such as [{'17/2601@7': 0}, {'17/2601@7': 5}]", _several(_changes)
    ),
    "DrivenBy": Expected('"total", "direct" or "effect"', _text),
    "Grow": Expected('"weight", "effect" or "both"', _text),
    "EngineName": Expected('"local" or "ray"', _text),
    "Errors": Expected('"roots" or "through"', _text),
    "Literal['attn', 'mlp']": Expected('"attn" or "mlp"', _text),
    "Place": Expected("a layer and a hook, such as (17, 'resid_post')", _pair(_whole, _text)),
    "Progress": Expected("a function of (what, done, steps)", _called),
    "Float": Expected("a tensor of numbers", _tensor),
    "Sequence[Float[Tensor, 'n d_model']]": Expected("a list of tensors", _several(_tensor)),
    "Source": Expected("a source, such as ds.Subspace(...) or ds.Heads(...)", _source),
    "Subspace": Expected("a ds.Subspace(...)", _of("depass_sae.passes.sources", "Subspace")),
    "nx.DiGraph": Expected("a graph, as lm.graph(...) or ds.read_graph(...) gives it", _of("networkx", "DiGraph")),
    "Index": Expected("an index, as ds.open_index(...) gives it", _of("depass_sae.index.index", "Index")),
    "LM": Expected("a model, as ds.load(...) gives it", _of("depass_sae.api", "LM")),
    "Sequence[nx.DiGraph]": Expected("a list of graphs", _several(_of("networkx", "DiGraph"))),
    "Study": Expected("a Study", _of("depass_sae.report.case.study", "Study")),
    "Mapping[str, Method]": Expected("functions by the names of methods", _is(Mapping)),
    "Mapping[str, str]": Expected("a mapping of texts", _is(Mapping)),
    "Mapping[Any, Any]": Expected("a mapping of devices to sizes, such as {'cpu': '6GiB'}", _is(Mapping)),
    "Iterable[Mapping[str, Any]]": Expected("a list of mappings", _several(_is(Mapping))),
    "torch.dtype": Expected("a torch.dtype", _of("torch", "dtype")),
    "torch.device": Expected("a torch.device", _either(_whole, _of("torch", "device"))),
    # These say themselves what is wrong with them, and what would be right.
    **dict.fromkeys(("Any", "PromptLike", "Sequence[PromptLike]", "Mapping[str, Any]"), ANYTHING),
    **dict.fromkeys(("PreTrainedModel", "PreTrainedConfig", "PreTrainedTokenizerBase"), ANYTHING),
}
"""By annotation, as it is written; a union is split into its parts."""
