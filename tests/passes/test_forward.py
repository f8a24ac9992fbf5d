"""The decomposed pass: agreement with the direct transcription, sums, memory, causality, presence."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depass_sae.errors import UserError
from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for
from depass_sae.models.place import HOOKS, Place
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.memory import Budget
from depass_sae.passes.record import Trace, trace
from depass_sae.passes.rows import Rows
from depass_sae.passes.rules import RULES
from depass_sae.passes.selfcheck import rounding_bound
from depass_sae.passes.sources import Spans, Split, Vectors, tokens

from .models import CONFIGS, D_MODEL, DTYPES, EVERY, GATED, LAYERS, SHAPES, VOCAB, build, fresh, tiny
from .reference import Components, decompose

COUPLING = [name for name, rule in RULES.items() if rule.couples]
TRANSCRIBED = [name for name, rule in RULES.items() if not rule.shares_scores]
"""Those that the direct transcription knows; half-qk has an oracle of its own (mixers/test_sharing.py)."""
OUTPUTS = [
    (layer, hook) for layer in range(LAYERS) for hook in ("hook_z", "attn_out", "ln2_normalized", "mlp_in", "mlp_out")
]
POINTS = [Place(layer, hook) for layer in range(LAYERS) for hook in HOOKS]
IDS = [0, 17, 5, 33, 5, 40, 21, 9]


def recorded(adapter: Adapter, ids: list[int], dtype: torch.dtype | None = None) -> Trace:
    return trace(adapter, torch.tensor(ids), outputs=OUTPUTS, dtype=dtype)


def by_token(ids: list[int], layer: int = 0) -> Spans:
    return tokens([f"{n}:{token}" for n, token in enumerate(ids)], layer)


def points_after(at: Place) -> list[Place]:
    """All points that a decomposition which starts there can be read at."""
    if at[1] == "resid_post":
        return [at] + [point for point in POINTS if point[0] > at[0]]
    return POINTS[POINTS.index(at) :]


def carried(adapter: Adapter, seen: Trace, start: Split, allocation: Allocation, **options: Any) -> dict[Place, Rows]:
    """The start's components everywhere they can be read, at every position."""
    everywhere = torch.arange(len(seen.token_ids))
    return propagate(seen, start, dict.fromkeys(points_after(start.at), everywhere), allocation, **options)


def as_components(start: Split) -> Components:
    return Components(start.rows.dense(), start.rows.present.clone())


def assert_agree(found: dict[Place, Rows], expected: dict[Place, Components], tolerance: float) -> None:
    for point, rows in found.items():
        want = expected[point]
        off = (rows.dense() - want.values).abs().max() / want.values.abs().max()
        assert off <= tolerance, (point, off.item())
        if point[1] not in (
            "hook_z",
            "ln2_normalized",
            "mlp_in",
        ):  # there the pass has the bias ready one step before it gets anything
            empty = ~rows.dense().any(dim=-1)
            empty[:, :-1] = False  # only rest may stand there without anything in it: relu may give to it
            assert torch.equal(rows.present & ~empty, want.present & ~empty), point


# ---------------------------------------------------------------------------------- agreement with the transcription


