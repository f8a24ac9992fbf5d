"""An index says what the slow way says, whoever does its units, in whatever order, and however often it is stopped."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from depass_sae.index.corpus import corpus
from depass_sae.index.hashing import place_hash
from depass_sae.index.index import Index
from depass_sae.index.parts import Parts
from depass_sae.index.scan import scan
from depass_sae.index.settings import RATE, ScanSettings
from depass_sae.index.units import Cutter
from depass_sae.index.work import Work
from depass_sae.passes.settings import Settings

from .oracle import Fired, Oracle
from .scanned import WINDOW, contents, lm, scanned, texts

LAYERS = (0, 1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return scanned(tmp_path_factory.mktemp("index") / "ix", top=5, samples=2)


@pytest.fixture(scope="module")
def oracle() -> dict[int, Oracle]:
    return {layer: Oracle.of(lm(), texts(), layer, WINDOW) for layer in LAYERS}


def features(index: Index) -> list[tuple[int, int]]:
    return [(hook.layer, i) for hook, width in index.saes.items() for i in range(width)]


def test_counts_densities_and_histograms_are_those_of_the_slow_way(index: Index, oracle: dict[int, Oracle]) -> None:
    fired = 0
    for layer, i in features(index):
        found, slow = index.feature(f"{layer}/{i}"), oracle[layer]
        every = slow.of_feature(i)
        fired += len(every)
        assert found.scanned == slow.tokens
        assert found.count == len(every)
        assert found.density == len(every) / slow.tokens
        assert {b["activation"]: b["count"] for b in found.to_dict()["histogram"]} == pytest.approx(slow.histogram(i))
        sizes = [abs(one.value) for one in every]
        assert found.mean == pytest.approx(np.mean(sizes) if sizes else 0.0, rel=1e-4)
        assert found.largest == pytest.approx(max(sizes, default=0.0), rel=1e-4)
    assert fired > 5000


def test_tokens_and_those_beside_them_are_counted_as_the_slow_way_does(index: Index, oracle: dict[int, Oracle]) -> None:
    for layer, i in features(index):
        found = index.feature(f"{layer}/{i}")
        for step, rows in ((0, found.fires_on), (-1, found.before), (1, found.after)):
            slow = oracle[layer].counted(i, step)
            assert {row.id: row.count for row in rows} == {token: n for token, (n, _) in slow.items()}
            for row in rows:
                assert row.mean == pytest.approx(slow[row.id][1], rel=1e-4)
            assert [row.count for row in rows] == sorted((row.count for row in rows), reverse=True)
        assert not any(found.missed.values())


def test_the_strongest_contexts_are_those_of_the_slow_way_with_all_their_activations(
    index: Index, oracle: dict[int, Oracle]
) -> None:
    for layer, i in features(index):
        slow, found = oracle[layer], index.feature(f"{layer}/{i}").contexts
        best = slow.strongest(i, 5)
        assert [context.number for context in found] == [one.document for one in best]
        for context, one in zip(found, best, strict=True):
            assert context.activation == pytest.approx(one.value, rel=1e-4)
            assert (context.pos, list(context.token_ids)) == (one.pos, slow.ids[one.document, one.window])
            assert context.start == one.window * (WINDOW - 1)
            assert context.tokens == lm().encode(context.token_ids).tokens
            whole = np.zeros(len(context.token_ids))
            for other in slow.of_feature(i):
                if (other.document, other.window) == (one.document, one.window):
                    whole[other.pos] = other.value
            assert np.allclose(context.activations, whole, rtol=2e-3, atol=1e-4)


def test_samples_are_the_firings_with_the_lowest_hash_of_every_octave(index: Index, oracle: dict[int, Oracle]) -> None:
    for layer, i in features(index):
        slow, found = oracle[layer], index.feature(f"{layer}/{i}")
        known = {one.document for one in slow.strongest(i, 5)}
        expected: list[Fired] = []
        octaves: dict[int, list[Fired]] = {}
        for one in slow.of_feature(i):
            octaves.setdefault(int(np.floor(np.log2(abs(one.value)))), []).append(one)
        for _, some in sorted(octaves.items(), reverse=True):
            drawn: list[Fired] = []
            spare = 0
            seen = set[int]()
            for one in sorted(some, key=hashed):
                if one.document in seen:
                    continue
                seen.add(one.document)
                spare += 1
                if one.document not in known and len(drawn) < 2 and spare <= 4:
                    drawn.append(one)
                    known.add(one.document)
            expected += drawn
        assert [(c.number, c.pos) for c in found.samples] == [(one.document, one.pos) for one in expected]


def hashed(one: Fired) -> int:
    """The upper half of its place's hash."""
    place = (np.array([number]) for number in (one.document, one.window, one.pos))
    return int(place_hash(*place)[0]) >> 32


