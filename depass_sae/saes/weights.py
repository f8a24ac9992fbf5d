"""What dictionaries' files hold, checked: configurations, tensors, and the SAE of our own that is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeGuard

import torch
from torch import Tensor

from ..errors import UserError
from ..files import parse_json, read_text
from ..texts import quoted
from .own import at_least_float32, one_line

if TYPE_CHECKING:
    from sae_lens import SAE

FLOATS = ("F16", "BF16", "F32", "F64")
MOST = 2**31

Shape: TypeAlias = tuple[int, ...]
Tensors: TypeAlias = dict[str, Tensor]


# --- configurations -----------------------------------------------------------------------------------------


def read_config(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError for one that is missing, damaged or something else."""
    if not file.exists():
        raise UserError(f"{file.parent} has no {file.name}")
    try:
        config = parse_json(read_text(file))
    except UserError as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is not an SAE's configuration: it holds a {type(config).__name__}, not an object")
    return config


def count_in(file: Path, config: Mapping[str, Any], key: str, most: int = MOST - 1) -> int:
    """A whole number from 1 in a configuration. Raises UserError for anything else."""
    value = config.get(key)
    if type(value) is not int or not 0 < value <= most:
        _wrong(file, config, key, f"a whole number from 1{'' if most == MOST - 1 else f' to {most}'}")
    return value


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def flag_in(file: Path, config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    return value if isinstance(value, bool) else _wrong(file, config, key, "true or false")


def text_in(file: Path, config: Mapping[Any, Any], key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str | None) else _wrong(file, config, key, "a text")


def one_of(file: Path, config: Mapping[str, Any], key: str, known: Sequence[str], default: str | None = None) -> str:
    """A name among those that are known. default: where there is none."""
    value = config.get(key, default)
    return value if isinstance(value, str) and value in known else _wrong(file, config, key, " or ".join(known))


def _wrong(file: Path, config: Mapping[str, Any], key: str, right: str) -> NoReturn:
    is_ = quoted(config[key]) if key in config else "missing"
    raise UserError(f"{file}: {key} should be {right}, and is {is_}")


# --- tensors ------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path, framework: str = "pt") -> Iterator[Any]:
    """A safetensors file. Raises UserError for one that is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework) as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or cut short ({one_line(error)}); copy it again") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error


def shapes(path: Path) -> dict[str, Shape]:
    """Of the tensors in a file. Raises UserError for those that are no weights."""
    with opened(path, "np") as file:  # torch would lay the whole file out in memory
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        for name, values in slices.items():
            if values.get_dtype() not in FLOATS:
                raise UserError(f"{path}: {name} is {values.get_dtype()}; weights are {', '.join(FLOATS)}")
        return {name: tuple(values.get_shape()) for name, values in slices.items()}


def check_shape(path: Path, found: Mapping[str, Shape], name: str, expected: Sequence[int | None], means: str) -> Shape:
    """A tensor's shape. expected: None for any size from 1. Raises UserError where it is another."""
    shape = found.get(name)
    fits = shape is not None and len(shape) == len(expected)
    if shape is None or not fits or any(n < 1 or m not in (None, n) for n, m in zip(shape, expected, strict=True)):
        should = ", ".join("?" if n is None else str(n) for n in expected)
        is_ = "is missing" if shape is None else f"is {list(shape)}"
        raise UserError(f"{path}: {name} should be [{should}] ({means}), and {is_}")
    return shape


def read_tensors(path: Path) -> Tensors:
    """All tensors of a safetensors file or of a pickle of torch's, of which nothing but tensors is ever read.

    Raises UserError for a file that is missing, damaged, or holds something else (a pickle's code is never run).
    """
    if path.suffix == ".safetensors":
        with opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    found = _unpickled(path)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path} holds no tensors by name")
    for name, values in found.items():
        if not isinstance(values, Tensor):
            raise UserError(f"{path}: {name} is a {type(values).__name__}, not a tensor")
    return dict(found)


def _unpickled(path: Path) -> Any:
    import pickle

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # which does not say whether it is code or no pickle at all
        raise UserError(
            f"{path} is damaged, or holds more than tensors (code, which is not run): save the state_dict alone"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged or cut short ({one_line(error)}); copy it again") from error


def check_tensors(path: Path, found: Tensors, expected: Mapping[str, Sequence[int]], means: str) -> Tensors:
    """The tensors that there should be, in float32 at least; no others may be there.

    Raises UserError for what is missing, too much, of another shape, no number, or NaN.
    """
    there = {name: tuple(values.shape) for name, values in found.items()}
    for name, shape in expected.items():
        check_shape(path, there, name, shape, means)
        if not found[name].is_floating_point():
            raise UserError(f"{path}: {name} is {found[name].dtype}; weights are floating-point numbers")
        if not torch.isfinite(found[name]).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values; save it again or get another copy")
    if more := sorted(set(there) - set(expected)):
        raise UserError(f"{path} also holds {', '.join(more)}, which its configuration does not speak of")
    return {name: found[name].to(at_least_float32(found[name].dtype)) for name in expected}


# --- what is made of them -----------------------------------------------------------------------------------


def made(architecture: str, weights: Mapping[str, Tensor], metadata: Mapping[str, Any], **config: Any) -> SAE:
    """An inference SAE over weights by sae-lens's names: W_enc [d_in, d_sae], W_dec [d_sae, d_out], and so on."""
    from sae_lens import SAE

    from . import choosing  # noqa: F401 (sae-lens knows these architectures from then on)

    dtype = torch.float64 if any(v.dtype == torch.float64 for v in weights.values()) else torch.float32
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    sae: SAE = SAE.from_dict(
        {
            "architecture": architecture,
            "d_in": d_in,
            "d_out": d_out,
            "d_sae": d_sae,
            "dtype": str(dtype).removeprefix("torch."),
            "device": "meta",
            "apply_b_dec_to_input": False,
            "metadata": dict(metadata),
            **config,
        }
    )
    state = {name: values.detach().to(dtype).contiguous() for name, values in weights.items()}
    sae.load_state_dict(state, assign=True)
    return sae
