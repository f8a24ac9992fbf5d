"""Hands out files over HTTP as the Hugging Face hub does. Imports nothing that reads HF_ENDPOINT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

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

    def listed(self, repository: str) -> dict[str, bytes]:
        """A repository's files by their names in it."""
        within = f"/{repository}/resolve/main/"
        return {path.removeprefix(within): content for path, content in self.files.items() if path.startswith(within)}

    def answer(self, path: str) -> bytes | None:
        """A file, or what the hub's API says of a repository: its files, or their sizes."""
        asked = re.fullmatch(rf"/api/models/([^/]+/[^/]+)(/revision/main|/tree/{COMMIT}\?.*)?", path)
        if asked is None or not (files := self.listed(asked[1])):
            return self.files.get(path)
        if (asked[2] or "").startswith("/tree"):
            tree = [{"type": "file", "path": name, "size": len(c), "oid": _blob(c)} for name, c in files.items()]
            return json.dumps(tree).encode()
        names = [{"rfilename": name} for name in files]
        return json.dumps({"id": asked[1], "sha": COMMIT, "siblings": names}).encode()


def _blob(content: bytes) -> str:
    """As git names it."""
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


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
            if not self.head(start) or content is None:
                return
            rest = content[start:]
            if path in hub.broken:
                hub.broken.remove(path)
                rest = rest[: len(rest) // 2]
                self.close_connection = True
            self.wfile.write(rest)

        def known(self) -> tuple[str, bytes | None]:
            path = unquote(self.path).replace(f"/resolve/{COMMIT}/", "/resolve/main/")
            return path, hub.answer(path)

        def head(self, start: int = 0) -> bool:
            """Whether a body follows."""
            path, content = self.known()
            of = path.removeprefix("/api/models")
            refused = next((why for name, why in hub.refused.items() if f"{of}/".startswith(f"/{name}/")), None)
            known = of == path or hub.listed("/".join(of.split("/")[1:3]))
            missing = (404, "EntryNotFound" if known else "RepoNotFound")
            status, code = refused or (missing if content is None else (206 if start else 200, ""))
            self.send_response(status)
            if status >= 400 or content is None:
                self.send_header("X-Error-Code", code)
                content = b""
            else:
                self.send_header("ETag", f'"{sha256(content).hexdigest()}"')  # the cache keeps one file per tag
                self.send_header("X-Repo-Commit", COMMIT)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            return status < 400

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