def test_partners_are_counted_on_tokens_that_a_hash_draws(index: Index, oracle: dict[int, Oracle]) -> None:
    slow = oracle[1]
    places = [(d, w, pos) for (d, w), ids in slow.ids.items() for pos in range(1, len(ids))]
    hashes = place_hash(*(np.array(column) for column in zip(*places, strict=True)))
    drawn = {place for place, h in zip(places, hashes.tolist(), strict=True) if (h >> 40) % RATE == 0}
    assert index.manifest.drawn == len(drawn) > 10
    several = 0
    for i in range(index.saes[next(h for h in index.saes if h.layer == 1)]):
        found, counts = index.feature(f"1/{i}"), slow.together(i, drawn)
        assert found.drawn == counts.pop(i, 0)
        best = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:20]
        assert [(name, n) for name, _, n in found.partners] == [(f"1/{other}", n) for other, n in best]
        several += len(best)
    assert several > 50


def test_a_pack_gives_what_each_document_gives_alone(tmp_path: Path, index: Index) -> None:
    some = texts(8)
    together = scanned(tmp_path / "all", some, full="all", unit=10_000)
    for number, text in enumerate(some[:4]):
        alone = scanned(tmp_path / str(number), [text], full="all")
        for layer, i in features(index)[::7]:
            rows = together.activations(f"{layer}/{i}")
            documents = [together.window(w)["document"] for w in rows["window"]]
            mine = rows[np.array([document == number for document in documents], dtype=bool)]
            other = alone.activations(f"{layer}/{i}")
            assert mine["pos"].tolist() == other["pos"].tolist()
            assert np.allclose(mine["activation"], other["activation"], rtol=2e-3)


def test_every_activation_is_kept_where_it_is_asked_for(tmp_path: Path, oracle: dict[int, Oracle]) -> None:
    found = scanned(tmp_path / "ix", full=["1/3", "0/4"])
    for layer, i in ((1, 3), (0, 4)):
        rows = found.activations(f"{layer}/{i}")
        slow = sorted(oracle[layer].of_feature(i), key=lambda one: (one.document, one.window, one.pos))
        assert len(slow) > 10
        assert rows["pos"].tolist() == [one.pos for one in slow]
        assert np.allclose(rows["activation"], [one.value for one in slow], rtol=2e-3)
        windows = [found.window(w) for w in rows["window"]]
        assert [w["document"] for w in windows] == [one.document for one in slow]
        assert [w["tokens"] for w in windows] == [oracle[layer].ids[one.document, one.window] for one in slow]
    with pytest.raises(ValueError, match="scan with --full 1/4"):
        found.activations("1/4")


def test_contexts_may_repeat_a_document_where_that_is_asked_for(tmp_path: Path, oracle: dict[int, Oracle]) -> None:
    found = scanned(tmp_path / "ix", top=30, repeats=True)
    repeated = 0
    for i in range(20):
        best: dict[tuple[int, int], Fired] = {}
        for one in oracle[1].of_feature(i):
            key = (one.document, one.window)
            if key not in best or abs(one.value) > abs(best[key].value):
                best[key] = one
        expected = sorted(best.values(), key=lambda one: (-abs(one.value), one.document, one.window))[:30]
        contexts = found.feature(f"1/{i}").contexts
        assert [(c.number, c.pos) for c in contexts] == [(one.document, one.pos) for one in expected]
        repeated += len(contexts) - len({c.number for c in contexts})
    assert repeated > 5


def test_fewer_tokens_are_kept_where_that_is_asked_for(tmp_path: Path, index: Index) -> None:
    """The most frequent ones; everything else stays as it is."""
    found, cut = scanned(tmp_path / "ix", top=5, samples=2, kept_tokens=3, kept_beside=1), 0
    for layer, i in features(index):
        few, all_ = (ix.feature(f"{layer}/{i}").to_dict() for ix in (found, index))
        for key, most in (("fires_on", 3), ("before", 1), ("after", 1)):
            cut += len(all_[key]) > most
            assert few.pop(key) == all_.pop(key)[:most]
        few.pop("label"), all_.pop("label")
        few["partners"], all_["partners"] = None, None
        assert few == all_
    assert cut > 50


