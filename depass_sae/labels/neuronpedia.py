"""What Neuronpedia says that features mean: explanations from its API, asked for politely and kept on disk.

``GET {site}/api/feature/{model}/{sae}/{index}`` answers with a JSON object whose ``explanations`` have a
``description`` each; the first that says something becomes the label. Every answer is kept as a small file of its own,
also that there is no explanation (which is asked again after a month), so nothing is asked twice. Requests go one at a
time with a pause between them, and a 429 is waited out as long as its Retry-After allows.

Labels are never worth a result: whatever goes wrong costs the labels that are missing then, and is told in one line.
"""

from __future__ import annotations

import email.utils
import json
import os
import re
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import UserError
from ..files import write_text
from ..texts import is_hidden
from .files import read_labels

if TYPE_CHECKING:
    import httpx

SITE = "https://www.neuronpedia.org"
USER_AGENT = f"depass-sae/{__version__}"

LONGEST_LABEL = 300
"""Characters. Explanations are a sentence; whatever is longer is cut."""
LARGEST_ANSWER = 64 * 2**20
"""Bytes. A feature's page comes with all its contexts, a few megabytes at most."""
MOST_FAILURES = 3
"""So many answers in a row that are none, and no more is asked."""
MOST_WAITS = 5
"""So many times "too many requests" is waited out in one round, however short the wait."""
WAIT_WITHOUT_A_WORD = 5.0
"""Seconds, after a 429 that does not say how long."""
ASK_AGAIN_AFTER = 30 * 24 * 3600
"""Seconds that "no explanation" is believed."""

