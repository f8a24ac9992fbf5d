"""Answers by the rule half-qk: they add up with ``pattern``, say how much that is, and no other rule knows of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.models.place import Place
from depass_sae.view.words import percent

from ..graph.oracle import Layer, Run, linear, llama, rotate
from ..passes.models import CONFIGS, build
from ..test_documents import InFloat64
from .test_notes import ANSWERS
from .tiny import D_MODEL, TEXT, handle, random_sae

FEATURE = "2/3"
IDS = (3, 9, 7, 21, 14, 9, 2)
SAID = "belongs to no source"
SETTINGS: list[dict[str, Any]] = [{}, {"qk_slope": "mean"}, {"qk_share": 1.0}]
by = pytest.mark.parametrize("how", SETTINGS, ids=["local", "mean", "share 1"])
SUBSPACE = ds.Subspace(torch.linspace(-1, 1, 2 * D_MODEL).view(2, D_MODEL), 0)


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return handle([random_sae(hook=f"{layer}.resid_post", seed=layer) for layer in (1, 2)])


def parts(lm: ds.LM, **how: Any) -> tuple[torch.Tensor, ds.LM]:
    """Each component along the feature's direction at the position that an answer is about."""
    answer = lm.attribute_tokens(TEXT, FEATURE, rule="half-qk", **how)
    carried = lm.decompose(TEXT, "tokens", layer=2, read="resid_post", rule="half-qk", **how)
    return carried.parts[answer.target.pos].double() @ lm.saes[2].W_enc[:, 3].double(), answer


@by
def test_one_sweep_says_of_tokens_and_pattern_what_the_raw_parts_say(lm: ds.LM, how: dict) -> None:
    expected, answer = parts(lm, **how)
    n = len(answer.contributions)
    found = torch.cat([answer.contributions, torch.tensor([answer.other[x] for x in ("pattern", "bias", "rest")])])
    expected = torch.cat([expected[:n], expected[-3:]])
    assert torch.allclose(found.double(), expected, atol=2e-5 * float(expected.abs().max()))
    assert abs(answer.other["pattern"]) > 1e-2
    assert answer.completeness_error < 1e-5


@pytest.mark.parametrize(("grain", "how"), [("word", {}), ("sentence", SETTINGS[1])])
def test_sources_of_several_tokens_are_the_sums_of_theirs(lm: ds.LM, how: dict, grain: Any) -> None:
    alone = lm.attribute_tokens(TEXT, FEATURE, rule="half-qk", **how)
    joined = lm.attribute_tokens(TEXT, FEATURE, rule="half-qk", by=grain, **how)
    sums = [
        sum(alone.contributions[p].item() for p in s.positions if p <= alone.target.pos) for s in joined.target.sources
    ]
    assert torch.allclose(joined.contributions, torch.tensor(sums, dtype=torch.float64), atol=1e-4)
    assert joined.other["pattern"] == pytest.approx(alone.other["pattern"], abs=1e-4)


@by
def test_growth_by_depth_ends_in_the_answer(lm: ds.LM, how: dict) -> None:
    answer = lm.attribute_tokens(TEXT, FEATURE, rule="half-qk", by_depth=True, **how)
    first, *_, last = answer.target.by_depth or ()
    assert first.other["pattern"] == 0
    assert last.other == pytest.approx(answer.other, abs=1e-4)
    assert torch.allclose(last.values, answer.contributions, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "how"),
    [("llama", SETTINGS[1]), ("gpt2", SETTINGS[2]), *((s, {}) for s in ("gpt_neox", "gpt_oss", "qwen3_5_text"))],
)
def test_every_row_of_parts_sums_with_pattern_and_heads_by_token_to_their_heads(shape: str, how: dict) -> None:
    lm = handle([random_sae(hook="2.resid_post")], shape=shape, adds_bos=False)
    answers = [ask(TEXT, FEATURE, rule="half-qk", **how) for ask in (lm.attribute_modules, lm.attribute_neurons)]
    heads = lm.attribute_heads(TEXT, FEATURE, rule="half-qk", by_token=True, **how)
    for answer in (*answers, heads):
        assert answer.completeness_error < 2e-5
        document = answer.to_dict()["targets"][0]
        for row, rest in zip(answer.target.rows, document["rest"], strict=True):
            other = {entry["name"]: entry["value"] for entry in rest["other"]}
            assert other["pattern"] == row.pattern
            total = row.values.sum().item() + rest["value"] + row.bias + row.pattern + document["constant"]
            assert total == pytest.approx(document["pre_activation"], abs=1e-3)
    for row, entry in zip(heads.target.rows, heads.to_dict()["targets"][0]["heads"], strict=False):
        assert row.by_token is not None
        assert torch.allclose(row.by_token.sum(-1), row.values, atol=1e-4)
        assert [other["name"] for other in entry["other"]] == ["bias", "rest", "pattern"]
    frame = heads.to_frame()
    whole = frame.groupby(["layer", "sublayer"])["contribution"].sum()
    assert whole.to_numpy() == pytest.approx(heads.pre_activation, abs=1e-3)
    assert (frame["kind"] == "pattern").sum() == len(heads.target.rows)