@pytest.mark.parametrize("rule", TRANSCRIBED)
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_agree_with_the_direct_transcription(shape: str, rule: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    x = seen.resid_pre[0]
    n = len(IDS)
    present = torch.cat([torch.eye(n, dtype=torch.bool), torch.zeros(n, 2, dtype=torch.bool)], dim=1)
    start = Components(x[:, None] * present[..., None], present)
    first_only = torch.arange(n + 2) == 0
    for first_token in ("skip", "compete"):
        found = carried(adapter, seen, by_token(IDS).start(seen), Allocation(rule, first_token=first_token))
        expected = decompose(
            adapter.model,
            seen.token_ids,
            start,
            (0, "resid_pre"),
            rule,
            skip_first=first_token == "skip",
            first_only=first_only,
        )
        assert_agree(found, expected, 1e-5)


@pytest.mark.parametrize("rule", TRANSCRIBED)
@pytest.mark.parametrize("shape", SHAPES)
def test_spans_from_a_later_layer_agree_with_the_direct_transcription(shape: str, rule: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    x = seen.resid_pre[1]
    groups = [[0], [2, 3], [5, 1, 7]]  # positions 4 and 6 are left to the rest
    owner = [0, 2, 1, 1, 4, 2, 4, 2]
    present = torch.nn.functional.one_hot(torch.tensor(owner), 5).bool()
    expected = decompose(
        adapter.model,
        seen.token_ids,
        Components(x[:, None] * present[..., None], present),
        (1, "resid_pre"),
        rule,
        temperature=0.5,
        first_only=torch.tensor([True, False, False, False, False]),
    )
    found = carried(adapter, seen, Spans(groups, ["a", "b", "c"], layer=1).start(seen), Allocation(rule, 0.5))
    assert_agree(found, expected, 1e-5)


@given(
    shape=st.sampled_from(SHAPES),
    rule=st.sampled_from(TRANSCRIBED),
    at=st.tuples(st.integers(0, LAYERS - 1), st.sampled_from(["resid_pre", "resid_mid", "resid_post"])),
    size=st.integers(1, 6),
    n_parts=st.integers(0, 4),
    leave=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150)
def test_vectors_that_are_present_here_and_there_agree_with_the_direct_transcription(
    shape: str, rule: str, at: Place, size: int, n_parts: int, leave: bool, seed: int
) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS[:size])
    source = some_vectors(seen, at, n_parts, leave, seed)
    start = source.start(seen)
    expected = decompose(
        adapter.model, seen.token_ids, as_components(start), at, rule, first_only=start.first_only, temperature=0.3
    )
    assert_agree(carried(adapter, seen, start, Allocation(rule, 0.3)), expected, 1e-5)


def some_vectors(seen: Trace, at: Place, n_parts: int, leave: bool, seed: int) -> Vectors:
    """Random parts of the stream, present at random; ``leave``: whether there is something for the rest everywhere."""
    generator = torch.Generator().manual_seed(seed)
    x = seen.at(at)
    n = len(x)
    present = torch.rand(n, n_parts, generator=generator) < 0.6
    parts = torch.randn(n, n_parts, D_MODEL, generator=generator).to(x) * present[..., None]
    if n_parts and not leave:
        # the last part takes what the others leave, where it is present at all
        parts[:, -1] = (x - parts[:, :-1].sum(1)) * present[:, -1:]
    first_only = torch.rand(n_parts, generator=generator) < 0.3
    return Vectors(parts, [f"part {m}" for m in range(n_parts)], at, present, first_only)


@pytest.mark.parametrize("rule", ["softmax", "linear-norm", "linear", "half"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_agrees_with_the_direct_transcription_in_float64(shape: str, rule: str) -> None:
    adapter, exact = tiny(shape), tiny(shape, torch.float64)
    seen, seen_exactly = recorded(adapter, IDS), recorded(exact, IDS)
    start = by_token(IDS).start(seen_exactly)
    expected = decompose(
        exact.model, seen.token_ids, as_components(start), start.at, rule, first_only=start.first_only, temperature=0.5
    )
    assert_agree(carried(adapter, seen, by_token(IDS).start(seen), Allocation(rule, 0.5)), expected, 2e-4)


BIASED = [("self_attn", "v"), ("self_attn", "o"), ("mlp", "gate"), ("mlp", "up"), ("mlp", "down")]


@pytest.mark.parametrize("rule", TRANSCRIBED)
@pytest.mark.parametrize(("part", "name"), BIASED)
def test_a_bias_in_one_place_only_goes_to_the_bias_component(part: str, name: str, rule: str) -> None:
    adapter = adapter_for(fresh("mistral", torch.float64))  # which has none of its own
    module = getattr(getattr(adapter.model.model.layers[1], part), f"{name}_proj")
    module.bias = torch.nn.Parameter(torch.linspace(-2, 2, module.out_features, dtype=torch.float64))
    seen = recorded(adapter, IDS)
    start = by_token(IDS).start(seen)
    expected = decompose(
        adapter.model, seen.token_ids, as_components(start), start.at, rule, first_only=start.first_only
    )
    found = carried(adapter, seen, start, Allocation(rule))
    assert_agree(found, expected, 1e-5)
    assert not found[0, "resid_post"].present[:, -2].any()
    assert completeness_error(found[LAYERS - 1, "resid_post"].dense(), seen.resid_post) <= 1e-6


# --------------------------------------------------------------------------------------------------- the parts add up


def completeness_error(parts: Tensor, whole: Tensor, seed: int = 0) -> float:
    """|Σ parts − whole| / max(|whole|, largest |part|) at the worst position, along 16 random directions."""
    w = torch.randn(whole.shape[-1], 16, generator=torch.Generator().manual_seed(seed)).to(whole)
    parts, whole = parts @ w, whole @ w
    size = torch.maximum(whole.norm(dim=-1), parts.norm(dim=-1).amax(dim=1)).clamp_min(1e-30)
    return float(((parts.sum(dim=1) - whole).norm(dim=-1) / size).max())


budgets = st.sampled_from([None, 1, 2000, 20_000, 200_000]).map(Budget)
QK_SETTINGS = st.tuples(st.sampled_from([0.5, 1.0]), st.sampled_from(["local", "mean"]))
ids_of_prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)


@st.composite
def runs(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES, rules: Sequence[str] = TRANSCRIBED
) -> dict[str, Any]:
    """A model, a prompt, a source, an allocation and how much memory it may take."""
    ids = draw(ids_of_prompts)
    layer = draw(st.integers(0, LAYERS - 1))
    kind = draw(st.sampled_from(["tokens", "spans", "vectors"]))
    if kind == "tokens":
        source: Any = by_token(ids, layer)
    elif kind == "spans":
        owner = draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids)))
        groups = [[n for n, o in enumerate(owner) if o == g] for g in range(3)]  # the fourth is left to the rest
        source = Spans(groups, ["a", "b", "c"], layer)
    else:
        hook = draw(st.sampled_from(["resid_pre", "resid_mid", "resid_post"]))
        options = draw(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 2**16)))
        source = lambda seen: some_vectors(seen, (layer, hook), *options)  # noqa: E731
    return {
        "shape": draw(st.sampled_from(EVERY)),
        "dtype": draw(st.sampled_from(dtypes)),
        "ids": ids,
        "source": source,
        "allocation": Allocation(
            draw(st.sampled_from(rules)),
            draw(st.sampled_from([0.02, 0.1, 1.0])),
            draw(st.sampled_from(["skip", "compete"])),
            *(draw(QK_SETTINGS) if "half-qk" in rules else ()),
        ),
        "budget": draw(budgets),
    }


