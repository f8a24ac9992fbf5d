"""What methods say of heads and neurons is what gradients and outputs on the untouched model say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from depass_sae.attribution.components import HEADS, NEURONS
from depass_sae.evaluation.games import head_game, instead, sublayers_with
from depass_sae.evaluation.methods import units
from depass_sae.evaluation.sources import SOURCES

from ..asking import IDS, firing, handle, logit_over_mean, model, question, random_sae

CONTRAST = (IDS[0], *range(70, 80))
FEATURE = "a feature"


def gradients(what: str) -> tuple[Tensor, Tensor]:
    """Of the logit over the mean, at what enters the output maps; and that."""
    seen: list[Tensor] = []

    def note(_: object, args: tuple) -> tuple:
        seen.append(args[0].detach().requires_grad_())
        return (seen[-1],)

    maps = [layer.self_attn.o_proj if what == "heads" else layer.mlp.down_proj for layer in model().model.layers]
    handles = [one.register_forward_pre_hook(note) for one in maps]
    try:
        value = logit_over_mean(model()(torch.tensor([IDS]), use_cache=False).logits[0, -1])
    finally:
        for one in handles:
            one.remove()
    # Each is cut off from those below, so the later ones are taken one after the other.
    found = torch.autograd.grad(value, seen[-1:])
    return torch.cat([g[0] for g in found]), seen[-1][0].detach()


@pytest.mark.parametrize(("what", "kind"), [("heads", HEADS), ("neurons", NEURONS)])
def test_effects_of_the_last_layer_are_gradients_times_what_is_taken_away(what: str, kind: object) -> None:
    gradient, z = gradients(what)
    for removal in ("zero", "mean", "contrast"):
        asked = question(handle(), removal=removal, contrast=CONTRAST)
        away = z - instead(asked, sublayers_with(asked, kind)[-1])  # type: ignore[arg-type]
        size = sublayers_with(asked, kind)[-1].mixer.n_units  # type: ignore[arg-type]
        expected = (gradient * away).unflatten(1, (size, -1)).sum((0, 2))
        assert torch.allclose(units.effect(asked, kind)[-size:], expected, atol=1e-4), removal  # type: ignore[arg-type]


def test_a_heads_norm_is_that_of_what_it_writes() -> None:
    asked = question(handle(), removal="zero")
    expected = []
    for frozen in sublayers_with(asked, HEADS):
        expected.append(frozen.written_by()[1:].pow(2).sum((0, 2)).sqrt())
    assert torch.allclose(units.norm(asked, HEADS), torch.cat(expected), atol=1e-4)
    weights = [layer.mlp.down_proj.weight.T.norm(dim=1) for layer in model().model.layers]
    assert torch.allclose(
        units.norm(asked, NEURONS), units.activation(asked, NEURONS) * torch.cat(weights).detach(), rtol=1e-3
    )


@pytest.mark.parametrize("target", ["logit:7 against mean", FEATURE])
@pytest.mark.parametrize("of", ["heads", "neurons"])
def test_every_method_scores_every_unit_below_the_target(of: str, target: str) -> None:
    lm = handle(random_sae())
    asked = question(lm, target=firing(lm) if target == FEATURE else target, removal="zero")
    source = SOURCES[of]
    players = source.game(asked, source.protocols["cpr"]).players
    for name, method in source.methods.items():
        scores = method(asked)
        assert scores.shape == (players,), name
        assert scores.isfinite().all(), name


def test_leaving_a_head_out_is_what_is_lost_without_it() -> None:
    asked = question(handle(), removal="zero")
    game = head_game(asked)
    found = units.leave_one_out(asked)
    without = ~torch.eye(game.players, dtype=torch.bool)
    assert torch.allclose(found, asked.value - game.outcomes(without)[:, 0], atol=1e-5)
