"""Which tokens activate a feature: sums against sae-lens and transformers themselves, words, and the result object."""

import copy
import json
import math
import warnings
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.attribution.answer import Reading
from depass_sae.attribution.targets import FeatureTarget
from depass_sae.attribution.tokens import _Passes
from depass_sae.errors import SAEFitWarning, UserError
from depass_sae.models.place import HOOKS
from depass_sae.models.prompt import encode
from depass_sae.passes.rules import RULES
from depass_sae.passes.settings import Settings

from ..passes.models import EVERY, PARALLEL
from ..saes.builders import AFFINE, NORMALISATIONS
from .tiny import (
    BOS,
    D_MODEL,
    D_SAE,
    HOSTILE,
    TEXT,
    VOCAB,
    activation,
    fitting_sae,
    handle,
    model,
    pre_activations,
    random_sae,
    tokenizer,
    uncapped_logits,
    width,
)

prompts = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=8)
rules = st.sampled_from(sorted(RULES))
sae_options = st.sampled_from(
    [
        (kind, tuple(({"normalize_activations": norm, "apply_b_dec_to_input": b_dec} | topk).items()))
        for kind, norm, b_dec in product(AFFINE, NORMALISATIONS, (False, True))
        if not ("transcoder" in kind and b_dec)  # sae-lens refuses these
        for topk in ([{"rescale_acts_by_decoder_norm": r} for r in (False, True)] if "topk" in kind else [{}])
    ]
)


@cache
def with_sae(shape: str, hook: str, kind: str, options: tuple[tuple[str, Any], ...] = ()) -> ds.LM:
    assume(hook != "resid_mid" or shape not in PARALLEL)  # no module shows it there
    sae = random_sae(kind, f"1.{hook}", d_in=width(shape, hook), **dict(options))
    return handle(sae, shape)


def total(target: Any) -> float:
    return target.contributions.sum().item() + sum(target.other.values()) + target.constant


def assert_sums_to(target: Any, value: float, tolerance: float = 1e-4) -> None:
    parts = [*target.contributions.tolist(), *target.other.values(), target.constant, value]
    assert abs(total(target) - value) <= tolerance * max(map(abs, parts))


QUESTIONS = [{"feature": "1/3"}, {"logit": 5}, {"direction": torch.ones(D_MODEL), "layer": 1}]
"""With one each: a constant, the whole model, every position."""


def assert_adds_up(values: Any, value: float, error: float) -> None:
    """A frame's column is no further from the number that it is to sum to than the answer says of itself."""
    size = max([abs(value), *values.abs()])
    assert abs(values.sum() - value) <= (error + 1e-12) * size


def assert_frame_adds_up(att: Any, *keys: str) -> None:
    """At every target; keys: and for every value of these columns."""
    frame = att.to_frame()
    targets = {target.pos: target for target in att.targets}
    assert set(frame["target_pos"]) == set(targets)
    for (pos, *_), rows in frame.groupby(["target_pos", *keys]):
        assert_adds_up(rows["contribution"], targets[pos].pre_activation, targets[pos].completeness_error)


# ----------------------------------------------------------------------------------------------------------- the sum


@given(
    shape=st.sampled_from(EVERY),
    hook=st.sampled_from(HOOKS),
    sae=sae_options,
    ids=prompts,
    feature=st.integers(0, D_SAE - 1),
    rule=rules,
    by=st.sampled_from(["token", "word"]),
    first_token=st.sampled_from(["skip", "compete"]),
)
@settings(max_examples=250)
def test_the_parts_sum_to_the_pre_activation_that_sae_lens_computes(
    shape: str, hook: str, sae: tuple, ids: list[int], feature: int, rule: str, by: str, first_token: str
) -> None:
    lm = with_sae(shape, hook, *sae)
    pos = len(ids) - 1
    att = lm.attribute_tokens(ids, f"1/{feature}", pos=pos, rule=rule, by=by, first_token=first_token)
    x = activation(lm.model, torch.tensor([ids]), f"1.{hook}")[0]
    expected = pre_activations(lm.saes[1], x)[pos, feature].item()
    assert att.pre_activation == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert att.activation == pytest.approx(lm.saes[1].encode(x)[pos, feature].item(), rel=1e-4, abs=1e-4)
    assert_sums_to(att.target, expected)
    assert att.completeness_error <= 1e-4


