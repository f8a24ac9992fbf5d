"""Queries and keys that have a share in what heads move: by both engines what an oracle makes of every single score."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from depass_sae.errors import UserError
from depass_sae.models.load import adapter_for
from depass_sae.models.place import Place
from depass_sae.passes.backward import Level, sweep
from depass_sae.passes.choices import EFFECT
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.memory import Budget
from depass_sae.passes.mixers import mixing
from depass_sae.passes.mixers import sharing as sharing_module
from depass_sae.passes.mixers.attention import Attention
from depass_sae.passes.mixers.sharing import along
from depass_sae.passes.record import Trace, traces
from depass_sae.passes.rows import BIAS, PATTERN, Rows
from depass_sae.passes.rules import QK, rule_named
from depass_sae.passes.settings import Settings
from depass_sae.passes.sources import Heads, Source, Split, tokens

from .. import oracles
from ..agreement import (
    IDS,
    LAST,
    assert_carried,
    assert_split_by_token,
    assert_swept,
    both,
    carried,
    noise,
    off,
    theirs,
    vectors,
)
from ..models import D_MODEL, DELTA, EVERY, LAYERS, PARALLEL, attention_of, fresh, tiny
from ..test_frozen import own_scores

QK_RULE = rule_named("half-qk")
LOCAL, MEAN, FULL = Allocation("half-qk"), Allocation("half-qk", qk_slope="mean"), Allocation("half-qk", qk_share=1.0)
SOFTMAX = tuple(shape for shape in EVERY if shape not in DELTA)
WITHOUT_SINKS = tuple(shape for shape in SOFTMAX if shape != "gpt_oss")

every = pytest.mark.parametrize("shape", EVERY)
settings = pytest.mark.parametrize("by", [LOCAL, MEAN, FULL], ids=["local", "mean", "share 1"])


def start_of(seen: Trace, source: Source | None = None) -> Split:
    labels = [str(token) for token in seen.token_ids.tolist()]
    return (source or tokens(labels)).start(seen).under(QK_RULE)


def swept(seen: Trace, by: Allocation, target: Tensor, place: Place = LAST) -> list[Level]:
    return list(sweep(seen, {place: target}, Settings(by).choices))


def replayed(seen: Trace) -> Trace:
    """The trace of the same model without transformers' rounding: each sublayer from what the one before has left."""
    streams, records = [seen.streams[0]], []
    for number, record in enumerate(seen.records):
        own = replace(
            seen, streams=[*streams, *seen.streams[len(streams) :]], records=[*records, *seen.records[number:]]
        )
        frozen = own.sublayer(number)
        inside = frozen.inside(frozen.resid, Settings(Allocation("half")).choices)
        raw, bias = frozen.mixer.write(inside.z, record), frozen.mixer.write_bias(record, inside.z)
        raw = raw if bias is None else raw + bias
        added = raw if frozen.post is None else frozen.post(raw)
        streams.append(streams[-1] + added)
        records.append(replace(record, at={**record.at, "raw": raw}) if "raw" in record.at else record)
    return replace(seen, streams=streams, records=records)


def heads_of(seen: Trace, layer: int) -> Attention:
    return seen.sublayer(2 * layer).mixer.look()


# ------------------------------------------------------------------------------------------------- beside the oracle


