"""A set is held against random ones with as many sources of every cell."""

from __future__ import annotations

import pytest
import torch

from depass_sae.evaluation.protocols.sets import Sets

from ..table_game import Sums


def numbers(worth: torch.Tensor, scores: torch.Tensor, cells: torch.Tensor) -> dict:
    game, sets = Sums(worth, cells=cells), Sets()
    return dict(sets.score(game, sets.measure(game, 2, 0), scores))


def test_what_a_planted_set_has_over_random_ones_is_what_it_has_more_than_its_share() -> None:
    worth = torch.cat([torch.ones(10), torch.zeros(90)])
    found = numbers(worth, worth, torch.zeros(100, dtype=torch.long))
    assert found == pytest.approx({"kept": 1.0, "removed": 1.0, "alone": 1.0})  # others are first to be drawn


def test_a_method_that_knows_no_more_than_the_layer_has_nothing_over_random() -> None:
    cells = torch.arange(100) // 20
    worth = (cells == 4).double()
    by_layer = worth + 1e-3 * torch.rand(100, generator=torch.Generator().manual_seed(0))
    found = numbers(worth, by_layer, cells)
    assert found["kept"] == pytest.approx(0, abs=1e-6)
    assert found["removed"] == pytest.approx(0, abs=1e-6)
    assert found["alone"] == pytest.approx(0.5)
