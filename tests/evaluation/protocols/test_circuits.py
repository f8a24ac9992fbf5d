"""CPR and CMD are the areas of MIB, of mean values over prompts, by its sizes."""

from __future__ import annotations

import pytest
import torch

from depass_sae.evaluation.figures import estimate
from depass_sae.evaluation.protocols.circuits import CMD, CPR, SIZES, cmd, cpr, faithfulness

from ..table_game import Sums


def rows(worth: torch.Tensor, scores: torch.Tensor, protocol: object = CPR, base: float = 1.0) -> torch.Tensor:
    game = Sums(worth, base=base)
    found = protocol.score(game, protocol.measure(game, 2, 0), scores)  # type: ignore[attr-defined]
    return torch.tensor([*found["kept"], *found["ends"]], dtype=torch.float64)


def test_of_equal_sources_faithfulness_is_their_share_and_the_areas_are_those_of_a_line() -> None:
    numbers = rows(torch.ones(1000), torch.arange(1000.0))[None]
    assert faithfulness(numbers).tolist() == pytest.approx(list(SIZES))
    assert float(cpr(numbers)) == pytest.approx((1 - SIZES[0] ** 2) / 2)
    assert float(cmd(numbers)) == pytest.approx((1 - SIZES[0]) ** 2 / 2)


def test_areas_are_of_means_over_prompts_not_means_of_areas() -> None:
    """As MIB has it: one prompt that hardly depends on its sources does not blow up the whole."""
    one, other = rows(torch.ones(1000), torch.arange(1000.0)), rows(1e-6 * torch.ones(1000), torch.arange(1000.0))
    other[:3] += 1.0  # of hardly anything a thousand times as much
    both = torch.stack([one, other])
    assert float(cpr(both)) == pytest.approx(float(cpr(one[None])), abs=1e-3)
    found = estimate(both, cpr)
    assert found is not None
    assert found.n == 2


def test_the_planted_order_has_the_highest_cpr_and_the_lowest_cmd() -> None:
    worth = torch.zeros(1000)
    worth[:10] = 1
    planted, random = worth, torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert float(cpr(rows(worth, planted)[None])) == pytest.approx(1, abs=0.02)
    assert float(cpr(rows(worth, random)[None])) < 0.7
    assert float(cmd(rows(worth, planted, CMD)[None])) < 0.02 < float(cmd(rows(worth, random, CMD)[None]))


def test_sources_that_suppress_are_left_out_last_by_sign_and_raise_cpr_above_one() -> None:
    """MIB's two questions: what drives the target, and what makes the model do what it does."""
    worth = torch.cat([torch.full((100,), 1.0), torch.full((100,), -0.5), torch.zeros(800)])
    signed, sized = (rows(worth, worth, protocol)[None] for protocol in (CPR, CMD))
    assert float(cpr(signed)) > 1.3
    assert float(cmd(sized)) < float(cmd(signed))
