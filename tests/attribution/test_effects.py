"""Effects of heads, modules and neurons: the gradient of the untouched transformers model, and orders by them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depass_sae as ds
from depass_sae.attribution.components import KINDS
from depass_sae.attribution.looks import EFFECTS
from depass_sae.errors import UserError
from depass_sae.passes.running import recording
from depass_sae.view.blocks import HeatMap, Note, Table

from ..passes.models import D_MLP, HEADS, LAYERS
from .test_components import ask
from .tiny import TEXT, activation, model, pre_activations, random_sae, tokenizer

IDS = [5, 90, 17, 33, 201]
LAST = len(IDS) - 1
LLAMA = ("self_attn.o_proj", "mlp.down_proj", "self_attn.o_proj", "mlp.down_proj")
NORMED = (*LLAMA[:2], "post_attention_layernorm", "post_feedforward_layernorm")
DELTA = ("linear_attn.out_proj", "mlp.down_proj", "linear_attn.out_proj", "mlp.down_proj")
GPT2 = ("attn.c_proj", "mlp.c_proj", "attn.c_proj", "mlp.c_proj")
NEOX = ("attention.dense", "mlp.dense_4h_to_h", "attention.dense", "mlp.dense_4h_to_h")
FAMILIES = {
    "llama": LLAMA, "mistral": LLAMA, "qwen3": LLAMA, "gpt2": GPT2, "gemma2": NORMED, "gemma3_text": NORMED,
    "gpt_neox": NEOX, "gpt_neox_serial": NEOX, "qwen3_5_text": DELTA,
}  # fmt: skip
"""Of a layer: what reads the heads, what reads the neurons, and what puts out that which either adds to the stream."""


def module_of(block: nn.Module, path: str) -> nn.Module:
    """Of a layer; one of full attention among others of delta rules calls it otherwise."""
    if path.startswith("linear_attn") and not hasattr(block, "linear_attn"):
        path = "self_attn.o_proj"
    return block.get_submodule(path)


Scale = Callable[[Tensor], Tensor]


@contextmanager
def scaled(network: nn.Module, shape: str, scale: Callable[[str, int, int], Scale]) -> Iterator[None]:
    """The model with every part scaled. scale: of (kind, layer, sublayer), what is done to all of that kind there."""
    layers = next(found for found in network.modules() if isinstance(found, nn.ModuleList))
    with ExitStack() as handles:
        for layer, block in enumerate(layers):
            for sublayer, kind in enumerate(("heads", "neurons")):
                reads, writes = (module_of(block, FAMILIES[shape][i]) for i in (sublayer, sublayer + 2))
                before, after = scale(kind, layer, sublayer), scale("modules", layer, sublayer)
                hooks = (
                    reads.register_forward_pre_hook(lambda _, args, change=before: (change(args[0]), *args[1:])),
                    writes.register_forward_hook(lambda _m, _a, out, change=after: change(out)),
                )
                for hook in hooks:
                    handles.callback(hook.remove)
        yield


def by_autograd(lm: ds.LM, shape: str, read: Callable[[Any], Tensor], kind: str) -> dict[tuple[int, int], Tensor]:
    """The derivative of what the model says with respect to the scale of each part: what removing it does, at first
    order.
    """
    scales: dict[tuple[int, int], Tensor] = {}

    def scale(of: str, layer: int, sublayer: int) -> Scale:
        def change(x: Tensor) -> Tensor:
            if of != kind:
                return x
            parts = {"heads": HEADS, "modules": 1, "neurons": D_MLP}[of]
            mine = scales[layer, sublayer] = torch.ones(parts, dtype=x.dtype, requires_grad=True)
            return x * mine.repeat_interleave(x.shape[-1] // parts)

        return change

    with recording(lm._subject.adapter), torch.enable_grad(), scaled(lm.model, shape, scale):
        found = read(lm.model(torch.tensor([IDS]), use_cache=False, output_hidden_states=True))
        gradients = torch.autograd.grad(found, list(scales.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(scales, gradients, strict=True))


def precision(shape: str) -> float:
    return 1e-10 if shape == "gpt2" else 1e-5  # transformers' norms and rotations go through float32


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("shape", FAMILIES)
def test_an_effect_is_the_gradient_of_the_untouched_model(shape: str, kind: str) -> None:
    """Of its own logit: behind a soft-cap, where it has one."""
    lm = ds.load(model(shape, torch.float64), tokenizer())
    found = ask(lm, kind, IDS, logit=9, effects=True).target
    expected = by_autograd(lm, shape, lambda out: out.logits[0, LAST, 9], kind)
    size = max(row.abs().max().item() for row in expected.values())
    assert len(found.rows) == len(expected) == (2 * LAYERS if kind == "modules" else LAYERS)
    for row in found.rows:
        own = expected[row.layer, ("attn", "mlp").index(row.sublayer)]
        assert torch.allclose(row.effects, own, rtol=0, atol=precision(shape) * size)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_of_what_is_read_in_the_stream_only_what_lies_before_has_an_effect(kind: str) -> None:
    lm = ds.load(model("gpt2", torch.float64), tokenizer())
    w = torch.linspace(-1, 1, 32, dtype=torch.float64)
    found = ask(lm, kind, IDS, direction=w, layer=1, pos=LAST, effects=True).target
    expected = by_autograd(lm, "gpt2", lambda out: out.hidden_states[2][0, LAST] @ w, kind)
    assert {row.layer for row in found.rows} == {0, 1}
    for row in found.rows:
        own = expected[row.layer, ("attn", "mlp").index(row.sublayer)]
        assert torch.allclose(row.effects, own, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalised", ["none", "layer_norm"])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("shape", ["gpt2", "gemma2"])
def test_a_little_less_of_a_part_takes_its_effect_from_a_feature(shape: str, kind: str, normalised: str) -> None:
    """The SAE's own pre-activation, its normalisation free, in the model with a part really made smaller."""
    sae = random_sae("standard", normalize_activations=normalised, dtype="float64")
    lm = ds.load(model(shape, torch.float64), tokenizer(), saes=sae)
    found = ask(lm, kind, IDS, f"1/3@{LAST}", effects=True).target
    row, eps = found.rows[0], 1e-4 if shape == "gpt2" else 1e-3  # Gemma's norms are computed in float32
    index = int(row.effects.abs().argmax())
    size = max(abs(effect) for row in found.rows for effect in row.effects.tolist())

    def without(share: float) -> float:
        def scale(of: str, layer: int, _sublayer: int) -> Scale:
            def change(x: Tensor) -> Tensor:
                keep = torch.ones(len(row.values), dtype=x.dtype)
                keep[index] -= share
                return x * keep.repeat_interleave(x.shape[-1] // len(keep))

            return change if (of, layer, _sublayer) == (kind, row.layer, row.sublayer == "mlp") else lambda x: x

        with scaled(lm.model, shape, scale):
            x = activation(lm.model, torch.tensor([IDS]), "1.resid_post")
        return pre_activations(sae, x[0])[LAST, 3].item()

    lost = (without(-eps) - without(eps)) / (2 * eps)
    assert abs(row.effects[index].item()) > 1e-2 * size
    assert row.effects[index].item() == pytest.approx(lost, abs=(1e-6 if shape == "gpt2" else 3e-3) * size)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("hook", ["hook_z", "attn_out", "mlp_in", "mlp_out"])
def test_what_is_read_inside_a_sublayer_has_effects_for_all_its_parts(hook: str, kind: str) -> None:
    lm = ds.load(model("gpt2", torch.float64), tokenizer())
    w = torch.linspace(-1, 1, 32, dtype=torch.float64)
    found = ask(lm, kind, IDS, direction=w, layer=1, hook=hook, pos=LAST, effects=True)
    assert all(row.effects.shape == row.values.shape for row in found.target.rows)
    carried = ask(lm, kind, IDS, direction=w, layer=1, hook=hook, pos=LAST, effects=True, rule="relu")
    for row in carried.target.rows:
        same = next(r for r in found.target.rows if (r.layer, r.sublayer) == (row.layer, row.sublayer))
        assert torch.equal(row.effects, same.effects)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_effects_at_several_positions_and_in_little_memory_are_what_each_is_alone(lm: ds.LM, kind: str) -> None:
    settings: dict[str, Any] = {"direction": torch.ones(32), "layer": 1, "effects": True}
    every = ask(lm, kind, IDS, pos="all", memory=2000, **settings)
    assert len(every.targets) > 1
    for target in every.targets:
        alone = ask(lm, kind, IDS, pos=target.pos, **settings).target
        for row, same in zip(target.rows, alone.rows, strict=True):
            torch.testing.assert_close(row.effects, same.effects, rtol=0, atol=1e-5 * same.effects.abs().max().item())


# ------------------------------------------------------------------------------------------------- orders and documents


def parts_of(found: Any, kind: str) -> list[dict[str, Any]]:
    return found.to_dict(top=5)["targets"][0][kind]


ORDERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "abs": lambda part: abs(part["value"]),
    "contribution": lambda part: part["value"],
    "effect": lambda part: abs(part["effect"]),
}


