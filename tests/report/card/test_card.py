"""Feature cards: every number is what the attributions, sae-lens and the weights say, and every split adds up."""

import copy
import json
import re
from collections import defaultdict
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.neighbours import ByFeature, inflow_from, next_hook, outflow_to, previous_hook
from depass_sae.models.prompt import encode
from depass_sae.passes.settings import Settings
from depass_sae.report.card.card import FeatureCard
from depass_sae.saes import Hook

from ...attribution.tiny import (
    BOS,
    D_SAE,
    HOSTILE,
    SINK,
    TEXT,
    activation,
    fitting_sae,
    handle,
    model,
    pre_activations,
    random_sae,
    sinking,
    tokenizer,
    width,
)
from ...passes.models import D_MODEL

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing
PROMPTS = [TEXT, "the price of supply", "Mary gave John an apple."]
STREAM = ("0.resid_post", "1.resid_mid", "2.resid_post")


@cache
def lm_with(kind: str = "jumprelu", shape: str = "llama", hooks: Any = STREAM, **options: Any) -> ds.LM:
    return handle([random_sae(kind, hook, seed=seed, **options) for seed, hook in enumerate(hooks)], shape)


@cache
def a_card(kind: str = "jumprelu", shape: str = "llama", **options: Any) -> FeatureCard:
    return lm_with(kind, shape).card("1/3", PROMPTS, **options)


def firing_feature(lm: ds.LM, layer: int, hook: Hook | None = None) -> str:
    """One that fires on the text, the most often of all."""
    report = lm.features(TEXT, layer)
    found = next(entry for entry in report.layers if hook in (None, entry.hook))
    counts: dict[int, int] = defaultdict(int)
    for at in found.positions:
        for index in at.indices:
            counts[index] += 1
    return f"{found.name}/{max(counts, key=lambda index: (counts[index], -index))}"


# ----------------------------------------------------------------------------------------------------- where it fires


def test_activations_are_sae_lens_own_at_every_position_but_bos() -> None:
    lm = lm_with()
    card = lm.card("1/3", PROMPTS)
    for text, found in zip(PROMPTS, card.prompts, strict=True):
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        assert ids[0, 0] == BOS
        x = activation(model(), ids, "1.resid_mid")[0]
        assert found.activations[0] is None
        assert found.pre_activations[0] is None
        torch.testing.assert_close(torch.tensor(found.activations[1:]), lm.saes[1].encode(x)[1:, 3])
        torch.testing.assert_close(torch.tensor(found.pre_activations[1:]), pre_activations(lm.saes[1], x)[1:, 3])


def test_firings_come_strongest_first_and_density_leaves_bos_out() -> None:
    card = a_card()
    sizes = [firing.activation for firing in card.firings]
    assert sizes == sorted(sizes, reverse=True)
    values = [value for prompt in card.prompts for value in prompt.activations[1:]]
    assert card.n_positions == len(values)
    assert sorted(sizes) == sorted(value for value in values if value)
    assert card.density == len(sizes) / len(values)


def test_attention_sinks_are_left_out_and_said_and_their_words_stay_in_the_text() -> None:
    lm = ds.load(sinking(), tokenizer(adds_bos=False), saes=[random_sae(hook=hook) for hook in STREAM])
    ids = [SINK, 90, 70, 60, SINK, 75]
    index = next(i for i in lm.features(ids, 1).layers[0].positions[0].indices)
    for prompts in (ids, [ids[1:4], ids]):
        card = lm.card(f"1/{index}", prompts)
        shown = card.prompts[-1]
        assert [pos for pos, value in enumerate(shown.activations) if value is None] == [0, 4]
        assert shown.sinks == (0, 4)
        assert not {0, 4} & {firing.pos for firing in card.firings if len(card.prompts) == 1}
        assert "and 1 more left out as attention sinks; tokens --pos 0 asks for it" in card.note
        assert card.note.startswith("position 0 ('o')" + (" of text 2" if len(card.prompts) > 1 else ""))
        assert card.to_dict()["prompts"][-1]["sinks"] == [0, 4]
        text = re.sub(r"<[^>]+>|\s", "", card.to_html())
        assert re.sub(r"\s", "", shown.prompt.text) in text
    assert "sinks" not in lm.card(f"1/{index}", ids[1:4]).to_dict()["prompts"][0]


