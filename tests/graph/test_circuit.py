"""Circuits against a plain loop over transformers and sae-lens, and one that was planted."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import sae_lens
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import depass_sae as ds
from depass_sae.attribution.targets import make_target
from depass_sae.errors import UserError
from depass_sae.graph import grow
from depass_sae.graph.circuit import DRAWS
from depass_sae.graph.circuit_looks import circuit_blocks
from depass_sae.graph.feature_game import Asked, FeatureGame, Removal, feature_game
from depass_sae.graph.flow import inflow
from depass_sae.graph.masks import matched
from depass_sae.view.terminal import text

from ..attribution.tiny import BOS, D_SAE, activation, handle, lens_name, random_sae
from .test_verify import model_says

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
KEEP = Removal()
IDS = [BOS, 80, 90, 17, 33, 80, 200, 61]
OTHER = [BOS, 80, 90, 17, 44, 80, 200, 61]


@cache
def random_lm(kind: str = "jumprelu", normalised: str = "none") -> ds.LM:
    hooks = ("0.resid_post", "1.resid_mid")
    return handle([random_sae(kind, hook, seed=i, normalize_activations=normalised) for i, hook in enumerate(hooks)])


def predicted(lm: ds.LM) -> int:
    return int(model_says(lm, torch.tensor([IDS]))[0][0, -1].argmax())


def game_of(lm: ds.LM, removal: Removal = KEEP, contrast: Any = None, **target: Any) -> FeatureGame:
    subject = lm._subject.asked()
    found, pos = make_target(subject, **(target or {"logit": predicted(lm)}))
    other = None if contrast is None else lm.encode(contrast)
    return feature_game(subject, Asked(lm.encode(IDS), found, pos, other), None, removal)[0]


# ---------------------------------------------------------------------------------- what a set of features leaves over


@torch.no_grad()
def left(lm: ds.LM, game: FeatureGame, members: Tensor, contrast: Any = None, logit: int | None = None) -> float:
    """The share of the centred logit that is left, by hooks on transformers' modules and sae-lens alone."""
    ids, kept, removal = torch.tensor([IDS]), {}, game.removal
    token = predicted(lm) if logit is None else logit
    for (place, index, pos), member in zip(game.named, members.tolist(), strict=True):
        kept.setdefault(place, []).extend([(pos, index)] if member else [])
    players = {(place, pos, index) for place, index, pos in game.named}

    def edit(place: Any, sae: Any) -> Any:
        hook = str(place)
        x0 = activation(lm.model, ids, hook)[0]
        acts0 = sae.encode(x0)
        error0 = x0 - sae.decode(acts0)
        there = torch.zeros_like(acts0)
        if contrast is not None:
            there = sae.encode(activation(lm.model, torch.tensor([contrast]), hook)[0])

        def edited(x: Tensor) -> Tensor:
            live = sae.encode(x[0])
            error = x[0] - sae.decode(live)
            new = there.clone()
            for pos, index in itertools.product(range(len(IDS)), range(D_SAE)):
                stays = (pos, index) in kept.get(place, ())
                if (place, pos, index) not in players:
                    stays = removal.newcomers == "keep"
                if stays:
                    new[pos, index] = live[pos, index] if removal.recompute else acts0[pos, index]
            sae.encode(x[0])  # for the scale of this stream
            whole = sae.decode(new)
            whole = whole + {"keep": error, "hold": error0, "zero": torch.zeros_like(error)}[removal.errors]
            whole[0] = x[0, 0]
            return whole[None]

        return edited

    saes = {level.place: game.subject.saes[level.place] for level in game.levels}
    edits = {str(place): edit(place, sae) for place, sae in saes.items()}

    def value(of: Any, edits: Any = None) -> float:
        logits = model_says(lm, torch.tensor([of]), edits)[0][0, -1]
        return float(logits[token] - logits.mean())

    base = 0.0 if contrast is None else value(contrast)
    return (value(IDS, edits) - base) / (value(IDS) - base)


SETTINGS = [
    ("jumprelu", "none", Removal(), None),
    ("jumprelu", "none", Removal(newcomers="keep"), OTHER),
    ("jumprelu", "none", Removal(recompute=False), OTHER),
    ("jumprelu", "none", Removal(errors="zero"), None),
    ("jumprelu", "layer_norm", Removal(errors="hold"), None),
    ("topk", "layer_norm", Removal(), OTHER),
    ("topk", "none", Removal(recompute=False, errors="hold"), None),
    ("gated", "constant_norm_rescale", Removal(newcomers="keep"), None),
]


