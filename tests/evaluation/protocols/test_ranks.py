"""Rank correlations are those with what sources are worth, and a planted best method has 1."""

from __future__ import annotations

import pytest
import torch

from depass_sae.evaluation.protocols import CEILING
from depass_sae.evaluation.protocols.ranks import MOST, REPLACE, SHAPLEY

from ..table_game import Sums

WORTH = torch.tensor([3.0, -1.0, 0.5, 2.0])


@pytest.mark.parametrize("protocol", [REPLACE, SHAPLEY], ids=lambda protocol: protocol.name)
def test_of_a_sum_every_source_is_worth_its_own_share_and_the_method_that_says_so_is_best(protocol: object) -> None:
    game = Sums(WORTH, base=0.3)
    measured = protocol.measure(game, 4, 0)  # type: ignore[attr-defined]
    assert measured["worth"] == pytest.approx(WORTH.tolist())
    scored = {
        name: protocol.score(game, measured, scores)["rank"]  # type: ignore[attr-defined]
        for name, scores in {"planted": WORTH**3, "reversed": -WORTH, "noise": torch.tensor([0.0, 2, 1, 3])}.items()
    }
    assert scored["planted"] == pytest.approx(1)
    assert scored["reversed"] == pytest.approx(-1)
    assert -1 < scored["noise"] < 1
    assert measured[CEILING] == {"rank": 1.0}


def test_what_shapley_values_share_out_replacing_one_does_not_see() -> None:
    """Of two players either of which suffices, none alone is missed; each is worth a half."""
    game = Sums(torch.zeros(3), f=lambda kept: kept[:, :2].amax(1) + 0.1 * kept[:, 2])
    assert REPLACE.measure(game, 2, 0)["worth"] == pytest.approx([0, 0, 0.1])
    assert SHAPLEY.measure(game, 2, 0)["worth"] == pytest.approx([0.5, 0.5, 0.1])


def test_a_noisy_measurement_has_a_ceiling_below_one_and_the_noise_of_a_fine_one_does_not_show() -> None:
    fine, noisy = (
        REPLACE.measure(Sums(worth, chance=True), 6, 1)[CEILING]["rank"]
        for worth in (torch.arange(8.0), 1e-4 * torch.arange(8.0))
    )
    assert fine == pytest.approx(1)
    assert noisy < 0.9


def test_of_two_sources_nothing_is_said() -> None:
    game = Sums(torch.tensor([1.0, 2]))
    measured = REPLACE.measure(game, 4, 0)
    assert REPLACE.score(game, measured, torch.tensor([1.0, 2])) == {"rank": None}
    assert measured[CEILING] == {"rank": None}


def test_of_many_sources_some_are_measured_all_others_being_there() -> None:
    worth = torch.randn(MOST + 40, generator=torch.Generator().manual_seed(0))
    game = Sums(worth)
    measured = REPLACE.measure(game, 4, 0)
    assert len(measured["players"]) == MOST
    assert measured["worth"] == pytest.approx(worth[measured["players"]].tolist())
    assert REPLACE.score(game, measured, worth)["rank"] == pytest.approx(1)
