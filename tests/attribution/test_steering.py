"""What an intervention leaves is what hooks written by hand on the untouched model leave."""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.attribution.steering import Steered
from depass_sae.errors import UserError
from depass_sae.models.prompt import token_text

from ..passes.models import CONTEXT, fresh
from ..saes.tracer_folder import Weights, random_weights
from .tiny import TEXT, handle, random_sae


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return handle([random_sae("jumprelu", f"{layer}.resid_post", seed=layer) for layer in (0, 1)])


def ids_of(lm: ds.LM) -> Tensor:
    return torch.tensor([lm.encode(TEXT).token_ids])


def hooked(lm: ds.LM, ids: Tensor, edits: dict[Any, Callable[[Tensor], Tensor]]) -> Tensor:
    """The model's logits with what modules put out changed, or, of projections, what they are given."""

    def out(edit: Any) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for module, edit in edits.items():
            if isinstance(module, torch.nn.Linear):
                handle = module.register_forward_pre_hook(lambda _m, args, edit=edit: (edit(args[0]),))
            else:
                handle = module.register_forward_hook(out(edit))
            stack.callback(handle.remove)
        return lm.model(ids).logits[0, -1]


def set_feature(lm: ds.LM, layer: int, changes: dict[tuple[int, int | None], Callable[[Tensor], Tensor]]) -> Any:
    """By sae-lens: decode what is set, and keep what it misses of what arrives."""
    sae = lm.saes[layer]

    def edit(x: Tensor) -> Tensor:
        acts = sae.encode(x)
        new = acts.clone()
        for (index, pos), what in changes.items():
            at = slice(1, None) if pos is None else pos  # position 0 is a special token
            new[:, at, index] = what(acts[:, at, index])
        return x + sae.decode(new) - sae.decode(acts)

    return edit


def fires(lm: ds.LM, layer: int) -> tuple[int, int]:
    """A feature and a position at which it fires."""
    at = lm.features(TEXT, layer).layers[0].positions[-2]
    return at.indices[0], at.pos


def test_features_are_set_where_they_are_and_everywhere_and_later_ones_see_it(lm: ds.LM) -> None:
    (first, pos), (second, _) = fires(lm, 0), fires(lm, 1)
    layers = lm.model.model.layers
    expected = hooked(lm, ids_of(lm), {
        layers[0]: set_feature(lm, 0, {(first, pos): lambda a: a * 0 + 3.5, (7, None): lambda a: a + 1.5}),
        layers[1]: set_feature(lm, 1, {(second, None): lambda a: a * -2.0}),
    })  # fmt: skip
    found = lm.intervene(TEXT, {f"0/{first}@{pos}": 3.5}, scale={f"1/{second}": -2}, add={"0/7": 1.5})
    assert torch.allclose(found.logits_after, expected, atol=1e-4)
    assert torch.allclose(found.logits_before, hooked(lm, ids_of(lm), {}), atol=1e-5)
    assert (found.logits_after - found.logits_before).abs().max() > 0.1
    before, after = (x.double().log_softmax(-1) for x in (found.logits_before, found.logits_after))
    assert found.divergence == pytest.approx(float((before.exp() * (before - after)).sum()), rel=1e-6)


def test_heads_neurons_and_tokens_several_at_once(lm: ds.LM) -> None:
    layers, ids = lm.model.model.layers, ids_of(lm)
    width = lm.model.config.hidden_size // lm.model.config.num_attention_heads

    def head(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, 4, width : 2 * width] *= 0
        z[:, :, :width] *= 0.5
        return z

    def neuron(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, 7] = 2.0
        x[:, 3, 5] += 0.5
        return x

    replaced = ids.clone()
    replaced[0, 2] = 9
    edits = {layers[1].self_attn.o_proj: head, layers[0].mlp.down_proj: neuron}
    expected = hooked(lm, replaced, edits)
    found = lm.intervene(
        TEXT, {"head:1.1@4": 0, "neuron:0/7": 2.0, "token:2": 9}, scale={"head:1.0": 0.5}, add={"neuron:0/5@3": 0.5}
    )
    assert torch.allclose(found.logits_after, expected, atol=1e-4)
    assert (found.logits_after - hooked(lm, replaced, {})).abs().max() > 1e-3