@pytest.mark.parametrize("form", ["batch", "messages", "one"])
def test_a_card_takes_prompts_in_every_form(form: str) -> None:
    chat = [{"role": "user", "content": TEXT}]
    lm = lm_with()
    if form == "messages":
        talking = copy.deepcopy(tokenizer())
        talking.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
        lm = ds.load(model(), talking, saes=random_sae(hook="1.resid_mid", seed=1))
    given = {"batch": lm.tokenizer(PROMPTS, padding=False), "messages": chat, "one": lm.tokenizer(TEXT)}[form]
    expected = PROMPTS if form == "batch" else [TEXT]
    found = [list(prompt.prompt.token_ids) for prompt in lm.card("1/3", given).prompts]
    assert found == [tokenizer()(text)["input_ids"] for text in expected]


def test_firings_of_either_sign_are_sorted_by_size() -> None:
    lm = handle(random_sae("abstopk"))
    card = lm.card(firing_feature(lm, 1), PROMPTS)
    sizes = [abs(firing.activation) for firing in card.firings]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("prompts", [TEXT, [TEXT], (TEXT,)])
def test_one_prompt_needs_no_list(prompts: Any) -> None:
    assert lm_with().card("1/3", prompts).to_dict() == lm_with().card("1/3", [TEXT]).to_dict()


def test_prompts_may_be_ids_one_or_several() -> None:
    lm = lm_with()
    one = lm.card("1/3", [5, 6, 7])
    assert [prompt.prompt.token_ids for prompt in one.prompts] == [(5, 6, 7)]
    several = lm.card("1/3", [[5, 6, 7], torch.tensor([8, 9]), "the price"])
    assert [prompt.prompt.token_ids for prompt in several.prompts[:2]] == [(5, 6, 7), (8, 9)]


# ------------------------------------------------------------------------------------------------------ what drives it


@pytest.mark.parametrize("rule", ["half", "linear", "softmax"])
def test_each_firing_is_split_as_attribute_tokens_does(rule: str) -> None:
    lm = lm_with()
    card = lm.card("1/3", PROMPTS, rule=rule, strongest=4)
    assert len(card.drives) == 4
    for drive, firing in zip(card.drives, card.firings, strict=False):
        found = lm.attribute_tokens(PROMPTS[firing.prompt], f"1/3@{firing.pos}", rule=rule)
        values = found.contributions.tolist()
        assert drive.firing == firing
        assert drive.own == pytest.approx(values[firing.pos], abs=1e-5)
        assert [value for _, _, value in drive.tokens] == pytest.approx(values[1 : firing.pos], abs=1e-5)
        assert drive.earlier == pytest.approx(sum(values[1 : firing.pos]), abs=1e-5)
        assert drive.first == pytest.approx(values[0], abs=1e-5)
        assert drive.other == pytest.approx(sum(found.other.values()), abs=1e-5)
        assert drive.constant == found.constant
        assert drive.completeness_error < 1e-5


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "abstopk", "gated"])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_every_split_sums_to_the_pre_activation(kind: str, shape: str) -> None:
    lm = lm_with(kind, shape)
    document = lm.card(firing_feature(lm, 1), PROMPTS).to_dict()
    sources = document["sources"]
    assert sources["firings"]
    parts = ("own", "earlier", "first", "other", "constant")
    for entry in [*sources["firings"], sources["sums"]]:
        size = max(abs(entry[part]) for part in parts)
        assert sum(entry[part] for part in parts) == pytest.approx(entry["pre_activation"], abs=2e-5 * size)
    total = sum(token["total"] for token in sources["tokens"])
    assert total == pytest.approx(sources["sums"]["own"] + sources["sums"]["earlier"], rel=1e-9, abs=1e-9)
    assert all(entry["completeness_error"] < 2e-5 for entry in sources["firings"])


