"""A task's circuit: learned on half of the prompts, and what is counted on the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.attribution.targets import make_target
from depass_sae.errors import UserError
from depass_sae.graph.feature_game import Asked, Removal, feature_game
from depass_sae.graph.task import TaskGame

from .test_circuit import ANSWER, DECOY, A, B, planted, random_lm

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
PROMPTS = [[0, 80, 90, 17, 33], [0, 81, 90, 17, 34], [0, 82, 91, 17, 35], [0, 83, 92, 17, 36]]


def task_of(lm: ds.LM, prompts: list[list[int]], names: Any = None) -> TaskGame:
    subject = lm._subject.asked()
    target, _ = make_target(subject, logit=7)
    games = [feature_game(subject, Asked(lm.encode(ids), target), None, Removal())[0] for ids in prompts]
    return TaskGame.of(games) if names is None else TaskGame(games, names)


def test_on_each_prompt_play_those_that_are_active_there() -> None:
    task = task_of(random_lm(), PROMPTS)
    assert set(task.names) == {name for game in task.games for name in game.named}
    assert len(task.names) > max(game.players for game in task.games)
    chosen = torch.rand(1, task.players, generator=torch.Generator().manual_seed(0)) < 0.5
    kept = {name for name, member in zip(task.names, chosen[0].tolist(), strict=True) if member}
    shares = []
    for n, (game, found) in enumerate(zip(task.games, task.each(chosen), strict=True)):
        own = torch.tensor([name in kept for name in game.named])
        assert torch.equal(task.own(chosen[0], n).bool(), own)
        shares.append(game.play(own[None]).share.item())
        assert found.share.item() == pytest.approx(shares[-1])
    assert task.play(chosen).share.item() == pytest.approx(sum(min(share, 1) for share in shares) / len(shares))


def test_who_plays_only_elsewhere_is_not_kept() -> None:
    lm = random_lm()
    one, both = task_of(lm, PROMPTS[:1]), task_of(lm, PROMPTS[:2])
    there = task_of(lm, PROMPTS[1:2], names=one.names)
    chosen = there.own(torch.ones(one.players, dtype=torch.bool), 0).bool()
    shared = set(one.games[0].named)
    assert chosen.tolist() == [name in shared for name in both.games[1].named]
    assert 0 < int(chosen.sum()) < len(chosen)


def test_a_slope_is_the_mean_of_the_prompts_slopes() -> None:
    task = task_of(random_lm(), PROMPTS[:2])
    mask = torch.full((task.players,), 0.4, dtype=torch.float64)
    loss, gradient = task.slope(mask)
    each = [game.slope(torch.full((game.players,), 0.4, dtype=torch.float64)) for game in task.games]
    assert loss == pytest.approx(sum(one for one, _ in each) / 2)
    expected = dict.fromkeys(task.names, 0.0)
    for game, (_, own) in zip(task.games, each, strict=True):
        for name, value in zip(game.named, own.tolist(), strict=True):
            expected[name] += value / 2
    assert gradient.tolist() == pytest.approx([expected[name] for name in task.names])


def test_what_was_planted_is_found_for_all_prompts_and_needed_on_each() -> None:
    found = planted().circuit_of([[0, 5]] * 4)
    assert {(f.layer, f.index, f.pos) for f in found.features} == {(la, i, 1) for la in (0, 1) for i in (A, B)}
    assert DECOY not in {f.index for f in found.features}
    assert all((f.needed, f.active) == (4, 4) for f in found.features)
    assert found.minimal
    assert (found.tested.sufficient, found.tested.prompts, found.learned.prompts) == (2, 2, 2)
    assert found.by_effect.share < found.tested.share or found.by_effect.first < found.tested.first
    named = planted().circuit_of([[0, 5]] * 4, [f"logit:{ANSWER}"] * 4)
    assert named.features == found.features


def test_it_is_learned_on_every_second_prompt_and_tested_on_the_others() -> None:
    found = random_lm().circuit_of(PROMPTS, seconds=5.0)
    document = found.to_dict()
    assert document["learned"]["prompts"] == document["tested"]["prompts"] == 2
    assert document["learned"]["share"] >= 0.8 - 1e-4
    assert document["size"] == len(found.to_frame()) == len(found.features)
    assert "that they were not learned on" in str(found)


@pytest.mark.parametrize(
    ("prompts", "settings", "why"),
    [
        (PROMPTS[:3], {}, "a task is of 4 prompts at least"),
        ([*PROMPTS[:3], [0, 5]], {}, "prompts of a task have equal structure"),
        (PROMPTS, {"targets": ["logit:7"]}, "a target, and a contrast, for each prompt"),
        (PROMPTS, {"contrasts": PROMPTS[:2]}, "a target, and a contrast, for each prompt"),
        (PROMPTS, {"seconds": 0.0}, "seconds is how long"),
        ("a text", {}, "name several prompts"),
    ],
)
def test_what_is_no_task_is_one_line(prompts: Any, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        random_lm().circuit_of(prompts, **settings)
