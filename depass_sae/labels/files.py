"""What features mean, in words: explanations from a file or a mapping, from files.

A label belongs to a feature of a layer's SAE, at whatever position it fires: ``17/1208``, or ``17.mlp_out/1208`` where
the layer has several. Files are tables (CSV with
the columns feature,label or layer,index,label), JSON objects (``{"17/1208": "text"}``), JSON lists of objects with
layer, index and label, or Neuronpedia's exports (lists of objects with layer ``"17-res-jb"``, index ``"1208"`` and
description). The first label of a feature counts. The folder of an index has automatic ones.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..arguments import typed
from ..errors import UserError
from ..files import check_unicode, parse_json, read_text
from .kept import index_folder, read_index_labels

FEATURE = re.compile(r"(\d{1,9}(?:\.[a-z][a-z0-9_]{0,30})?)/(\d{1,9})", re.ASCII)
LAYER = re.compile(r"(\d{1,9})(?:-\S*)?", re.ASCII)
INDEX = re.compile(r"\d{1,9}", re.ASCII)


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises UserError for a label that is no text, or not a text's."""
    for key, label in labels.items():
        if not (isinstance(key, str) and isinstance(label, str)):
            raise UserError(f"labels: {key!r}: {label!r} should be like '17/1208': 'a text' (layer/index of a feature)")
        check_unicode(label, f"labels: the label of {key}")


@typed
def read_labels(path: str | os.PathLike[str]) -> dict[str, str]:
    """The labels in a .csv or .json file, or in the folder of an index, by ``layer/index``.

    ``"smollm2"``: the index of the SAEs that come with the package.

    Raises UserError with one line: where it breaks.
    """
    path = index_folder(path)
    if os.path.isdir(path):  # which, other than Path.is_dir, no name is too long for
        return read_index_labels(path)
    parsers = {".csv": _from_csv, ".json": _from_json}
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        raise UserError(f"cannot read {path}: labels are read from {' and '.join(parsers)} files")
    found: dict[str, str] = {}
    try:
        for key, label in parse(read_text(path)):
            text = " ".join(label.split())
            if text:
                found.setdefault(key, text)
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return found


def _from_csv(text: str) -> Iterator[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [str(name).strip() for name in rows.fieldnames or ()]
        if not ({"feature", "label"} <= set(header) or {"layer", "index", "label"} <= set(header)):
            raise UserError("its first line should be feature,label or layer,index,label")
        rows.fieldnames = header
        for row in rows:
            yield _entry(row, f"line {rows.line_num}")
    except csv.Error as error:
        raise UserError(f"line {rows.line_num}: it is no CSV ({error})") from None


def _from_json(text: str) -> Iterable[tuple[str, str]]:
    content = parse_json(text)
    if isinstance(content, dict):
        return [_entry({"feature": key, "label": label}, f"{key!r}") for key, label in content.items()]
    if isinstance(content, list):
        return [_entry(item, f"entry {i}") for i, item in enumerate(content)]
    raise UserError("it should be an object {'17/1208': 'text'} or a list of objects with layer, index and label")


def _entry(item: Any, where: str) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise UserError(f"{where}: should be an object with layer, index and label")
    label = item["label"] if "label" in item else item.get("description")
    if not isinstance(label, str):
        raise UserError(f"{where}: its label should be a text")
    check_unicode(label, f"{where}: its label")
    if "feature" in item:
        parts = FEATURE.fullmatch(str(item["feature"]).strip())
        if parts is None:
            raise UserError(f"{where}: a feature is layer/index like 17/1208, not {item['feature']!r}")
        return key(*parts.groups()), label
    layer = LAYER.fullmatch(_number(item.get("layer")))
    index = INDEX.fullmatch(_number(item.get("index")))
    if layer is None or index is None:
        raise UserError(
            f"{where}: layer and index should be numbers from 0, not {item.get('layer')!r} and {item.get('index')!r}"
        )
    return key(layer[1], index[0]), label


def _number(value: Any) -> str:
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def key(layer: str, index: str) -> str:
    number, dot, hook = layer.partition(".")
    return f"{int(number)}{dot}{hook}/{int(index)}"
