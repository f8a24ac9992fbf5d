"""Feature-flow graphs as files: which format, and what goes wrong with files."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import networkx as nx
import pytest

from depass_sae.errors import UserError
from depass_sae.graph.export import FORMATS, check_destination, check_text_format, read_graph, write_graph
from tests.graph.sample import sample_graph

from .every_kind import every_kind, same


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_graph(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", ["graph.json", "graph.graphml", "GRAPH.JSON"])
def test_a_graph_comes_back_from_its_file_as_it_was(tmp_path: Path, name: str) -> None:
    g = every_kind()
    write_graph(g, tmp_path / name)
    assert same(read_graph(str(tmp_path / name)), g)
    assert os.listdir(tmp_path) == [name]


def test_the_format_may_be_named_against_the_suffix(tmp_path: Path) -> None:
    write_graph(sample_graph(), tmp_path / "graph.json", format="neuronpedia")
    assert "qParams" in json.loads((tmp_path / "graph.json").read_text())
    write_graph(sample_graph(), tmp_path / "graph.xml", format="graphml")
    assert (tmp_path / "graph.xml").read_text().startswith("<?xml")


@pytest.mark.parametrize("name", ["graph", "graph.txt", "graph.json.gz", ".json"])
def test_a_suffix_that_says_nothing_is_refused_with_the_choices(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"let it end with \.json, \.graphml, \.html, .*neuronpedia"):
        write_graph(sample_graph(), tmp_path / name)
    assert not os.listdir(tmp_path)


def test_an_unknown_format_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the format 'dot' is not known; there are json, graphml, html, neuronpedia"):
        write_graph(sample_graph(), tmp_path / "graph.json", format="dot")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "graph.json"
    write_graph(sample_graph(), path)
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_graph(sample_graph(seed=1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["graph.json"]


def test_a_graph_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "graph.graphml"
    write_graph(sample_graph(), path)
    before = path.read_bytes()
    g = sample_graph()
    g.nodes["token:0"]["influence"] = float("nan")
    with pytest.raises(UserError, match="influence: nan"):
        write_graph(g, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", ["json", "png"])
def test_a_folder_that_is_missing_is_made_and_one_that_is_no_folder_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "a" / "b" / f"graph.{suffix}"
    write_graph(sample_graph(), path)
    assert path.is_file()
    with pytest.raises(UserError, match=rf"^cannot write .*graph\.{suffix}/graph\.{suffix}: Not a directory$"):
        write_graph(sample_graph(), path / path.name)


def test_a_file_that_is_missing_or_a_folder_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    assert refused(tmp_path / "missing.json").endswith("No such file or directory")
    assert refused(tmp_path / "folder.json").endswith("Is a directory")


@pytest.mark.parametrize("name", ["graph.json", "graph.graphml"])
@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n\0", b"\xff\xfe{\0}\0", b"{", b"<a>", b"[]", b"<a/>", b"null"]
)
def test_a_file_that_is_no_graph_is_refused_with_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


def test_a_file_in_another_encoding_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    assert refused(tmp_path / "graph.json").endswith("it is not UTF-8 text (byte 7)")


@pytest.mark.parametrize("name", ["graph.json", "graph.graphml"])
def test_a_byte_order_mark_does_no_harm(tmp_path: Path, name: str) -> None:
    write_graph(sample_graph(), tmp_path / name)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert same(read_graph(tmp_path / name), sample_graph())


@pytest.mark.parametrize("name", ["graph.html", "graph.png", "graph"])
def test_what_cannot_be_read_names_what_can(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert refused(tmp_path / name).endswith("graphs are read from .json and .graphml files")


def test_a_truncated_file_is_refused_with_one_line(tmp_path: Path) -> None:
    for name in ("graph.json", "graph.graphml"):
        write_graph(sample_graph(), tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert "not JSON" in refused(tmp_path / name) or "not XML" in refused(tmp_path / name)


def test_every_format_has_one_way_to_be_written() -> None:
    for chosen in FORMATS.values():
        assert [chosen.text, chosen.picture, chosen.folder].count(None) == 2


def test_choosing_a_format_imports_nothing_heavy() -> None:
    script = (
        "import sys, depass_sae.graph.export\n"
        "print([name for name in ('networkx', 'pydantic', 'torch', 'jinja2', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_circuit_tracers_viewer_gets_a_folder_with_the_graph_and_a_list_that_keeps_others(tmp_path: Path) -> None:
    folder = tmp_path / "viewer"
    for seed in (0, 1, 0):
        write_graph(sample_graph(seed=seed), folder, "circuit-tracer")
    listed = json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    slugs = [entry["slug"] for entry in listed]
    assert len(set(slugs)) == len(slugs) == 2
    assert sorted(os.listdir(folder)) == sorted([*(f"{slug}.json" for slug in slugs), "graph-metadata.json"])
    for entry in listed:
        document = json.loads((folder / f"{entry['slug']}.json").read_text())
        assert document["metadata"] == entry
        assert entry["node_threshold"] == 1.0
        assert entry["transcoder_list"] == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "not JSON"),
        ("[]", "it should list"),
        ('{"graphs": {}}', "it should list"),
        ('{"graphs": [{"scan": "x"}]}', "it should list circuit-tracer's graphs, each with its slug"),
    ],
)
def test_a_list_that_circuit_tracer_did_not_write_is_left_as_it_is(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "graph-metadata.json").write_text(content)
    for attempt in (check_destination, partial(write_graph, sample_graph())):
        with pytest.raises(UserError, match=rf"^cannot read .*graph-metadata\.json: {why}"):
            attempt(tmp_path, "circuit-tracer")
    assert os.listdir(tmp_path) == ["graph-metadata.json"]
    assert (tmp_path / "graph-metadata.json").read_text() == content


def test_circuit_tracers_format_takes_no_file(tmp_path: Path) -> None:
    (tmp_path / "g.json").touch()
    with pytest.raises(UserError, match=r"^cannot write .*g\.json: it is no folder$"):
        write_graph(sample_graph(), tmp_path / "g.json", "circuit-tracer")
    with pytest.raises(UserError, match=r"^circuit-tracer is a folder of files: name it with --out$"):
        check_text_format("circuit-tracer")


def test_networkx_writes_graphml_itself_once_the_lists_are_gone(tmp_path: Path) -> None:
    g = sample_graph()
    nx.set_node_attributes(g, {name: {"token": "word"} for name, node in g.nodes(data=True) if "token" in node})
    g.graph.clear()
    nx.write_graphml(g, tmp_path / "g.graphml")
    read = nx.read_graphml(tmp_path / "g.graphml")
    assert dict(read.nodes) == dict(g.nodes)
    assert dict(read.edges) == dict(g.edges)