@given(ids=prompts, feature=st.integers(0, D_SAE - 1), rule=rules, norm=st.sampled_from(NORMALISATIONS))
@settings(max_examples=30)
def test_the_gate_of_a_gated_sae_can_be_asked_instead_of_its_magnitude(
    ids: list[int], feature: int, rule: str, norm: str
) -> None:
    lm = with_sae("llama", "resid_post", "gated", (("normalize_activations", norm),))
    pos = len(ids) - 1
    att = lm.attribute_tokens(ids, f"1/{feature}", pos=pos, rule=rule, path="gate")
    x = activation(lm.model, torch.tensor([ids]), "1.resid_post")[0]
    expected = pre_activations(lm.saes[1], x, "gate")[pos, feature].item()
    assert att.pre_activation == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert_sums_to(att.target, expected)
    assert att.to_dict()["feature"]["path"] == "gate"


def test_an_sae_of_a_model_with_centred_weights_is_read_on_centred_activations() -> None:
    lm = handle(random_sae(metadata={"model_from_pretrained_kwargs": {"center_writing_weights": True}}), "gpt2")
    ids = [5, 9, 80, 17]
    att = lm.attribute_tokens(ids, "1/3", pos=3)
    x = activation(lm.model, torch.tensor([ids]), "1.resid_post")[0]
    expected = pre_activations(lm.saes[1], x - x.mean(-1, keepdim=True))[3, 3].item()
    assert_sums_to(att.target, expected)