@pytest.mark.parametrize(("kind", "normalised", "removal", "contrast"), SETTINGS)
def test_what_a_set_leaves_is_what_hooks_on_transformers_and_sae_lens_leave(
    kind: str, normalised: str, removal: Removal, contrast: Any
) -> None:
    lm = random_lm(kind, normalised)
    game = game_of(lm, removal, contrast)
    generator = torch.Generator().manual_seed(1)
    sets = torch.rand(3, game.players, generator=generator) < torch.tensor([[0.0], [0.5], [0.9]])
    expected = [left(lm, game, row, contrast) for row in sets]
    assert game.play(sets).share.tolist() == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert max(abs(one - 1) for one in expected) > 0.1


@pytest.mark.parametrize("contrast", [None, OTHER])
def test_all_features_leave_the_model_as_it_is_and_none_change_it(contrast: Any) -> None:
    game = game_of(random_lm(), contrast=contrast)
    every, none = torch.ones(game.players, dtype=torch.bool), torch.zeros(game.players, dtype=torch.bool)
    found = game.play(torch.stack([every, none]))
    assert found.share[0].item() == pytest.approx(1, abs=1e-4)
    assert abs(found.share[1].item() - 1) > 0.05


def test_position_0_is_left_alone_be_it_a_special_token_or_not() -> None:
    lm = random_lm()
    subject = lm._subject.asked()
    target, _ = make_target(subject, logit=predicted(lm))
    for ids in (IDS, IDS[1:]):
        game, seen, _ = feature_game(subject, Asked(lm.encode(ids), target), None, KEEP)
        active = [subject.encoding(seen, level.place).activations for level in game.levels]
        assert all(bool((acts[0] != 0).any()) for acts in active)
        assert {pos for *_, pos in game.named} == set(range(1, len(ids)))
        assert not any(level.touched[0] for level in game.levels)


def test_a_slope_is_what_a_small_change_makes() -> None:
    game = game_of(random_lm())
    mask = torch.full((game.players,), 0.3, dtype=torch.float64)
    loss, gradient = game.slope(mask)
    steps = torch.zeros(2, game.players, dtype=torch.float64)
    towards = gradient / gradient.norm()
    steps[0], steps[1] = mask + 0.01 * towards, mask - 0.01 * towards
    up, down = (game.slope(row)[0] for row in steps)
    assert loss > 0
    assert (up - down) / 0.02 == pytest.approx(float(gradient.norm()), rel=0.05)


def test_contributions_are_those_of_the_whole_frozen_model() -> None:
    """Of one SAE's features: their parts carried on, which are the edges of a graph that stands on it alone."""
    lm = handle([random_sae("jumprelu", "1.resid_post")])
    subject = lm._subject.asked()
    target, _ = make_target(subject, logit_diff=(7, 9))
    game, seen, _ = feature_game(subject, Asked(lm.encode(IDS), target), None, Removal())
    g = lm.graph(IDS, logit_diff=(7, 9), max_nodes=500, edge_threshold=None)
    (name,) = [target["node"] for target in g.graph["target"]]
    flows = {source: edge["weight"] for source, _, edge in g.in_edges(name, data=True)}
    found = dict(zip(game.named, (game.contributions(seen, "half") * game.whole).tolist(), strict=True))
    assert len(found) > 10
    for (place, index, pos), value in found.items():
        assert value == pytest.approx(flows.get(f"feature:{place.layer}/{index}@{pos}", 0.0), rel=1e-3, abs=1e-5)


def test_against_a_contrast_a_contribution_is_of_what_a_removed_feature_loses() -> None:
    lm = handle([random_sae("jumprelu", "1.resid_post")])
    subject = lm._subject.asked()
    target, _ = make_target(subject, logit_diff=(7, 9))
    games = [
        feature_game(subject, Asked(lm.encode(IDS), target, None, other), None, KEEP)
        for other in (None, lm.encode(OTHER))
    ]
    plain, against = (
        dict(zip(game.named, (game.contributions(seen, "half") * (game.whole - game.without)).tolist(), strict=True))
        for game, seen, _ in games
    )
    (level,) = games[1][0].levels
    shared = [name for name in against if name in plain]
    assert any(level.value[pos, index] != 0 for _, index, pos in shared)
    for place, index, pos in shared:
        lost = 1 - float(level.value[pos, index] / level.recorded[pos, index])
        assert against[place, index, pos] == pytest.approx(plain[place, index, pos] * lost, rel=1e-3, abs=1e-5)


