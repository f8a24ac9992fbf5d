"""The formats that dictionaries are kept in, one file each. The first that knows a folder reads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ...errors import UserError
from . import circuit_tracer, dictionary_learning, lm_saes, qwen_scope, sae_lens, sparsify
from .folder import Format, Stored

# sae-lens is last: its files' names are others', too.
FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (sparsify, dictionary_learning, lm_saes, qwen_scope, circuit_tracer, sae_lens)
}


def formats_called(name: str | None) -> list[Format]:
    """Those that a name may mean: all for None. Raises UserError for a name of none."""
    if name is None:
        return list(FORMATS.values())
    if name not in FORMATS:
        raise UserError(f"there is no SAE format {name!r}; those that are understood are {', '.join(FORMATS)}")
    return [FORMATS[name]]


def folders_in(folder: Path, name: str | None = None) -> list[tuple[Path, Format]]:
    """The folder itself where it is of a format, else those of its subfolders that are.

    name: of a format, which is then the only one. Raises UserError where there is none.
    """
    if not folder.is_dir():
        raise UserError(f"there is no SAE directory {folder}")
    formats = formats_called(name)
    for places in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        if found := [(path, known) for path in places if (known := _known(path, formats)) is not None]:
            return found
    raise UserError(f"{folder} {_holds_none(formats)}")


def files_of(folder: str, files: Iterable[str]) -> list[str]:
    """Of a listing's files those that a folder is read from, with the configurations that lie beside it.

    folder: ``"."`` is the listing's root, without the other folders in it.
    """
    beside = {str(place / name) for place in PurePosixPath(folder).parents for name in ("config.json", "config.yaml")}

    def belongs(file: str) -> bool:
        if folder == ".":
            return "/" not in file or any(known.weights.fullmatch(file) for known in FORMATS.values())
        return file.startswith(f"{folder}/") or file in beside

    return [file for file in files if belongs(file)]


def folders_among(files: Iterable[str], name: str | None = None) -> list[str]:
    """The folders of a listing that hold weights, the root alone (``"."``) where it does.

    name: of a format, which is then the only one. Raises UserError where there is none.
    """
    formats = formats_called(name)
    found: dict[str, None] = {}
    for file in map(PurePosixPath, files):
        for place in file.parents:
            if any(known.weights.fullmatch(str(file.relative_to(place))) for known in formats):
                found[str(place)] = None
    if not found:
        raise UserError(_holds_none(formats))
    return ["."] if "." in found else sorted(found)


def _holds_none(formats: list[Format]) -> str:
    files = "; ".join(f"{known.files} ({known.name})" for known in formats)
    return f"holds no SAE: neither {files}, nor folders with them"


def _known(folder: Path, formats: list[Format]) -> Format | None:
    return next((known for known in formats if known.recognises(folder)), None)


__all__ = ["FORMATS", "Format", "Stored", "files_of", "folders_among", "folders_in", "formats_called"]