def test_a_firing_at_position_0_counts_as_its_own_token() -> None:
    lm = handle(random_sae("standard"), adds_bos=False)
    prompt = [20, 30, 40, 50]
    index = next(i for i in range(D_SAE) if lm.card(f"1/{i}", prompt, top=1).prompts[0].activations[0])
    card = lm.card(f"1/{index}", prompt)
    drive = next(drive for drive in card.drives if drive.firing.pos == 0)
    assert (drive.first, drive.tokens) == (0.0, ())
    assert drive.own + drive.other + drive.constant == pytest.approx(drive.firing.pre_activation, rel=1e-4)


# -------------------------------------------------------------------------------------------------- what it writes


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_logits_are_the_decoder_row_through_gain_and_unembedding(shape: str) -> None:
    lm = lm_with(shape=shape)
    found = model(shape)
    direction = lm.saes[1].W_dec[3]
    if shape == "gpt2":
        direction, gain = direction - direction.mean(), found.transformer.ln_f.weight
    else:
        gain = found.model.norm.weight
    logits = found.lm_head.weight @ (direction * gain)
    logits = (logits - logits.mean()).detach()
    votes = lm.card("1/3", TEXT, top=5).votes
    assert votes is not None
    torch.testing.assert_close(torch.tensor([vote.logit for vote in votes.top]), logits.sort().values.flip(0)[:5])
    torch.testing.assert_close(torch.tensor([vote.logit for vote in votes.bottom]), logits.sort().values[:5])
    torch.testing.assert_close(logits[[vote.id for vote in votes.top]], logits.topk(5).values)


def test_a_head_space_decoder_goes_through_w_o_and_an_mlp_input_nowhere() -> None:
    lm = handle(random_sae("jumprelu", "1.hook_z", d_in=width("llama", "1.hook_z")))
    direction = lm.saes[1].W_dec[3] @ model().model.layers[1].self_attn.o_proj.weight.T
    logits = model().lm_head.weight @ (direction * model().model.norm.weight)
    votes = lm.card("1/3", TEXT, top=1).votes
    assert votes is not None
    assert votes.top[0].logit == pytest.approx((logits.max() - logits.mean()).item(), rel=1e-4)
    document = handle(random_sae("jumprelu", "1.mlp_in")).card("1/3", TEXT).to_dict()
    assert document["logits"] is None


def test_the_nearest_features_are_those_of_largest_cosine() -> None:
    lm = lm_with()
    rows = torch.nn.functional.normalize(lm.saes[1].W_dec, dim=1)
    cosines = rows @ rows[3]
    cosines[3] = -2
    found = lm.card("1/3", TEXT, top=7).nearest
    assert [entry.index for entry in found] == cosines.topk(7).indices.tolist()
    torch.testing.assert_close(torch.tensor([entry.cosine for entry in found]), cosines.topk(7).values)


# ------------------------------------------------------------------------------------------------------------- by flow


@pytest.mark.parametrize("normalised", ["none", "layer_norm"])
def test_the_previous_layers_features_contribute_what_a_graphs_edges_say(normalised: str) -> None:
    lm = lm_with("standard", normalize_activations=normalised)
    feature = firing_feature(lm, 1)
    card = lm.card(feature, TEXT, top=D_SAE, strongest=1)
    g = lm.graph(TEXT, f"{feature}@{card.firings[0].pos}", max_nodes=10_000, edge_threshold=None)
    target = g.graph["target"][0]["node"]
    edges: dict[int, float] = defaultdict(float)
    effects: dict[int, float] = defaultdict(float)
    for source, _, edge in g.in_edges(target, data=True):
        if g.nodes[source]["kind"] == "feature":
            edges[g.nodes[source]["index"]] += edge["weight"]
            effects[g.nodes[source]["index"]] += edge["effect"]
    assert card.previous is not None
    assert card.previous.hook == Hook(0, "resid_post")
    largest = max(map(abs, edges.values()))
    assert {f.index for f in card.previous.features} == edges.keys()
    for found in card.previous.features:
        assert found.contribution == pytest.approx(edges[found.index], abs=1e-5 * largest)
        assert found.effect == pytest.approx(effects[found.index], abs=1e-5 * largest)
        assert found.effect != pytest.approx(found.contribution, abs=1e-5 * largest)


