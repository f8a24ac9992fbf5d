"""The benchmarks run, on a model so small that nothing is timed by it."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import wide as wide_module
from benchmarks.__main__ import cells, markdown, merged
from benchmarks.measure import Row, clock, product_seconds, works
from benchmarks.shapes import Shape, prompt
from benchmarks.start import _compared, _parts


@pytest.fixture(scope="module")
def adapter():
    return Shape(32, 3, 4, 2, 48).build()


def test_every_work_runs_and_has_a_limit(adapter) -> None:
    with torch.no_grad():
        found = list(works(adapter, prompt(adapter, 6)))
        assert len({work.name for work in found}) == len(found) >= 8
        for work in found:
            assert clock(work.run, torch.device("cpu")) > 0
            assert work.limit() > 0


def test_a_passes_limit_counts_the_rows_that_it_carries(adapter) -> None:
    names = {work.name: work.rows for work in works(adapter, prompt(adapter, 6))}
    assert names["tokens, softmax"] == 3 * 6 * 7 // 2
    assert math.isfinite(product_seconds(adapter, {(0, "v"): 10_000, (2, "down"): 3}))


def test_the_committed_results_are_of_this_form() -> None:
    folder = Path(__file__).parent.parent / "benchmarks" / "results"
    document = json.loads((folder / "cpu.json").read_text())
    rows = [Row(**{key: value for key, value in row.items() if key != "ratio"}) for row in document["rows"]]
    assert markdown(document["machine"], rows) == (folder / "cpu.md").read_text()
    assert all(len(cells(row)) == 8 for row in rows)


def test_rows_that_are_measured_again_take_their_old_places() -> None:
    old = [Row("a", 1, "x", "", 1.0, None, None, 0.1), Row("b", 1, "x", "", 2.0, 1.0, 3, 0.1)]
    new = [Row("b", 1, "x", "", 5.0, 1.0, 3, 0.1)]
    assert merged([row.to_dict() for row in old], new) == [old[0], new[0]]
    more = Row("b", 1, "y", "", 1.0, None, None, 0.1)
    assert merged([row.to_dict() for row in old], [more, *new]) == [old[0], new[0], more]


def test_a_command_is_compared_by_the_processors_seconds_of_the_middle_run() -> None:
    bare, ours = [(9.0, 2.0, ""), (1.0, 1.0, ""), (5.0, 30.0, "")], [(9.0, 3.0, ""), (7.0, 1.0, ""), (8.0, 4.0, "")]
    held = [(9.0, 1.5, "")]
    lines = list(_compared({"bare": bare, "held": held, "ours": ours}))
    assert [re.findall(r"\d+\.\d+", line)[0] for line in lines] == ["2.00", "1.50", "3.00", "1.50", "2.00"]
    assert "(8.00" in lines[2]


def test_the_parts_of_a_command_and_everything_else_are_all_of_it() -> None:
    runs = [
        (0.0, 5.0, 'shown\n{"a": 1.0, "b": 2.0}\n'),
        (0.0, 6.0, '{"a": 1.0, "b": 2.0}'),
        (0.0, 9.0, '{"a": 3, "b": 2}'),
    ]
    assert [line.split()[-2] for line in _parts(runs)] == ["1.00", "2.00", "3.00"]


def test_the_memory_of_a_scan_is_simulated_with_its_own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WIDTH", 512), ("ACTIVE", 5), ("UNITS", 3), ("WINDOW", 512), ("REPORTED", (1, 3))):
        monkeypatch.setattr(wide_module, name, value)
    lines = list(wide_module.wide(1))
    assert [line.partition(":")[0].split()[0] for line in lines] == ["before", "after", "after", "merged"]
    assert "98,304 tokens" in lines[2]
    assert "3 units" in lines[3]
