"""What people say of a scan, in Python's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack, get_args

from ..errors import UserError
from ..passes.forward import Progress
from ..passes.settings import Settings
from .cluster import Ray
from .engines import HERE, Engine, Processes
from .items import Reading
from .settings import ScanSettings

EngineName = Literal["local", "ray"]
MOST = 1024
"""Workers."""


class Scanning(TypedDict, total=False):
    """How a corpus is scanned.

    window: tokens that the model sees at once (default: as the SAEs were trained); a longer document is cut.
    top (20), samples (4): contexts of each feature, the strongest and those drawn from each octave of activation; no
    two are of one document unless repeats. kept_tokens (1,024), kept_beside (64): of how many tokens that a feature
    fires on, and of how many before and after these, it is kept how often. full: features of which every activation is
    kept, or "all". limit: stop after so many tokens. documents: what is one in a plain text, a line, a paragraph or a
    file. column: where the text is, in files with columns. unit (32,768): tokens of a unit of work.

    workers: processes that do units (default: 1, this one; with Ray, one a GPU). engine: "local", or "ray", which is
    this machine alone unless ray_address names a cluster. The files are the same. A process beside this one has a model
    of its own. progress: its steps in all are 0 where nobody knows how many.
    """

    window: int | None
    top: int
    samples: int
    repeats: bool
    kept_tokens: int
    kept_beside: int
    full: str | Sequence[str] | None
    limit: int | None
    documents: str
    column: str
    unit: int
    workers: int | None
    engine: EngineName
    ray_address: str | None
    progress: Progress | None


OF_READING = ("documents", "column")
OF_ENGINE = ("engine", "workers", "ray_address")


def asked(**how: Unpack[Scanning]) -> tuple[ScanSettings, Engine, Settings]:
    """Raises UserError for what cannot be."""
    given: dict[str, Any] = dict(how)
    settings = Settings.of(progress=given.pop("progress", None))
    reading = Reading(**{name: given.pop(name) for name in OF_READING if name in given})
    engine = engine_of(**{name: given.pop(name) for name in OF_ENGINE if name in given})
    full = given.pop("full", None)
    named = (full,) if isinstance(full, str) else tuple(full or ())
    return ScanSettings(full=named, reading=reading, **given), engine, settings


def engine_of(engine: str = "local", workers: int | None = None, ray_address: str | None = None) -> Engine:
    """Raises UserError for one that there is not."""
    if engine not in get_args(EngineName):
        raise UserError(f"an engine is {' or '.join(get_args(EngineName))}, not {engine!r}")
    if workers is not None and not 1 <= workers <= MOST:
        raise UserError(f"workers are 1 to {MOST:,}, not {workers:,}")
    if engine == "ray":
        return Ray(workers, ray_address)
    if ray_address is not None:
        raise UserError("ray_address is where the ray engine finds its cluster: ask for engine ray, too")
    return HERE if workers in (None, 1) else Processes(workers)