def test_what_comes_from_the_previous_layer_is_summed_over_prompts() -> None:
    lm = lm_with("standard")
    feature = firing_feature(lm, 1)
    both = lm.card(feature, [TEXT, TEXT[:40]], top=D_SAE, strongest=99).previous
    alone = [lm.card(feature, text, top=D_SAE, strongest=99).previous for text in (TEXT, TEXT[:40])]
    assert both is not None
    for key in ("contribution", "effect"):
        sums: dict[int, float] = defaultdict(float)
        for flow in alone:
            assert flow is not None
            for found in flow.features:
                sums[found.index] += getattr(found, key)
        size = max(map(abs, sums.values()))
        assert {f.index: getattr(f, key) for f in both.features} == pytest.approx(sums, abs=1e-5 * size)


@pytest.mark.parametrize("hook", ["1.resid_mid", "1.attn_out", "1.mlp_out", "1.mlp_in", "1.hook_z"])
def test_what_comes_from_the_previous_layer_sums_to_the_pre_activations(hook: str) -> None:
    saes = [random_sae("jumprelu", "0.resid_post"), random_sae("jumprelu", hook, d_in=width("llama", hook), seed=1)]
    lm = handle(saes)
    card = lm.card(firing_feature(lm, 1), PROMPTS)
    flow, sums = card.previous, card.to_dict()["sources"]["sums"]
    assert flow is not None
    assert flow.errors is not None
    assert flow.other is not None
    size = max(map(abs, (flow.total, flow.errors, flow.other)))
    assert flow.total + flow.errors + flow.other == pytest.approx(sums["pre_activation"], abs=3e-5 * size)


@pytest.mark.parametrize("rule", ["half", "linear"])
def test_forward_to_the_next_layer_is_backward_from_it(rule: str) -> None:
    lm = lm_with("standard")
    subject = lm._subject
    prompt = encode(subject.loaded, subject.adapter, TEXT)
    here, there = Hook(1, "resid_mid"), Hook(2, "resid_post")
    seen = subject.trace(prompt, None)
    index = int(firing_feature(lm, 1).partition("/")[2])
    positions = [firing.pos for firing in lm.card(f"1/{index}", TEXT).firings]
    forward = outflow_to(subject, seen, prompt, here, index, positions, there, Settings.of(rule))
    assert list(forward) == list(range(min(positions), len(prompt)))
    size = max(found.value.abs().max().item() for found in forward.values())
    for pos, found in forward.items():
        feature, value = found.index[0].item(), found.value[0]
        backward = inflow_from(subject, seen, prompt, here, there, feature, [pos], Settings.of(rule)).features
        expected = backward.sums(D_SAE)[index]
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5 * size)


def test_what_goes_to_the_next_layer_is_summed_over_where_its_features_fire() -> None:
    lm = lm_with("standard")
    subject, feature = lm._subject, firing_feature(lm_with("standard"), 1)
    card = lm.card(feature, PROMPTS, strongest=3, top=D_SAE)
    index, rows = card.index, []
    for number in {firing.prompt for firing in card.firings[:3]}:
        prompt = encode(subject.loaded, subject.adapter, PROMPTS[number])
        positions = [firing.pos for firing in card.firings[:3] if firing.prompt == number]
        seen = subject.trace(prompt, None)
        found = outflow_to(subject, seen, prompt, card.hook, index, positions, Hook(2, "resid_post"), Settings())
        rows += found.values()
    table = ByFeature.joined(rows)
    assert card.following is not None
    assert card.following.total == pytest.approx(table.value.sum().item(), rel=1e-5)
    for entry in card.following.features:
        values = table.value[table.index == entry.index]
        assert entry.contribution == pytest.approx(values.sum().item(), rel=1e-5, abs=1e-6)
        assert entry.count == len(values)


