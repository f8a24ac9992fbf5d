"""What the page about sizes of graphs says is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.evaluation.circuits import FACT, OBJECTS, STUDY, asked
from depass_sae.evaluation.graph_sizes import GROWN, KINDS, SIZES, by_effect, measured, page, run
from depass_sae.graph.feature_game import Removal, feature_game
from depass_sae.graph.live import LiveGraph


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return ds.load("smollm2", layers=[23, 28])


def test_a_graph_is_measured_beside_as_many_features_by_effect_and_at_random(lm: ds.LM) -> None:
    found = measured(lm._subject, FACT, 0, 60, "both")
    json.dumps(found)
    g = lm.graph("The capital of France is", logit=" Paris", max_nodes=60)
    together = lm.verify(g, max_nodes=0).graph["verification"]["together"]
    assert (found["kind"], found["number"], found["size"], found["nodes"]) == (FACT, 0, 60, len(g))
    assert (found["features"], found["active"]) == (together["features"], together["active"])
    shares = together["shares"]
    assert found["kept"]["graph"] == pytest.approx(shares["only_graph"], abs=1e-4)
    assert found["lost"]["graph"] == pytest.approx(shares["without_graph"], abs=1e-4)
    assert found["kept"]["random"] == pytest.approx(shares["only_random"]["mean"], abs=1e-4)
    assert found["lost"]["random"] == pytest.approx(shares["without_random"]["mean"], abs=1e-4)
    assert found["no_features"] == pytest.approx(shares["no_features"], abs=1e-4)


def test_features_by_effect_are_as_many_and_leave_in_the_graphs_model_what_they_leave_in_a_circuits(lm: ds.LM) -> None:
    subject, question = lm._subject.asked(), asked(lm._subject.asked(), FACT, 0)
    assert question is not None
    live = LiveGraph.of(subject, lm.graph("The capital of France is", logit=" Paris", max_nodes=60))
    chosen = by_effect(subject, question, live)
    assert int(chosen.sum()) == int(live.members.sum()) > 10
    game, *_ = feature_game(subject, question, None, Removal())
    names = {player for player, member in zip(live.players.named, chosen.tolist(), strict=True) if member}
    own = torch.tensor([(place, pos, index) in names for place, index, pos in game.named])
    least = min(game.effects().abs()[own].tolist())
    assert max(game.effects().abs()[~own].tolist()) <= least
    assert live.keep(chosen[None]).share.item() == pytest.approx(game.play(own[None]).share.item(), abs=1e-4)


def record(kind: str, number: int, size: int, kept: float, grow: str = "both") -> dict[str, Any]:
    return {
        "kind": kind, "number": number, "size": size, "grow": grow, "asked": True, "features": size - 5,
        "no_features": 0.11, "seconds": 2.5, "kept": {"graph": kept, "effect": 0.52, "random": 0.31},
        "lost": {"graph": 0.42, "effect": 0.23, "random": 0.64},
    }  # fmt: skip


def rows(text: str, title: str) -> list[list[str]]:
    lines = text.split(f"\n## {title}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]


def test_the_page_has_a_row_for_every_size_of_all_prompts_and_of_each_kind() -> None:
    unknown = {"kind": FACT, "number": 2, "size": 25, "grow": "both", "asked": False}
    records = [record(FACT, 0, 25, 0.81), record(FACT, 1, 25, 0.79), record(OBJECTS, 0, 25, 0.9), unknown]
    text = page([*records, record(FACT, 0, 1000, 0.95), record(FACT, 0, 25, 0.4, "weight")])
    small, by_flow, large = rows(text, "All prompts")
    assert (small[:2], by_flow[:2], large[:2]) == (["25", "both"], ["25", "weight"], ["1,000", "both"])
    assert small[2] == "3"
    assert [cell.split()[0] for cell in small[3:8]] == ["20", "0.81", "0.52", "0.31", "0.11"]
    assert small[8] == "2 of 3"
    assert [cell.split()[0] for cell in small[9:]] == ["0.42", "0.23", "0.64", "2.5"]
    assert by_flow[4].startswith("0.40")
    assert rows(text, "Fact")[0][2] == "2"
    assert rows(text, "Indirect object")[0][4].startswith("0.90")
    assert "## Case study" not in text


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "sizes.jsonl"
    records = [record(kind, 0, size, 0.5, grow) for size in SIZES for grow in GROWN for kind in KINDS]
    path.write_text("".join(json.dumps(one) + "\n" for one in [*records, record(STUDY, 1, 25, 0.5)]))
    before = path.read_text()
    assert run(path, 1, 1) == records
    assert path.read_text() == before