def test_the_heads_of_the_first_layer_have_their_own_pattern_and_modules_have_it_too(lm: ds.LM) -> None:
    """A source keeps what its own heads move: pattern is then that of the heads behind it."""
    heads, modules = (ask(TEXT, FEATURE, rule="half-qk") for ask in (lm.attribute_heads, lm.attribute_modules))
    tokens = lm.attribute_tokens(TEXT, FEATURE, rule="half-qk")
    first, last = heads.target.rows[0], heads.target.rows[-1]
    assert last.pattern == 0
    assert first.pattern != pytest.approx(tokens.other["pattern"], abs=1e-2)
    assert modules.target.rows[0].pattern == pytest.approx(first.pattern, abs=1e-4)


@by
def test_means_over_prompts_are_the_means_of_their_answers(lm: ds.LM, how: dict) -> None:
    texts = [TEXT, TEXT + " or"]
    found = lm.importance(texts, FEATURE, of="heads", rule="half-qk", **how)
    each = [lm.attribute_heads(text, FEATURE, rule="half-qk", **how).target for text in texts]
    assert found.completeness_error < 1e-5
    for number, row in enumerate(found.to_dict()["rest"]):
        for name, of in (("pattern", "pattern"), ("bias", "bias"), ("value", "rest")):
            mean = sum(getattr(answer.rows[number], of) for answer in each) / 2
            assert row[name] == pytest.approx(mean, abs=1e-4), name


@by
def test_subspaces_and_a_second_prompt_add_up_too(lm: ds.LM, how: dict) -> None:
    answer = lm.attribute_subspace(TEXT, FEATURE, subspace=SUBSPACE, rule="half-qk", **how)
    assert answer.completeness_error < 1e-5
    other = {entry["name"]: entry["value"] for entry in answer.to_dict()["targets"][0]["other"]}
    assert other.keys() == {"bias", "rest", "pattern"}
    assert "pattern" in str(answer.table())
    pair = lm.contrast(TEXT, TEXT + " or", FEATURE, rule="half-qk", **how)
    difference = {entry["name"]: entry["value"] for entry in pair.to_dict()["difference"]["other"]}
    assert difference["pattern"] == pair.attribution.other["pattern"] - pair.against.other["pattern"]
    assert sum(p.difference for p in pair.pairs) + sum(difference.values()) + pair.to_dict()["difference"][
        "constant"
    ] == pytest.approx(pair.difference, abs=1e-3)


def test_votes_scores_and_raw_parts_name_pattern(lm: ds.LM) -> None:
    assert [name for name, _ in lm.votes(TEXT, SUBSPACE, rule="half-qk").votes] == [
        "subspace 0",
        "pattern",
        "bias",
        "rest",
    ]
    raw = lm.decompose(TEXT, layer=1, read="resid_post", rule="half-qk")
    assert raw.labels[-3:] == ("pattern", "bias", "rest")
    assert raw.completeness_error < 1e-5
    score = lm.attribute_attention(TEXT, layer=1, head=0, query=6, key=2, rule="half-qk")
    half = lm.attribute_attention(TEXT, layer=1, head=0, query=6, key=2)
    assert "pattern" in score.rows
    assert "pattern" not in half.rows
    assert score.score == half.score
    assert score.completeness_error < 1e-4
    assert set(score.to_frame()["query_kind"]) >= {"token", "pattern"}


def test_pattern_is_there_by_this_rule_alone_and_so_are_its_settings(lm: ds.LM) -> None:
    for rule in ("half", "linear", "softmax"):
        answer = lm.attribute_tokens(TEXT, FEATURE, rule=rule, qk_share=1.0, qk_slope="mean").to_dict()
        assert [other["name"] for other in answer["targets"][0]["other"]] == ["bias", "rest"]
        assert "qk_share" not in answer
        assert answer == lm.attribute_tokens(TEXT, FEATURE, rule=rule).to_dict()
    found = lm.attribute_tokens(TEXT, FEATURE, rule="half-qk", qk_share=1.0, qk_slope="mean").to_dict()
    assert (found["qk_share"], found["qk_slope"]) == (1.0, "mean")
    assert [other["name"] for other in found["targets"][0]["other"]] == ["bias", "rest", "pattern"]


