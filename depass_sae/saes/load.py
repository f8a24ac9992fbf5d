"""From whatever a user calls their SAEs to {hook: SAE}.

Every form is first turned into candidates, an SAE's hook and how to load it; only then the layers are chosen, a hook
named twice is refused, and weights are read. Inside, everything goes through sae-lens.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch

from ..arguments import whole_in
from ..errors import SAEFitWarning, UserError, warn
from ..files import expanded
from ..models.place import Place
from .cross_layer import CrossLayerFeatures
from .formats import Format, Stored, folders_in, formats_called
from .formats.sae_lens import FORMAT as SAE_LENS
from .hook import NoHookNamed, hook_in, hook_names, named_hook
from .own import DTYPES, inference_form, quiet, settle, written_down
from .release import fetch_folders, is_release, load_release

if TYPE_CHECKING:
    from sae_lens import SAE

SAESource: TypeAlias = Union[str, Path, "SAE"]
HookKey: TypeAlias = Place | str | int

# Normalisations that exist only until they are folded into the weights.
FOLDED = ("expected_average_only_in", "covariance_whitening")


@dataclass(frozen=True)
class Candidate:
    """An SAE that could be loaded."""

    hook: Place
    name: str  # for messages
    load: Callable[[], "SAE"]  # in any dtype, its metadata as they were


def load_saes(
    saes: SAESource | Sequence[SAESource] | Mapping[HookKey, SAESource] | None,
    *,
    layers: Sequence[int] | int | None = None,
    sae_ids: Sequence[str] | str | None = None,
    sae_format: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> dict[Place, "SAE"]:
    """Load SAEs by the hook they read, in order of their hooks.

    Args:
        saes: a release in sae-lens's registry; a directory in one of the formats, or a folder of several; a hub
            repository in one of them, with `sae_ids` for its folders where there are several; an SAE object; a list of
            directories and objects; or {17 or "17.resid_post" or Place: directory or object} for SAEs that do not name
            their hook (a bare layer then means resid_post).
        layers: only these. From a release: the SAE at each of them.
        sae_ids: of a release, where a layer has several.
        sae_format: of the directories, by its name in :data:`.FORMATS`; recognised by their files if
            None.
        device: where they are put.
        dtype: of the weights; float32 (or float64 where they have it) if None. Thresholds keep at least float32.

    Returns:
        {hook: SAE}, the SAEs in evaluation mode, without gradients and reading flat activations [pos, d_in]. A layer of
        a cross-layer transcoder is a :class:`.CrossLayerFeatures`. They are new objects: an object that was handed over
        is left as it was.

    Raises:
        UserError: whatever is missing, damaged, gated, unreachable, ambiguous or unknown.
    """
    layers = [layers] if isinstance(layers, int) else layers
    sae_ids = [sae_ids] if isinstance(sae_ids, str) else sae_ids
    dtype = _dtype(dtype)
    formats_called(sae_format)
    if isinstance(saes, str) and not _is_on_disk(saes):
        if sae_format in (None, SAE_LENS.name) and is_release(saes):
            candidates = _from_release(saes, sae_ids, layers)
        else:
            candidates = _from_repository(saes, sae_ids, sae_format)
    elif sae_ids is not None:
        raise UserError("sae_ids choose from a release; from directories and objects choose with layers")
    else:
        with quiet():
            candidates = _candidates(saes, sae_format)
    chosen = _one_per_hook(candidates if layers is None else _at_layers(candidates, layers))
    return {hook: _loaded(candidate, device, dtype) for hook, candidate in sorted(chosen.items())}


def check_folder(saes: Any, sae_format: str | None = None) -> None:
    """Raises UserError for a directory that holds no SAE, or a bad configuration, before the model is loaded."""
    formats_called(sae_format)
    if isinstance(saes, Path) or (isinstance(saes, str) and _is_on_disk(saes)):
        for path, kept in folders_in(expanded(saes), sae_format):
            kept.read(path)


def _is_on_disk(saes: str) -> bool:
    """Whether a text names a directory and no release. Raises UserError for one that can name neither."""
    if not saes:
        raise UserError("the SAEs have no name: give a release or a directory")
    return _looks_like_a_path(saes) or expanded(saes).exists()


def _loaded(candidate: Candidate, device: str | torch.device, dtype: torch.dtype | None) -> "SAE":
    with quiet():
        try:
            sae = settle(written_down(candidate.load(), candidate.hook), device, dtype)
        except UserError as error:
            named = candidate.name in str(error)
            raise UserError(str(error) if named else f"{candidate.name}: {error}") from error
    if sae.cfg.normalize_activations in FOLDED:
        warn(
            f"{candidate.name} was trained on normalised activations ({sae.cfg.normalize_activations}), and the factor "
            "is not folded into its weights: it reads them as they are, as it does in sae-lens",
            SAEFitWarning,
        )
    return sae


def _one_per_hook(candidates: Iterable[Candidate]) -> dict[Place, Candidate]:
    chosen: dict[Place, Candidate] = {}
    for candidate in candidates:
        if candidate.hook in chosen:
            raise UserError(
                f"two SAEs read {candidate.hook}: {chosen[candidate.hook].name} and {candidate.name}; give one of them"
            )
        chosen[candidate.hook] = candidate
    return chosen


def _at_layers(candidates: Sequence[Candidate], layers: Sequence[int]) -> list[Candidate]:
    there = sorted({candidate.hook.layer for candidate in candidates})
    for layer in layers:
        if layer not in there:
            raise UserError(f"there is no SAE at layer {layer}; the layers are {', '.join(map(str, there)) or 'none'}")
    return [candidate for candidate in candidates if candidate.hook.layer in layers]


# --- what the user may hand over ----------------------------------------------------------------------------


def _candidates(saes: Any, sae_format: str | None) -> list[Candidate]:
    if saes is None:
        return []
    if isinstance(saes, Mapping):
        return [candidate for key, source in saes.items() for candidate in _from_key(key, source, sae_format)]
    found: list[Candidate] = []
    nameless: list[Any] = []
    for source in _each(saes, sae_format):
        try:
            found += _from_folders([source], None) if isinstance(source, tuple) else [_from_object(source, None)]
        except NoHookNamed:
            nameless.append(source)
    if nameless:
        raise UserError(_name_them(nameless))
    return found


def _each(saes: Any, sae_format: str | None) -> "Iterable[tuple[Path, Format] | SAE]":
    """Every SAE that is meant, by its directory or as an object."""
    if isinstance(saes, str | Path):
        yield from folders_in(expanded(saes), sae_format)
    elif isinstance(saes, list | tuple):
        for source in saes:
            yield from _each(source, sae_format)
    elif _is_sae(saes):
        yield saes
    elif saes is not None:
        raise UserError(f"SAEs are a release, a directory, an SAE object, a list or a dict of these, not {_kind(saes)}")


def _name_them(nameless: Sequence[Any]) -> str:
    """What to write for SAEs that do not say where they read."""
    sources = [source[0] if isinstance(source, tuple) else source for source in nameless]
    directories = all(isinstance(source, Path) for source in sources)
    in_file = ""
    if all(isinstance(source, tuple) and source[1] is SAE_LENS for source in nameless):
        in_file = ', or write "hook_name": "blocks.17.hook_resid_post" into the metadata of cfg.json'
    if len(sources) == 1:
        what, name = (str(sources[0]), f'"{sources[0]}"') if directories else (f"the {_type(sources[0])} object", "sae")
        return f'{what} does not say which hook it reads; name it: saes={{"17.resid_post": {name}}}{in_file}'
    names = [f'"{source}"' if isinstance(source, Path) else f"sae{i}" for i, source in enumerate(sources, 1)]
    layers = [int(n[-1]) for source in sources if isinstance(source, Path) and (n := re.findall(r"\d+", source.name))]
    if len(set(layers)) < len(sources):
        layers = list(range(len(sources)))
    entries = [f"{layer}: {name}" for layer, name in zip(layers, names, strict=True)]
    shown = ", ".join(entries[:3] + ["..."] * (len(entries) > 3))
    return (
        f"{len(sources)} SAEs do not say which hook they read; name each by its layer, for resid_post, or by its hook, "
        f'such as "17.mlp_out": saes={{{shown}}}{in_file}'
    )


def _from_release(release: str, sae_ids: Sequence[str] | None, layers: Sequence[int] | None) -> list[Candidate]:
    loaded = load_release(release, sae_ids, layers)
    return [
        Candidate(
            _place(sae, None),
            f"{release}/{sae_id}",
            partial(written_down, sae, _place(sae, None), release=release, sae_id=sae_id),
        )
        for sae_id, sae in loaded.items()
    ]


def _from_repository(repository: str, sae_ids: Sequence[str] | None, sae_format: str | None) -> list[Candidate]:
    """Of folders of a hub repository that is no release of sae-lens's."""
    found = []
    for sae_id, path in fetch_folders(repository, sae_ids, sae_format).items():
        origin = {"release": repository, "sae_id": sae_id, "sae_format": sae_format}
        with quiet():
            candidates = _from_folders(folders_in(path, sae_format), None)
        found += [replace(one, load=partial(_from_there, one, origin)) for one in candidates]
    return found


