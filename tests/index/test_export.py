"""Features as files for other programs: whole or not there, and what is in them is the index's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.export.neuronpedia import from_cantor
from depass_sae.index.export import AFTER, BEFORE, CAUSES, FIRES
from depass_sae.index.index import Index
from depass_sae.index.marked import marked, unmarked
from depass_sae.texts import joined

from .scanned import lm, scanned, texts

SCHEMA = json.loads((Path(__file__).parents[1] / "data" / "neuronpedia" / "feature-details-schema.json").read_text())


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return scanned(tmp_path_factory.mktemp("index") / "ix", [*texts(), "a [[Mary]] gave <<John>> \\ a[0]"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_what_the_index_has_of_a_feature(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    assert index.export_contexts(path, ["1/3", "0/7"], contexts=25) == 2
    found = lines(path)
    assert [one["feature"] for one in found] == ["1/3", "0/7"]
    for one in found:
        feature = index.feature(one["feature"])
        assert (one["label"], one["density"], one["count"]) == (feature.label, feature.density, feature.count)
        assert [t["token"] for t in one["top_tokens"]] == [t.token for t in feature.fires_on[:20]]
        known = [*feature.contexts, *feature.samples][:25]
        assert len(one["contexts"]) == len(known)
        assert [c["kind"] for c in one["contexts"]] == [
            "top" if number < len(feature.contexts) else "sample" for number in range(len(known))
        ]
        for context, said in zip(known, one["contexts"], strict=True):
            low = max(context.pos - BEFORE, 0)
            assert tuple(said["tokens"]) == context.tokens[low : context.pos + AFTER + 1]
            assert tuple(said["activations"]) == context.activations[low : context.pos + AFTER + 1]
            assert said["activations"][said["pos"]] == pytest.approx(context.activation, rel=1e-3)
            assert unmarked(said["text"]) == joined(said["tokens"])
            assert said["causes"] is None


def test_tokens_are_marked_where_a_feature_fires(index: Index, tmp_path: Path) -> None:
    index.export_contexts(tmp_path / "f.jsonl", ["1/3"])
    for context in lines(tmp_path / "f.jsonl")[0]["contexts"]:
        strong = [abs(value) >= FIRES * abs(context["activation"]) and value != 0 for value in context["activations"]]
        expected, open_ = "", False
        for token, fires in zip(context["tokens"], strong, strict=True):
            expected += ("<<" if fires and not open_ else ">>" if open_ and not fires else "") + token
            open_ = fires
        if not context["escaped"] and "⟨" not in expected:
            assert context["text"] == expected + (">>" if open_ else "")


def test_causes_are_marked_where_they_are_known(tmp_path: Path) -> None:
    index = scanned(tmp_path / "ix")
    causes = lm().why(index, "1/3", contexts=5)
    index.export_contexts(tmp_path / "f.jsonl", ["1/3"])
    found = lines(tmp_path / "f.jsonl")[0]["contexts"]
    for context, said in zip(causes.contexts, found, strict=False):
        shares = {
            pos: context.contributions[pos] / context.whole
            for pos in range(1, context.pos)
            if context.contributions[pos] / context.whole >= CAUSES
        }
        assert {one["pos"]: one["share"] for one in said["causes"]} == pytest.approx(shares)
        assert ("[[" in said["text"]) == bool(shares)
    assert any(one["causes"] for one in found[:5])
    assert all(one["causes"] is None for one in found[5:])


@given(
    st.lists(st.text(alphabet="<>[]\\ab ", max_size=4) | st.text(max_size=3), max_size=8),
    st.sets(st.integers(0, 7)),
    st.sets(st.integers(0, 7)),
)
def test_a_text_comes_back_out_of_its_marks(tokens: list[str], fires: set[int], causes: set[int]) -> None:
    text, escaped = marked(tokens, fires, causes)
    runs = [joined(tokens)] if "⟨" not in "".join(tokens) else None
    if runs is not None:
        assert unmarked(text) == runs[0]
    plain, _ = marked(tokens, (), ())
    if not escaped and not fires & set(range(len(tokens))) and not causes & set(range(len(tokens))):
        assert plain == text == joined(tokens)


@pytest.mark.parametrize(
    ("tokens", "fires", "causes", "expected"),
    [
        (["a", " b", " c"], {1}, (), "a<< b>> c"),
        (["a", " b", " c"], {0, 1}, {2}, "<<a b>>[[ c]]"),
        (["a", " b"], {0, 1}, {1}, "<<a>>[[<< b>>]]"),
        (["<", "b"], {0}, (), "<<\\<>>b"),
        (["x<", "<y"], (), (), "x\\<\\<y"),
        (["a[0]"], (), {0}, "[[a[0\\]]]"),
        (["a[0]", " \\", "[1]"], (), (), "a[0] \\\\[1]"),
        (["<<a>>"], (), (), "\\<\\<a\\>\\>"),
    ],
)
def test_marks_of_the_text_itself_are_told_apart(tokens: list[str], fires: Any, causes: Any, expected: str) -> None:
    text, escaped = marked(tokens, fires, causes)
    assert text == expected
    assert escaped == ("\\" in expected.replace(" \\\\[1]", "\\"))
    assert unmarked(text) == "".join(tokens)


def test_every_file_of_a_folder_is_what_neuronpedia_takes(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "np"
    many = index.export_contexts(folder, format="neuronpedia", layer="1", contexts=30)
    counts = index.features(next(hook for hook in index.saes if hook.layer == 1))["count"]
    assert many == (counts > 0).sum() == len(list(folder.iterdir()))
    assert [path.name for path in folder.parent.iterdir()] == ["np"]
    for path in folder.iterdir():
        found = json.loads(path.read_text())
        jsonschema.validate(found, SCHEMA)
        layer, number = from_cantor(int(path.stem))
        assert (found["index"], found["layer"], found["feature_index"]) == (int(path.stem), layer, number)
        feature = index.feature(f"{layer}/{number}")
        first, *drawn = found["examples_quantiles"]
        assert first["quantile_name"] == "Top activations"
        assert len(first["examples"]) == len(feature.contexts)
        assert sum(len(one["examples"]) for one in drawn) == min(len(feature.samples), 30 - len(feature.contexts))
        for one in drawn:
            low, high = (float(text) for text in one["quantile_name"].removeprefix("Drawn: ").split(" to "))
            for example in one["examples"]:
                assert low <= abs(example["tokens_acts_list"][example["train_token_ind"]]) * 1.001
                assert abs(example["tokens_acts_list"][example["train_token_ind"]]) <= high * 1.001
        assert found["top_logits"] == [text for text, _, _ in feature.top]
    assert index.export_contexts(tmp_path / "np.jsonl", format="neuronpedia", list="rare", top=4) == 4
    for found in lines(tmp_path / "np.jsonl"):
        jsonschema.validate(found, SCHEMA)


def test_features_are_those_that_were_chosen(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"

    def names(**chosen: Any) -> list[str]:
        index.export_contexts(path, contexts=1, **chosen)
        return [one["feature"] for one in lines(path)]

    fire = [f"{h.layer}/{i}" for h in sorted(index.saes) for i, n in enumerate(index.features(h)["count"]) if n]
    assert names() == fire
    assert names(layer="0") == [name for name in fire if name.startswith("0/")]
    assert names(list="dense", top=3, layer="1") == [one.feature for one in index.dense(3, layer="1").features]
    for chosen, why in (
        ({"features": ["1/3"], "layer": "1"}, "leave one of them out"),
        ({"features": []}, "no features"),
        ({"features": ["1/99"]}, "features are 0 to 39"),
        ({"list": "dead"}, "fire nowhere"),
        ({"list": "odd"}, "the lists are"),
        ({"layer": "7"}, "no SAE at 7"),
        ({"format": "csv"}, "exported as autointerp or neuronpedia"),
    ):
        with pytest.raises(UserError, match=why):
            names(**chosen)
    with pytest.raises(UserError, match="1 context or more"):
        index.export_contexts(path, contexts=0)
    with pytest.raises(UserError, match=r"should end with \.jsonl"):
        index.export_contexts(tmp_path / "f.txt")


@pytest.mark.parametrize("format", ["autointerp", "neuronpedia"])
def test_a_file_is_whole_or_not_there(index: Index, tmp_path: Path, format: str) -> None:
    out = tmp_path / "deep" / ("f.jsonl" if format == "autointerp" else "np")
    steps: list[tuple[int, int]] = []

    def stop(what: str, done: int, of: int) -> None:
        steps.append((done, of))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.export_contexts(out, format=format, layer="1", progress=stop)
    assert [done for done, _ in steps] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []
    index.export_contexts(out, ["1/3"], format=format)
    before = out.read_bytes() if out.is_file() else (out / next(iter(out.iterdir())).name).read_bytes()
    assert b'"index"' in before or b'"feature"' in before
    if format == "neuronpedia":
        with pytest.raises(UserError, match="holds something already"):
            index.export_contexts(out, ["1/3"], format=format)
    else:
        with pytest.raises(KeyboardInterrupt):
            index.export_contexts(out, layer="1", progress=stop)
        assert out.read_bytes() == before


def test_two_saes_of_a_layer_are_no_folder(tmp_path: Path) -> None:
    from ..attribution.tiny import handle, random_sae

    both = handle([random_sae("topk", "0.resid_post"), random_sae("topk", "0.mlp_out")])
    index = both.scan(texts(5), tmp_path / "ix")
    with pytest.raises(UserError, match="are of one layer"):
        index.export_contexts(tmp_path / "np", format="neuronpedia")
    assert index.export_contexts(tmp_path / "np", format="neuronpedia", layer="0.mlp_out") > 0