_ID = re.compile(r"[A-Za-z0-9_-][\w.-]*/[A-Za-z0-9_-][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Fetched:
    """Labels by the keys that they were asked for with, and one line where some could not be had."""

    labels: dict[str, str]
    warning: str | None = None


def feature_page(neuronpedia_id: str | None, index: int) -> str | None:
    """The address of a feature's page; None where its SAE names none (or something that is no id of Neuronpedia's)."""
    return f"{SITE}/{neuronpedia_id}/{index}" if _is_id(neuronpedia_id) else None


def labels_from(
    named: str | os.PathLike[str] | Mapping[str, str],
    pages: Mapping[str, tuple[str, int]],
    cache_dir: Path | None = None,
) -> Fetched:
    """Labels as people name them: a mapping, a .csv or .json file, or ``"neuronpedia"``, which is asked for ``pages``.

    Raises UserError for a file that is none of labels.
    """
    if isinstance(named, Mapping):
        return Fetched(dict(named))
    if named != "neuronpedia":
        return Fetched(read_labels(named))
    if not pages:
        return Fetched({}, "there are no labels: the SAEs do not say where they are on Neuronpedia")
    return fetch_labels(pages, cache_dir=cache_dir)


def fetch_labels(
    wanted: Mapping[str, tuple[str, int]],
    *,
    base_url: str = SITE,
    cache_dir: Path | None = None,
    timeout: float = 20.0,
    pause: float = 0.2,
    longest_wait: float = 30.0,
) -> Fetched:
    """The explanations of some features.

    wanted: a key of the caller's (``17/1208``) to the SAE's ``neuronpedia_id`` (``gemma-2-2b/20-gemmascope-res-16k``)
    and the index. cache_dir: where answers are kept; None is the user's cache folder. timeout: seconds for one answer
    as a whole. pause: seconds between requests. longest_wait: seconds that are waited in all where Neuronpedia says
    "too many requests".

    Raises nothing for what the network or the disk does.
    """
    labels: dict[str, str] = {}
    missing: dict[tuple[str, int], list[str]] = {}
    cache = _Cache.of(_folder(cache_dir), base_url)
    for key, (sae, index) in wanted.items():
        if not _is_id(sae):
            continue
        known = cache.read(sae, index)
        if known is None:
            missing.setdefault((sae, index), []).append(key)
        elif known.label:
            labels[key] = known.label
    trouble = None
    if missing:
        trouble = _ask(missing, labels, cache, _Client(base_url, timeout, pause, longest_wait))
    n = sum(len(keys) for keys in missing.values())
    warning = None if trouble is None else f"{trouble.count} of {n} labels could not be had: {trouble.why}"
    if warning is None and cache.trouble is not None:
        warning = f"Neuronpedia's labels could not be kept for the next time: {cache.trouble}"
    order = list(wanted)
    return Fetched(dict(sorted(labels.items(), key=lambda item: order.index(item[0]))), warning)


# ------------------------------------------------------------------------------------------------------------ requests


@dataclass(frozen=True)
class _Known:
    """An answer. label None: there is no explanation."""

    label: str | None


@dataclass(frozen=True)
class _Trouble:
    count: int
    why: str


class _NoAnswer(Exception):
    """One feature's answer is missing; ``final``: there is no sense in asking for others."""

    def __init__(self, why: str, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


def _ask(
    missing: Mapping[tuple[str, int], list[str]], labels: dict[str, str], cache: _Cache, client: _Client
) -> _Trouble | None:
    """Fill in ``labels``; what went wrong, if anything did."""
    left, failures, why = {feature: len(keys) for feature, keys in missing.items()}, 0, ""
    with client:
        for (sae, index), keys in missing.items():
            try:
                known = client.label(sae, index)
            except _NoAnswer as error:
                failures, why = failures + 1, why or str(error)
                if error.final or failures == MOST_FAILURES:
                    break
                continue
            failures = 0
            del left[sae, index]
            cache.write(sae, index, known)
            if known.label:
                labels.update(dict.fromkeys(keys, known.label))
    return _Trouble(sum(left.values()), why) if left else None


@dataclass
class _Client:
    """One connection for one round of questions."""

    base_url: str
    timeout: float
    pause: float
    longest_wait: float
    waited: float = 0.0
    waits: int = 0
    asked: int = 0
    http: httpx.Client = field(init=False)

    def __enter__(self) -> _Client:
        import httpx

        headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        self.http = httpx.Client(timeout=self.timeout, headers=headers, follow_redirects=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def label(self, sae: str, index: int) -> _Known:
        """Raises _NoAnswer."""
        body = self.answer(sae, index)
        return _Known(None if body is None else _explanation(body))

    def answer(self, sae: str, index: int) -> bytes | None:
        """All that there is of a feature; None where there is none. Raises _NoAnswer."""
        import httpx

        try:
            while True:
                status, retry_after, body = self._get(f"{self.base_url.rstrip('/')}/api/feature/{sae}/{index}")
                if status != 429:
                    break
                self._wait(retry_after)
        except httpx.TimeoutException:
            raise _NoAnswer(f"Neuronpedia did not answer within {self.timeout:g} s", final=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            raise _NoAnswer("Neuronpedia cannot be reached", final=True) from None
        if status == 404:
            return None
        if status != 200:
            raise _NoAnswer(f"Neuronpedia answered with status {status}")
        return body

    def _get(self, url: str) -> tuple[int, str | None, bytes]:
        import httpx

        if self.asked:
            time.sleep(self.pause)
        self.asked += 1
        deadline = time.monotonic() + self.timeout  # httpx's own timeout begins anew with every byte
        with self.http.stream("GET", url) as response:
            body = bytearray()
            for chunk in response.iter_bytes() if response.status_code == 200 else ():
                body += chunk
                if len(body) > LARGEST_ANSWER:
                    raise _NoAnswer("Neuronpedia's answer is too large")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("too slow as a whole")
            return response.status_code, response.headers.get("Retry-After"), bytes(body)

    def _wait(self, retry_after: str | None) -> None:
        seconds = _seconds(retry_after)
        if self.waited + seconds > self.longest_wait or self.waits == MOST_WAITS:
            raise _NoAnswer(f"Neuronpedia has had too many requests and asks to wait {seconds:.0f} s", final=True)
        self.waited, self.waits = self.waited + seconds, self.waits + 1
        time.sleep(seconds)


def _seconds(retry_after: str | None) -> float:
    """Retry-After is a number of seconds or a date."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return WAIT_WITHOUT_A_WORD


def _explanation(body: bytes) -> str | None:
    """Raises _NoAnswer for what is no answer of this API."""
    try:
        content = json.loads(body)
        entries = content["explanations"]
        if not isinstance(entries, list):
            raise TypeError
        texts = [entry["description"] for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _NoAnswer("Neuronpedia's answer is not the JSON that its API has") from None
    return next((label for text in texts if isinstance(text, str) and (label := plain(text))), None)


def plain(text: str) -> str:
    """A label on one line, without control and direction characters, at most LONGEST_LABEL long."""
    kept = (" " if c.isspace() else c for c in text if c.isspace() or not (is_hidden(c) or _is_unassigned(c)))
    line = " ".join("".join(kept).split())
    return line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1].rstrip() + "…"


def _is_unassigned(char: str) -> bool:
    return unicodedata.category(char) in ("Co", "Cn")


def _is_id(text: Any) -> bool:
    return isinstance(text, str) and _ID.fullmatch(text) is not None


# ------------------------------------------------------------------------------------------------------------- on disk


@dataclass
class _Cache:
    """A file per answer: ``model/sae/index.json``. ``trouble``: why the first that could not be written was not."""

    folder: Path
    trouble: str | None = None

    @classmethod
    def of(cls, folder: Path, base_url: str) -> _Cache:
        """Of one site."""
        return cls(folder / re.sub(r"[^A-Za-z0-9.-]+", "_", base_url.partition("://")[2] or base_url))

    def read(self, sae: str, index: int) -> _Known | None:
        """None: not asked yet, too old, or damaged."""
        path = self.path(sae, index)
        try:
            label = json.loads(path.read_text(encoding="utf-8"))["label"]
            if label is None and time.time() - path.stat().st_mtime > ASK_AGAIN_AFTER:
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if label is None:
            return _Known(None)
        return _Known(plain(label)) if isinstance(label, str) else None

    def write(self, sae: str, index: int, known: _Known) -> None:
        trouble = self.keep(self.path(sae, index), {"schema_version": 1, "label": known.label})
        self.trouble = self.trouble or trouble

    @staticmethod
    def keep(path: Path, content: Mapping[str, Any]) -> str | None:
        """Write an answer; why not, where it cannot be."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(content) + "\n")
        except OSError as error:
            return f"{path.parent}: {error.strerror}"
        except UserError as error:
            return str(error)
        return None

    def path(self, sae: str, index: int) -> Path:
        return self.folder.joinpath(*sae.split("/"), f"{int(index)}.json")


def _folder(cache_dir: Path | None) -> Path:
    if cache_dir is None:
        import platformdirs

        cache_dir = platformdirs.user_cache_path("depass-sae")
    return cache_dir / "neuronpedia"