@pytest.fixture
def many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean slope as exactly as the oracle has it."""
    monkeypatch.setattr(sharing_module, "POINTS", 60)


@pytest.mark.usefixtures("many_points")
@settings
@every
def test_tokens_are_carried_as_by_the_oracle(shape: str, by: Allocation) -> None:
    seen, own = both(tiny(shape, torch.float64))
    assert_carried(seen, own, start_of(seen), by)


@pytest.mark.usefixtures("many_points")
@pytest.mark.parametrize("number", range(2 * LAYERS))
@pytest.mark.parametrize("shape", ["gemma2", "gpt_neox", "gpt_oss", "qwen3_5_text"])
def test_parts_that_start_anywhere_and_are_absent_here_and_there_are_carried_as_by_the_oracle(
    shape: str, number: int
) -> None:
    seen, own = both(tiny(shape, torch.float64))
    at = Place(number // 2, ("resid_pre", "resid_mid")[number % 2])
    assert_carried(seen, own, start_of(seen, vectors(seen, at, seed=number)), MEAN if number % 2 else LOCAL)


@every
def test_gradients_units_and_constants_are_those_of_the_oracle(shape: str) -> None:
    assert_swept(*both(tiny(shape, torch.float64)), LOCAL, (2,))


@pytest.mark.usefixtures("many_points")
@settings
@pytest.mark.parametrize("shape", ["llama", "gemma3_text", "gpt2", "gpt_oss", "qwen3_5_text"])
def test_heads_by_token_are_those_of_the_oracle(shape: str, by: Allocation) -> None:
    assert_split_by_token(*both(tiny(shape, torch.float64)), 1, by)


# ------------------------------------------------------------------------------------------------------------ the sum


@settings
@every
def test_three_layers_deep_with_all_biases_nothing_is_missing(shape: str, by: Allocation) -> None:
    seen = replayed(both(tiny(shape, torch.float64))[0])
    parts = carried(seen, start_of(seen), [LAST], by)[LAST].dense()
    assert off(parts.sum(1), seen.resid_post) <= 7e-15
    target = noise(2, len(IDS), D_MODEL)
    for level in swept(seen, by, target):
        if not (shape in PARALLEL and level.number % 2):  # there attention's input is read again
            terms = [
                level.before * seen.streams[level.number],
                level.bias_before[..., None],
                level.pattern_before[..., None],
            ]
            whole = sum(term.sum((1, 2)) for term in terms)
            size = max(float(term.abs().sum((1, 2)).max()) for term in terms)
            assert float((whole - (target * seen.resid_post).sum((1, 2))).abs().max()) <= 7e-15 * size


@settings
@every
def test_one_sweep_gives_what_the_forward_pass_gives(shape: str, by: Allocation) -> None:
    seen, target = both(tiny(shape, torch.float64))[0], noise(2, len(IDS), D_MODEL)
    forwards = torch.einsum("tnd,nmd->tm", target, carried(seen, start_of(seen), [LAST], by)[LAST].dense())
    level = swept(seen, by, target)[-1]
    backwards = [
        (level.before * seen.streams[0]).sum(-1),
        *(x.sum(1, keepdim=True) for x in (level.pattern_before, level.bias_before)),
    ]
    assert off(forwards[:, :-1], torch.cat(backwards, dim=1)) <= 1e-12


@pytest.mark.parametrize("shape", SOFTMAX)
def test_the_parts_of_a_score_sum_to_what_transformers_computes(shape: str) -> None:
    """A rotation that is forgotten everywhere would be missed by every other sum."""
    adapter = tiny(shape, torch.float64)
    (seen, own), scores = both(adapter), own_scores(adapter, list(IDS))
    streams = carried(seen, start_of(seen), [Place(layer, "resid_pre") for layer in range(LAYERS)], LOCAL)
    for layer in range(LAYERS):
        frozen, rows = seen.sublayer(2 * layer), streams[Place(layer, "resid_pre")]
        heads = heads_of(seen, layer)
        sharing = heads.sharing(frozen.norm(frozen.resid), frozen.record, QK())
        assert sharing is not None
        hat = frozen.norm.frozen(rows.dense(), frozen.scale[:, None])
        hat[:, BIAS] += 0 if frozen.norm.bias is None else frozen.norm.bias
        q, k = hat @ heads.part.scores.q.weight, hat @ heads.part.scores.k.weight
        for y, bias in ((q, heads.part.scores.q.bias), (k, heads.part.scores.k.bias)):
            y[:, BIAS] += 0 if bias is None else bias
        by_query = torch.einsum("qmhd,khd->mhqk", sharing.asking(q), sharing.k)
        by_key = torch.einsum("qhd,kmhd->mhqk", sharing.q, sharing.asked(k))
        assert off(by_query.sum(0) * heads.part.scores.scale, scores[layer][2]) <= 1e-5
        assert off(((by_query + by_key) / 2).sum(0) * heads.part.scores.scale, scores[layer][2]) <= 1e-5
        # Beside the oracle's, one by one, before the soft-cap's slope.
        parts = oracles.Parts(rows.dense(), rows.present)
        x, whole = oracles.norm(parts, own.stream(2 * layer), input_norm(own, layer))
        pattern = seen.records[2 * layer].pattern
        assert pattern is not None
        expected = oracles.looking(own, layer, x, whole, pattern, theirs(LOCAL)).scores
        if heads.part.scores.softcap is None:
            assert off((by_query + by_key) / 2 * heads.part.scores.scale, expected) <= 1e-5


def input_norm(own: oracles.Seen, layer: int) -> torch.nn.Module:
    block = oracles.layers(own.model)[layer]
    return block.ln_1 if hasattr(block, "ln_1") else block.input_layernorm


@pytest.mark.parametrize("shape", SOFTMAX)
def test_pattern_is_what_the_parts_leave_over_though_it_is_not_computed_so(shape: str) -> None:
    seen = replayed(both(tiny(shape, torch.float64))[0])
    z = Place(1, "hook_z")
    rows = carried(seen, start_of(seen), [Place(1, "resid_pre"), z], LOCAL)
    frozen = seen.sublayer(2)
    made = frozen.pattern(Settings(LOCAL).choices)
    assert made is not None
    # What stands in the component before the layer goes through the heads, too: here all of it is taken away.
    before = rows[Place(1, "resid_pre")].dense()
    before[:, PATTERN] = 0
    lost = seen.resid_pre[1] - before.sum(1)
    whole = frozen.inside(seen.resid_pre[1], Settings(LOCAL).choices).z
    without = frozen.inside(seen.resid_pre[1] - lost, Settings(LOCAL).choices, recorded=seen.resid_pre[1]).z
    own = rows[z].dense()
    left = frozen.recorded_z() - own.sum(1) + own[:, PATTERN]
    assert off(made, left - (whole - without)) <= 1e-12


# ------------------------------------------------------------------------------------------------------------ the laws


@pytest.mark.parametrize("shape", WITHOUT_SINKS)
def test_what_all_keys_scores_share_changes_no_contribution(shape: str) -> None:
    """A key that is longer along the query by as much everywhere moves nothing that the head looks at."""
    seen = both(tiny(shape, torch.float64))[0]
    frozen, heads = seen.sublayer(2), heads_of(seen, 1)
    for qk in (QK(), QK(slope="mean")):
        sharing = heads.sharing(frozen.norm(frozen.resid), frozen.record, qk)
        assert sharing is not None
        n, n_heads, d = sharing.q.shape
        queries = noise(n, 1, n_heads, d)
        aside = noise(n_heads, d, seed=1).expand_as(sharing.k)
        there = sharing.of(queries, torch.zeros_like(queries))
        moved = replace(sharing, k=sharing.k + aside).of(queries, torch.zeros_like(queries))
        softcapped = heads.part.scores.softcap is not None
        # transformers' patterns sum to 1 in float32; a soft-cap's slope is another at each key.
        assert (off(moved, there) <= 1e-5) != softcapped


def test_a_sink_does_not_share_what_all_keys_share() -> None:
    seen = both(tiny("gpt_oss", torch.float64))[0]
    frozen = seen.sublayer(2)
    sharing = heads_of(seen, 1).sharing(frozen.norm(frozen.resid), frozen.record, QK())
    assert sharing is not None
    queries = noise(*sharing.q.shape)[:, None]
    moved = replace(sharing, k=sharing.k + 1).of(queries, torch.zeros_like(queries))
    assert off(moved, sharing.of(queries, torch.zeros_like(queries))) > 1e-3


@pytest.mark.parametrize("shape", [shape for shape in SOFTMAX if shape != "gemma2"])
def test_with_the_mean_slope_pattern_is_half_of_what_an_even_look_moves(shape: str) -> None:
    seen = both(tiny(shape, torch.float64))[0]
    for layer in range(LAYERS):
        frozen, heads = seen.sublayer(2 * layer), heads_of(seen, layer)
        sharing = heads.sharing(frozen.norm(frozen.resid), frozen.record, QK(slope="mean"))
        assert sharing is not None
        assert frozen.record.pattern is not None
        visible = (frozen.record.pattern > 0).double()
        sinks = heads.part.scores.sinks
        even = visible / (visible.sum(-1, keepdim=True) + (0 if sinks is None else sinks.double().exp()[:, None, None]))
        assert off(sharing.rest, torch.einsum("hqk,khd->qhd", even, sharing.v) / 2) <= 2e-5


def test_counted_twice_a_score_is_taken_off_twice() -> None:
    """½ Σ_k [A − 2 A ∘ (s − Σ_k A s)] v with share 1, and once with share ½."""
    seen = both(tiny("llama", torch.float64))[0]
    frozen, heads = seen.sublayer(2), heads_of(seen, 1)
    q, k = heads.queries_and_keys(frozen.norm(frozen.resid))
    pattern, s = frozen.record.pattern, torch.einsum("qhd,khd->hqk", q, k) * heads.part.scores.scale
    assert pattern is not None
    for share, times in ((0.5, 1), (1.0, 2)):
        sharing = heads.sharing(frozen.norm(frozen.resid), frozen.record, QK(share))
        assert sharing is not None
        above = s - (pattern * s).sum(-1, keepdim=True)
        expected = torch.einsum("hqk,khd->qhd", pattern - times * pattern * above, sharing.v) / 2
        assert off(sharing.rest, expected) <= 1e-12


@pytest.mark.parametrize("shape", SOFTMAX)
def test_counted_twice_it_is_half_of_the_gradient_with_the_pattern_live(shape: str) -> None:
    """z = A(s) v: the half that is not v's is half of what A moves by, the values and QK-norms as they are."""
    seen = both(tiny(shape, torch.float64))[0]
    for layer in range(LAYERS):
        frozen, heads = seen.sublayer(2 * layer), heads_of(seen, layer)
        normed = frozen.norm(frozen.resid).clone().requires_grad_()
        sharing = heads.sharing(normed.detach(), frozen.record, QK(share=1.0))
        assert sharing is not None
        w = noise(*sharing.v.shape)
        scores = heads.part.scores
        q, k = (
            side(linear(normed)[:, None])[:, 0]  # QK-norms frozen
            for side, linear in ((sharing.asking, scores.q), (sharing.asked, scores.k))
        )
        positions = torch.arange(len(normed))
        seen_by = (positions[:, None] >= positions) & (positions[:, None] - positions < (heads.window or len(normed)))
        live = heads.shares(torch.einsum("qhd,khd->hqk", q, k) * scores.scale, seen_by)
        z = torch.einsum("hqk,khd->qhd", live, sharing.v)
        (expected,) = torch.autograd.grad((z * w).sum() / 2, normed, retain_graph=True)
        (found,) = torch.autograd.grad((sharing.of(q[:, None], k[:, None])[:, 0] * w).sum(), normed)
        assert off(found, expected) <= 1e-5  # transformers' own pattern