def test_random_sets_are_of_the_same_cells_and_count_where_they_are_removed() -> None:
    lm = random_lm()
    g = lm.circuit(IDS, logit=11)
    found, game = g.graph["circuit"], game_of(lm, logit=11)
    chosen = torch.tensor([f"{p.layer}/{i}@{pos}" in members(g) for p, i, pos in game.named])
    random = matched(chosen, game.cells, DRAWS, torch.Generator().manual_seed(0))
    kept, removed = game.play(random).share.double(), game.play(~random).share.double()
    assert found["random"]["kept"]["mean"] == pytest.approx(float(kept.mean()), abs=1e-4)
    assert found["random"]["removed"]["mean"] == pytest.approx(float(removed.mean()), abs=1e-4)
    less = (removed > found["removed"]["share"]).double().mean()
    assert found["random"]["loses_less"] == pytest.approx(float(less))
    assert less != (kept > found["removed"]["share"]).double().mean()


def test_effects_are_first_order_in_the_live_model() -> None:
    game = game_of(random_lm())
    almost = torch.ones(game.players, dtype=torch.float64)
    effects = game.effects()
    player = int(effects.abs().argmax())
    almost[player] = 0.99
    loss = game._outcome(almost[None], gradients=True).share.item()
    assert 1 - loss == pytest.approx(0.01 * effects[player].item(), rel=0.05)


# ---------------------------------------------------------------------------------------------------------- planted

D, VOCAB, ANSWER, RIVAL = 8, 64, 10, 11
A, B, DECOY = 0, 1, 2


def identity_sae(hook: str) -> Any:
    """Each feature is one dimension of the stream."""
    config = sae_lens.StandardSAEConfig(d_in=D, d_sae=D, apply_b_dec_to_input=False)
    config.metadata["hook_name"] = lens_name(hook)
    sae = sae_lens.StandardSAE(config)
    for weight in sae.parameters():
        weight.data.zero_()
    sae.W_enc.data.copy_(torch.eye(D))
    sae.W_dec.data.copy_(torch.eye(D))
    return sae


@cache
def planted() -> ds.LM:
    """A model that hands its embedding on, with two SAEs that read it one after the other.

    A gives the answer, and more of a rival; B, whose effect on the answer is the smallest, takes the rival away. The
    decoy gives to the answer, too, and its effect is large, but the norm gives back what is lost without it.
    """
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=D, intermediate_size=D, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, unembedding = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedding.zero_()
        unembedding.zero_()
        embedding[5, [A, B, DECOY, 3]] = torch.tensor([2.0, 0.5, 2.0, 0.3])
        embedding[6, [A, B, DECOY, 3]] = torch.tensor([0.1, 0.1, 0.2, 0.3])
        embedding[6, 4] = 2.0
        unembedding[ANSWER, [A, DECOY]] = torch.tensor([3.0, 2.0])
        unembedding[RIVAL, [A, B]] = torch.tensor([6.0, -36.0])
    return ds.load(model, saes=[identity_sae("0.resid_post"), identity_sae("1.resid_post")])


def members(g: nx.DiGraph) -> set[str]:
    return {name.removeprefix("feature:") for name, kind in g.nodes(data="kind") if kind == "feature"}


def test_what_was_planted_is_found_and_the_decoy_with_its_large_effect_is_not() -> None:
    g = planted().circuit([0, 5])
    found = g.graph["circuit"]
    assert members(g) == {f"{layer}/{feature}@1" for layer in (0, 1) for feature in (A, B)}
    assert (found["size"], found["players"]) == (4, 8)
    assert found["sufficient"]
    assert found["minimal"]
    assert found["kept"]["first"]
    assert found["sizes"]["effect"] > 4
    effects = planted_game().effects().abs()
    assert effects[DECOY] > 2 * effects[B]


