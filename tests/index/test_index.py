"""An index opened: its answers as data, as tables and pages, and what is told where there is none."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.index.index import Index
from depass_sae.texts import is_hidden

from ..attribution.tiny import HOSTILE, handle, random_sae
from ..cli.calling import Run, run
from .oracle import Oracle
from .scanned import METADATA, WINDOW, contents, lm, scanned, texts

__all__ = ["run"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return scanned(tmp_path_factory.mktemp("index") / "ix")


@pytest.fixture(scope="module")
def oracle() -> dict[int, Oracle]:
    return {layer: Oracle.of(lm(), texts(), layer, WINDOW) for layer in (0, 1)}


def busiest(index: Index) -> str:
    return index.dense(1).features[0].feature


def test_a_document_has_what_is_asked_of_one(index: Index) -> None:
    found = index.feature(busiest(index)).to_dict()
    assert found["schema_version"] == 1
    assert found["count"] / found["tokens"] == found["density"]
    assert sum(one["count"] for one in found["histogram"]) == sum(one["count"] for one in found["positions"])
    strengths = [context["activation"] for context in found["contexts"]]
    assert len(strengths) == 20
    assert strengths == sorted(strengths, reverse=True)
    for context in found["contexts"] + found["samples"]:
        assert len(context["tokens"]) == len(context["activations"]) == len(context["token_ids"])
        assert context["activations"][context["pos"]] == pytest.approx(context["activation"], rel=1e-3)
        assert context["document"] == f"document {context['number']}"
    assert len({context["number"] for context in found["contexts"] + found["samples"]}) == len(
        found["contexts"] + found["samples"]
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
def test_the_logits_are_those_of_a_card(index: Index) -> None:
    for name in ("1/3", "0/7"):
        card = lm().card(name, texts()[0]).to_dict()["logits"]
        found = index.feature(name).to_dict()["logits"]
        for key in ("top", "bottom"):
            assert [vote["id"] for vote in found[key]] == [vote["id"] for vote in card[key]]
            assert [vote["logit"] for vote in found[key]] == pytest.approx([v["logit"] for v in card[key]], rel=1e-4)


def test_answers_show_themselves_and_come_back_from_another_process(index: Index) -> None:
    name = busiest(index)
    other = scanned(index.folder.parent / "other", texts(30, seed=5))
    answers = [index.feature(name), index.overview(), index.dense(3), index.search("supply"), index.compare(other)]
    for answer in answers:
        back = pickle.loads(pickle.dumps(answer))
        assert back == answer
        assert back.to_dict() == answer.to_dict()
        assert "<html" in answer.to_html()
        assert str(answer.table(3))
        assert json.loads(json.dumps(answer.to_dict()))
    assert len(index.feature(name).to_frame()) > 100
    assert pickle.loads(pickle.dumps(index)).feature(name) == index.feature(name)


def test_lists_are_by_how_often_features_fire(index: Index) -> None:
    counts = {f"{h.layer}/{i}": int(n) for h in index.saes for i, n in enumerate(index.features(h)["count"])}
    fire = {name: n for name, n in counts.items() if n}
    dense, rare, dead = index.dense(7), index.rare(7), index.dead(1000)
    assert [one.count for one in dense.features] == sorted(fire.values(), reverse=True)[:7]
    assert [one.count for one in rare.features] == sorted(fire.values())[:7]
    assert all(counts[one.feature] == one.count for one in (*dense.features, *rare.features))
    assert {one.feature for one in dead.features} == counts.keys() - fire.keys()
    assert dead.count == len(counts) - len(fire) > 0
    assert all(one.feature.startswith("1/") for one in index.dense(50, layer="1").features)
    assert dense.features[0].fires_on == index.feature(dense.features[0].feature).fires_on[:3]


def test_a_search_finds_features_by_tokens_contexts_and_labels(index: Index) -> None:
    found = index.search("Mary", top=100)
    shares = {hit.feature: hit.token_share for hit in found.features}
    assert any(share > 0 for share in shares.values())
    for hit in found.features:
        feature = index.feature(hit.feature)
        total = sum(token.count * token.mean for token in feature.fires_on)
        on = sum(token.count * token.mean for token in feature.fires_on if "mary" in token.token.casefold())
        assert hit.token_share == pytest.approx(on / total if on / total >= 0.02 else 0.0, rel=1e-4)
        near = [c for c in feature.contexts if "mary" in "".join(c.tokens[max(c.pos - 12, 0) : c.pos + 5]).casefold()]
        assert hit.contexts == len(near)
    labelled = ds.open_index(index.folder, labels={"1/39": "what Mary gave"})
    first = labelled.search("mary").features[0]
    assert (first.feature, first.in_label, first.label) == ("1/39", True, "what Mary gave")
    assert index.search("nothing like it").features == ()
    assert "no feature has" in str(index.search("nothing like it").table())
    assert index.search("price of").features[0].contexts > 0  # two tokens, so by contexts


def test_two_indexes_are_compared_feature_by_feature(tmp_path: Path, index: Index) -> None:
    other = scanned(tmp_path / "ix", ["Mary gave John the mark."] * 40)
    found = index.compare(other, top=10)
    assert found.compared == sum(index.saes.values())
    for one in found.features:
        counts = tuple(ix.feature(one.feature).count for ix in (index, other))
        assert one.count == counts
        p, q = counts[0] / index.tokens, counts[1] / other.tokens
        both = sum(counts) / (index.tokens + other.tokens)
        z = (q - p) / np.sqrt(both * (1 - both) * (1 / index.tokens + 1 / other.tokens))
        assert one.z == pytest.approx(z)
        assert one.log2_ratio == pytest.approx(
            np.log2((counts[1] + 0.5) / other.tokens / ((counts[0] + 0.5) / index.tokens))
        )
    sizes = [abs(one.z) for one in found.features]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 5
    assert index.compare(index).features == ()


@pytest.mark.parametrize(
    ("feature", "why"),
    [
        ("5/3", "no SAE at 5"),
        ("1/40", "features are 0 to 39"),
        ("x", "LAYER/INDEX"),
        ("1.mlp_out/3", "no SAE at 1.mlp_out"),
        ("1/3@4", "LAYER/INDEX"),
    ],
)
def test_a_feature_that_is_none_is_told_of(index: Index, feature: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        index.feature(feature)


def test_a_feature_is_answered_in_milliseconds(index: Index) -> None:
    name = busiest(index)

    def seconds(ask: Callable[[], object]) -> float:
        began = time.process_time()
        ask()
        return time.process_time() - began

    assert min(seconds(lambda: index.feature(name)) for _ in range(5)) < 0.05
    hook = next(hook for hook in index.saes if hook.layer == int(name.partition("/")[0]))
    table, number = index.at(hook, "tokens"), int(name.partition("/")[2])
    assert min(seconds(lambda: table.feature(number)) for _ in range(5)) < 0.005


def test_what_is_no_index_is_told_of(tmp_path: Path, index: Index) -> None:
    def changed(name: str, text: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(index.folder, folder)
        (folder / "manifest.json").write_text(text)
        return folder

    said = (index.folder / "manifest.json").read_text()
    (tmp_path / "empty").mkdir()
    for folder, why in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "empty", "has no manifest"),
        (changed("no-json", "{"), "not JSON"),
        (changed("list", "[]"), "no index's manifest"),
        (changed("other", "{}"), "no index's manifest"),
        (changed("later", said.replace('"schema_version": 1', '"schema_version": 2')), "has format 2"),
        (changed("less", said.replace('"drawn"', '"drown"')), "is damaged"),
    ):
        with pytest.raises(UserError, match=why):
            ds.open_index(folder)
    half = tmp_path / "half"
    shutil.copytree(index.folder, half)
    (half / "1.resid_post" / "contexts.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot read"):
        ds.open_index(half)


def test_a_library_that_is_missing_is_told_of(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UserError, match="searching needs duckdb: pip install"):
        index.search("supply")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for ask in (lambda: ds.open_index(index.folder), lambda: scanned(tmp_path / "ix")):
        with pytest.raises(UserError, match="an index needs pyarrow: pip install"):
            ask()


def test_texts_of_a_corpus_give_no_orders(tmp_path: Path) -> None:
    orders = (
        "\x1b[31m \x9b \u202e \u2028 \x07 ]]> </script><script>alert(1)</script> <img src=x onerror=alert(1)> [red]"
    )
    path = tmp_path / "c\x1b[31m.txt"
    path.write_text("\n".join(f"{orders.replace(chr(0x2028), '')} {text} {' '.join(HOSTILE)}" for text in texts(20)))
    with path.open("ab") as file:
        file.write(b"\n\xff\xfe\n")
    found = scanned(tmp_path / "ix", path)
    assert any("\x1b" in token for token in found.vocabulary)
    labelled = ds.open_index(found.folder, labels=dict.fromkeys(("1/1", "1/2", "0/1"), orders))
    answers = [
        labelled.feature("1/1"), labelled.feature("0/1"), labelled.overview(), labelled.dense(50),
        labelled.search("alert", top=50), labelled.search("\u202e"), labelled.compare(scanned(tmp_path / "plain")),
    ]  # fmt: skip
    assert labelled.overview().left_out["count"] == 1
    for answer in answers:
        text = str(answer.table())
        assert not any(is_hidden(c) for c in set(text) - {"\n"}), answer.title
        page = answer.to_html()
        assert "<img src=x" not in page
        assert "alert(1)</script>" not in page.replace("&lt;", "<x")
        assert not any(is_hidden(c) for c in set(page) - {"\n", "\t"}), answer.title


def test_what_was_left_out_is_in_the_index(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "supply"}\n{"text": ""}\nx\n{"text": "a \\ud800"}\n{"text": "price"}\n'
    )
    found = scanned(tmp_path / "ix", tmp_path / "a.jsonl")
    left = found.manifest.left_out
    assert left["count"] == 3
    assert left["why"] == {"it is empty": 1, "it is not JSON": 1, "it is not valid Unicode": 1}
    assert [one["where"] for one in left["first"]] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]
    assert found.manifest.corpus["documents"] == 2
    assert "a.jsonl:3" in str(found.overview().table())
    with pytest.raises(UserError, match="no documents in the corpus; the first thing in it, document 0, was left out"):
        scanned(tmp_path / "other", [""])


def test_a_file_whose_name_is_no_unicode_is_named_as_well_as_it_can_be(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    with open(path, "wb") as file:
        file.write(b"supply\n\xff\n")
    found = scanned(tmp_path / "ix", Path(os.fsdecode(path)))
    assert found.feature(busiest(found)).contexts[0].document == "caf?.txt:1"
    assert found.manifest.left_out["first"] == [{"where": "caf?.txt:2", "why": "it is not UTF-8 text"}]


def test_ids_that_the_model_does_not_know_are_left_out(tmp_path: Path) -> None:
    found = scanned(tmp_path / "ix", [[0, 5, 6], [5, 99999], [7, 8]])
    assert found.manifest.left_out["count"] == 1
    assert "not in the vocabulary" in found.manifest.left_out["first"][0]["why"]
    assert found.tokens == 2 + 2  # a start token does not count, where there is one


def test_a_limit_ends_a_scan_and_one_that_is_resumed_as_well(tmp_path: Path) -> None:
    plain = scanned(tmp_path / "a", limit=200)
    assert 200 <= plain.tokens < 200 + 12
    calls = iter(range(10**6))

    def stop(what: str, done: int, steps: int) -> None:
        if next(calls) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scanned(tmp_path / "b", limit=200, progress=stop)
    scanned(tmp_path / "b", limit=200)
    assert contents(tmp_path / "b") == contents(plain.folder)


def test_features_have_automatic_names_and_given_ones_go_before_them(index: Index) -> None:
    hook = next(place for place in index.saes if place.layer == 1)
    names = pandas.read_parquet(index.folder / str(hook) / "labels.parquet").set_index("feature")["label"].to_dict()
    assert names
    assert all(label.endswith(" (auto)") for label in names.values())
    dead = {int(one.feature.split("/")[1]) for one in index.dead(10_000, layer="1").features}
    assert not dead & names.keys()
    assert dead | names.keys() == set(range(index.saes[hook]))
    number, label = next(
        (i, label) for i, label in names.items() if not label.startswith(("after", "always", "writes"))
    )
    assert index.feature(f"1/{number}").label == label
    named = label.removesuffix(" (auto)").split(" · ")
    on = index.feature(f"1/{number}").fires_on
    share = sum(t.count * t.mean for t in on if t.token.strip().lower() in named) / sum(t.count * t.mean for t in on)
    assert share >= 0.2
    given = ds.open_index(index.folder, labels={f"1/{number}": "mine"})
    assert given.feature(f"1/{number}").label == "mine"
    read = ds.read_labels(index.folder)
    assert read[f"1/{number}"] == label
    assert ds.open_index(index.folder, labels=read).feature(f"1/{number}").label == label


def test_an_index_without_names_opens(tmp_path: Path) -> None:
    found = scanned(tmp_path / "ix")
    for path in found.folder.rglob("labels.parquet"):
        path.unlink()
    one = ds.open_index(found.folder)
    assert one.feature("1/0").label is None
    assert ds.read_labels(found.folder) == {}


def test_names_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    found = scanned(tmp_path / "ix")
    next(found.folder.rglob("labels.parquet")).write_bytes(b"none")
    for ask in (ds.open_index, ds.read_labels):
        with pytest.raises(ds.UserError, match=r"labels\.parquet"):
            ask(found.folder)


def test_labels_of_a_folder_that_is_no_index_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ds.UserError, match="no index"):
        ds.read_labels(tmp_path)


# ---------------------------------------------------------------------------------------------- features of a prompt


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
def test_a_prompts_features_are_by_how_rarely_they_fire_so_strongly(index: Index, oracle: dict[int, Oracle]) -> None:
    prompt = "Mary gave John the price of supply in Paris"
    plain, found = lm().features(prompt), lm().features(prompt, sort="specific", index=index)
    assert found.corpus == index.tokens
    seen = 0
    for layer, before in zip(found.layers, plain.layers, strict=True):
        firings = oracle[layer.hook.layer]
        for at, was in zip(layer.positions, before.positions, strict=True):
            assert dict(zip(at.indices, at.activations, strict=True)) == dict(
                zip(was.indices, was.activations, strict=True)
            )
            assert list(at.shares) == sorted(at.shares)
            for i, activation, share in zip(at.indices, at.activations, at.shares, strict=True):
                low = 2 ** (math.floor(2 * math.log2(abs(activation))) / 2)
                as_strong = [one for one in firings.of_feature(i) if abs(one.value) >= low * (1 - 1e-7)]
                assert share == max(len(as_strong), 1) / index.tokens
                assert layer.density[i] == len(firings.of_feature(i)) / index.tokens
                assert layer.labels.get(i) == index.label(layer.hook, i)
                seen += len(as_strong) > 1
    assert seen > 50
    more = 0
    for layer, before in zip(found.layers, plain.layers, strict=True):
        always = {i for i, density in layer.density.items() if density >= 0.5}
        assert set(layer.always_on) == set(before.always_on) | always
        more += len(always - set(before.always_on))
    assert more
    entry = found.to_dict()["layers"][0]["positions"][3]["features"][0]
    assert set(entry) == {"index", "activation", "label", "density", "share"}
    assert list(found.to_frame().columns[-3:]) == ["label", "density", "share"]
    assert "corpus" not in plain.to_dict()


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
def test_an_index_of_other_saes_is_refused_for_a_prompts_features(index: Index) -> None:
    others = handle([random_sae("topk", "0.resid_post", seed=5)])
    with pytest.raises(UserError, match=r"is of another SAE at 0\.resid_post"):
        others.features("Mary", index=index)
    own = handle([random_sae("jumprelu", "1.resid_post", metadata=METADATA).to(torch.float64)])
    for _ in range(2):
        own.features("Mary", index=index)
    with torch.no_grad():
        own.saes[1].W_dec.mul_(2)
    with pytest.raises(UserError, match=r"is of another SAE at 1\.resid_post"):
        own.features("Mary", index=index)
    with pytest.raises(UserError, match=r"has no SAE at 0\.attn_out"):
        handle([random_sae("topk", "0.attn_out")]).features("Mary", index=index)


def test_the_features_command_takes_an_index(run: Run, index: Index, tmp_path: Path) -> None:
    wrong = run("features", "--prompt", "Mary", "--index", str(tmp_path / "nowhere"))
    assert wrong.status == 2
    assert "there is no index" in wrong.err


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
def test_a_prompts_features_are_shown_with_their_names(index: Index) -> None:
    found = lm().features("Mary gave John the price", sort="specific", index=index)
    first = found.layers[0].positions[3].indices[0]
    text = found.to_text() if hasattr(found, "to_text") else repr(found)
    label = index.label(found.layers[0].hook, first)
    assert label is not None
    assert label in text
    assert "rarest over a corpus" in text
    assert f"a corpus of {index.tokens:,} tokens" in text