def test_a_continuation_is_written_with_the_change_on_at_every_step(lm: ds.LM) -> None:
    feature, _ = fires(lm, 1)
    edit = {lm.model.model.layers[1]: set_feature(lm, 1, {(feature, None): lambda a: a * 0 + 25.0})}
    texts = []
    for edits in ({}, edit):
        ids = ids_of(lm)
        start = ids.shape[1]
        for _ in range(4):
            ids = torch.cat([ids, hooked(lm, ids, edits).argmax()[None, None]], dim=1)
        texts.append("".join(token_text(lm.tokenizer, token) for token in ids[0, start:].tolist()))
    found = lm.intervene(TEXT, {f"1/{feature}": 25.0}, generate=4)
    assert [found.continuation_before, found.continuation_after] == texts
    assert texts[0] != texts[1]
    assert lm.intervene(TEXT, {f"1/{feature}": 25.0}).continuation_after == ""


def test_the_features_that_change_most_are_those_of_the_edited_model(lm: ds.LM) -> None:
    index, pos = fires(lm, 0)
    found = lm.intervene(TEXT, {f"0/{index}@{pos}": 0})
    kept: list[Tensor] = []
    edit = set_feature(lm, 0, {(index, pos): torch.zeros_like})
    layers = lm.model.model.layers
    hooked(lm, ids_of(lm), {layers[0]: edit, layers[1]: lambda x: kept.append(x) or x})
    after = lm.saes[1].encode(kept[0])[0]
    own = [one for one in found.features if one.hook.layer == 1]
    assert own
    for one in own:
        assert one.after == pytest.approx(after[one.pos, int(one.name.split("/")[1])].item(), abs=1e-4)
        assert one.pos >= pos
    changes = [abs(one.after - one.before) for one in found.features]
    assert changes == sorted(changes, reverse=True)
    assert len(found.to_frame()) == len(found.features)
    assert "the next token" in str(found.table(3))


@pytest.mark.parametrize("reads", ["mlp_in", "ln2_normalized"])
def test_a_transcoders_feature_is_set_in_what_its_mlp_adds(reads: str) -> None:
    sae = random_sae("transcoder", f"1.{reads}", metadata={"hook_name_out": "blocks.1.hook_mlp_out"})
    lm = handle([sae])
    block = lm.model.model.layers[1]
    norm, read = block.post_attention_layernorm, []

    def note(x: Tensor) -> Tensor:
        read[:] = [x if reads == "mlp_in" else x / norm.weight]
        return x

    def edit(x: Tensor) -> Tensor:
        acts = sae.encode(read[0])
        new = acts.clone()
        new[:, 3, 5] = 4.0
        return x + (new - acts) @ sae.W_dec

    expected = hooked(lm, ids_of(lm), {norm: note, block.mlp: edit})
    found = lm.intervene(TEXT, {f"1.{reads}/5@3": 4.0})
    assert torch.allclose(found.logits_after, expected, atol=1e-4)
    assert (found.logits_after - found.logits_before).abs().max() > 1e-3


def test_where_two_dictionaries_change_one_place_the_order_in_which_they_are_named_is_none(lm: ds.LM) -> None:
    reads = random_sae("transcoder", "1.mlp_in", metadata={"hook_name_out": "blocks.1.hook_mlp_out"})
    both = handle([reads, random_sae("jumprelu", "1.mlp_out", seed=2)])
    lower, upper = ("1.mlp_in/5@3", 4.0), ("1.mlp_out/7@3", 9.0)
    one, other = (both.intervene(TEXT, dict(order)).logits_after for order in ((lower, upper), (upper, lower)))
    assert torch.equal(one, other)
    block = both.model.model.layers[1]
    read: list[Tensor] = []

    def edit(x: Tensor) -> Tensor:
        acts = reads.encode(read[0])
        new = acts.clone()
        new[:, 3, 5] = 4.0
        x = x + (new - acts) @ reads.W_dec
        sae = both.saes["1.mlp_out"]
        acts = sae.encode(x)
        new = acts.clone()
        new[:, 3, 7] = 9.0
        return x + sae.decode(new) - sae.decode(acts)

    note = {block.post_attention_layernorm: lambda x: read.append(x) or x}
    assert torch.allclose(one, hooked(both, ids_of(both), note | {block.mlp: edit}), atol=1e-4)