@pytest.mark.parametrize("sort", ORDERS)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_parts_are_named_in_the_order_that_is_asked_for(lm: ds.LM, kind: str, sort: Any) -> None:
    found = ask(lm, kind, TEXT, "1/3", sort=sort, effects=True)
    table = next(block for block in found.blocks(8) if isinstance(block, Table))
    document = found.to_dict(top=50)
    assert document["sort"] == sort
    parts = document["targets"][0][kind]
    letter = kind[0].upper()
    expected = [
        f"{part['module']} {part['layer']}"
        if kind == "modules"
        else f"L{part['layer']}{letter}{part[kind.removesuffix('s')]}"
        for part in sorted(parts, key=lambda part: -ORDERS[sort](part))[:8]
    ]
    assert [row.cells[0] for row in table.rows] == expected
    assert [column.name for column in table.columns][:4] == [
        kind.removesuffix("s"), "contribution", "share", "effect"
    ]  # fmt: skip
    answer = next(block for block in found.blocks() if isinstance(block, Note))
    assert answer.text.startswith(f"{expected[0]} has the largest effect on" if sort == "effect" else expected[0])


@pytest.mark.parametrize("sort", ORDERS)
def test_a_document_lists_the_neurons_that_come_first(lm: ds.LM, sort: Any) -> None:
    found = lm.attribute_neurons(TEXT, "1/3", sort=sort, effects=True)
    (whole,), (short,) = found.to_dict(top=D_MLP)["targets"], found.to_dict(top=3)["targets"]
    for layer in (0, 1):
        every, listed = ([part for part in t["neurons"] if part["layer"] == layer] for t in (whole, short))
        first = sorted(every, key=lambda part: -ORDERS[sort](part))[:3]
        assert listed == sorted(first, key=lambda part: part["neuron"])
        (others,) = (o["value"] for o in short["rest"][layer]["other"] if o["name"] == "other neurons")
        assert others == pytest.approx(sum(p["value"] for p in every) - sum(p["value"] for p in listed), abs=1e-5)