def run(case: dict[str, Any], dtype: torch.dtype | None = None) -> tuple[Trace, dict[Place, Rows]]:
    adapter = tiny(case["shape"], case["dtype"])
    seen = recorded(adapter, case["ids"], dtype)
    source = case["source"] if isinstance(case["source"], Spans) else case["source"](seen)
    return seen, carried(adapter, seen, source.start(seen), case["allocation"], budget=case["budget"])


BOUNDS = {
    torch.float32: 1e-4,
    torch.float64: 1e-6,
    torch.bfloat16: 3 * 2**-8 * (2 * LAYERS) ** 0.5,
}


@given(runs())
@settings(max_examples=300)
def test_the_parts_sum_to_what_the_model_computed_at_every_read_point(case: dict[str, Any]) -> None:
    seen, found = run(case)
    for point, rows in found.items():
        assert completeness_error(rows.dense(), seen.at(point)) <= BOUNDS[case["dtype"]], point


@given(runs(dtypes=(torch.float32,), rules=("half-qk",)), budgets)
@settings(max_examples=100)
def test_with_shares_for_queries_and_keys_the_parts_sum_too_in_however_little_memory(
    case: dict[str, Any], budget: Budget
) -> None:
    seen, found = run(case)
    _, again = run(case | {"budget": budget})
    for point, rows in found.items():
        assert completeness_error(rows.dense(), seen.at(point)) <= BOUNDS[case["dtype"]], point
        size = rows.values.abs().max() if rows.values.numel() else 1.0
        assert torch.equal(rows.present, again[point].present)
        assert torch.allclose(rows.values, again[point].values, rtol=0, atol=5e-5 * float(size)), point


