"""Pictures of pages, taken in headless Chromium (``pip install playwright``, and a Chromium)."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import UserError
from ..files import write_bytes, write_text

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
SCALE = 2
"""Pixels of a picture for each of the page's: crisp on fine screens."""


@contextmanager
def browser() -> Iterator[Any]:
    """Raises UserError where playwright or Chromium is missing."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise UserError("pictures of pages need playwright and Chromium: pip install playwright") from None
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(
                executable_path=next(filter(None, map(shutil.which, CHROMIUM)), None), args=list(ARGUMENTS)
            )
        except Error:
            raise UserError("pictures of pages need Chromium: install it, or run playwright install chromium") from None
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(browser: Any, page: str, size: tuple[int, int]) -> Iterator[Any]:
    """A window of this size in which a page is shown, in light colours."""
    width, height = size
    with TemporaryDirectory() as folder:
        write_text(file := Path(folder) / "page.html", page)
        context = browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=SCALE,
            color_scheme="light",
            reduced_motion="reduce",
        )
        window = context.new_page()
        window.goto(file.as_uri())
        yield window
        context.close()


def photograph(window: Any, path: Path, clip: Mapping[str, float] | None = None) -> None:
    """What is seen in a window, or a part of it, as a PNG of 256 colours: a quarter of the size, and as legible."""
    from PIL import Image

    window.mouse.move(1, 1)  # so that no tooltip is shown
    seen = Image.open(io.BytesIO(window.screenshot(animations="disabled", caret="hide", clip=clip)))
    out = io.BytesIO()
    colours = seen.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours.save(out, "png", optimize=True)
    write_bytes(path, out.getvalue())
