"""Subspaces of the stream: contributions that sum, and what the parts of a stream vote for."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.models.place import HOOKS
from depass_sae.passes.rules import RULES

from ..passes.models import D_MODEL, EVERY, LAYERS, SHAPES
from .test_tokens import QUESTIONS, assert_frame_adds_up, strict_json, with_sae
from .tiny import TEXT, VOCAB, activation, handle, model, pre_activations, random_sae, uncapped_logits

prompts = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6)
STREAM = ("resid_pre", "resid_mid", "resid_post")


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(seed))


def sizes(document: dict[str, Any]) -> list[float]:
    named = [*document["subspaces"], *document["other"]]
    return [entry["value"] for entry in named]


# ------------------------------------------------------------------------------------------------------------- the sum


@given(
    shape=st.sampled_from(EVERY), hook=st.sampled_from(HOOKS), start=st.sampled_from(STREAM), ids=prompts,
    rule=st.sampled_from(sorted(RULES)), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)  # fmt: skip
@settings(max_examples=80)
def test_the_parts_sum_to_the_pre_activation_that_sae_lens_computes(
    shape: str, hook: str, start: str, ids: list[int], rule: str, ranks: list[int]
) -> None:
    lm = with_sae(shape, hook, "jumprelu")
    space = ds.Subspace([rows(rank, i) for i, rank in enumerate(ranks)], 0, start)
    pos = len(ids) - 1
    found = lm.attribute_subspace(ids, "1/3", subspace=space, pos=pos, rule=rule)
    x = activation(lm.model, torch.tensor([ids]), f"1.{hook}")[0]
    expected = pre_activations(lm.saes[1], x)[pos, 3].item()
    assert found.completeness_error <= 1e-4
    assert found.ranks == tuple(ranks)
    document = found.to_dict()["targets"][0]
    values = [*sizes(document), document["constant"], expected]
    assert abs(sum(values[:-1]) - expected) <= 1e-4 * max(map(abs, values))
    assert len(found.contributions) == len(ranks)


def test_of_a_logit_the_parts_sum_to_what_the_model_says() -> None:
    for shape in SHAPES:
        found = handle(shape=shape).attribute_subspace([5, 90, 17], logit=9, subspace=ds.Subspace(rows(3), 1))
        with torch.no_grad():
            logit = model(shape)(torch.tensor([[5, 90, 17]])).logits[0, -1, 9].item()
        document = found.to_dict()["targets"][0]
        values = [*sizes(document), document["constant"]]
        assert sum(values) == pytest.approx(logit, abs=1e-4 * max(map(abs, values)))


def test_where_it_is_read_the_subspace_is_a_plain_projection(lm: ds.LM) -> None:
    w = rows(1)[0]
    found = lm.attribute_subspace(TEXT, direction=w, layer=1, subspace=ds.Subspace(w[None], 1, "resid_post"), pos=5)
    assert found.contributions.tolist() == pytest.approx([found.pre_activation], rel=1e-4)
    assert abs(found.target.rest) < 1e-3
    assert found.target.bias == 0


def test_two_subspaces_contribute_together_what_they_contribute_apart() -> None:
    lm = with_sae("llama", "resid_post", "jumprelu")
    one, other = rows(2, 1), rows(2, 2)
    both = lm.attribute_subspace(TEXT, "1/3", subspace=ds.Subspace(torch.cat([one, other]), 0))
    apart = lm.attribute_subspace(TEXT, "1/3", subspace=ds.Subspace([one, other], 0))
    assert apart.contributions.sum().item() == pytest.approx(both.contributions.item(), abs=1e-4)
    assert apart.target.rest == pytest.approx(both.target.rest, abs=1e-4)


def test_several_positions_are_answered_at_once(lm: ds.LM) -> None:
    space = ds.Subspace(rows(2), 0)
    every = lm.attribute_subspace(TEXT, "1/3", subspace=space, pos="all")
    assert every.targets
    for target in every.targets:
        alone = lm.attribute_subspace(TEXT, "1/3", subspace=space, pos=target.pos)
        assert alone.contributions.tolist() == pytest.approx(target.values.tolist(), abs=1e-4)
        assert alone.pre_activation == target.pre_activation


def test_names_ranks_and_the_place_are_in_the_document(lm: ds.LM) -> None:
    space = ds.Subspace([rows(3), rows(2, 1)], 0, "resid_mid", rank=2)
    found = lm.attribute_subspace(TEXT, "1/3", subspace=space, names=["subject", "[/bold]<b>"])
    document = found.to_dict()
    assert strict_json(document) == document
    assert next(iter(document)) == "schema_version"
    assert document["at"] == {"layer": 0, "hook": "resid_mid"}
    assert [(s["name"], s["rank"]) for s in document["targets"][0]["subspaces"]] == [("subject", 2), ("[/bold]<b>", 2)]
    assert [other["name"] for other in document["targets"][0]["other"]] == ["bias", "rest"]
    assert document["rule"] == "half"
    assert "[/bold]<b> (rank 2)" in str(found)
    assert "<b>" not in found.plot()
    frame = found.to_frame()
    assert frame["kind"].tolist() == ["subspace", "subspace", "bias", "rest", "constant"]
    assert frame["subspace"].tolist()[:2] == ["subject", "[/bold]<b>"]
    assert frame["rank"].tolist()[:2] == [3 - 1, 2]
    assert frame["contribution"].tolist()[:2] == found.contributions.tolist()
    assert frame[["subspace", "rank"]][2:].isna().all(axis=None)


@given(ids=prompts, question=st.sampled_from(QUESTIONS), rule=st.sampled_from(sorted(RULES)))
@settings(max_examples=20)
def test_a_frame_sums_to_the_pre_activation_at_every_target(ids: list[int], question: Any, rule: str) -> None:
    lm, space = with_sae("gpt2", "resid_post", "jumprelu"), ds.Subspace([rows(2), rows(1, 1)], 0)
    assert_frame_adds_up(lm.attribute_subspace(ids, **question, subspace=space, pos="all", rule=rule))


@pytest.mark.parametrize(
    ("space", "names", "complaint"),
    [
        (ds.Subspace(rows(1), 2, "resid_post"), None, "lies before the decomposition's start"),
        (ds.Subspace(rows(1), LAYERS), None, f"there is no layer {LAYERS}; there are layers 0 to {LAYERS - 1}"),
        (ds.Subspace(rows(1), -1), None, "there is no layer -1"),
        (ds.Subspace(rows(1), 0, "mlp_out"), None, "starts on the residual stream, not at mlp_out"),
        (ds.Subspace(rows(1)[:, 1:], 0), None, f"rows of {D_MODEL} entries"),
        (ds.Subspace(0 * rows(1), 0), None, "no direction of its own"),
        (ds.Subspace(rows(1), 0), ["a", "b"], "there are 1 subspaces, and 2 names for them"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(lm: ds.LM, space: Any, names: Any, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        lm.attribute_subspace(TEXT, "1/3", subspace=space, names=names)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- votes


@given(
    shape=st.sampled_from(EVERY), ids=prompts, rule=st.sampled_from(sorted(RULES)), layer=st.integers(0, LAYERS - 1),
    kind=st.integers(0, 4),
)  # fmt: skip
@settings(max_examples=60)
def test_the_votes_of_all_parts_sum_to_the_models_centred_logits(
    shape: str, ids: list[int], rule: str, layer: int, kind: int
) -> None:
    source: Any = (
        ds.Heads(layer), ds.Modules(layer, "mlp"), ds.Neurons(layer), ds.Subspace([rows(2), rows(1, 1)], layer),
        ds.Spans([[0]], ["first"], layer),
    )[kind]  # fmt: skip
    lm = ds.load(model(shape))
    pos = len(ids) // 2
    votes = lm.votes(ids, source, pos=pos, top=VOCAB, rule=rule)
    total, size = torch.zeros(VOCAB), 1.0
    for _, tokens in votes.votes:
        assert len(tokens) == VOCAB
        for token, logit in tokens:
            total[int(token.removeprefix("#"))] += logit
        size = max(size, tokens[0][1], -tokens[-1][1])
    logits = uncapped_logits(lm.model, torch.tensor([ids]))[0, pos]
    with torch.no_grad():
        # The final norm's own bias vector is nobody's.
        beta = lm._subject.adapter.final_norm.bias
        logits = logits if beta is None else logits - beta @ lm._subject.adapter.unembed.weight
    assert torch.allclose(total, logits - logits.mean(), rtol=0, atol=1e-4 * size)


def test_votes_are_strongest_first_and_of_the_last_position_unless_said_otherwise(lm: ds.LM) -> None:
    votes = lm.votes(TEXT, ds.Heads(1), top=4)
    n = len(lm.features(TEXT).to_dict()["tokens"])
    assert votes.pos == n - 1
    assert [name for name, _ in votes.votes] == [*(f"head {h}" for h in range(4)), "bias", "rest"]
    for _, tokens in votes.votes:
        assert len(tokens) == 4
        assert [logit for _, logit in tokens] == sorted((logit for _, logit in tokens), reverse=True)
    document = votes.to_dict()
    assert strict_json(document) == document
    assert document["components"][0]["name"] == "head 0"
    assert "head 0" in str(votes)


def test_more_votes_than_there_are_tokens_are_all_of_them() -> None:
    assert len(handle().votes([5, 6], ds.Heads(0), top=10**6).votes[0][1]) == VOCAB


@pytest.mark.parametrize(
    ("source", "settings", "complaint"),
    [
        (ds.Heads(0), {"pos": 2}, "position 2 is outside the prompt"),
        (ds.Heads(0), {"pos": -1}, "position -1 is outside the prompt"),
        (ds.Heads(0), {"top": 0}, "top is the number of tokens to name"),
        (ds.Heads(0), {"rule": "nonsense"}, "unknown rule 'nonsense'"),
        (ds.Heads(LAYERS), {}, f"there is no layer {LAYERS}"),
        (ds.Heads(-1), {}, "there is no layer -1"),
        (ds.Subspace(rows(1), 0, "attn_out"), {}, "starts on the residual stream"),
    ],
)
def test_votes_that_make_no_sense_are_refused(source: Any, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        handle(random_sae()).votes([5, 6], source, **settings)


@pytest.mark.smollm2
def test_on_smollm2_the_money_part_of_the_stream_votes_for_money() -> None:
    try:
        lm = ds.load("smollm2", saes={})
    except UserError as missing:
        pytest.skip(str(missing))
    unembedding = lm.model.get_output_embeddings().weight.detach()

    def directions(*words: str) -> torch.Tensor:
        ids = [lm.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        return unembedding[ids] - unembedding.mean(dim=0)

    food = directions(" bread", " cheese", " soup", " salad", " dinner", " restaurant", " chef", " kitchen")
    money = directions(" money", " bank", " market", " economy", " tax", " trade", " price", " debt")
    found = lm.votes("The restaurant owed the bank a lot of", ds.Subspace([food, money], layer=23))
    votes = {name: [token for token, _ in tokens] for name, tokens in found.votes}
    assert votes["subspace 1"][0] == " money"
    assert not {" money", "money", " Money"} & set(votes["subspace 0"])
