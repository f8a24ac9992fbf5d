"""Whether names say where features fire: what is counted, by hand, and what the page says of it."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import depass_sae as ds
from depass_sae.evaluation import labels
from depass_sae.evaluation.labels import Candidate, Read, auc, candidates, exchanged, measured, nameless, page, read
from depass_sae.index.index import Index
from depass_sae.labels.automatic import Named, Spelled, spelled
from depass_sae.models.place import Place
from depass_sae.passes.settings import Settings

from ..index.scanned import WINDOW, lm, scanned, texts

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
OTHERS = texts(25, seed=9, longest=30)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return scanned(tmp_path_factory.mktemp("index") / "ix")


@pytest.fixture(scope="module")
def heard(index: Index) -> Read:
    return read(lm()._subject, OTHERS, WINDOW, Spelled.tokens(index.vocabulary), None, Settings())


def by_hand(index: Index) -> tuple[list[tuple[str, str]], dict[tuple[Place, int], set[int]]]:
    """What each token and the one before it read, and where each feature fires; text by text, window by window."""
    tokens: list[tuple[str, str]] = []
    fires: dict[tuple[Place, int], set[int]] = {}
    for text in OTHERS:
        ids = lm().tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[misc]
        for begin in range(0, len(ids), WINDOW - 1):
            window = [0, *ids[begin : begin + WINDOW - 1]]
            report = lm().features(window)
            for layer in report.layers:
                for at in layer.positions:
                    for i in at.indices:
                        fires.setdefault((layer.hook, i), set()).add(len(tokens) + at.pos - 1)
            read_as = [spelled(index.vocabulary[i]) for i in window]
            tokens += [(own, before) for before, own in pairwise(read_as)]
    return tokens, fires


def test_names_are_held_to_what_is_counted_by_hand(index: Index, heard: Read) -> None:
    tokens, fires = by_hand(index)
    assert len(heard.text) == len(tokens)
    assert {which: set(where.tolist()) for which, where in heard.at.items()} == fires
    some = candidates(index, heard, 1000)
    assert {(one.hook, one.index) for one in some} == {
        which
        for which, where in fires.items()
        if len(where) >= 5 and (label := index.label(*which)) and Named.of(label).kind in ("on", "after")  # type: ignore[union-attr]
    }
    others = exchanged(some)
    records = measured(index, heard, some)
    for one, other, record in zip(some, others, records, strict=True):
        where = fires[one.hook, one.index]

        def share(name: Named, where: set[int] = where) -> tuple[float, set[int]]:
            pairs = (pair[name.kind == "after"] in name.texts for pair in tokens)
            said = {n for n, there in enumerate(pairs) if there}
            silent = set(range(len(tokens))) - where
            return (len(said & where) / len(where) + len(silent - said) / len(silent)) / 2, said

        expected, said = share(one.name)
        assert record["auc"] == pytest.approx(expected)
        assert record["shuffled"] == pytest.approx(share(other)[0])
        assert record["hits"] == pytest.approx(len(said & where) / len(where))
        assert record["right"] == pytest.approx(len(said & where) / len(said) if said else np.nan, nan_ok=True)
        assert (record["fires"], record["said"]) == (len(where), len(said))
    often = [which for which, where in fires.items() if len(where) >= 5]
    assert nameless(index, heard) == pytest.approx(1 - len(some) / len(often))


def test_names_after_a_token_are_held_to_the_token_before() -> None:
    heard = Read(np.array([0, 1, 2, 1]), np.array([-1, 0, 1, 2]), {})
    texts_ = {"a": 0, "b": 1, "c": 2}
    assert heard.says(Named("on", ("b", "x")), texts_).tolist() == [False, True, False, True]
    assert heard.says(Named("after", ("a", "b")), texts_).tolist() == [False, True, True, False]


def test_the_area_of_a_yes_or_no_is_the_mean_of_two_shares() -> None:
    yes, no = True, False
    fires = np.array([yes, yes, no, no, no, no])
    assert auc(fires, fires) == 1
    assert auc(~fires, fires) == 0
    assert auc(np.array([no] * 6), fires) == auc(np.array([yes] * 6), fires) == 0.5
    assert auc(np.array([yes, no, yes, no, no, no]), fires) == pytest.approx((1 / 2 + 3 / 4) / 2)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 14, 15, 16, 40, 137])
def test_names_are_exchanged_among_features_of_like_density(count: int) -> None:
    draw = random.Random(count)
    some = [
        Candidate(Place(0, "resid_post"), i, Named("on", (str(i),)), density)
        for i, density in enumerate(draw.sample(range(1000), count))
    ]
    found = exchanged(some)
    assert sorted(name.texts for name in found) == sorted(one.name.texts for one in some)
    if count > 1:
        assert all(name != one.name for name, one in zip(found, some, strict=True))
    rank = {one.index: n for n, one in enumerate(sorted(some, key=lambda one: one.density))}
    for one, name in zip(some, found, strict=True):
        assert abs(rank[one.index] - rank[int(name.texts[0])]) < 15
    assert exchanged(some) == found


def test_features_are_drawn_the_same_way_every_time(index: Index, heard: Read) -> None:
    some = candidates(index, heard, 7)
    assert len(some) == 7
    assert candidates(index, heard, 7) == some
    assert candidates(index, heard, 7, seed=1) != some


def test_a_limit_ends_what_is_tested(index: Index) -> None:
    told: list[int] = []
    settings = Settings(progress=lambda what, done, of: told.append(done))
    some = read(lm()._subject, OTHERS, WINDOW, Spelled.tokens(index.vocabulary), 50, settings)
    assert 50 <= len(some.text) < 50 + WINDOW
    assert told == [len(some.text)]


def test_the_page_says_what_was_measured() -> None:
    records: list[dict[str, Any]] = [
        {
            "sae": "5.resid_post" if i % 2 else "11.resid_post", "kind": "after" if i % 4 == 0 else "on",
            "auc": 0.8, "shuffled": 0.5 if i else 0.9, "hits": 0.61, "right": 0.25,
        }
        for i in range(40)
    ]  # fmt: skip
    text = page(records, 123456, 7890, 0.42)
    assert "123,456 tokens" in text
    assert "7,890" in text
    assert "| all | 40 | 0.80 (0.80 to 0.80) | 0.50 (0.50 to 0.50) | 0.30 (0.30 to 0.30) | 0.61" in text
    assert "| named after tokens | 10 |" in text
    assert "| of 5.resid_post | 20 |" in text
    assert text.index("of 5.resid_post") < text.index("of 11.resid_post")
    assert "39 of 40 features (98%)" in text
    assert "42%" in text


def test_an_index_is_made_of_what_was_not_held_out_and_opened_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = texts(13, seed=3)
    monkeypatch.setattr(labels, "written", lambda: written)
    made = labels.index_of(lm()._subject, tmp_path, None, None)
    assert made.manifest.corpus["documents"] == 13 - 3  # all but the texts 0, 6 and 12
    assert made.tokens == ds.open_index(tmp_path / "index-all").tokens
    monkeypatch.setattr(labels, "scan", None)
    assert labels.index_of(lm()._subject, tmp_path, None, None).tokens == made.tokens
