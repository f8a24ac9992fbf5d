"""SAEs from a sae-lens release or a repository's folders, by way of the Hugging Face hub.

Which ids lie at a layer is read off the ids themselves, so choosing needs no network. Everything that the hub can
answer instead of a file (gated, missing, unreachable) is told in one line that says what to do.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .formats import files_of, folders_among
from .own import one_line, quiet
from .stands import SUMMED, SUMMING

if TYPE_CHECKING:
    from sae_lens import SAE

# "blocks.8.hook_resid_pre", "layer_20/width_16k/canonical", "resid_post_layer_3_trainer_1", "layer0", "l25r_8x"
ID_LAYER = re.compile(r"blocks\.(\d+)\.|layer_?(\d+)|^l(\d+)[arm]_")


def is_release(name: str) -> bool:
    """Whether sae-lens's registry knows a name."""
    return name in _registry()


def load_release(release: str, sae_ids: Sequence[str] | None, layers: Sequence[int] | None) -> dict[str, "SAE"]:
    """The SAEs of a release in float32, by id: those of `sae_ids`, else the one at each of `layers`.

    Raises UserError for ids that do not exist, for a choice that is not unique, and for what the hub refuses.
    """
    listed = _registry()[release]
    chosen = choose_ids(release, list(listed.saes_map), sae_ids, layers)
    found = {sae_id: _fetch(release, sae_id, listed.repo_id) for sae_id in chosen}
    if listed.conversion_func == SUMMING:
        for sae in found.values():
            sae.cfg.metadata[SUMMED] = True
    return found


def fetch_folders(repository: str, names: Sequence[str] | None, sae_format: str | None) -> dict[str, Path]:
    """Folders of a hub repository, in the hub's cache, with the configurations that lie beside them.

    names: which; ``"."`` is the whole repository. None: the only one of the format, or of any, that there is.
    Raises UserError for what the repository does not have, and for what the hub refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(
            f"there is no SAE directory or sae-lens release {repository!r}{close_to(repository, _registry())}"
        )
    with quiet():
        from huggingface_hub import snapshot_download

        try:
            files = _listing(repository)
        except Exception as error:  # whatever the hub in between can raise
            raise UserError(
                f"{repository} is no SAE directory and no sae-lens release, and as a hub repository: "
                f"{_why(error, repository)}"
            ) from error
        names = _folders(repository, files, names, sae_format)
        wanted = {file for name in names for file in files_of(name, files)}
        try:
            root = Path(snapshot_download(repository, allow_patterns=[escape(file) for file in sorted(wanted)]))
        except Exception as error:
            raise UserError(f"cannot load {', '.join(names)} of {repository}: {_why(error, repository)}") from error
    return {name: root / name for name in names}


def _folders(repository: str, files: Sequence[str], names: Sequence[str] | None, sae_format: str | None) -> list[str]:
    """Which folders of a repository are meant."""
    there = {str(place) for file in files for place in PurePosixPath(file).parents}
    if names:
        for name in names:
            if name not in there:
                raise UserError(f"{repository} has no folder {name}{close_to(name, there)}")
        return list(names)
    try:
        found = folders_among(files, sae_format)
    except UserError as error:
        raise UserError(f"{repository} {error}") from None
    if len(found) > 1:
        raise UserError(f"{repository} has {len(found)} SAEs: choose with sae_ids; {_listed('it has', found)}")
    return found


def _listing(repository: str) -> list[str]:
    """A repository's files; of what is in the cache where the hub does not say."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        return [file.rfilename for file in HfApi().model_info(repository, timeout=10).siblings or []]
    except Exception as error:  # whatever the hub in between can raise
        try:
            # No file has this name, so that what is there is enough.
            root = Path(snapshot_download(repository, allow_patterns="//", local_files_only=True))
        except Exception:
            raise error from None
        return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]


def _registry() -> Mapping[str, Any]:
    with quiet():
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        return get_pretrained_saes_directory()


def choose_ids(
    release: str, ids: Sequence[str], sae_ids: Sequence[str] | None, layers: Sequence[int] | None
) -> list[str]:
    """Which of a release's `ids` are meant. Pure; raises UserError where that is not clear."""
    if sae_ids is not None:
        for wanted in sae_ids:
            if wanted not in ids:
                raise UserError(f"{release} has no SAE {wanted!r}{close_to(wanted, ids)}; {_listed('it has', ids)}")
        return list(sae_ids)
    if layers is None:
        if len(ids) == 1:
            return list(ids)
        raise UserError(f"{release} has {len(ids)} SAEs: choose with layers or sae_ids; {_listed('it has', ids)}")
    return [_only_id_at(release, ids, layer) for layer in layers]


def layer_of_id(sae_id: str) -> int | None:
    """The layer that an id of sae-lens's registry names; None for SAEs on the embedding."""
    match = ID_LAYER.search(sae_id)
    return None if match is None else int(next(group for group in match.groups() if group is not None))


def _only_id_at(release: str, ids: Sequence[str], layer: int) -> str:
    here = [sae_id for sae_id in ids if layer_of_id(sae_id) == layer]
    if not here:
        there = sorted({number for sae_id in ids if (number := layer_of_id(sae_id)) is not None})
        raise UserError(f"{release} has no SAE at layer {layer}; its layers are {', '.join(map(str, there))}")
    if len(here) > 1:
        raise UserError(
            f"{release} has {len(here)} SAEs at layer {layer}: choose with sae_ids; {_listed('they are', here)}"
        )
    return here[0]


def _fetch(release: str, sae_id: str, repository: str) -> "SAE":
    with quiet():
        from sae_lens import SAE

        try:
            return SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
        except MemoryError:
            raise
        except Exception as error:  # whatever a file of fifteen formats, or the hub in between, can raise
            raise UserError(f"cannot load {sae_id} of {release}: {_why(error, repository)}") from error


def _why(error: Exception, repository: str) -> str:
    """What went wrong on the way to a file of the hub, and what would put it right."""
    from huggingface_hub import errors as hub
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import Timeout
    from safetensors import SafetensorError

    status = _status(error)
    if isinstance(error, hub.GatedRepoError) or (
        status in (401, 403) and not isinstance(error, hub.RepositoryNotFoundError)
    ):
        return (
            f"{repository} is gated: accept its licence on https://huggingface.co/{repository} and then set HF_TOKEN "
            "or run `hf auth login`"
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"the hub has no repository {repository}, or it is private: for that set HF_TOKEN or run `hf auth login`"
    if isinstance(error, hub.RemoteEntryNotFoundError) or status == 404:
        return f"{repository} does not hold the file (404): another version of sae-lens may know where it lies"
    if status is not None:
        return f"the Hugging Face hub answered {status} for {repository}: try again later"
    unreachable = (
        hub.LocalEntryNotFoundError,
        hub.OfflineModeIsEnabled,
        NoConnection,
        Timeout,
        ConnectionError,
        TimeoutError,
    )
    if isinstance(error, unreachable) or type(error).__module__.startswith("httpx"):
        return "it is not in the local cache and the Hugging Face hub cannot be reached: check the network connection"
    if isinstance(error, SafetensorError):
        return f"its file is damaged ({one_line(error)}): delete {repository} from the Hugging Face cache and try again"
    return one_line(error)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error: huggingface_hub hides all but a few behind "not found locally"."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def close_to(wanted: str, names: Iterable[str]) -> str:
    """What may have been meant, for the end of a message."""
    close = difflib.get_close_matches(wanted, list(names), n=3)
    return f"; close to it: {', '.join(close)}" if close else ""


def _listed(verb: str, names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{verb} {', '.join(names[:most])}{more}"