def test_effects_are_there_where_they_are_asked_for_or_sorted_by(lm: ds.LM) -> None:
    plain, asked, ranked = (
        lm.attribute_heads(TEXT, "1/3", **how) for how in ({}, {"effects": True}, {"sort": "effect"})
    )
    assert all("effect" not in part for part in parts_of(plain, "heads"))
    assert "effect" not in plain.to_frame().columns
    assert "effect" not in str(plain.table())
    for found in (asked, ranked):
        assert [part["effect"] for part in parts_of(found, "heads")] == [
            effect for row in found.target.rows for effect in row.effects.tolist()
        ]
        frame = found.to_frame()
        assert frame.loc[frame["kind"] == "head", "effect"].notna().all()
        assert frame.loc[frame["kind"] != "head", "effect"].isna().all()
        assert EFFECTS in " ".join(str(found.table()).split())
        assert "do not add up to anything" in " ".join(found._repr_html_().split())
    assert parts_of(asked, "heads") == parts_of(ranked, "heads")
    assert torch.equal(plain.contributions, asked.contributions)


def test_the_heat_map_is_of_what_is_sorted_by(lm: ds.LM) -> None:
    for sort, key, unit in (("abs", "values", "contribution"), ("effect", "effects", "effect")):
        found = lm.attribute_heads(TEXT, "1/3", sort=sort, effects=True)  # type: ignore[arg-type]
        (heat,) = (block for block in found.blocks() if isinstance(block, HeatMap))
        assert heat.unit == unit
        assert [list(row) for row in heat.values] == [getattr(row, key).tolist() for row in found.target.rows[::-1]]
        assert bool(heat.totals) == (unit == "contribution")  # effects have no sum
        first = found.target.rows[-1]
        assert "effect" in heat.notes(0, 0)
        assert f"L{first.layer}H0: " in heat.notes(0, 0)