@given(runs(dtypes=(torch.bfloat16,)))
@settings(max_examples=60)
def test_a_float32_trace_of_a_bfloat16_model_is_complete_to_float32(case: dict[str, Any]) -> None:
    seen, found = run(case, torch.float32)
    for point, rows in found.items():
        assert completeness_error(rows.dense(), seen.at(point)) <= 1e-4, point


def test_the_rounding_bound_is_what_the_tests_ask_for() -> None:
    assert rounding_bound(torch.float32, LAYERS) <= BOUNDS[torch.float32]
    assert rounding_bound(torch.float64, LAYERS) <= BOUNDS[torch.float64]
    assert rounding_bound(torch.bfloat16, LAYERS) <= 2 * BOUNDS[torch.bfloat16]


# ------------------------------------------------------------------------------------------------- memory, reads, time


@given(runs(dtypes=(torch.float32,)), budgets)
@settings(max_examples=80)
def test_how_much_memory_there_is_changes_nothing(case: dict[str, Any], budget: Budget) -> None:
    _, found = run(case)
    _, again = run(case | {"budget": budget})
    for point, rows in found.items():
        size = rows.values.abs().max() if rows.values.numel() else 1.0
        assert torch.equal(rows.present, again[point].present)
        assert torch.allclose(rows.values, again[point].values, rtol=0, atol=5e-5 * float(size)), point


@pytest.mark.parametrize("shape", SHAPES)
def test_how_many_queries_are_mixed_at_once_changes_nothing(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    start = some_vectors(seen, (0, "resid_mid"), 4, True, 0).start(seen)
    found = carried(adapter, seen, start, Allocation("softmax"))
    monkeypatch.setattr("depass_sae.passes.mixers.mixing.QUERIES", 3)
    for point, rows in carried(adapter, seen, start, Allocation("softmax")).items():
        assert torch.allclose(rows.values, found[point].values, atol=1e-10), point


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("memory", [None, 1])
def test_positions_without_any_component_are_passed_over(rule: str, memory: int | None) -> None:
    adapter = tiny("qwen3")
    seen = recorded(adapter, IDS)
    at = (0, "resid_mid")
    parts = seen.at(at)[:, None].clone()
    present = torch.ones(len(IDS), 1, dtype=torch.bool)
    present[2:4] = False
    seen.resid_mid[0][2:4] = 0  # nothing is left over there
    start = Vectors(parts, ["all"], at, present).start(seen)
    assert not start.rows.present[2:4].any()
    found = carried(adapter, seen, start, Allocation(rule), budget=Budget(memory))
    assert all(rows.values.isfinite().all() for rows in found.values())


@given(runs(dtypes=(torch.float64,)), st.data())
@settings(max_examples=80)
def test_reading_few_positions_gives_what_reading_all_gives(case: dict[str, Any], data: st.DataObject) -> None:
    seen, found = run(case)
    source = case["source"] if isinstance(case["source"], Spans) else case["source"](seen)
    point = data.draw(st.sampled_from(list(found)))
    positions = data.draw(st.sets(st.integers(0, len(case["ids"]) - 1), min_size=1).map(sorted))
    few = propagate(seen, source.start(seen), {point: torch.tensor(positions)}, case["allocation"])[point]
    everything = found[point].dense()[positions]
    assert few.positions.tolist() == positions
    assert torch.equal(few.present, found[point].present[positions])
    assert torch.allclose(few.dense(), everything, rtol=0, atol=1e-11 * float(everything.abs().max()))


@given(
    st.sampled_from(EVERY),
    st.sampled_from(list(RULES)),
    st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=8),
    st.data(),
)
@settings(max_examples=80)
def test_later_tokens_change_nothing_at_earlier_positions(
    shape: str, rule: str, ids: list[int], data: st.DataObject
) -> None:
    adapter = tiny(shape, torch.float64)
    same = data.draw(st.integers(1, len(ids) - 1))
    other = ids[:same] + [(token + 1) % VOCAB for token in ids[same:]]
    results = []
    for prompt in (ids, other):
        seen = recorded(adapter, prompt)
        results.append(carried(adapter, seen, by_token(prompt).start(seen), Allocation(rule)))
    for point in results[0]:
        before, after = (result[point].dense()[:same] for result in results)
        assert torch.allclose(before, after, rtol=0, atol=1e-6 * float(before.abs().max())), point