def _from_there(candidate: Candidate, origin: Mapping[str, str | None]) -> "SAE":
    return written_down(candidate.load(), candidate.hook, **origin)


def _from_key(key: HookKey, source: SAESource, sae_format: str | None) -> list[Candidate]:
    if isinstance(key, str):
        number = whole_in(key.strip())
        key = Place.parse(key) if number is None else number
    if not isinstance(key, Place | Integral) or isinstance(key, bool):
        raise UserError(f"an SAE's key is its layer or hook, such as 17 or '17.resid_post', not {_kind(key)}")
    if isinstance(source, str | Path):
        return _from_folders(folders_in(expanded(source), sae_format), key)
    if _is_sae(source):
        return [_from_object(source, key)]
    raise UserError(f"the SAE of {key} is a directory or an SAE object, not {_kind(source)}")


def _from_folders(folders: Sequence[tuple[Path, Format]], key: Place | int | None) -> list[Candidate]:
    """The dictionaries in folders; of several those that the key names."""
    stored = [one for path, kept in folders for one in kept.read(path)]
    if len(stored) == 1:
        return [_stored(stored[0], key)]
    found = [_stored(one, None) for one in stored]
    meant = [candidate for candidate in found if key in (None, candidate.hook, candidate.hook.layer)]
    if not meant:
        there = ", ".join(str(candidate.hook) for candidate in found)
        raise UserError(f"{folders[0][0]} has no SAE or transcoder that reads {key}; there are {there}")
    return meant


