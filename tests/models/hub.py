"""Plays the hub, and then no network, to one process: prints what load_model says about some models, as JSON.

Run by itself, because huggingface_hub reads HF_ENDPOINT when it is imported.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

ANSWERS = {
    "gated-401": (401, "GatedRepo", "Access to model owner/gated-401 is restricted. You must log in to access it."),
    "gated-403": (403, "GatedRepo", "Access to model owner/gated-403 is restricted and you are not on the list."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "private": (401, "RepoNotFound", "Invalid username or password."),
    "empty": (404, "EntryNotFound", "Entry not found"),
    "branchless": (404, "RevisionNotFound", "Invalid rev id: v2"),
    "adapter": (404, "EntryNotFound", "Entry not found"),
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = next((name for name in ANSWERS if f"owner/{name}" in self.path), "missing")
        status, code, message = ANSWERS[name]
        if self.path.endswith("owner/adapter/resolve/main/adapter_config.json"):
            status, code, message = 200, "", ""
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

    from depass_sae.errors import UserError
    from depass_sae.models.load import Checkpoint, load_model

    said = {}
    wanted = {"empty, subfolder": {"subfolder": "sub"}, "branchless, revision": {"revision": "v2"}}
    for name in [*ANSWERS, *wanted, "offline"]:
        if name == "offline":
            server.shutdown()
            server.server_close()
        began = time.monotonic()
        try:
            load_model(f"owner/{name.partition(',')[0]}", checkpoint=Checkpoint(**wanted.get(name, {})))
            message = "loaded"
        except UserError as error:
            message = str(error)
        said[name] = {"message": message, "seconds": time.monotonic() - began}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