@given(st.sampled_from(EVERY), st.sampled_from(list(RULES)), ids_of_prompts, st.integers(0, LAYERS - 1))
@settings(max_examples=80)
def test_a_token_is_absent_and_exactly_zero_before_its_own_position(
    shape: str, rule: str, ids: list[int], layer: int
) -> None:
    adapter = tiny(shape)
    seen = recorded(adapter, ids)
    n = len(ids)
    before = torch.ones(n, n, dtype=torch.bool).triu(1)
    for point, rows in carried(adapter, seen, by_token(ids, layer).start(seen), Allocation(rule)).items():
        assert not rows.present[:, :n][before].any(), point
        assert (rows.dense()[:, :n][before] == 0).all(), point


def test_a_window_keeps_a_token_from_positions_that_it_cannot_reach() -> None:
    adapter = tiny("mistral")  # every layer sees three positions: its own and two before
    seen = recorded(adapter, IDS)
    found = carried(adapter, seen, by_token(IDS).start(seen), Allocation("softmax"))
    distance = torch.arange(len(IDS))[:, None] - torch.arange(len(IDS))
    for layer in range(LAYERS):
        reach = 2 * (layer + 1)
        expected = (distance >= 0) & (distance <= reach)
        assert torch.equal(found[layer, "resid_post"].present[:, : len(IDS)], expected)


# --------------------------------------------------------------------------------------------- the first token, words


@pytest.mark.parametrize("rule", COUPLING)
@pytest.mark.parametrize("shape", SHAPES)
def test_letting_the_first_token_compete_changes_the_shares_at_later_positions_only(shape: str, rule: str) -> None:
    adapter = tiny(shape)
    seen = recorded(adapter, IDS)
    skip, compete = (
        carried(adapter, seen, by_token(IDS).start(seen), Allocation(rule, first_token=first))[0, "mlp_out"].dense()
        for first in ("skip", "compete")
    )
    assert torch.allclose(skip[0], compete[0], atol=1e-5)
    assert (skip[1:, 0] == 0).all()
    assert (skip[1:] - compete[1:]).abs().max() > 0.01


@pytest.mark.parametrize("rule", ["linear", "half"])
def test_rules_without_competition_treat_the_first_token_as_any_other(rule: str) -> None:
    adapter = tiny("llama")
    seen = recorded(adapter, IDS)
    skip, compete = (
        carried(adapter, seen, by_token(IDS).start(seen), Allocation(rule, first_token=first))
        for first in ("skip", "compete")
    )
    assert all(torch.equal(skip[point].dense(), compete[point].dense()) for point in skip)


@pytest.mark.parametrize("rule", COUPLING)
def test_the_rest_takes_the_neurons_where_only_the_first_token_is_present(rule: str) -> None:
    adapter = tiny("mistral", torch.float64)  # without biases
    seen = recorded(adapter, [3, 8])
    everything = Vectors(seen.resid_pre[0][:, None], ["all"], (0, "resid_pre"), first_only=torch.tensor([True]))
    out = carried(adapter, seen, everything.start(seen), Allocation(rule))[0, "mlp_out"].dense()
    whole = seen.at((0, "mlp_out"))
    own = (
        out[0, 0] if rule != "relu" else out[0, 0] + out[0, -1]
    )  # relu leaves neurons with a negative score to the rest
    assert torch.allclose(own, whole[0], atol=1e-5)  # at its own position it takes credit
    assert torch.allclose(out[1, -1], whole[1], atol=1e-5)
    assert (out[1, 0] == 0).all()


def test_labels_come_in_the_order_source_bias_rest() -> None:
    seen = recorded(tiny("llama"), [1, 2])
    assert tokens(["x", "y"]).start(seen).labels == ("x", "y", "bias", "rest")
    assert Spans([[0, 1]], ["word"]).start(seen).labels == ("word", "bias", "rest")
    vectors = Vectors(seen.resid_pre[1][:, None], ["v"], (1, "resid_pre"))
    assert vectors.start(seen).labels == ("v", "bias", "rest")


