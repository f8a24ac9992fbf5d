"""Heads, modules and neurons of every layer: rows that sum, and two engines that agree."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.attribution.components import KINDS, NEURONS, TOP_NEURONS, _carried, _swept
from depass_sae.attribution.targets import FeatureTarget
from depass_sae.models.place import HOOKS
from depass_sae.models.prompt import encode
from depass_sae.passes.rules import RULES
from depass_sae.passes.settings import Settings

from ..passes import reference
from ..passes.models import CONFIGS, D_MLP, D_MODEL, EVERY, HEADS, LAYERS, SHAPES, build
from .test_tokens import QUESTIONS, assert_frame_adds_up, strict_json, with_sae
from .tiny import TEXT, VOCAB, activation, handle, model, pre_activations, tokenizer

prompts = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6)
kinds = st.sampled_from(sorted(KINDS))


def ask(lm: ds.LM, kind: str, *question: Any, **settings: Any) -> Any:
    return getattr(lm, f"attribute_{kind}")(*question, **settings)


@given(
    shape=st.sampled_from(EVERY), hook=st.sampled_from(HOOKS), kind=kinds, ids=prompts,
    rule=st.sampled_from(sorted(RULES)),
)  # fmt: skip
@settings(max_examples=100)
def test_every_row_sums_to_the_pre_activation_that_sae_lens_computes(
    shape: str, hook: str, kind: str, ids: list[int], rule: str
) -> None:
    lm = with_sae(shape, hook, "jumprelu")
    pos = len(ids) - 1
    found = ask(lm, kind, ids, "1/3", pos=pos, rule=rule)
    x = activation(lm.model, torch.tensor([ids]), f"1.{hook}")[0]
    expected = pre_activations(lm.saes[1], x)[pos, 3].item()
    assert found.pre_activation == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert found.completeness_error <= 1e-4
    document = found.to_dict()["targets"][0]
    assert document["rest"] or (kind, hook) in {("neurons", "resid_pre")}
    for row in document["rest"]:
        same = [
            p for p in document[kind] if p["layer"] == row["layer"] and row.get("module") in (None, p.get("module"))
        ]
        values = [p["value"] for p in same] + [row["value"]] + [other["value"] for other in row["other"]]
        off = abs(sum(values) + document["constant"] - expected)
        assert off <= 1e-4 * max(map(abs, (*values, expected)))


@given(
    shape=st.sampled_from(EVERY),
    hook=st.sampled_from(HOOKS),
    kind=kinds,
    ids=prompts,
    rule=st.sampled_from(["linear", "half"]),
)
@settings(max_examples=60)
def test_the_sweep_and_the_forward_pass_agree(shape: str, hook: str, kind: str, ids: list[int], rule: str) -> None:
    subject = with_sae(shape, hook, "jumprelu")._subject
    target = FeatureTarget(subject.hook(1), 3)
    seen = subject.trace(encode(subject.loaded, subject.adapter, ids), 1, (target.place,))
    readoff, positions = target.read(subject, seen), sorted({0, len(ids) - 1})
    swept, carried = (engine(seen, readoff, positions, KINDS[kind], Settings.of(rule)) for engine in (_swept, _carried))
    for one, other in zip(swept, carried, strict=True):
        both = {(row.layer, row.sublayer): row for row in other}
        assert {(row.layer, row.sublayer) for row in one} >= set(both)
        for row in one:
            if (row.layer, row.sublayer) in both:
                same = both[row.layer, row.sublayer]
                size = max(1.0, same.values.abs().max().item(), abs(same.rest), abs(same.bias))
                assert torch.allclose(row.values, same.values, atol=1e-4 * size)
                assert row.rest == pytest.approx(same.rest, abs=1e-4 * size)
                assert row.bias == pytest.approx(same.bias, abs=1e-4 * size)


def test_there_is_a_row_for_every_layer_up_to_the_target(lm: ds.LM) -> None:
    heads, modules, neurons = (
        ask(lm, kind, TEXT, "1/3").to_dict()["targets"][0] for kind in ("heads", "modules", "neurons")
    )
    assert [(p["layer"], p["head"]) for p in heads["heads"]] == [(layer, h) for layer in (0, 1) for h in range(HEADS)]
    assert [(p["layer"], p["module"]) for p in modules["modules"]] == [
        (layer, m) for layer in (0, 1) for m in ("attn", "mlp")
    ]
    assert [row["layer"] for row in neurons["rest"]] == [0, 1]
    assert len(ask(lm, "heads", TEXT, logit=5).target.rows) == LAYERS


@pytest.mark.parametrize(
    ("hook", "heads", "modules"),
    [
        ("hook_z", [0, 1], ["attn 0", "mlp 0"]),
        ("attn_out", [0, 1], ["attn 0", "mlp 0", "attn 1"]),
        ("mlp_in", [0, 1], ["attn 0", "mlp 0", "attn 1"]),
        ("mlp_out", [0, 1], ["attn 0", "mlp 0", "attn 1", "mlp 1"]),
    ],
)
def test_what_is_read_inside_or_behind_a_sublayer_has_the_parts_that_reach_it(
    hook: str, heads: list[int], modules: list[str]
) -> None:
    lm = with_sae("llama", hook, "jumprelu")
    by_head, by_module = (ask(lm, kind, TEXT, "1/3", rule="half") for kind in ("heads", "modules"))
    assert [row.layer for row in by_head.target.rows] == heads
    assert [by_module.part_name(row, 0) for row in by_module.target.rows] == modules


def test_neurons_that_are_not_listed_are_summed(lm: ds.LM) -> None:
    found = ask(lm, "neurons", TEXT, "1/3")
    whole, short = found.to_dict(top=D_MLP)["targets"][0], found.to_dict(top=3)["targets"][0]
    assert len(whole["neurons"]) == 2 * D_MLP
    assert len(short["neurons"]) == 2 * 3
    for layer in (0, 1):
        listed = sum(p["value"] for p in short["neurons"] if p["layer"] == layer)
        (others,) = (o["value"] for o in short["rest"][layer]["other"] if o["name"] == "other neurons")
        assert listed + others == pytest.approx(sum(p["value"] for p in whole["neurons"] if p["layer"] == layer))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_document_has_the_keys_that_it_promises(lm: ds.LM, kind: str) -> None:
    document = ask(lm, kind, TEXT, "1/3", pos="all").to_dict()
    assert strict_json(document) == document
    assert next(iter(document)) == "schema_version"
    assert document["feature"] == {"layer": 1, "index": 3, "hook": "resid_post"}
    for target in document["targets"]:
        assert {"pos", "token", "activation", "pre_activation", "constant", kind, "rest", "completeness_error"} <= set(
            target
        )
        assert {"layer", "value", "other"} <= set(target["rest"][0])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_frames_tables_and_pages_name_every_part(lm: ds.LM, kind: str) -> None:
    found = ask(lm, kind, "a[/bold]<script>alert(1)</script>", "1/3", pos=2)
    frame = found.to_frame()
    frame = frame[frame["kind"] == KINDS[kind].part]
    assert len(frame) == sum(len(row.values) for row in found.target.rows)
    strongest = frame.loc[frame["contribution"].abs().idxmax(), "name"]
    for text in (str(found), str(found.table(top=1))):
        assert strongest in text
        assert "[/bold] (2)" in text
    assert "<script" not in found._repr_html_()
    assert found.plot() == found._repr_html_()


@given(kind=kinds, ids=prompts, question=st.sampled_from(QUESTIONS), rule=st.sampled_from(["half", "softmax"]))
@settings(max_examples=20)
def test_in_a_frame_every_layer_sums_to_the_pre_activation_at_every_target(
    kind: str, ids: list[int], question: Any, rule: str
) -> None:
    found = ask(with_sae("gpt2", "resid_post", "jumprelu"), kind, ids, **question, pos="all", rule=rule)
    assert_frame_adds_up(found, "layer", "sublayer")


def test_what_is_no_part_of_a_layer_has_a_row_of_its_own_without_an_index(lm: ds.LM) -> None:
    found = lm.attribute_heads(TEXT, "1/3")
    frame = found.to_frame()
    for row in found.target.rows:
        rows = frame[frame["layer"] == row.layer].set_index("kind")
        assert rows.index.tolist() == ["head"] * HEADS + ["bias", "rest", "constant"]
        assert rows["contribution"].drop("head").tolist() == [row.bias, row.rest, found.constant]
        assert rows["index"].drop("head").isna().all()
        assert rows["index"].iloc[:HEADS].tolist() == list(range(HEADS))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_target_that_no_part_reaches_is_answered_without_rows(kind: str) -> None:
    found = ask(handle(), kind, [5, 6], direction=torch.ones(32), layer=0, hook="resid_pre")
    assert found.target.rows == ()
    assert found.to_dict()["targets"][0]["rest"] == []
    assert found.to_frame().empty
    assert str(found.table())
    assert found._repr_html_()


def test_progress_is_reported_to_its_end(lm: ds.LM) -> None:
    for rule in ("half", "softmax"):
        seen: list[tuple[int, int]] = []
        ask(lm, NEURONS.name, TEXT, "1/3", rule=rule, progress=lambda _, done, of: seen.append((done, of)))  # noqa: B023
        assert seen == [(i + 1, len(seen)) for i in range(len(seen))]


# ---------------------------------------------------------------------------------------------------- several targets


@pytest.mark.parametrize("rule", ["half", "softmax"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_targets_at_several_positions_are_what_each_is_alone(lm: ds.LM, kind: str, rule: str) -> None:
    every = ask(lm, kind, [5, 90, 17, 33], direction=torch.ones(32), layer=1, pos="all", rule=rule)
    assert len(every.targets) > 1
    for target in every.targets:
        alone = ask(lm, kind, [5, 90, 17, 33], direction=torch.ones(32), layer=1, pos=target.pos, rule=rule).target
        for row, same in zip(target.rows, alone.rows, strict=True):
            size = max(1.0, row.values.abs().max().item(), abs(row.rest))
            assert torch.allclose(row.values, same.values, rtol=0, atol=1e-5 * size)
            assert (row.rest, row.bias) == pytest.approx((same.rest, same.bias), abs=1e-5 * size)


SUBLAYERS = {"heads": ("attn",), "modules": ("attn", "mlp"), "neurons": ("mlp",)}


@pytest.mark.parametrize("rule", ["half", "softmax"])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("shape", SHAPES)
def test_of_a_logit_every_layers_row_sums_to_what_the_model_says(shape: str, kind: str, rule: str) -> None:
    lm = handle(shape=shape)
    found = ask(lm, kind, [5, 90, 17, 33], logit=9, rule=rule)
    with torch.no_grad():
        logit = lm.model(torch.tensor([[5, 90, 17, 33]])).logits[0, -1, 9].item()
    assert found.pre_activation == pytest.approx(logit, abs=1e-4)
    assert [(row.layer, row.sublayer) for row in found.target.rows] == [
        (layer, sublayer) for layer in range(LAYERS) for sublayer in SUBLAYERS[kind]
    ]
    assert found.completeness_error <= 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_and_the_attention_module_say_the_same_but_for_its_bias(shape: str) -> None:
    heads, modules = (ask(handle(shape=shape), kind, [5, 90, 17, 33], logit=9).target for kind in ("heads", "modules"))
    attention = {row.layer: row for row in modules.rows if row.sublayer == "attn"}
    for row in heads.rows:
        same = attention[row.layer]
        assert row.rest == pytest.approx(same.rest, rel=1e-4, abs=1e-4)
        assert row.values.sum().item() + row.bias == pytest.approx(same.values.item() + same.bias, rel=1e-4, abs=1e-3)


# ------------------------------------------------------------------------------------------------ against interventions


def whole_stream(stream: torch.Tensor) -> reference.Components:
    """A stream as one component, beside an empty ``bias`` and ``rest``."""
    values = torch.stack([stream, torch.zeros_like(stream), torch.zeros_like(stream)], dim=1)
    return reference.Components(values, torch.ones(values.shape[:2], dtype=torch.bool))


@torch.no_grad()
def frozen_stream(shape: str, ids: list[int], layer: int, neuron: int | None) -> torch.Tensor:
    """What the frozen network of the rule ``linear`` leaves in the stream after its last layer, run forward in float64.

    Patterns, norm scales and act(g)/g·u are those of the untouched model. neuron: of ``layer``; it writes nothing.
    """
    network = model(shape, torch.float64)
    resid_pre, resid_mid, patterns = reference.frozen(network, torch.tensor(ids))
    stream = resid_pre[0]
    for index in range(LAYERS):
        w = reference.weights(network, index)
        stream = stream + reference.attention(whole_stream(stream), resid_pre[index], patterns[index], w)[1].values.sum(
            1
        )
        recorded, now = (
            reference.normed(whole_stream(x), resid_mid[index], w.norms[1]).values.sum(1)
            for x in (resid_mid[index], stream)
        )
        gate, gate_now = (x @ w.gate + (0 if w.b_gate is None else w.b_gate) for x in (recorded, now))
        up = 1 if w.up is None else recorded @ w.up + (0 if w.b_up is None else w.b_up)
        hidden = w.act(gate) / gate * up * gate_now
        if neuron is not None and index == layer:
            hidden[:, neuron] = 0
        stream = stream + hidden @ w.down + (0 if w.b_down is None else w.b_down)
    return stream


@pytest.mark.parametrize("shape", ["llama", "qwen3", "gpt2"])
def test_with_the_linear_rule_a_neuron_contributes_what_the_frozen_network_loses_without_it(shape: str) -> None:
    ids, layer = [5, 90, 17, 33], 0
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lm = ds.load(model(shape, torch.float64), tokenizer())
    found = lm.attribute_neurons(ids, direction=direction, layer=LAYERS - 1, pos=3, rule="linear").target
    untouched = frozen_stream(shape, ids, layer, None)[3] @ direction
    assert untouched.item() == pytest.approx(found.pre_activation, rel=1e-5)
    lost = [untouched - frozen_stream(shape, ids, layer, neuron)[3] @ direction for neuron in range(D_MLP)]
    (values,) = (row.values for row in found.rows if row.layer == layer)
    assert torch.allclose(values, torch.stack(lost), rtol=1e-5, atol=0)


@given(ids=prompts, kind=kinds, memory=st.sampled_from([1, 2000, 20_000]))
@settings(max_examples=20)
def test_how_much_memory_there_is_changes_nothing(ids: list[int], kind: str, memory: int) -> None:
    for rule in ("softmax", "half"):
        whole, chunked = (
            ask(with_sae("llama", "resid_post", "jumprelu"), kind, ids, "1/3", pos=0, rule=rule, memory=given)
            for given in (None, memory)
        )
        size = whole.contributions.abs().max().item()
        assert torch.allclose(whole.contributions, chunked.contributions, rtol=0, atol=5e-5 * size)


# ------------------------------------------------------------------------------------------------ layers unlike others


def test_layers_with_different_numbers_of_heads_stand_in_one_table_and_one_picture() -> None:
    config = CONFIGS["qwen3_5_text"]()
    config.linear_num_value_heads, config.linear_num_key_heads = 6, 3
    lm = ds.load(build(config))
    found = lm.attribute_heads([5, 9, 17, 33], logit=9)
    assert found.completeness_error < 1e-4
    assert [len(row.values) for row in found.target.rows] == [6, 4, 6]
    assert found.contributions.isnan().tolist() == [[False] * 6, [False] * 4 + [True] * 2, [False] * 6]
    assert "L2H5" in str(found.table(top=None))
    assert "L1H3" in found.plot()
    assert "nan" not in str(found.table(top=None)) + found.plot()
    assert {(part["layer"], part["head"]) for part in found.to_dict()["targets"][0]["heads"]} == {
        (layer, head) for layer, heads in enumerate((6, 4, 6)) for head in range(heads)
    }
    assert lm.attribute_heads([5, 9, 17, 33], logit=9, by_token=True).completeness_error < 1e-4


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_a_neuron_of_an_expert_is_named_by_its_expert(rule: str) -> None:
    found = ds.load(model("qwen3_5_moe_text")).attribute_neurons([5, 9, 17, 33], logit=9, rule=rule)
    row = found.target.rows[0]
    experts, width, shared = 5, 8, 14
    assert len(row.values) == experts * width + shared
    assert [found.part_name(row, i) for i in (0, 7, 8, 39, 40, 53)] == [
        "L0N0.0", "L0N0.7", "L0N1.0", "L0N4.7", "L0Nshared.0", "L0Nshared.13",
    ]  # fmt: skip
    document = found.to_dict(top=1000)["targets"][0]
    assert document["neurons"][9] == {"layer": 0, "neuron": "1.1", "value": row.values[9].item()}
    assert found.completeness_error < 1e-4


def test_a_dense_layer_between_experts_has_plain_neurons() -> None:
    found = ds.load(model("qwen3_moe")).attribute_neurons([5, 9, 17, 33], logit=9)
    listed = found.to_dict(top=1000)["targets"][0]["neurons"]
    assert {type(part["neuron"]) for part in listed if part["layer"] == 1} == {int}
    assert {type(part["neuron"]) for part in listed if part["layer"] != 1} == {str}


def test_a_document_lists_all_neurons_where_that_is_asked_for(lm: ds.LM) -> None:
    found = lm.attribute_neurons(TEXT, "1/3", every=True)
    assert found.to_dict() == found.to_dict(top=D_MLP)
    assert len(found.to_dict(top=3)["targets"][0]["neurons"]) == 2 * 3
    means = lm.importance([TEXT, TEXT + " or"], "1/3", of="neurons", every=True)
    assert len(means.to_dict()["neurons"]) == 2 * D_MLP
    wide = dataclasses.replace(found, every=False)
    assert wide.to_dict() == found.to_dict(top=TOP_NEURONS)
