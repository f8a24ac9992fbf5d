"""The bar of a measurement that takes minutes, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..passes.forward import Progress


@contextmanager
def bar() -> Iterator[Progress]:
    """What the work is told by: one bar, of what is being done now."""
    from rich.progress import Progress as Bars

    with Bars() as bars:
        task = bars.add_task("", total=None)

        def tell(what: str, done: int, of: int) -> None:
            bars.update(task, description=what, completed=done, total=of or None)

        yield tell
