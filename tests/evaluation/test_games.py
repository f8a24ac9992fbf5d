"""What games say is left without some players is what the model says with them taken out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.evaluation.games import Remembered, feature_sets, head_game, neuron_game, token_game, token_players
from depass_sae.evaluation.question import AHEAD, CHANCE, VALUE, Question

from ..attribution.tiny import SINK, fitting_sae, sinking, tokenizer
from .asking import BOS, IDS, firing, handle, logit_over_mean, model, question, random_sae
from .table_game import Sums

CONTRAST = (BOS, *range(70, 80))


def logits(ids: tuple[int, ...] = IDS) -> Tensor:
    with torch.no_grad():
        return model()(torch.tensor([ids]), use_cache=False).logits[0, -1]


def test_deleted_tokens_are_those_of_a_shorter_text() -> None:
    game = token_game(question(), "delete")
    kept = torch.ones(2, game.players, dtype=torch.bool)
    kept[1, [0, 2]] = False  # positions 1 and 3
    whole, left = game.outcomes(kept)
    for row, ids in ((whole, IDS), (left, (BOS, 61, *range(63, 70)))):
        found = logits(ids)
        assert float(row[VALUE]) == pytest.approx(float(logit_over_mean(found)), abs=1e-4)
        assert float(row[CHANCE]) == pytest.approx(float(found.softmax(-1)[7]), abs=1e-5)
        assert bool(row[AHEAD]) == (int(found.argmax()) == 7)


def test_special_tokens_sinks_and_the_token_that_is_read_at_stay() -> None:
    lm = ds.load(sinking(), tokenizer(), saes={})
    asked = question(lm, (BOS, 60, SINK, 61, 62))
    assert token_players(asked) == [1, 3]


def test_what_is_ahead_is_ahead_of_all_or_of_the_foils_that_are_named() -> None:
    first = int(logits().argmax())
    least = int(logits().argmin())
    for target, ahead in ((f"logit:{first}", 1), (f"logit:{least}", 0), (f"logit:7 against {least}", 1)):
        game = token_game(question(target=target))
        assert game.outcomes(torch.ones(1, game.players, dtype=torch.bool))[0, AHEAD] == ahead


def masked(kept: list[list[bool]], what: str, instead: list[Tensor] | None = None) -> Tensor:
    """The logits with heads, or neurons, of each layer set to 0, or to something else, by hooks."""
    handles = []
    for number, (layer, own) in enumerate(zip(model().model.layers, kept, strict=True)):
        part = layer.self_attn.o_proj if what == "heads" else layer.mlp.down_proj

        def mask(_: object, args: tuple, own: list[bool] = own, number: int = number) -> tuple:
            z = args[0]
            wide = torch.tensor(own).repeat_interleave(z.shape[-1] // len(own))
            return (torch.where(wide, z, torch.zeros_like(z) if instead is None else instead[number]),)

        handles.append(part.register_forward_pre_hook(mask))
    try:
        return logits()
    finally:
        for one in handles:
            one.remove()


def inner(ids: tuple[int, ...], what: str) -> list[Tensor]:
    seen: list[Tensor] = []
    handles = [
        (layer.self_attn.o_proj if what == "heads" else layer.mlp.down_proj).register_forward_pre_hook(
            lambda _, args: seen.append(args[0])
        )
        for layer in model().model.layers
    ]
    logits(ids)
    for one in handles:
        one.remove()
    return seen


@pytest.mark.parametrize("removal", ["zero", "mean", "contrast"])
@pytest.mark.parametrize(("what", "make"), [("heads", head_game), ("neurons", neuron_game)])
def test_units_that_are_out_are_masked_at_every_position_in_every_layer(what: str, make: object, removal: str) -> None:
    asked = question(handle(), removal=removal, contrast=CONTRAST)
    game = make(asked)  # type: ignore[operator]
    kept = torch.rand(3, game.players, generator=torch.Generator().manual_seed(0)) < 0.5
    found = game.outcomes(kept)
    instead = None
    if removal == "mean":
        instead = [z[:, 1:].mean(1, keepdim=True) for z in inner(IDS, what)]
    if removal == "contrast":
        instead = inner(CONTRAST, what)
    for row, own in zip(found, kept, strict=True):
        by_hand = masked(own.view(3, -1).tolist(), what, instead)
        assert float(row[VALUE]) == pytest.approx(float(logit_over_mean(by_hand)), abs=1e-3)
    assert game.cells.tolist() == sorted(game.cells.tolist())
    assert game.whole == pytest.approx(float(logit_over_mean(logits())), abs=1e-4)


def test_units_of_a_feature_are_those_below_it() -> None:
    lm = handle(random_sae())
    low, high = question(lm, target=firing(lm), removal="zero"), question(lm, removal="zero")
    assert head_game(low).players == 2 * head_game(high).players // 3
    none = torch.zeros(1, head_game(low).players, dtype=torch.bool)
    assert torch.isnan(head_game(low).outcomes(none)[0, [CHANCE, AHEAD]]).all()


def test_a_contrast_is_asked_for_where_it_is_missing() -> None:
    with pytest.raises(UserError, match="needs a contrast"):
        head_game(question(handle(), removal="contrast"))


def test_feature_sets_are_those_of_circuits_in_the_targets_unit() -> None:
    lm = handle(fitting_sae())
    asked = question(lm, removal="zero")
    game = feature_sets(asked)
    every = torch.ones(1, game.players, dtype=torch.bool)
    assert float(game.outcomes(every)[0, VALUE]) == pytest.approx(asked.value, abs=1e-3)
    half = torch.arange(game.players) % 2 == 0
    share = float(asked.features.play(half[None]).share[0])
    assert float(game.outcomes(half[None])[0, VALUE]) == pytest.approx(share * asked.value, abs=1e-3)


def test_with_a_contrast_those_features_play_that_differ_there() -> None:
    lm = handle(fitting_sae())
    plain, other = (question(lm, removal=removal, contrast=CONTRAST) for removal in ("zero", "contrast"))
    assert isinstance(other, Question)
    none = torch.zeros(1, feature_sets(other).players, dtype=torch.bool)
    assert float(feature_sets(other).outcomes(none)[0, VALUE]) == pytest.approx(
        float(logit_over_mean(logits(CONTRAST))), abs=0.05
    )
    assert feature_sets(plain).whole == pytest.approx(feature_sets(other).whole, abs=1e-4)


def test_no_set_is_run_twice() -> None:
    game = Sums(torch.tensor([1.0, 2, 3]))
    remembered = Remembered(game)  # type: ignore[arg-type]
    sets = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 0]]).bool()
    first = remembered.outcomes(sets)
    assert game.rows == 2
    assert torch.equal(remembered.outcomes(sets.flip(0)), first.flip(0))
    assert game.rows == 2
    assert first[:, VALUE].tolist() == [1, 3, 1]
