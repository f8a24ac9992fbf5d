"""The page of the paper's experiments."""

from dataclasses import replace
from statistics import mean

import pytest

from depass_sae.evaluation.paper import page
from depass_sae.evaluation.paper.languages import Found, measured

from .test_languages import TEXTS, planted

TRUTH = [
    {"prompt": prompt, "way": way, "right": right, "share": share, "masked": 1.0}
    for prompt in "abcd"
    for way, right, share in (
        ("misinformation", 0.0, 0.2), ("probe, direct", 0.0, 0.3), ("probe, DePass", 1.0, 0.8),
        ("probe, random", 0.0, 0.1), ("no information", 1.0, 0.9),
    )
]  # fmt: skip


def tables(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_every_way_stands_with_its_interval_and_how_far_it_is_ahead() -> None:
    apart = [{"probe": "probe", "layer": layer, "prompt": "a", "right": 1.0} for layer in page.LAYERS]
    found = page.truthfulness(TRUTH, apart)
    rows = {row[0]: row[1:] for row in tables(found)}
    assert rows["misinformation"] == ["0.00 (0.00 to 0.00)", "0.20 (0.20 to 0.20)", "1.0"]
    ahead = [row for row in tables(found) if row[0] == "probe, DePass"]
    assert ahead[1][1:] == ["+0.50 (+0.50 to +0.50)", "+0.70 (+0.70 to +0.70)"]
    assert "4 facts" in found
    assert "*Ahead of masking what looks untruthful, beyond chance*: probe, DePass." in found


def test_what_is_said_of_a_comparison_follows_its_intervals() -> None:
    apart = [{"probe": "probe", "layer": layer, "prompt": "a", "right": 1.0} for layer in page.LAYERS]
    other = {"probe, DePass": "probe, direct", "probe, direct": "probe, DePass"}
    turned = page.truthfulness([{**one, "way": other.get(one["way"], one["way"])} for one in TRUTH], apart)
    assert "*Ahead of masking what looks untruthful, beyond chance*: none; behind: probe, DePass." in turned
    same = [{**one, "share": 0.5} for one in TRUTH]
    said = "*Ahead of masking random tokens, beyond chance*: none; not told apart: probe, DePass."
    assert said in page.truthfulness(same, apart)


def test_every_part_has_its_figures_and_tables_are_whole() -> None:
    found = Found(TEXTS, (1.0, 0.5), 0.25, (planted("language"), planted("meaning")))
    examples = [{"part": "language", "text": "a", "tokens": ["|x`", " y"]}]
    text = page.languages(found, measured(found), examples)
    rows = tables(text)
    assert next(row for row in rows if row[0] == "language")[1].startswith("1.00")
    assert ["language", "a", "`¦x'` `y`"] in rows
    assert f"{len(TEXTS)} beginnings" in text
    assert {len(row) for row in rows[:4]} == {5}


def test_the_languages_part_stands_beside_a_random_one_text_by_text() -> None:
    random = replace(planted("meaning"), name="random")
    found = Found(TEXTS, (1.0, 0.5), 0.25, (planted("language"), random))
    records = measured(found)
    of = {part: [one["language"] for one in records if one["part"] == part] for part in ("language", "random")}
    rows = tables(page.languages(found, records, []))
    ahead = next(row for row in rows if row[0] == "of random")[1]
    assert float(ahead.split()[0]) == pytest.approx(mean(of["language"]) - mean(of["random"]), abs=0.006)
    assert float(ahead.split()[0]) > 0.3
    assert not [row for row in rows if row[0] == "of principal"]
