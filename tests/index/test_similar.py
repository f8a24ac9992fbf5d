"""Features that fire on the same tokens, against a count by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from depass_sae.errors import UserError
from depass_sae.index.index import Index

from .scanned import scanned


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return scanned(tmp_path_factory.mktemp("index") / "ix")


def by_hand(index: Index, name: str) -> dict[str, float]:
    """Of every other feature that shares a token."""
    shares = {}
    for hook, width in index.saes.items():
        for i in range(width):
            count, mean = (float(index.features(hook)[key][i]) for key in ("count", "mean"))
            if count:
                on = index.token_counts(hook, "tokens", i)
                shares[index.name(hook, i)] = {t.id: t.count * t.mean / (count * mean) for t in on}
    own = shares.pop(name)
    found = {
        other: sum(math.sqrt(own[token] * share) for token, share in of.items() if token in own)
        for other, of in shares.items()
    }
    return {other: alike for other, alike in found.items() if alike}


@pytest.mark.parametrize("rank", [0, 30])
def test_how_alike_features_are_is_counted_over_their_tokens(index: Index, rank: int) -> None:
    name = index.dense(rank + 1).features[-1].feature
    expected = by_hand(index, name)
    found = index.similar(name, top=100)
    assert {one.feature: one.alike for one in found.features} == pytest.approx(expected, rel=1e-5)
    alike = [one.alike for one in found.features]
    assert alike == sorted(alike, reverse=True)
    assert {one.feature.partition("/")[0] for one in found.features} == {"0", "1"}
    assert index.similar(name, top=3).features == found.features[:3]
    for one in found.features:
        feature = index.feature(one.feature)
        assert (one.label, one.count) == (feature.label, feature.count)


def test_a_feature_is_wholly_like_itself(tmp_path: Path, index: Index) -> None:
    """The same SAE's numbers at another place: shares that are equal give 1."""
    expected = by_hand(index, "1/3")
    assert all(0 < alike <= 1 + 1e-6 for alike in expected.values())
    own = index.feature("1/3")
    total = sum(t.count * t.mean for t in own.fires_on) / (own.count * own.mean)
    assert total == pytest.approx(1, abs=1e-5)


def test_an_answer_shows_itself(index: Index) -> None:
    found = index.similar("1/3", top=5)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert list(found.to_frame()["feature"]) == [one.feature for one in found.features]
    assert found.features[0].feature in str(found.table())
    assert "<html" in found.to_html()


def test_what_cannot_be_is_told_of(index: Index) -> None:
    dead = index.dead(1).features[0].feature
    for ask, why in (
        (lambda: index.similar(dead), "fires nowhere"),
        (lambda: index.similar("1/3", top=0), "1 feature or more"),
        (lambda: index.similar("9/3"), "no SAE at 9"),
    ):
        with pytest.raises(UserError, match=why):
            ask()