def planted_game(**removal: Any) -> FeatureGame:
    subject = planted()._subject.asked()
    target, _ = make_target(subject, logit=ANSWER)
    return feature_game(subject, Asked(planted().encode([0, 5]), target), None, Removal(**removal))[0]


def test_it_is_the_only_minimal_set_as_trying_all_of_them_shows() -> None:
    game = planted_game()
    sets = torch.tensor(list(itertools.product([False, True], repeat=game.players)))
    fine = {tuple(row.nonzero()[:, 0].tolist()) for row in sets[game.play(sets).sufficient]}
    minimal = [found for found in fine if not any(tuple(i for i in found if i != one) in fine for one in found)]
    assert minimal == [(A, B, 4 + A, 4 + B)]


def test_kept_features_above_removed_ones_are_computed_anew_unless_they_are_held() -> None:
    upper = torch.tensor([[False] * 4 + [True] * 4])
    assert planted_game().play(upper).share.item() == pytest.approx(0, abs=1e-6)
    assert planted_game(recompute=False).play(upper).share.item() == pytest.approx(1, abs=1e-6)


def test_against_a_contrast_only_what_differs_plays_and_the_share_is_of_the_difference() -> None:
    g = planted().circuit([0, 5], logit=ANSWER, contrast=[0, 6])
    found = g.graph["circuit"]
    assert found["players"] == 8  # A, B, the decoy and the one that fires there alone; 3 is the same in both
    assert found["settings"]["contrast"]["token_ids"] == [0, 6]
    assert found["settings"]["others"] == "contrast"
    assert found["no_features"]["share"] == pytest.approx(0, abs=1e-4)
    assert found["all_features"]["share"] == pytest.approx(1, abs=1e-4)
    assert found["no_features"]["value"] == pytest.approx(found["baseline"], rel=1e-4)
    assert found["sufficient"]


# ------------------------------------------------------------------------------------------------------- on any model


def test_a_circuit_keeps_what_it_says_and_its_checks_are_of_what_it_removes() -> None:
    lm = random_lm()
    g = lm.circuit(IDS, logit=11)
    found, game = g.graph["circuit"], game_of(lm, logit=11)
    chosen = torch.tensor([f"{p.layer}/{i}@{pos}" in members(g) for p, i, pos in game.named])
    assert int(chosen.sum()) == found["size"] == len(members(g))
    assert found["kept"]["share"] == pytest.approx(left(lm, game, chosen, logit=11), rel=2e-3)
    assert found["removed"]["share"] == pytest.approx(left(lm, game, ~chosen, logit=11), rel=2e-3, abs=2e-3)
    assert found["kept"]["share"] >= 0.8
    assert found["minimal"]
    without = torch.stack([chosen & (torch.arange(game.players) != one) for one in chosen.nonzero()[:, 0]])
    played = game.play(without)
    assert not played.sufficient.any()
    needed = {name: node["needed"] for name, node in g.nodes(data=True) if "needed" in node}
    assert len(needed) == found["size"]
    expected = found["kept"]["share"] - played.share.double()
    ours = [needed[f"feature:{p.layer}/{i}@{pos}"] for (p, i, pos), c in zip(game.named, chosen, strict=True) if c]
    assert ours == pytest.approx(expected.tolist(), abs=1e-4)
    assert found["necessary"] == (found["removed"]["share"] <= 0.5 and found["random"]["loses_less"] > 0.95)


def test_of_a_feature_it_is_the_activation_that_has_to_stay() -> None:
    lm = random_lm()
    (at,) = lm.features(IDS, 1).layers
    index = at.positions[6].indices[0]
    g = lm.circuit(IDS, f"1/{index}@6")
    found = g.graph["circuit"]
    sae = lm.saes[1]
    x = activation(lm.model, torch.tensor([IDS]), "1.resid_mid")[0]
    assert found["measure"] == "activation"
    assert not found["answer"]
    assert found["target"] == pytest.approx(sae.encode(x)[6, index].item(), rel=1e-4)
    assert {name.partition("/")[0] for name in members(g) - {f"1/{index}@6"}} == {"0"}
    assert found["kept"]["value"] >= 0.8 * found["target"] * (1 - 1e-5)