def test_a_word_is_present_from_its_first_token_on() -> None:
    adapter = tiny("llama")
    seen = recorded(adapter, IDS)
    start = Spans([[2, 3, 4]], ["word"]).start(seen)
    assert start.rows.present[:, 0].tolist() == [False, False, True, True, True, False, False, False]
    rows = carried(adapter, seen, start, Allocation("softmax"))[0, "attn_out"]
    assert rows.present[:, 0].tolist() == [False] * 2 + [True] * 6
    assert (rows.dense()[:2, 0] == 0).all()


def test_a_word_is_the_sum_of_its_tokens_in_linear_rules() -> None:
    adapter = tiny("qwen2", torch.float64)
    seen = recorded(adapter, IDS)
    word = carried(adapter, seen, Spans([[2, 3]], ["word"]).start(seen), Allocation("half"))
    pieces = carried(adapter, seen, by_token(IDS).start(seen), Allocation("half"))
    last = (LAYERS - 1, "resid_post")
    assert torch.allclose(word[last].dense()[:, 0], pieces[last].dense()[:, 2:4].sum(1), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_bias_is_present_only_after_a_bias_vector(shape: str) -> None:
    adapter = tiny(shape)
    seen = recorded(adapter, IDS)
    found = carried(adapter, seen, by_token(IDS).start(seen), Allocation("softmax"))
    assert not found[0, "resid_pre"].present[:, -2].any()
    has_bias = shape in ("llama", "qwen2", "gpt2")  # Mistral and Qwen3 have no bias anywhere
    assert found[0, "resid_mid"].present[:, -2].all() == has_bias
    assert found[LAYERS - 1, "resid_post"].present[:, -2].any() == has_bias


def test_only_a_span_that_is_position_0_alone_counts_as_the_first_token() -> None:
    seen = recorded(tiny("llama"), [1, 2, 3])
    assert Spans([[0], [1, 2]], ["first", "word"]).start(seen).first_only.tolist() == [True, False, False, False]
    assert Spans([[0, 1], [2]], ["word", "last"]).start(seen).first_only.tolist() == [False] * 4


def test_what_is_given_where_a_vector_is_absent_stays_in_the_rest() -> None:
    seen = recorded(tiny("llama"), [1, 2])
    x = seen.resid_pre[1]
    present = torch.tensor([[True], [False]])
    rows = Vectors(x[:, None], ["all"], (1, "resid_pre"), present).start(seen).rows
    assert rows.present.tolist() == [[True, False, False], [False, False, True]]
    assert torch.equal(rows.dense().sum(1), x)


# ------------------------------------------------------------------------------------------------- neurons at exactly 0


def with_a_gate_of_zero(shape: str) -> Adapter:
    """Half the neurons of every layer have a gate of exactly 0, whatever the input."""
    adapter = adapter_for(fresh(shape))
    for layer in range(LAYERS):
        gate = adapter.layer(layer).sublayers[1].mixer.gate
        gate.weight[:, ::2] = 0
        if gate.bias is not None:
            gate.bias[::2] = 0
    return adapter


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gate_of_exactly_zero_gives_no_nan_and_nothing_is_lost(shape: str, rule: str) -> None:
    adapter = with_a_gate_of_zero(shape)
    seen = recorded(adapter, IDS)
    for point, rows in carried(adapter, seen, by_token(IDS).start(seen), Allocation(rule)).items():
        assert rows.values.isfinite().all(), point
        assert completeness_error(rows.dense(), seen.at(point)) <= 1e-4, point


@pytest.mark.parametrize("shape", GATED)
def test_where_all_scores_are_equal_linear_norm_shares_evenly(shape: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, [4, 7])
    x = seen.resid_mid[0]
    twins = Vectors(torch.stack([x / 2, x / 2], dim=1), ["a", "b"], (0, "resid_mid"))
    out = carried(adapter, seen, twins.start(seen), Allocation("linear-norm"))[0, "mlp_out"].dense()
    if shape in ("mistral", "qwen2", "qwen3"):  # nothing else has a score in an MLP without biases
        assert torch.allclose(out[:, 0], seen.at((0, "mlp_out")) / 2, atol=1e-5)
    assert torch.allclose(out[:, 0], out[:, 1])


# --------------------------------------------------------------------------------------------------------- refusals


def refused(adapter: Adapter, seen: Trace, source: Any, *points: Place) -> str:
    with pytest.raises(UserError) as caught:
        propagate(seen, source.start(seen), dict.fromkeys(points, torch.arange(len(seen.token_ids))))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_read_before_the_start_is_refused() -> None:
    adapter = tiny("llama")
    message = refused(adapter, recorded(adapter, [1, 2]), tokens(["a", "b"], layer=2), (1, "mlp_out"))
    assert message == "mlp_out of layer 1 lies before the decomposition's start, resid_pre of layer 2"


def test_a_read_beyond_the_trace_is_refused() -> None:
    adapter = tiny("llama")
    seen = trace(adapter, torch.tensor([1, 2]), until=1)
    assert "layers 0 to 1" in refused(adapter, seen, tokens(["a", "b"]), (2, "resid_pre"))
    assert "layers count from 0" in refused(adapter, seen, tokens(["a", "b"]), (-1, "resid_pre"))


def test_an_unknown_hook_is_refused_with_the_names_there_are() -> None:
    adapter = tiny("llama")
    message = refused(adapter, recorded(adapter, [1, 2]), tokens(["a", "b"]), (0, "hook_resid_pre"))
    assert "'hook_resid_pre' is not a hook" in message
    assert "resid_post" in message


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"rule": "softmin"},
            "unknown rule 'softmin'; the rules are softmax, linear-norm, relu, max, linear, half, half-qk",
        ),
        ({"temperature": 0}, "temperature must be greater than 0 and finite, not 0"),
        ({"rule": "linear", "temperature": -1.0}, "temperature must be greater than 0 and finite, not -1.0"),
        ({"temperature": float("nan")}, "temperature must be greater than 0 and finite, not nan"),
        ({"first_token": "drop"}, 'first_token must be "skip" or "compete", not \'drop\''),
    ],
)
def test_an_allocation_that_makes_no_sense_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        Allocation(**settings)
    assert str(caught.value) == complaint


