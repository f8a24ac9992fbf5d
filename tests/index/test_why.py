"""Why features fire: against attributions of whole windows, kept in the index, and refused for another model."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.attribution.answer import Asked
from depass_sae.attribution.tokens import attribute_tokens_each
from depass_sae.errors import UserError
from depass_sae.graph.neighbours import inflow_from
from depass_sae.index import causes_kept, why
from depass_sae.index.causes import DISTANCES, CausedContext, Causes, Shares
from depass_sae.index.index import Index
from depass_sae.labels.automatic import Named, spelled
from depass_sae.models.place import Place
from depass_sae.passes.settings import Settings
from depass_sae.texts import is_hidden
from depass_sae.view.blocks import Strip

from ..attribution.tiny import HOSTILE, handle, model, random_sae, tokenizer
from .scanned import WINDOW, lm, scanned, texts

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
NAMES = ("1/3", "0/7", "1/17")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scanned(tmp_path_factory.mktemp("index") / "ix").folder


@pytest.fixture
def index(tmp_path: Path, made: Path) -> Index:
    """Of its own: what is asked changes it."""
    return ds.open_index(shutil.copytree(made, tmp_path / "ix"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, made: Path) -> dict[str, Causes]:
    """The answers for some features."""
    index = ds.open_index(shutil.copytree(made, tmp_path_factory.mktemp("asked") / "ix"))
    return {name: lm().why(index, name, contexts=6) for name in NAMES}


def windows(index: Index, name: str, count: int) -> list[tuple[list[int], int]]:
    return [(list(context.token_ids), context.pos) for context in index.feature(name).contexts[:count]]


def test_contributions_are_those_of_the_whole_windows(made: Path, asked: dict[str, Causes]) -> None:
    index = ds.open_index(made)
    for name, causes in asked.items():
        asked_of = windows(index, name, 6)
        assert len(causes.contexts) == len(asked_of) == 6
        shares = []
        for (ids, pos), context in zip(asked_of, causes.contexts, strict=True):
            target = lm().attribute_tokens(ids, name, pos=pos).target
            assert context.pos == pos
            assert context.contributions == pytest.approx(target.contributions.tolist(), rel=1e-5, abs=1e-5)
            assert context.constant == pytest.approx(target.constant, rel=1e-5, abs=1e-5)
            assert sum(context.other.values()) == pytest.approx(sum(target.other.values()), rel=1e-5, abs=1e-5)
            assert context.tokens == lm().encode(ids).tokens[: pos + 1]
            assert context.activations[pos] == pytest.approx(target.activation, rel=1e-5, abs=1e-5)
            values, pre = target.contributions.tolist(), target.pre_activation
            shares.append((values[pos] / pre, sum(values[1:pos]) / pre, values[0] / pre))
        own, earlier, start = (sum(column) / 6 for column in zip(*shares, strict=True))
        found = causes.shares
        assert (found.own, found.earlier, found.start) == pytest.approx((own, earlier, start), abs=1e-4)


def test_activations_are_those_that_the_index_has(made: Path, asked: dict[str, Causes]) -> None:
    index = ds.open_index(made)
    for name, causes in asked.items():
        for known, context in zip(index.feature(name).contexts, causes.contexts, strict=False):
            assert context.activations == pytest.approx(known.activations[: known.pos + 1], rel=2e-3, abs=1e-3)
            assert context.token_ids == known.token_ids[: known.pos + 1]


@pytest.mark.parametrize("how", [{}, {"rule": "linear"}, {"rule": "softmax"}, {"rule": "half-qk"}], ids=str)
def test_own_and_earlier_tokens_and_the_constant_are_all(index: Index, how: Any) -> None:
    for name in NAMES if not how else ["1/3"]:
        causes = lm().why(index, name, contexts=3, **how)
        assert {**causes.asked, **how} == causes.asked
        for shares in (causes.shares, *map(Shares.of, causes.contexts)):
            assert shares.own + shares.earlier + shares.constant == pytest.approx(1, abs=1e-12)
            assert sum(shares.distances) == pytest.approx(shares.earlier, abs=1e-12)
            assert shares.start + shares.other + shares.encoder == pytest.approx(shares.constant, abs=1e-12)
        sources = causes.sources
        assert sum(one.own for one in sources) == pytest.approx(causes.shares.own, abs=1e-12)
        assert sum(one.earlier for one in sources) == pytest.approx(causes.shares.earlier, abs=1e-12)
        assert causes.completeness_error < 1e-5
        for context in causes.contexts:
            assert context.whole == pytest.approx(context.pre_activation, rel=1e-4)


def a_context(pos: int = 20, **changed: Any) -> CausedContext:
    """Token k, of the text ``t{k % 3}``, gives 2^-k; position 0 gives 4; and 1 and 2 come from elsewhere."""
    fields: dict[str, Any] = {
        "document": "a", "number": 0, "start": 0, "pos": pos,
        "token_ids": tuple(range(pos + 1)), "tokens": tuple(f" T{k % 3}" for k in range(pos + 1)),
        "activations": (0.0,) * (pos + 1),
        "contributions": (4.0, *(2.0**-k for k in range(1, pos + 1))),
        "other": {"bias": 0.5, "rest": 0.5}, "constant": 2.0, "pre_activation": 8.0, "completeness_error": 0.0,
    }  # fmt: skip
    return CausedContext(**fields | changed)


def test_shares_are_counted_by_distance_and_by_text() -> None:
    context = a_context()
    whole = 4 + sum(2.0**-k for k in range(1, 21)) + 1 + 2
    shares = Shares.of(context)
    assert DISTANCES == ((1, 1), (2, 4), (5, 16), (17, None))
    by = [[19], [16, 17, 18], range(4, 16), [1, 2, 3]]
    assert shares.distances == pytest.approx([sum(2.0**-k for k in some) / whole for some in by])
    assert (shares.own, shares.start) == pytest.approx((2.0**-20 / whole, 4 / whole))
    assert (shares.other, shares.encoder) == pytest.approx((1 / whole, 2 / whole))
    assert context.causes == (1, 2, 3, 4, 5)
    other = a_context(1, contributions=(1.0, -4.0), tokens=("x", "T1"), constant=0.0, other={})
    causes = Causes(
        model="", hook=Place(0, "resid_post"), index=0, feature="0/0", label=None, asked={}, heads=(), below=(),
        contexts=(context, other),
    )  # fmt: skip
    found = {one.text: one for one in causes.sources}
    assert found.keys() == {"t0", "t1", "t2"}
    for k in range(3):
        assert found[f"t{k}"].earlier == pytest.approx(sum(2.0**-i for i in range(1, 20) if i % 3 == k) / whole / 2)
    assert found["t2"].own == pytest.approx(2.0**-20 / whole / 2)
    assert found["t1"].own == pytest.approx(-4 / -3 / 2)  # of a whole that is below zero, what is below is for it
    assert {text: one.contexts for text, one in found.items()} == {"t0": 1, "t1": 2, "t2": 1}
    assert [one.text for one in causes.sources] == ["t1", "t2", "t0"]
    assert Shares.of(a_context(0, contributions=(3.0,), tokens=("x",))).own == pytest.approx(0.5)


def test_heads_and_features_below_have_the_means_of_their_shares(made: Path, asked: dict[str, Causes]) -> None:
    index, causes = ds.open_index(made), asked["1/3"]
    subject, hook, lower = lm()._subject.asked(), Place(1, "resid_post"), Place(0, "resid_post")
    heads: dict[str, float] = {}
    features, errors, other = torch.zeros(40, dtype=torch.float64), 0.0, 0.0
    for ids, pos in windows(index, "1/3", 6):
        target = lm().attribute_heads(ids, "1/3", pos=pos).target
        for row in target.rows:
            for i, value in enumerate(row.values.tolist()):
                heads[f"L{row.layer}H{i}"] = heads.get(f"L{row.layer}H{i}", 0) + value / target.pre_activation / 6
        prompt = lm().encode(ids)
        seen = subject.trace(prompt, 1, [hook, lower])
        found = inflow_from(subject, seen, prompt, lower, hook, 3, [pos], Settings())
        features += found.features.sums(40) / target.pre_activation / 6
        errors += found.errors.item() / target.pre_activation / 6
        other += found.other.item() / target.pre_activation / 6
    assert {head.head: head.share for head in causes.heads} == pytest.approx(heads, rel=1e-5, abs=1e-5)
    sizes = [abs(head.share) for head in causes.heads]
    assert sizes == sorted(sizes, reverse=True)
    (below,) = causes.below
    assert below.hook == lower
    assert [one.index for one in below.features] == features.abs().argsort(descending=True)[:20].tolist()
    assert [one.share for one in below.features] == pytest.approx(
        features[[f.index for f in below.features]].tolist(), abs=1e-4
    )
    assert (below.total, below.errors, below.other) == pytest.approx((features.sum().item(), errors, other), abs=1e-4)
    assert below.total + below.errors + below.other == pytest.approx(1, abs=1e-4)
    assert [one.feature for one in below.features][:2] == [f"0/{one.index}" for one in below.features][:2]
    assert all(one.label == index.label(lower, one.index) for one in below.features)
    assert all(1 <= one.contexts <= 6 for one in below.features[:3])
    assert asked["0/7"].below == ()


def test_an_answer_is_kept_and_read_without_a_model(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index.feature("1/3").causes is None
    assert "causes" not in index.feature("1/3").to_dict()
    with pytest.raises(UserError, match="nobody has asked"):
        index.why("1/3")
    steps: list[tuple[int, int]] = []
    found = index.why("1/3", lm(), 3, progress=lambda what, done, of: steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    path = index.folder / "1.resid_post" / "causes" / "3.json"
    assert json.loads(path.read_text()) == found.to_dict()
    read = ds.open_index(index.folder)
    assert read.feature("1/3").causes == found == read.why("1/3") == pickle.loads(pickle.dumps(found))
    assert read.feature("1/3").to_dict()["causes"] == found.to_dict()
    assert read.feature("1/4").causes is None
    assert "From where" in str(read.feature("1/3").table())
    before = path.read_bytes()

    def nothing(*args: Any, **settings: Any) -> Any:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(why, "attribute_tokens_each", nothing)
        assert lm().why(read, "1/3", contexts=3) == found
        for other in ({"contexts": 4}, {"contexts": 3, "rule": "linear"}):
            with pytest.raises(AssertionError):
                lm().why(read, "1/3", **other)
    assert path.read_bytes() == before
    assert len(lm().why(read, "1/3", contexts=4).contexts) == 4
    assert len(ds.open_index(index.folder).feature("1/3").causes.contexts) == 4


def test_an_answer_shows_itself(asked: dict[str, Causes]) -> None:
    for causes in asked.values():
        assert json.loads(json.dumps(causes.to_dict(), allow_nan=False)) == causes.to_dict()
        assert Causes.from_dict(causes.to_dict()) == causes
        rows = causes.to_frame()
        sums = rows.groupby("context")["contribution"].sum()
        assert sums.tolist() == pytest.approx([context.pre_activation for context in causes.contexts], rel=1e-4)
        text = str(causes.table())
        assert causes.feature in text
        assert "What each token gives it" in causes.to_html()
        strips = [block for block in causes.blocks() if isinstance(block, Strip)]
        for key, some in (("activations", strips[:6]), ("contributions", strips[6:])):
            for context, strip in zip(causes.contexts, some, strict=True):
                assert [mark.value for mark in strip.marks] == list(getattr(context, key))
                assert [mark.pos for mark in strip.marks if mark.aimed] == [context.pos]


def test_another_model_or_other_saes_are_refused(index: Index) -> None:
    metadata = {"prepend_bos": True, "context_size": WINDOW}

    def of(*seeds: int, shape: str = "llama") -> ds.LM:
        kinds = {"0.resid_post": "topk", "1.resid_post": "jumprelu"}
        each = zip(kinds.items(), seeds, strict=False)
        saes = [random_sae(kind, hook, metadata=metadata, seed=s) for (hook, kind), s in each]
        return handle([sae.to(torch.float64) for sae in saes], shape)

    for other, why_not in (
        (of(0, 1), "SAE at 1.resid_post is not the one"),
        (of(1, 0), "SAE at 0.resid_post is not the one"),
        (of(0), "SAE at 1.resid_post is not loaded; there are SAEs at 0.resid_post"),
        (of(0, 0, shape="qwen3"), "has type qwen3"),
    ):
        with pytest.raises(UserError, match=why_not):
            other.why(index, "1/3")
    changed = model().__class__(model().config)  # the same in all but its weights
    with torch.no_grad():
        for mine, weight in zip(changed.parameters(), model().parameters(), strict=True):
            mine.copy_(weight)
        changed.model.layers[0].mlp.down_proj.weight.mul_(-1)
    other = ds.load(changed, tokenizer(), saes=list(lm().saes.values()))
    with pytest.raises(UserError, match="it is another one"):
        other.why(index, "1/3")
    assert not (index.folder / "1.resid_post" / "causes").exists()
    assert of(1, 0).saes[1] is not None
    below_is_other = handle([random_sae("jumprelu", "1.resid_post", metadata=metadata).to(torch.float64)])
    assert below_is_other.why(index, "1/3", contexts=2).below == ()  # without the SAE below it is another question


def test_what_is_kept_of_another_model_is_as_if_it_were_not_there(index: Index) -> None:
    found = lm().why(index, "1/3", contexts=2)
    manifest = json.loads((index.folder / "manifest.json").read_text())
    manifest["saes"]["1.resid_post"]["sha256"] = "0" * 64
    (index.folder / "manifest.json").write_text(json.dumps(manifest))
    assert found.asked["of"]["sae"] != "0" * 64
    assert ds.open_index(index.folder).feature("1/3").causes is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"feature": 3}'])
def test_a_broken_file_is_told_of(index: Index, content: str) -> None:
    path = index.folder / "1.resid_post" / "causes" / "3.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=r"cannot read .*3\.json: .*remove it"):
        index.feature("1/3")
    (path.parent / "labels.json").write_text(content)
    if content != "{}":
        with pytest.raises(UserError, match=r"cannot read .*labels\.json"):
            ds.open_index(index.folder)


def test_a_file_of_another_shape_is_told_of(index: Index) -> None:
    lm().why(index, "1/3", contexts=2)
    path = index.folder / "1.resid_post" / "causes" / "3.json"
    said = json.loads(path.read_text())
    said["contexts"][0]["activations"].pop()
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match="no document of causes"):
        index.feature("1/3")


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(index: Index) -> None:
    (index.folder / "1.resid_post" / "causes").write_text("a file")
    with pytest.warns(UserWarning, match="not kept"):
        found = lm().why(index, "1/3", contexts=2)
    assert len(found.contexts) == 2


def test_features_without_firings_and_odd_counts_are_refused(index: Index) -> None:
    dead = index.dead(1).features[0].feature
    with pytest.raises(UserError, match="fires nowhere"):
        lm().why(index, dead)
    for contexts in (0, -1, 101):
        with pytest.raises(UserError, match="contexts should be 1 to 100"):
            lm().why(index, "1/3", contexts=contexts)
    with pytest.raises(UserError, match="lm should be a model"):
        index.why("1/3", "no model")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no SAE at 9"):
        lm().why(index, "9/3")


def test_a_feature_gets_its_name_from_its_causes(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = Place(1, "resid_post")
    name, before = next((one.feature, one.label) for one in index.dense(80, layer="1").features if one.label)
    number = int(name.partition("/")[2])
    real = causes_kept.caused_label

    def easy(label: str | None, earlier: float, causes: Any) -> str | None:
        return real(None, 1.0, [cause.__class__(cause.text, abs(cause.share) + 0.1, 9) for cause in causes])

    monkeypatch.setattr(causes_kept, "caused_label", easy)
    found = lm().why(index, name, contexts=4)
    label = index.label(hook, number)
    named = Named.of(label or "")
    assert named is not None
    assert named.kind == "after"
    seen = {spelled(token) for context in found.contexts for token in context.tokens}
    assert set(named.texts) <= seen
    assert found.label == label == ds.open_index(index.folder).feature(name).label == ds.read_labels(index.folder)[name]
    assert ds.open_index(index.folder, labels={name: "mine"}).feature(name).causes.label == "mine"
    monkeypatch.setattr(causes_kept, "caused_label", lambda *args: None)  # other settings, and no name comes of them
    assert lm().why(index, name, contexts=5).label == before
    assert ds.open_index(index.folder).feature(name).label == before


def test_texts_of_a_corpus_give_no_orders_in_causes(tmp_path: Path) -> None:
    orders = "\x1b[31m </script><script>alert(1)</script> <img src=x onerror=alert(1)> [red]"
    index = scanned(tmp_path / "ix", [f"{orders} {text} {' '.join(HOSTILE)}" for text in texts(12)])
    causes = lm().why(index, index.dense(1).features[0].feature, contexts=3)
    assert not any(is_hidden(c) for c in set(str(causes.table())) - {"\n"})
    page = causes.to_html()
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page.replace("&lt;", "<x")


def test_a_question_is_answered_by_the_tokens_attribution_itself(made: Path, asked: dict[str, Causes]) -> None:
    """What is told of a context is what ``lm.attribute_tokens`` tells of it alone."""
    context = asked["1/3"].contexts[0]
    prompt = lm().encode(list(context.token_ids))
    target, _ = lm()._target("1/3", {})
    (answer,) = attribute_tokens_each(lm()._subject, [Asked(prompt, target, context.pos)])
    assert answer.target.completeness_error == context.completeness_error
    assert answer.target.pre_activation == context.pre_activation