@pytest.mark.parametrize("apart", [1, 8, 20, 40, 60, 120])
@pytest.mark.parametrize("keys", [2, 10, 1000])
def test_the_mean_slope_is_the_whole_way_however_certain_a_head_is(apart: float, keys: int) -> None:
    """Of the scores themselves: what the pattern is beyond an even one, whichever way they are spread."""
    spread = torch.linspace(0, 1, keys, dtype=torch.float64)
    for scores in (apart * spread, apart * (spread == 1).double(), apart * spread**4):
        patterns = [(torch.softmax(t * scores, 0), count) for t, count in along("mean", apart)]
        mean = sum(count * a * (scores - a @ scores) for a, count in patterns)
        assert torch.allclose(mean, torch.softmax(scores, 0) - 1 / keys, atol=5e-5)


def test_the_local_slope_vanishes_where_a_head_is_certain_and_the_mean_one_does_not() -> None:
    assert along("local") == [(1.0, 1.0)]
    for gap, share in ((4, 0.77), (6, 0.26), (8, 0.05)):  # 20 keys, all of the score from one part
        scores = torch.zeros(20, dtype=torch.float64)
        scores[3] = gap
        kept = [(torch.softmax(t * scores, 0), count) for t, count in along("local")]
        local = sum(count * (a[3] * (scores[3] - a @ scores)) for a, count in kept)
        assert float(local) == pytest.approx(share, abs=0.35)
        mean = sum(
            count * (a * (scores - a @ scores)) for t, count in along("mean") for a in [torch.softmax(t * scores, 0)]
        )
        assert torch.allclose(mean, torch.softmax(scores, 0) - 1 / 20, atol=2e-5)