def test_without_a_special_token_position_0_is_changed_like_any_other(lm: ds.LM) -> None:
    sae, ids = lm.saes[1], list(range(40, 43))

    def edit(x: Tensor) -> Tensor:
        acts = sae.encode(x)
        new = acts.clone()
        new[:, :, 7] = 9.0
        return x + sae.decode(new) - sae.decode(acts)

    expected = hooked(lm, torch.tensor([ids]), {lm.model.model.layers[1]: edit})
    found = lm.intervene_batch([[0, 41, 42], ids, ids[:1]], {"1/7": 9.0})
    assert torch.allclose(found[1].logits_after, expected, atol=1e-4)
    alone = hooked(lm, torch.tensor([ids[:1]]), {lm.model.model.layers[1]: edit})
    assert torch.allclose(found[2].logits_after, alone, atol=1e-4)
    assert (found[2].logits_after - found[2].logits_before).abs().max() > 1e-3


# -------------------------------------------------------------------------------------------------- many at once

SHORT, LONGER = "supply and demand", "Mary and John"
SETS: list[dict[str, Any]] = [
    {"0/3@4": 2.0, "1/7": 9.0},
    {"neuron:0/7": 2.0, "head:1.1@4": 0},
    {"token:2": 9, "1/7": 4},
]


def same(found: Steered, alone: Steered) -> None:
    assert (found.continuation_before, found.continuation_after) == (
        alone.continuation_before,
        alone.continuation_after,
    )
    for one, other in ((found.logits_before, alone.logits_before), (found.logits_after, alone.logits_after)):
        assert torch.allclose(one, other, atol=1e-5)
    assert [change.part.name for change in found.changes] == [change.part.name for change in alone.changes]
    assert (found.heading, found.names) == (alone.heading, alone.names)
    own, others = ({(one.name, one.pos): one for one in steered.features} for steered in (found, alone))
    assert own.keys() == others.keys()
    for key, one in own.items():
        assert (one.before, one.after) == pytest.approx((others[key].before, others[key].after), abs=1e-4)


def test_several_prompts_are_each_what_they_are_alone(lm: ds.LM) -> None:
    prompts = [TEXT, SHORT, LONGER, SHORT, list(range(40, 43)), list(range(50, 53))]
    how: dict[str, Any] = {"scale": {"head:0.1@2": 0.5}, "add": {"neuron:1/3": 0.7}, "generate": 3}
    found = lm.intervene_batch(prompts, {"1/7": 9.0}, **how)
    assert len(found) == len(prompts)
    for prompt, one in zip(prompts, found, strict=True):
        same(one, lm.intervene(prompt, {"1/7": 9.0}, **how))


def test_several_sets_of_changes_are_each_what_they_are_alone(lm: ds.LM) -> None:
    found = lm.intervene_each(TEXT, SETS, generate=2)
    for changes, one in zip(SETS, found, strict=True):
        same(one, lm.intervene(TEXT, changes, generate=2))
    factors = [0.0, 0.5, 2.0]
    scaled = lm.intervene_each(TEXT, [{}, {}, {"1/9": 1}], scale=[{"1/7": factor} for factor in factors])
    for factor, one in zip(factors, scaled, strict=True):
        same(one, lm.intervene(TEXT, {"1/9": 1} if factor == 2 else None, scale={"1/7": factor}))


def test_prompts_of_equal_length_go_through_the_model_together_and_as_they_are_once(lm: ds.LM) -> None:
    sizes: list[tuple[int, ...]] = []
    with ExitStack() as stack:
        embed = lm.model.get_input_embeddings()
        stack.callback(embed.register_forward_pre_hook(lambda _m, args: sizes.append(tuple(args[0].shape))).remove)
        lm.intervene_each([0, 5, 6], [{"1/3": value} for value in (0, 1, 2)])
        lm.intervene_batch([[0, 5, 6], [0, 5], [0, 7, 8]], {"1/3": 0})
    assert sizes == [(1, 3), (3, 3), (2, 3), (2, 3), (1, 2), (1, 2)]


def test_many_go_in_parts_that_there_is_room_for_and_progress_counts_them(lm: ds.LM) -> None:
    told: list[tuple[str, int, int]] = []
    sets = [{"1/7": float(value)} for value in range(35)]
    found = lm.intervene_each(SHORT, sets, generate=2, progress=lambda *said: told.append(said))
    assert [(done, steps) for _, done, steps in told] == [(done, 8) for done in range(1, 9)]
    assert found[33].how.progress is None  # a result can be kept
    same(found[33], lm.intervene(SHORT, sets[33], generate=2))