@given(
    shape=st.sampled_from(EVERY), hook=st.sampled_from(HOOKS), layer=st.integers(0, 2), ids=prompts, rule=rules,
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_a_direction_is_read_at_any_hook_of_any_layer(
    shape: str, hook: str, layer: int, ids: list[int], rule: str, seed: int
) -> None:
    w = torch.randn(width(shape, hook), generator=torch.Generator().manual_seed(seed))
    att = handle(None, shape).attribute_tokens(ids, direction=w, layer=layer, hook=hook, pos=len(ids) - 1, rule=rule)
    expected = activation(model(shape), torch.tensor([ids]), f"{layer}.{hook}")[0, -1] @ w
    assert att.constant == 0
    assert att.activation is None
    assert_sums_to(att.target, expected.item())


@given(shape=st.sampled_from(EVERY), ids=prompts, token=st.integers(0, VOCAB - 1), rule=rules, data=st.data())
@settings(max_examples=60)
def test_a_logit_and_a_difference_of_logits_are_the_models_own(
    shape: str, ids: list[int], token: int, rule: str, data: st.DataObject
) -> None:
    lm = handle(None, shape)
    pos = data.draw(st.integers(0, len(ids) - 1))
    against = data.draw(st.integers(0, VOCAB - 1))
    logits = uncapped_logits(lm.model, torch.tensor([ids]))[0, pos]
    one = lm.attribute_tokens(ids, logit=token, pos=pos, rule=rule)
    assert one.pre_activation == pytest.approx(logits[token].item(), rel=1e-4, abs=1e-4)
    assert_sums_to(one.target, logits[token].item())
    both = lm.attribute_tokens(ids, logit_diff=(token, against), pos=pos, rule=rule)
    assert both.pre_activation == pytest.approx((logits[token] - logits[against]).item(), rel=1e-4, abs=1e-4)
    assert_sums_to(both.target, (logits[token] - logits[against]).item())


def test_a_bias_of_the_unembedding_is_in_the_constant() -> None:
    from ..passes.models import fresh

    changed = fresh("llama")
    before = ds.load(changed).attribute_tokens([5, 9], logit=7)
    changed.lm_head.bias = torch.nn.Parameter(torch.arange(changed.config.vocab_size, dtype=torch.float32))
    lm = ds.load(changed)
    after = lm.attribute_tokens([5, 9], logit=7)
    assert after.constant - before.constant == pytest.approx(7)
    assert_sums_to(after.target, after.pre_activation)
    assert lm.attribute_tokens([5, 9], logit_diff=(7, 4)).constant == pytest.approx(3)


def test_a_float64_model_is_decomposed_to_float64() -> None:
    lm = ds.load(model("gpt2", torch.float64), tokenizer(), saes=random_sae(dtype="float64"))
    att = lm.attribute_tokens(TEXT, "1/3")
    assert att.contributions.dtype == torch.float64
    assert att.completeness_error < 1e-12
    assert att.to_dict()["dtype"] == "float64"


def test_the_rounding_of_a_bfloat16_model_goes_away_with_a_float32_trace() -> None:
    half = model("llama", torch.bfloat16)
    rounded = ds.load(half, tokenizer(), saes=random_sae()).attribute_tokens(TEXT, "1/3", rule="linear")
    traced = ds.load(half, tokenizer(), saes=random_sae(), trace_dtype="float32")
    exact = traced.attribute_tokens(TEXT, "1/3", rule="linear")
    assert rounded.completeness_error > 1e-5 > exact.completeness_error
    assert (rounded.to_dict()["dtype"], exact.to_dict()["dtype"]) == ("bfloat16", "float32")
    assert "bfloat16" in str(rounded.table())
    assert "bfloat16" not in str(exact.table())


# ------------------------------------------------------------------------------------------------------------- sources


@given(ids=prompts, data=st.data(), rule=rules)
@settings(max_examples=30)
def test_every_position_up_to_the_targets_contributes_in_order(ids: list[int], data: st.DataObject, rule: str) -> None:
    pos = data.draw(st.integers(0, len(ids) - 1))
    att = with_sae("llama", "resid_post", "jumprelu").attribute_tokens(ids, "1/3", pos=pos, rule=rule)
    contributions = att.to_dict()["targets"][0]["contributions"]
    assert [entry["pos"] for entry in contributions] == list(range(pos + 1))
    assert [entry["token"] for entry in contributions] == list(att.tokens[: pos + 1])


def test_what_comes_after_the_target_does_not_matter(lm: ds.LM) -> None:
    ids = [0, 17, 5, 33, 5, 40]
    whole, cut = (lm.attribute_tokens(prompt, "1/3", pos=3) for prompt in (ids, ids[:4]))
    assert torch.allclose(whole.contributions, cut.contributions, atol=1e-5)


def test_a_word_is_its_sub_tokens_joined_and_stands_at_the_first(lm: ds.LM) -> None:
    att = lm.attribute_tokens("Rome marked-up apple.", "1/3", by="word", pos=12)
    assert [(s.pos, s.text) for s in att.target.sources] == [
        (0, "<bos>"), (1, "Rome"), (2, " marked"), (5, "-"), (6, "up"), (8, " apple"), (12, "."),
    ]  # fmt: skip
    entries = att.to_dict()["targets"][0]["contributions"]
    assert [(entry["pos"], entry["token"]) for entry in entries] == [(s.pos, s.text) for s in att.target.sources]
    assert att.to_dict()["by"] == "word"


def test_a_target_in_the_middle_of_a_word_has_the_whole_word_as_a_source(lm: ds.LM) -> None:
    att = lm.attribute_tokens("marked", "1/3", by="word", pos=2)
    assert [source.text for source in att.target.sources] == ["<bos>", "marked"]
    assert att.target.token == "e"
    assert_sums_to(att.target, att.pre_activation)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_word_is_one_component_and_no_sum_of_scores_except_where_components_do_not_compete(
    lm: ds.LM, rule: str
) -> None:
    token, word = (lm.attribute_tokens("the marked apple.", "1/3", by=by, pos=9, rule=rule) for by in ("token", "word"))
    summed = torch.stack([token.contributions[list(source.positions)].sum() for source in word.target.sources])
    assert len(word.contributions) < len(token.contributions)
    agree = torch.allclose(word.contributions, summed, atol=1e-4)
    assert agree == (not RULES[rule].couples)


# ---------------------------------------------------------------------------------------------------- what is reported


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "abstopk", "gated"])
def test_the_margin_is_positive_where_the_feature_fires(kind: str) -> None:
    lm = with_sae("llama", "resid_post", kind)
    fires = 0
    for feature in range(D_SAE):
        for pos in (2, 4):
            att = lm.attribute_tokens("supply and demand", f"1/{feature}", pos=pos - 1)
            if att.activation:
                assert att.target.margin >= 0
                fires += 1
            elif kind != "gated":  # an open gate with a negative magnitude does not fire either
                assert att.target.margin <= 0
    assert 0 < fires < 2 * D_SAE