# ----------------------------------------------------------------------------------------------------- many and little


@pytest.mark.parametrize("by", [LOCAL, MEAN], ids=["local", "mean"])
@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt_neox", "gpt_oss", "qwen3_5_text"])
def test_prompts_that_are_packed_are_carried_and_swept_as_each_alone(shape: str, by: Allocation) -> None:
    prompts = [torch.tensor(IDS), torch.tensor([3, 9, 11, 30, 2]), torch.tensor([7])]
    alone = traces(tiny(shape, torch.float64), prompts)
    packed = Trace.packed(alone)
    together = carried(packed, start_of(packed), [LAST], by)[LAST].dense()
    target = noise(2, len(together), D_MODEL)
    found = swept(packed, by, target)
    for prompt, one in zip(packed.prompts, alone, strict=True):
        expected = carried(one, start_of(one), [LAST], by)[LAST].dense()
        own = [*range(prompt.start, prompt.stop), PATTERN, BIAS, -1]
        assert off(together[prompt][:, own], expected) <= 1e-6
        for level, mine in zip(found, swept(one, by, target[:, prompt]), strict=True):
            assert off(level.before[:, prompt], mine.before) <= 1e-6
            assert off(level.pattern_before[:, prompt], mine.pattern_before) <= 1e-6
            assert off(level.bias_before[:, prompt], mine.bias_before) <= 1e-6


