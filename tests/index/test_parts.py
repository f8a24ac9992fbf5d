"""Parts on the disk: what is not finished is none, what is merged is there once, and blocks decide nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.index import contexts as contexts_module
from depass_sae.index import parts as parts_module
from depass_sae.index.contexts import Choosing, picked
from depass_sae.index.corpus import corpus
from depass_sae.index.counts import Counts
from depass_sae.index.parts import Part, Parts
from depass_sae.index.settings import MOST
from depass_sae.index.units import Cutter
from depass_sae.index.work import Work

from .oracle import Oracle
from .scanned import WINDOW, contents, lm, scanned, texts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Of 17 units, none of them merged."""
    subject = lm()._subject
    made = Parts(tmp_path / "parts", {hook: sae.cfg.d_sae for hook, sae in subject.saes.items()}, Choosing())
    units = Cutter(subject.loaded, subject.adapter, WINDOW, 30).units(corpus(texts()), {})
    for unit, _ in zip(units, range(17), strict=False):
        Work(made).do(subject, unit)
    return made


def names(parts: Parts) -> list[str]:
    parts.clean()
    return [part.folder.name for part in parts.all()]


def test_parts_that_are_in_another_and_parts_that_are_not_finished_are_removed(tmp_path: Path, parts: Parts) -> None:
    assert len(names(parts)) == 17
    shutil.copytree(parts.folder, tmp_path / "copy")
    parts.merge_finished()
    merged = names(parts)
    assert merged == ["1-00000000", "0-00000016"]
    for folder in (tmp_path / "copy").iterdir():  # stopped before they were removed
        if not (parts.folder / folder.name).exists():
            shutil.copytree(folder, parts.folder / folder.name)
    (parts.folder / "0-00000099").mkdir()
    (parts.folder / "stray").touch()
    assert names(parts) == merged
    assert sorted(path.name for path in parts.folder.iterdir()) == sorted(merged)


def test_what_somebody_is_at_stays_while_others_are_merged(parts: Parts) -> None:
    (parts.folder / "0-00000099").mkdir()
    parts.merge_finished()
    assert [part.folder.name for part in parts.all()] == ["1-00000000", "0-00000016"]
    assert (parts.folder / "0-00000099").exists()


def test_a_damaged_manifest_is_told_of(parts: Parts) -> None:
    (parts.path(0, 3) / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged; remove"):
        parts.all()
    assert Part.found(parts.folder / "none") is None


def test_a_merge_in_small_blocks_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = scanned(tmp_path / "plain", full="all")
    monkeypatch.setattr(parts_module, "BLOCK", 60)
    monkeypatch.setattr("depass_sae.index.finish.BLOCK", 60)
    assert contents(scanned(tmp_path / "small", full="all").folder) == contents(plain.folder)


def test_a_count_is_never_too_high_and_too_low_by_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("tokens", 4), ("before", 3), ("after", 5)):
        monkeypatch.setitem(MOST, name, most)
    index, slow = scanned(tmp_path / "ix"), Oracle.of(lm(), texts(), 1, WINDOW)
    too_low = 0
    for i in range(40):
        found = index.feature(f"1/{i}")
        for name, step, rows in (
            ("tokens", 0, found.fires_on),
            ("before", -1, found.before),
            ("after", 1, found.after),
        ):
            true, kept = slow.counted(i, step), {row.id: row.count for row in rows}
            assert len(kept) <= MOST[name]
            for token, (count, _) in true.items():
                assert count - found.missed[name] <= kept.get(token, 0) <= count
                too_low += kept.get(token, 0) < count
    assert too_low > 100


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(1, 9)), max_size=60), st.integers(1, 3))
def test_of_each_feature_the_most_frequent_keys_are_kept(rows: list[tuple[int, int, int]], most: int) -> None:
    feature, key, count = (np.array([row[i] for row in rows], dtype=np.int32) for i in range(3))
    whole = Counts.of(np.repeat(feature, count), np.repeat(key, count), np.ones(count.sum(), np.float32))
    kept, lost = whole.kept(most, 7)
    for f in range(4):
        of_f = [(-c, k) for g, k, c in zip(whole.feature, whole.key, whole.count, strict=True) if g == f]
        best = sorted(of_f)
        assert (
            sorted((-c, k) for g, k, c in zip(kept.feature, kept.key, kept.count, strict=True) if g == f) == best[:most]
        )
        dropped = [c for g, c in zip(lost.feature, lost.count, strict=True) if g == f]
        assert dropped == [-c for c, _ in best[most : most + 1]]


@given(st.randoms(use_true_random=False), st.integers(1, 80), st.booleans())
def test_the_first_of_each_group_are_picked_no_two_of_one_document(draw: random.Random, n: int, repeats: bool) -> None:
    rows = [(draw.randrange(2), draw.randrange(3), draw.randrange(30), draw.randrange(4)) for _ in range(n)]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    choosing = Choosing(top=2, samples=1, repeats=repeats)
    expected = []
    for feature, group in sorted({row[:2] for row in rows}):
        seen, taken = set(), 0
        some = sorted((within, i, key) for i, (f, g, within, key) in enumerate(rows) if (f, g) == (feature, group))
        for _, i, key in some:
            if key not in seen and taken < (2 if group == 0 else contexts_module.SPARE):
                seen.add(key)
                taken += 1
                expected.append(i)
    assert picked(*columns, choosing).tolist() == expected