def test_the_margin_of_a_jumprelu_feature_is_counted_from_its_threshold(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3")
    assert att.target.margin == pytest.approx(att.pre_activation - lm.saes[1].threshold[3].item())


def test_an_sae_that_fits_is_said_to_and_nobody_is_warned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        att = handle(fitting_sae()).attribute_tokens(TEXT, "1/3")
    assert att.fit.explained_variance == pytest.approx(1)
    assert att.fit.l0 == 32
    assert att.to_dict()["fit"] == {"explained_variance": att.fit.explained_variance, "l0": 32.0, "warning": None}
    assert "explains 100 % of the variance" in str(att.table())


def test_an_sae_of_another_layer_is_warned_of_in_the_result_and_as_a_warning() -> None:
    lm = handle(random_sae())
    with pytest.warns(SAEFitWarning, match="another model, layer, hook or scale") as caught:
        att = lm.attribute_tokens(TEXT, "1/3")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert att.fit.explained_variance < 0
    assert att.fit.warning in att.to_dict()["fit"]["warning"]
    assert "another model" in " ".join(str(att).split())
    assert "another model" in att._repr_html_()


def test_a_logit_and_a_direction_have_no_sae_and_no_fit(lm: ds.LM) -> None:
    for att in (lm.attribute_tokens(TEXT, logit=5), lm.attribute_tokens(TEXT, direction=torch.ones(32), layer=1)):
        assert att.fit is None
        assert att.to_dict()["sae"] is None
        assert att.to_dict()["fit"] is None
        assert att.target.margin is None


# ------------------------------------------------------------------------------------------------- the result's shapes

HEADING = {
    "schema_version",
    "model",
    "sae",
    "prompt",
    "tokens",
    "token_ids",
    "rule",
    "temperature",
    "first_token",
    "dtype",
}
TARGET = {"pos", "token", "activation", "pre_activation", "constant", "contributions", "other", "completeness_error"}


def strict_json(document: dict) -> dict:
    return json.loads(json.dumps(document, allow_nan=False))


def test_the_document_has_the_keys_that_it_promises(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3", pos="all", rule="softmax", temperature=0.5)
    document = att.to_dict()
    assert strict_json(document) == document
    assert next(iter(document)) == "schema_version"
    assert set(document) >= HEADING | {"feature", "targets"}
    assert document["schema_version"] == 1
    assert document["prompt"] == TEXT
    assert document["tokens"] == list(att.tokens)
    assert document["token_ids"] == tokenizer()(TEXT)["input_ids"]
    assert (document["rule"], document["temperature"], document["first_token"]) == ("softmax", 0.5, "skip")
    assert document["dtype"] == "float32"
    assert document["feature"] == {"layer": 1, "index": 3, "hook": "resid_post"}
    assert document["sae"]["architecture"] == "jumprelu"
    assert document["sae"]["hook"] == "1.resid_post"
    assert len(document["targets"]) > 1
    for target in document["targets"]:
        assert set(target) >= TARGET
        assert target["token"] == document["tokens"][target["pos"]]
        assert [set(entry) for entry in target["contributions"]] == [{"pos", "token", "value"}] * (target["pos"] + 1)
        assert [entry["name"] for entry in target["other"]] == ["bias", "rest"]
        assert target["activation"] > 0


def test_a_logits_document_names_its_tokens(lm: ds.LM) -> None:
    document = lm.attribute_tokens(TEXT, logit=" Paris").to_dict()
    paris, rome = (tokenizer().convert_tokens_to_ids(f"Ġ{word}") for word in ("Paris", "Rome"))
    assert strict_json(document) == document
    assert document["feature"] is None
    assert document["logit"] == {"token": " Paris", "id": paris, "against": None}
    assert document["targets"][0]["activation"] is None
    difference = lm.attribute_tokens(TEXT, logit_diff=(" Paris", " Rome")).to_dict()
    assert difference["logit"] == {"token": " Paris", "id": paris, "against": {"token": " Rome", "id": rome}}


def test_a_directions_document_says_where_it_was_read(lm: ds.LM) -> None:
    document = lm.attribute_tokens(TEXT, direction=torch.ones(32), layer=2, hook="resid_mid").to_dict()
    assert strict_json(document) == document
    assert document["feature"] is None
    assert document["direction"] == {"layer": 2, "hook": "resid_mid"}


def test_the_attributes_are_those_of_the_strongest_target(lm: ds.LM) -> None:
    every = lm.attribute_tokens(TEXT, "1/3", pos="all")
    strongest = max(every.targets, key=lambda target: target.activation)
    assert every.target is strongest
    for name in ("contributions", "other", "constant", "pre_activation", "activation", "completeness_error"):
        assert getattr(every, name) is getattr(strongest, name) or getattr(every, name) == getattr(strongest, name)
    alone = lm.attribute_tokens(TEXT, "1/3")
    assert alone.target.pos == strongest.pos
    assert torch.allclose(alone.contributions, strongest.contributions, atol=1e-5)


def test_a_frame_has_a_row_for_every_target_and_source(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3", pos="all")
    frame = att.to_frame()
    assert list(frame.columns) == ["target_pos", "target_token", "kind", "pos", "token", "contribution"]
    for target in att.targets:
        rows = frame[(frame["target_pos"] == target.pos) & (frame["kind"] == "token")]
        assert rows["pos"].tolist() == list(range(target.pos + 1))
        assert rows["contribution"].tolist() == target.contributions.tolist()


def test_what_is_no_source_has_a_row_of_its_own_without_a_position(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3", by="word")
    rows = att.to_frame().set_index("kind")
    assert list(rows.index.unique()) == ["word", "bias", "rest", "constant"]
    assert rows["contribution"].drop("word").to_dict() == {**att.other, "constant": att.constant}
    assert rows[["pos", "token"]].drop("word").isna().all(axis=None)
    assert str(rows["pos"].dtype) == "Int64"


@given(ids=prompts, question=st.sampled_from(QUESTIONS), rule=rules, by=st.sampled_from(["token", "word", "sentence"]))
@settings(max_examples=30)
def test_a_frame_sums_to_the_pre_activation_at_every_target(ids: list[int], question: Any, rule: str, by: Any) -> None:
    lm = with_sae("gpt2", "resid_post", "jumprelu")
    assert_frame_adds_up(lm.attribute_tokens(ids, **question, pos="all", rule=rule, by=by))


def test_a_frame_of_a_measured_answer_has_what_was_measured(lm: ds.LM) -> None:
    att = lm.attribute_tokens("supply and demand", "1/3", ablate=2)
    frame = att.to_frame()
    assert list(frame.columns)[-3:] == ["measured", "spread", "error"]
    assert math.isnan(frame["measured"][0])  # <bos> is not replaced
    assert frame["measured"].tolist()[1:-3] == list(att.target.measured.mean[1:])
    assert frame["measured"][-3:].isna().all()  # nor are bias, rest and constant


def test_completeness_is_computed_from_what_is_reported(lm: ds.LM) -> None:
    for target in lm.attribute_tokens(TEXT, "1/3", pos="all").to_dict()["targets"]:
        values = [entry["value"] for entry in (*target["contributions"], *target["other"])]
        off = abs(sum(values) + target["constant"] - target["pre_activation"])
        largest = max(abs(v) for v in (*values, target["constant"], target["pre_activation"]))
        assert target["completeness_error"] == pytest.approx(off / largest, abs=1e-12)


def test_the_first_token_can_compete(lm: ds.LM) -> None:
    settings = {"pos": 6, "rule": "softmax"}
    skip, compete = (lm.attribute_tokens(TEXT, "1/3", first_token=f, **settings) for f in ("skip", "compete"))
    assert not torch.allclose(skip.contributions, compete.contributions, atol=1e-3)
    assert compete.to_dict()["first_token"] == "compete"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"rule": "nonsense"}, "unknown rule 'nonsense'"),
        ({"temperature": 0}, "temperature must be greater than 0"),
        ({"temperature": -1.0, "rule": "half"}, "temperature must be greater than 0"),
        ({"first_token": "nonsense"}, "first_token must be"),
        ({"by": "nonsense"}, "choose token, word or sentence"),
        ({"ablate": -1}, "from 1 to 10,000"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(lm: ds.LM, settings: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        lm.attribute_tokens(TEXT, "1/3", **settings)


def test_a_prompt_on_which_the_model_computes_nan_is_refused() -> None:
    damaged = copy.deepcopy(model())
    damaged.model.embed_tokens.weight.data[200] = float("nan")  # so rare a token that loading does not meet it
    lm = ds.load(damaged, tokenizer(), saes=random_sae())
    assert lm.attribute_tokens([5, 6], "1/3").completeness_error < 1e-4
    for question in (lm.features, lambda ids: lm.attribute_tokens(ids, "1/3"), lambda ids: lm.decompose(ids, layer=1)):
        with pytest.raises(UserError, match="computes NaN or infinity in float32 on this prompt"):
            question([5, 200, 6])


def test_a_temperature_next_to_nothing_is_the_max_rule(lm: ds.LM) -> None:
    cold = lm.attribute_tokens(TEXT, "1/3", rule="softmax", temperature=1e-300)
    assert torch.allclose(cold.contributions, lm.attribute_tokens(TEXT, "1/3", rule="max").contributions, atol=1e-4)


def test_progress_is_reported_to_its_end(lm: ds.LM) -> None:
    seen: list[tuple[str, int, int]] = []
    lm.attribute_tokens("supply and demand", "1/3", ablate=1, progress=lambda *step: seen.append(step))
    for doing in dict.fromkeys(what for what, *_ in seen):
        steps = [(done, of) for what, done, of in seen if what == doing]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
        assert len({of for _, of in steps}) == 1


@given(
    shape=st.sampled_from(EVERY),
    hook=st.sampled_from(HOOKS),
    ids=prompts,
    by=st.sampled_from(["token", "word"]),
    rule=st.sampled_from(["linear", "half"]),
)
@settings(max_examples=60)
def test_the_sweep_and_the_forward_pass_agree(shape: str, hook: str, ids: list[int], by: Any, rule: str) -> None:
    subject = with_sae(shape, hook, "jumprelu")._subject
    target = FeatureTarget(subject.hook(1), 3)
    prompt = encode(subject.loaded, subject.adapter, ids)
    seen = subject.trace(prompt, 1, (target.place,))
    reading = Reading(prompt, seen, target.read(subject, seen), sorted({0, len(ids) - 1}), {})
    passes = _Passes.of([reading], by, Settings.of(rule))
    swept, carried = passes.swept()[0], passes.carried()[0]
    assert torch.allclose(swept, carried, atol=1e-4 * max(1.0, carried.abs().max().item()))


@given(
    shape=st.sampled_from(EVERY),
    ids=st.lists(prompts, min_size=1, max_size=4),
    by=st.sampled_from(["token", "word"]),
    rule=st.sampled_from(["linear", "half", "softmax", "relu"]),
    pos=st.sampled_from(["max", "all", None, 0]),
)
@settings(max_examples=40)
def test_prompts_of_different_lengths_in_one_pass_give_what_each_gives_alone(
    shape: str, ids: list[list[int]], by: Any, rule: str, pos: Any
) -> None:
    lm = with_sae(shape, "resid_post", "jumprelu")
    question: dict[str, Any] = {"by": by, "rule": rule, "pos": pos}
    together = lm.attribute_tokens_batch(ids, "1/3", **question)
    for att, prompt in zip(together, ids, strict=True):
        alone = lm.attribute_tokens(prompt, "1/3", **question)
        assert att.heading.prompt == alone.heading.prompt
        assert [target.pos for target in att.targets] == [target.pos for target in alone.targets]
        for one, other in zip(att.targets, alone.targets, strict=True):
            size = max(1.0, other.contributions.abs().max().item())
            assert torch.allclose(one.contributions, other.contributions, atol=1e-4 * size)
            assert one.other == pytest.approx(other.other, abs=1e-4 * size)
            assert one.completeness_error <= 1e-4


def test_what_is_no_list_of_prompts_gets_one_line(lm: ds.LM) -> None:
    for prompts in ([], TEXT, [3, 4, 5], torch.tensor([3, 4])):
        with pytest.raises(UserError, match="name several prompts, as a list of texts or of lists of ids"):
            lm.attribute_tokens_batch(prompts, "1/3")


def test_the_progress_of_many_prompts_is_told_as_one(lm: ds.LM) -> None:
    told: list[tuple[int, int]] = []
    short, long = [5] * 3, [7] * 20
    lm.attribute_tokens_batch([long] * 30 + [short], logit=7, progress=lambda _what, done, of: told.append((done, of)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert len({of for _, of in told}) == 1


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_several_targets_in_one_pass_are_what_each_gives_alone(rule: str) -> None:
    hooks = ("0.resid_post", "1.hook_z", "1.resid_mid")
    lm = handle([random_sae("jumprelu", hook, d_in=width("llama", hook[2:]), seed=i) for i, hook in enumerate(hooks)])
    targets = ["0/3", "1.hook_z/2@4", "1.resid_mid/5", "logit:7", "logit-diff:7,8@3", "0/3@2"]
    found = lm.attribute_tokens_each(TEXT, targets, rule=rule, by="word")
    alone = [lm.attribute_tokens_each(TEXT, [target], rule=rule, by="word")[0] for target in targets]
    plain = lm.attribute_tokens(TEXT, "1.resid_mid/5", rule=rule, by="word")
    assert torch.allclose(found[2].contributions, plain.contributions, atol=1e-5)
    for one, other in zip(found, alone, strict=True):
        assert one.target.pos == other.target.pos
        assert torch.allclose(one.contributions, other.contributions, atol=1e-5)
        assert one.completeness_error < 1e-5


def test_without_a_target_there_is_one_line(lm: ds.LM) -> None:
    with pytest.raises(UserError, match="name a target"):
        lm.attribute_tokens_each(TEXT, [])


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_how_much_memory_there_is_changes_nothing(lm: ds.LM, rule: str) -> None:
    whole = lm.attribute_tokens(TEXT, "1/3", rule=rule, pos="all")
    small = lm.attribute_tokens(TEXT, "1/3", rule=rule, pos="all", memory=1000)
    assert torch.allclose(whole.contributions, small.contributions, atol=1e-5)


def test_one_token_alone_is_attributed_too(lm: ds.LM) -> None:
    for prompt in ([17], [BOS, 17]):
        att = lm.attribute_tokens(prompt, "1/3")
        assert att.target.pos == len(prompt) - 1
        assert_sums_to(att.target, att.pre_activation)


def test_the_prompt_of_a_document_is_the_text_that_was_given(lm: ds.LM) -> None:
    text = "".join(HOSTILE)
    document = lm.attribute_tokens(text, "1/3").to_dict()
    assert document["prompt"] == text
    assert "".join(document["tokens"][1:]) == text


def test_a_tokenizers_batch_is_several_prompts_its_padding_left_out(lm: ds.LM) -> None:
    padding = copy.deepcopy(tokenizer())
    padding.pad_token = "<eos>"
    texts = [TEXT, "the price of supply"]
    batch = padding(texts, return_tensors="pt", padding=True)
    found = lm.attribute_tokens_batch(batch, "1/3")
    for att, alone in zip(found, lm.attribute_tokens_batch(texts, "1/3"), strict=True):
        assert att.heading.prompt.token_ids == alone.heading.prompt.token_ids
        assert att.to_dict()["targets"] == alone.to_dict()["targets"]
    with pytest.raises(UserError, match="name several prompts"):
        lm.attribute_tokens_batch(padding(TEXT), "1/3")


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_each_prompt_of_several_may_have_a_target_of_its_own(lm: ds.LM, rule: str) -> None:
    prompts, targets = [TEXT, [0, 60, 61, 62], TEXT + " or"], ["1/3@5", "logit:7", "1/2@3"]
    found = lm.attribute_tokens_batch(prompts, targets=targets, rule=rule)
    for one, prompt, target in zip(found, prompts, targets, strict=True):
        alone = lm.attribute_tokens(prompt, target=target, rule=rule)
        assert (one.target_name, one.target.pos) == (alone.target_name, alone.target.pos)
        assert torch.allclose(one.contributions, alone.contributions, atol=1e-4)
    with pytest.raises(UserError, match="3 prompts and 2 targets; name one for each prompt"):
        lm.attribute_tokens_batch(prompts, targets=targets[:2])
    with pytest.raises(UserError, match="leave feature out"):
        lm.attribute_tokens_batch(prompts, "1/3", targets=targets)


def test_directions_are_targets_among_others(lm: ds.LM) -> None:
    w = lm.saes[1].W_enc.detach()[:, :3].T
    found = lm.attribute_tokens_each(TEXT, [*w[:2], (w[2], "0.resid_post"), "1/0@5"], layer=1, pos=5)
    places = [(1, w[0]), (1, w[1]), (0, w[2])]
    for one, (layer, direction) in zip(found, places, strict=False):
        alone = lm.attribute_tokens(TEXT, direction=direction, layer=layer, pos=5)
        assert torch.allclose(one.contributions, alone.contributions, atol=1e-5)
    assert torch.allclose(found[0].contributions, found[3].contributions, atol=1e-5)  # the same, as a feature
    rows = lm.attribute_tokens_each(TEXT, w, layer=1, pos=5)  # a matrix is its rows
    assert [torch.equal(one.contributions, other.contributions) for one, other in zip(rows, found, strict=False)][:2]
    assert [one.target_name for one in rows] == ["direction 0", "direction 1", "direction 2"]
    with pytest.raises(UserError, match="needs the layer"):
        lm.attribute_tokens_each(TEXT, [w[0]])
    with pytest.raises(UserError, match="a list of targets, as texts or as directions"):
        lm.attribute_tokens_each(TEXT, [None])  # type: ignore[list-item]
