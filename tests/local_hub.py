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
from urllib.parse import parse_qs, unquote

COMMIT = "a" * 40


@dataclass
class Hub:
    """What there is, and what happened.

    files: by path, ``/OWNER/NAME/resolve/main/FILE``, of a data set ``/datasets/OWNER/...``.
    refused: by repository, the status and the hub's code for it.
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
        asked = re.fullmatch(rf"{API}(/revision/\w+|/tree/{COMMIT}([^?]*)(\?.*)?)?", path)
        if asked is None or not (files := self.listed(_named(asked))):
            return self.files.get(path)
        if (asked[3] or "").startswith("/tree"):
            every = "recursive=true" in (asked[5] or "").lower()
            return json.dumps(_tree(files, unquote(asked[4]).strip("/"), every)).encode()
        names = [{"rfilename": name} for name in files]
        return json.dumps({"id": asked[2], "sha": COMMIT, "siblings": names}).encode()

    def about(self, path: str, names: list[str]) -> bytes | None:
        """What the API says of some files and folders of a repository."""
        asked = re.fullmatch(rf"{API}/paths-info/{COMMIT}", path)
        if asked is None or not (files := self.listed(_named(asked))):
            return None
        found = [_entry(name, files[name]) for name in names if name in files]
        folders = [name for name in names if any(file.startswith(f"{name}/") for file in files)]
        return json.dumps(
            [*found, *({"type": "directory", "path": name, "oid": "0" * 40} for name in folders)]
        ).encode()


API = r"/api/(models|datasets)/([^/]+/[^/]+)"


def _named(asked: re.Match[str]) -> str:
    return asked[2] if asked[1] == "models" else f"datasets/{asked[2]}"


def _tree(files: Mapping[str, bytes], folder: str, every: bool) -> list[dict[str, object]]:
    """What is in a folder; every: in the folders in it, too."""
    within = f"{folder}/" if folder else ""
    inside = {name: content for name, content in files.items() if name.startswith(within)}
    direct = {name: "/" not in name.removeprefix(within) for name in inside}
    folders = {within + name.removeprefix(within).partition("/")[0] for name in inside if not direct[name]}
    found = [_entry(name, content) for name, content in inside.items() if every or direct[name]]
    return [*found, *({"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(folders))]


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}


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
            start, end = 0, None
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                hub.ranges.setdefault(path, []).append(asked[0])
                start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else None
            if not self.head(start, end, partial=asked is not None) or content is None:
                return
            rest = content[start:end]
            if path in hub.broken:
                hub.broken.remove(path)
                rest = rest[: len(rest) // 2]
                self.close_connection = True
            self.wfile.write(rest)

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            content = hub.about(self.path, form.get("paths", []))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def known(self) -> tuple[str, bytes | None]:
            path = unquote(self.path).replace(f"/resolve/{COMMIT}/", "/resolve/main/")
            return path, hub.answer(path)

        def head(self, start: int = 0, end: int | None = None, partial: bool = False) -> bool:
            """Whether a body follows."""
            path, content = self.known()
            of = re.sub("^/api/(models(?=/)|(?=datasets/))", "", path)
            refused = next((why for name, why in hub.refused.items() if f"{of}/".startswith(f"/{name}/")), None)
            of = of if of.startswith("/") else f"/{of}"
            known = of == path or hub.listed("/".join(of.split("/")[1 : 4 if of.startswith("/datasets/") else 3]))
            missing = (404, "EntryNotFound" if known else "RepoNotFound")
            status, code = refused or (missing if content is None else (206 if partial else 200, ""))
            self.send_response(status)
            if status >= 400 or content is None:
                self.send_header("X-Error-Code", code)
                content = b""
            else:
                self.send_header("ETag", f'"{sha256(content).hexdigest()}"')  # the cache keeps one file per tag
                self.send_header("X-Repo-Commit", COMMIT)
            last = len(content) if end is None else min(end, len(content))
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{last - 1}/{len(content)}")
            self.send_header("Content-Length", str(last - start))
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