def test_what_it_drives_is_what_each_of_its_strongest_firings_goes_on_to_do_summed() -> None:
    lm = lm_with(hooks=("0.resid_post", "1.resid_mid", "1.attn_out", "2.resid_post"))
    name = firing_feature(lm, 0)
    card = lm.card(name, PROMPTS, downstream=True, top=1000, strongest=5)
    assert len({firing.prompt for firing in card.firings[:5]}) > 1
    assert len({firing.prompt for firing in card.firings[:5]}) < 5  # several of one prompt
    sums: dict[tuple[int, str, int], list[float]] = defaultdict(lambda: [0.0] * 3)
    for firing in card.firings[:5]:
        for one in lm.downstream(PROMPTS[firing.prompt], f"{name}@{firing.pos}").features:
            own = sums[one.layer, one.hook, one.index]
            for i, number in enumerate((one.direct, one.total, one.effect)):
                own[i] += number
    found = {(one.hook.layer, one.hook.hook, one.index): one for one in card.downstream}
    assert found.keys() == sums.keys()
    assert len({at[:2] for at in found}) == 3
    size = max(abs(total) for _, total, _ in sums.values())
    for at, numbers in sums.items():
        one = found[at]
        assert [one.direct, one.total, one.effect] == pytest.approx(numbers, abs=1e-5 * size)
    totals = [abs(one.total) for one in card.downstream]
    assert totals == sorted(totals, reverse=True)
    assert "What it goes on to do" in card.to_html()
    assert "downstream" not in lm.card(name, PROMPTS).to_dict()


def test_a_feature_that_fires_nowhere_drives_nothing() -> None:
    lm = lm_with()
    silent = next(i for i in range(D_SAE) if not lm.card(f"0/{i}", PROMPTS[1]).firings)
    assert lm.card(f"0/{silent}", PROMPTS[1], downstream=True).downstream == ()


def test_what_stands_before_a_norm_is_written_through_it() -> None:
    """Gemma 2 norms what its attention adds: a feature of the heads writes as much as that leaves of it."""
    hook, seen = Hook(1, "hook_z"), {}
    saes = [random_sae("standard", "1.hook_z", d_in=width("gemma2", "hook_z")), random_sae("standard", "1.resid_mid")]
    lm = handle(saes, "gemma2")
    card = lm.card(firing_feature(lm, 1, hook), TEXT, strongest=1, top=D_SAE)
    block = lm.model.model.layers[1]
    norm = block.post_attention_layernorm
    watching = norm.register_forward_pre_hook(lambda _m, args: seen.setdefault("raw", args[0][0]))
    with torch.no_grad():
        lm.model(torch.tensor([lm.encode(TEXT).token_ids]), use_cache=False)
    watching.remove()
    firing = card.firings[0]
    row = lm.saes["1.hook_z"].W_dec[card.index] * firing.activation @ block.self_attn.o_proj.weight.T
    scale = (seen["raw"][firing.pos].pow(2).mean() + norm.eps).rsqrt()
    direct = lm.saes["1.resid_mid"].W_enc.T @ (row * scale * (1 + norm.weight))
    assert card.following is not None
    assert card.following.features
    for found in card.following.features:
        assert found.contribution == pytest.approx(direct[found.index].item(), rel=1e-3, abs=1e-4)


def test_what_a_module_writes_is_read_at_once_by_an_sae_behind_it() -> None:
    lm = handle([random_sae("standard", "1.mlp_out"), random_sae("standard", "1.resid_post", seed=1)])
    own, behind = lm.saes["1.mlp_out"], lm.saes["1.resid_post"]
    feature = firing_feature(lm, 1, Hook(1, "mlp_out"))
    card = lm.card(feature, TEXT, strongest=1, top=D_SAE)
    assert card.following is not None
    assert card.following.hook == Hook(1, "resid_post")
    row = own.W_dec[card.index] * card.firings[0].activation
    direct = behind.W_enc.T @ row
    assert card.following.features
    for found in card.following.features:
        assert found.count == 1  # no layer lies in between that could carry it elsewhere
        assert found.contribution == pytest.approx(direct[found.index].item(), rel=1e-3, abs=1e-4)


