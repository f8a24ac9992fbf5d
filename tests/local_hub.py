"""Hands out files over HTTP as the Hugging Face hub does. Imports nothing that reads HF_ENDPOINT."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "a" * 40


@dataclass
class Hub:
    """What there is, and what happened.

    files: by path, ``/OWNER/NAME/resolve/main/FILE``. refused: by repository, the status and the hub's code for it.
    broken: paths whose first transfer ends halfway. ranges: the parts that were asked for, by path.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    ranges: dict[str, list[str]] = field(default_factory=dict)

    def add(self, repository: str, files: Mapping[str, bytes]) -> None:
        self.files |= {f"/{repository}/resolve/main/{name}": content for name, content in files.items()}


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that runs on this machine, empty at first."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.head()

        def do_GET(self) -> None:
            path, content = self.known()
            start = 0
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                hub.ranges.setdefault(path, []).append(asked[0])
                start = int(asked[1])
            self.head(start)
            rest = content[start:]
            if path in hub.broken:
                hub.broken.remove(path)
                rest = rest[: len(rest) // 2]
                self.close_connection = True
            self.wfile.write(rest)

        def known(self) -> tuple[str, bytes]:
            path = self.path.replace(f"/resolve/{COMMIT}/", "/resolve/main/")
            return path, hub.files.get(path, b"")

        def head(self, start: int = 0) -> None:
            path, content = self.known()
            refused = next((why for name, why in hub.refused.items() if path.startswith(f"/{name}/")), None)
            status, code = refused or ((206 if start else 200, "") if path in hub.files else (404, "EntryNotFound"))
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                content = b""
            else:
                self.send_header("ETag", f'"{sha256(content).hexdigest()}"')  # the cache keeps one file per tag
                self.send_header("X-Repo-Commit", COMMIT)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
