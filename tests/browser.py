"""A page in a browser, watched."""

from pathlib import Path
from typing import Any

AXE = Path(__file__).parent / "data" / "axe" / "axe.min.js"
GRAVE = ("serious", "critical")
ALL = ("minor", "moderate", *GRAVE)


class Watched:
    """A new page, what it asked for, and what went on there that should not."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.requests: list[str] = []
        self.trouble: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("dialog", lambda dialog: self.trouble.append(dialog.message))


def barriers(page: Any, impacts: tuple[str, ...] = GRAVE) -> list[Any]:
    """What axe finds on a page as it stands, frames left out: rule, element, what to do.

    It fetches nothing itself: styles of a page that is opened from disk cannot be.
    """
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {iframes: false, preload: false, resultTypes: ['violations']})")
    return [
        (fault["id"], fault["nodes"][0]["html"][:160], fault["nodes"][0]["failureSummary"])
        for fault in found["violations"]
        if fault["impact"] in impacts
    ]