def test_a_transcoder_has_neighbours_by_flow_too() -> None:
    saes = [random_sae("standard", "0.resid_post"), random_sae("standard", "2.resid_post", seed=2)]
    lm = handle([*saes, random_sae("transcoder", "1.mlp_in", seed=1, d_in=D_MODEL)])
    card = lm.card(firing_feature(lm, 1), PROMPTS)
    assert card.previous is not None
    assert card.following is not None
    assert card.following.features


def test_neighbouring_layers_are_the_nearest_saes_on_the_stream() -> None:
    hooks = ("0.resid_post", "1.attn_out", "1.resid_mid", "2.resid_post")
    subject = lm_with("standard", hooks=hooks)._subject

    def around(hook: str) -> tuple[str | None, str | None]:
        here = next(h for h in subject.saes if str(h) == hook)
        before, behind = previous_hook(subject, here), next_hook(subject, here)
        return (before and str(before), behind and str(behind))

    assert around("0.resid_post") == (None, "1.resid_mid")
    assert around("1.attn_out") == ("0.resid_post", "1.resid_mid")
    assert around("1.resid_mid") == ("0.resid_post", "2.resid_post")
    assert around("2.resid_post") == ("1.resid_mid", None)


# ---------------------------------------------------------------------------------------------------------- the whole


def test_a_feature_that_fires_nowhere_has_a_card_that_says_so() -> None:
    card = handle(fitting_sae()).card("1/100", TEXT)
    document = card.to_dict()
    assert card.note == "feature 1/100 does not fire on this prompt, so nothing is known here of what drives it"
    assert document["density"] == 0
    assert document["sources"]["firings"] == document["sources"]["tokens"] == []
    assert document["flow"]["previous"] is document["flow"]["next"] is None
    assert document["nearest"]
    assert document["logits"]
    assert "does not fire on this prompt" in card.to_html()
    assert "does not fire on this prompt" in repr(card)


def test_the_document_is_json_and_the_same_twice() -> None:
    first, second = (lm_with().card("1/3", PROMPTS) for _ in range(2))
    text = json.dumps(first.to_dict(), allow_nan=False)
    assert text == json.dumps(second.to_dict(), allow_nan=False)
    assert next(iter(json.loads(text))) == "schema_version"
    assert first.to_html() == second.to_html()


def test_without_other_saes_there_are_no_neighbours_by_flow() -> None:
    card = handle(random_sae()).card("1/3", TEXT)
    assert (card.previous, card.following) == (None, None)
    assert "No SAE on the residual stream is loaded before it." in card.to_html()


def test_labels_and_links_stand_by_their_features() -> None:
    sae = random_sae(metadata={"neuronpedia_id": "tiny/1-res"})
    card = handle(sae).card("1/3", TEXT, top=2)
    near = card.nearest[0].index
    assert card.link == "https://www.neuronpedia.org/tiny/1-res/3"
    assert card.pages["1/3"] == ("tiny/1-res", 3)
    assert card.pages[f"1/{near}"] == ("tiny/1-res", near)
    document = card.with_labels({"1/3": "fruit", f"1/{near}": "apples"}).to_dict()
    assert document["label"] == "fruit"
    assert document["nearest"][0]["label"] == "apples"
    assert document["nearest"][0]["link"] == f"https://www.neuronpedia.org/tiny/1-res/{near}"
    assert document["nearest"][1]["label"] is None


def test_where_saes_share_a_layer_a_plain_label_is_the_streams() -> None:
    lm = handle([random_sae("standard", "1.resid_mid"), random_sae("standard", "1.mlp_out", seed=1)])
    labels = {"1/3": "plain", "1.mlp_out/4": "own"}
    assert lm.card("1.resid_mid/3", TEXT).with_labels(labels).label == "plain"
    assert lm.card("1.mlp_out/3", TEXT).with_labels(labels).label is None
    assert lm.card("1.mlp_out/4", TEXT).with_labels(labels).label == "own"


def test_a_frame_has_a_row_per_position() -> None:
    card = a_card()
    frame = card.to_frame()
    assert len(frame) == sum(len(prompt.prompt) for prompt in card.prompts)
    assert frame["activation"].dropna().tolist() == [
        value for prompt in card.prompts for value in prompt.activations if value is not None
    ]


