"""What an index says of itself: made of what, by what, and how. Written last: without it there is no index."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import parse_json, read_text, write_text
from ..models.place import Place

if TYPE_CHECKING:
    from .schema import CorpusKeys, Count, KeptActivations, LeftOut, ModelKeys, ScanKeys, ScannedSAE, TokenizerKeys

NAME = "manifest.json"
FORMAT = "depass-sae index"
SCHEMA_VERSION = 1
"""Of the files of an index. It rises when something changes its meaning or goes."""


@dataclass(frozen=True)
class Manifest:
    """tokens: at which features count. drawn: of these, on how many it was counted which features fire together.

    saes: what is known of each, by hook; with ``sha256`` of its weights. full: the features of which every activation
    is kept. left_out: what of the corpus was not read: ``why`` how often, and the ``first`` places. The published JSON
    Schema is made of these fields (:mod:`.schema`).
    """

    model: ModelKeys
    tokenizer: TokenizerKeys
    saes: dict[str, ScannedSAE]
    corpus: CorpusKeys
    settings: ScanKeys
    tokens: Count
    drawn: Count
    full: dict[str, KeptActivations]
    left_out: LeftOut

    def write(self, folder: Path) -> None:
        document = {"schema_version": SCHEMA_VERSION, "format": FORMAT, **vars(self)}
        write_text(folder / NAME, json.dumps(document, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises UserError where there is none, where it was not finished, and for one of a later version."""
        path = folder / NAME
        if not path.exists():
            begun = (folder / "parts").exists()
            why = "its scan was not finished; the same command goes on with it" if begun else f"it has no {NAME}"
            raise UserError(f"{folder} is no index: {why}")
        try:
            said = parse_json(read_text(path))
        except UserError as error:
            raise UserError(f"cannot read {path}: {error}") from None
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            raise UserError(f"{path} is no index's manifest")
        version = said.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(f"{folder} has format {version}, and this depass-sae reads {SCHEMA_VERSION}")
        said.pop("format")
        try:
            return cls(**said)
        except TypeError:
            raise UserError(f"{path} is damaged: something is missing in it") from None

    @property
    def widths(self) -> dict[Place, int]:
        """How many features each SAE has."""
        return {Place.parse(hook): int(sae["d_sae"]) for hook, sae in self.saes.items()}
