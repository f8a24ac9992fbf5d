"""A page in a browser, watched."""

from typing import Any


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