def test_what_one_of_several_prompts_does_not_have_says_which(lm: ds.LM) -> None:
    with pytest.raises(UserError, match=r"^prompt 2: position 4 is outside the prompt"):
        lm.intervene_batch([TEXT, [0, 5, 6]], {"1/3@4": 0})
    with pytest.raises(UserError, match=r"^position 99 is outside"):
        lm.intervene_each(TEXT, [{"1/3": 0}, {"1/3@99": 0}])
    with pytest.raises(UserError, match="changes has 2, scale has 1"):
        lm.intervene_each(TEXT, [{"1/3": 0}, {"1/4": 0}], scale=[{"1/5": 0}])
    for nothing in ({}, {"changes": []}, {"changes": [{"1/3": 0}, {}]}):
        with pytest.raises(UserError, match="name what to change"):
            lm.intervene_each(TEXT, **nothing)


# ------------------------------------------------------------------------------------------------------------- drawing


def drawn_by_hand(lm: ds.LM, edits: Any, count: int, temperature: float, top_k: int, seed: int) -> str:
    ids, generator = ids_of(lm), torch.Generator().manual_seed(seed)
    start = ids.shape[1]
    for _ in range(count):
        logits = hooked(lm, ids, edits).double() / temperature
        chances = torch.where(logits >= logits.sort(descending=True).values[top_k - 1], logits.exp(), 0)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)[None]], dim=1)
    return "".join(token_text(lm.tokenizer, token) for token in ids[0, start:].tolist())


def test_a_continuation_is_drawn_by_the_seeds_numbers_before_and_after(lm: ds.LM) -> None:
    edit = {lm.model.model.layers[1]: set_feature(lm, 1, {(7, None): lambda a: a * 0 + 25.0})}
    found = lm.intervene(TEXT, {"1/7": 25.0}, generate=5, temperature=1.5, top_k=9, seed=3)
    texts = [drawn_by_hand(lm, edits, 5, 1.5, 9, 3) for edits in ({}, edit)]
    assert [found.continuation_before, found.continuation_after] == texts
    assert found.to_dict()["drawn"] == {"temperature": 1.5, "top_k": 9, "seed": 3}
    nothing = lm.intervene(TEXT, scale={"1/7": 1}, generate=5, temperature=1.5, seed=3)
    assert nothing.continuation_before == nothing.continuation_after
    sets = [{"1/3": 2.0}, {"1/7": 25.0}]
    same(lm.intervene_each(TEXT, sets, generate=5, temperature=1.5, top_k=9, seed=3)[1], found)


def test_greedy_is_what_a_temperature_near_0_and_one_token_are(lm: ds.LM) -> None:
    greedy = lm.intervene(TEXT, {"1/7": 25.0}, generate=4)
    assert "drawn" not in greedy.to_dict()
    for how in ({"temperature": 5e-324}, {"temperature": 5.0, "top_k": 1}):
        found = lm.intervene(TEXT, {"1/7": 25.0}, generate=4, seed=11, **how)
        assert found.continuation_after == greedy.continuation_after