def test_an_order_that_there_is_not_is_refused(lm: ds.LM) -> None:
    for asks in (lm.attribute_heads, lm.attribute_modules, lm.attribute_neurons):
        with pytest.raises(UserError, match=r"parts are sorted by abs, contribution or effect, not by 'size'"):
            asks(TEXT, "1/3", sort="size")
    with pytest.raises(UserError, match="not by 'size'"):
        lm.importance([TEXT], "1/3", sort="size")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_progress_is_reported_to_its_end_with_effects(lm: ds.LM, rule: str) -> None:
    seen: list[tuple[int, int]] = []
    lm.attribute_heads(TEXT, "1/3", effects=True, rule=rule, progress=lambda _, done, of: seen.append((done, of)))
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]


# -------------------------------------------------------------------------------------------------------- over prompts

PROMPTS = [TEXT, "In economics, supply", [2, 5, 9, 4, 7, 3]]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_over_prompts_an_effect_is_the_mean_of_each_alone(lm: ds.LM, kind: Any) -> None:
    found, plain = (lm.importance(PROMPTS, logit=5, of=kind, effects=effects) for effects in (True, False))
    each = [ask(lm, kind, prompt, logit=5, effects=True).target for prompt in PROMPTS]
    for number, (row, without) in enumerate(zip(found.rows, plain.rows, strict=True)):
        torch.testing.assert_close(row.effect, torch.stack([t.rows[number].effects for t in each]).mean(0))
        torch.testing.assert_close((row.mean, row.std), (without.mean, without.std))
        assert (row.rest, row.bias) == (without.rest, without.bias)
        assert without.effect is None
    frame = found.to_frame()
    assert frame["effect"].tolist() == [effect for row in found.rows for effect in row.effect.tolist()]
    assert "effect" not in plain.to_frame().columns


@pytest.mark.parametrize("sort", ORDERS)
def test_over_prompts_parts_are_named_in_the_order_that_is_asked_for(lm: ds.LM, sort: Any) -> None:
    found = lm.importance(PROMPTS, logit=5, sort=sort, effects=True)
    document = found.to_dict()
    table = next(block for block in found.blocks(6) if isinstance(block, Table))
    ranked = sorted(document["heads"], key=lambda part: -ORDERS[sort](part | {"value": part["mean"]}))[:6]
    assert [row.cells[0] for row in table.rows] == [f"L{part['layer']}H{part['head']}" for part in ranked]
    assert [row.cells[-1] for row in table.rows] == [part["effect"] for part in ranked]
    (heat,) = (block for block in found.blocks() if isinstance(block, HeatMap))
    assert heat.unit == ("effect" if sort == "effect" else "contribution")
    assert EFFECTS in table.caption
    assert (f"L{ranked[0]['layer']}H{ranked[0]['head']} has the largest effect" in str(found.table())) == (
        sort == "effect"
    )
