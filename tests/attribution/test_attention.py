"""Attention scores: the table sums to the score that the model itself computes, and says why a head looked there."""

import copy
import html
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import CompletenessWarning, UserError

from ..passes.models import DELTA, EVERY, HEADS, LAYERS, SHAPES
from ..passes.test_frozen import own_scores
from .test_looks import SHADED
from .test_tokens import assert_adds_up, strict_json
from .tiny import BOS, TEXT, VOCAB, fitting_sae, handle, model, random_sae, tokenizer

RULES = ("softmax", "half")
IDS = [BOS, 80, 90, 17, 33, 80]
QUERY, KEY = 5, 4  # every shape's windows see this pair

prompts = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=7)


@cache
def with_saes(shape: str) -> ds.LM:
    """SAEs that read the stream before every layer, under one name or the other."""
    return handle([random_sae("standard", "0.resid_pre"), random_sae("topk", "0.resid_post"), random_sae()], shape)


def expected(shape: str, ids: list[int], layer: int, head: int, query: int) -> tuple[Tensor, Tensor]:
    """The model's own scores and attention of one query, over all keys up to it."""
    own = own_scores(handle(shape=shape)._subject.adapter, ids)
    *_, scores = own[layer]
    m = model(shape)
    implementation = m.config._attn_implementation
    m.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            pattern = m(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions[list(own).index(layer)]
    finally:
        m.set_attn_implementation(implementation)
    return scores[head, query, : query + 1].double(), pattern[0, head, query, : query + 1].double()


def window_of(lm: ds.LM, layer: int) -> int | None:
    return lm._subject.adapter.layer(layer).sublayers[0].mixer.window


def sums(found: Any, value: float, size: float) -> bool:
    """Score and table are both ``value``, up to float32 on numbers of this size."""
    size = max(size, 1e-3, *found.values.abs().flatten().tolist())
    return abs(found.score - value) <= 1e-4 * size and abs(found.values.sum().item() - value) <= 1e-4 * size


@given(
    shape=st.sampled_from(EVERY), layer=st.integers(0, LAYERS - 1), head=st.integers(0, HEADS - 1), ids=prompts,
    by=st.sampled_from(["tokens", "features"]), rule=st.sampled_from(RULES), data=st.data(),
)  # fmt: skip
@settings(max_examples=120)
def test_the_table_sums_to_the_score_that_the_model_computes(
    shape: str, layer: int, head: int, ids: list[int], by: Any, rule: str, data: st.DataObject
) -> None:
    assume(shape not in DELTA or layer == 1)
    lm = with_saes(shape)
    query = data.draw(st.integers(0, len(ids) - 1))
    first = max(0, query + 1 - (window_of(lm, layer) or len(ids)))
    key = data.draw(st.integers(first, query))
    against = data.draw(st.sampled_from([None, "mean", "uniform", *range(first, query + 1)]))
    found = lm.attribute_attention(ids, layer, head, query, key, by=by, rule=rule, against=against)
    scores, pattern = expected(shape, ids, layer, head, query)
    held = {None: 0.0, "mean": scores @ pattern / pattern.sum(), "uniform": scores[first:].mean()}
    held |= {position: scores[position] for position in range(first, query + 1)}
    assert sums(found, float(scores[key] - held[against]), scores[first:].abs().max().item())
    assert found.pattern == pytest.approx(pattern[key].item(), abs=1e-5)
    assert found.completeness_error <= 1e-4
    assert found.values.shape == (len(found.rows), len(found.columns))
    assert_adds_up(found.to_frame()["contribution"], found.score, found.completeness_error)


@pytest.mark.parametrize("by", ["tokens", "features"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_average_key_weighs_the_others_by_their_attention(shape: str, by: Any) -> None:
    lm = with_saes(shape)
    first = max(0, QUERY + 1 - (window_of(lm, 1) or len(IDS)))
    against = lm.attribute_attention(IDS, 1, 2, QUERY, KEY, by=by, against="mean")
    total = lm.attribute_attention(IDS, 1, 2, QUERY, KEY, by=by).score
    for key in range(first, QUERY + 1):
        other = lm.attribute_attention(IDS, 1, 2, QUERY, key, by=by)
        total -= other.pattern * other.score
    assert against.score == pytest.approx(total, abs=1e-3)


def test_what_a_sink_took_is_no_part_of_the_average_key() -> None:
    lm = handle(shape="gpt_oss")
    each = [lm.attribute_attention(IDS, 1, 3, QUERY, key) for key in range(QUERY + 1)]
    kept = sum(one.pattern for one in each)
    assert kept < 0.7
    average = sum(one.pattern * one.score for one in each) / kept
    against = lm.attribute_attention(IDS, 1, 3, QUERY, KEY, against="mean")
    assert against.score == pytest.approx(each[KEY].score - average, abs=1e-3)


def test_the_slope_of_a_soft_cap_is_said_where_the_score_is() -> None:
    made = copy.deepcopy(model("gemma2"))
    made.config.attn_logit_softcapping = 2.0
    for layer in made.model.layers:
        layer.self_attn.attn_logit_softcapping = 2.0
    found = ds.load(made, tokenizer()).attribute_attention(IDS, 1, 0, QUERY, KEY)
    score = torch.tensor(found.score, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(2.0 * torch.tanh(score / 2.0), score)
    assert 0.01 < slope < 0.99
    assert found.note is not None
    assert f"whose slope at this one is {slope:.2f}" in found.note


@pytest.mark.parametrize(("query", "key", "against"), [(QUERY, KEY, KEY), (0, 0, "mean"), (0, 0, "uniform")])
def test_where_nothing_is_left_the_table_is_empty(query: int, key: int, against: Any) -> None:
    found = with_saes("llama").attribute_attention(IDS, 1, 2, query, key, against=against)
    assert (found.score, found.completeness_error, found.rows, found.columns) == (0, 0, (), ())
    assert found.to_dict()["values"] == []
    assert found.largest() == []
    assert "looking at" in str(found)
    assert "looking at" in found.plot()
    assert found.to_frame().empty


@cache
def certain() -> tuple[ds.LM, int]:
    """A model in which a head of layer 1 looks nearly nowhere but at one key, and which."""
    made = copy.deepcopy(model())
    made.model.layers[1].self_attn.q_proj.weight.data *= 100
    lm = ds.load(made, tokenizer())
    (key,) = [key for key in range(QUERY) if lm.attribute_attention(IDS, 1, 2, QUERY, key).pattern > 0.99]
    return lm, key


def test_where_the_average_key_is_the_key_itself_it_is_said_and_nothing_is_drawn() -> None:
    lm, key = certain()
    found = lm.attribute_attention(IDS, 1, 2, QUERY, key, against="mean")
    assert found.note is not None
    assert "100.0% of the head's attention is on this key" in found.note
    assert 'against="uniform"' in found.note
    assert found.to_dict()["note"] == found.note
    assert abs(found.score) < 5e-4
    assert "█" not in found.table()
    assert "".join(found.note.split()) in "".join(str(found).split())
    page = found.plot()
    assert html.escape(found.note) in html.escape(html.unescape(page))
    assert not SHADED.search(page)
    plain = lm.attribute_attention(IDS, 1, 2, QUERY, key, against="uniform")
    assert plain.note is None
    assert plain.score > 1
    assert "█" in plain.table()
    assert SHADED.search(plain.plot())


def test_scores_that_did_not_make_the_pattern_are_warned_of() -> None:
    lm = ds.load(copy.deepcopy(model()), tokenizer())
    module = lm.model.model.layers[1].self_attn.q_proj
    changes = module.register_forward_hook(lambda _m, _args, out: out * 3)
    with pytest.warns(CompletenessWarning, match="the scores of head 2 in layer 1"):
        lm.attribute_attention(IDS, 1, 2, QUERY, KEY)
    changes.remove()


def test_a_key_that_is_seen_alone_has_nothing_to_be_held_against() -> None:
    lm = handle()
    for against in ("mean", "uniform"):
        note = lm.attribute_attention(IDS, 1, 2, 0, 0, against=against).note  # type: ignore[arg-type]
        assert note == "query 0 sees this key alone, so that there is none to hold it against"
    assert lm.attribute_attention(IDS, 1, 2, 0, 0).note is None
    assert lm.attribute_attention(IDS, 1, 2, QUERY, KEY, against="mean").note is None


# --------------------------------------------------------------------------------------------------------- components


def test_tokens_at_the_first_layer_are_the_two_that_stand_there() -> None:
    lm = handle(shape="mistral")  # without biases
    found = lm.attribute_attention(IDS, 0, 1, QUERY, KEY)
    assert len(found.rows) == len(found.columns) == 1
    assert found.rows[0].endswith(f"({QUERY})")
    assert found.columns[0].endswith(f"({KEY})")


@pytest.mark.parametrize("shape", SHAPES)
def test_biases_of_queries_and_keys_have_a_row_and_a_column(shape: str) -> None:
    found = handle(shape=shape).attribute_attention(IDS, 0, 1, QUERY, KEY)
    scores = handle(shape=shape)._subject.adapter.layer(0).sublayers[0].mixer.scores
    biased = scores.q.bias is not None or shape == "gpt2"
    assert ("bias" in found.rows) == ("bias" in found.columns) == biased


def test_no_component_is_of_a_position_after_the_query() -> None:
    found = handle().attribute_attention(TEXT, 2, 0, 6, 3)
    positions = [int(name.rsplit("(", 1)[1][:-1]) for name in (*found.rows, *found.columns) if "(" in name]
    assert max(positions) == 6
    assert max(int(name.rsplit("(", 1)[1][:-1]) for name in found.columns if "(" in name) == 3


@pytest.mark.parametrize(("by", "sources"), [("tokens", {"token"}), ("features", {"feature", "error"})])
def test_a_frame_tells_sources_from_what_is_none_at_both_ends(by: Any, sources: set[str]) -> None:
    found = with_saes("gpt2").attribute_attention(IDS, 1, 2, QUERY, KEY, by=by)
    frame = found.to_frame()
    for kind, name, names in (("query_kind", "at_query", found.rows), ("key_kind", "at_key", found.columns)):
        assert frame[name].unique().tolist() == list(names)
        others = frame[~frame[kind].isin(sources)]
        assert (others[kind] == others[name]).all()
        assert set(frame[kind]) == sources | {name for name in names if name in ("bias", "rest", "constant")}


@pytest.mark.parametrize("hook", ["1.resid_pre", "0.resid_post"])
def test_features_are_those_of_the_sae_on_the_stream_that_the_layer_reads(hook: str) -> None:
    lm = handle(fitting_sae(hook))
    found = lm.attribute_attention(IDS, 1, 2, QUERY, KEY, by="features")
    layer = hook.partition(".")[0]
    report = lm.features(IDS).to_dict()["layers"][0]
    for names, pos in ((found.rows, QUERY), (found.columns, KEY)):
        features = [name for name in names if name.startswith(f"{layer}/")]
        assert {int(name.split("@")[0].split("/")[1]) for name in features} == {
            feature["index"] for feature in report["positions"][pos]["features"]
        }
        assert all(name.endswith(f"({pos})") for name in features)
    errors = [name for name in (*found.rows, *found.columns) if name.startswith("error@")]
    assert all(found.values[i].abs().max() < 1e-3 for i, name in enumerate(found.rows) if name in errors)  # it fits


def test_the_sae_before_the_layer_is_taken_at_the_layer_first() -> None:
    both = handle([fitting_sae("1.resid_pre"), random_sae(hook="0.resid_post")])
    rows = both.attribute_attention(IDS, 1, 2, QUERY, KEY, by="features").rows
    assert any(name.startswith("1/") for name in rows)
    assert not any(name.startswith("0/") for name in rows)


def test_the_rule_decides_which_token_it_was_and_not_the_sum() -> None:
    lm = handle(shape="qwen2")
    softmax, half = (lm.attribute_attention(IDS, 2, 2, QUERY, KEY, rule=rule) for rule in RULES)
    assert softmax.score == half.score
    assert softmax.largest(1) != half.largest(1)


# ----------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("by", ["tokens", "features"])
@pytest.mark.parametrize("against", [None, "mean", "uniform", 2])
def test_the_documents_values_sum_to_its_score(by: Any, against: Any) -> None:
    document = with_saes("llama").attribute_attention(TEXT, 1, 2, 6, 4, by=by, against=against).to_dict()
    assert strict_json(document) == document
    assert next(iter(document)) == "schema_version"
    assert document["query"] == {"pos": 6, "token": document["tokens"][6]}
    assert document["key"] == {"pos": 4, "token": document["tokens"][4]}
    assert (document["layer"], document["head"], document["by"], document["against"]) == (1, 2, by, against)
    values = document["values"]
    assert [len(values), len(values[0])] == [len(document["rows"]), len(document["columns"])]
    largest = max(abs(value) for row in values for value in row)
    assert sum(map(sum, values)) == pytest.approx(document["score"], abs=1e-5 * largest)


def test_the_largest_pairs_come_first() -> None:
    found = with_saes("llama").attribute_attention(TEXT, 1, 2, 6, 4)
    pairs = found.largest()
    assert [abs(value) for *_, value in pairs] == sorted((abs(value) for *_, value in pairs), reverse=True)
    frame = found.to_frame().sort_values("contribution", key=abs, ascending=False)
    for (row, column, value), (_, entry) in zip(pairs[:5], frame.iterrows(), strict=False):
        assert (entry["at_query"], entry["at_key"], entry["contribution"]) == (row, column, value)


def test_tables_and_pages_name_both_ends() -> None:
    found = handle().attribute_attention("a[/bold]<script>alert(1)</script>", 2, 0, 3, 2, against="mean")
    assert "layer 2 head 0" in str(found)
    assert "[/bold] (2)" in str(found.table(top=40))
    assert ", against the average key" in " ".join(str(found).split())
    assert "<script" not in found.plot()
    assert found._repr_html_() == found.plot()


def test_a_prompt_of_ids_needs_no_tokenizer() -> None:
    found = ds.load(model()).attribute_attention(IDS, 1, 2, QUERY, KEY)
    assert found.to_dict()["query"]["token"] == f"#{IDS[QUERY]}"


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("question", "complaint"),
    [
        ({"layer": LAYERS}, f"there is no layer {LAYERS}; LlamaForCausalLM has layers 0 to {LAYERS - 1}"),
        ({"layer": -1}, "there is no layer -1"),
        ({"head": HEADS}, f"there is no head {HEADS}; layer 1 has heads 0 to {HEADS - 1}"),
        ({"head": -1}, "there is no head -1"),
        ({"query": 6}, "query 6 is outside the prompt; its 6 tokens have positions 0 to 5"),
        ({"query": -1}, "query -1 is outside the prompt"),
        ({"key": 9}, "key 9 is outside the prompt"),
        ({"query": 3, "key": 4}, "key 4 cannot be seen from query 3 in layer 1"),
        ({"against": 9}, "against 9 is outside the prompt"),
        ({"query": 3, "key": 2, "against": 4}, "against 4 cannot be seen from query 3 in layer 1"),
        ({"against": "median"}, "against is mean, uniform or a position, not 'median'"),
        ({"by": "heads"}, "an attention score is split by tokens or by features, not by 'heads'"),
        ({"by": "features"}, "where there is an SAE at 1.resid_pre or 0.resid_post; there are none"),
        ({"rule": "nonsense"}, "unknown rule 'nonsense'"),
        ({"temperature": 0}, "temperature must be greater than 0"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(question: dict[str, Any], complaint: str) -> None:
    asked = {"layer": 1, "head": 2, "query": QUERY, "key": KEY} | question
    with pytest.raises(UserError) as caught:
        handle().attribute_attention(IDS, **asked)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["key", "against"])
def test_a_key_outside_the_window_is_refused(name: str) -> None:
    asked: Any = {"query": 5, "key": 5} | {name: 2}
    with pytest.raises(UserError, match=f"{name} 2 cannot be seen from query 5 in layer 1"):
        handle(shape="mistral").attribute_attention(IDS, 1, 0, **asked)  # it sees 3, 4 and 5
    handle(shape="mistral").attribute_attention(IDS, 1, 0, **(asked | {name: 3}))


def test_an_sae_elsewhere_does_not_split_scores() -> None:
    lm = handle([random_sae(), random_sae(hook="0.mlp_out")])
    with pytest.raises(UserError) as caught:
        lm.attribute_attention(IDS, 1, 2, QUERY, KEY, by="features")
    assert str(caught.value) == (
        "scores of layer 1 are split by features where there is an SAE at 1.resid_pre or 0.resid_post; "
        "there are 0.mlp_out, 1.resid_post"
    )
    with pytest.raises(UserError, match=r"an SAE at 0\.resid_pre; there are"):
        lm.attribute_attention(IDS, 0, 2, QUERY, KEY, by="features")


def test_a_transcoder_on_the_stream_is_refused() -> None:
    lm = handle({"1.resid_pre": random_sae("transcoder", hook=None)})
    with pytest.raises(UserError, match="is a transcoder, which does not split the stream"):
        lm.attribute_attention(IDS, 1, 2, QUERY, KEY, by="features")