def test_overlapping_spans_are_refused() -> None:
    seen = recorded(tiny("llama"), [1, 2, 3])
    with pytest.raises(UserError, match="spans must not overlap"):
        Spans([[0, 1], [1, 2]], ["a", "b"]).start(seen)


def test_vectors_of_the_wrong_shape_are_refused() -> None:
    seen = recorded(tiny("llama"), [1, 2, 3])
    with pytest.raises(UserError, match=r"shape \[3, 2, 5\], expected \[3, 2, 32\]"):
        Vectors(torch.zeros(3, 2, 5), ["a", "b"], (0, "resid_pre")).start(seen)


def test_vectors_off_the_residual_stream_are_refused() -> None:
    seen = recorded(tiny("llama"), [1, 2, 3])
    with pytest.raises(UserError, match="starts on the residual stream, not at mlp_out"):
        Vectors(torch.zeros(3, 1, D_MODEL), ["a"], (0, "mlp_out")).start(seen)


def test_progress_counts_every_sublayer_once() -> None:
    adapter = tiny("gpt2")
    seen = recorded(adapter, IDS)
    calls: list[tuple[int, int]] = []
    start = by_token(IDS).start(seen)
    reads = {(LAYERS - 1, "resid_post"): torch.tensor([7])}
    propagate(seen, start, reads, progress=lambda _what, done, of: calls.append((done, of)))
    assert calls == [(done, 2 * LAYERS) for done in range(1, 2 * LAYERS + 1)]


def test_a_bias_that_is_ignored_would_be_missed() -> None:
    """A random Qwen2 has biases on q, k and v: without the bias component the sum is off by percents."""
    adapter = adapter_for(build(CONFIGS["qwen2"]()))
    seen = recorded(adapter, IDS)
    rows = carried(adapter, seen, by_token(IDS).start(seen), Allocation("softmax"))[LAYERS - 1, "resid_post"]
    whole = seen.resid_post
    assert completeness_error(rows.dense(), whole) <= 1e-5
    assert completeness_error(rows.dense()[:, :-2], whole) > 0.01
