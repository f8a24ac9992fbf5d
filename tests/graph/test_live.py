"""Sets of features in the live model, against transformers' own modules with hooks on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.live import LiveGraph
from depass_sae.graph.masks import DRAWS, matched
from depass_sae.graph.prune import prune
from depass_sae.graph.verify import sufficiency
from depass_sae.models.place import Place

from ..attribution.tiny import D_SAE, activation, handle, model, pre_activations, random_sae, tokenizer
from ..saes.tracer_folder import Weights, random_weights
from .test_verify import IDS, PROMPT, Edits, decoded, live, lm, model_says

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing


def lm_at(*hooks: str, normalised: str = "none") -> ds.LM:
    return handle(
        [random_sae("jumprelu", hook, seed=i, normalize_activations=normalised) for i, hook in enumerate(hooks)]
    )


def live_of(lm: ds.LM, g: Any) -> LiveGraph:
    return LiveGraph.of(lm._subject.asked(), g)


def sae_at(lm: ds.LM, hook: str) -> Any:
    return lm._subject.saes[Place.parse(hook)]


def firing(lm: ds.LM, ids: list[int], hook: str) -> Tensor:
    """Which features are active in the untouched model."""
    return sae_at(lm, hook).encode(activation(lm.model, torch.tensor([ids]), hook)[0]) != 0


def centred(lm: ds.LM, ids: Any, token: int, edits: Edits | None = None) -> float:
    """A logit over the mean of all, at the last position."""
    with torch.no_grad():
        logits = model_says(lm, torch.tensor([list(ids)]), edits)[0][0, -1]
    return (logits[token] - logits.mean()).item()


# --------------------------------------------------------------------------------------------------- SAEs on the stream


def keeping(lm: ds.LM, kept: dict[str, Tensor], *, special: bool, errors: bool = True) -> Edits:
    """Every SAE with these features alone, as it reads the stream that reaches it."""

    def edit(hook: str) -> Any:
        sae, mask = sae_at(lm, hook), kept[hook].clone().float()
        mask[:1] = 1.0 if special else mask[:1]

        def alone(x: Tensor) -> Tensor:
            whole = decoded(sae, x[0], torch.ones_like(mask)) if errors else x[0]
            new = x[0] - whole + decoded(sae, x[0], mask)
            return torch.cat([x[:, :1], new[None, 1:]], 1) if special else new[None]

        return alone

    return {hook: edit(hook) for hook in kept}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("normalised", ["none", "layer_norm"])
def test_without_errors_each_sae_hands_on_what_all_its_features_make(normalised: str, special: bool) -> None:
    hooks = ("0.resid_post", "1.resid_mid")
    lm_ = lm_at(*hooks, normalised=normalised)
    ids: list[int] = PROMPT if special else IDS
    g = lm_.graph(ids, "logit:5", max_nodes=60)
    found = lm_.verify(g, max_nodes=0).graph["verification"]
    shares, whole = found["together"]["shares"], centred(lm_, ids, 5)
    for key, kept, errors in (
        ("all_without_errors", True, False),
        ("all_features", True, True),
        ("no_features", False, True),
    ):
        masks = {hook: firing(lm_, ids, hook) & kept for hook in hooks}
        edits = keeping(lm_, masks, special=special, errors=errors)
        assert shares[key] == pytest.approx(centred(lm_, ids, 5, edits) / whole, rel=1e-3, abs=1e-4)
        with torch.no_grad():
            plain = model_says(lm_, torch.tensor([ids]), edits)[0][0, -1, 5].item()
        assert found["together"][key] == pytest.approx(plain, rel=1e-3, abs=1e-4)
    assert shares["all_features"] == pytest.approx(1, rel=1e-4)
    assert len({round(shares[key], 3) for key in ("all_features", "all_without_errors", "no_features")}) == 3


def test_random_sets_are_of_the_same_saes_and_positions_and_have_their_interval() -> None:
    hooks = ("0.resid_post", "1.resid_mid")
    lm_ = lm_at(*hooks)
    g = lm_.graph(PROMPT, "logit:5", max_nodes=60)
    together = lm_.verify(g, max_nodes=0, seed=4).graph["verification"]["together"]
    own = {
        (f"{n['layer']}.{hooks[n['layer']][2:]}", n["pos"], n["index"])
        for n in g.nodes.values()
        if n["kind"] == "feature"
    }
    players = []
    for hook in hooks:  # by position, then index; a special token has no features
        players += [(hook, pos, index) for pos, index in firing(lm_, PROMPT, hook).nonzero().tolist() if pos > 0]
    members = torch.tensor([player in own for player in players])
    cells = torch.tensor([hooks.index(hook) * 100 + pos for hook, pos, _ in players])
    random = matched(members, cells, DRAWS, torch.Generator().manual_seed(4))
    assert together["draws"] == DRAWS == 20
    assert together["random_own"] == pytest.approx((random & members).sum().item() / (DRAWS * len(own)))
    assert 0 < together["random_own"] < 1
    whole = centred(lm_, PROMPT, 5)
    for key, drop in (("only_random", False), ("without_random", True)):
        left = []
        for row in random:
            masks = {hook: torch.full((len(PROMPT), D_SAE), float(drop)) for hook in hooks}
            for (hook, pos, index), chosen in zip(players, row.tolist(), strict=True):
                if chosen:
                    masks[hook][pos, index] = float(not drop)
            left.append(centred(lm_, PROMPT, 5, keeping(lm_, masks, special=True)) / whole)
        shares, half = torch.tensor(left), 2.0930240544 / DRAWS**0.5  # Student's t of 19 degrees of freedom
        found = together["shares"][key]
        assert found["mean"] == pytest.approx(shares.mean().item(), rel=1e-3, abs=1e-4)
        assert found["high"] - found["mean"] == pytest.approx(half * shares.std().item(), rel=1e-2, abs=1e-5)
        assert found["mean"] - found["low"] == pytest.approx(found["high"] - found["mean"])
    assert together["interval"] == "95 % of Student's t"


@torch.no_grad()
def test_a_feature_is_read_before_its_own_sae_is_edited_and_is_none_of_its_sources() -> None:
    lm_ = lm()
    index = firing(lm_, PROMPT, "2.resid_post")[6].nonzero()[0].item()
    g = lm_.graph(PROMPT, f"2/{index}@6", max_nodes=60)
    together = lm_.verify(g, max_nodes=0).graph["verification"]["together"]
    features = [node for node in g.nodes.values() if node["kind"] == "feature"]
    assert together["features"] == sum(node["layer"] == 0 for node in features) > 3
    assert together["active"] == int(firing(lm_, PROMPT, "0.resid_post")[1:7].sum())  # at positions that it sees
    ids = torch.tensor([PROMPT])
    for key, drop in (("only_graph", False), ("without_graph", True)):
        edits = live(lm_, g, {0: "resid_post"}, True, drop=drop)
        stream = model_says(lm_, ids, edits)[1][2][:, 6]
        expected = pre_activations(lm_.saes[2], stream)[0, index].item()
        assert together[key] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        edited = live(lm_, g, {0: "resid_post", 2: "resid_post"}, True, drop=drop)
        careless = pre_activations(lm_.saes[2], model_says(lm_, ids, edited)[1][2][:, 6])[0, index].item()
        assert abs(careless - expected) > 0.1


@torch.no_grad()
def test_what_stands_beside_a_target_takes_nothing_from_it() -> None:
    """An error and a feature at the SAE of one target, which feed another above it."""
    lm_ = lm_at("0.resid_post", "1.resid_post")
    g = lm_.graph(PROMPT, ["1/3@7", "logit:5@7"], max_nodes=80)
    found = {e["node"]: e["observed"] for e in lm_.verify(g, max_nodes=200).graph["verification"]["nodes"]}
    weight = next(t["weight"] for t in g.graph["target"] if t["node"].startswith("logit"))
    ids, sae, checked = torch.tensor([PROMPT]), lm_.saes[1], set()
    whole = model_says(lm_, ids)[0][0, -1, 5].item()
    x = activation(lm_.model, ids, "1.resid_post")[0]
    for name, observed in found.items():
        node = g.nodes[name]
        if node["layer"] != 1 or node.get("pos") != 7:
            continue
        every = torch.ones(1, D_SAE)
        others = every.clone()
        if node["kind"] == "feature":
            others[0, node["index"]] = 0
            part = decoded(sae, x[7:8], every) - decoded(sae, x[7:8], others)
        else:
            part = x[7:8] - decoded(sae, x[7:8], every)
        there = (torch.arange(len(PROMPT)) == 7)[:, None]
        lost = whole - model_says(lm_, ids, {"1.resid_post": lambda s, p=part, t=there: s - t * p})[0][0, -1, 5].item()
        assert observed == pytest.approx(weight * lost, rel=1e-3, abs=1e-4)
        checked.add(node["kind"])
    assert checked == {"feature", "error"}


# --------------------------------------------------------------------------------------------------------- transcoders


@torch.no_grad()
def mlps_say(lm: ds.LM, ids: list[int], edits: dict[int, Any], reads: dict[int, Tensor]) -> float:
    """The centred logit of token 5, with what MLPs add edited; reads: the stream before each, as it passes."""
    handles = []
    for i, layer in enumerate(lm.model.model.layers):
        handles.append(
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _m, args, i=i: reads.update({i: args[0][0]})
            )
        )
        if i in edits:
            handles.append(layer.mlp.register_forward_hook(lambda _m, _a, out, i=i: edits[i](out[0])[None]))
    try:
        logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    finally:
        for handle_ in handles:
            handle_.remove()
    return (logits[5] - logits.mean()).item()


def crossing(
    weights: Weights, kept: dict[int, Tensor], sink: int, reads: dict[int, Tensor], *, errors: bool = True
) -> dict[int, Any]:
    """What each MLP adds where only these features of a cross-layer transcoder write, but at position 0 from the layer
    ``sink`` on."""

    def written(into: int, masks: dict[int, Tensor]) -> Tensor:
        return sum(
            (weights.encode(reads[layer], layer) * masks[layer]) @ weights.W_dec[layer][:, into - layer]
            for layer in range(into + 1)
        )

    def edit(into: int) -> Any:
        def edited(out: Tensor) -> Tensor:
            every = {layer: torch.ones_like(mask) for layer, mask in kept.items()}
            made = written(into, kept) + (out - written(into, every) if errors else weights.b_dec[into])
            return torch.cat([out[:1], made[1:]]) if into >= sink else made

        return edited

    return {layer: edit(layer) for layer in kept}


def with_a_late_sink() -> Any:
    """A model in which the first position of the prompt becomes an attention sink in the MLP of layer 1."""
    made = copy.deepcopy(model("llama"))
    seen: dict[int, Tensor] = {}
    mlp = made.model.layers[1].mlp
    hook = mlp.register_forward_pre_hook(lambda _m, args: seen.update({0: args[0][0]}))
    with torch.no_grad():
        made(torch.tensor([IDS]))
        hook.remove()
        first = torch.linalg.pinv(seen[0])[:, 0]  # 1 at position 0, 0 at all others
        mlp.gate_proj.weight[0] = 8 * first
        mlp.up_proj.weight[0] = 8 * first
        mlp.down_proj.weight[:, 0] = torch.randn(len(first), generator=torch.Generator().manual_seed(1))
    return made


@pytest.mark.parametrize("late", [False, True])
def test_of_a_cross_layer_transcoder_nothing_is_written_at_a_position_0_that_is_a_sink_by_then(
    tmp_path: Path, late: bool
) -> None:
    weights = random_weights()
    made = with_a_late_sink() if late else model("llama")
    lm_ = ds.load(copy.deepcopy(made), tokenizer(adds_bos=False), saes=str(weights.write(tmp_path)))
    g = lm_.graph(IDS, "logit:5", max_nodes=200, edge_threshold=None)
    found = live_of(lm_, g)
    sink = 1 if late else 3
    assert [cut.is_token[0] for cut in found.cuts.values()] == [layer >= sink for layer in range(3)]
    chosen = torch.rand(2, len(found.players), generator=torch.Generator().manual_seed(2)) < 0.5
    assert any(pos == 0 and place.layer == 0 for place, pos, _ in found.players.named)
    whole = mlps_say(lm_, IDS, {}, {})
    for lose in (False, True):
        share = (found.lose if lose else found.keep)(chosen).share
        for row, expected in zip(chosen, share.tolist(), strict=True):
            kept = {layer: torch.full((len(IDS), len(weights.W_enc[layer])), float(lose)) for layer in range(3)}
            for (place, pos, index), member in zip(found.players.named, row.tolist(), strict=True):
                if member:
                    kept[place.layer][pos, index] = float(not lose)
            reads: dict[int, Tensor] = {}
            left = mlps_say(lm_, IDS, crossing(weights, kept, sink, reads), reads)
            assert expected == pytest.approx(left / whole, rel=2e-3, abs=1e-3)
    reads = {}
    mlps_say(lm_, IDS, {}, reads)
    every = {layer: (weights.encode(reads[layer], layer) != 0).float() for layer in range(3)}
    reads = {}
    left = mlps_say(lm_, IDS, crossing(weights, every, sink, reads, errors=False), reads)
    bare = found.keep(torch.ones(1, len(found.players), dtype=torch.bool), errors=False)
    assert bare.share.item() == pytest.approx(left / whole, rel=2e-3, abs=1e-3)
    assert abs(bare.share.item() - 1) > 0.01


@pytest.mark.parametrize("kind", ["transcoder", "jumprelu_skip_transcoder"])
def test_without_errors_an_mlp_adds_what_its_transcoder_says(kind: str) -> None:
    lm_ = handle([random_sae(kind, "1.mlp_in")])
    g = lm_.graph(PROMPT, "logit:5", max_nodes=30)
    share = lm_.verify(g, max_nodes=0).graph["verification"]["together"]["shares"]["all_without_errors"]
    sae = lm_.saes[1]
    read: dict[int, Tensor] = {}
    hook = lm_.model.model.layers[1].mlp.register_forward_pre_hook(lambda _m, args: read.update({0: args[0][0]}))

    def said(out: Tensor) -> Tensor:
        made = sae.decode(sae.encode(read[0]))
        made = made + read[0] @ sae.W_skip.T if hasattr(sae, "W_skip") else made
        return torch.cat([out[:1], made[1:]])  # a special token has no features

    try:
        expected = mlps_say(lm_, PROMPT, {1: said}, {}) / mlps_say(lm_, PROMPT, {}, {})
    finally:
        hook.remove()
    assert share == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert abs(share - 1) > 0.01


# --------------------------------------------------------------------------------------------------------- sufficiency


def test_a_graph_says_what_its_features_suffice_for() -> None:
    lm_ = lm()
    g = lm_.graph(PROMPT, "logit:5", max_nodes=60)
    shares = lm_.verify(g, max_nodes=0).graph["verification"]["together"]
    found = g.graph["sufficiency"]
    assert found["share"] == pytest.approx(shares["shares"]["only_graph"], abs=1e-5)
    assert found["no_features"] == pytest.approx(shares["shares"]["no_features"], abs=1e-5)
    assert (found["features"], found["active"]) == (shares["features"], shares["active"])
    edits = live(lm_, g, {0: "resid_post", 2: "resid_post"}, True, drop=False)
    assert found["share"] == pytest.approx(centred(lm_, PROMPT, 5, edits) / centred(lm_, PROMPT, 5), rel=1e-3)
    assert "sufficiency" not in prune(g, max_nodes=30).graph  # it was of all features
    assert "sufficiency" in prune(g).graph


def test_of_several_targets_shares_are_of_their_weighted_sum() -> None:
    lm_ = lm()
    g = lm_.graph(PROMPT, ["logit:5@7", "logit:9@7"], max_nodes=60)
    edits, weights = live(lm_, g, {0: "resid_post", 2: "resid_post"}, True, drop=False), {}
    for target in g.graph["target"]:
        weights[g.nodes[target["node"]]["index"]] = target["weight"]
    assert weights[5] != pytest.approx(weights[9])
    kept, whole = (sum(w * centred(lm_, PROMPT, t, e) for t, w in weights.items()) for e in (edits, None))
    assert g.graph["sufficiency"]["share"] == pytest.approx(kept / whole, rel=1e-3)


def test_where_nothing_can_be_said_of_sufficiency_the_graph_is_made_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm_ = lm()
    g = lm_.graph(PROMPT, "logit:5", max_nodes=30)

    def refused(*_: Any) -> Any:
        raise UserError("too little memory")

    other = g.copy()
    other.graph["model"] = "somebody/else"
    assert sufficiency(lm_._subject.asked(), other) is None
    monkeypatch.setattr(LiveGraph, "of", refused)
    assert "sufficiency" not in lm_.graph(PROMPT, "logit:5", max_nodes=30).graph


def test_a_target_of_nothing_has_no_shares() -> None:
    lm_ = lm()
    g = lm_.graph(PROMPT, "logit-diff:5,5", max_nodes=30)
    assert "sufficiency" not in g.graph
    together = lm_.verify(g, max_nodes=0).graph["verification"]["together"]
    assert together["shares"] is None
    assert together["only_graph"] == 0
