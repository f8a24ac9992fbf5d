"""Areas over how many sources are taken out, or left, are what a sum of shares says that they are."""

from __future__ import annotations

import pytest
import torch

from depass_sae.evaluation.protocols.curves import MASKS, TENTHS, TOKEN_CURVES, TOP, Curve, area

from ..table_game import Sums

DELETE, KEEP = TOKEN_CURVES
WORTH = torch.tensor([4.0, 3, 2, 1, 0, 0, 0, 0, 0, 0])
"""Ten players, so that every tenth is one of them."""


def score(curve: Curve, scores: torch.Tensor, game: Sums | None = None) -> dict:
    game = game or Sums(WORTH)
    return dict(curve.score(game, curve.measure(game, 2, 0), scores))


def test_areas_are_the_closed_forms_of_a_sum() -> None:
    left = torch.tensor([10.0, 6, 3, 1, 0, 0, 0, 0, 0, 0, 0]) / 10  # with the highest 0, 1, 2, ... gone
    expected = float((left[1:] + left[:-1]).sum() / 2 / 10)
    assert score(DELETE, WORTH)["value"] == pytest.approx(1 - expected)
    assert score(KEEP, WORTH)["value"] == pytest.approx(1 - expected)
    assert score(DELETE, WORTH)["chance"] == pytest.approx(1 - expected)  # the probability is half of the value
    ahead = (10 * left > 1).double()
    assert score(DELETE, WORTH)["first"] == pytest.approx(float((ahead[1:] + ahead[:-1]).sum() / 20))


@pytest.mark.parametrize("curve", [DELETE, KEEP, *MASKS], ids=lambda curve: curve.name)
def test_the_planted_order_is_better_than_any_other(curve: Curve) -> None:
    worth = torch.linspace(0, 1, 200) ** 4
    planted = score(curve, worth, Sums(worth))["value"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert planted > score(curve, torch.rand(200, generator=generator), Sums(worth))["value"] + 0.05
    assert planted > score(curve, -worth if not curve.absolute else 1 - worth, Sums(worth))["value"]


def test_by_size_a_suppressing_source_comes_before_a_small_one() -> None:
    scores = torch.tensor([0.1, -5.0, 1.0])
    signed, absolute = (Curve("", (0.0, 0.34), absolute=by).sets(scores)[1] for by in (False, True))
    assert signed.tolist() == [True, True, False]
    assert absolute.tolist() == [True, False, True]


def test_top_and_bottom_and_left_and_out_are_counted_from_their_own_ends() -> None:
    scores = torch.arange(10.0)
    for curve, kept in (
        (Curve("", (0.2,)), range(8)),
        (Curve("", (0.2,), keeps=True), (8, 9)),
        (Curve("", (0.2,), "bottom"), range(2, 10)),
        (Curve("", (0.2,), "bottom", keeps=True), (0, 1)),
    ):
        assert curve.sets(scores)[0].nonzero()[:, 0].tolist() == list(kept)


def test_what_is_negative_is_lost_in_shares_of_its_size() -> None:
    """A log-probability of −2 that becomes −4 has lost as much as it is."""
    game = Sums(torch.tensor([2.0]), base=-4.0)
    assert score(Curve("", (0.0, 1.0)), torch.ones(1), game)["value"] == pytest.approx(0.5)  # from 0 to 1


def test_an_area_is_a_mean_height_whatever_the_range() -> None:
    for shares in (TENTHS, TOP):
        assert area(shares, torch.full((len(shares),), 0.7)) == pytest.approx(0.7)
    assert area(TENTHS, torch.full((11,), torch.nan)) is None
