"""Serves the pages of an index to this machine alone.

It listens on 127.0.0.1, answers GET and nothing else, and only who asks for this machine by its own name: a page of
someone else's, whose name was made to lead here, is refused.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...texts import one_line
from ...view.page import SITE_POLICY, site_files, site_page
from .pages import Elsewhere, Found, NoSuchPageError, answer, trouble

if TYPE_CHECKING:
    from ..index import Index

HOST = "127.0.0.1"
LARGEST = 65535
"""Port."""
PATIENCE = 20.0
"""Seconds in which a request has to come."""
HEADERS = {
    "Content-Security-Policy": SITE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Browsing:
    """An index that is being served. address: to open in a browser. ``close`` ends it, and ``with`` does."""

    def __init__(self, index: Index, port: int) -> None:
        self._server = _listening(index, port)
        self.address = f"http://{HOST}:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def open(self) -> None:
        """In the browser; not in one that would take the terminal for itself."""
        with suppress(webbrowser.Error):
            if type(browser := webbrowser.get()) is not webbrowser.GenericBrowser:
                browser.open(self.address)

    def wait(self) -> None:
        """Until Ctrl-C, which ends it."""
        try:
            while self._thread.is_alive():
                time.sleep(0.2)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Browsing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Browsing({self.address})"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, index: Index) -> None:
        super().__init__((HOST, port), _Handler)
        self.index = index
        self.lock = threading.Lock()  # an index is read by one at a time
        self.files = site_files()
        self.names = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        if self.server_port == 80:  # which browsers leave out
            self.names |= {HOST, "localhost"}

    def server_bind(self) -> None:
        """Without asking a name server what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that has gone is no trouble."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _listening(index: Index, port: int) -> _Server:
    """Raises UserError for a port that is none, or is taken."""
    if not 0 <= port <= LARGEST:
        raise UserError(f"a port is a number from 0 (any that is free) to {LARGEST}, not {port}")
    try:
        return _Server(port, index)
    except OSError as error:
        taken = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise UserError(f"cannot listen on port {port}: {taken}; port 0 is any that is free") from None


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "depass-sae", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        if self.headers.get("Host", "").lower() not in self.server.names:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path in self.server.files:
            kind, text = self.server.files[self.path]
            self._send(HTTPStatus.OK, text, kind)
        else:
            self._send_page()

    def _send_page(self) -> None:
        with self.server.lock:
            status, found = self._found()
            if isinstance(found, Found):
                text = site_page(found.page, found.site)
        if isinstance(found, Found):
            self._send(status, text, "text/html")
        else:
            self._send(HTTPStatus.FOUND, "", "text/plain", {"Location": found.address})

    def _found(self) -> tuple[HTTPStatus, Found | Elsewhere]:
        index = self.server.index
        try:
            return HTTPStatus.OK, answer(index, self.path)
        except NoSuchPageError:
            return HTTPStatus.NOT_FOUND, trouble(index, "There is no such page", "Nothing is at this address.")
        except UserError as error:
            return HTTPStatus.BAD_REQUEST, trouble(index, "That cannot be shown", str(error))
        except Exception as error:  # an index that was taken away meanwhile
            said = one_line(f"{type(error).__name__}: {error}")
            return HTTPStatus.INTERNAL_SERVER_ERROR, trouble(index, "The index cannot be read", said)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A line, and nothing of what was asked. What is no GET is told so."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        more = {"Allow": "GET"} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        with suppress(OSError):
            self._send(status, f"{status.value} {status.phrase}\n", "text/plain", more)
        self.close_connection = True

    def _send(self, status: HTTPStatus, text: str, kind: str, more: dict[str, str] | None = None) -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        for name, value in (headers | HEADERS | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        return "depass-sae"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is told of what was asked."""