@pytest.mark.parametrize("by", [LOCAL, MEAN], ids=["local", "mean"])
@pytest.mark.parametrize("shape", ["mistral", "gpt2", "gpt_oss", "qwen3_5_text"])
def test_few_positions_few_queries_at_once_and_little_memory_change_nothing(
    shape: str, by: Allocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = both(tiny(shape, torch.float64))[0]
    start = start_of(seen, Heads(0))
    expected = carried(seen, start, [LAST], by)[LAST]
    some = torch.tensor([2, 5])
    for queries, memory in ((256, None), (3, None), (256, 1)):
        monkeypatch.setattr(mixing, "QUERIES", queries)
        found = propagate(seen, start, {LAST: some}, by, budget=Budget(memory))[LAST]
        assert torch.equal(found.present, expected.present[some])
        assert off(found.dense(), expected.dense()[some]) <= 1e-12


def test_a_read_beyond_the_last_query_of_a_layer_is_no_key_of_it() -> None:
    seen = both(tiny("llama", torch.float64))[0]
    start, reads = start_of(seen), {Place(0, "resid_pre"): torch.tensor([7]), LAST: torch.tensor([3])}
    found = propagate(seen, start, reads, LOCAL)
    assert off(found[LAST].dense(), carried(seen, start, [LAST], LOCAL)[LAST].dense()[3:4]) <= 1e-12


def test_without_any_bias_vector_there_is_no_bias_and_pattern_all_the_same() -> None:
    adapter = tiny("mistral", torch.float64)
    rows: Rows = carried(both(adapter)[0], start_of(both(adapter)[0]), [LAST], LOCAL)[LAST]
    assert attention_of(adapter, 0).scores.q.bias is None
    assert not rows.present[:, BIAS].any()
    assert rows.present[:, PATTERN].all()


@pytest.mark.parametrize("name", ["q", "k", "v", "o"])
def test_a_bias_in_one_place_alone_goes_to_bias(name: str) -> None:
    model = fresh("mistral", torch.float64)  # which has none of its own
    module = getattr(model.model.layers[1].self_attn, f"{name}_proj")
    module.bias = torch.nn.Parameter(torch.linspace(-2, 2, module.out_features, dtype=torch.float64))
    seen, own = both(adapter_for(model))
    assert_carried(seen, own, start_of(seen), LOCAL)
    assert carried(seen, start_of(seen), [LAST], LOCAL)[LAST].dense()[:, BIAS].abs().max() > 1e-3
    assert_swept(seen, own, LOCAL, (2,))


@pytest.mark.parametrize("shape", DELTA)
def test_where_no_score_stands_behind_a_pattern_heads_move_as_under_half(shape: str) -> None:
    seen = both(tiny(shape, torch.float64))[0]
    place = Place(0, "resid_mid")
    start = tokens([str(token) for token in IDS]).start(seen)
    found, half = carried(seen, start, [place], LOCAL)[place], carried(seen, start, [place], "half")[place]
    assert torch.equal(found.values, half.values)
    assert not found.present[:, PATTERN].any()


def test_other_rules_and_effects_have_no_pattern() -> None:
    seen, target = both(tiny("llama", torch.float64))[0], noise(1, len(IDS), D_MODEL)
    for choices in (Settings(Allocation("half")).choices, EFFECT):
        assert not any(level.pattern_before.any() for level in sweep(seen, {LAST: target}, choices))
    assert start_of(seen).under(rule_named("half-qk")).labels[PATTERN:] == ("pattern", "bias", "rest")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"qk_share": 0.0}, "qk_share is greater than 0 and at most 1, not 0.0"),
        ({"qk_share": 1.5}, "qk_share is greater than 0 and at most 1, not 1.5"),
        ({"qk_share": float("nan")}, "qk_share is greater than 0 and at most 1, not nan"),
        ({"qk_slope": "steep"}, "qk_slope is local or mean, not 'steep'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        Allocation("half-qk", **wrong)
    assert str(caught.value) == complaint
