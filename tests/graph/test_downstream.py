"""What a source goes on to do, against the graph's edges, a sweep without cuts, and the model itself."""

from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.live import hook_of
from depass_sae.models.place import Place
from depass_sae.passes.intervene import intervene

from ..attribution.tiny import TEXT, VOCAB, handle, random_sae
from ..test_documents import InFloat64
from .test_cuts import CLOSE, IDS, grown, loaded, made

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing


def of(lm: ds.LM, source: str, ids: Any = IDS, **how: Any) -> ds.graph.downstream.Downstream:
    with InFloat64():
        return lm.downstream(list(ids), source, **how)


@pytest.mark.parametrize(("shape", "seed"), [("llama", 0), ("gemma2", 3), ("gpt2", 4), ("gpt_neox", 5), ("gemma2", 5)])
def test_direct_is_the_graphs_edges_and_no_others(shape: str, seed: int) -> None:
    lm = loaded(shape, made(shape, seed)[0])
    g = grown(lm)
    features = [name for name, kind in g.nodes(data="kind") if kind == "feature" and g.out_degree(name)]
    compared = 0
    for name in [*features[:: max(1, len(features) // 8)], "token:0", "token:2"]:
        node = g.nodes[name]
        found = of(lm, name if node["kind"] == "token" else f"{hook_of(g, node)}/{node['index']}@{node['pos']}")
        direct = {(one.layer, one.hook, one.index, one.pos): one.direct for one in found.features}
        size = max((abs(value) for value in direct.values()), default=1.0)
        for _, target, edge in g.out_edges(name, data=True):
            to = g.nodes[target]
            if to["kind"] == "feature":
                key = (*hook_of(g, to), to["index"], to["pos"])
                assert direct[key] == pytest.approx(edge["weight"], abs=CLOSE * size)
                compared += 1
        reached = {target for _, target in g.out_edges(name)}
        for (layer, own, index, pos), value in direct.items():
            several = sum(s["layer"] == layer for s in g.graph["saes"]) > 1
            target = f"feature:{layer}{f'.{own}' if several else ''}/{index}@{pos}"
            if target in g and "pre_activation" in g.nodes[target] and target not in reached:
                assert abs(value) < CLOSE * size
    assert compared > 10


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return handle([random_sae(hook=f"{layer}.resid_post", seed=layer) for layer in (0, 1, 2)])


def source_and_total(lm: ds.LM, source: str) -> tuple[ds.graph.downstream.Downstream, dict[Any, float]]:
    found = lm.downstream(TEXT, source)
    return found, {(one.layer, one.index, one.pos): one.total for one in found.features}


def test_total_is_what_each_later_target_gets_from_the_source_by_any_way(lm: ds.LM) -> None:
    found, total = source_and_total(lm, "token:4")
    assert len(total) > 30
    for (layer, index, pos), value in list(total.items())[:: len(total) // 12]:
        answer = lm.attribute_tokens(TEXT, f"{layer}/{index}@{pos}")
        assert value == pytest.approx(answer.contributions[4].item(), abs=1e-4 * abs(answer.pre_activation) + 1e-5)
    for one in found.logits[:3]:
        answer = lm.attribute_tokens(TEXT, logit=one.index)
        assert one.total == pytest.approx(answer.contributions[4].item(), abs=1e-4)
        assert one.pre_activation == pytest.approx(answer.pre_activation, rel=1e-4)


def test_heads_and_neurons_go_on_as_their_contributions_say(lm: ds.LM) -> None:
    for source, ask, layer, unit in (
        ("head:1.0", lm.attribute_heads, 1, 0),
        ("neuron:0/7", lm.attribute_neurons, 0, 7),
    ):
        _, total = source_and_total(lm, source)
        (_, index, pos), value = max(
            ((key, value) for key, value in total.items() if key[0] == 2), key=lambda item: abs(item[1])
        )
        row = next(row for row in ask(TEXT, f"2/{index}@{pos}").target.rows if row.layer == layer)
        assert value == pytest.approx(row.values[unit].item(), rel=1e-3)
        alone = sum(source_and_total(lm, f"{source}@{at}")[1].get((2, index, pos), 0.0) for at in range(pos + 1))
        assert value == pytest.approx(alone, rel=1e-3)


def test_an_experts_neuron_goes_on_as_its_contribution_says_by_its_name() -> None:
    lm = handle([random_sae("jumprelu", f"{layer}.resid_post", seed=layer) for layer in (1, 2)], "qwen3_moe")
    at = lm.features(TEXT, 2).layers[0].positions[-2]
    key = (2, at.indices[0], at.pos)
    row = next(row for row in lm.attribute_neurons(TEXT, f"2/{key[1]}@{key[2]}").target.rows if row.layer == 0)
    for unit in row.values.abs().topk(3).indices.tolist():
        _, total = source_and_total(lm, f"neuron:0/{row.name(unit)}")
        assert total[key] == pytest.approx(row.values[unit].item(), rel=1e-3)


def test_effects_are_what_the_model_itself_does_with_a_little_less_of_it() -> None:
    with InFloat64():
        shape = "gemma2"
        lm = loaded(shape, made(shape, 3)[0])
    subject = lm._subject
    found = of(lm, "token:2")
    ids, little = torch.tensor(IDS)[None], 1e-5
    part = subject.trace(lm.encode(list(IDS)), None).streams[0][2]

    def changed(times: float) -> torch.Tensor:
        def edit(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, 2] += times * part
            return x

        last = Place(subject.adapter.n_layers - 1, "resid_post")
        with InFloat64():
            read = intervene(subject.adapter, ids, {Place(0, "resid_pre"): edit}, {None, last})
        return read[None][0]

    slope = (changed(little) - changed(-little)) / (2 * little)
    for one in found.logits:
        assert one.effect == pytest.approx(slope[one.index].item(), rel=1e-5, abs=1e-7)


def test_the_vocabularys_extremes_are_those_of_the_totals(lm: ds.LM) -> None:
    found = lm.downstream(TEXT, "token:4")
    answers = lm.attribute_tokens_each(TEXT, [f"logit:{token}" for token in range(VOCAB)])
    totals = torch.tensor([answer.contributions[4].item() for answer in answers])
    totals -= totals.mean()
    order = totals.argsort(descending=True)
    for some, tokens in ((found.raised, order), (found.lowered, order.flip(0))):
        expected = totals[tokens[: len(some)]].tolist()
        assert [total for *_, total in some] == pytest.approx(expected, abs=1e-4)
        assert [totals[token].item() for _, token, _ in some] == pytest.approx(expected, abs=1e-4)


def test_the_answer_is_ranked_as_asked_and_is_a_plain_object(lm: ds.LM) -> None:
    for sort in ("total", "direct", "effect"):
        found = lm.downstream(TEXT, "token:4", sort=sort)
        sizes = [abs(getattr(one, sort)) for one in found.ordered()]
        assert sizes == sorted(sizes, reverse=True)
    document = found.to_dict()
    assert document["source"]["kind"] == "token"
    assert len(found.to_frame()) == len(document["features"]) + len(document["logits"])
    assert "drives" in str(found.table(3))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("token:99", "positions 0 to"), ("head:9.0", "layers 0 to"), ("head:0.77", "heads 0 to"),
        ("neuron:0/99999", "neurons 0 to"), ("1/99999@3", "features"), ("nonsense", "write a feature"),
        ("1/3@0", "does not fire"), ("logit:3", "write a feature"), ("token:3@4", "write a feature"),
    ],
)  # fmt: skip
def test_a_source_that_there_is_not_is_told_in_a_line(lm: ds.LM, source: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        lm.downstream(TEXT, source)


def test_rules_that_carry_parts_forward_are_refused(lm: ds.LM) -> None:
    with pytest.raises(UserError, match="takes the rules"):
        lm.downstream(TEXT, "token:3", rule="softmax")