@pytest.mark.parametrize(
    ("feature", "prompts", "why"),
    [
        ("1/3@2", TEXT, "this is about the feature wherever it fires, not at a position; write 1/3"),
        ("1/999", TEXT, "there is no feature 999"),
        ("7/3", TEXT, "there is no SAE at 7"),
        ("nonsense", TEXT, "is no feature"),
        ("1/3", [], "a card needs a prompt"),
        ("1/3", ["fine", ""], "prompt 2: the prompt is empty"),
        ("1/3", ["fine", "the " * 100], "prompt 2: the prompt has"),
    ],
)
def test_a_mistake_is_told_in_one_line(feature: str, prompts: Any, why: str) -> None:
    with pytest.raises(UserError) as error:
        lm_with().card(feature, prompts)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """What a page consists of, and whether every element that opens is closed."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.data: dict[str, str] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "data" and "data-at" in dict(attrs):
            self.data[dict(attrs)["data-at"] or ""] = dict(attrs)["value"] or ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title", "script"):
            self.text += data


def pointed(document: Any, pointer: str) -> Any:
    for key in pointer.split("/")[1:]:
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def test_every_number_of_the_page_is_the_documents() -> None:
    card = lm_with().card(firing_feature(lm_with(), 1), PROMPTS)
    page = Page(card.to_html())
    assert len(page.data) > 100
    document = card.to_dict()
    for pointer, value in page.data.items():
        assert float(value) == pointed(document, pointer), pointer


def test_the_page_needs_nothing_from_outside() -> None:
    page = Page(a_card().to_html())
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "iframe", "object", "embed", "form"}
    (policy,) = (a["content"] for tag, a in page.elements if tag == "meta" and "Content-Security-Policy" in a.values())
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not any("style" in attributes for _, attributes in page.elements)  # the policy would not let it through
    links = [a["href"] for tag, a in page.elements if tag in ("a", "link") and a.get("href") != "data:,"]
    assert links == ["#main"]


@pytest.mark.parametrize("where", ["to_html", "_repr_html_"])
def test_hostile_tokens_and_labels_are_text_and_nothing_else(where: str) -> None:
    lm = handle(random_sae("standard"))
    prompt = "the price " + "".join(HOSTILE)
    hostile = "</style><script>alert(1)</script>\x1b[31m\u202e"
    cards = [lm.card(f"1/{index}", prompt) for index in range(3)]
    for card in cards:
        labels = {f"1/{index}": hostile for index in range(D_SAE)}
        page = Page(getattr(card.with_labels(labels), where)())
        assert [tag for tag, _ in page.elements].count("script") == (where == "to_html")  # the page's own
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page.text)
    assert any("<script>alert(1)</script>" in Page(card.to_html()).text for card in cards)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", str(cards[0].with_labels({"1/0": hostile}).table()))


def test_firing_tokens_are_marked_and_titled_with_their_activation() -> None:
    card = lm_with().card(firing_feature(lm_with(), 1), TEXT)
    page = Page(card.to_html())
    shaded = [a for _, a in page.elements if re.match("token .*pos s[1-9]", a.get("class") or "")]
    assert len(shaded) == len(card.firings)
    strongest = card.firings[0]
    title = f"({strongest.pos}): {strongest.activation:.3f} activation"
    assert any((a["title"] or "").endswith(title) and "s20" in (a["class"] or "") for a in shaded)


@pytest.mark.smollm2
def test_on_smollm2_climate_is_what_drives_the_climate_feature() -> None:
    from depass_sae.demo.cases import CASES

    try:
        lm = ds.load("smollm2")
    except UserError as error:
        pytest.skip(str(error))
    case = CASES[0]
    card = lm.card(case.feature, [other.prompt for other in CASES])
    assert {firing.prompt for firing in card.drives and card.firings} == {0}
    assert card.source_tokens[0].token == " climate"
    assert card.previous is not None
    assert card.following is not None
    assert (card.previous.hook.layer, card.following.hook.layer) == (11, 23)