def test_tokens_are_drawn_as_often_as_the_softmax_says(lm: ds.LM) -> None:
    logits = lm.intervene([0, 5], {"1/7": 25.0}).logits_after.double()
    kept = logits.topk(3).indices.tolist()
    chances = (logits[kept] / 4).softmax(0)
    seen = Counter(
        lm.intervene([0, 5], {"1/7": 25.0}, generate=1, temperature=4, top_k=3, seed=seed).continuation_after
        for seed in range(150)
    )
    assert sum(seen.values()) == sum(seen[token_text(lm.tokenizer, token)] for token in kept)
    for token, chance in zip(kept, chances.tolist(), strict=True):
        assert abs(seen[token_text(lm.tokenizer, token)] - 150 * chance) < 4 * (150 * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"generate": 1, "temperature": -0.5}, "temperature is 0"), ({"generate": 1, "temperature": math.nan}, "is 0"),
        ({"generate": 1, "temperature": math.inf}, "temperature is 0"), ({"temperature": 1.0}, "say by generate"),
        ({"generate": 1, "top_k": 5}, "give a temperature"), ({"generate": 1, "seed": 5}, "give a temperature"),
        ({"generate": 1, "temperature": 1.0, "top_k": 0}, "1 at least"),
        ({"generate": 1, "temperature": 1.0, "seed": 2**64}, "64 bits"),
        ({"generate": CONTEXT}, f"takes {CONTEXT}"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_told_in_a_line(lm: ds.LM, how: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        lm.intervene(TEXT, {"1/3": 0}, **how)


@pytest.mark.parametrize("generate", [0, 2])
def test_a_change_that_the_model_overflows_of_is_told_in_a_line(lm: ds.LM, generate: int) -> None:
    with pytest.raises(UserError, match="NaN or infinity with these changes"):
        lm.intervene(TEXT, {"1/7": 1e300}, generate=generate)


def test_as_much_is_written_as_the_model_takes(lm: ds.LM) -> None:
    ids = [0, *range(40, 37 + CONTEXT)]
    assert lm.intervene(ids, {"1/7": 25.0}, generate=2).continuation_after
    with pytest.raises(UserError, match=f"the prompt's {CONTEXT - 2} tokens and 3 more are too many"):
        lm.intervene(ids, {"1/7": 25.0}, generate=3)


# ------------------------------------------------------------------------------- transcoders: into later layers, normed


def crossing(
    weights: Weights, changes: dict[int, Callable[[Tensor], Tensor]], reads: dict[int, Any], gives: list[Any]
) -> dict[Any, Callable[[Tensor], Tensor]]:
    """What MLPs give with features of layers exchanged. changes: of a layer's activations."""
    arrived: dict[int, Tensor] = {}

    def note(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda x: arrived.__setitem__(layer, x) or x

    def exchange(into: int) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            for layer, change in changes.items():
                if layer <= into:
                    acts = weights.encode(arrived[layer], layer)
                    x = x + (change(acts) - acts) @ weights.W_dec[layer][:, into - layer]
            return x

        return edit

    return {reads[layer]: note(layer) for layer in changes} | {module: exchange(i) for i, module in enumerate(gives)}


def changed(index: int, what: Callable[[Tensor], Tensor], at: slice = slice(1, None)) -> Callable[[Tensor], Tensor]:
    def change(acts: Tensor) -> Tensor:
        acts = acts.clone()
        acts[:, at, index] = what(acts[:, at, index])
        return acts

    return change


def reading(layer: Any) -> torch.nn.Module:
    """A module through which what the MLP's norm puts out passes alone."""
    return (
        layer.pre_feedforward_layernorm
        if hasattr(layer, "pre_feedforward_layernorm")
        else layer.post_attention_layernorm
    )


@pytest.mark.parametrize(("shape", "into"), [("llama", "hook_mlp_out"), ("gemma2", "hook_mlp_out")])
@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
def test_a_cross_layer_feature_is_set_in_what_every_later_mlp_gives(shape: str, into: str, tmp_path: Path) -> None:
    weights = random_weights(jumprelu=True)
    folder = weights.write(
        tmp_path / "clt", feature_input_hook="mlp.hook_in", feature_output_hook=into, model_name=None
    )
    lm = handle(str(folder), shape)
    layers = list(lm.model.model.layers)
    normed = shape == "gemma2" and into == "hook_mlp_out"
    gives = [layer.post_feedforward_layernorm if normed else layer.mlp for layer in layers]
    both = lambda acts: changed(2, lambda a: a + 1.5)(changed(7, lambda a: a + 2.5)(acts))  # noqa: E731
    changes = {0: changed(5, lambda a: a * 0 + 6.0, slice(21, 22)), 1: both}
    edits = crossing(weights, changes, {i: reading(layer) for i, layer in enumerate(layers)}, gives)
    found = lm.intervene(TEXT, {"0/5@21": 6.0}, add={"1/7": 2.5, "1/2": 1.5})
    assert torch.allclose(found.logits_after, hooked(lm, ids_of(lm), edits), atol=1e-4)
    first = crossing(weights, {0: changes[0]}, {0: reading(layers[0])}, gives)
    assert torch.allclose(lm.intervene(TEXT, {"0/5@21": 6.0}).logits_after, hooked(lm, ids_of(lm), first), atol=1e-4)
    only_here = {module: edit for module, edit in first.items() if module not in gives[1:]}
    assert (hooked(lm, ids_of(lm), first) - hooked(lm, ids_of(lm), only_here)).abs().max() > 1e-3
    same(
        lm.intervene_each(TEXT, [{"0/5@21": 6.0}, {"2/3": 4.0}], generate=2)[0],
        lm.intervene(TEXT, {"0/5@21": 6.0}, generate=2),
    )


@pytest.mark.parametrize("shape", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("written", ["hook_mlp_out", "mlp.hook_out"])
def test_a_transcoder_of_what_comes_before_a_norm_is_set_there(shape: str, written: str) -> None:
    sae = random_sae("transcoder", "1.mlp_in", metadata={"hook_name_out": f"blocks.1.{written}"})
    behind = random_sae("jumprelu", "1.mlp_out", seed=2)
    lm = handle([sae, behind], shape)
    block, read = lm.model.model.layers[1], []

    def exchange(x: Tensor) -> Tensor:
        acts = sae.encode(read[0])
        return x + (changed(5, lambda a: a * 0 + 9.0, slice(21, 22))(acts) - acts) @ sae.W_dec

    def above(x: Tensor) -> Tensor:
        acts = behind.encode(x)
        return x + behind.decode(changed(7, lambda a: a * 0 + 4.0)(acts)) - behind.decode(acts)

    note = {block.pre_feedforward_layernorm: lambda x: read.append(x) or x}
    if written == "mlp.hook_out":
        edits = note | {block.mlp: exchange, block.post_feedforward_layernorm: above}
    else:
        edits = note | {block.post_feedforward_layernorm: lambda x: above(exchange(x))}
    found = lm.intervene(TEXT, {"1.mlp_in/5@21": 9.0, "1.mlp_out/7": 4.0})
    assert torch.allclose(found.logits_after, hooked(lm, ids_of(lm), edits), atol=1e-4)
    assert (found.logits_after - found.logits_before).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "name what to change"), ({"head:0.1": 2}, "set it to 0, or scale it"),
        ({"1/3": math.nan}, "finite number"), ({"token:3": 10**9}, "not in the vocabulary"),
        ({"token:99": 3}, "positions 0 to"), ({"what": 1}, "write a feature"), ({"1/3": "x"}, "finite number"),
        ({"5/3": 1}, "there is no SAE"), ({"1/99999": 1}, "features"),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_is_told_in_a_line(lm: ds.LM, changes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        lm.intervene(TEXT, changes)


def test_a_part_is_changed_in_one_way_and_tokens_are_only_set(lm: ds.LM) -> None:
    with pytest.raises(UserError, match="changed twice"):
        lm.intervene(TEXT, {"1/3": 0}, scale={"1/3": 2})
    with pytest.raises(UserError, match="a token is set"):
        lm.intervene(TEXT, scale={"token:3": 2})
    with pytest.raises(UserError, match="number of tokens"):
        lm.intervene(TEXT, {"1/3": 0}, generate=-1)


# ------------------------------------------------------------------------------------------------------------- experts

IDS = [1, 2, 3, 7, 9, 4, 8]


def softmax_routed(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Callable[[int], tuple[Tensor, Tensor, Any]]]:
    """The chosen experts' weights [pos, expert], 0 for others; an expert's neurons, its output map and bias."""
    scores = (x @ block.gate.weight.T).softmax(-1)
    kept = torch.where(scores >= scores.topk(block.gate.top_k).values[..., -1:], scores, 0)

    def expert(i: int) -> tuple[Tensor, Tensor, Any]:
        gate, up = (x @ block.experts.gate_up_proj[i].T).chunk(2, -1)
        return torch.nn.functional.silu(gate) * up, block.experts.down_proj[i].T, 0

    return kept / kept.sum(-1, keepdim=True), expert


def clamp_routed(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Callable[[int], tuple[Tensor, Tensor, Any]]]:
    own, router = block.experts, block.router
    logits = x @ router.weight.T + router.bias
    kept = torch.where(logits >= logits.topk(router.top_k).values[..., -1:], logits, -torch.inf)

    def expert(i: int) -> tuple[Tensor, Tensor, Any]:
        both = x @ own.gate_up_proj[i] + own.gate_up_proj_bias[i]
        gate, up = both[..., ::2].clamp(max=7.0), both[..., 1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate), own.down_proj[i], own.down_proj_bias[i]

    return kept.softmax(-1), expert


@pytest.mark.parametrize(("shape", "routed"), [("qwen3_moe", softmax_routed), ("gpt_oss", clamp_routed)])
def test_an_experts_neuron_is_set_where_positions_are_sent_to_it(shape: str, routed: Any) -> None:
    lm = ds.load(fresh(shape))
    layer, read = lm.model.model.layers[0], []
    block = layer.mlp

    def whole(_: Tensor, changes: Callable[[int, Tensor], None] = lambda i, z: None) -> Tensor:
        weights, expert = routed(block, read[0])
        total = torch.zeros_like(read[0])
        for i in range(weights.shape[-1]):
            z, down, bias = expert(i)
            changes(i, z)
            total += weights[..., i, None] * (z @ down + bias)
        return total

    def changed_too(i: int, z: Tensor) -> None:
        if i == 1:
            z[..., 5] = 8.0
        if i == 3:
            z[:, 4, 2] *= -3.0
            z[..., 6] += 4.0

    with ExitStack() as stack:
        before = layer.post_attention_layernorm.register_forward_hook(
            lambda _m, _a, out: read.__setitem__(slice(None), [out])
        )
        stack.callback(before.remove)
        ids = torch.tensor([IDS])
        assert torch.allclose(hooked(lm, ids, {block: whole}), hooked(lm, ids, {}), atol=1e-4)
        expected = hooked(lm, ids, {block: lambda x: whole(x, changed_too)})
        weights, _ = routed(block, read[0])
    assert 0 < int((weights[0, :, [1, 3]] == 0).sum()) < 2 * len(IDS)
    found = lm.intervene(IDS, {"neuron:0/1.5": 8.0}, scale={"neuron:0/3.2@4": -3}, add={"neuron:0/3.6": 4.0})
    assert torch.allclose(found.logits_after, expected, atol=1e-4)
    assert (found.logits_after - found.logits_before).abs().max() > 1e-3
    each = lm.intervene_each(IDS, [{"neuron:0/1.5": 8.0}, {"neuron:0/3.6": 4.0}], generate=2)
    same(each[1], lm.intervene(IDS, {"neuron:0/3.6": 4.0}, generate=2))


def test_a_shared_experts_neuron_is_set_at_every_position() -> None:
    lm = ds.load(fresh("qwen3_5_moe_text"))

    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z.view(len(IDS), -1)[:, 3] = 6.0
        return z

    down = lm.model.model.layers[1].mlp.shared_expert.down_proj
    found = lm.intervene(IDS, {"neuron:1/shared.3": 6.0})
    assert torch.allclose(found.logits_after, hooked(lm, torch.tensor([IDS]), {down: edit}), atol=1e-4)
    assert (found.logits_after - found.logits_before).abs().max() > 1e-3
    assert found.changes[0].to_dict()["part"] == "neuron:1/shared.3"


@pytest.mark.parametrize(
    ("shape", "part", "said"),
    [
        ("qwen3_moe", "neuron:0/1", r"layer 0 has experts: write EXPERT.NEURON, for example 0\.1"),
        ("qwen3_moe", "neuron:0/99.1", "layer 0 has experts 0 to"),
        ("qwen3_moe", "neuron:0/1.99999", "layer 0 has experts with neurons 0 to"),
        ("qwen3_moe", "neuron:0/shared.1", "layer 0 has no shared expert"),
        ("qwen3_moe", "neuron:1/0.1", "layer 1 has no experts; leave 0. out"),
        ("qwen3_moe", "neuron:0/x.1", "write a feature"),
    ],
)
def test_neurons_that_no_expert_has_are_told_in_a_line(shape: str, part: str, said: str) -> None:
    lm = handle([random_sae("jumprelu", "1.resid_post")], shape)
    for ask in (lambda: lm.intervene(IDS, {part: 0}), lambda: lm.downstream(IDS, part)):
        with pytest.raises(UserError, match=said):
            ask()


def test_the_last_neuron_of_the_last_expert_is_there_and_the_next_is_not() -> None:
    lm = ds.load(fresh("qwen3_moe"))
    n, width = lm.model.config.num_experts, lm.model.config.moe_intermediate_size
    assert lm.intervene(IDS, {f"neuron:0/{n - 1}.{width - 1}": 5.0})
    with pytest.raises(UserError, match=f"neurons 0 to {width - 1}, and none numbered {width}"):
        lm.intervene(IDS, {f"neuron:0/{n - 1}.{width}": 5.0})
    with pytest.raises(UserError, match=f"experts 0 to {n - 1}, and none numbered {n}"):
        lm.intervene(IDS, {f"neuron:0/{n}.0": 5.0})