@pytest.mark.parametrize("question", [name for name in ANSWERS if name not in ("attention", "votes", "parts")])
def test_every_answer_says_what_pattern_takes(question: str) -> None:
    lm = handle([random_sae()])
    answer = ANSWERS[question](lm, "half-qk")
    assert SAID in answer.note
    assert SAID in " ".join(str(answer.table()).split()) if hasattr(answer, "table") else True
    assert SAID not in (ANSWERS[question](lm, "half").note or "")


def test_the_share_that_is_said_is_that_of_the_pre_activation(lm: ds.LM) -> None:
    answer = lm.attribute_tokens(TEXT, FEATURE, rule="half-qk")
    share = answer.other["pattern"] / answer.pre_activation
    assert f"pattern ({percent(share)} of the pre-activation)" in answer.note
    assert f"pattern ({percent(share)} of the pre-activation)" in " ".join(str(answer.table()).split())


def test_a_graph_by_this_rule_is_refused_in_a_line_and_a_card_flows_by_half(lm: ds.LM) -> None:
    with pytest.raises(UserError) as caught:
        lm.graph(TEXT, FEATURE, rule="half-qk")
    assert str(caught.value) == (
        "a graph, whose flow is what heads move as they look, takes the rules half, linear, softmax, linear-norm, max, "
        "not half-qk"
    )
    card = lm.card(FEATURE, [TEXT], rule="half-qk")
    assert (card.to_dict()["rule"], card.flow_rule) == ("half-qk", "half")
    assert SAID in card.note
    firing = card.drives[0]
    answer = lm.attribute_tokens(TEXT, FEATURE, pos=firing.firing.pos, rule="half-qk")
    assert firing.other == pytest.approx(sum(answer.other.values()), abs=1e-4)


def test_a_case_study_by_this_rule_says_why_it_has_no_graph_and_how_to_make_it_again(lm: ds.LM) -> None:
    study = lm.case_study(TEXT, FEATURE, rule="half-qk", qk_slope="mean", ablate=0, verify=0).to_dict()
    finding = study["features"][0]["findings"][0]
    assert finding["graph"] is None
    assert "not half-qk" in finding["no_graph"]
    assert "pattern" in [row["name"] for row in finding["table"]["remainder"]]
    assert all("pattern" in layer for layer in finding["layers"])
    assert study["qk_slope"] == "mean"


def test_place_is_where_a_target_is_read_inside_a_layer_too(lm: ds.LM) -> None:
    """Read at hook_z, the heads there have their own pattern in them."""
    seen = lm.decompose(TEXT, layer=2, read="hook_z", rule="half-qk")
    assert seen.place == Place(2, "hook_z")
    assert seen.completeness_error < 1e-5


class AttnLRP(Run):
    """Gradients as lxt changes them: norms and the slope of activations are constants, and a product hands half of what
    arrives to each of its factors: what heads move (pattern, value), a score (query, key), a gate.
    """

    def _attend(self, layer: Layer, normed: Tensor) -> Tensor:
        n = len(normed)
        q, k, v = (linear(normed, part, self.size).view(n, -1, layer.d_head) for part in (layer.q, layer.k, layer.v))
        share = layer.heads // layer.kv_heads
        q, k = halved(rotate(q, layer)), halved(rotate(k, layer)).repeat_interleave(share, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * layer.scale
        seen = torch.ones(n, n).tril().bool()
        pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", halved(pattern), halved(v).repeat_interleave(share, 1)).flatten(1)

    def _mlp(self, layer: Layer, normed: Tensor) -> Tensor:
        assert layer.up is not None
        g, u = (linear(normed, part, self.size) for part in (layer.gate, layer.up))
        slope = (layer.act(g) / g).detach()
        return linear(halved(slope * g) * halved(u), layer.down, self.size)


def halved(x: Tensor) -> Tensor:
    """x, of whose gradient half goes on."""
    return x / 2 + (x / 2).detach()


def test_attnlrp_gives_the_same_contributions_and_says_nothing_of_what_no_token_has() -> None:
    config = CONFIGS["llama"]()
    with InFloat64():  # rotary frequencies, too
        model = build(config, torch.float64)
        lm = ds.load(model)
        found = lm.attribute_tokens(list(IDS), logit=9, rule="half-qk")
    run = AttnLRP(llama(model), torch.tensor(IDS), [], lambda place: False, live=False)
    logits, _ = run.whole()
    (edges,) = run.edges(logits[-1:, 9])
    theirs = [edges["token", "embed", pos, -1] for pos in range(len(IDS))]
    assert found.contributions.tolist() == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    assert found.pre_activation == pytest.approx(logits[-1, 9].item())
    assert abs(sum(theirs) - logits[-1, 9].item()) > 0.1 * abs(logits[-1, 9].item())
    assert found.other["pattern"] != 0