# ------------------------------------------------------------------------------------------------------ the same bytes


def test_the_files_are_the_same_whoever_does_the_units_and_in_what_order(tmp_path: Path) -> None:
    plain = scanned(tmp_path / "plain", full=["1/3"])
    how = ScanSettings(full=("1/3",), unit=40)
    subject = lm()._subject
    widths = {hook: sae.cfg.d_sae for hook, sae in sorted(subject.saes.items())}
    for order in range(2):
        folder = tmp_path / f"order-{order}"
        begun(folder, how)
        parts = Parts(folder / "parts", widths, how.choosing, keep_windows=True)
        units = list(Cutter(subject.loaded, subject.adapter, WINDOW, 40).units(corpus(texts()), {}))
        assert len(units) > 17
        random.Random(order).shuffle(units)
        for unit in units:
            Work(parts, how.full_of(widths)).do(subject, unit)
            parts.merge_finished()
        scan(subject, corpus(texts()), folder, how, Settings())
        assert contents(folder) == contents(plain.folder)


def test_a_scan_that_is_stopped_anywhere_ends_with_the_same_files(tmp_path: Path) -> None:
    plain = contents(scanned(tmp_path / "plain").folder)
    folder, stops = tmp_path / "stopped", iter([1, 3, 2, 400, 5, 1, 30])
    while not (folder / "manifest.json").exists():
        left = next(stops, 10**9)

        def tell(what: str, done: int, steps: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        try:
            scanned(folder, progress=tell)
        except KeyboardInterrupt:
            assert (folder / "scan.json").exists()
    assert contents(folder) == plain


def begun(folder: Path, how: ScanSettings) -> None:
    """A scan that was stopped before it had done anything."""

    def stop(what: str, done: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(lm()._subject, corpus(texts()), folder, how, Settings(progress=stop))


def test_another_unit_of_work_changes_last_bits_at_most(tmp_path: Path, index: Index) -> None:
    other = scanned(tmp_path / "ix", top=5, samples=2, unit=10_000)
    for layer, i in features(index):
        one, two = (ix.feature(f"{layer}/{i}").to_dict() for ix in (index, other))
        for key in ("count", "tokens", "histogram", "positions", "partners", "missed"):
            assert one[key] == two[key]
        for key in ("contexts", "samples"):
            for a, b in zip(one[key], two[key], strict=True):
                assert (a["document"], a["pos"], a["token_ids"]) == (b["document"], b["pos"], b["token_ids"])


def test_what_a_scan_is_resumed_with_must_be_what_it_began_with(tmp_path: Path) -> None:
    begun(tmp_path / "ix", ScanSettings(unit=40))
    with pytest.raises(ValueError, match="begun with another top"):
        scanned(tmp_path / "ix", top=3)
    calls = iter(range(10**9))

    def stop(what: str, done: int, steps: int) -> None:
        if next(calls) > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scanned(tmp_path / "ix", progress=stop)
    with pytest.raises(ValueError, match="the corpus is not the one"):
        scanned(tmp_path / "ix", texts(seed=1))
    scanned(tmp_path / "ix")
    with pytest.raises(ValueError, match="is an index already"):
        scanned(tmp_path / "ix")


def test_progress_says_what_is_left_where_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on a minute whenever somebody looks."""
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr("depass_sae.index.scan.time.monotonic", lambda: float(next(clock)))
    (tmp_path / "a.txt").write_text("\n".join(texts()))

    def told(folder: str, source: object, **options: int) -> list[tuple[str, int, int]]:
        found: list[tuple[str, int, int]] = []
        scanned(tmp_path / folder, source, progress=lambda *said: found.append(said), **options)
        return [said for said in found if said[0].startswith("scanning")]

    known = told("file", tmp_path / "a.txt")
    whole = known[-1][1]
    assert known[-1][1:] == (1370, 1370)
    assert known[-1][0] == f"scanning: 1,370 tokens, {1370 / (60 * len(known)):,.0f} tokens/s, less than a minute left"
    for number, (what, done, total) in enumerate(known[:-1], start=1):
        minutes = (total - done) * number / done
        assert f"about {minutes:,.0f} min left" in what or minutes <= 1
        assert done <= total
    assert abs(known[len(known) // 2][2] - whole) < 0.2 * whole
    assert {(done, total) for _, done, total in told("texts", iter(texts()))} == {(0, 0)}
    assert "left" not in told("more", iter(texts()))[3][0]
    assert {total for _, _, total in told("limited", iter(texts()), limit=500)[:-1]} == {500}
