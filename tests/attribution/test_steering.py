"""What an intervention leaves is what hooks written by hand on the untouched model leave."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import UserError

from ..passes.models import fresh
from .tiny import TEXT, handle, random_sae

D_HEAD_OF = {"head": "o_proj", "neuron": "down_proj"}


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
        texts.append("".join(lm.tokenizer.decode([token]) for token in ids[0, start:].tolist()))
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


def test_neurons_of_experts_are_refused() -> None:
    lm = ds.load(fresh("qwen3_moe"))
    with pytest.raises(UserError, match="experts"):
        lm.intervene([1, 2, 3], {"neuron:0/1": 0})