def _stored(stored: Stored, key: Place | int | None) -> Candidate:
    try:
        hook = _placed(stored.metadata, stored.architecture, key)
    except NoHookNamed:
        raise
    except UserError as error:
        raise UserError(f"{stored.name}: {error}") from error
    return Candidate(hook, stored.name, stored.load)


def _from_object(sae: "SAE", key: Place | int | None) -> Candidate:
    load = sae.again if isinstance(sae, CrossLayerFeatures) else partial(inference_form, sae)
    return Candidate(_place(sae, key), f"the {_type(sae)} object", load)


# --- hooks --------------------------------------------------------------------------------------------------


def _place(sae: "SAE", key: Place | int | None) -> Place:
    return _placed(sae.cfg.metadata.to_dict(), sae.cfg.architecture(), key)


def _placed(metadata: Mapping[str, Any], architecture: str, key: Place | int | None) -> Place:
    """The hook that an SAE reads: what its file says, what the user says, and never two different things."""
    if not isinstance(key, Place):
        hook = hook_in(metadata, architecture, fallback_layer=key)
        if key is not None and hook.layer != key:
            raise UserError(f"its file says that it reads {hook}, not layer {key}")
        return hook
    named = named_hook(metadata, architecture)
    if named is not None and named != key:
        raise UserError(f"its file says that it reads {named} ({hook_names(metadata)[0]}), not {key}")
    return key


# --- small things -------------------------------------------------------------------------------------------


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"an SAE's dtype is one of {', '.join(DTYPES)}, not {name}")
    return DTYPES[name]


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "~", "/")) or "\\" in text or text.count("/") > 1


def _is_sae(value: Any) -> bool:
    if not isinstance(value, torch.nn.Module):
        return False
    if isinstance(value, CrossLayerFeatures):
        return True
    from sae_lens import SAE

    return isinstance(value, SAE)


def _kind(value: Any) -> str:
    return f"a {_type(value)}"


def _type(value: Any) -> str:
    return type(value).__name__
