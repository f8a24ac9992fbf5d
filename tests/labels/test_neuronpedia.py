"""Labels from Neuronpedia's API, played by a local server: polite, kept on disk, and never worth a result."""

from __future__ import annotations

import email.utils
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from depass_sae.labels.neuronpedia import (
    ASK_AGAIN_AFTER,
    LONGEST_LABEL,
    SITE,
    USER_AGENT,
    Fetched,
    feature_page,
    fetch_labels,
    plain,
)

SAE = "gpt2-small/6-res-jb"
Answer = tuple[int, dict[str, str], bytes]


def explained(*texts: Any) -> Answer:
    return 200, {}, json.dumps({"index": "1", "explanations": [{"description": text} for text in texts]}).encode()


class Neuronpedia(ThreadingHTTPServer):
    """Answers by path; a list of answers is given one after the other, the last again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer | list[Answer] | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[tuple[str, str | None, float]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, index: int, *answers: Any) -> None:
        self.answers[f"/api/feature/{SAE}/{index}"] = list(answers) if len(answers) > 1 else answers[0]


class Handler(BaseHTTPRequestHandler):
    server: Neuronpedia

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("User-Agent"), time.monotonic()))
        found = self.server.answers.get(self.path, (404, {}, b""))
        if callable(found):
            found(self)
            return
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        status, headers, body = found
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Neuronpedia]:
    monkeypatch.setenv("NO_PROXY", "*")
    with Neuronpedia() as played:
        thread = threading.Thread(target=played.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield played
        played.shutdown()
        thread.join()


def ask(server: Neuronpedia, cache: Path, *indices: int, **options: Any) -> Fetched:
    wanted = {f"6/{index}": (SAE, index) for index in indices}
    options = {"pause": 0.0, "timeout": 5.0} | options
    return fetch_labels(wanted, base_url=server.url, cache_dir=cache, **options)


def test_the_first_explanation_that_says_something_is_the_label(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, explained(None, "  ", "mentions of  supply\nand demand", "another"))
    assert ask(server, tmp_path, 1) == Fetched({"6/1": "mentions of supply and demand"})


def test_requests_say_who_asks_and_keep_their_distance(server: Neuronpedia, tmp_path: Path) -> None:
    for index in range(3):
        server.answer(index, explained(f"label {index}"))
    ask(server, tmp_path, 0, 1, 2, pause=0.05)
    assert {agent for _, agent, _ in server.requests} == {USER_AGENT}
    times = [at for _, _, at in server.requests]
    assert min(times[1] - times[0], times[2] - times[1]) >= 0.05


def test_what_was_answered_once_is_not_asked_again(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, explained("a label"))
    server.answer(2, explained())
    first = ask(server, tmp_path, 1, 2, 3)
    assert first == Fetched({"6/1": "a label"})
    assert len(server.requests) == 3
    assert ask(server, tmp_path, 1, 2, 3) == first
    assert len(server.requests) == 3


def test_that_there_is_no_explanation_is_believed_for_a_month(server: Neuronpedia, tmp_path: Path) -> None:
    ask(server, tmp_path, 3)
    (file,) = tmp_path.rglob("3.json")
    old = time.time() - ASK_AGAIN_AFTER - 60
    os.utime(file, (old, old))
    server.answer(3, explained("found meanwhile"))
    assert ask(server, tmp_path, 3).labels == {"6/3": "found meanwhile"}


def test_a_damaged_cache_file_is_asked_for_again(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, explained("a label"))
    ask(server, tmp_path, 1)
    (file,) = tmp_path.rglob("1.json")
    for damaged in ("", "[]", '{"label": 7}', "{", '{"no": 1}'):
        file.write_text(damaged)
        assert ask(server, tmp_path, 1).labels == {"6/1": "a label"}


def test_too_many_requests_are_waited_out_as_long_as_asked(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, (429, {"Retry-After": "1"}, b""), explained("a label"))
    assert ask(server, tmp_path, 1) == Fetched({"6/1": "a label"})
    assert server.requests[1][2] - server.requests[0][2] >= 1.0


def test_retry_after_may_be_a_date(server: Neuronpedia, tmp_path: Path) -> None:
    past = email.utils.format_datetime(email.utils.localtime())
    server.answer(1, (429, {"Retry-After": past}, b""), explained("a label"))
    assert ask(server, tmp_path, 1).labels == {"6/1": "a label"}


@pytest.mark.parametrize("headers", [{"Retry-After": "3600"}, {}, {"Retry-After": "soon"}])
def test_a_wait_beyond_the_limit_ends_the_round_at_once(
    server: Neuronpedia, tmp_path: Path, headers: dict[str, str]
) -> None:
    server.answer(1, explained("a label"))
    server.answer(2, (429, headers, b""))
    server.answer(3, explained("never asked"))
    found = ask(server, tmp_path, 1, 2, 3, longest_wait=1.0)
    assert found.labels == {"6/1": "a label"}
    assert found.warning is not None
    assert found.warning.startswith("2 of 3 labels could not be had: Neuronpedia has had too many requests")
    assert len(server.requests) == 2


def test_a_server_that_always_says_later_is_not_asked_for_ever(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, (429, {"Retry-After": "0"}, b""))
    assert ask(server, tmp_path, 1).labels == {}
    assert len(server.requests) == 6


def test_a_server_error_costs_one_label_and_is_not_kept(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, (500, {}, b"<h1>sorry</h1>"), explained("later"))
    server.answer(2, explained("two"))
    found = ask(server, tmp_path, 1, 2)
    assert found.labels == {"6/2": "two"}
    assert found.warning == "1 of 2 labels could not be had: Neuronpedia answered with status 500"
    assert ask(server, tmp_path, 1, 2) == Fetched({"6/1": "later", "6/2": "two"})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"{}", b'{"explanations": 3}', b'{"explanations": [1]}', b"<html>", b"\xff\xfe",
     b'{"explanations": [{"text": "x"}]}', b"[" * 100_000],
)  # fmt: skip
def test_an_answer_that_is_none_costs_one_label(server: Neuronpedia, tmp_path: Path, body: bytes) -> None:
    server.answer(1, (200, {}, body))
    server.answer(2, explained("two"))
    found = ask(server, tmp_path, 1, 2)
    assert found.labels == {"6/2": "two"}
    assert found.warning == "1 of 2 labels could not be had: Neuronpedia's answer is not the JSON that its API has"


def test_after_three_failures_in_a_row_no_more_is_asked(server: Neuronpedia, tmp_path: Path) -> None:
    for index in range(10):
        server.answer(index, (500, {}, b""))
    assert ask(server, tmp_path, *range(10)).warning is not None
    assert len(server.requests) == 3


def test_silence_ends_after_the_timeout(server: Neuronpedia, tmp_path: Path) -> None:
    release = threading.Event()
    server.answer(1, lambda handler: release.wait(5) and None)
    started = time.monotonic()
    found = ask(server, tmp_path, 1, 2, timeout=0.3)
    release.set()
    assert found == Fetched({}, "2 of 2 labels could not be had: Neuronpedia did not answer within 0.3 s")
    assert time.monotonic() - started < 2


def test_an_answer_that_drips_ends_after_the_timeout_too(server: Neuronpedia, tmp_path: Path) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        for _ in range(60):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.05)

    server.answer(1, drip)
    found = ask(server, tmp_path, 1, timeout=0.3)
    assert found.warning == "1 of 1 labels could not be had: Neuronpedia did not answer within 0.3 s"


def test_an_outage_costs_only_the_labels_that_are_not_on_disk(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, explained("a label"))
    ask(server, tmp_path, 1)
    url = server.url
    server.shutdown()
    server.server_close()
    wanted = {"6/1": (SAE, 1), "6/2": (SAE, 2)}
    found = fetch_labels(wanted, base_url=url, cache_dir=tmp_path, timeout=2.0)
    assert found == Fetched({"6/1": "a label"}, "1 of 1 labels could not be had: Neuronpedia cannot be reached")


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://[", "http://127.0.0.1:1"])
def test_an_address_that_leads_nowhere_is_a_warning(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    found = fetch_labels({"6/1": (SAE, 1)}, base_url=url, cache_dir=tmp_path, timeout=2.0)
    assert found == Fetched({}, "1 of 1 labels could not be had: Neuronpedia cannot be reached")


def test_labels_come_although_they_cannot_be_kept(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, explained("a label"))
    (tmp_path / "neuronpedia").write_text("a file where the folder should be")
    found = ask(server, tmp_path, 1)
    assert found.labels == {"6/1": "a label"}
    assert found.warning is not None
    assert found.warning.startswith("Neuronpedia's labels could not be kept for the next time: ")


@pytest.mark.parametrize("sae", ["../../etc", "a/../b", "a/b/c", "a", "", "a b/c", "http://x/y", "./x"])
def test_an_id_that_is_none_is_never_asked_for(server: Neuronpedia, tmp_path: Path, sae: str) -> None:
    assert fetch_labels({"6/1": (sae, 1)}, base_url=server.url, cache_dir=tmp_path) == Fetched({})
    assert server.requests == []
    assert feature_page(sae, 1) is None


def test_one_page_is_asked_for_once_whatever_it_is_called(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, explained("a label"))
    found = fetch_labels({"a": (SAE, 1), "b": (SAE, 1)}, base_url=server.url, cache_dir=tmp_path)
    assert found.labels == {"a": "a label", "b": "a label"}
    assert len(server.requests) == 1


def test_no_control_or_direction_character_comes_through(server: Neuronpedia, tmp_path: Path) -> None:
    server.answer(1, explained("\x1b[31mred\x00\u202e\u2028 <script>alert(1)</script>\ud800"))
    assert ask(server, tmp_path, 1).labels == {"6/1": "[31mred <script>alert(1)</script>"}


def test_a_label_is_a_sentence_and_not_a_book() -> None:
    assert len(plain("word " * 1000)) <= LONGEST_LABEL
    assert plain("word " * 1000).endswith("…")


def test_a_page_is_named_by_the_saes_own_id() -> None:
    assert feature_page(SAE, 650) == f"{SITE}/gpt2-small/6-res-jb/650"
    assert feature_page(None, 650) is None
