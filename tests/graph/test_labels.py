"""Labels of features: the files they come from, what is refused, and the nodes they are put on."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.labels import with_labels
from depass_sae.labels.files import read_labels

from .sample import sample_graph

ENTRIES = [(17, 1208, "capital cities"), (5, 3, 'France, and "French"')]
WANTED = {f"{layer}/{index}": label for layer, index, label in ENTRIES}


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", 'feature,label\n17/1208,capital cities\n5/3,"France, and ""French"""\n'),
        ("l.csv", '\ufefflabel,layer,index\r\ncapital cities,17,1208\r\n"France, and ""French""",5,3\r\n'),
        ("l.json", WANTED),
        ("l.json", [dict(zip(("layer", "index", "label"), entry, strict=True)) for entry in ENTRIES]),
        ("l.JSON", [{"modelId": "m", "layer": f"{layer}-res-jb", "index": str(index), "description": label}
                    for layer, index, label in ENTRIES]),
    ],
    ids=["csv of features", "csv of layers", "object", "list", "Neuronpedia"],
)  # fmt: skip
def test_labels_are_read_from_every_form_of_file(tmp_path: Path, name: str, content: Any) -> None:
    assert read_labels(written(tmp_path, name, content)) == WANTED


def test_the_first_label_of_a_feature_counts_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, "l.csv", "feature,label\n1/2,\n1/2, first\n1/2,second\n")
    assert read_labels(path) == {"1/2": "first"}


def test_a_label_of_several_lines_becomes_one_line(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path, "l.json", {"1/2": "a\n  b"})) == {"1/2": "a b"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "", "from .csv and .json files"),
        ("l.csv", "", "first line should be"),
        ("l.csv", "feature,text\n1/2,x\n", "first line should be"),
        ("l.json", '{"1/2": "half \\ud800"}', "'1/2': its label is not valid Unicode at character 5"),
        ("l.csv", "feature,label\n1/2\n", "line 2: its label"),
        ("l.csv", "feature,label\n1-2,x\n", "line 2: a feature is layer/index"),
        ("l.csv", "layer,index,label\n1,-2,x\n", "line 2: layer and index"),
        ("l.csv", 'feature,label\n1/2,"x\n', "no CSV"),
        ("l.csv", b"feature,label\n1/2,\xff\n", "not UTF-8"),
        ("l.json", "{", "not JSON"),
        ("l.json", "[" * 100_000, "nested too deeply"),
        ("l.json", "3", "an object"),
        ("l.json", '{"1/2": "x", "1/2": "y"}', 'it names "1/2" twice'),
        ("l.json", '{"1/2": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
        ("l.json", '[{"layer": 1, "index": NaN, "label": "x"}]', "layer and index"),
        ("l.json", '[{"layer": 1, "index": ' + "9" * 5000 + ', "label": "x"}]', "too many digits"),
        ("l.json", "[3]", "entry 0: should be an object"),
        ("l.json", {"1/2": None}, "label should be a text"),
        ("l.json", {"17": "x"}, "layer/index"),
        ("l.json", [{"layer": True, "index": 1, "label": "x"}], "layer and index"),
        ("l.json", [{"layer": "res-17", "index": 1, "label": "x"}], "layer and index"),
        ("l.json", [{"layer": 1, "index": 1.5, "label": "x"}], "layer and index"),
    ],
)
def test_a_broken_file_is_refused_with_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_labels(written(tmp_path, name, content))
    assert str(caught.value).startswith("cannot read")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_labels(tmp_path / "none.csv")


@given(st.binary(max_size=60))
def test_no_csv_or_json_file_breaks_in_any_other_way(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("l.csv", "l.json"):
        with suppress(UserError):
            read_labels(written(folder, name, content))


def test_a_label_is_put_on_its_feature_at_every_position_and_the_first_graph_left_as_it_was() -> None:
    g = sample_graph()
    name, node = next((name, node) for name, node in g.nodes(data=True) if node["kind"] == "feature")
    labelled = with_labels(g, {f"{node['layer']}/{node['index']}": "x", "99/1": "elsewhere"})
    same = [n for _, n in labelled.nodes(data=True) if (n["layer"], n.get("index")) == (node["layer"], node["index"])]
    assert {n["label"] for n in same} == {"x"}
    assert {label for other, label in labelled.nodes(data="label") if labelled.nodes[other] not in same} == {""}
    assert g.nodes[name]["label"] == ""


@pytest.mark.parametrize("labels", [{"17": "x"}, {"17/1208@5": "x"}, {"17/1208": None}, {17: "x"}])
def test_labels_that_are_none_are_refused_with_one_line(labels: Any) -> None:
    with pytest.raises(UserError, match="layer/index"):
        with_labels(sample_graph(), labels)