def test_the_graph_has_every_feature_with_all_of_its_inflow_and_no_other(tmp_path: Path) -> None:
    lm = random_lm()
    g = lm.circuit(IDS)
    assert [target["weight"] for target in g.graph["target"]] == [1.0]
    assert all("effect" in g.nodes[f"feature:{name}"] for name in members(g))
    assert not any(node.get("target") for name, node in g.nodes(data=True) if node["kind"] == "feature")
    for name, node in g.nodes(data=True):
        if node["kind"] in ("feature", "logit"):
            inflow = sum(edge["weight"] for _, _, edge in g.in_edges(name, data=True))
            assert inflow + node["constant"] == pytest.approx(node["pre_activation"], rel=1e-3, abs=1e-3)
    for name in ("g.json", "g.graphml"):
        ds.write_graph(g, tmp_path / name)
        back = ds.read_graph(tmp_path / name)
        assert back.graph["circuit"] == g.graph["circuit"]
        assert dict(back.nodes(data=True)) == dict(g.nodes(data=True))


def test_two_seeds_are_compared_where_one_asks() -> None:
    found = random_lm().circuit(IDS, stability=True).graph["circuit"]["stability"]
    assert found["seed"] == 1
    assert 0 <= found["jaccard"] <= 1
    assert random_lm().circuit(IDS).graph["circuit"]["stability"] is None


def test_the_time_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    g = random_lm().circuit(IDS, seconds=1e-6)
    found = g.graph["circuit"]
    assert (found["minimal"], found["stopped"]) == (False, "time")
    assert found["sufficient"]
    assert "the time was over" in str(text(circuit_blocks(g)))


def test_it_is_told_in_words() -> None:
    g = random_lm().circuit(IDS)
    said = str(text(circuit_blocks(g, 3)))
    assert f"{g.graph['circuit']['size']} of {g.graph['circuit']['players']} features suffice" in said
    assert "all features, SAE errors taken out" in said
    assert "other features set to 0" in said


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"contrast": [BOS, 5]}, "the contrast prompt has 2 tokens and the prompt 8"),
        ({"contrast": IDS}, "the contrast prompt is the prompt itself"),
        ({"errors": "roots"}, "errors are left to keep, hold or zero"),
        ({"newcomers": "stay"}, "newcomers are remove or keep"),
        ({"seconds": 0.0}, "seconds is how long"),
        ({"draws": DRAWS - 1}, "draws are 20 to"),
        ({"pos": "all", "target": "1/3"}, "a circuit is of one position"),
        ({"target": "0/3@6"}, "there is no SAE below 0.resid_post"),
        ({"target": "logit:5", "logit": 5}, "a circuit is of one target"),
        ({"layers": [2]}, "there is no SAE or transcoder at layer 2"),
        ({"rule": "relu"}, "a graph takes the rules"),
    ],
)
def test_what_cannot_be_is_one_line(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        random_lm().circuit(IDS, **settings)


def test_where_all_features_without_errors_are_not_sufficient_there_is_no_circuit() -> None:
    with pytest.raises(UserError, match=r"features together keep .* which is not sufficient"):
        random_lm().circuit(IDS, errors="zero")


def test_features_that_are_read_at_one_place_are_expanded_in_one_sweep_in_the_order_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, sweeps = random_lm(), []

    def counted(seen: Any, standing: Any, low: int, reads: Any, *more: Any) -> Any:
        sweeps.append(len(reads))
        return inflow(seen, standing, low, reads, *more)

    monkeypatch.setattr(grow, "inflow", counted)
    mixed = [f"{layer}/{index}@{pos}" for index in (3, 5) for pos in (4, 6) for layer in (0, 1)]
    g = lm.graph(IDS, [*mixed, "logit:5"], max_nodes=30, edge_threshold=None)
    assert sweeps[:3] == [4, 4, 1]
    assert [name.removeprefix("feature:") for name in (t["node"] for t in g.graph["target"])][:-1] == mixed
    for name in mixed:
        alone = lm.graph(IDS, name, max_nodes=30, edge_threshold=None)
        for of in ("pre_activation", "constant"):
            assert g.nodes[f"feature:{name}"][of] == pytest.approx(alone.nodes[f"feature:{name}"][of])
        inflows = [sum(e["weight"] for *_, e in one.in_edges(f"feature:{name}", data=True)) for one in (g, alone)]
        assert inflows[0] == pytest.approx(inflows[1], rel=1e-4, abs=1e-5)
